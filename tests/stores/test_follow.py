"""The log of a store's file as those read it who share the file: what others did, modes, counters, and resets."""

from __future__ import annotations

import math
import os
import sqlite3
from contextlib import closing

import pytest

from semcache.errors import TierError
from semcache.marks import Changes
from semcache.model import Entry, Evidence, Facets, Hit, Request
from semcache.plan import run
from semcache.testing.clock import ManualClock
from semcache.tiers.disk import DiskTier

DAY = 86400.0


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.db"


@pytest.fixture
def open_tier(path, clock):
    """Open disk tiers, on one file unless told otherwise; all are closed at the end."""
    opened = []

    def open_one(at=path, **changes):
        settings = {"namespace": "shop", "ttl": DAY, "clock": clock, "on_fault": lambda reason, error: None}
        opened.append(DiskTier(at, **(settings | changes)))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def request(name, *, embedder="e", **facets):
    return Request(name.encode().ljust(16, b"."), b"scope", f"text {name}", Facets("shop", **facets), embedder=embedder)


def put(tier, asked, *, vector=None, **fields):
    fields = {"born": tier.position()} | fields
    run(tier.put(asked, Entry(b"answer", **fields), Evidence(vector) if vector is not None else None))
    assert tier.flush()


def names(changes):
    return [row.text.removeprefix("text ") for row in changes.rows]


def test_join_tells_where_the_log_stands(open_tier):
    """Who begins to follow is given the position, all marks of its namespace and the mode, and no rows."""
    here, there, theirs = open_tier(), open_tier(), open_tier(namespace="billing")
    put(there, request("a"))
    first, _ = run(there.mark([("function", "f"), ("tag", "x")]))
    run(theirs.mark([("function", "g")]))
    run(there.switch("exact"))
    joined = here.join()
    assert joined == Changes(here.position(), marks=[("function", "f", first - 1), ("tag", "x", first)], mode="exact")


def test_follow_tells_what_others_did(open_tier):
    """The rows and marks of others in the namespace come once, in order; one's own rows do not come."""
    here, there, theirs = open_tier(), open_tier(), open_tier(namespace="billing")
    since = here.join().position
    assert here.follow(since) == Changes(since)
    put(here, request("own"))
    put(there, request("b"))
    put(theirs, request("foreign"))
    put(there, request("a", embedder="another"), life=50.0)
    put(there, request("late"))
    position, _ = run(there.mark([("function", "f"), ("key", request("late").key)]))
    run(theirs.mark([("function", "g")]))
    changes = here.follow(since)
    assert changes.marks == [("function", "f", position - 1), ("key", request("late").key, position)]
    assert names(changes) == ["b", "a"]
    assert changes.rows[1] == (request("a").key, b"scope", "another", "text a", None, 50.0)
    assert changes.position == here.position()
    assert (changes.is_whole, changes.is_reset) == (True, False)
    assert here.follow(changes.position) == Changes(changes.position)
    assert names(there.follow(since)) == ["own"]


def test_follow_tells_ones_own_marks(open_tier):
    """Law 8: the marks that one has made oneself come too, which does no harm."""
    tier = open_tier()
    since = tier.join().position
    position, _ = run(tier.mark([("function", "f")]))
    assert tier.follow(since) == Changes(position, marks=[("function", "f", position)])


def test_follow_of_a_namespace_that_another_invalidates(open_tier):
    """Law 8: who invalidates a namespace by name is heard in that namespace."""
    here, theirs = open_tier(), open_tier(namespace="billing")
    since = here.join().position
    position, _ = run(theirs.mark([("namespace", "shop")]))
    assert here.follow(since).marks == [("namespace", "shop", position)]


@pytest.mark.semantic
def test_followed_rows_carry_their_vectors(open_tier):
    """What another has embedded need not be embedded here."""
    import numpy as np

    here, there = open_tier(), open_tier()
    since = here.join().position
    vector = np.array([0.6, 0.8], np.float32)
    put(there, request("a"), vector=vector)
    (row,) = here.follow(since).rows
    np.testing.assert_allclose(row.vector, vector, atol=5e-4)
    assert row.vector.dtype == np.float32


