"""Cached async generators: one origin in one task of its own, read by many tasks at once."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import aclosing
from contextvars import ContextVar

import pytest
from waiting import PATIENCE, Counter, until

import semcache

variable = ContextVar("variable", default="unset")


class OriginError(Exception):
    """What an origin raises."""


def letters(cache, log=None, gate=None, **options):
    """Return a cached async generator that logs what happens to it; it waits for the gate after its first item."""
    log = [] if log is None else log

    @semcache.cached(cache, version="1", **options)
    async def spell(word):
        log.append("begin")
        try:
            for place, letter in enumerate(word):
                if gate is not None and place == 1:
                    await gate.wait()
                await asyncio.sleep(0)
                log.append(letter)
                yield letter
            log.append("end")
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        finally:
            log.append("close")

    return spell, log


def streams(function):
    return function.cache_info.__self__.bound.streams


async def read(items):
    return [item async for item in items]


def run(main):
    """Run a coroutine function, and see that nothing is left of it but itself."""

    async def watched():
        before = asyncio.all_tasks()
        result = await main()
        await until(lambda: asyncio.all_tasks() == before)
        return result

    return asyncio.run(watched())


def test_stream_that_ended_well_is_stored(cache):
    """A hit gives the same items; the origin ran once, lazily."""
    spell, log = letters(cache)

    async def main():
        items = spell("abc")
        assert log == []
        assert await anext(items) == "a"
        assert log == ["begin", "a"]
        assert await read(items) == ["b", "c"]
        assert await read(spell("abc")) == ["a", "b", "c"]
        assert await read(spell("")) == await read(spell("")) == []

    run(main)
    assert log == ["begin", "a", "b", "c", "end", "close", "begin", "end", "close"]
    assert spell.cache_info() == (2, 2, 0)
    assert streams(spell) == {}


def test_stream_closed_early_is_not_stored(cache):
    """Law 7: aclose closes the origin before it returns, and nothing is kept."""
    spell, log = letters(cache)

    async def main():
        async with aclosing(spell("abc")) as items:
            async for _ in items:
                break
        assert log == ["begin", "a", "close"]
        unread = spell("abc")
        await unread.aclose()
        assert log == ["begin", "a", "close"]
        assert await read(spell("abc")) == ["a", "b", "c"]

    run(main)
    assert cache.stats().not_served == {"not kept: closed before its end": 1}
    assert streams(spell) == {}


def test_stream_dropped_half_read_is_closed(cache):
    """Who forgets an async generator leaves it to the loop to close, as without the cache."""
    spell, log = letters(cache)

    async def main():
        items = spell("abc")
        await anext(items)
        del items
        gc.collect()
        await until(lambda: not streams(spell))
        await until(lambda: "close" in log)

    run(main)
    assert log == ["begin", "a", "close"]


def test_stream_left_to_asyncio_run_is_closed(cache):
    """What a program forgets, asyncio.run closes."""
    spell, log = letters(cache)
    held = []

    async def main():
        held.append(spell("abc"))
        await anext(held[0])

    asyncio.run(main())
    assert log[-1] == "close"
    assert streams(spell) == {}


def test_error_in_mid_stream_is_raised_and_not_stored(cache):
    """Law 7: an error goes up, as it was, after the items before it, and nothing is kept."""
    errors = [OriginError("no")]
    [error] = errors

    @semcache.cached(cache, version="1")
    async def items():
        yield "a"
        if errors:
            raise errors.pop()
        yield "b"

    async def main():
        reading = items()
        assert await anext(reading) == "a"
        with pytest.raises(OriginError) as raised:
            await anext(reading)
        assert raised.value is error
        assert await read(items()) == ["a", "b"]

    run(main)
    assert (cache.stats().loads, cache.stats().load_errors) == (2, 1)


@pytest.mark.parametrize("error", [OriginError("no"), TimeoutError("late"), StopIteration("odd")], ids=repr)
def test_error_reaches_all_readers_unchanged(cache, flights, error):
    """Each reader gets the items before the error and then the same error, whatever its kind."""
    gate = asyncio.Event()

    @semcache.cached(cache, version="1")
    async def items():
        yield "a"
        await gate.wait()
        raise error

    async def reader():
        reading = items()
        assert await anext(reading) == "a"
        await anext(reading)

    async def main():
        tasks = [asyncio.create_task(reader()) for _ in range(4)]
        await until(lambda: flights.followed == 3)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    raised = run(main)
    assert len({id(one) for one in raised}) == 1
    # Python itself makes a RuntimeError of a generator's StopIteration.
    assert raised[0] is error or isinstance(raised[0], RuntimeError)
    assert cache.stats().loads == 1


def test_origin_that_is_cancelled_from_inside_ends_for_all(cache):
    """An origin that awaits something cancelled ends as without the cache; nobody waits for ever."""

    @semcache.cached(cache)
    async def items():
        yield "a"
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    async def main():
        first, second = items(), items()
        assert await anext(first) == await anext(second) == "a"
        for reader in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await anext(reader)

    run(main)
    assert cache.stats().tiers["memory"]["entries"] == 0
    assert streams(items) == {}


def test_origins_task_cancelled_by_others_leaves_nobody_waiting(cache):
    """Somebody may cancel every task there is; the readers end, and the stream is not taken for a whole one."""
    spell, log = letters(cache, gate=asyncio.Event())

    async def main():
        ours = asyncio.all_tasks()
        readers = [asyncio.create_task(read(spell("abc"))) for _ in range(3)]
        await until(lambda: "a" in log)
        for _ in range(20):
            await asyncio.sleep(0)
        [driver] = asyncio.all_tasks() - ours - set(readers)
        driver.cancel()
        for one in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(one, asyncio.CancelledError)

    run(main)
    assert log == ["begin", "a", "cancelled", "close"]
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_origins_task_cancelled_between_items_ends_the_readers(cache):
    """The same, where the origin had nothing to do: who asks for the next item is not left waiting for ever."""
    spell, log = letters(cache)

    async def main():
        before = asyncio.all_tasks()
        reader = spell("abc")
        assert await anext(reader) == "a"
        [driver] = asyncio.all_tasks() - before
        driver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(reader)

    run(main)
    assert log == ["begin", "a", "close"]
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_error_of_the_gravest_kind_reaches_the_readers(cache):
    """What is no Exception goes to the readers too, as it was."""

    class Interruption(BaseException):
        pass

    error = Interruption("no")

    @semcache.cached(cache, version="1")
    async def items():
        yield "a"
        raise error

    async def main():
        first, second = items(), items()
        assert await anext(first) == await anext(second) == "a"
        for reader in (first, second):
            with pytest.raises(Interruption) as raised:
                await anext(reader)
            assert raised.value is error

    run(main)


def test_cancelled_reader_does_not_make_the_origin_run_ahead(cache):
    """An item is pulled when somebody asks for it, also after one who asked has gone."""
    gate = asyncio.Event()
    spell, log = letters(cache, gate=gate)

    async def main():
        reader, other = spell("abcd"), spell("abcd")
        assert await anext(reader) == await anext(other) == "a"
        waiting = asyncio.create_task(anext(reader))
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        gate.set()
        assert await anext(other) == "b"
        for _ in range(20):
            await asyncio.sleep(0)
        assert log == ["begin", "a", "b"]
        assert await read(other) == ["c", "d"]

    run(main)


def test_readers_share_one_origin_each_at_its_pace(cache):
    """Law 6: each item is pulled once, by whoever needs it first."""
    spell, log = letters(cache)

    async def main():
        slow, fast = spell("abc"), spell("abc")
        assert await anext(slow) == "a"
        assert [await anext(fast), await anext(fast)] == ["a", "b"]
        assert log == ["begin", "a", "b"]
        late = spell("abc")
        assert await read(late) == ["a", "b", "c"]
        assert await read(fast) == ["c"]
        assert await read(slow) == ["b", "c"]

    run(main)
    assert log.count("begin") == 1
    assert spell.cache_info() == (2, 1, 0)
    assert cache.stats().hits == {"flight": 2}


def test_fifty_tasks_read_one_stream(cache):
    """Law 6: fifty readers, one origin; all get all items, and copies of their own."""
    begun = Counter()

    @semcache.cached(cache, version="1")
    async def items():
        begun()
        for number in range(10):
            await asyncio.sleep(0)
            yield [number]

    async def main():
        return await asyncio.gather(*(read(items()) for _ in range(50)))

    results = run(main)
    assert results == [[[number] for number in range(10)]] * 50
    assert len({id(item) for result in results for item in result}) == 500
    assert begun.count == 1


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_cancelled_reader_does_not_cut_the_others(cache, flights, who):
    """A reader that is cancelled while it waits for an item leaves the item to the others, and the origin untouched."""
    gate = asyncio.Event()
    spell, log = letters(cache, gate=gate)

    async def main():
        tasks = [asyncio.create_task(read(spell("abc"))) for _ in range(4)]
        await until(lambda: flights.followed == 3)
        await until(lambda: "a" in log)
        for _ in range(20):
            await asyncio.sleep(0)
        gone = tasks.pop(0 if who == "leader" else 2)
        gone.cancel()
        await asyncio.wait([gone])
        assert gone.cancelled()
        gate.set()
        return await asyncio.gather(*tasks)

    assert run(main) == [["a", "b", "c"]] * 3
    assert log == ["begin", "a", "b", "c", "end", "close"]
    assert spell.cache_info().misses == 1
    assert streams(spell) == {}


def test_last_reader_cancelled_cancels_the_origin(cache):
    """Nobody reads on: the origin is cancelled where it stands, before the reader's own end, and nothing is kept."""
    spell, log = letters(cache, gate=asyncio.Event())

    async def main():
        tasks = [asyncio.create_task(read(spell("abc"))) for _ in range(3)]
        await until(lambda: "a" in log)
        for _ in range(20):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert log == ["begin", "a", "cancelled", "close"]

    run(main)
    assert cache.stats().tiers["memory"]["entries"] == 0
    assert streams(spell) == {}


