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
from semcache.model import Entry, Evidence, Facets, Hit, Lives, Miss, Request, Usage
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


def mark(tier, facet, value):
    """Begin to invalidate: the future that the plan waits for."""
    return next(tier.mark([(facet, value)])).future


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
    marked = mark(tier, "function", "f")
    assert run(tier.get(asked)) == Miss()
    clock.let_through(100)
    assert marked.result()[1] == 1
    assert run(tier.get(asked)) == Miss()


@pytest.mark.parametrize("is_written", [True, False])
def test_answer_of_an_earlier_load_does_not_replace_a_later_one(open_tier, tmp_path, clock, is_written):
    """Of two answers to one request the one stays, while it lives, whose load began later, whichever comes first."""
    tier, asked = open_tier(ttl=100), request("a")
    born = tier.position()
    mark(tier, "function", "another").result()
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
    mark(tier, "function", "f").result()
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
        lambda: mark(tier, "key", asked.key),
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


def peeked(tier, name, grace=0.0):
    """The life of an entry as it is served within a grace, None for a miss."""
    found = tier.peek(request(name).key, grace)
    return found.entry.life if isinstance(found, Hit) else None


@pytest.mark.parametrize("is_written", [True, False])
def test_stale_entry_is_served_within_its_grace(open_tier, tmp_path, clock, is_written):
    """Past its life an entry is a hit with no life left, for the smaller of its own grace and the one asked for."""
    tier = open_tier(ttl=100)
    with nullcontext() if is_written else locked(tmp_path / "cache.db"):
        put(tier, request("a"), grace=50.0)
        assert not is_written or tier.flush()
        clock.advance(120)
        assert peeked(tier, "a") is None
        assert peeked(tier, "a", 10.0) is None
        assert peeked(tier, "a", 30.0) == -20
        clock.advance(29)
        assert peeked(tier, "a", 1000.0) == -49
        clock.advance(1)
        assert peeked(tier, "a", 1000.0) is None


def test_get_asks_for_the_grace_of_the_request(open_tier, clock):
    """What a request says of stale answers holds for the store."""
    tier, asked = open_tier(ttl=100), request("a")
    put(tier, asked, grace=50.0)
    clock.advance(100)
    assert run(tier.get(asked)) == Miss()
    asked.lives = Lives(stale_if_error=20.0)
    found = run(tier.get(asked)).entry
    assert (found.life, found.grace) == (0.0, 50.0)


def test_stale_entry_stays_in_the_file_for_its_grace(open_tier, clock):
    """Expiry sweeps wait for the end of the grace."""
    tier = open_tier(ttl=100)
    put(tier, request("a"), grace=50.0)
    tier.flush()
    for seconds, entries in ((149, 2), (1, 1)):
        clock.advance(seconds)
        put(tier, request("another"))
        tier.flush()
        assert tier.stats()["entries"] == entries


def test_fresh_answer_replaces_a_stale_one_of_a_later_birth(open_tier, clock):
    """A stale answer is in nobody's way, whatever its birth."""
    tier, asked = open_tier(ttl=100), request("a")
    put(tier, asked, b"stale", grace=1000.0, born=2**60)
    tier.flush()
    clock.advance(100)
    put(tier, asked, b"fresh")
    tier.flush()
    assert value_of(tier, asked) == b"fresh"


def test_limit_ends_an_entry_with_its_grace(open_tier, clock):
    """At its limit an entry is gone, be it fresh or stale."""
    tier = open_tier(ttl=100)
    put(tier, request("fresh"), limit=30.0, grace=1000.0)
    put(tier, request("stale"), limit=120.0, grace=1000.0)
    tier.flush()
    assert peeked(tier, "fresh") == 30
    clock.advance(30)
    assert peeked(tier, "fresh", 1000.0) is None
    clock.advance(89)
    assert peeked(tier, "stale", 1000.0) == -19
    clock.advance(1)
    assert peeked(tier, "stale", 1000.0) is None


@pytest.mark.parametrize("is_written", [True, False])
def test_sliding_entry_lives_anew_with_each_hit(open_tier, tmp_path, clock, is_written):
    """Law 5: a hit gives a sliding entry its life anew, at once for who read it, and never past its limit."""
    tier = open_tier(ttl=100)
    with nullcontext() if is_written else locked(tmp_path / "cache.db"):
        put(tier, request("a"), slide=100.0, limit=350.0)
        assert not is_written or tier.flush()
        for remaining in (100, 100, 80):
            clock.advance(90)
            assert peeked(tier, "a") == pytest.approx(remaining)
        clock.advance(79)
        assert peeked(tier, "a") == pytest.approx(1)
        clock.advance(1)
        assert peeked(tier, "a", 1000.0) is None


