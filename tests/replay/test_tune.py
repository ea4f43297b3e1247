"""Tuning on small recordings whose answers are known: what is proved, what is missing, what is refused."""

from __future__ import annotations

import json
from random import Random

import pytest
from recordings import HOURS, Letters, chat, repeats, reworded, run

from semcache import SHARED, Cache
from semcache.cli import main
from semcache.model import Request
from semcache.policy import Tuned
from semcache.policy.equivalent import Comparator
from semcache.replay import telling
from semcache.replay.labels import Labels
from semcache.replay.recording import Asked
from semcache.replay.report import figures as report_figures
from semcache.replay.report import make_report
from semcache.replay.settings import Settings
from semcache.replay.study import Study
from semcache.replay.tune import CUTS, Tuning, tune
from semcache.replay.tuning import figures, render
from semcache.replay.worlds import NO_CUT, Near, World
from semcache.semantic.embedder import as_embedder
from semcache.testing import ManualClock

pytestmark = pytest.mark.semantic


def tuned(lines, budget=0.05, **settings):
    tuning = Tuning(Settings(embedder=Letters()), budget, **settings)
    return tune(lines, tuning, lambda *_: None, made="2026-11-27", name="made")


def told(outcome):
    text = "".join(text for line in render(outcome, "made", "policy.json", 96) for text, _ in [*line, (" ", "")])
    return " ".join(text.split())


def test_clean_labels_prove_a_cut():
    """59 right near matches in the first half prove 5%, and the second half shows what that serves."""
    outcome = tuned(repeats(120))
    assert outcome.policy.cuts == [0.7, 0.7]
    proof = outcome.policy.others
    assert (proof.labels, proof.wrong) == (60, 0)
    assert (outcome.row.served.near.count, outcome.row.served.wrong.count) == (60, 0)
    assert [row.cuts.others.cut for row in outcome.rows] == [None, None, 0.7, 0.7]


def test_labels_are_too_few():
    """One label fewer proves nothing, and it is said how many are missing."""
    outcome = tuned(repeats(116))
    assert outcome.policy.cuts == []
    assert figures(outcome)["labels_missing"] == 1
    assert "It takes 59 labels, none wrong, and there are 58: 1 label is missing" in told(outcome)


def test_policy_of_too_few_labels_says_how_many_there_were(tmp_path):
    """Its file and its status say what `tune` has printed, not that there were none."""
    path = tmp_path / "policy.json"
    tuned(repeats(42)).policy.write(path)
    others = json.loads(path.read_text())["others"]
    assert others == {"cut": None, "labels": 0, "wrong": 0, "counted": 21, "needed": 59, "bound": 1.0}
    status = Tuned.read(path).status()
    assert (status.others.counted, status.others.needed) == (21, 59)
    assert "nothing, as it takes 59 labels, none wrong, and there were 21" in str(status)


def test_wrong_labels_prove_nothing():
    """Where what was tested first is wrong too often, more labels are not asked for."""
    outcome = tuned(repeats(120, wrong=30))
    assert outcome.policy.cuts == []
    assert figures(outcome)["labels_missing"] is None
    assert "more labels of this kind will not help" in told(outcome)
    assert outcome.policy.others.wrong == 30


def test_few_wrong_labels_leave_the_share_open():
    """4 of 60 may be more than 5% by chance: that no label would help is not known, and not claimed."""
    text = told(tuned(repeats(120, wrong=4)))
    assert "4 were wrong: more than that share, but so few labels leave open what it is, 1.8% to 16.2%" in text
    assert "will not help" not in text


def test_second_part_has_no_say():
    """What comes after the split changes neither cut nor proof, only what is reported."""
    lines = repeats(60) + repeats(60, wrong=60, start=1000)
    good = tuned(repeats(120)).policy
    # The turns of the second part are those of the first: exact repeats of 60 texts, so its pairs are told apart.
    lines = lines[:120] + [line.replace("turn ", "later turn ") for line in lines[120:]]
    outcome = tuned(lines)
    assert (outcome.policy.cuts, outcome.policy.others) == (good.cuts, good.others)
    assert (outcome.row.served.wrong.count, outcome.row.served.wrong.of) == (60, 60)


