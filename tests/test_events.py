"""Events and their sums: every lookup is one event, with the time of each stage, and stats() adds them up."""

from __future__ import annotations

import asyncio
import threading

import pytest
from instruments import GUARD, Compass, Crew, Origin, watch_flights

import semcache
from semcache.events import STAGES


def test_stages_of_each_lookup_are_there_and_summed(open_cache, tmp_path):
    """Every event tells the nanoseconds of its stages; stats() their sum in seconds."""
    cache = open_cache(disk=tmp_path / "cache.db")

    @semcache.cached(cache, version="1")
    def function(x):
        return x

    with semcache.trace() as seen:
        function(1)
        function(1)
        cache.flush()
        cache.memory._entries.clear()
        function(1)
    miss, memory_hit, disk_hit = seen.lookups
    assert miss.stages.keys() == {"key", "memory", "store", "load", "put"}
    assert memory_hit.stages.keys() == {"key", "memory"}
    assert disk_hit.stages.keys() == {"key", "memory", "store", "put"}
    for event in seen.lookups:
        assert all(nanoseconds >= 0 for nanoseconds in event.stages.values())
    sums = cache.stats().stages
    for stage in sums:
        told = sum(event.stages.get(stage, 0) for event in seen.lookups) / 1e9
        assert sums[stage] == pytest.approx(told)
    assert list(sums) == [stage for stage in STAGES if stage in sums]


@pytest.mark.semantic
def test_stages_of_a_near_lookup_are_there(open_near, ask):
    """Embedding, search and decision are told apart; what is left over is waiting."""
    cache = open_near()
    ask(cache, cache.request(text="stored"), lambda: "stored")
    cache.flush()
    with semcache.trace() as seen:
        ask(cache, cache.request(text="asked"), lambda: "loaded")
    assert seen.lookups[0].stages.keys() == {"memory", "wait", "embed", "search", "decide"}
    assert {"embed", "search", "decide"} <= cache.stats().stages.keys()


def test_memory_hits_are_summed_whoever_looks(open_cache):
    """A hit that leaves no event behind is counted all the same, many thousands of them too."""
    cache = open_cache()

    @semcache.cached(cache)
    def function(x):
        return x

    for _ in range(5001):
        function(1)
    assert cache.stats().hits == {"memory": 5000}
    assert function.cache_info() == (5000, 1, 0)
    assert cache.stats().hit_rate == pytest.approx(5000 / 5001)
    assert cache.stats().stages["key"] > 0


def test_hits_are_counted_by_tier(open_cache, tmp_path, ask):
    """Hits by tier, misses, loads, errors, bypasses: each counted once."""
    cache = open_cache(disk=tmp_path / "cache.db")
    request = cache.request("a")
    ask(cache, request, Origin())
    ask(cache, request, Origin())
    cache.flush()
    cache.memory._entries.clear()
    ask(cache, request, Origin())
    with pytest.raises(ValueError, match="no"):
        ask(cache, cache.request("b"), Origin(ValueError("no")))
    with semcache.context(mode="off"):
        ask(cache, cache.request("a"), Origin())
    stats = cache.stats()
    assert stats.hits == {"memory": 1, "disk": 1}
    assert (stats.misses, stats.loads, stats.load_errors) == (2, 3, 1)
    assert stats.bypasses == {"mode: off": 1}
    assert stats.hit_rate == 0.5


def test_saved_seconds_are_what_loads_took_less_what_lookups_took(open_cache):
    """Saved time is net: a hit saves its load, and a hit and a miss cost their lookups, all but the load."""
    cache = open_cache()
    request = cache.request("a")
    with semcache.trace() as missed:
        cache.get_or_load(request, Origin())
    stages = dict(missed.lookups[0].stages)
    del stages["load"]
    missing = sum(stages.values()) / 1e9
    assert missing > 0
    assert cache.stats().saved_seconds == pytest.approx(-missing)
    cache.memory._entries._Cache__data[request.key].load_seconds = 2.0
    with semcache.trace() as seen:
        for _ in range(3):
            cache.get_or_load(request, Origin())
    spent = sum(sum(event.stages.values()) for event in seen.lookups) / 1e9
    assert cache.stats().saved_seconds == pytest.approx(6.0 - spent - missing)
    assert [event.load_seconds for event in seen.lookups] == [2.0] * 3