def test_sliding_entry_that_nobody_reads_expires(open_tier, clock):
    """Law 5: without a hit there is no other life; a stale hit gives none."""
    tier = open_tier(ttl=100)
    put(tier, request("a"), slide=100.0, grace=50.0)
    tier.flush()
    clock.advance(101)
    assert peeked(tier, "a", 50.0) == -1
    assert peeked(tier, "a", 50.0) == -1
    assert peeked(tier, "a") is None


def test_slid_life_reaches_other_processes_and_the_next_start(open_tier, clock):
    """What a hit gave is written behind the caller: others see it, sweeps spare it, and a restart keeps it."""
    here, there = open_tier(ttl=100), open_tier(ttl=100)
    put(here, request("a"), slide=100.0, grace=10.0)
    here.flush()
    for _ in range(3):
        clock.advance(90)
        assert peeked(here, "a") == pytest.approx(100)
        here.flush()
        put(there, request("another"))
        there.flush()
    clock.advance(5)
    assert peeked(here, "a") == pytest.approx(100)  # too little to be written for
    here.close()
    clock.advance(99)
    assert peeked(there, "a") == pytest.approx(100)
    there.flush()
    clock.advance(105)
    assert peeked(open_tier(), "a", 10.0) == pytest.approx(-5)


def test_slid_life_is_not_the_next_answers(open_tier, tmp_path, clock):
    """Law 5: a hit on an answer that was replaced before the hit was written lengthens no other life."""
    tier, other = open_tier(ttl=100), open_tier(ttl=100)
    put(tier, request("a"), slide=1000.0)
    tier.flush()
    clock.advance(10)
    with locked(tmp_path / "cache.db"):
        assert peeked(tier, "a") == 1000
    put(other, request("a"), b"next")
    other.flush()
    tier.flush()
    assert peeked(tier, "a") == 100
    assert peeked(other, "a") == 100


def test_sliding_row_lives_as_long_as_its_entry_may(open_tier, clock):
    """The index row of a sliding entry slides along, within the index's own ttl and the entry's limit."""
    tier = open_tier(ttl=100, index_ttl=1000)
    put(tier, request("a", text="t", embedder="e"), slide=100.0)
    put(tier, request("b", text="t", embedder="e"), slide=100.0, limit=500.0)
    tier.flush()
    assert [row.remaining for row in tier.rows("e")] == [1000.0, 500.0]


def test_entry_tells_how_it_is_kept_and_what_it_took(open_tier):
    """A hit carries grace, slide, limit and usage, from the queue, from the file and after a restart."""
    tier, asked = open_tier(), request("a")
    put(tier, asked, grace=5.0, slide=10.0, limit=700.0, usage=Usage(120, 30, 0.004))
    for _ in range(3):
        found = run(tier.get(asked)).entry
        assert (found.grace, found.slide, found.limit, found.is_pinned) == (5.0, 10.0, 700.0, False)
        assert found.usage == Usage(120, 30, 0.004)
        assert found.facets is None
        tier.close()
        tier = open_tier()


# Pinned entries


def pin(tier, asked, value=b"curated", **fields):
    put(tier, asked, value, is_pinned=True, **fields)


def test_pinned_entry_never_expires(open_tier, clock):
    """A pinned entry has no expiry, nor has its index row, whatever ttl, jitter and limit say; a restart keeps it."""
    tier, asked = open_tier(ttl=100, jitter=0.5, index_ttl=10), request("a", text="t", embedder="e")
    pin(tier, asked, life=5.0, own_ttl=True, limit=10.0, grace=5.0, slide=3.0)
    assert run(tier.get(asked)).entry.life == math.inf
    tier.close()
    clock.advance(10_000 * DAY)
    tier = open_tier()
    put(tier, request("another"))
    tier.flush()
    found = run(tier.get(asked)).entry
    assert (found.value, found.life, found.limit, found.is_pinned) == (b"curated", math.inf, math.inf, True)
    assert [row.remaining for row in tier.rows("e")] == [math.inf]


def test_pinned_entry_is_not_evicted(open_tier, clock):
    """Under pressure everything else goes."""
    tier = open_tier(max_bytes=512 * 1024)
    for n in range(20):
        pin(tier, request(f"pinned{n}"), os.urandom(6000))
    tier.flush()
    for n in range(200):
        clock.advance(61)
        put(tier, request(str(n)), os.urandom(6000))
        tier.flush()
    assert tier.stats()["evicted"] > 100
    assert tier.stats()["bytes"] <= 512 * 1024
    assert all(value_of(tier, request(f"pinned{n}")) for n in range(20))


