"""The disk tier seen from outside: lives, invalidations, bounds and the index rows that the next start reads."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import threading
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from semcache.errors import ConfigurationError, InvalidationError, TierError
from semcache.model import Entry, Evidence, Facets, Hit, Miss, Request
from semcache.plan import arun, run
from semcache.stores.file import StoreFile
from semcache.testing.clock import ManualClock
from semcache.tiers.disk import DiskTier

NAMESPACE = "shop"
DAY = 86400.0


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def faults():
    return []


@pytest.fixture
def open_tier(tmp_path, clock, faults):
    """Open disk tiers, on one file unless told otherwise; all are closed at the end."""
    opened = []

    def open_one(path=tmp_path / "cache.db", **changes):
        settings = {"namespace": NAMESPACE, "ttl": DAY, "clock": clock}
        settings["on_fault"] = lambda reason, error: faults.append((reason, str(error)))
        opened.append(DiskTier(path, **(settings | changes)))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def request(name, *, text=None, embedder="", **facets):
    scope = b"scope" if text is not None else None
    return Request(name.encode().ljust(16, b"."), scope, text, Facets(NAMESPACE, **facets), embedder=embedder)


def put(tier, asked, value=b"answer", *, vector=None, **fields):
    fields = {"born": tier.position()} | fields
    run(tier.put(asked, Entry(value, **fields), Evidence(vector) if vector is not None else None))


def value_of(tier, asked):
    found = run(tier.get(asked))
    return found.entry.value if isinstance(found, Hit) else None


@contextmanager
def locked(path):
    """Hold the write lock of a file, as another process in a long transaction does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def ask(path, question):
    with closing(sqlite3.connect(path)) as other:
        return other.execute(question).fetchall()


# Values


def test_get_after_put_gives_the_entry(open_tier, clock):
    """A hit carries the bytes that were put, what remains of its life, its age and what its load took."""
    tier, asked = open_tier(), request("a")
    put(tier, asked, b"\x00bytes\xff", born=7, load_seconds=1.5, age=2.0)
    tier.flush()
    clock.advance(10)
    assert run(tier.get(asked)) == Hit(Entry(b"\x00bytes\xff", DAY - 10, False, 7, 12.0, 1.5), "disk", asked.key)


def test_get_of_unknown_key_misses(open_tier):
    """What was never put is a plain miss."""
    assert run(open_tier().get(request("a"))) == Miss()


def test_get_on_a_loop_gives_the_entry(open_tier):
    """Plans are carried out by asyncio as by threads."""
    tier, asked = open_tier(), request("a")

    async def both():
        await arun(tier.put(asked, Entry(b"1", born=tier.position()), None))
        return await arun(tier.get(asked)), await arun(tier.remove("key", asked.key, 0)), await arun(tier.get(asked))

    found, removed, missed = asyncio.run(both())
    assert (found.entry.value, removed, missed) == (b"1", 1, Miss())


def test_entry_put_twice_holds_the_later_value(open_tier):
    """A key has one value: the one put last, waiting or written."""
    tier, asked = open_tier(), request("a")
    put(tier, asked, b"1")
    tier.flush()
    put(tier, asked, b"2")
    assert value_of(tier, asked) == b"2"
    tier.flush()
    assert value_of(tier, asked) == b"2"
    assert tier.stats()["entries"] == 1


class GatedClock(ManualClock):
    """A clock that stops the writer in mid-transaction, where it reads the time, until it is let through."""

    def __init__(self):
        super().__init__()
        self.arrived = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)

    def time(self):
        if threading.current_thread().name == "semcache-writer":
            self.arrived.release()
            assert self.permits.acquire(timeout=60)
        return super().time()

    def let_through(self, times=1):
        self.permits.release(times)


def test_later_value_is_read_while_the_earlier_is_written(open_tier):
    """Who puts a key again while its older value is being written reads the newer one all the time."""
    clock = GatedClock()
    tier, asked = open_tier(clock=clock), request("a")
    put(tier, asked, b"1")
    assert clock.arrived.acquire(timeout=60)
    put(tier, asked, b"2")
    assert value_of(tier, asked) == b"2"
    clock.let_through()
    assert clock.arrived.acquire(timeout=60)  # the first is in the file, the second in mid-transaction
    assert value_of(tier, asked) == b"2"
    clock.let_through(100)
    assert tier.flush()
    assert value_of(tier, asked) == b"2"


