"""Cached generators: stored when they ended well, replayed item by item, read by many threads at once."""

from __future__ import annotations

import gc
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Barrier, Event, Thread

import pytest
from waiting import PATIENCE, Counter

import semcache
from semcache.flight import Flight
from semcache.plan import run
from semcache.wrap.shared import End, Stream

variable = ContextVar("variable", default="unset")


class OriginError(Exception):
    """What an origin raises."""


@pytest.fixture(autouse=True)
def _nothing_is_left(request):
    """After each test no stream is held by any function that it made."""
    made = []
    wrapping = semcache.wrap.wrapping.Wrapping
    init = wrapping.__init__

    def watching(self, *args):
        init(self, *args)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrapping, "__init__", watching)
        yield
    for one in made:
        assert one.bound is None or one.bound.streams == {}


def letters(cache, log=None, **options):
    """Return a cached generator that logs what happens to it."""
    log = [] if log is None else log

    @semcache.cached(cache, version="1", **options)
    def spell(word):
        log.append("begin")
        try:
            for letter in word:
                log.append(letter)
                yield letter
            log.append("end")
            return len(word)
        finally:
            log.append("close")

    return spell, log


def drain(items):
    """Return the items of a generator and what it returned."""
    read = []
    while True:
        try:
            read.append(next(items))
        except StopIteration as stop:
            return read, stop.value


def test_stream_that_ended_well_is_stored_with_what_it_returned(cache):
    """A hit gives the same items and the same return value; the origin ran once, lazily."""
    spell, log = letters(cache)
    items = spell("abc")
    assert log == []
    assert next(items) == "a"
    assert log == ["begin", "a"]
    assert drain(items) == (["b", "c"], 3)
    assert drain(spell("abc")) == (["a", "b", "c"], 3)
    assert log == ["begin", "a", "b", "c", "end", "close"]
    assert spell.cache_info() == (1, 1, 0)
    assert semcache.last().tier == "memory"


def test_empty_stream_is_a_stream(cache):
    """A generator that yields nothing is stored too."""
    spell, log = letters(cache)
    assert drain(spell("")) == drain(spell("")) == ([], 0)
    assert log.count("begin") == 1


def test_items_of_a_hit_are_fresh(cache):
    """Law 9: items and return values that are changed change nobody else's."""

    @semcache.cached(cache)
    def items():
        yield ["a"]
        return {"total": 1}

    for _ in range(3):
        [item], returned = drain(items())
        assert (item, returned) == (["a"], {"total": 1})
        item.append("b")
        returned["total"] = 2


@pytest.mark.parametrize("read", [0, 1, 2, 3])
def test_stream_closed_early_is_not_stored(cache, read):
    """Law 7: what did not complete is not kept, and the origin is closed at once."""
    spell, log = letters(cache)
    items = spell("abc")
    for _ in range(read):
        next(items)
    items.close()
    assert log.count("close") == (read > 0)
    assert "end" not in log
    assert drain(spell("abc")) == (["a", "b", "c"], 3)
    assert log.count("begin") == 1 + (read > 0)
    if read:
        assert cache.stats().not_served == {"not kept: closed before its end": 1}


def test_stream_dropped_half_read_is_closed(cache):
    """Who forgets a generator closes it, as without the cache."""
    spell, log = letters(cache)
    items = spell("abc")
    next(items)
    del items
    gc.collect()
    assert log[-1] == "close"
    assert spell.cache_info() == (0, 1, 0)


@pytest.mark.parametrize("kind", [OriginError, KeyboardInterrupt, SystemExit, GeneratorExit, StopAsyncIteration])
def test_error_in_mid_stream_is_raised_and_not_stored(cache, kind):
    """Law 7: an error, whatever its kind, goes up after the items before it, and nothing is kept."""
    error = kind("no")
    errors = [error]

    @semcache.cached(cache, version="1")
    def items():
        yield "a"
        if errors:
            raise errors.pop()
        yield "b"

    reading = items()
    assert next(reading) == "a"
    with pytest.raises(kind) as raised:
        next(reading)
    assert raised.value is error
    assert list(items()) == ["a", "b"]
    stats = cache.stats()
    assert (stats.loads, stats.load_errors) == (2, 1)


def test_error_before_the_first_item_is_raised_and_not_stored(cache):
    """A generator may fail before it yields."""

    @semcache.cached(cache)
    def items(word):
        raise OriginError(word)
        yield

    for _ in range(2):
        with pytest.raises(OriginError):
            next(items("a"))
    assert cache.stats().load_errors == 2


