"""What a caller says around its calls, and what it is told about them: context, trace, last, observers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextvars import copy_context
from threading import Barrier, Thread

import pytest
from waiting import PATIENCE, Counter, until

import semcache
from semcache import ConfigurationError


def counting(cache, **options):
    """Return a cached function and what counts its loads."""
    loads = Counter()

    @semcache.cached(cache, version="1", **options)
    def ask(question):
        return f"{question} {loads()}"

    return ask, loads


# Modes


def test_mode_off_goes_past_the_cache(cache):
    """off: neither read nor stored, and counted as a bypass."""
    ask, loads = counting(cache)
    assert ask("q") == "q 1"
    with semcache.context(mode="off"):
        assert [ask("q"), ask("q")] == ["q 2", "q 3"]
    assert ask("q") == "q 1"
    assert ask.cache_info() == (1, 1, 2)
    assert cache.stats().bypasses == {"mode: off": 2}
    assert loads.count == 3


def test_mode_refresh_loads_and_stores(cache):
    """refresh: the answer is loaded anew and takes the old one's place."""
    ask, _ = counting(cache)
    assert ask("q") == "q 1"
    with semcache.context(mode="refresh"):
        assert ask("q") == "q 2"
    assert ask("q") == "q 2"
    assert ask.cache_info() == (1, 2, 0)


@pytest.mark.parametrize("mode", ["live", "shadow", "exact"])
def test_modes_that_read_give_exact_hits(cache, mode):
    """shadow and exact are about near matches alone."""
    ask, _ = counting(cache)
    with semcache.context(mode=mode):
        assert [ask("q"), ask("q")] == ["q 1", "q 1"]


@pytest.mark.parametrize(("mode", "answers"), [("off", ["q 1", "q 2"]), ("refresh", ["q 1", "q 2"])])
def test_mode_of_the_cache_holds_where_no_context_says_otherwise(mode, answers):
    """A cache has a mode of its own, which a context overrides."""
    with semcache.Cache(mode=mode) as cache:
        ask, _ = counting(cache)
        assert [ask("q"), ask("q")] == answers
        with semcache.context(mode="live"):
            assert ask("q") == ask("q")


def test_closed_cache_loads(cache):
    """After close calls go to their origins, whatever a context says."""
    ask, _ = counting(cache)
    assert [ask("q"), ask("q")] == ["q 1", "q 1"]
    cache.close()
    assert [ask("q"), ask("q")] == ["q 2", "q 3"]
    assert asyncio.run(_aask(cache)) == "a"


async def _aask(cache):
    @semcache.cached(cache)
    async def ask():
        return "a"

    return await ask()


@pytest.mark.parametrize("options", [{"mode": "fast"}, {"ttl": 0}, {"ttl": "soon"}, {"tenant": ""}, {"tenant": [1]}])
def test_context_of_what_is_wrong_is_refused(options):
    """A context that cannot be meant is an error where it is entered."""
    with pytest.raises(ConfigurationError), semcache.context(**options):
        pass


# ttl and tenant


def test_context_ttl_is_the_entrys_own(cache, clock):
    """A ttl from the context is the life of what is loaded inside, and wins over the function's."""
    ask, _ = counting(cache, ttl="1h")
    with semcache.context(ttl="10s"):
        ask("short")
    ask("long")
    clock.advance(11)
    assert ask("short") == "short 3"
    assert ask("long") == "long 2"


def test_context_tenant_keeps_answers_apart(cache):
    """Two tenants never share an entry; SHARED and none are the same key."""
    ask, _ = counting(cache)
    answers = {}
    for tenant in ("acme", "globex", 7, semcache.SHARED):
        with semcache.context(tenant=tenant):
            answers[tenant] = ask("q")
            assert ask("q") == answers[tenant]
    assert len(set(answers.values())) == 4
    assert ask("q") == answers[semcache.SHARED]
    with semcache.context(tenant="7"):
        assert ask("q") == answers[7]


def test_context_tenant_wins_over_the_functions(cache):
    """The context's word, then the call's, then the cache's."""

    @semcache.cached(cache, tenant="customer", ignore="customer", version="1")
    def ask(question, customer):
        return customer

    assert ask("q", "acme") == "acme"
    with semcache.context(tenant="acme"):
        assert ask("q", "globex") == "acme"
    assert ask("q", "globex") == "globex"