def test_entry_that_is_being_written_is_invalidated(open_tier):
    """Law 8: an invalidation of what is in mid-transaction hides it at once, and drops it when it is written."""
    clock = GatedClock()
    tier, asked = open_tier(clock=clock), request("a", function="f")
    put(tier, asked)
    assert clock.arrived.acquire(timeout=60)
    marked = tier.mark("function", "f")
    assert run(tier.get(asked)) == Miss()
    clock.let_through(100)
    assert marked.result()[1] == 1
    assert run(tier.get(asked)) == Miss()


@pytest.mark.parametrize("is_written", [True, False])
def test_answer_of_an_earlier_load_does_not_replace_a_later_one(open_tier, tmp_path, clock, is_written):
    """Of two answers to one request the one stays, while it lives, whose load began later, whichever comes first."""
    tier, asked = open_tier(ttl=100), request("a")
    born = tier.position()
    tier.mark("function", "another").result()
    with nullcontext() if is_written else locked(tmp_path / "cache.db"):
        put(tier, asked, b"later")
        assert not is_written or tier.flush()
        put(tier, asked, b"earlier", born=born)
        assert not is_written or tier.flush()
        assert value_of(tier, asked) == b"later"
    assert tier.flush()
    assert value_of(tier, asked) == b"later"
    clock.advance(100)
    put(tier, asked, b"earlier", born=born)
    assert tier.flush()
    assert value_of(tier, asked) == b"earlier"


def test_stale_answer_does_not_push_a_fresh_one_out_of_the_queue(open_tier, tmp_path):
    """Law 8: an answer that is refused leaves the one that was put before it, waiting, as it is."""
    tier, asked = open_tier(), request("a", function="f")
    born = tier.position()
    tier.mark("function", "f").result()
    with locked(tmp_path / "cache.db"):
        put(tier, asked, b"fresh")
        put(tier, asked, b"stale", born=born)
        assert value_of(tier, asked) == b"fresh"
    assert tier.flush()
    assert value_of(tier, asked) == b"fresh"


def test_reopened_tier_has_all_that_was_closed(open_tier):
    """Closing writes what waits; the next process finds it."""
    first = open_tier()
    for n in range(100):
        put(first, request(str(n)), b"%d" % n)
    first.close()
    second = open_tier()
    assert [value_of(second, request(str(n))) for n in range(100)] == [b"%d" % n for n in range(100)]


def test_unwritten_entry_is_found(open_tier, tmp_path):
    """What waits to be written, here because another process holds the file, is found by who put it."""
    tier, asked = open_tier(), request("a")
    with locked(tmp_path / "cache.db"):
        put(tier, asked, b"1")
        assert value_of(tier, asked) == b"1"
        assert tier.peek(asked.key) == run(tier.get(asked))
        assert not tier.flush(timeout=0)
    assert tier.flush()
    assert ask(tmp_path / "cache.db", "SELECT value FROM entries") == [(b"1",)]


def test_put_beyond_the_queue_is_refused(open_tier, tmp_path, monkeypatch):
    """What waits is bounded in number: beyond, the caller is told, and what was taken stays."""
    monkeypatch.setattr("semcache.stores.backlog.MAX_ENTRIES", 10)
    tier = open_tier()
    with locked(tmp_path / "cache.db"):
        with pytest.raises(TierError) as refused:
            [put(tier, request(str(n))) for n in range(100)]
        assert refused.value.reason == "full"
        waiting = tier.stats()["pending"]
        assert 10 <= waiting <= 20  # one queue full, and one being written
        assert value_of(tier, request("3")) == b"answer"
    assert tier.flush()
    assert tier.stats()["entries"] >= waiting


def test_put_beyond_the_queued_bytes_is_refused(open_tier, tmp_path, monkeypatch):
    """What waits is bounded in bytes too."""
    monkeypatch.setattr("semcache.stores.backlog.MAX_BYTES", 100_000)
    tier = open_tier()
    with locked(tmp_path / "cache.db"):
        put(tier, request("small"), b"x" * 1000)
        with pytest.raises(TierError, match="wait to be written"):
            put(tier, request("large"), b"x" * 100_000)


def test_closed_tier_answers_closed(open_tier):
    """A closed tier answers with TierError("closed"), to readers and writers; closing again does nothing."""
    tier, asked = open_tier(), request("a")
    put(tier, asked)
    tier.close()
    tier.close()
    calls = (
        lambda: run(tier.get(asked)),
        lambda: run(tier.put(asked, Entry(b"1"), None)),
        lambda: tier.mark("key", asked.key),
        tier.position,
        lambda: next(tier.rows("e")),
    )
    for call in calls:
        with pytest.raises(TierError) as told:
            call()
        assert told.value.reason == "closed"


