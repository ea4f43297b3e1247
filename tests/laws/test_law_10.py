"""Law 10: failure is a miss in time. What can fail, and how it is told, is the subject of tests/test_faults.py."""

from __future__ import annotations

import threading

import pytest
from instruments import GUARD, Compass, Crew, Origin

import semcache
from semcache.errors import TierError


class Broken:
    """A tier that fails in every way it is asked."""

    name, exact = "broken", True

    def __init__(self, error):
        self.error = error
        self.asked = 0

    def get(self, request):
        self.asked += 1
        raise self.error
        yield

    def put(self, request, entry, evidence):
        raise self.error
        yield

    def remove(self, facet, value, position):
        return 0
        yield

    def stats(self):
        return {}

    def flush(self, timeout=None):
        return True

    def close(self):
        pass


def break_tier(cache, error):
    """Put a broken tier behind memory."""
    from semcache.tier import Breaker

    broken = Broken(error)
    cache.chain.tiers = [*cache.chain.tiers, (broken, Breaker(cache.now))]
    return broken


@pytest.mark.parametrize(
    "error", [TierError("down", "no route"), OSError(5, "io"), ZeroDivisionError(), TimeoutError()]
)
def test_tier_that_fails_is_a_miss_and_a_fault(open_cache, ask, error):
    """Law 10: whatever a tier raises, the caller gets the origin's answer, and the event names the fault."""
    cache = open_cache()
    break_tier(cache, error)
    with semcache.trace() as seen:
        assert ask(cache, cache.request("a"), lambda: "loaded") == "loaded"
    assert {fault[0] for fault in seen.lookups[0].faults} == {"broken"}
    assert seen.lookups[0].kind == "miss"


def test_tier_that_fails_hides_no_error_of_the_origin(open_cache, ask):
    """Law 10: the caller never sees the tier's error, nor does it stand in the way of the origin's."""
    cache, error = open_cache(), ValueError("the origin's")
    break_tier(cache, TierError("down"))
    with pytest.raises(ValueError, match="the origin's") as raised:
        ask(cache, cache.request("a"), Origin(error))
    assert raised.value is error
    assert raised.value.__context__ is None


def test_breaker_leaves_a_failing_tier_alone_and_tries_again(open_cache, clock):
    """Law 10: after five failures a tier is not asked, but by one caller a pause; it recovers at once."""
    cache = open_cache()
    broken = break_tier(cache, TierError("down"))

    def look_up(number):
        cache.get_or_load(cache.request(number), lambda: clock.advance(0))
        return semcache.last().faults[0][1] if semcache.last().faults else None

    reasons = [look_up(number) for number in range(10)]
    assert reasons.count("down") == broken.asked < 5
    assert reasons[-1] == "open"
    asked = broken.asked
    clock.advance(5)
    assert look_up("trial") == "down"
    assert look_up("after the trial") == "open"
    assert broken.asked == asked + 1
    broken.get = lambda request: _miss()
    clock.advance(10)
    broken.put = lambda request, entry, evidence: _nothing()
    assert look_up("recovered") is None
    assert look_up("again") is None


def _miss():
    from semcache.model import Miss

    return Miss()
    yield


def _nothing():
    return
    yield


def test_breaker_recovers_though_loads_are_slower_than_its_pause(open_cache, clock):
    """Law 10: a put does not take the turn of the reader who would find that the tier is well again."""
    cache = open_cache()
    broken = break_tier(cache, TierError("down"))

    def look_up(number):
        cache.get_or_load(cache.request(number), lambda: clock.advance(60))

    for number in range(6):
        look_up(number)
    broken.get, broken.put = (lambda request: _miss()), (lambda request, entry, evidence: _nothing())
    for number in range(2):
        look_up(f"well {number}")
    assert semcache.last().faults == []


def test_breaker_recovers_where_answers_are_only_refreshed(open_cache, clock):
    """Law 10: where nobody reads, the put is the trial."""
    cache = open_cache(mode="refresh")
    broken, puts = break_tier(cache, TierError("down")), []

    def look_up(number):
        cache.get_or_load(cache.request(number), lambda: clock.advance(60))

    for number in range(6):
        look_up(number)
    broken.put = lambda request, entry, evidence: puts.append(1) or _nothing()
    for number in range(3):
        look_up(f"well {number}")
    assert len(puts) == 3


@pytest.mark.semantic
def test_tier_that_is_late_is_a_miss(open_near, ask):
    """Law 10: a lookup waits for a tier until its deadline, then goes on; the answer does not wait either."""
    gate = threading.Event()
    embedder = Compass()
    cache = open_near(embedder=embedder, timeouts=semcache.Timeouts(semantic="50ms"))
    with semcache.context(mode="shadow"):
        cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    embedder.gate, order = gate, []

    def open_the_gate():
        order.append("embedder let go")
        gate.set()

    timer = threading.Timer(GUARD / 2, open_the_gate)  # in case the lookup waits for ever
    timer.start()
    with semcache.trace() as seen:
        assert ask(cache, cache.request(text="asked"), lambda: "loaded") == "loaded"
    order.append("answered")
    open_the_gate()
    timer.cancel()
    assert order == ["answered", "embedder let go"]
    assert seen.lookups[0].faults == [("semantic", "late", "no answer in time")]


@pytest.mark.semantic
def test_embedder_that_is_loading_is_a_miss(open_cache, ask):
    """Law 10: nobody waits for a model; what is loaded meanwhile is found when it is ready."""

    class Slow(Compass):
        gate_of_load = threading.Event()

        def load(self):
            self.entered.set()
            assert self.gate_of_load.wait(GUARD)

    embedder = Slow()
    embedder.gate_of_load = threading.Event()
    cache = open_cache(embedder=embedder, policy=semcache.Threshold(0.9, guards=None), tenant=semcache.SHARED)
    with semcache.trace() as seen:
        assert ask(cache, cache.request(text="stored"), lambda: "stored") == "stored"
        assert embedder.entered.wait(GUARD)
        assert ask(cache, cache.request(text="asked"), lambda: "loaded") == "loaded"
    embedder.gate_of_load.set()
    assert [event.reason for event in seen.lookups] == ["the embedder is loading"] * 2
    cache.warm()
    cache.flush()
    assert ask(cache, cache.request(text="asked later"), lambda: "loaded") in {"stored", "loaded"}
    assert cache.stats().hits == {"semantic": 1}


def test_construction_and_decoration_alone_raise_configuration_errors(open_cache):
    """Law 10: what is wrong is said where it is written, not where it is called."""
    with pytest.raises(semcache.ConfigurationError):
        semcache.Cache(mode="on")
    with pytest.raises(semcache.ConfigurationError):
        semcache.cached(open_cache(), text="question")(lambda query: query)

    @semcache.cached(open_cache(), tenant=lambda query: object(), version="1")
    def function(query):
        return query

    with pytest.warns(semcache.SemcacheWarning):
        assert function("q") == "q"


def test_late_caller_of_a_crew_is_answered(open_cache):
    """Law 10: many callers and a broken tier: each is answered."""
    cache = open_cache()
    break_tier(cache, TierError("down"))
    with Crew() as crew:
        answers = list(crew.map(lambda n: cache.get_or_load(cache.request(n % 7), lambda: n % 7), range(200)))
    assert answers == [n % 7 for n in range(200)]