def test_error_reaches_all_readers_unchanged(cache):
    """Each reader gets the items before the error and then the same error."""
    error = OriginError("no")

    @semcache.cached(cache, version="1")
    def items():
        yield "a"
        raise error

    first, second = items(), items()
    assert next(first) == next(second) == "a"
    raised = []
    for reader in (first, second):
        with pytest.raises(OriginError) as one:
            next(reader)
        raised.append(one.value)
    assert raised == [error, error]
    assert cache.stats().loads == 1


def test_failed_stream_is_joined_by_nobody():
    """Law 7: who comes between an error and its reader's leaving is not given the error, but begins anew."""

    class Failing:
        def pull(self):
            return End(error=OriginError("no"))

    def opened():
        return Failing()
        yield

    stream = Stream(Flight(b"key"), 1000, blocks=True)
    assert stream.join()
    assert isinstance(run(stream.step(opened, 0)).error, OriginError)
    assert not stream.join()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupted_stream_never_passes_for_a_whole_one(cache, kind):
    """Law 7: a reader that comes after an interruption is not given a stream that was cut off as if it had ended."""

    @semcache.cached(cache, ignore="kind")
    def items():
        yield "a"
        raise kind

    first, second = items(), items()
    assert next(first) == next(second) == "a"
    with pytest.raises(kind):
        next(first)
    with pytest.raises(kind):
        next(second)
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_readers_share_one_origin_each_at_its_pace(cache):
    """Law 6: each item is pulled once, by whoever needs it first."""
    spell, log = letters(cache)
    slow, fast = spell("abc"), spell("abc")
    assert next(slow) == "a"
    assert [next(fast), next(fast)] == ["a", "b"]
    assert log == ["begin", "a", "b"]
    late = spell("abc")
    assert [next(late), next(late), next(late)] == ["a", "b", "c"]
    assert drain(fast) == (["c"], 3)
    assert drain(slow) == (["b", "c"], 3)
    assert drain(late) == ([], 3)
    assert log.count("begin") == 1
    assert spell.cache_info() == (2, 1, 0)
    assert cache.stats().hits == {"flight": 2}


def test_leader_that_leaves_does_not_cut_its_followers(cache):
    """Law 6: the others read on to the end, and what they read is stored."""
    spell, log = letters(cache)
    leader, follower = spell("abc"), spell("abc")
    assert next(leader) == next(follower) == "a"
    leader.close()
    assert "close" not in log
    assert drain(follower) == (["b", "c"], 3)
    assert drain(spell("abc")) == (["a", "b", "c"], 3)
    assert log.count("begin") == 1


def test_last_reader_that_leaves_closes_the_origin(cache):
    """Nobody reads on: the generator is closed, and nothing is kept."""
    spell, log = letters(cache)
    readers = [spell("abc") for _ in range(3)]
    for reader in readers:
        next(reader)
    for reader in readers[:-1]:
        reader.close()
    assert "close" not in log
    readers[-1].close()
    assert log == ["begin", "a", "close"]
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_shared_items_are_copies(cache):
    """Law 9: readers of one stream share neither items nor the return value."""

    @semcache.cached(cache)
    def items():
        yield ["a"]
        return {"total": 1}

    first, second = items(), items()
    one, other = next(first), next(second)
    one.append("b")
    assert other == ["a"]
    _, returned = drain(first)
    returned["total"] = 2
    assert drain(second) == ([], {"total": 1})


def test_threads_read_one_stream(cache, pool):
    """Law 6: many threads, one origin; all get all items in order."""
    begun, barrier = Counter(), Barrier(12)

    @semcache.cached(cache, version="1")
    def count(limit):
        begun()
        yield from range(limit)
        return "done"

    def read():
        items = count(200)
        first = next(items)
        barrier.wait(PATIENCE)
        rest, returned = drain(items)
        return [first, *rest], returned

    results = [one.result(PATIENCE) for one in [pool.submit(read) for _ in range(12)]]
    assert results == [(list(range(200)), "done")] * 12
    assert begun.count == 1
    assert count.cache_info() == (11, 1, 0)


def test_thread_waits_for_the_item_that_another_pulls(cache, flights, pool):
    """While one thread is inside the origin, another waits for that item, and is given it."""
    inside, release = Event(), Event()

    @semcache.cached(cache, version="1")
    def items():
        inside.set()
        assert release.wait(PATIENCE)
        yield "a"

    first = pool.submit(lambda: list(items()))
    assert inside.wait(PATIENCE)
    second = pool.submit(lambda: list(items()))
    flights.await_followers(1)
    release.set()
    assert first.result(PATIENCE) == second.result(PATIENCE) == ["a"]