def test_pinned_entry_gives_way_to_pinned_ones_alone(open_tier, tmp_path):
    """What is loaded does not take the place of what was curated, until that is invalidated."""
    tier, asked = open_tier(), request("a")
    with locked(tmp_path / "cache.db"):
        pin(tier, asked, born=1)
        put(tier, asked, b"loaded")
        assert value_of(tier, asked) == b"curated"
    tier.flush()
    put(tier, asked, b"loaded")
    tier.flush()
    assert value_of(tier, asked) == b"curated"
    pin(tier, asked, b"again")
    tier.flush()
    assert value_of(tier, asked) == b"again"
    assert mark(tier, "key", asked.key).result()[1] == 1
    put(tier, asked, b"loaded")
    tier.flush()
    assert value_of(tier, asked) == b"loaded"
    pin(tier, asked, b"curated", born=1)
    tier.flush()
    assert value_of(tier, asked) == b"loaded"  # it was born before it was invalidated


@pytest.mark.parametrize("is_written", [True, False])
def test_pinned_entries_are_bounded(open_tier, tmp_path, monkeypatch, is_written):
    """Beyond so many, who pins is told; one that is pinned may be pinned anew, and an invalidation makes room."""
    monkeypatch.setattr("semcache.stores.changes.MAX_PINNED", 5)
    tier = open_tier()
    with nullcontext() if is_written else locked(tmp_path / "cache.db"):
        for n in range(5):
            pin(tier, request(str(n)))
            assert not is_written or tier.flush()
        with pytest.raises(TierError, match="pinned") as told:
            pin(tier, request("5"))
        assert told.value.reason == "full"
        put(tier, request("5"))
    pin(tier, request("0"), b"again")
    tier.flush()
    assert value_of(tier, request("0")) == b"again"
    mark(tier, "key", request("1").key).result()
    pin(tier, request("5"))
    tier.flush()
    assert run(tier.get(request("5"))).entry.is_pinned


def test_pinned_bytes_are_bounded(open_tier):
    """What is never evicted takes half of the file at most."""
    tier = open_tier(max_bytes=512 * 1024)
    with pytest.raises(TierError, match="larger bound"):
        [pin(tier, request(str(n)), os.urandom(10_000)) for n in range(100)]
    tier.flush()
    assert 20 < tier.stats()["entries"] < 27


def test_pins_of_several_processes_are_bounded(open_tier, tmp_path, monkeypatch):
    """The writer refuses what another process has pinned the room of meanwhile."""
    monkeypatch.setattr("semcache.stores.changes.MAX_PINNED", 5)
    here, there = open_tier(), open_tier()
    with locked(tmp_path / "cache.db"):
        for n in range(4):
            pin(here, request(f"here{n}"))
            pin(there, request(f"there{n}"))
    here.flush()
    there.flush()
    assert here.stats()["entries"] == 5


# Invalidation


def test_hit_tells_its_tags_and_documents(open_tier):
    """A hit carries its own facets where it has tags or documents, each once, in order; else none are read."""
    tier = open_tier()
    facets = {"function": "f", "version": "1", "tenant": "acme", "model": "m"}
    tagged = request("a", **facets, tags=("new", "faq", "new"), documents=("d2", "d1"))
    plain = request("b", **facets)
    for _ in range(3):
        put(tier, tagged)
        put(tier, plain)
        found = run(tier.get(tagged)).entry.facets
        assert found == Facets(NAMESPACE, **facets, tags=("faq", "new"), documents=("d1", "d2"))
        assert run(tier.get(plain)).entry.facets is None
        tier.close()
        tier = open_tier()


@pytest.mark.parametrize("facet", ["tag", "document"])
@pytest.mark.parametrize("is_written", [True, False])
def test_mark_drops_what_has_the_tag_or_document(open_tier, tmp_path, facet, is_written):
    """Entries have any number of tags and documents; an invalidation of one drops all that have it, and no others."""
    tier = open_tier()
    names = {"tag": "tags", "document": "documents"}
    other = names["document" if facet == "tag" else "tag"]
    meant = [request("a", **{names[facet]: ("x", "y")}), request("b", **{names[facet]: ("z", "x")}, function="f")]
    others = [request("c", **{names[facet]: ("y",)}), request("d", **{other: ("x",)}), request("e", function="x")]
    with nullcontext() if is_written else locked(tmp_path / "cache.db"):
        for each in meant + others:
            put(tier, each)
        assert not is_written or tier.flush()
        marked = mark(tier, facet, "x")
        assert is_written or all(run(tier.get(each)) == Miss() for each in meant)
    assert marked.result()[1] == 2
    assert [value_of(tier, each) for each in meant + others] == [None, None, *[b"answer"] * 3]
    put(tier, meant[0], b"stale", born=1)
    tier.flush()
    assert run(tier.get(meant[0])) == Miss()
    put(tier, meant[0])
    tier.flush()
    assert value_of(tier, meant[0]) == b"answer"