def test_follow_leaves_out_what_is_gone(open_tier, clock):
    """A row is told while it lives; those that were replaced or have expired meanwhile are not."""
    here, there = open_tier(), open_tier()
    since = here.join().position
    put(there, request("a"))
    put(there, request("b"))
    put(there, request("c"), life=10.0)
    put(there, request("a"))
    put(there, request("pinned"), is_pinned=True)
    clock.advance(10)
    changes = here.follow(since)
    assert [(name, row.remaining) for name, row in zip(names(changes), changes.rows, strict=True)] == [
        ("b", DAY - 10), ("a", DAY - 10), ("pinned", math.inf),
    ]  # fmt: skip


def test_many_rows_come_in_portions(open_tier, monkeypatch):
    """A look tells so many rows at most; the next goes on from there, and none is lost or told twice."""
    monkeypatch.setattr("semcache.stores.follower._PAGE_ROWS", 3)
    here, there = open_tier(), open_tier()
    since, told = here.join().position, []
    for n in range(10):
        put(there, request(str(n)))
    run(there.mark([("function", "f")]))
    marked = set()
    while since < here.position():
        changes = here.follow(since)
        assert len(changes.rows) <= 3
        told += names(changes)
        marked |= {mark[:2] for mark in changes.marks}
        since = changes.position
    assert told == [str(n) for n in range(10)]
    assert marked == {("function", "f")}


def test_follow_reads_nothing_where_nothing_was_committed(open_tier, path, monkeypatch):
    """A look that finds nothing new costs no read of the log."""
    tier, statements = open_tier(), []
    since = tier.join().position
    tier._store._follower._connection.set_trace_callback(statements.append)
    for _ in range(3):
        assert tier.follow(since).position == since
    assert set(statements) == {"PRAGMA data_version"}


def test_mode_reaches_all_of_the_namespace(open_tier, path):
    """A mode is heard by all who follow in the namespace, and by no others; it outlives a restart."""
    here, there, theirs = open_tier(), open_tier(), open_tier(namespace="billing")
    since = here.join().position
    theirs.join()
    assert here.follow(since).mode is None
    run(there.switch("shadow"))
    assert [here.follow(since).mode for _ in range(2)] == ["shadow"] * 2
    assert theirs.follow(since).mode is None
    run(here.switch("off"))
    assert there.join().mode == "off"
    there.close()
    here.close()
    assert open_tier().join().mode == "off"