def test_leader_that_leaves_does_not_cut_its_followers(cache):
    """Law 6: the others read on to the end, and what they read is stored."""
    spell, log = letters(cache)

    async def main():
        leader, follower = spell("abc"), spell("abc")
        assert await anext(leader) == await anext(follower) == "a"
        await leader.aclose()
        assert "close" not in log
        assert await read(follower) == ["b", "c"]
        assert await read(spell("abc")) == ["a", "b", "c"]

    run(main)
    assert log.count("begin") == 1


def test_origin_keeps_to_one_task(cache):
    """asyncio.timeout, task groups and context variables across yields: the driving task is one and the same."""
    seen = []

    @semcache.cached(cache, version="1")
    async def items():
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(3):
                seen.append(asyncio.current_task())
                variable.set(f"inner {number}")
                yield await group.create_task(asyncio.sleep(0, number))
                assert variable.get() == f"inner {number}"

    async def main():
        async def one(reader):
            return await anext(reader)

        reader = items()
        got = [await asyncio.create_task(one(reader)) for _ in range(3)]
        assert await read(reader) == []
        assert variable.get() == "unset"
        return got

    assert run(main) == [0, 1, 2]
    assert len(set(seen)) == 1
    assert cache.stats().faults == {}


def test_origin_runs_in_its_first_callers_context(cache):
    """Context variables are those of the caller that began the stream."""

    @semcache.cached(cache, version="1")
    async def items():
        yield variable.get()
        yield variable.get()

    async def main():
        token = variable.set("outer")
        reader = items()
        first = await anext(reader)
        variable.reset(token)
        return [first, *await read(reader)]

    assert run(main) == ["outer", "outer"]