def test_inner_context_adds_to_the_outer(cache):
    """What the inner one does not say, the outer one still does; on leaving, all is as it was."""
    with semcache.context(tenant="acme", ttl="5m") as outer:
        with semcache.context(mode="exact", ttl="1m") as inner:
            assert (inner.tenant, inner.ttl, inner.mode) == ("acme", 60.0, "exact")
        with semcache.context() as same:
            assert same == outer
        with pytest.raises(RuntimeError), semcache.context(mode="off"):
            raise RuntimeError
        ask, _ = counting(cache)
        assert ask("q") == ask("q")
    assert ask("q") == "q 2"


def test_context_holds_for_its_task_and_the_tasks_it_starts(cache):
    """Two tasks at once, each in its own context, on one loop."""
    ready = Counter()

    @semcache.cached(cache, version="1")
    async def ask(question, who):
        return who

    async def as_tenant(tenant):
        with semcache.context(tenant=tenant):
            ready()
            await until(lambda: ready.count == 2)
            first = await ask("q", tenant)
            child = await asyncio.create_task(ask("q", tenant))
            return first, child, semcache.last().kind

    async def main():
        return await asyncio.gather(as_tenant("acme"), as_tenant("globex"))

    assert asyncio.run(main()) == [("acme", "acme", "miss"), ("globex", "globex", "miss")]
    assert ask.cache_info() == (2, 2, 0)


def test_context_does_not_hold_for_other_threads(cache):
    """A thread begins with no context; one that was given a copy has it."""
    ask, loads = counting(cache)
    ask("q")

    def elsewhere(run):
        thread = Thread(target=lambda: run(ask, "q"))
        thread.start()
        thread.join(PATIENCE)

    with semcache.context(mode="off"):
        elsewhere(lambda function, argument: function(argument))
        assert loads.count == 1
        elsewhere(copy_context().run)
        assert loads.count == 2


# last and trace


def test_last_is_of_this_thread_and_task(cache, pool):
    """Each thread and task is told of its own latest call."""
    ask, _ = counting(cache)
    barrier = Barrier(4)

    def work(question):
        ask(question)
        ask(question)
        barrier.wait(PATIENCE)
        return semcache.last().key

    keys = [one.result(PATIENCE) for one in [pool.submit(work, number) for number in range(4)]]
    assert keys == [ask.explain(number).key for number in range(4)]

    @semcache.cached(cache)
    async def aask(question):
        await asyncio.sleep(0)
        return question

    async def task(question):
        await aask(question)
        await asyncio.sleep(0)
        return semcache.last().key

    async def main():
        return await asyncio.gather(*(task(number) for number in range(4)))

    assert asyncio.run(main()) == [aask.explain(number).key for number in range(4)]


def test_last_tells_hit_miss_and_bypass(cache, clock):
    """The facts of a lookup: kind, tier, function, key, what it took and what it saved."""
    assert copy_context().run(lambda: None) is None
    ask, _ = counting(cache)
    ask("q")
    miss = semcache.last()
    clock.advance(3)
    ask("q")
    hit = semcache.last()
    assert semcache.last() is hit
    assert (miss.kind, miss.tier, miss.is_hit, miss.failed, miss.shared) == ("miss", None, False, False, False)
    assert set(miss.stages) == {"key", "memory", "load", "put"}
    assert miss.load_seconds > 0
    assert (hit.kind, hit.tier, hit.is_hit, hit.age) == ("hit", "memory", True, 3)
    assert set(hit.stages) == {"key", "memory"}
    assert hit.load_seconds == miss.load_seconds
    assert hit.key == miss.key == ask.explain("q").key
    assert hit.function == ask.__semcache_name__
    assert hit.namespace == "test"


def test_last_of_nobody_is_none():
    """Who asked nothing is told nothing."""
    found = []
    thread = Thread(target=lambda: found.append(semcache.last()))
    thread.start()
    thread.join(PATIENCE)
    assert found == [None]


def test_last_inside_a_load_is_the_inner_calls_and_afterwards_the_outers(cache):
    """Calls nest, and the latest to end is the last."""
    inner, _ = counting(cache)

    @semcache.cached(cache, version="1")
    def outer(question):
        inner(question)
        return semcache.last().function

    assert outer("q") == inner.__semcache_name__
    assert semcache.last().function == outer.__semcache_name__


