"""Law 6 through the decorator: one load per key, for threads and tasks alike, and nobody waits for itself."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import types
from threading import Barrier, Event, Lock, Thread, get_ident

import pytest
from waiting import PATIENCE, Counter, until

import semcache


class OriginError(Exception):
    """What an origin raises."""


# Threads


def test_threads_that_ask_at_once_load_once(cache, flights, pool):
    """Law 6: sixteen threads, one load; fifteen are given copies of their own."""
    loads, release = Counter(), Event()

    @semcache.cached(cache, version="1")
    def ask(question):
        loads()
        assert release.wait(PATIENCE)
        return [question]

    answers = [pool.submit(ask, "q") for _ in range(16)]
    flights.await_followers(15)
    release.set()
    given = [answer.result(PATIENCE) for answer in answers]
    assert given == [["q"]] * 16
    assert len({id(one) for one in given}) == 16
    assert loads.count == 1
    assert ask.cache_info() == (15, 1, 0)
    stats = cache.stats()
    assert stats.hits == {"flight": 15}
    assert (stats.shared, stats.loads) == (15, 1)


def test_threads_that_ask_for_different_keys_do_not_wait_for_each_other(cache, pool):
    """Loads of different keys run side by side: each waits here until all have begun."""
    barrier = Barrier(8)

    @semcache.cached(cache, version="1")
    def ask(question):
        barrier.wait(PATIENCE)
        return question

    assert [one.result(PATIENCE) for one in [pool.submit(ask, n) for n in range(8)]] == list(range(8))


@pytest.mark.parametrize("kind", [OriginError, StopIteration])
def test_leaders_error_goes_to_all_threads_unchanged(cache, flights, pool, kind):
    """Laws 6 and 7: the same object reaches all who waited, and the next call loads again."""
    loads, release = Counter(), Event()
    error = kind("no")

    @semcache.cached(cache, version="1")
    def ask(question):
        if loads() > 1:
            return "well"
        assert release.wait(PATIENCE)
        raise error

    def raised():
        try:
            ask("q")
        except kind as one:
            return one

    errors = [pool.submit(raised) for _ in range(8)]
    flights.await_followers(7)
    release.set()
    assert {id(one.result(PATIENCE)) for one in errors} == {id(error)}
    assert ask("q") == "well"
    assert loads.count == 2


def test_interrupted_leader_hands_over_to_one(cache, flights, pool):
    """Law 6: a leader's KeyboardInterrupt is its own; one follower loads, the others follow that one."""
    loads, release, again = Counter(), Event(), Event()

    @semcache.cached(cache, version="1")
    def ask(question):
        if loads() == 1:
            assert release.wait(PATIENCE)
            raise KeyboardInterrupt
        assert again.wait(PATIENCE)
        return "well"

    def leader():
        with pytest.raises(KeyboardInterrupt):
            ask("q")

    led = pool.submit(leader)
    loads.reach(1)
    followers = [pool.submit(ask, "q") for _ in range(5)]
    flights.await_followers(5)
    release.set()
    flights.await_followers(4)
    again.set()
    assert [one.result(PATIENCE) for one in followers] == ["well"] * 5
    led.result(PATIENCE)
    assert loads.count == 2


def test_followers_of_what_cannot_be_encoded_load_for_themselves(cache, flights, pool):
    """An answer that cannot be encoded cannot be shared: each caller gets one of its own, and no error."""
    loads, release = Counter(), Event()

    @semcache.cached(cache, version="1")
    def ask(question):
        loads()
        assert release.wait(PATIENCE)
        return object()

    answers = [pool.submit(ask, "q") for _ in range(4)]
    flights.await_followers(3)
    release.set()
    assert len({id(one.result(PATIENCE)) for one in answers}) == 4
    assert loads.count == 4
    faults = cache.stats().faults
    assert faults["codec: EncodeError"] == 4
    assert faults["flight: unshared"] == 3


def test_follower_of_a_late_leader_loads_alone(pool):
    """Law 6: a follower waits at most its flight timeout."""
    loads, release = Counter(), Event()
    with semcache.Cache(timeouts=semcache.Timeouts(flight="50ms")) as cache:

        @semcache.cached(cache, version="1")
        def ask(question):
            number = loads()
            if number == 1:
                assert release.wait(PATIENCE)
            return number

        slow = pool.submit(ask, "q")
        loads.reach(1)
        assert ask("q") == 2
        release.set()
        assert slow.result(PATIENCE) == 1
        assert cache.stats().faults == {"flight: late": 1}


def test_call_inside_its_own_load_loads_for_itself(cache):
    """Law 6: a re-entrant call of the same key does not wait for itself."""
    depth = []

    @semcache.cached(cache, version="1")
    def ask(question):
        depth.append(1)
        return "deep" if len(depth) == 3 else ask(question)

    assert ask("q") == "deep"
    assert len(depth) == 3


