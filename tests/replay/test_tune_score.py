"""Tuning with a learned score: it proves what a cosine cannot, on labels that taught nothing, and serves as proved."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
from recordings import run
from slots import MANNERS, Words, slots, things

from semcache import SHARED, Cache, ConfigurationError
from semcache.cli import main
from semcache.policy import Tuned
from semcache.policy.bounds import at_most
from semcache.policy.equivalent import Comparator
from semcache.replay.labels import Labels
from semcache.replay.lookahead import embed
from semcache.replay.settings import Settings, load
from semcache.replay.study import Study
from semcache.replay.teach import read_pairs
from semcache.replay.tune import GUARDED, LEARNED, SCORE_CUTS, Tuning, make_trace, make_worlds, proving, tune
from semcache.replay.tuning import figures, render
from semcache.replay.worlds import NO_CUT
from semcache.semantic.embedder import as_embedder
from semcache.testing import ManualClock
from semcache.ttl import TTL

pytestmark = pytest.mark.semantic


def tuned(lines, budget=0.10, **settings):
    tuning = Tuning(Settings(embedder=Words()), budget, **settings)
    return tune(lines, tuning, lambda *_: None, made="2026-11-27", name="made")


@pytest.fixture(scope="module")
def outcome():
    return tuned(slots(440))


def trace_of(lines):
    embedder = as_embedder(Words(), "cpu")
    embedder.load()
    settings = Settings(embedder=embedder)
    with Cache("replay", embedder=embedder) as cache:
        recording = load(lines, settings, cache, lambda *_: None)
    trace = make_trace(recording, embed(embedder, recording.texts(), lambda *_: None), settings)
    trace.search(lambda *_: None)
    return trace


def test_score_proves_what_the_cosine_does_not(outcome):
    """Where what matters is one quiet word, the score serves half of the requests, and the cosine hardly any."""
    assert (outcome.row.way.name, outcome.policy.kind) == (LEARNED, "score")
    learned, cosine = (outcome.row.columns[name].served for name in (LEARNED, GUARDED))
    assert learned.near.share > 0.5
    assert learned.wrong.share <= 0.1
    assert cosine.near.share < learned.near.share - 0.2
    told = figures(outcome)
    assert told["budgets"][-1]["by"] == "learned score"
    assert told["score"]["is_better_than_cosine"]
    assert set(told["budgets"][0]["ways"]) == {"cosine", "cosine + guards", "learned score"}
    json.dumps(told, allow_nan=False)


def test_report_tells_each_way_beside_the_others(outcome):
    """The page has a line for each way, and says which was taken, and with how much confidence each was proved."""
    lines = ["".join(text for text, _ in line) for line in render(outcome, "made", "policy.json", 100)]
    text = " ".join(" ".join(lines).split())
    assert "learned score" in text
    assert "At 10% the score is taken; each was proved with 97.5% confidence" in text
    assert "oracle" in text


def test_score_that_lacks_labels_is_told_where_the_cosine_is_past_hope(outcome):
    """More labels do help then; how many are missing is what the score lacks of its own."""
    row = next(row for row in outcome.rows if row.budget == 0.02)
    lacking = replace(outcome, row=row, tuning=replace(outcome.tuning, budget=0.02), policy=Tuned(0.02, 0.95, "words"))
    there = figures(lacking)["labels_missing"]
    lines = render(lacking, "made", "policy.json", 100)
    text = " ".join("".join(text for text, _ in [*line, (" ", "")]) for line in lines)
    text = " ".join(text.split())
    assert "more labels of this kind will not help the similarity. The learned score is proved apart. It takes" in text
    assert f"{there} labels are missing" in text


def test_labels_that_teach_do_not_prove(outcome):
    """What proves comes later than what teaches, and is of texts that have taught nothing."""
    taught = outcome.taught
    trace = trace_of(slots(440))
    proves = [position for position, proves in enumerate(proving(trace, taught, 220)) if proves]
    assert (taught.begin, min(proves), max(proves)) == (110, 110, 219)
    assert not {trace.asked[position].text for position in proves} & taught.texts


def test_text_that_taught_proves_nothing_when_it_comes_again(outcome):
    """A text of the first part that is asked again later is no new evidence of the score."""
    lines = slots(440)
    again = [json.loads(line) | {"ts": 440 + place} for place, line in enumerate(lines[:50])]
    trace = trace_of([*lines, *map(json.dumps, again)])
    assert not any(proving(trace, outcome.taught, 490)[440:])


def test_policy_serves_in_a_replay_what_its_world_served(outcome, tmp_path):
    """Request by request a replay of the policy's file serves what was foreseen, ranked by the score, guards on."""
    path = tmp_path / "policy.json"
    outcome.policy.write(path)
    lines = slots(200, seed=3)
    replayed = run(lines, embedder=Words(), policy=Tuned.read(path), ttl=TTL(jitter=0.0))
    cut = outcome.policy.families[next(iter(outcome.policy.families))].cut
    ranked = trace_of(lines).ranked(score=outcome.policy.score)
    world = ranked.cached_on_miss(cut)
    served = {place: one.maker for place, one in enumerate(replayed.outcomes) if one.tier == "semantic"}
    assert len(served) > 50
    assert {near.position: near.maker for near in world.near} == served