def test_reader_of_a_late_first_item_reads_alone(pool):
    """Law 6: a follower waits at most its flight timeout for a leader that has brought nothing."""
    begun, release = Counter(), Event()
    with semcache.Cache(timeouts=semcache.Timeouts(flight="50ms")) as cache:

        @semcache.cached(cache, version="1")
        def items():
            number = begun()
            if number == 1:
                assert release.wait(PATIENCE)
            yield number

        slow = pool.submit(lambda: list(items()))
        begun.reach(1)
        assert list(items()) == [2]
        release.set()
        assert slow.result(PATIENCE) == [1]
        assert cache.stats().faults == {"flight: late": 1}
        assert len(cache.chain.flights) == 0


def test_generator_that_reads_itself_reads_alone(cache):
    """A recursive generator does not wait for itself: same key or another."""

    @semcache.cached(cache)
    def down(n):
        yield n
        if n:
            yield from down(n - 1)

    assert list(down(4)) == list(down(4)) == [4, 3, 2, 1, 0]
    assert list(down(2)) == [2, 1, 0]

    depth = []

    @semcache.cached(cache, version="1")
    def same():
        depth.append(1)
        yield "x"
        if len(depth) < 3:
            yield from same()

    assert list(same()) == ["x", "x", "x"]


def test_two_streams_that_read_each_other_do_not_wait_for_each_other(cache, pool):
    """Two origins on two threads that each read the other's stream: one of them reads alone."""
    begun, both = Counter(), Barrier(2)

    @semcache.cached(cache, version="1")
    def cross(name):
        count = begun()
        yield name
        if count <= 2:
            both.wait(PATIENCE)
            yield from cross("b" if name == "a" else "a")

    results = [pool.submit(lambda name=name: list(cross(name))) for name in "ab"]
    one, other = (result.result(PATIENCE) for result in results)
    assert (one[:2], other[:2]) in ((["a", "b"], ["b", "a"]), (["a", "b"], ["b"]), (["a"], ["b", "a"]))


def test_function_and_stream_that_ask_each_other_do_not_wait_for_each_other(cache, pool):
    """A function's load that reads a stream, whose origin asks the function."""
    both, calls = Barrier(2), Counter()

    @semcache.cached(cache, version="1")
    def function():
        if calls() > 2:
            return ["f"]
        both.wait(PATIENCE)
        return ["f", *stream()]

    @semcache.cached(cache, version="1")
    def stream():
        yield "s"
        if calls() <= 2:
            both.wait(PATIENCE)
            yield from function()

    answer, items = pool.submit(function), pool.submit(lambda: list(stream()))
    assert answer.result(PATIENCE)[0] == "f"
    assert items.result(PATIENCE)[0] == "s"


def test_reader_inside_the_origins_own_pull_is_refused_as_python_does(cache):
    """Who reads on, from inside the generator, a reader of the same stream, would wait for itself."""
    readers = []

    @semcache.cached(cache, version="1")
    def items():
        yield "a"
        yield next(readers[0])

    readers += [items(), items()]
    assert next(readers[0]) == next(readers[1]) == "a"
    with pytest.raises(ValueError, match="generator already executing"):
        next(readers[1])
    readers.clear()


def test_sent_values_are_refused(cache):
    """What a generator yields could depend on what it is sent, and no key would know."""
    spell, log = letters(cache)
    items = spell("abc")
    next(items)
    with pytest.raises(TypeError, match=r"no values by send\(\)"):
        items.send("x")
    assert log[-1] == "close"
    list(spell("abc"))
    items = spell("abc")
    next(items)
    with pytest.raises(TypeError, match=r"no values by send\(\)"):
        items.send("x")
    assert spell("abc").send(None) == "a"
    assert list(spell.__wrapped__("ab")) == ["a", "b"]


def test_stream_over_max_value_is_given_and_not_kept():
    """A stream that grows too large reaches its reader, is let go as it does, and is counted."""
    with semcache.Cache(max_value=1000) as cache:
        log = []

        @semcache.cached(cache, version="1")
        def items():
            for number in range(100):
                yield f"{number:0100d}"
            log.append("end")

        reading = items()
        for number in range(50):
            assert int(next(reading)) == number
        [stream] = items.cache_info.__self__.bound.streams.values()
        assert len(stream.items) < 12
        other = items()  # too late to read along from the first item
        assert [int(next(other)) for _ in range(3)] == [0, 1, 2]
        other.close()
        assert [int(item) for item in reading] == list(range(50, 100))
        assert log == ["end"]
        assert cache.stats().not_served["not kept: over max_value"] == 1
        assert cache.stats().tiers["memory"]["entries"] == 0
        assert len(cache.chain.flights) == 0