def test_call_inside_its_own_load_on_a_thread_with_its_context_loads_for_itself(cache):
    """The load's context says so, on whatever thread it was taken to."""
    loads = Counter()

    @semcache.cached(cache, version="1")
    def ask(question):
        if loads() > 1:
            return "inner"
        answers = []
        context = contextvars.copy_context()
        thread = Thread(target=lambda: context.run(lambda: answers.append(ask(question))), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return answers[0]

    assert ask("q") == "inner"


def test_two_keys_whose_loads_call_each_other_do_not_wait_for_each_other(cache, pool):
    """Two loads that would wait for each other: the second to notice loads for itself."""
    loads, both = Counter(), Barrier(2)

    @semcache.cached(cache, version="1")
    def cross(name):
        count = loads()
        if count <= 2:
            both.wait(PATIENCE)
            return name + cross("b" if name == "a" else "a")
        return name

    one, other = pool.submit(cross, "a"), pool.submit(cross, "b")
    assert {one.result(PATIENCE)[0], other.result(PATIENCE)[0]} == {"a", "b"}
    assert loads.count == 3


def test_many_threads_over_few_keys_agree(cache, pool):
    """Under pressure every answer is the one of its key, and no key is loaded twice."""
    loads = {}
    lock = Lock()

    @semcache.cached(cache, version="1")
    def ask(number):
        with lock:
            loads[number] = loads.get(number, 0) + 1
        return {"number": number}

    def work(seed):
        return [ask((seed * 7 + step) % 11)["number"] == (seed * 7 + step) % 11 for step in range(200)]

    assert all(all(one.result(PATIENCE)) for one in [pool.submit(work, seed) for seed in range(16)])
    assert loads == dict.fromkeys(range(11), 1)
    info = ask.cache_info()
    assert (info.hits, info.misses, info.bypasses) == (16 * 200 - 11, 11, 0)


# Tasks


def test_fifty_tasks_load_once(cache):
    """Law 6: a gather of fifty same calls is one load."""
    loads = Counter()

    @semcache.cached(cache, version="1")
    async def ask(question):
        loads()
        for _ in range(3):
            await asyncio.sleep(0)
        return [question]

    async def main():
        return await asyncio.gather(*(ask("q") for _ in range(50)))

    given = asyncio.run(main())
    assert given == [["q"]] * 50
    assert len({id(one) for one in given}) == 50
    assert loads.count == 1
    assert ask.cache_info() == (49, 1, 0)


def test_cancelled_leader_hands_over_to_a_follower(cache, flights):
    """Law 6: a follower takes over, and no follower is cancelled."""
    loads, gate = Counter(), asyncio.Event()

    @semcache.cached(cache, version="1")
    async def ask(question):
        loads()
        await gate.wait()
        return question

    async def main():
        tasks = [asyncio.create_task(ask("q")) for _ in range(5)]
        await until(lambda: flights.followed == 4)
        tasks[0].cancel()
        await until(lambda: loads.count == 2)
        assert tasks[0].cancelled()
        gate.set()
        assert await asyncio.gather(*tasks[1:]) == ["q"] * 4

    asyncio.run(main())
    assert loads.count == 2


def test_cancelled_followers_harm_nobody(cache, flights):
    """A follower's cancellation is its own: the leader and the other followers get the answer."""
    loads, gate = Counter(), asyncio.Event()

    @semcache.cached(cache, version="1")
    async def ask(question):
        loads()
        await gate.wait()
        return question

    async def main():
        tasks = [asyncio.create_task(ask("q")) for _ in range(5)]
        await until(lambda: flights.followed == 4)
        tasks[2].cancel()
        tasks[4].cancel()
        await until(lambda: tasks[2].done() and tasks[4].done())
        gate.set()
        assert await asyncio.gather(tasks[0], tasks[1], tasks[3]) == ["q"] * 3
        assert tasks[2].cancelled()
        assert tasks[4].cancelled()

    asyncio.run(main())
    assert loads.count == 1


def test_all_cancelled_leaves_nothing_behind(cache, flights, caplog):
    """Leader and followers cancelled together: no flight, no lost error, and the next call loads."""
    gate = asyncio.Event()

    @semcache.cached(cache, version="1")
    async def ask(question):
        await gate.wait()
        return question

    async def main():
        tasks = [asyncio.create_task(ask("q")) for _ in range(5)]
        await until(lambda: flights.followed == 4)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        gc.collect()
        gate.set()
        assert await ask("q") == "q"

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("error", [OriginError("no"), TimeoutError("late"), StopAsyncIteration()], ids=repr)
def test_leaders_error_goes_to_all_tasks_unchanged(cache, flights, error):
    """Laws 6 and 7: the same object reaches all, also where it is of a kind that waiting itself raises."""
    gate = asyncio.Event()

    @semcache.cached(cache, version="1")
    async def ask(question):
        await gate.wait()
        raise error

    async def main():
        tasks = [asyncio.create_task(ask("q")) for _ in range(5)]
        await until(lambda: flights.followed == 4)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert {id(one) for one in asyncio.run(main())} == {id(error)}
    assert cache.stats().loads == 1


def test_origin_that_raises_cancelled_itself_hands_over(cache, flights):
    """An origin that awaits something cancelled ends as if cancelled; its followers load for themselves."""
    loads = Counter()

    @semcache.cached(cache, version="1")
    async def ask(question):
        if loads() > 1:
            return "well"
        await asyncio.sleep(0)
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        return await gone

    async def main():
        return await asyncio.gather(*(ask("q") for _ in range(4)), return_exceptions=True)

    first, *others = asyncio.run(main())
    assert isinstance(first, asyncio.CancelledError)
    assert others == ["well"] * 3
    assert loads.count == 2


def test_follower_with_a_timeout_of_its_own_goes_when_it_will(cache, flights):
    """asyncio.timeout around a follower ends the follower alone."""
    gate = asyncio.Event()

    @semcache.cached(cache, version="1")
    async def ask(question):
        await gate.wait()
        return question

    async def impatient():
        async with asyncio.timeout(0):
            await ask("q")

    async def main():
        leader = asyncio.create_task(ask("q"))
        await until(lambda: len(flights))
        with pytest.raises(TimeoutError):
            await impatient()
        gate.set()
        assert await leader == "q"

    asyncio.run(main())


def test_task_inside_its_own_load_loads_for_itself(cache):
    """A call of the same key, in the load or in a task that the load starts, does not wait for itself."""
    loads = Counter()

    @semcache.cached(cache, version="1")
    async def ask(question):
        match loads():
            case 1:
                return await ask(question)
            case 2:
                return await asyncio.create_task(ask(question))
            case 3:
                return (await asyncio.gather(ask(question), ask(question)))[0]
        return "deep"

    assert asyncio.run(ask("q")) == "deep"


def test_two_loads_in_tasks_that_call_each_other_do_not_wait_for_each_other(cache):
    """Two coroutines whose loads cross: the second to notice loads for itself."""
    loads = Counter()

    @semcache.cached(cache, version="1")
    async def cross(name):
        count = loads()
        await until(lambda: loads.count >= 2)
        return name + await cross("b" if name == "a" else "a") if count <= 2 else name

    async def main():
        return await asyncio.gather(cross("a"), cross("b"))

    answers = asyncio.run(main())
    assert [one[0] for one in answers] == ["a", "b"]
    assert loads.count == 3


def test_waits_of_sibling_tasks_are_counted_one_by_one(cache, flights):
    """Two tasks of one load wait for a key; one is cancelled, and the other's wait is still known to be one."""
    both, seen = asyncio.Event(), []

    @semcache.cached(cache, version="1")
    async def outer():
        tasks = [asyncio.create_task(inner()) for _ in range(2)]
        await until(lambda: flights.followed == 2)
        tasks[0].cancel()
        await until(tasks[0].done)
        both.set()
        return await tasks[1]

    @semcache.cached(cache, version="1")
    async def inner():
        await both.wait()
        if not seen:
            seen.append(1)
            return await outer()  # outer waits for us: this must not wait for outer
        return "well"

    async def main():
        leader = asyncio.create_task(inner())
        await until(lambda: len(flights) == 1)
        answer = asyncio.create_task(outer())
        return await asyncio.gather(leader, answer)

    assert asyncio.run(main()) == ["well", "well"]


# Both colours


def test_thread_follows_a_task_and_a_task_follows_a_thread(cache, flights, pool):
    """One key, one load, whatever the callers' colours: cache.get_or_load shares with cache.aget_or_load."""
    loads, release, gate = Counter(), Event(), asyncio.Event()

    def request(name):
        return cache.request("shared", name)

    async def aload():
        loads()
        await gate.wait()
        return "async"

    def load():
        loads()
        assert release.wait(PATIENCE)
        return "sync"

    async def main():
        led_here = asyncio.create_task(cache.aget_or_load(request("a"), aload))
        await until(lambda: loads.count == 1)
        followed_there = pool.submit(cache.get_or_load, request("a"), load)
        await asyncio.to_thread(flights.await_followers, 1)
        gate.set()
        assert await led_here == "async"
        assert await asyncio.wrap_future(followed_there) == "async"

        led_there = pool.submit(cache.get_or_load, request("b"), load)
        await asyncio.to_thread(loads.reach, 2)
        followed_here = asyncio.create_task(cache.aget_or_load(request("b"), aload))
        await asyncio.to_thread(flights.await_followers, 1)
        release.set()
        assert await followed_here == await asyncio.wrap_future(led_there) == "sync"

    asyncio.run(main())
    assert loads.count == 2


def test_sync_call_on_the_leading_loops_thread_loads_for_itself(cache):
    """Law 6: a sync call must not wait for a flight that a task of its own thread leads."""
    loads, gate = Counter(), asyncio.Event()
    request = cache.request("shared")

    async def aload():
        loads()
        await gate.wait()
        return "async"

    async def main():
        leader = asyncio.create_task(cache.aget_or_load(request, aload))
        await until(lambda: loads.count == 1)
        assert cache.get_or_load(request, lambda: "sync") == "sync"
        gate.set()
        assert await leader == "async"

    asyncio.run(main())


def test_sync_call_does_not_wait_for_a_load_that_waits_for_its_thread(cache, flights, pool):
    """A load on another thread waits for a task of this loop: a sync call here must not wait for that load."""
    gate = asyncio.Event()
    slow, over = cache.request("slow"), cache.request("over")

    async def aload():
        await gate.wait()
        return "slow"

    def load_over():
        return "over " + cache.get_or_load(slow, lambda: "alone")

    async def main():
        task = asyncio.create_task(cache.aget_or_load(slow, aload))
        await until(lambda: len(flights) == 1)
        other = pool.submit(cache.get_or_load, over, load_over)
        await asyncio.to_thread(flights.await_followers, 1)
        assert cache.get_or_load(over, lambda: "here") == "here"
        gate.set()
        assert await task == "slow"
        assert await asyncio.wrap_future(other) == "over slow"

    asyncio.run(main())


def test_load_does_not_wait_for_a_task_of_a_thread_that_waits_for_the_load(cache, flights, pool):
    """The same, where the sync call came first: the load then loads for itself what the blocked loop leads."""
    loads, gate = Counter(), asyncio.Event()
    slow, over = cache.request("slow"), cache.request("over")

    async def aload():
        await gate.wait()
        return "slow"

    def load_over():
        loads()
        flights.await_followers(1)  # the loop's thread is blocked from here on
        return "over " + cache.get_or_load(slow, lambda: "alone")

    async def main():
        task = asyncio.create_task(cache.aget_or_load(slow, aload))
        await until(lambda: len(flights) == 1)
        other = pool.submit(cache.get_or_load, over, load_over)
        await asyncio.to_thread(loads.reach, 1)
        assert cache.get_or_load(over, lambda: "here") == "over alone"
        gate.set()
        assert await task == "slow"
        assert await asyncio.wrap_future(other) == "over alone"

    asyncio.run(main())


def test_load_runs_on_its_callers_thread(cache):
    """A sync origin is called where it was asked for."""

    @semcache.cached(cache)
    def ask():
        return get_ident()

    assert ask() == get_ident()


# Endings


def test_loop_closed_in_mid_flight_hands_over(cache, flights, pool):
    """A leader whose loop was closed is given up when it is collected; its followers do not wait for ever."""
    loads, gate = Counter(), asyncio.Event()
    request = cache.request("shared")

    async def aload():
        loads()
        await gate.wait()

    loop = asyncio.new_event_loop()
    leader = loop.create_task(cache.aget_or_load(request, aload))
    while not loads.count:
        loop.run_until_complete(asyncio.sleep(0))
    follower = pool.submit(cache.get_or_load, request, lambda: "well")
    flights.await_followers(1)
    leader._log_destroy_pending = False  # asyncio would log that the task was destroyed: that is what is tested here
    loop.close()
    del leader
    gate._waiters.clear()
    gc.collect()
    assert follower.result(PATIENCE) == "well"


def test_follower_whose_loop_was_closed_is_not_called_back(cache, flights, pool, caplog):
    """A loop may end while one of its tasks waits; the leader lands without a complaint."""
    release, loads = Event(), Counter()
    request = cache.request("shared")

    def load():
        loads()
        assert release.wait(PATIENCE)
        return "well"

    leader = pool.submit(cache.get_or_load, request, load)
    loads.reach(1)

    async def main():
        follower = asyncio.create_task(cache.aget_or_load(request, lambda: "other"))
        await until(lambda: flights.followed == 1)
        assert not follower.done()

    asyncio.run(main())  # cancels the follower, and closes the loop
    release.set()
    assert leader.result(PATIENCE) == "well"
    assert not caplog.records


def test_load_that_ends_while_its_thread_holds_our_locks_ends(cache, flights):
    """The collector may close an abandoned load at any moment, in the middle of our own work too."""

    @types.coroutine
    def forever():
        while True:
            yield

    @semcache.cached(cache, version="1")
    async def ask(question):
        await forever()

    abandoned = ask("q")
    abandoned.send(None)
    assert len(flights) == 1

    def work():
        with flights._lock, cache.recorder._lock:
            abandoned.close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