def test_trace_collects_in_order_and_only_inside(cache):
    """All lookups inside, oldest first, nested calls before those that made them; hits too."""
    ask, _ = counting(cache)
    ask("before")
    with semcache.trace() as traced:
        ask("q")
        ask("q")
        with pytest.raises(TypeError):
            ask()
    ask("after")
    assert [event.kind for event in traced.lookups] == ["miss", "hit", "bypass"]
    assert traced.lookups[1].tier == "memory"


def test_traces_nest(cache):
    """An inner trace takes nothing from the outer one."""
    ask, _ = counting(cache)
    with semcache.trace() as outer:
        ask("a")
        with semcache.trace() as inner:
            ask("b")
        ask("c")
    assert len(outer.lookups) == 3
    assert inner.lookups == outer.lookups[1:2]


def test_trace_collects_in_child_tasks_and_streams(cache):
    """What is started inside is traced: tasks, the origins of streams, and what these call."""

    @semcache.cached(cache)
    async def ask(question):
        return question

    @semcache.cached(cache, version="1")
    async def items(question):
        yield await ask(question)

    async def main():
        with semcache.trace() as traced:
            await asyncio.gather(ask("a"), ask("b"))
            await asyncio.create_task(ask("a"))
            assert [item async for item in items("c")] == ["c"]
        await ask("d")
        return traced

    kinds = [(event.function.rpartition(".")[2], event.kind) for event in asyncio.run(main()).lookups]
    assert kinds == [("ask", "miss"), ("ask", "miss"), ("ask", "hit"), ("ask", "miss"), ("items", "miss")]


# Observers and sums


def test_observer_is_told_every_event(clock):
    """Hits, misses, bypasses and invalidations; also hits from memory."""
    told = []
    with semcache.Cache(clock=clock, observers=[told.append]) as cache:
        ask, _ = counting(cache)
        ask("q")
        ask("q")
        ask.invalidate("q")
        with semcache.context(mode="off"):
            ask("q")
    assert [event.kind for event in told] == ["miss", "hit", "invalidated", "bypass"]
    assert cache.stats().hits == {"memory": 1}


def test_observer_that_raises_breaks_nothing_and_is_logged_once(caplog):
    """Who listens cannot break what it listens to; the others are still told."""
    told = []

    def broken(event):
        raise RuntimeError("I cannot listen")

    with semcache.Cache(observers=[broken, told.append]) as cache:
        ask, _ = counting(cache)
        with caplog.at_level(logging.ERROR, logger="semcache"):
            assert [ask("q") for _ in range(3)] == ["q 1"] * 3
    assert len(told) == 3
    [record] = caplog.records
    assert "broken" in record.getMessage()
    assert "I cannot listen" in record.exc_text


def test_observer_may_call_what_is_cached(cache):
    """An observer that calls a cached function ends, and hears of it."""
    ask, _ = counting(cache)
    told = []

    def curious(event):
        told.append(event.kind)
        if len(told) < 3:
            ask("other")

    cache.recorder.add_observer(curious)
    assert ask("q") == "q 1"
    assert told == ["miss", "miss", "hit"]


def test_stats_sum_what_events_tell(cache):
    """Sums agree with the events: hits by tier, misses, bypasses, errors, faults, stages, saved time."""
    told = []
    cache.recorder.add_observer(told.append)

    @semcache.cached(cache, version="1")
    def ask(question):
        if question == "bad":
            raise ValueError(question)
        return object() if question == "odd" else question

    for question in ("a", "a", "odd", "bad", "a"):
        with contextlib.suppress(ValueError):
            ask(question)
    with semcache.context(mode="off"):
        ask("a")
    stats = cache.stats()
    assert stats.hits == {"memory": 2}
    assert (stats.misses, stats.loads, stats.load_errors, stats.shared) == (3, 4, 1, 0)
    assert stats.bypasses == {"mode: off": 1}
    assert stats.faults == {"codec: EncodeError": 1}
    assert stats.hit_rate == 2 / 5
    for stage in ("key", "memory", "load", "put"):
        assert stats.stages[stage] == pytest.approx(sum(event.stages.get(stage, 0) for event in told) / 1e9)
    took = sum(sum(event.stages.values()) - event.stages.get("load", 0) for event in told) / 1e9
    saved = sum(event.load_seconds for event in told if event.is_hit) - took
    assert stats.saved_seconds == pytest.approx(saved)
    assert stats.tiers["memory"]["entries"] == 1