def test_stream_over_max_value_is_held_for_its_other_reader():
    """What a slower reader has still to read is kept for it."""
    with semcache.Cache(max_value=1000) as cache:

        @semcache.cached(cache)
        def items():
            for number in range(100):
                yield f"{number:0100d}"

        slow, fast = items(), items()
        assert int(next(slow)) == 0
        assert [int(item) for item in fast] == list(range(100))
        assert [int(item) for item in slow] == list(range(1, 100))


class Opaque:
    """What cannot be encoded, and lets itself be copied."""

    def __init__(self, name):
        self.name = name


class Single(Opaque):
    """What cannot even be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("there is only one")


def test_items_that_cannot_be_encoded_are_given_and_counted(cache):
    """The reader gets the origin's own objects; a second one copies, where they can be copied; nothing is stored."""
    made = ["first", Opaque("a"), Single("b"), "c"]

    @semcache.cached(cache, version="1")
    def items():
        yield from made

    first, second = items(), items()
    assert next(first) == next(second) == "first"
    assert list(first) == made[1:]
    copied, shared, last = second
    assert copied is not made[1]
    assert copied.name == "a"
    assert shared is made[2]
    assert last == "c"
    assert cache.stats().faults == {"codec: EncodeError": 1}
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_items_that_cannot_be_encoded_are_not_hoarded(cache):
    """A long stream of such items takes no more memory than without the cache."""

    @semcache.cached(cache)
    def items():
        for _ in range(100):
            yield object()

    reading = items()
    for _ in range(50):
        next(reading)
    [stream] = items.cache_info.__self__.bound.streams.values()
    assert len(stream.items) <= 1
    assert len(list(reading)) == 50


def test_returned_value_that_cannot_be_encoded_is_given_and_counted(cache):
    """The items were fine; the stream is not stored all the same, because it would not come back as it was."""
    returned = Opaque("a")

    @semcache.cached(cache, version="1")
    def items():
        yield "a"
        return returned

    for _ in range(2):
        read, value = drain(items())
        assert read == ["a"]
        assert value is returned
    assert cache.stats().faults == {"codec: EncodeError": 2}


def test_when_sees_the_list_of_items(cache):
    """when= of a generator is asked once, with all items."""
    asked = []

    def enough(items):
        asked.append(items)
        return len(items) > 2

    spell, log = letters(cache, when=enough)
    list(spell("ab"))
    list(spell("ab"))
    list(spell("abc"))
    list(spell("abc"))
    assert asked == [["a", "b"], ["a", "b"], ["a", "b", "c"]]
    assert log.count("begin") == 3
    assert cache.stats().not_served == {"not kept: when": 2}


def test_generator_runs_in_its_callers_context_on_any_thread(cache):
    """Context variables are those of the caller that began the stream, and what the generator sets stays its own."""

    @semcache.cached(cache, version="1")
    def items():
        yield variable.get()
        variable.set("inner")
        yield variable.get()
        yield variable.get()

    token = variable.set("outer")
    reading = items()
    assert next(reading) == "outer"
    variable.reset(token)
    assert next(reading) == "inner"
    assert variable.get() == "unset"
    rest = []
    thread = Thread(target=lambda: rest.extend(reading))
    thread.start()
    thread.join(PATIENCE)
    assert rest == ["inner"]


def test_generator_dropped_by_the_collector_in_another_thread_is_closed(cache):
    """Whoever ends up collecting a half-read stream can close it."""
    spell, log = letters(cache)
    held = [spell("abc")]
    next(held[0])
    thread = Thread(target=held.clear)
    thread.start()
    thread.join(PATIENCE)
    assert log[-1] == "close"


def test_stream_that_ends_while_its_thread_holds_our_locks_ends(cache, flights):
    """The collector may close a half-read stream in the middle of our own work."""
    spell, log = letters(cache)
    items = spell("abc")
    next(items)
    call = spell.cache_info.__self__.bound
    [stream] = call.streams.values()

    def work():
        with call.streams_lock, flights._lock, stream._lock, cache.recorder._lock:
            items.close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert log[-1] == "close"


def test_invalidation_in_mid_stream_is_kept(cache):
    """Law 8: who comes after the invalidation reads anew, who reads already reads on, and the old is not stored."""
    spell, log = letters(cache)
    before = spell("abc")
    next(before)
    spell.invalidate("abc")
    after = spell("abc")
    assert next(after) == "a"
    assert log.count("begin") == 2
    assert drain(before) == (["b", "c"], 3)
    assert drain(after) == (["b", "c"], 3)
    assert drain(spell("abc")) == (["a", "b", "c"], 3)
    assert log.count("begin") == 2
    half = spell("abcd")
    next(half)
    spell.cache_clear()
    assert drain(half) == (["b", "c", "d"], 4)
    assert cache.stats().tiers["memory"]["entries"] == 0