def test_shared_lookups_are_told_from_loads(open_cache):
    """A follower is a hit of its flight, and no load; it tells how long it waited."""
    cache = open_cache()
    flights, origin = watch_flights(cache), Origin(hold=True)

    def look_up():
        cache.get_or_load(cache.request("a"), origin)
        return semcache.last()

    with Crew() as crew:
        callers = [crew.submit(look_up) for _ in range(3)]
        flights.wait_for(3)
        origin.go.set()
        events = [caller.result(GUARD) for caller in callers]
    followers = [event for event in events if event.shared]
    assert [(event.kind, event.tier) for event in followers] == [("hit", "flight")] * 2
    assert all("wait" in event.stages for event in followers)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.shared) == ({"flight": 2}, 1, 1, 2)


def test_last_is_of_this_thread_or_task(open_cache):
    """`last` tells of the caller's own latest lookup, and of nobody else's."""
    cache = open_cache()

    @semcache.cached(cache)
    def function(x):
        return x

    assert semcache.last() is None
    function(1)
    assert semcache.last().kind == "miss"
    function(1)
    assert (semcache.last().kind, semcache.last().tier) == ("hit", "memory")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(semcache.last()))
    thread.start()
    thread.join(GUARD)
    assert seen == [None]

    async def main():
        await asyncio.create_task(cache.aget_or_load(cache.request("b"), lambda: "b"))
        return semcache.last()

    assert asyncio.run(main()).tier == "memory"


def test_trace_collects_what_is_inside_it(open_cache):
    """A trace has the lookups made inside, nested ones' too, and those of the tasks started there."""
    cache = open_cache()

    @semcache.cached(cache)
    def function(x):
        return x

    async def main():
        await asyncio.gather(*(cache.aget_or_load(cache.request(n), lambda: "x") for n in range(3)))

    function(0)
    with semcache.trace() as outer:
        function(1)
        with semcache.trace() as inner:
            function(1)
            asyncio.run(main())
        function(2)
    function(3)
    assert [event.kind for event in outer.lookups] == ["miss", "hit", "miss", "miss", "miss", "miss"]
    assert len(inner.lookups) == 4


def test_observers_are_told_everything_in_order(open_cache, tmp_path):
    """Lookups, invalidations and faults, with all their facts."""
    heard = []
    cache = open_cache("shop", disk=tmp_path / "cache.db", observers=[heard.append])

    @semcache.cached(cache)
    def function(x):
        return x

    function(1)
    function(1)
    function.cache_clear()
    cache.recorder.fault("disk", "space", OSError("full"))
    assert [event.kind for event in heard] == ["miss", "hit", "invalidated", "fault"]
    miss, hit, invalidated, fault = heard
    assert (miss.namespace, miss.function) == ("shop", function.__semcache_name__)
    assert (hit.key, hit.is_hit, miss.is_hit) == (miss.key, True, False)
    assert function.__semcache_name__ in invalidated.reason
    assert (fault.tier, fault.reason, fault.faults) == ("disk", "space", [("disk", "space", "full")])
    assert cache.stats().faults == {"disk: space": 1}


def test_age_is_that_of_the_answer(open_cache, clock, tmp_path):
    """An event tells how old its answer is, whichever tier had it."""
    cache = open_cache(disk=tmp_path / "cache.db")
    ages = []
    for _ in range(3):
        cache.get_or_load(cache.request("a"), Origin())
        ages.append(semcache.last().age)
        cache.flush()
        cache.memory._entries.clear()
        clock.advance(10)
    assert ages == [None, pytest.approx(10), pytest.approx(20)]


@pytest.mark.semantic
def test_reasons_with_numbers_in_them_are_counted_as_one(open_near):
    """What differs from text to text stands in the event; the sums have one name for it."""

    class Narrow(Compass):
        window = 2

        def count(self, text):
            return len(text.split())

    cache = open_near(embedder=Narrow())
    cache.get_or_load(cache.request(text="stored"), Origin())
    cache.flush()
    reasons = set()
    for words in (3, 4, 5):
        cache.get_or_load(cache.request(text="word " * words), Origin())
        reasons.add(semcache.last().reason)
    assert len(reasons) == 3
    assert cache.stats().not_served == {"exact only": 3}


def test_tiers_counts_are_in_the_stats(open_cache, tmp_path):
    """Each tier's own counters stand under its name."""
    cache = open_cache(disk=tmp_path / "cache.db")
    cache.get_or_load(cache.request("a"), Origin())
    cache.flush()
    tiers = cache.stats().tiers
    assert (tiers["memory"]["entries"], tiers["disk"]["entries"]) == (1, 1)
    assert tiers["memory"]["bytes"] > 0