# Lives


def test_entry_expires_after_the_tiers_ttl(open_tier, clock):
    """An entry without a life of its own lives as long as the tier says, waiting or written."""
    tier, asked = open_tier(ttl=100), request("a")
    put(tier, asked)
    clock.advance(99)
    assert value_of(tier, asked) == b"answer"
    tier.flush()
    assert run(tier.get(asked)).entry.life == pytest.approx(1)
    clock.advance(1)
    assert run(tier.get(asked)) == Miss()


@pytest.mark.parametrize(("life", "remains"), [(30, 30), (500, 100), (math.inf, 100)])
def test_entry_from_another_tier_is_not_lengthened(open_tier, life, remains):
    """Law 5: an entry that comes with a life keeps the smaller of it and the tier's ttl."""
    tier, asked = open_tier(ttl=100), request("a")
    put(tier, asked, life=life)
    assert run(tier.get(asked)).entry.life == pytest.approx(remains)


@pytest.mark.parametrize("life", [30, 500])
def test_own_ttl_sets_the_life_in_the_store(open_tier, clock, life):
    """Law 5: an entry's own ttl sets its life in the store, be it shorter or longer than the tier's."""
    tier, asked = open_tier(ttl=100), request("a")
    put(tier, asked, life=life, own_ttl=True)
    tier.flush()
    clock.advance(life - 1)
    found = run(tier.get(asked)).entry
    assert (found.life, found.own_ttl) == (pytest.approx(1), True)
    clock.advance(1)
    assert run(tier.get(asked)) == Miss()


@pytest.mark.parametrize(("drawn", "remains"), [(0.0, 100), (0.5, 95), (1.0, 90)])
def test_jitter_only_shortens(open_tier, drawn, remains):
    """Jitter takes up to its share off a life, and never adds."""
    tier, asked = open_tier(ttl=100, jitter=0.1, random=lambda: drawn), request("a")
    put(tier, asked)
    assert run(tier.get(asked)).entry.life == pytest.approx(remains)


def test_entry_without_life_is_not_stored(open_tier):
    """What has expired on its way is not written."""
    tier, asked = open_tier(), request("a")
    put(tier, asked, life=0.0)
    assert run(tier.get(asked)) == Miss()
    assert tier.flush()
    assert tier.stats()["entries"] == 0


def test_clock_that_goes_back_never_lengthens_a_life(open_tier, clock):
    """An entry from the future is a miss that says why; a small correction of the clock loses nothing."""
    tier, asked = open_tier(ttl=100), request("a")
    put(tier, asked)
    tier.flush()
    written = clock.time()
    clock.set_time(written - 0.9)
    assert value_of(tier, asked) == b"answer"
    clock.set_time(written - 50)
    assert "clock" in run(tier.get(asked)).reason
    put(tier, asked, b"again")
    tier.flush()
    assert run(tier.get(asked)).entry.life == pytest.approx(100)


def test_expired_entries_leave_the_file(open_tier, clock, tmp_path):
    """Expired entries are swept, with index rows and facets: a little with each write, more when a file is opened."""
    tier = open_tier(ttl=100)
    for n in range(200):
        put(tier, request(str(n), text="t", tenant=str(n)))
    tier.flush()
    clock.advance(101)
    put(tier, request("new"))
    tier.flush()
    assert 1 < tier.stats()["entries"] < 201
    assert tier.stats()["expired"] == 201 - tier.stats()["entries"]
    tier.close()
    assert open_tier().stats()["entries"] == 1
    assert ask(tmp_path / "cache.db", "SELECT (SELECT count(*) FROM log), (SELECT count(*) FROM facets)") == [(0, 1)]


# Invalidation


@pytest.mark.parametrize("facet", ["key", "namespace", "function", "version", "tenant", "model"])
@pytest.mark.parametrize("is_written", [True, False])
def test_mark_drops_what_has_the_facet(open_tier, tmp_path, facet, is_written):
    """An invalidation by any facet drops the entries that have it, written or waiting, and no others."""
    tier = open_tier()
    facets = {"function": "f", "version": "1", "tenant": "acme", "model": "m"}
    meant, other = request("meant", **facets), request("other", **facets)
    if facet in facets:
        setattr(other.facets, facet, "another")
    value = meant.key if facet == "key" else getattr(meant.facets, facet)
    asked = [meant] if facet == "namespace" else [meant, other]
    if is_written:
        for each in asked:
            put(tier, each)
        tier.flush()
        _, removed = tier.mark(facet, value).result()
    else:
        with locked(tmp_path / "cache.db"):
            for each in asked:
                put(tier, each)
            marked = tier.mark(facet, value)
            assert run(tier.get(meant)) == Miss()
        _, removed = marked.result()
    assert removed == 1
    assert run(tier.get(meant)) == Miss()
    if facet != "namespace":
        assert value_of(tier, other) == b"answer"
    tier.close()
    assert value_of(open_tier(), meant) is None


