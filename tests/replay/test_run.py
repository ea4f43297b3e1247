"""A replay in virtual time: the recording's clock, the real cache, and what is kept from it."""

from __future__ import annotations

import json

import pytest
from recordings import Letters, chat, run, tiers

from semcache.cli import main
from semcache.errors import ConfigurationError, TrafficError
from semcache.policy import Threshold, Tuned
from semcache.replay.report import make_report
from semcache.replay.score import score
from semcache.testing import Reply, StandIn
from semcache.ttl import TTL

MINUTE, HOUR, DAY = 60, 3600, 86400


def test_repeat_is_answered_by_memory_then_disk_then_not():
    """ttl follows `ts`: five minutes in memory, a day on disk."""
    lines = [chat("a", ts) for ts in (0, 4 * MINUTE, 6 * MINUTE, 23 * HOUR, 25 * HOUR)]
    assert tiers(run(lines)) == [None, "memory", "disk", "disk", None]


def test_ttl_that_is_set_holds():
    """`ttl` sets the life in each tier; Law 5: a hit on disk fills memory with no more than what remains."""
    lines = [chat("a", ts) for ts in (0, 20, 50, 70)]
    assert tiers(run(lines, ttl=TTL(memory=30, disk=60, jitter=0.0))) == [None, "memory", "disk", None]


@pytest.mark.parametrize(("scale", "answered"), [(1, "memory"), (2, "disk"), (0.01, "memory"), (1000, None)])
def test_time_scale_stretches_the_recordings_time(scale, answered):
    """With a scale of 2, four recorded minutes are eight of the cache's."""
    assert tiers(run([chat("a", 0), chat("a", 4 * MINUTE)], time_scale=scale)) == [None, answered]


def test_memory_bound_evicts_to_disk():
    """Memory is bounded in bytes; what it drops, the disk still has."""
    lines = [chat(text, ts, response="x" * 1000) for ts, text in enumerate("abcab")]
    assert tiers(run(lines, memory=3000)) == [None, None, None, "disk", "disk"]


def test_no_memory_leaves_the_disk():
    """A bound of 0 is no memory tier."""
    assert tiers(run([chat("a"), chat("a")], memory=0)) == [None, "disk"]


def test_tenants_do_not_share_and_lines_without_one_do():
    """Whose a request is, its line says; lines that name nobody share."""
    lines = [chat("a", 0, tenant="x"), chat("a", 1, tenant="y"), chat("a", 2), chat("a", 3), chat("a", 4, tenant="x")]
    assert tiers(run(lines)) == [None, None, None, "memory", "memory"]


def test_sampled_request_is_bypassed_and_not_kept():
    """What asks for variety is a miss, is counted as bypassed, and stores nothing."""
    warm = {"temperature": 0.7}
    replayed = run([chat("a", 0, body=warm), chat("a", 1, body=warm), chat("a", 2)])
    assert tiers(replayed) == [None, None, None]
    total = make_report(replayed).score
    assert (total.misses, total.bypassed) == (3, 2)


def test_embedding_and_retrieval_are_answered_by_repeats():
    """All three kinds go through the cache."""
    embedding = {"kind": "embedding", "request": {"model": "e", "input": "a"}}
    retrieval = {"kind": "retrieval", "request": {"corpus": "c", "query": "a", "k": 3}}
    lines = [json.dumps({"ts": 0, **fields}) for fields in (embedding, retrieval, embedding, retrieval)]
    replayed = run(lines)
    assert tiers(replayed) == [None, None, "memory", "memory"]
    assert replayed.recording.kinds == {"embedding": 2, "retrieval": 2}


def test_limit_replays_the_first_requests_only():
    """`limit` counts requests, not lines."""
    assert len(run(["{", *(chat("a", ts) for ts in range(5))], limit=3).outcomes) == 3


def test_malformed_lines_are_skipped_and_counted():
    """A bad line costs itself alone."""
    replayed = run([chat("a"), "{", chat("a")])
    assert tiers(replayed) == [None, "memory"]
    assert [number for number, _ in replayed.recording.skipped] == [2]


def test_strict_replay_stops_at_a_malformed_line():
    """`is_strict` raises the first line's error."""
    with pytest.raises(TrafficError, match="line 2"):
        run([chat("a"), "{"], is_strict=True)


@pytest.mark.parametrize("lines", [[], ["", "  "], ["{", "nothing"]])
def test_recording_without_a_request_is_an_error(lines):
    """Nothing to replay is said, not reported on."""
    with pytest.raises(TrafficError, match="no request"):
        run(lines)


def test_request_that_cannot_be_keyed_is_bypassed():
    """Law 1: what is nested too deeply for a key goes to its origin, counted."""
    body = {"metadata2": json.loads("[" * 500 + "]" * 500)}
    replayed = run([chat("a", 0, body=body), chat("a", 1, body=body)])
    assert tiers(replayed) == [None, None]
    assert make_report(replayed).score.bypassed == 2