def test_no_label_at_all():
    """A recording without answers proves nothing, and says what a label is."""
    outcome = tuned(repeats(120, model_said="nothing"))
    assert (outcome.policy.cuts, outcome.facts, figures(outcome)["labels_missing"]) == ([], 0, 59)
    assert "an answer_id, or a response to compare" in told(outcome)
    assert outcome.oracle is None


@pytest.mark.parametrize("lines", [repeats(1), repeats(5), [chat("a", 0, "x")], [chat("", 0, "x")]])
def test_few_requests(lines):
    """One pair, ten requests, a single one, one without a text: nothing is proved, and nothing breaks."""
    outcome = tuned(lines)
    assert outcome.policy.cuts == []
    assert "No cut was proved at 5%" in told(outcome)
    json.dumps(figures(outcome), allow_nan=False)


def test_pair_that_repeats_is_one_fact():
    """The same near match a hundred times is one right label, but a hundred wrong ones."""
    other = reworded(HOURS, 1)

    def line(text, ts, answer):
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        return json.dumps({"ts": 1000 + ts, "kind": "llm", "request": body, "answer_id": answer})

    def again(answer):
        return [line(HOURS, 0, "a"), *(line(other, ts, answer) for ts in range(1, 201))]

    assert tuned(again("a")).facts == 1
    outcome = tuned([*repeats(60), *again("a")], split=0.99)
    assert (outcome.policy.others.labels, outcome.policy.others.wrong) == (61, 0)
    outcome = tuned([*repeats(60), *again("b")], split=0.99)
    failed = outcome.row.cuts.others.failed
    assert failed is not None
    assert failed.wrong > 190
    assert set(outcome.policy.cuts) <= {1.0}  # one vector with itself may round to a little less


def test_equal_texts_are_exact_hits_and_no_labels():
    """What is answered exactly says nothing of near matches."""
    outcome = tuned([chat(HOURS, ts, "a") for ts in range(200)])
    assert (outcome.facts, outcome.exact.count) == (0, 100)


def test_lines_out_of_order_are_skipped_and_named():
    """A line older than the one before is left out, and said so."""
    lines = repeats(5)
    outcome = tuned([lines[9], *lines])
    assert len(outcome.recording.skipped) == 9
    assert "9 lines were not in the format" in told(outcome)


def test_families_are_proved_by_themselves():
    """A family whose matches are wrong does not profit by another's, whose cut stands."""
    good, bad = repeats(120), repeats(120, wrong=120)
    lines = [line for pair in zip(good, [one.replace('"m"', '"other"') for one in bad], strict=True) for line in pair]
    outcome = tuned(lines)
    assert sorted(proof.cut or 0 for proof in outcome.policy.families.values()) == [0, 0.7]
    assert outcome.policy.others.cut is None
    assert (outcome.row.served.near.count, outcome.row.served.wrong.count) == (60, 0)


def test_labels_from_responses():
    """Without answer_ids the recorded responses are compared; what is left open counts as wrong."""
    assert tuned(repeats(120, response="From 9 to 6.")).policy.cuts == [0.7, 0.7]
    lines = [line[:-1] + f', "response": "wording {"ab"[place % 2]}"}}' for place, line in enumerate(repeats(120, x=1))]
    outcome = tuned(lines)
    assert (outcome.policy.cuts, outcome.policy.others.wrong) == ([], 60)
    assert "left open, and counted as wrong" in told(outcome)

    async def judge(cached, fresh):
        return cached.split()[0] == fresh.split()[0]

    assert tuned(lines, comparator=Comparator(judge=judge)).policy.cuts == [0.7, 0.7]
    assert tuned(lines, comparator=Comparator(judge=lambda cached, fresh: True)).policy.cuts == [0.7, 0.7]


def test_judge_is_asked_only_of_what_is_drawn():
    """A share of labels is drawn by hash; what is not drawn costs nobody a comparison."""
    lines = [
        line[:-1] + f', "response": "wording {chr(97 + place // 26) + chr(97 + place % 26)}"}}'
        for place, line in enumerate(repeats(200, x=1))
    ]
    asked = []
    outcome = tuned(lines, share=0.5, comparator=Comparator(judge=lambda *pair: asked.append(pair)))
    assert 25 < len(asked) < 75
    assert outcome.facts < 70