def test_mark_counts_an_entry_that_waits_and_stands_once(open_tier, tmp_path):
    """How many entries went is how many keys went, though one was written before and waits again."""
    tier, asked = open_tier(), request("a")
    put(tier, asked)
    tier.flush()
    with locked(tmp_path / "cache.db"):
        put(tier, asked, b"again")
        put(tier, request("b"))
        marked = tier.mark("namespace", NAMESPACE)
    assert marked.result()[1] == 2


def test_mark_of_another_namespace_drops_nothing_here(open_tier):
    """Namespaces share a file, never an invalidation, but for one that names the other namespace itself."""
    ours, theirs, asked = open_tier(), open_tier(namespace="billing"), request("a", function="f")
    put(ours, asked)
    ours.flush()
    assert theirs.mark("function", "f").result()[1] == 0
    assert value_of(ours, asked) == b"answer"
    assert theirs.mark("namespace", NAMESPACE).result()[1] == 1
    assert run(ours.get(asked)) == Miss()
    put(ours, asked, born=0)
    ours.flush()
    assert run(ours.get(asked)) == Miss()


def test_entry_born_before_a_mark_is_refused(open_tier):
    """Law 8: what was invalidated while it was loaded is a miss, at once and later; what is loaded after is kept."""
    tier, asked = open_tier(), request("a", function="f")
    born = tier.position()
    position, _ = tier.mark("function", "f").result()
    assert position > born
    put(tier, asked, b"stale", born=born)
    assert run(tier.get(asked)) == Miss()
    assert tier.flush()
    assert run(tier.get(asked)) == Miss()
    assert tier.stats()["refused"] == 1
    put(tier, asked, b"fresh", born=tier.position())
    assert value_of(tier, asked) == b"fresh"
    tier.flush()
    assert value_of(tier, asked) == b"fresh"


def test_entry_born_before_a_mark_on_something_else_is_kept(open_tier):
    """Law 8: a mark means the entries that have its facet value, no others."""
    tier, asked = open_tier(), request("a", function="f", tenant="acme")
    born = tier.position()
    for facet, value in (("function", "g"), ("key", request("b").key), ("version", "f"), ("tenant", "other")):
        tier.mark(facet, value).result()
    put(tier, asked, born=born)
    tier.flush()
    assert value_of(tier, asked) == b"answer"


def test_entry_put_while_the_mark_is_made_is_refused(open_tier, tmp_path):
    """Law 8: it does not matter whether the stale entry or the invalidation comes to the writer first."""
    tier, asked = open_tier(), request("a", function="f")
    with locked(tmp_path / "cache.db"):
        marked = tier.mark("function", "f")
        put(tier, asked, b"stale")
    marked.result()
    assert run(tier.get(asked)) == Miss()
    tier.flush()
    assert run(tier.get(asked)) == Miss()


def test_mark_of_another_tier_on_the_file_is_kept(open_tier):
    """Law 8: an entry born before another process's invalidation is refused, and one that stands is gone."""
    here, there = open_tier(), open_tier()
    standing, loading = request("standing", function="f"), request("loading", function="f")
    put(here, standing)
    here.flush()
    born = here.position()
    there.mark("function", "f").result()
    assert run(here.get(standing)) == Miss()
    put(here, loading, b"stale", born=born)
    here.flush()
    assert run(here.get(loading)) == Miss()
    assert run(there.get(loading)) == Miss()


def test_mark_outlives_a_restart(open_tier):
    """Law 8: an invalidation holds for loads that were begun before it, though everything was closed between."""
    first, asked = open_tier(), request("a", function="f")
    born = first.position()
    first.mark("function", "f").result()
    first.close()
    second = open_tier()
    put(second, asked, b"stale", born=born)
    second.flush()
    assert run(second.get(asked)) == Miss()