def test_cache_serves_by_the_score(outcome, tmp_path):
    """A cache with that file serves the right thing's answer, though another text is nearer, and explains it."""
    path = tmp_path / "policy.json"
    outcome.policy.write(path)
    clock = ManualClock()
    one, two = things()[:2]
    with Cache(embedder=Words(), policy=path, tenant=SHARED, clock=clock) as cache:
        cache.warm()
        # The cuts are of the recording's family; another is served by what all families together proved.
        for text in (f"hello hey softly bring me {one}", f"please kindly maybe bring me {two}"):
            cache.get_or_load(cache.request(text=text), lambda text=text: text)
        cache.flush()
        near = cache.request(text=f"please kindly maybe bring me {one}")
        told = str(cache.explain(near))
        assert cache.get_or_load(near, lambda: "loaded") in (f"hello hey softly bring me {one}", "loaded")
    assert "score 0." in told


def test_another_embedder_is_refused(outcome, tmp_path):
    """Law 11: a score of other vectors says nothing."""
    path = tmp_path / "policy.json"
    outcome.policy.write(path)

    class Other(Words):
        identity = "other"

    with pytest.raises(ConfigurationError, match="use that embedder"):
        Cache(embedder=Other(), policy=path, tenant=SHARED)


def test_few_labels_leave_all_of_them_to_the_cosine():
    """Where too few labels could teach, there is no score, and the cosine is proved with all of the confidence."""
    outcome = tuned(slots(60))
    assert outcome.taught is None
    assert outcome.row.cuts.confidence == 0.95
    assert outcome.policy.kind == "cosine"


def test_no_score_where_none_is_wanted():
    """learns=False proves the cosine alone."""
    assert tuned(slots(300), learns=False).taught is None


def test_pairs_teach_and_all_requests_prove(tmp_path):
    """With labelled pairs enough and a short recording these teach, and no request is spent on it."""
    random, known = Random(4), things()
    pairs = []
    while len(pairs) < 700:
        one, two = (
            [*random.sample(MANNERS, 3), "bring", "me", random.choice(known)] for _ in range(2)
        )  # fmt: skip
        two[-1] = one[-1] if random.random() < 0.5 else two[-1]
        pairs.append(json.dumps({"a": " ".join(one), "b": " ".join(two), "equal": one[-1] == two[-1]}))
    outcome = tuned(slots(100, seed=9), pairs=read_pairs(pairs), budget=0.10)
    assert outcome.taught.begin == 0
    assert outcome.taught.score.correction is not None


@pytest.mark.parametrize(
    "line", ["{}", "not json", '{"a": "x", "b": "y", "equal": 1}', '{"a": 1, "b": "y", "equal": true}', "[1]"]
)
def test_what_is_no_pair_is_refused(line, tmp_path, capsys):
    """A line that is no labelled pair is named before anything is embedded, with status 2."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"a": "x", "b": "y", "equal": true}\n\n' + line)
    assert main(["tune", "no.jsonl", "--output", str(tmp_path / "p.json"), "--pairs", str(path)]) == 2
    assert "line 3 is no labelled pair" in capsys.readouterr().err


def test_budget_holds_over_random_splits(outcome):
    """Of 20 draws of who proves at most a few open a score's cut that is surely wrong too often elsewhere."""
    lines = slots(300, seed=5)
    told = [json.loads(line) for line in lines]
    random = Random(8)
    for one in told:  # which no score can know
        if random.random() < 0.03:
            one["answer_id"] += "?"
    trace = trace_of([json.dumps(one) for one in told]).ranked(score=outcome.taught.score)
    worlds, _ = make_worlds(trace, lambda *_: None, SCORE_CUTS[::4])
    labels, families = Labels(trace.asked, Comparator()), [b"f"] * len(trace.asked)
    opened = surely = 0
    for _ in range(20):
        proves = [random.random() < 0.5 for _ in trace.asked]
        study = Study({cut: worlds[cut] for cut in (NO_CUT, *SCORE_CUTS[::4])}, labels, families, proves)
        served = study.serve(study.certify(0.10))
        if served.wrong.of:
            opened += 1
            surely += 1 - at_most(served.wrong.count - 1, served.wrong.of, 0.10) < 0.05
    assert opened
    assert surely <= 5
