"""A replay in real time, through the cache as it runs in a service."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from recordings import chat, run

from semcache.policy import Threshold
from semcache.replay.player import Player, Witness
from semcache.replay.report import figures, make_report
from semcache.replay.score import score
from semcache.replay.settings import Settings, load, make_cache


@pytest.mark.parametrize("threads", [1, 8])
def test_live_replay_answers_all_requests(threads):
    """Every request is asked once, by one of the callers; each distinct one is loaded once, and is no hit then."""
    lines = [chat(str(number % 20), number, str(number % 20)) for number in range(200)]
    replayed = run(lines, live_threads=threads)
    total = score(replayed.recording.asked, replayed.outcomes)
    assert total.requests == 200
    assert total.hits.hits + total.misses == 200
    assert total.misses == 20  # Law 6: one load per key, however many ask
    assert total.hits.wrong == 0


def test_live_replay_of_one_caller_answers_as_the_virtual_one():
    """Where no ttl runs out, real time and the recording's give the same hits."""
    lines = [chat(str(number * number % 37), number * 0.001) for number in range(300)]
    live, virtual = run(lines, live_threads=1), run(lines)
    assert [one.maker for one in live.outcomes] == [one.maker for one in virtual.outcomes]


def test_callers_who_share_a_load_are_hits_of_a_flight():
    """With an origin that takes its time, callers of one key share its load; nobody loads it twice."""
    lines = [chat("a", 0, latency_ms=300)] * 8
    replayed = run(lines, live_threads=8, origin_scale=1.0)
    total = score(replayed.recording.asked, replayed.outcomes)
    assert total.misses == 1
    assert total.hits.hits == 7
    assert set(total.tiers) <= {"flight", "memory"}


@pytest.mark.semantic
def test_callers_of_near_texts_who_share_a_load_are_near_hits(letters):
    """What another text's load brings counts as a near match, so that a wrong one is not hidden among exact hits."""
    lines = [chat(text, 0, answer, latency_ms=300) for text, answer in (("listen", "x"), ("silent", "y"))]
    policy = Threshold(0.99, guards=None)
    replayed = run(lines, embedder=letters, policy=policy, live_threads=2, origin_scale=1.0)
    total = score(replayed.recording.asked, replayed.outcomes)
    assert (total.misses, set(total.tiers)) == (1, {"semantic"})
    assert figures(make_report(replayed))["semantic"] == {"hits": 1, "wrong": 1}


@pytest.mark.semantic
def test_live_replay_serves_near_matches(letters):
    """The real batcher, index and policy answer; what they took is measured, loading the model apart."""
    lines = [chat("listen", 0, "x"), chat("silent", 1, "x"), chat("enlist", 2, "y")]
    # One caller, and the index takes rows behind the answer: a scope is not empty once its first row is on its way.
    replayed = run(lines, embedder=letters, policy=Threshold(0.99, guards=None), live_threads=1)
    told = figures(make_report(replayed))
    assert told["hits"]["semantic"] == 2
    assert told["semantic"] == {"hits": 2, "wrong": 1}
    assert told["embed_seconds"] > 0
    assert replayed.embedded == 3


@pytest.mark.semantic
def test_live_replay_whose_embedder_fails_goes_on_and_says_so(letters):
    """Law 10: an embedder that raises makes misses; the report names the fault, and such lookups are not timed."""

    class Failing(type(letters)):
        def __call__(self, texts):
            if "broken" in texts:
                raise RuntimeError("no")
            return super().__call__(texts)

    lines = [chat("listen", 0), chat("broken", 1), chat("silent", 2)]
    replayed = run(lines, embedder=Failing(), policy=Threshold(0.99, guards=None), live_threads=1)
    assert [one.tier for one in replayed.outcomes] == [None, None, "semantic"]
    assert replayed.outcomes[1].nanoseconds is None
    assert any(fault.startswith("semantic") for fault in replayed.stats.faults)


@pytest.mark.semantic
def test_caller_who_shares_a_near_match_is_judged_by_its_maker(letters, tmp_path):
    """A follower is given the near match that its leader found, and is judged by whose answer that is."""

    class Slow(type(letters)):
        def __call__(self, texts):
            # Embeds only once somebody follows; in vain after a while, lest a failure hang.
            for _ in range(5000 if "silent" in texts else 0):
                if any(flight.future is not None for flight in list(cache.chain.flights._flights.values())):
                    break
                sleep(0.001)
            return super().__call__(texts)

    settings = Settings(embedder=Slow(), policy=Threshold(0.99, guards=None))
    witness = Witness(settings.policy)
    lines = [chat("listen", 0, "x"), chat("silent", 1, "y"), chat("silent", 2, "y")]
    with make_cache(settings, tmp_path, witness) as cache:
        recording = load(lines, settings, cache, lambda *_: None)
        cache.warm()
        player = Player(cache, recording.asked, witness)
        first = player.answer(recording.asked[0])
        cache.flush()
        with ThreadPoolExecutor(2) as pool:
            outcomes = [first, *pool.map(player.answer, recording.asked[1:])]
    assert sorted(one.tier for one in outcomes[1:]) == ["flight", "semantic"]
    total = score(recording.asked, outcomes)
    assert (total.hits.hits, total.hits.wrong) == (2, 2)