def test_stale_entry_is_not_read_while_it_waits(open_tier, tmp_path):
    """Law 8: what was invalidated before this process opened the file is not even read from the queue."""
    first, asked = open_tier(), request("a", function="f")
    born = first.position()
    first.mark("function", "f").result()
    first.close()
    second = open_tier()
    with locked(tmp_path / "cache.db"):
        put(second, asked, b"stale", born=born)
        assert run(second.get(asked)) == Miss()


def test_old_marks_are_remembered_by_a_floor(open_tier, tmp_path, monkeypatch):
    """Law 8: past the marks that are remembered one by one, all that was born before them is held back."""
    monkeypatch.setattr("semcache.stores.backlog.MAX_MARKS", 3)
    tier, asked = open_tier(), request("a", function="f")
    born = tier.position()
    for name in ("f", "g", "h", "i", "j"):
        tier.mark("function", name).result()
    with locked(tmp_path / "cache.db"):
        put(tier, asked, b"stale", born=born)
        assert run(tier.get(asked)) == Miss()
        put(tier, asked, b"fresh")
        assert value_of(tier, asked) == b"fresh"


def test_marks_are_kept_as_long_as_the_longest_life(open_tier, clock, tmp_path):
    """Law 8: marks outlive every entry that could be older than they; then they are dropped, with their log rows."""
    tier = open_tier(ttl=100)
    put(tier, request("long"), life=7200.0, own_ttl=True)
    for n in range(50):
        tier.mark("function", f"f{n}").result()
    clock.advance(7100)
    put(tier, request("a"))
    tier.flush()
    assert ask(tmp_path / "cache.db", "SELECT count(*) FROM marks") == [(50,)]
    clock.advance(101)
    put(tier, request("a"))
    tier.flush()
    assert ask(tmp_path / "cache.db", "SELECT (SELECT count(*) FROM marks), (SELECT count(*) FROM log)") == [(0, 0)]


def test_position_never_goes_back(open_tier, clock):
    """Law 8: positions grow with each invalidation and indexed entry, though all rows are dropped and files closed."""
    positions = []
    for n in range(3):
        tier = open_tier(ttl=10)
        positions.append(tier.position())
        put(tier, request(str(n), text="t"))
        tier.flush()
        positions.append(tier.position())
        positions.append(tier.mark("namespace", NAMESPACE).result()[0])
        assert tier.position() == positions[-1]
        clock.advance(DAY)
        tier.close()
    assert positions == sorted(positions)
    assert len(set(positions)) == 7  # each opening finds the position where the last one left it