def test_tags_leave_the_file_with_the_last_entry(open_tier, tmp_path):
    """Facets, with their labels, are kept once for all entries that have them, and go with the last."""
    tier = open_tier()
    for n in range(3):
        put(tier, request(str(n), tags=("a", "b"), documents=("d",)))
    tier.flush()
    sizes = "SELECT (SELECT count(*) FROM facets), (SELECT count(*) FROM labels)"
    assert ask(tmp_path / "cache.db", sizes) == [(1, 3)]
    mark(tier, "tag", "b").result()
    assert ask(tmp_path / "cache.db", sizes) == [(0, 0)]


def test_tag_is_found_without_reading_entries(open_tier, tmp_path):
    """An invalidation goes by index from tag to facets to entries."""
    from semcache.stores.facets import meant

    open_tier()
    for facet in ("tag", "document", "function", "key", "namespace"):
        question, parameters = meant(NAMESPACE, [(facet, "x"), (facet, "y")])
        with closing(sqlite3.connect(tmp_path / "cache.db")) as other:
            plan = [row[3] for row in other.execute(f"EXPLAIN QUERY PLAN {question}", parameters)]
        assert not any(step.startswith("SCAN") for step in plan), plan


def test_one_mark_of_several_pairs_counts_each_entry_once(open_tier):
    """An invalidation by several facets is one: all or nothing, one count, and the position of the latest mark."""
    tier = open_tier()
    put(tier, request("both", function="f", tags=("x",)))
    put(tier, request("tagged", tags=("x", "y")))
    put(tier, request("other", function="g", tags=("z",)))
    tier.flush()
    born = tier.position()
    pairs = [("function", "f"), ("tag", "x"), ("tag", "y"), ("key", request("never").key)]
    assert run(tier.count(pairs)) == 2
    assert sorted(tier.keys_of(pairs)) == sorted([request("both").key, request("tagged").key])
    position, removed = run(tier.mark(pairs))
    assert (removed, position) == (2, tier.position())
    assert position > born
    assert run(tier.count(pairs)) == 0
    assert {mark[:2] for mark in tier.join().marks} == set(pairs)
    with pytest.raises(InvalidationError):
        run(tier.mark([("tag", "z"), ("tag", "half a surrogate \ud800")]))
    assert value_of(tier, request("other")) == b"answer"


def test_count_is_what_a_mark_drops(open_tier, tmp_path, clock):
    """A dry run counts each live entry once, be it written, waiting or both, and changes nothing."""
    tier, other = open_tier(ttl=100), open_tier(namespace="billing")
    put(tier, request("dead", function="f"))
    tier.flush()
    clock.advance(100)
    for name in ("a", "b"):
        put(tier, request(name, function="f"))
    put(other, request("theirs", function="f"))
    tier.flush()
    other.flush()
    with locked(tmp_path / "cache.db"):
        for name in ("b", "c"):
            put(tier, request(name, function="f", tags=("new",)))
        assert run(tier.count([("function", "f")])) == 3
        assert run(tier.count([("tag", "new")])) == 2
        assert sorted(tier.keys_of([("function", "f")])) == sorted(request(name).key for name in "abc")
        assert (run(tier.count([("function", "g")])), run(tier.count([])), tier.keys_of([])) == (0, 0, [])
    tier.flush()
    assert run(tier.count([("namespace", NAMESPACE)])) == 3
    assert run(tier.mark([("function", "f")]))[1] == 3
    assert run(other.count([("function", "f")])) == 1


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
        _, removed = mark(tier, facet, value).result()
    else:
        with locked(tmp_path / "cache.db"):
            for each in asked:
                put(tier, each)
            marked = mark(tier, facet, value)
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
        marked = mark(tier, "namespace", NAMESPACE)
    assert marked.result()[1] == 2


def test_mark_of_another_namespace_drops_nothing_here(open_tier):
    """Namespaces share a file, never an invalidation, but for one that names the other namespace itself."""
    ours, theirs, asked = open_tier(), open_tier(namespace="billing"), request("a", function="f")
    put(ours, asked)
    ours.flush()
    assert mark(theirs, "function", "f").result()[1] == 0
    assert value_of(ours, asked) == b"answer"
    assert mark(theirs, "namespace", NAMESPACE).result()[1] == 1
    assert run(ours.get(asked)) == Miss()
    put(ours, asked, born=0)
    ours.flush()
    assert run(ours.get(asked)) == Miss()