def test_origins_timeout_is_the_readers_error(cache):
    """A timeout of the origin's own goes to its readers, and ends nothing else."""

    @semcache.cached(cache)
    async def items():
        yield "a"
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async def main():
        reader = items()
        assert await anext(reader) == "a"
        with pytest.raises(TimeoutError):
            await anext(reader)

    run(main)


def test_error_while_closing_goes_to_who_closes(cache):
    """What an origin raises when it is closed reaches the last reader, as without the cache."""

    @semcache.cached(cache)
    async def items():
        try:
            yield "a"
            yield "b"
        finally:
            raise OriginError("while closing")

    async def main():
        reader = items()
        await anext(reader)
        with pytest.raises(OriginError, match="while closing"):
            await reader.aclose()

    run(main)
    assert streams(items) == {}


def test_async_generator_that_reads_itself_reads_alone(cache):
    """A recursive async generator does not wait for itself."""

    @semcache.cached(cache)
    async def down(n):
        yield n
        if n:
            async for item in down(n - 1):
                yield item

    depth = []

    @semcache.cached(cache, version="1")
    async def same():
        depth.append(1)
        yield "x"
        if len(depth) < 3:
            async for item in same():
                yield item

    async def main():
        assert await read(down(4)) == await read(down(4)) == [4, 3, 2, 1, 0]
        assert await read(same()) == ["x", "x", "x"]

    run(main)