def test_mark_that_cannot_be_durable_raises(open_tier, tmp_path):
    """Law 8: an invalidation is durable when it returns, or it raises."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE theirs (x)")
    tier = open_tier(tmp_path / "other.db")
    with pytest.raises(InvalidationError, match="try again"):
        tier.mark("function", "f").result()


def test_mark_that_cannot_be_written_is_no_others_failure(open_tier, tmp_path):
    """Law 8: of invalidations made together each has its own outcome."""
    tier, asked = open_tier(), request("a", function="f")
    put(tier, asked)
    tier.flush()
    with locked(tmp_path / "cache.db"):
        bad, good = tier.mark("tenant", "half a surrogate \ud800"), tier.mark("function", "f")
    with pytest.raises(InvalidationError):
        bad.result()
    assert good.result()[1] == 1
    assert run(tier.get(asked)) == Miss()


def test_mark_is_synced_before_it_is_told(open_tier, monkeypatch):
    """Law 8: an invalidation is committed with an fsync; what is only cached is not."""
    statements = []
    connect = StoreFile.connect_writer

    def connect_traced(file):
        connection = connect(file)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(StoreFile, "connect_writer", connect_traced)
    tier = open_tier()
    for name in ("a", "b"):
        put(tier, request(name))
        tier.flush()
        tier.mark("key", request(name).key).result()
    levels = [each.split("= ")[1] for each in statements if each.startswith("PRAGMA synchronous")]
    assert levels == ["NORMAL", "NORMAL", "FULL", "NORMAL", "FULL"]


def test_mark_of_unknown_facet_is_refused(open_tier):
    """A facet that does not exist is an error that names those that do."""
    with pytest.raises(ConfigurationError, match="function"):
        open_tier().mark("colour", "red")


# Bounds


def test_file_stays_within_its_bound(open_tier, tmp_path):
    """The file keeps to its bound: an eighth more at most, for the transaction under way, whatever passes through."""
    bound = 512 * 1024
    tier = open_tier(max_bytes=bound)
    for n in range(2000):
        put(tier, request(str(n), text="some text " * (n % 20)), os.urandom(100 + 37 * (n % 97)))
        if n % 50 == 0:
            tier.flush()
            assert tier.stats()["bytes"] <= bound
    tier.flush()
    stats = tier.stats()
    tier.close()
    assert (tmp_path / "cache.db").stat().st_size <= bound * 9 / 8 + 65536
    assert stats["entries"] + stats["evicted"] == 2000
    assert bound / 2 < stats["bytes"] <= bound


def test_burst_stays_within_the_bound(open_tier, tmp_path):
    """What was queued while the file was held is written in portions, so that the bound holds for bursts too."""
    bound = 512 * 1024
    tier = open_tier(max_bytes=bound)
    with locked(tmp_path / "cache.db"):
        for n in range(1000):
            put(tier, request(str(n)), os.urandom(3000))
    assert tier.flush()
    assert (tmp_path / "cache.db").stat().st_size <= bound * 9 / 8 + 65536


def test_smaller_bound_shrinks_the_file(open_tier, tmp_path):
    """A file opened with a smaller bound is evicted down to it, and gives its pages back."""
    tier = open_tier()
    for n in range(500):
        put(tier, request(str(n)), os.urandom(4000))
    tier.close()
    before = (tmp_path / "cache.db").stat().st_size
    tier = open_tier(max_bytes=300_000)
    for n in range(10):
        put(tier, request(str(n)), b"1")
        tier.flush()
    tier.close()
    assert before > 2_000_000
    assert (tmp_path / "cache.db").stat().st_size < 400_000


def test_eviction_takes_the_least_recently_read(open_tier, clock):
    """Under pressure the entries go that nobody has read for longest, not the oldest."""
    tier = open_tier(max_bytes=512 * 1024)
    names = [str(n) for n in range(60)]
    for name in names:
        put(tier, request(name), os.urandom(6000))
        clock.advance(1)
    tier.flush()
    assert tier.stats()["evicted"] == 0
    clock.advance(120)
    for name in names[:10]:
        assert value_of(tier, request(name)) is not None
    for n in range(40):
        clock.advance(1)
        put(tier, request(f"new{n}"), os.urandom(6000))
        tier.flush()
    assert all(value_of(tier, request(name)) for name in names[:10])
    assert not any(value_of(tier, request(name)) for name in names[10:20])


def test_reading_writes_nothing(open_tier, clock, tmp_path):
    """A load that only reads does not write; when the entries were read is kept with the next write."""
    tier = open_tier()
    for n in range(20):
        put(tier, request(str(n)))
    tier.flush()
    clock.advance(3600)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as other:
        (before,) = other.execute("PRAGMA data_version").fetchone()
        for _ in range(3):
            assert all(value_of(tier, request(str(n))) for n in range(20))
        assert other.execute("PRAGMA data_version").fetchone() == (before,)
    put(tier, request("new"))
    tier.flush()
    assert ask(tmp_path / "cache.db", "SELECT min(touched) FROM entries") == [(clock.time(),)]


def test_opening_and_closing_leaks_nothing(open_tier, tmp_path):
    """Tiers that were closed keep no file descriptor and no thread."""

    def held():
        return open_files(), threading.active_count()

    def use_one():
        tier = open_tier(tmp_path / "cache.db")
        put(tier, request("a", text="t"))
        assert value_of(tier, request("a")) == b"answer"
        tier.mark("function", "f").result()
        tier.close()

    use_one()
    before = held()
    for _ in range(200):
        use_one()
    assert held() == before


def test_threads_that_ended_keep_no_connection(open_tier):
    """As many connections stay open as were ever used at once, not one for each thread that ever read."""
    tier, asked = open_tier(), request("a")
    put(tier, asked)
    tier.flush()
    assert value_of(tier, asked) == b"answer"
    before, found = open_files(), []
    for _ in range(50):
        thread = threading.Thread(target=lambda: found.append(value_of(tier, asked)))
        thread.start()
        thread.join()
    assert found == [b"answer"] * 50
    assert open_files() == before


def test_many_threads_read_what_they_wrote(open_tier):
    """Threads that put, read and invalidate at once each find their own values, and no other's."""
    tier, errors = open_tier(), []

    def work(who):
        for n in range(100):
            asked = request(f"{who}.{n % 7}", function=f"f{who}")
            put(tier, asked, b"%d %d" % (who, n))
            if value_of(tier, asked) != b"%d %d" % (who, n):
                errors.append((who, n))
            if n % 25 == 0:
                tier.mark("function", f"f{who}").result()
                if value_of(tier, asked) is not None:
                    errors.append((who, n, "invalidated"))

    threads = [threading.Thread(target=work, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tier.flush()


# Index rows


@pytest.mark.semantic
def test_rows_after_reopening_give_the_vectors_back(open_tier):
    """The next start reads key, scope, text, vector and remaining life of every live row, in order of position."""
    import numpy as np

    first = open_tier(ttl=100)
    vectors = np.random.default_rng(0).standard_normal((2500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for n, vector in enumerate(vectors):
        put(first, request(str(n), text=f"text {n}", embedder="e"), vector=vector)
    first.close()
    rows = list(open_tier().rows("e"))
    assert [row.key for row in rows] == [request(str(n)).key for n in range(2500)]
    assert [(row.scope, row.text) for row in rows] == [(b"scope", f"text {n}") for n in range(2500)]
    assert {row.remaining for row in rows} == {100.0}
    assert {row.vector.dtype for row in rows} == {np.dtype("float32")}
    np.testing.assert_allclose(np.stack([row.vector for row in rows]), vectors, atol=5e-4)


def test_rows_are_those_that_live(open_tier, clock):
    """A row is given for this namespace and embedder only, and goes when its entry expires, goes or is replaced."""
    tier, other = open_tier(ttl=100), open_tier(namespace="billing")
    put(tier, request("expires", text="t", embedder="e"), life=5.0)
    put(tier, request("marked", text="t", embedder="e", function="f"))
    put(tier, request("replaced", text="old", embedder="e"))
    put(tier, request("exact"))
    put(tier, request("foreign", text="t", embedder="another"))
    put(other, request("theirs", text="t", embedder="e"))
    tier.flush()
    other.flush()
    assert [row.text for row in tier.rows("e")] == ["t", "t", "old"]
    put(tier, request("replaced", text="new", embedder="e"))
    tier.mark("function", "f").result()
    tier.flush()
    clock.advance(5)
    assert list(tier.rows("e")) == [(request("replaced").key, b"scope", "new", None, 95.0)]
    assert [row.key for row in tier.rows("another")] == [request("foreign").key]
    assert [row.key for row in other.rows("e")] == [request("theirs").key]


def test_row_lives_as_long_as_the_index_says(open_tier, clock):
    """Law 5: a row is given for the index's ttl, though the answer is kept longer, and never longer than the answer."""
    tier = open_tier(ttl=1000, index_ttl=100)
    put(tier, request("a", text="t", embedder="e"))
    put(tier, request("b", text="t", embedder="e"), life=50.0)
    put(tier, request("c", text="t", embedder="e"), life=5000.0, own_ttl=True)
    tier.flush()
    clock.advance(10)
    assert [row.remaining for row in tier.rows("e")] == [90.0, 40.0, 90.0]
    clock.advance(90)
    assert list(tier.rows("e")) == []
    assert value_of(tier, request("a")) == b"answer"


@pytest.mark.semantic
@pytest.mark.parametrize("is_written", [True, False])
def test_attached_vector_is_kept(open_tier, tmp_path, is_written):
    """A vector that comes after its row, written or waiting, is found at the next start."""
    import numpy as np

    tier, asked = open_tier(), request("a", text="t", embedder="e")
    vector = np.array([0.6, 0.8], np.float32)
    if is_written:
        put(tier, asked)
        tier.flush()
        tier.attach(asked.key, vector, "e")
    else:
        with locked(tmp_path / "cache.db"):
            put(tier, asked)
            tier.attach(asked.key, vector, "e")
    assert tier.flush()
    (row,) = open_tier().rows("e")
    np.testing.assert_allclose(row.vector, vector, atol=5e-4)


@pytest.mark.semantic
def test_vector_of_another_embedder_is_not_attached(open_tier):
    """Law 11: where another process has written the key since, with another embedder, its row is left alone."""
    import numpy as np

    here, there = open_tier(), open_tier()
    put(here, request("a", text="t", embedder="e"))
    here.flush()
    put(there, request("a", text="t", embedder="another"))
    there.flush()
    here.attach(request("a").key, np.array([0.6, 0.8], np.float32), "e")
    here.flush()
    assert [row.vector for row in here.rows("another")] == [None]


@pytest.mark.semantic
def test_vector_of_a_row_that_is_gone_is_dropped(open_tier, faults):
    """A vector that comes too late is no error."""
    import numpy as np

    tier = open_tier()
    tier.attach(request("never").key, np.array([0.6, 0.8], np.float32))
    assert tier.flush()
    assert (faults, list(tier.rows("e"))) == ([], [])


# Wrong arguments


@pytest.mark.parametrize(
    "changes",
    [{"ttl": 0}, {"ttl": -1}, {"jitter": 1.0}, {"jitter": -0.1}, {"timeout": 0}, {"max_bytes": 1000}],
)
def test_wrong_arguments_are_refused(open_tier, changes):
    """What can never work is an error at construction."""
    with pytest.raises(ConfigurationError):
        open_tier(**changes)


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b", "."])
def test_path_that_is_no_file_is_refused(open_tier, path):
    """A path that cannot be a file's is an error that says what to give."""
    with pytest.raises(ConfigurationError, match="path of a file"):
        open_tier(path)


# A dictionary beside it

_NAMES = ["a", "b", "c", "d"]
_FUNCTIONS = ["f", "g"]


class DiskMachine(RuleBasedStateMachine):
    """The tier against a dictionary: put, read, expire, invalidate, write, reopen, in any order."""

    births = Bundle("births")

    @initialize(ttl=st.sampled_from([10.0, 1000.0]))
    def open_first(self, ttl):
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.ttl = ttl
        self.clock = ManualClock()
        self.kept = {}
        self.marks = {}
        self.faults = []
        self.open()

    def open(self):
        self.tier = DiskTier(
            Path(self.directory.name, "cache.db"), namespace=NAMESPACE, ttl=self.ttl, clock=self.clock,
            on_fault=lambda *fault: self.faults.append(fault),
        )  # fmt: skip

    def teardown(self):
        if getattr(self, "tier", None) is not None:
            self.tier.close()
            self.directory.cleanup()

    @rule(target=births)
    def begin_load(self):
        return self.tier.position()

    @rule(
        name=st.sampled_from(_NAMES), function=st.sampled_from(_FUNCTIONS), value=st.binary(max_size=6000),
        life=st.sampled_from([math.inf, 5.0, 5000.0]), own_ttl=st.booleans(), born=births,
    )  # fmt: skip
    def put(self, name, function, value, life, own_ttl, born):
        own_ttl = own_ttl and life != math.inf
        asked = request(name, text=name, embedder="e", function=function)
        put(self.tier, asked, value, life=life, own_ttl=own_ttl, born=born)
        if born < max(self.marks.values(), default=0):
            assert self.tier.flush()  # such an entry cannot be read before the file has decided
        is_marked = any(born < self.marks.get(pair, 0) for pair in (("key", asked.key), ("function", function)))
        if not is_marked and (name not in self.expected() or born >= self.kept[name][3]):
            self.kept[name] = value, self.clock.time() + (life if own_ttl else min(life, self.ttl)), function, born

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.0, 600.0]))
    def advance(self, seconds):
        self.clock.advance(seconds)

    @rule(name=st.sampled_from(_NAMES))
    def mark_key(self, name):
        key = request(name).key
        self.marks["key", key], removed = self.tier.mark("key", key).result()
        assert removed >= (name in self.expected())
        self.kept.pop(name, None)

    @rule(function=st.sampled_from(_FUNCTIONS))
    def mark_function(self, function):
        self.marks["function", function], removed = self.tier.mark("function", function).result()
        assert removed >= sum(kept[2] == function for kept in self.expected().values())
        self.kept = {name: kept for name, kept in self.kept.items() if kept[2] != function}

    @rule()
    def flush(self):
        assert self.tier.flush()

    @rule()
    def reopen(self):
        self.tier.close()
        self.open()

    @rule()
    def compare_rows(self):
        assert self.tier.flush()
        rows = {row.text: round(row.remaining, 3) for row in self.tier.rows("e")}
        assert rows == {name: round(kept[1] - self.clock.time(), 3) for name, kept in self.expected().items()}

    def expected(self):
        return {name: kept for name, kept in self.kept.items() if kept[1] > self.clock.time()}

    @precondition(lambda self: getattr(self, "tier", None) is not None)
    @invariant()
    def finds_what_a_dictionary_would(self):
        assert self.faults == []
        expected = self.expected()
        for name in _NAMES:
            found = run(self.tier.get(request(name)))
            if name in expected:
                value, expires, *_ = expected[name]
                assert isinstance(found, Hit)
                assert found.entry.value == value
                assert found.entry.life == pytest.approx(expires - self.clock.time(), abs=1e-3)
            else:
                assert found == Miss()


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