def test_entry_born_before_a_mark_is_refused(open_tier):
    """Law 8: what was invalidated while it was loaded is a miss, at once and later; what is loaded after is kept."""
    tier, asked = open_tier(), request("a", function="f")
    born = tier.position()
    position, _ = mark(tier, "function", "f").result()
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
        mark(tier, facet, value).result()
    put(tier, asked, born=born)
    tier.flush()
    assert value_of(tier, asked) == b"answer"


def test_entry_put_while_the_mark_is_made_is_refused(open_tier, tmp_path):
    """Law 8: it does not matter whether the stale entry or the invalidation comes to the writer first."""
    tier, asked = open_tier(), request("a", function="f")
    with locked(tmp_path / "cache.db"):
        marked = mark(tier, "function", "f")
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
    mark(there, "function", "f").result()
    assert run(here.get(standing)) == Miss()
    put(here, loading, b"stale", born=born)
    here.flush()
    assert run(here.get(loading)) == Miss()
    assert run(there.get(loading)) == Miss()


def test_mark_outlives_a_restart(open_tier):
    """Law 8: an invalidation holds for loads that were begun before it, though everything was closed between."""
    first, asked = open_tier(), request("a", function="f")
    born = first.position()
    mark(first, "function", "f").result()
    first.close()
    second = open_tier()
    put(second, asked, b"stale", born=born)
    second.flush()
    assert run(second.get(asked)) == Miss()


def test_stale_entry_is_not_read_while_it_waits(open_tier, tmp_path):
    """Law 8: what was invalidated before this process opened the file is not even read from the queue."""
    first, asked = open_tier(), request("a", function="f")
    born = first.position()
    mark(first, "function", "f").result()
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
        mark(tier, "function", name).result()
    with locked(tmp_path / "cache.db"):
        put(tier, asked, b"stale", born=born)
        assert run(tier.get(asked)) == Miss()
        put(tier, asked, b"fresh")
        assert value_of(tier, asked) == b"fresh"


def test_marks_are_kept_as_long_as_the_longest_life(open_tier, clock, tmp_path):
    """Law 8: marks outlive every entry that could be older than they; then they are dropped, with their log rows."""
    tier = open_tier(ttl=100)
    put(tier, request("long"), life=7000.0, own_ttl=True, grace=200.0)
    put(tier, request("pinned"), is_pinned=True)  # which is given to other tiers for lives of theirs
    put(tier, request("sliding"), slide=100.0)
    for n in range(50):
        mark(tier, "function", f"f{n}").result()
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
        positions.append(mark(tier, "namespace", NAMESPACE).result()[0])
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
        mark(tier, "function", "f").result()


def test_mark_that_cannot_be_written_is_no_others_failure(open_tier, tmp_path):
    """Law 8: of invalidations made together each has its own outcome."""
    tier, asked = open_tier(), request("a", function="f")
    put(tier, asked)
    tier.flush()
    with locked(tmp_path / "cache.db"):
        bad, good = mark(tier, "tenant", "half a surrogate \ud800"), mark(tier, "function", "f")
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
        mark(tier, "key", request(name).key).result()
    levels = [each.split("= ")[1] for each in statements if each.startswith("PRAGMA synchronous")]
    assert levels == ["NORMAL", "NORMAL", "FULL", "NORMAL", "FULL"]


def test_mark_of_unknown_facet_is_refused(open_tier):
    """A facet that does not exist is an error that names those that do."""
    with pytest.raises(ConfigurationError, match="function"):
        mark(open_tier(), "colour", "red")


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
        mark(tier, "function", "f").result()
        tier.follow(tier.join().position)
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
                mark(tier, "function", f"f{who}").result()
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
    mark(tier, "function", "f").result()
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


def test_mode_that_does_not_exist_is_refused(open_tier):
    """A mode of another name is an error that names those that do exist."""
    with pytest.raises(ConfigurationError, match="shadow"):
        run(open_tier().switch("fast"))


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
        standing_born = self.kept[name][3] if name in self.kept else 0
        if born < max(standing_born, *self.marks.values(), 0):
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
        self.marks["key", key], removed = mark(self.tier, "key", key).result()
        assert removed == (name in self.expected())
        self.kept.pop(name, None)

    @rule(function=st.sampled_from(_FUNCTIONS))
    def mark_function(self, function):
        self.marks["function", function], removed = mark(self.tier, "function", function).result()
        assert removed == sum(kept[2] == function for kept in self.expected().values())
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