def test_answer_is_the_recorded_response():
    """Bounds weigh what would be stored: a large response does not fit where a small one does."""
    small, large = ([chat("a", 0, response="x" * size), chat("a", 1)] for size in (10, 10_000))
    assert tiers(run(small, memory=5000)) == [None, "memory"]
    assert tiers(run(large, memory=5000)) == [None, "disk"]


def test_seed_makes_a_replay_repeatable():
    """Jitter is seeded: two replays of a recording answer alike, another seed need not."""
    lines = [chat(str(number % 40), ts=number * 7) for number in range(400)]
    first, again, other = (tiers(run(lines, ttl=TTL(memory=280, disk=300), seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_hit_of_the_same_request_with_another_answer_id_is_wrong():
    """An exact hit is wrong where the recording itself gives the request two answers."""
    replayed = run([chat("a", 0, "one"), chat("a", 1, "one"), chat("a", 2, "two")])
    hits = score(replayed.recording.asked, replayed.outcomes).hits
    assert (hits.hits, hits.judged, hits.wrong) == (2, 2, 1)


def test_hit_without_answer_id_is_not_judged():
    """Where the truth is not known, a hit is neither right nor wrong."""
    replayed = run([chat("a", 0, "one"), chat("a", 1), chat("b", 2), chat("b", 3, "two")])
    hits = score(replayed.recording.asked, replayed.outcomes).hits
    assert (hits.hits, hits.judged) == (2, 0)


def test_exact_only_replay_is_its_own_reference():
    """Without near matches, this replay and "exact only" are one."""
    replayed = run([chat("a", 0), chat("a", 1)])
    assert replayed.exact == replayed.outcomes


# Near matches


@pytest.mark.semantic
def test_near_match_is_served_from_the_cut_on(letters):
    """A threshold serves texts of one scope that are so near."""
    lines = [chat("listen", 0, "x"), chat("silent", 1, "x"), chat("enlist!", 2, "y"), chat("zebra", 3, "z")]
    replayed = run(lines, embedder=letters, policy=Threshold(0.99, guards=None))
    assert tiers(replayed) == [None, "semantic", "semantic", None]
    total = score(replayed.recording.asked, replayed.outcomes)
    assert (total.near.hits, total.near.wrong) == (2, 1)
    assert [(one.asked, one.answered) for one in total.mistakes] == [("enlist!", "listen")]


@pytest.mark.semantic
@pytest.mark.parametrize("change", [{"system": "be brief"}, {"model": "m2"}, {"tenant": "x"}, {"body": {"seed": 1}}])
def test_near_text_in_another_scope_is_not_served(letters, change):
    """Law 2: near texts of different scopes never meet."""
    replayed = run(
        [chat("listen", 0), chat("silent", 1, **change)], embedder=letters, policy=Threshold(0.5, guards=None)
    )
    assert tiers(replayed) == [None, None]


@pytest.mark.semantic
def test_query_that_was_answered_nearly_is_not_stored(letters):
    """Law 3: asked again, a near match is a near match again."""
    lines = [chat("listen", 0), chat("silent", 1), chat("silent", 2)]
    replayed = run(lines, embedder=letters, policy=Threshold(0.99, guards=None))
    assert tiers(replayed) == [None, "semantic", "semantic"]
    assert [outcome.maker for outcome in replayed.outcomes] == [None, 0, 0]


@pytest.mark.semantic
@pytest.mark.parametrize(("ts", "answered"), [(59 * MINUTE, "semantic"), (61 * MINUTE, None)])
def test_near_match_lives_as_long_as_the_index_says(letters, ts, answered):
    """A row of the index lives an hour, though its answer is on disk for a day."""
    replayed = run([chat("listen", 0), chat("silent", ts)], embedder=letters, policy=Threshold(0.99, guards=None))
    assert tiers(replayed) == [None, answered]


@pytest.mark.semantic
def test_shadow_serves_nothing_near_and_says_what_it_found(letters):
    """Without a policy near matches are looked up: the report counts them, and those with another answer."""
    lines = [chat("listen", 0, "x"), chat("silent", 1, "x"), chat("enlist", 2, "y"), chat("zzz", 3, "z")]
    report = make_report(run(lines, embedder=letters))
    assert report.score.hits.hits == 0
    # "silent" is stored, since it was loaded; "enlist" is as near to it as to "listen".
    assert [(near.hits, near.wrong) for _, near in report.near_by_cut()] == [(2, 1)] * 3


@pytest.mark.semantic
def test_exact_reference_is_what_a_replay_without_near_matches_answers(letters):
    """The reference row is a replay of its own: near hits, which store nothing, do not weigh on it."""
    lines = [chat(text, ts) for ts, text in enumerate(["listen", "silent", "silent", "listen"])]
    near = run(lines, embedder=letters, policy=Threshold(0.99, guards=None))
    exact = run(lines)
    assert tiers(near) == [None, "semantic", "semantic", "memory"]
    assert score(near.recording.asked, near.exact).hit_rate == score(exact.recording.asked, exact.outcomes).hit_rate


@pytest.mark.semantic
def test_text_that_is_not_seen_whole_is_matched_exactly_only(letters):
    """Law 12: beyond the embedder's window a text is neither searched nor indexed, and is counted."""
    letters.window = 3
    letters.count = lambda text: len(text.split())
    lines = [chat("one two three four", 0), chat("one two three four five", 1), chat("one two three four", 2)]
    replayed = run(lines, embedder=letters, policy=Threshold(-1, guards=None))
    assert tiers(replayed) == [None, None, "memory"]
    assert (replayed.embedded, replayed.uncovered) == (0, 2)


@pytest.mark.semantic
def test_distinct_texts_are_embedded_once_before_the_replay(letters):
    """However often and in whichever scope a text is asked, it is embedded once."""
    asked = []

    class Counting(type(letters)):
        def __call__(self, texts):
            asked.extend(texts)
            return super().__call__(texts)

    lines = [chat(text, ts, system=str(ts)) for ts, text in enumerate(["a", "b", "a", "c", "b"])]
    replayed = run(lines, embedder=Counting())
    asked.remove("dimension")  # by which the dimension of a callable that does not tell it is found
    assert sorted(asked) == ["a", "b", "c"]
    assert replayed.embedded == 3


@pytest.mark.semantic
def test_recording_of_embeddings_alone_loads_no_model():
    """What cannot match nearly needs no vectors."""

    class Broken:
        identity = "broken"

        def __call__(self, texts):
            raise AssertionError

    line = json.dumps({"ts": 0, "kind": "embedding", "request": {"model": "e", "input": "a"}})
    assert tiers(run([line, line], embedder=Broken())) == [None, "memory"]


@pytest.mark.semantic
def test_embedder_that_does_not_exist_is_a_configuration_error():
    """A path that is no model is said before anything is replayed."""
    with pytest.raises(ConfigurationError):
        run([chat("a")], embedder="./no/such/model")


@pytest.mark.semantic
def test_progress_tells_each_stage(letters):
    """Reading, loading, embedding and replaying are told, and how far they are."""
    from semcache.replay.run import replay
    from semcache.replay.settings import Settings

    told = []
    replay([chat("a"), chat("b")], Settings(embedder=letters), lambda *what: told.append(what))
    assert [what for what, *_ in dict.fromkeys(told)][:2] == ["reading", "loading letters"]
    assert ("embedding texts", 2, 2) in told
    assert told[-1] == ("replaying", 2, 2)


def embedded(body):
    """Answer as a server of embeddings that counts letters."""
    rows = [{"index": place, "embedding": row.tolist()} for place, row in enumerate(Letters()(body["input"]))]
    return Reply(extra={"model": "letters", "data": rows})


@pytest.mark.semantic
@pytest.mark.parametrize("threads", [0, 1], ids=["virtual", "live"])
def test_embedder_behind_a_url_is_asked_for_its_name_first(threads):
    """In either sort of replay near matches are found by a server's vectors."""
    with StandIn(embedded) as models:
        replayed = run(
            [chat("listen", 0), chat("silent", 1)], embedder=models.openai_url, policy=Threshold(0.99, guards=None),
            live_threads=threads,
        )  # fmt: skip
    assert len(replayed.outcomes) == 2
    assert replayed.settings.embedder.identity.startswith("server:letters")
    assert threads or tiers(replayed) == [None, "semantic"]


@pytest.mark.semantic
def test_guards_of_a_replay_are_switched_off_by_an_option(tmp_path, capsys):
    """`--no-guards` serves what the guards refuse, and the report tells which of them did."""
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text("\n".join([chat("an alarm at 6 am", 0, "6"), chat("an alarm at 7 am", 1, "7")]))
    told = []
    with StandIn(embedded) as models:
        for options in ([], ["--no-guards"]):
            near = ["--policy", "threshold:0.99", "--embedder", models.openai_url, *options]
            assert main(["replay", str(traffic), *near, "--quiet", "--json", "-"]) == 0
            told.append(json.loads(capsys.readouterr().out))
    on, off = told
    assert (on["semantic"]["hits"], on["refused_by_guard"]) == (0, {"times": {"requests": 1, "wrong": 1}})
    assert (off["semantic"]["wrong"], off["refused_by_guard"]) == (1, {})


@pytest.mark.parametrize("policy", ["shadow", "FILE"])
def test_policy_without_guards_of_its_own_has_none_to_switch_off(policy, tmp_path, capsys):
    """An option that would do nothing is refused, with what it goes with."""
    traffic, tuned = tmp_path / "traffic.jsonl", tmp_path / "policy.json"
    traffic.write_text(chat("a", 0))
    Tuned(0.01, 0.95, "letters").write(tuned)
    assert main(["replay", str(traffic), "--policy", policy.replace("FILE", str(tuned)), "--no-guards"]) == 2
    assert "--no-guards goes with a --policy that has guards, as threshold:0.9" in capsys.readouterr().err
