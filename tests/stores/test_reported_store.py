"""What stores keep of near matches: bounds, other namespaces, a file of before there was any of it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest
from instruments import GUARD

from semcache.blocks import Block
from semcache.errors import TierError
from semcache.ledger import Ledger, Served, Taken, id_digest
from semcache.stores import redis_reported, reported
from semcache.testing import ManualClock
from semcache.tiers.disk import DiskTier

BLOCK = Block(b"stored", b"words", 0.9375, 1e9)


def row(number, at=1e9):
    return Served(at, b"asked", b"stored", 0.9375, f"text {number}", "its own", b"words")


def test_blocks_come_back_as_they_were_and_go_as_pairs(open_tier):
    """A store keeps what it is given, of one namespace apart from another's; a pair is dropped whatever its cosine."""
    here, theirs = open_tier(), open_tier("billing")
    here.reports.block([BLOCK, BLOCK._replace(words=b"others")])
    theirs.reports.block([BLOCK._replace(similarity=0.5)])
    assert sorted(open_tier().reports.blocked()) == sorted([BLOCK, BLOCK._replace(words=b"others")])
    here.reports.unblock([BLOCK._replace(similarity=0.1)])
    assert here.reports.blocked() == [BLOCK._replace(words=b"others")]
    assert [block.similarity for block in theirs.reports.blocked()] == [0.5]


def test_followers_hear_of_a_block_once(open_tier):
    """By the log, with no row and no mark of it; who joins is told all there are."""
    here, there = open_tier(), open_tier()
    since = there.join().position
    here.reports.block([BLOCK])
    changes = there.follow(since)
    assert (changes.blocks, changes.marks, changes.rows) == ([BLOCK], [], [])
    assert there.follow(changes.position).blocks == []
    assert open_tier().join().blocks == [BLOCK]


def test_rows_and_names_come_back_as_they_were(open_tier):
    """In the order in which they came, of their own namespace, by what they have."""
    here = open_tier()
    here.reports.serve_now(Taken([row(1), row(2)._replace(tenant=b"t")], {id_digest("chatcmpl-1"): b"key"}))
    here.reports.serve(Taken([row(3)], {}), print)
    assert here.flush(GUARD)
    there = open_tier()
    assert [one.text for one in there.reports.served({"stored": b"stored"})] == ["text 1", "text 2", "text 3"]
    assert there.reports.served({"asked": b"asked", "tenant": b"t"}) == [row(2)._replace(tenant=b"t")]
    assert (there.reports.named("chatcmpl-1"), there.reports.named("chatcmpl-2")) == (b"key", None)
    assert open_tier("billing").reports.served({}) == []


def test_rows_are_bounded_in_number(open_tier, monkeypatch):
    """The oldest go; a stream is trimmed by whole nodes, so it may keep some more."""
    monkeypatch.setattr(reported, "MAX_ROWS", 50)
    monkeypatch.setattr(reported, "MAX_NAMES", 50)
    monkeypatch.setattr(redis_reported, "MAX_ROWS", 50)
    tier = open_tier()
    for at in range(0, 600, 100):
        names = {id_digest(str(number)): b"key" for number in range(at, at + 100)} if tier.name == "disk" else {}
        tier.reports.serve_now(Taken([row(number) for number in range(at, at + 100)], names))
    rows = tier.reports.served({})
    assert 50 <= len(rows) < 300
    assert rows[-1].text == "text 599"
    if tier.name == "disk":
        assert [tier.reports.named(str(number)) for number in (549, 550, 599)] == [None, b"key", b"key"]


def test_rows_take_a_small_share_of_a_small_file(tmp_path):
    """What is bounded in bytes is not filled by its ledger."""
    clock = ManualClock()
    tier = DiskTier(
        tmp_path / "cache.db", namespace="ns", ttl=60.0, clock=clock, timeout=10.0, on_fault=print, max_bytes=2**20
    )
    for at in range(0, 1000, 100):
        tier.reports.serve_now(Taken([row(number) for number in range(at, at + 100)], {}))
    assert len(tier.reports.served({})) == int(2**20 * 0.05) // 1024
    tier.close()


def test_file_of_before_there_were_reports_is_taken_as_it_is(tmp_path):
    """An older file opens with what it has, and is given the tables by whoever writes first."""
    path, clock = tmp_path / "cache.db", ManualClock()

    def open_one():
        return DiskTier(path, namespace="ns", ttl=60.0, clock=clock, timeout=10.0, on_fault=print)

    open_one().close()
    with closing(sqlite3.connect(path)) as file:
        for table in ("blocks", "served", "answers"):
            file.execute(f"DROP TABLE {table}")
        file.commit()
    tier = open_one()
    assert tier.join().blocks == tier.reports.blocked() == tier.reports.served({}) == []
    tier.reports.block([BLOCK])
    assert tier.reports.blocked() == [BLOCK]
    tier.close()


def test_file_that_cannot_be_given_the_tables_has_none(tmp_path):
    """Until somebody may write there is nothing to read, and that is no error."""
    path, clock = tmp_path / "cache.db", ManualClock()
    tier = DiskTier(path, namespace="ns", ttl=60.0, clock=clock, timeout=10.0, on_fault=print)
    with closing(sqlite3.connect(path)) as file:
        for table in ("blocks", "served", "answers"):
            file.execute(f"DROP TABLE {table}")
        file.commit()
    assert tier.join().blocks == tier.reports.blocked() == tier.reports.served({}) == []
    assert tier.reports.named("chatcmpl-1") is None
    tier.close()


def test_change_that_finds_no_room_takes_no_invalidation_with_it(tmp_path):
    """Law 8: what is made in one transaction with a large change is made without it where that does not fit."""
    tier = DiskTier(
        tmp_path / "cache.db", namespace="ns", ttl=60.0, clock=ManualClock(), timeout=10.0, on_fault=lambda *_: None
    )
    store, go = tier._store, threading.Event()

    def full(_connection):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    store.change(lambda _connection: go.wait(GUARD))  # the others come together
    failing, marked = store.change(full), store.mark([("tag", "x")])
    go.set()
    assert marked.result(GUARD)[0] > 0
    with pytest.raises(TierError, match="full"):
        failing.result(GUARD)
    tier.close()


def test_ledger_that_is_put_back_keeps_the_newest():
    """What waits is bounded, whatever the store does meanwhile."""
    ledger = Ledger(lambda: 1e9)
    ledger.put_back(Taken([row(number) for number in range(15_000)], {}))
    ledger.put_back(Taken([row(-1)], {}))
    rows = ledger.take().rows
    assert (len(rows), rows[0].text, rows[-1].text) == (10_000, "text 5000", "text 14999")
