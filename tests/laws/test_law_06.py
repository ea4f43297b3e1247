"""Law 6: one load per key, however many ask."""

from __future__ import annotations

import asyncio
import threading

import pytest
from instruments import GUARD, Crew, Origin, watch_flights

import semcache


def look_up(cache, request, origin):
    """Look up; the answer, or the error itself."""
    try:
        return cache.get_or_load(request, origin)
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error


async def alook_up(cache, request, origin):
    try:
        return await cache.aget_or_load(request, origin)
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error


def look_up_everywhere(cache, request, origin, threads=8, tasks=8):
    """Look one key up from many threads and from the tasks of two loops, while its load is held."""
    flights = watch_flights(cache)

    async def gather():
        return await asyncio.gather(*(alook_up(cache, request, origin) for _ in range(tasks)))

    with Crew(threads + 2) as crew:
        first = crew.submit(look_up, cache, request, origin)
        assert origin.entered.wait(GUARD)
        rest = [crew.submit(look_up, cache, request, origin) for _ in range(threads - 1)]
        loops = [crew.submit(asyncio.run, gather()) for _ in range(2)]
        flights.wait_for(threads + 2 * tasks)
        origin.go.set()
        return [one.result(GUARD) for one in (first, *rest)] + [one for loop in loops for one in loop.result(GUARD)]


def test_load_is_one_for_threads_and_tasks(open_cache):
    """Law 6: one load per key, threads and tasks of several loops alike; all are answered."""
    cache = open_cache()
    origin = Origin({"answer": []}, hold=True)
    answers = look_up_everywhere(cache, cache.request("a"), origin)
    assert answers == [{"answer": []}] * 24
    assert origin.calls == 1
    assert (cache.stats().loads, cache.stats().shared) == (1, 23)


def test_load_led_by_a_task_is_shared_with_threads(open_cache):
    """Law 6: it makes no difference whose colour the leader has."""
    cache = open_cache()
    flights, request, origin = watch_flights(cache), cache.request("a"), Origin(hold=True)

    async def lead():
        async def load():
            return await asyncio.to_thread(origin)

        return await cache.aget_or_load(request, load)

    with Crew() as crew:
        leader = crew.submit(asyncio.run, lead())
        assert origin.entered.wait(GUARD)
        followers = [crew.submit(cache.get_or_load, request, origin) for _ in range(4)]
        flights.wait_for(5)
        origin.go.set()
        assert [one.result(GUARD) for one in (leader, *followers)] == ["answer"] * 5
    assert origin.calls == 1


def test_error_of_the_leader_goes_to_all(open_cache):
    """Law 6: the leader's error goes, unchanged, to all who waited for it; nobody tries again by himself."""
    cache = open_cache()
    origin = Origin(ValueError("no"), hold=True)
    answers = look_up_everywhere(cache, cache.request("a"), origin)
    assert {id(answer) for answer in answers} == {id(origin.answer)}
    assert origin.calls == 1
    assert cache.stats().load_errors == 1


def test_caller_who_missed_before_the_landing_finds_the_answer(open_cache):
    """Law 6: who missed in memory, and boards when the flight has landed, looks again before it loads."""
    cache = open_cache()
    request, origin = cache.request("a"), Origin()
    assert cache.probe(request.key) is None
    cache.get_or_load(request, Origin())
    assert cache.get_or_load(request, origin) == "answer"
    assert origin.calls == 0


@pytest.mark.parametrize("kind", ["sync in sync", "sync in async", "async in async"])
def test_call_inside_its_own_load_loads_for_itself(open_cache, kind):
    """Law 6: a call that would wait for itself does not: nobody waits until a timeout."""
    cache = open_cache(timeouts=semcache.Timeouts(flight=1))
    request = cache.request("a")

    def inner():
        return cache.get_or_load(request, lambda: "inner")

    async def outer():
        if kind == "async in async":
            return "outer, " + await asyncio.create_task(cache.aget_or_load(request, lambda: "inner"))
        return "outer, " + inner()

    if kind == "sync in sync":
        answer = cache.get_or_load(request, lambda: "outer, " + inner())
    else:
        answer = asyncio.run(cache.aget_or_load(request, outer))
    assert answer == "outer, inner"
    assert cache.stats().faults == {}


def test_sync_call_on_the_leading_loops_own_thread_loads_for_itself(open_cache):
    """Law 6: a sync call on the thread whose loop would have to run its leader cannot wait for that."""
    cache = open_cache(timeouts=semcache.Timeouts(flight=1))
    request = cache.request("a")

    async def main():
        entered, go = asyncio.Event(), asyncio.Event()

        async def load():
            entered.set()
            await go.wait()
            return "task's"

        leader = asyncio.create_task(cache.aget_or_load(request, load))
        await entered.wait()
        mine = cache.get_or_load(request, lambda: "mine")
        go.set()
        return mine, await leader

    assert asyncio.run(main()) == ("mine", "task's")
    assert cache.stats().faults == {}