def test_two_streams_that_read_each_other_do_not_wait_for_each_other(cache):
    """Two origins that each read the other's stream: one of them reads alone."""
    begun = Counter()

    @semcache.cached(cache, version="1")
    async def cross(name):
        count = begun()
        yield name
        if count <= 2:
            await until(lambda: begun.count >= 2)
            async for item in cross("b" if name == "a" else "a"):
                yield item

    async def main():
        return await asyncio.gather(read(cross("a")), read(cross("b")))

    one, other = run(main)
    assert (one[0], other[0]) == ("a", "b")


def test_reader_of_a_late_first_item_reads_alone():
    """Law 6: a follower waits at most its flight timeout for a leader that has brought nothing."""
    begun, gate = Counter(), asyncio.Event()
    with semcache.Cache(timeouts=semcache.Timeouts(flight="50ms")) as cache:

        @semcache.cached(cache, version="1")
        async def items():
            number = begun()
            if number == 1:
                await gate.wait()
            yield number

        async def main():
            slow = asyncio.create_task(read(items()))
            await until(lambda: begun.count == 1)
            assert await read(items()) == [2]
            gate.set()
            assert await slow == [1]

        run(main)
        assert cache.stats().faults == {"flight: late": 1}
        assert len(cache.chain.flights) == 0


def test_sent_values_are_refused(cache):
    """What an async generator yields could depend on what it is sent, and no key would know."""
    spell, log = letters(cache)

    async def main():
        for _ in range(2):
            items = spell("abc")
            await anext(items)
            with pytest.raises(TypeError, match=r"no values by send\(\)"):
                await items.asend("x")
            await read(spell("abc"))
        assert await spell("abc").asend(None) == "a"

    run(main)
    assert log.count("begin") == 2


def test_loop_closed_in_mid_stream_leaves_the_next_loop_alone(cache, caplog):
    """A stream that a closed loop forgot is never read by tasks of another loop, though that may stand in its place."""
    spell, log = letters(cache)
    held = []

    async def main():
        held.append(spell("abc"))
        return await anext(held[-1])

    loops = [asyncio.new_event_loop() for _ in range(3)]
    for loop in loops:
        assert loop.run_until_complete(main()) == "a"
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # asyncio would log it: that is what is tested here
        loop.close()
    assert log.count("begin") == 3
    assert run(lambda: read(spell("abc"))) == ["a", "b", "c"]
    assert log.count("begin") == 4
    assert streams(spell) == {}
    held.clear()
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_readers_on_two_loops_have_streams_of_their_own(cache, pool):
    """An async generator belongs to its loop; what it stored is shared."""
    begun = Counter()

    @semcache.cached(cache, version="1")
    async def items():
        begun()
        await asyncio.to_thread(begun.reach, 2)
        yield "a"

    results = [pool.submit(lambda: asyncio.run(read(items()))) for _ in range(2)]
    assert [one.result(PATIENCE) for one in results] == [["a"], ["a"]]
    assert begun.count == 2
    assert run(lambda: read(items())) == ["a"]
    assert begun.count == 2


def test_unkeyable_and_off_streams_pass_through(cache):
    """A stream that is bypassed is the origin's own."""

    @semcache.cached(cache)
    async def items(value):
        yield value

    async def main():
        with semcache.context(mode="off"):
            assert await read(items(1)) == [1]
        one = object()
        with pytest.warns(semcache.SemcacheWarning, match="argument 'value'"):
            assert await read(items(one)) == [one]
        with pytest.raises(TypeError):
            await anext(items(1, 2))

    run(main)
    assert items.cache_info() == (0, 0, 3)


def test_items_that_cannot_be_encoded_are_given_and_counted(cache):
    """The reader gets the origin's own objects, and nothing is stored."""
    made = [object(), object()]

    @semcache.cached(cache, version="1")
    async def items():
        for one in made:
            yield one

    assert run(lambda: read(items())) == made
    assert cache.stats().faults == {"codec: EncodeError": 1}
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_invalidation_in_mid_stream_is_kept(cache):
    """Law 8: who comes after the invalidation reads anew, and the old stream is not stored."""
    spell, log = letters(cache)

    async def main():
        before = spell("abc")
        await anext(before)
        await cache.ainvalidate(function=spell)
        after = spell("abc")
        assert await anext(after) == "a"
        assert await read(before) == ["b", "c"]
        assert cache.stats().tiers["memory"]["entries"] == 0
        assert await read(after) == ["b", "c"]

    run(main)
    assert log.count("begin") == 2
    assert cache.stats().tiers["memory"]["entries"] == 1