def test_modes_hold_for_streams(cache):
    """off bypasses, refresh loads and stores, exact reads."""
    spell, log = letters(cache)
    with semcache.context(mode="off"):
        assert list(spell("ab")) == list(spell("ab")) == ["a", "b"]
    assert log.count("begin") == 2
    assert cache.stats().bypasses == {"mode: off": 2}
    with semcache.context(mode="refresh"):
        list(spell("ab"))
        list(spell("ab"))
    assert log.count("begin") == 4
    with semcache.context(mode="exact"):
        assert list(spell("ab")) == ["a", "b"]
    assert log.count("begin") == 4


def test_cached_stream_ends_a_closed_cache_too():
    """A cache that was closed in mid-stream harms no reader."""
    cache = semcache.Cache()
    spell, log = letters(cache)
    items = spell("abc")
    next(items)
    cache.close()
    assert drain(items) == (["b", "c"], 3)
    assert list(spell("abc")) == ["a", "b", "c"]
    assert log.count("begin") == 2


@dataclass
class Step:
    name: str


def test_items_come_back_exactly(cache):
    """Law 9: items of any storable type come back as they were."""

    @semcache.cached(cache)
    def items():
        yield Step("a")
        yield None
        yield (1, 2.5, {"x"})

    assert list(items()) == list(items()) == [Step("a"), None, (1, 2.5, {"x"})]
    assert cache.stats().hits == {"memory": 1}


def test_stream_is_found_on_disk(tmp_path):
    """A stream is stored in every exact tier, and replayed from each."""
    patient = semcache.Timeouts(disk="10s")
    log = []
    for _ in range(2):
        with semcache.Cache("streams", disk=tmp_path / "cache.db", timeouts=patient) as cache:
            spell, _ = letters(cache, log)
            first, second = spell("abc"), spell("abc")
            assert next(second) == next(first) == "a"
            assert drain(first) == drain(second) == (["b", "c"], 3)
            assert drain(spell("abc")) == (["a", "b", "c"], 3)
            stats = cache.stats()
    assert log.count("begin") == 1
    assert stats.hits == {"disk": 1, "memory": 2}


def test_stored_stream_closed_early_is_a_hit(cache, tmp_path):
    """Nobody has to read a hit to its end."""
    spell, log = letters(cache)
    list(spell("abc"))
    items = spell("abc")
    next(items)
    items.close()
    assert spell.cache_info() == (1, 1, 0)
    assert log.count("begin") == 1


def test_stream_begun_on_a_thread_does_not_hold_its_other_calls(cache, flights, pool):
    """A half-read stream is pulled by whoever comes: its first reader may wait for a load that reads it."""
    spell, _ = letters(cache)
    loads = Counter()

    @semcache.cached(cache, version="1")
    def ask():
        loads()
        reading = spell("abc")
        first = next(reading)
        flights.await_followers(2)  # ourselves, of the stream; and the call below, of us
        return first + "".join(reading)

    half = spell("abc")
    next(half)
    leader = pool.submit(ask)
    loads.reach(1)
    assert ask() == leader.result(PATIENCE) == "abc"
    assert loads.count == 1
    half.close()


def test_reader_in_mid_stream_waits_as_long_as_it_takes(pool):
    """Law 6: who has read an item cannot begin anew, so the flight timeout is for the first item alone."""
    release, asking, begun = Event(), Event(), Counter()
    with semcache.Cache(timeouts=semcache.Timeouts(flight="50ms")) as cache:

        @semcache.cached(cache, version="1")
        def items():
            yield "a"
            begun()
            assert release.wait(PATIENCE)
            yield "b"

        @semcache.cached(cache, version="1")
        def clock():
            if begun() == 2:
                assert release.wait(PATIENCE)
            return "late"

        follower = items()
        leader = pool.submit(lambda: list(items()))
        begun.reach(1)
        assert next(follower) == "a"

        def read_on():
            asking.set()
            return list(follower)

        following = pool.submit(read_on)
        assert asking.wait(PATIENCE)
        slow = pool.submit(clock)
        begun.reach(2)
        assert clock() == "late"  # a flight timeout later
        release.set()
        assert leader.result(PATIENCE) == ["a", "b"]
        assert following.result(PATIENCE) == ["b"]
        assert slow.result(PATIENCE) == "late"