def test_origin_that_disagrees_with_itself_is_told():
    """Identical requests with other responses are counted beside the wrong rate."""
    lines = [chat("hello", ts, response=f"{ts // 2}") for ts in range(10)]
    assert (tuned(lines).disagrees.count, tuned(lines).disagrees.of) == (4, 9)


def test_policy_of_a_recording_serves_in_a_replay_and_in_a_cache(tmp_path):
    """The file that is written serves as proved: near matches of its families, on its embedder's vectors."""
    path = tmp_path / "policy.json"
    tuned(repeats(120)).policy.write(path)
    policy = Tuned.read(path)
    replayed = run(repeats(3), embedder=Letters(), policy=policy)
    assert [one.tier for one in replayed.outcomes] == [None, "semantic"] * 3
    clock = ManualClock()
    with Cache(embedder=Letters(), policy=path, tenant=SHARED, clock=clock) as cache:
        cache.warm()
        cache.get_or_load(cache.request(text=HOURS), lambda: "9 to 6")
        cache.flush()
        near = cache.request(text=reworded(HOURS, 5))
        assert cache.get_or_load(near, lambda: "loaded") == "9 to 6"
        assert "tuned on all families that were not measured alone" in str(cache.explain(near))


def test_command_writes_the_policy_and_says_what_it_does(tmp_path, capsys, monkeypatch):
    """`semcache tune` writes a file in either case, exit status 0; --json prints figures."""
    monkeypatch.setattr("semcache.cli.tune.as_embedder", _made)
    traffic, output = tmp_path / "traffic.jsonl", tmp_path / "policy.json"
    for pairs, budget, cuts in ((120, "0.05", [0.7, 0.7]), (20, "0.01", [])):
        traffic.write_text("\n".join(repeats(pairs)), encoding="utf-8")
        assert main(["tune", str(traffic), "--max-wrong", budget, "--output", str(output), "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)["cuts"] == cuts == Tuned.read(output).cuts
    for budget in ("0.05", "5%", "5.0%"):
        assert main(["tune", str(traffic), "--max-wrong", budget, "--output", str(output), "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)["max_wrong"] == pytest.approx(0.05)
    monkeypatch.chdir(tmp_path)  # a long path would be broken over two lines
    assert main(["tune", str(traffic), "--output", "policy.json", "--quiet"]) == 0
    assert "No cut was proved at 1%: policy.json serves nothing near" in " ".join(capsys.readouterr().out.split())


def _made(name, device):
    return as_embedder(Letters(), device)


class NotYet(Letters):
    """An embedder that nobody may load yet."""

    def load(self):
        raise AssertionError("loaded before the recording was read")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "no request in it"),
        ("\n  \n", [], "no request in it"),
        ("hello\n", [], "no request in it; the first line: not JSON"),
        (chat("a") + "\n{\n", ["--strict"], "line 2: not JSON"),
        (chat("a", 5) + "\n" + chat("b", 4) + "\n", ["--strict"], "never decreases"),
        ("".join(map(chr, range(256))), [], "no request in it; the first line: "),
        (None, [], "No such file"),
    ],
)
def test_recording_of_nothing_is_said_at_once(content, options, message, tmp_path, capsys, monkeypatch):
    """What cannot be read is named in one line, before a model is loaded; no policy is written."""
    monkeypatch.setattr("semcache.cli.tune.as_embedder", lambda *_: as_embedder(NotYet(), "cpu"))
    traffic, output = tmp_path / "t.jsonl", tmp_path / "policy.json"
    if content is not None:
        traffic.write_text(content, encoding="utf-8")
    assert main(["tune", str(traffic), "--output", str(output), "--quiet", *options]) == 1
    out, err = capsys.readouterr()
    assert (out, output.exists()) == ("", False)
    assert err.startswith("semcache: ")
    assert message in err
    assert err.count("\n") == 1


def test_one_answer_for_all_proves_what_its_labels_prove():
    """Where all that was asked had one answer, near matches are right, and their number alone counts."""
    assert tuned(repeats(120, answer_id="the same")).policy.cuts == [0.7, 0.7]
    assert tuned(repeats(116, answer_id="the same")).policy.cuts == []


def test_texts_of_a_megabyte_are_exact_only():
    """What guards do not read is served to nobody but its own text, and nothing breaks."""
    lines = repeats(2) + [chat("word " * 200_000 + "abc"[place], 100 + place, "a") for place in range(3)]
    assert tuned(lines, split=0.9).row.served.near.count == 0


def test_replay_of_what_proved_a_policy_says_so(tmp_path):
    """The first part of a recording is no test of the policy it proved; another one is, and so is a shorter one."""
    path, lines = tmp_path / "policy.json", repeats(120)
    tuned(lines).policy.write(path)

    def report(lines):
        return make_report(run(lines, embedder=Letters(), policy=Tuned.read(path)))

    def notes(lines):
        return [note for note, _ in telling.notes(report(lines)) if "very recording" in note]

    first = "proved on the first 120 requests of this very recording, which are no test of it: replay a later one."
    assert [note.partition("was ")[2] for note in notes(lines)] == [first]
    assert len(notes(lines + repeats(1, start=1000))) == 1
    assert report_figures(report(lines))["proving_requests"] == 120
    for others in (repeats(120, start=1), lines[:119], lines[120:], repeats(120)[::-1]):
        assert notes(others) == []
        assert "proving_requests" not in report_figures(report(others))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-wrong", "1"], "expected a share between 0 and 1, for one percent 0.01 or 1%"),
        (["--max-wrong", "100%"], "expected a share between 0 and 1, as in 0.01 or 1%"),
        (["--max-wrong", "5"], "expected a share over 0, at most 1, for 5 percent write 5%"),
        (["--max-wrong", "none"], "expected a share over 0"),
        (["--max-wrong", "nan%"], "expected a share over 0"),
        (["--max-wrong", "0%"], "expected a share over 0"),
        (["--max-wrong", "1%%"], "expected a share over 0"),
        (["--label-share", "50"], "for 50 percent write 50%"),
        (["--judge", "nowhere"], "--judge takes MODULE:FUNCTION"),
        (["--judge", "no.such:judge"], "cannot be imported"),
        (["--judge", "math:pi"], "is no function"),
        (["--similar-answers", "3"], "a cosine, from -1 to 1"),
        (["--output", "/no/such/folder/policy.json"], "there is no folder"),
        (["--split", "0"], "expected a share over 0"),
    ],
)
def test_wrong_options_are_said_in_one_line(options, message, tmp_path, capsys):
    """What is wrong with an option is said before anything is embedded, with status 2."""
    arguments = ["tune", str(tmp_path / "t.jsonl"), "--output", str(tmp_path / "p.json"), *options]
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_opened_cuts_hold_the_budget_over_many_splits():
    """Of 60 draws and splits at most 5%, and what chance adds, open a cut that is wrong too often in truth."""
    random, budget, size, draws = Random(5), 0.10, 160, 60
    # The nearer the righter: at most one in a hundred above 0.93, then ever more.
    similarities = [0.7 + 0.3 * (place + 0.5) / size for place in range(size)]
    risks = [max(0.01, 0.55 * (1 - similarity) / 0.3 - 0.12) for similarity in similarities]
    asked = [
        Asked(place, 0.0, Request(b"%d" % place, family=b"f"), None, None, "a", b"", 0, 0, 0)
        for place in range(2 * size)
    ]
    near = [Near(2 * place + 1, 2 * place, near, near) for place, near in enumerate(similarities)]
    worlds = {cut: World([one for one in near if one.similarity >= cut]) for cut in (NO_CUT, *CUTS)}
    opened = broken = 0
    for _ in range(draws):
        for place, risk in enumerate(risks):
            asked[2 * place + 1].answer_id = "b" if random.random() < risk else "a"
        calibrates = [random.random() < 0.5 for _ in asked]
        study = Study(worlds, Labels(asked, Comparator()), [b"f"] * len(asked), calibrates)
        cut = study.certify(budget).of(b"f")
        if cut is not None:
            opened += 1
            served = [risk for risk, similarity in zip(risks, similarities, strict=True) if similarity >= cut]
            broken += sum(served) / len(served) > budget
    assert opened > draws // 4
    # 8 of 60 or more come with less than 1% where the rate of breaking is just 5%.
    assert broken <= 7