def test_mode_that_cannot_be_durable_raises(open_tier, tmp_path):
    """A mode is set when the call returns, or it raises."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE theirs (x)")
    with pytest.raises(TierError, match="try again"):
        run(open_tier(tmp_path / "other.db").switch("off"))


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_another_file_is_a_reset(open_tier, path, tmp_path, how):
    """A file that was put or begun in the place of the followed one is told as a reset, with all of its marks."""
    tier = open_tier()
    since = tier.join().position
    new = tmp_path / "new" / "cache.db"
    if how == "replaced":
        maker = open_tier(new)
        run(maker.mark([("function", "old")]))
        maker.close()
    for each in path.parent.glob("cache.db*"):
        each.unlink()
    if how == "replaced":
        new.rename(path)
    else:
        with pytest.raises(TierError):
            tier.follow(since)
    other = open_tier()
    position, _ = run(other.mark([("function", "f")]))
    changes = tier.follow(since)
    assert (changes.is_whole, changes.is_reset, changes.rows) == (False, True, [])
    assert ("function", "f", position) in changes.marks
    assert len(changes.marks) == (1 if how == "removed" else 2)
    assert changes.position == position
    put(other, request("a"))
    changes = tier.follow(changes.position)
    assert (names(changes), changes.is_whole, changes.is_reset) == (["a"], True, False)


def test_log_that_lost_its_tail_is_a_reset(open_tier):
    """Who is ahead of the log, as after a crash of the machine, begins anew."""
    tier = open_tier()
    position, _ = run(tier.mark([("function", "f")]))
    tier.join()
    assert tier.follow(position + 1) == Changes(
        position, marks=[("function", "f", position)], is_whole=False, is_reset=True
    )


def test_file_that_is_not_begun_yet_is_no_loss(open_tier, path):
    """An empty file has no log so far; what comes into it is told from its beginning."""
    path.touch()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        tier = open_tier(timeout=0.001)
        holder.execute("ROLLBACK")
    assert tier.join() == Changes(0)
    assert tier.follow(0) == Changes(0)
    other = open_tier()
    put(other, request("a"))
    changes = tier.follow(0)
    assert (names(changes), changes.is_whole) == (["a"], True)


def test_file_that_cannot_be_read_is_told(open_tier, path):
    """Where the file is out of reach, or the tier is closed, following says so, and goes on when that has passed."""
    tier = open_tier()
    since = tier.join().position
    aside = path.with_suffix(".aside")
    path.rename(aside)
    for _ in range(2):
        with pytest.raises(TierError):
            tier.follow(since)
    aside.rename(path)
    assert tier.follow(since) == Changes(since)
    tier.close()
    for call in (tier.join, lambda: tier.follow(since)):
        with pytest.raises(TierError) as told:
            call()
        assert told.value.reason == "closed"
    tier.rest()


def test_counters_add_up_over_processes(open_tier, path):
    """What is booked is added to the day's counters of the namespace, by whomever, and outlives a restart."""
    here, there, theirs = open_tier(), open_tier(), open_tier(namespace="billing")
    here.book("2026-11-27", {"hits": 2, "money": 0.5})
    here.book("2026-11-27", {"hits": 1})
    there.book("2026-11-27", {"hits": 10.0})
    there.book("2026-11-28", {"hits": 1.0})
    theirs.book("2026-11-27", {"hits": 100.0})
    for tier in (here, there, theirs):
        assert tier.flush()
        tier.close()
    tier = open_tier()
    assert tier.booked("2026-11-28") == {("2026-11-28", "hits"): 1.0}
    assert tier.booked("2026-11-01") == {
        ("2026-11-27", "hits"): 13.0, ("2026-11-27", "money"): 0.5, ("2026-11-28", "hits"): 1.0,
    }  # fmt: skip


def test_counters_of_long_ago_are_dropped(open_tier):
    """Counters are kept for a year and a little more."""
    tier = open_tier()
    for day in ("2025-01-01", "2025-12-01", "2026-11-27"):
        tier.book(day, {"hits": 1.0})
        assert tier.flush()
    assert {day for day, _ in tier.booked("")} == {"2025-12-01", "2026-11-27"}


def test_counters_outlive_a_record_that_cannot_be_written(open_tier, path):
    """One record that SQLite refuses takes nothing else of its transaction with it."""
    tier = open_tier()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run(tier.put(request("bad", tags=("\ud800",)), Entry(b"1"), None))
        tier.book("2026-11-27", {"hits": 1.0})
        other.execute("ROLLBACK")
    assert not tier.flush()
    assert tier.booked("") == {("2026-11-27", "hits"): 1.0}


def test_forked_child_follows_on_its_own(open_tier):
    """A child opens a connection of its own, and its parent goes on with one that it opens anew."""
    tier, other = open_tier(), open_tier()
    since = tier.join().position
    child = os.fork()
    if not child:
        status = 1
        try:
            put(tier, request("child"))
            status = int(names(tier.follow(since)) != [] or tier.join().position <= since)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    put(other, request("a"))
    assert names(tier.follow(since)) == ["child", "a"]


def test_restart_keeps_all_that_was_said(open_tier, clock):
    """What is pinned, tagged and marked is there at the next start."""
    tier = open_tier()
    put(tier, request("pinned", tags=("faq",)), is_pinned=True)
    put(tier, request("a", documents=("d",)))
    run(tier.mark([("document", "d")]))
    tier.close()
    clock.advance(DAY / 2)
    tier = open_tier()
    assert run(tier.count([("tag", "faq")])) == 1
    found = run(tier.get(request("pinned")))
    assert isinstance(found, Hit)
    assert (found.entry.is_pinned, found.entry.facets.tags) == (True, ("faq",))
    assert [mark[:2] for mark in tier.join().marks] == [("document", "d")]