def test_loads_that_would_wait_for_each_other_do_not(open_cache):
    """Law 6: to wait for one's own self over others is to wait for oneself."""
    cache = open_cache(timeouts=semcache.Timeouts(flight=1))
    requests = [cache.request(name) for name in "ab"]
    both_loading = threading.Barrier(2)

    def load(mine, other):
        both_loading.wait(GUARD)
        return mine + cache.get_or_load(requests["ab".index(other)], lambda: other)

    with Crew(2) as crew:
        loads = [
            crew.submit(cache.get_or_load, requests[0], lambda: load("a", "b")),
            crew.submit(cache.get_or_load, requests[1], lambda: load("b", "a")),
        ]
        answers = sorted(one.result(GUARD) for one in loads)
    assert answers in (["ab", "ba"], ["aba", "ba"], ["ab", "bab"])
    assert cache.stats().faults == {}


def test_cancelled_leader_hands_over_to_one(open_cache):
    """Law 6: a cancelled leader hands over, to one of its followers; none of them is cancelled with it."""
    cache = open_cache(timeouts=semcache.Timeouts(flight=1))
    request, calls = cache.request("a"), []

    async def main():
        flights, entered, go = watch_flights(cache), asyncio.Event(), asyncio.Event()

        async def load():
            calls.append(1)
            entered.set()
            await go.wait()
            return "answer"

        leader = asyncio.create_task(cache.aget_or_load(request, load))
        await entered.wait()
        followers = [asyncio.create_task(cache.aget_or_load(request, load)) for _ in range(5)]
        await asyncio.to_thread(flights.wait_for, 6)
        entered.clear()
        leader.cancel()
        await entered.wait()
        go.set()
        return await asyncio.gather(leader, *followers, return_exceptions=True)

    cancelled, *answers = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert answers == ["answer"] * 5
    assert len(calls) == 2
    assert cache.stats().faults == {}


def test_leader_whose_thread_dies_hands_over(open_cache):
    """Law 6: a leader that ends by SystemExit has no error to share; a follower loads."""
    cache = open_cache(timeouts=semcache.Timeouts(flight=1))
    flights, request, origin = watch_flights(cache), cache.request("a"), Origin(SystemExit(), hold=True)

    def lead():
        with pytest.raises(SystemExit):
            cache.get_or_load(request, origin)

    with Crew() as crew:
        leader = crew.submit(lead)
        assert origin.entered.wait(GUARD)
        follower = crew.submit(cache.get_or_load, request, lambda: "mine")
        flights.wait_for(2)
        origin.go.set()
        leader.result(GUARD)
        assert follower.result(GUARD) == "mine"
    assert cache.stats().faults == {}


def test_cancelled_follower_cancels_nobody_else(open_cache):
    """Law 6: a follower that goes away leaves leader and followers alone."""
    cache = open_cache()
    request = cache.request("a")

    async def main():
        flights, go = watch_flights(cache), asyncio.Event()

        async def load():
            await go.wait()
            return "answer"

        callers = [asyncio.create_task(cache.aget_or_load(request, load)) for _ in range(3)]
        await asyncio.to_thread(flights.wait_for, 3)
        callers[1].cancel()
        await asyncio.wait([callers[1]])
        go.set()
        return await asyncio.gather(*callers, return_exceptions=True)

    first, cancelled, last = asyncio.run(main())
    assert (first, last) == ("answer", "answer")
    assert isinstance(cancelled, asyncio.CancelledError)


def test_follower_waits_at_most_its_timeout(open_cache, ask):
    """Law 6: a follower whose leader is too slow loads alone, and says so."""
    cache = open_cache(timeouts=semcache.Timeouts(flight="20ms"))
    request, slow = cache.request("a"), Origin("late", hold=True)
    order = []

    def lead():
        answer = cache.get_or_load(request, slow)
        order.append("leader")
        return answer

    with Crew() as crew:
        leader = crew.submit(lead)
        assert slow.entered.wait(GUARD)
        timer = threading.Timer(GUARD / 2, slow.go.set)  # in case the follower waits for ever
        timer.start()
        assert ask(cache, request, lambda: "mine") == "mine"
        order.append("follower")
        slow.go.set()
        assert leader.result(GUARD) == "late"
        timer.cancel()
    assert order == ["follower", "leader"]
    assert cache.stats().faults == {"flight: late": 1}
