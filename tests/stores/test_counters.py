"""What both stores count by day and name, for all processes: nothing is lost, nothing counted twice, all is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruments import GUARD

from semcache.errors import TierError
from semcache.marks import Marks
from semcache.meter import day_of, name_of, overflow
from semcache.stores import backlog, changes, redis_ledger
from semcache.testing import ManualClock
from semcache.tiers.disk import DiskTier
from semcache.tiers.redis import RedisTier

TODAY, YESTERDAY = day_of(1e9), day_of(1e9 - 86_400)


def open_redis(url, namespace="ns", on_fault=print):
    clock = ManualClock()
    marks = Marks(clock.monotonic, 3600.0)
    return RedisTier(url, namespace=namespace, ttl=60.0, clock=clock, marks=marks, timeout=10.0, on_fault=on_fault)


def test_counters_add_up_over_processes_and_restarts(open_tier):
    """What is booked is added to the day's counters of the namespace, by whomever, and outlives its process."""
    here, there, theirs = open_tier(), open_tier(), open_tier("billing")
    here.book(TODAY, {"hits": 2, "money": 0.5})
    here.book(TODAY, {"hits": 1})
    there.book(TODAY, {"hits": 10.0})
    there.book(YESTERDAY, {"hits": 1.0})
    theirs.book(TODAY, {"hits": 100.0})
    for tier in (here, there, theirs):
        assert tier.flush(GUARD)
        tier.close()
    tier = open_tier()
    assert tier.booked(TODAY) == {(TODAY, "hits"): 13.0, (TODAY, "money"): 0.5}
    assert tier.booked("2001-01-01") == {
        (TODAY, "hits"): 13.0, (TODAY, "money"): 0.5, (YESTERDAY, "hits"): 1.0,
    }  # fmt: skip


def test_process_reads_what_it_booked_a_moment_ago(open_tier):
    """Who books and asks is told of it, though it is written behind him."""
    tier = open_tier()
    for number in range(1, 6):
        tier.book(TODAY, {"hits": 1.0})
        assert tier.booked(TODAY) == {(TODAY, "hits"): float(number)}


def test_any_name_comes_back(open_tier):
    """A stage, model or tenant may be any text."""
    names = {name_of("hits", row): 1.0 for row in [("a|b%", "ä", ""), ("\ud800", "", "t\0"), ("", "", "")]}
    tier = open_tier()
    tier.book(TODAY, names)
    assert tier.booked(TODAY) == {(TODAY, name): 1.0 for name in names}


def test_names_of_a_day_are_bounded(open_tier, monkeypatch):
    """Past a number of names a new one is counted as "other"; those that stand are counted on, and nothing is lost."""
    monkeypatch.setattr(changes, "MAX_NAMES", 3)
    monkeypatch.setattr(redis_ledger, "MAX_NAMES", 3)
    tier = open_tier()
    for round_ in range(2):
        for number in range(6):
            tier.book(TODAY, {f"hits|{number}|m": 1.0})
            assert tier.flush(GUARD), round_
    tier.book(YESTERDAY, {"hits|9|m": 1.0})
    assert tier.booked(YESTERDAY) == {
        (YESTERDAY, "hits|9|m"): 1.0, (TODAY, "hits|0|m"): 2.0, (TODAY, "hits|1|m"): 2.0, (TODAY, "hits|2|m"): 2.0,
        (TODAY, overflow("hits|")): 6.0,
    }  # fmt: skip


def test_what_a_policy_counted_keeps_its_name(open_tier, monkeypatch):
    """A wrong label under a common name would be nobody's: the policy bounds its names, no store or queue does."""
    monkeypatch.setattr(changes, "MAX_NAMES", 3)
    monkeypatch.setattr(redis_ledger, "MAX_NAMES", 3)
    monkeypatch.setattr(redis_ledger, "_MOST_WAITING", 3)
    monkeypatch.setattr(backlog, "MAX_AMOUNTS", 3)
    names = {f"trust|{number}|1.0|wrong.1": 1.0 for number in range(8)}
    tier = open_tier()
    tier.book(TODAY, names)
    assert tier.booked(TODAY) == {(TODAY, name): 1.0 for name in names}


def test_closed_tier_takes_nothing(open_tier):
    """Who books after the end is told, and keeps what he has."""
    tier = open_tier()
    tier.close()
    with pytest.raises(TierError) as told:
        tier.book(TODAY, {"hits": 1.0})
    assert told.value.reason == "closed"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["a", "b", "c"]), st.integers(1, 50)), max_size=40))
def test_counters_are_a_dictionarys_sums(redis_server, tmp_path_factory, booked):
    """Whatever is booked, by two processes in whatever order: what is told is the sum by day and name."""
    redis_server.cli("FLUSHALL")
    path = tmp_path_factory.mktemp("counters") / "cache.db"
    stores = {
        "redis": [open_redis(redis_server.url) for _ in range(2)],
        "disk": [
            DiskTier(path, namespace="ns", ttl=60.0, clock=ManualClock(), timeout=10.0, on_fault=print)
            for _ in range(2)
        ],
    }
    expected = {}
    for _, name, amount in booked:
        expected[TODAY, name] = expected.get((TODAY, name), 0) + amount / 4
    for tiers in stores.values():
        for who, name, amount in booked:
            tiers[who].book(TODAY, {name: amount / 4})
        for tier in tiers:
            assert tier.flush(GUARD)
        assert tiers[0].booked(TODAY) == expected
        for tier in tiers:
            tier.close()


# Redis alone


def test_sums_wait_while_the_server_is_away(own_redis):
    """What cannot be booked is neither dropped nor doubled: it is tried again with what comes next, and at a flush."""
    server = own_redis()
    server.kill()
    faults = []
    tier = open_redis(server.url, on_fault=lambda reason, error: faults.append(reason))
    for _ in range(3):
        tier.book(TODAY, {"hits": 1.0})
        assert not tier.flush(GUARD)
    assert set(faults) == {"unreachable"}
    with pytest.raises(TierError, match="refused"):
        tier.booked(TODAY)
    server.start()
    tier.book(TODAY, {"hits": 1.0})
    assert tier.flush(GUARD)
    assert tier.booked(TODAY) == {(TODAY, "hits"): 4.0}
    tier.close()


@pytest.mark.parametrize("attempts", [1, 2])
def test_server_that_was_paused_counts_once(own_redis, monkeypatch, attempts):
    """What was given up as late is carried out when the server goes on, and is not added a second time."""
    monkeypatch.setattr(redis_ledger, "PATIENT_SECONDS", 0.1)
    server = own_redis()
    tier = open_redis(server.url)
    tier.book(TODAY, {"hits": 1.0})
    assert tier.flush(GUARD)
    server.pause()
    tier.book(TODAY, {"hits": 10.0})
    for _ in range(attempts):
        assert not tier.flush(GUARD)
    server.resume()
    assert tier.flush(GUARD)
    assert tier.booked(TODAY) == {(TODAY, "hits"): 11.0}
    tier.close()


def test_reply_that_is_lost_counts_once(redis_url, redis_server):
    """A batch whose transaction was made, though nobody heard of it, is not added a second time."""
    tier = open_redis(redis_url)
    ledger, exchange = tier._store._ledger, tier._store._ledger._link.exchange

    def deaf(asked, timeout, then):
        exchange(asked, timeout, then)
        ledger._link.exchange = exchange
        raise TierError("late", "the reply was lost")

    ledger._link.exchange = deaf
    tier.book(TODAY, {"hits": 1.0})
    tier.flush(GUARD)
    tier.book(TODAY, {"hits": 10.0})
    assert tier.flush(GUARD)
    assert tier.booked(TODAY) == {(TODAY, "hits"): 11.0}
    tier.close()


def test_earlier_try_that_comes_through_late_stops_the_next(redis_url, redis_server):
    """An earlier try that is carried out between our look and our transaction makes that transaction void."""
    tier = open_redis(redis_url)
    ledger = tier._store._ledger
    exchange, other, seen = ledger._link.exchange, redis_server.client(), []

    def overtaken(asked, timeout, then=None):
        def late(replies):
            if not seen:
                seen.append(replies)
                other.hincrbyfloat(tier._store.names.use(TODAY), "hits", 5.0)
                other.set(tier._store.names.booked(ledger._process), ledger._number)
            return then(replies)

        return exchange(asked, timeout, then and late)

    ledger._link.exchange = overtaken
    tier.book(TODAY, {"hits": 5.0})
    assert tier.flush(GUARD)
    assert tier.booked(TODAY) == {(TODAY, "hits"): 5.0}
    tier.close()


def test_many_names_take_several_batches(redis_url, monkeypatch):
    """A batch is bounded, so that no transaction holds the server up."""
    monkeypatch.setattr(redis_ledger, "_BATCH", 2)
    tier = open_redis(redis_url)
    tier.book(TODAY, {f"hits|{number}|": 1.0 for number in range(7)})
    assert len(tier.booked(TODAY)) == 7
    tier.close()


def test_day_is_kept_for_more_than_a_year(redis_url, redis_server):
    """Law 14: a day's hash expires, 400 days after its last sum; so does the number of the last batch."""
    tier = open_redis(redis_url)
    tier.book(TODAY, {"hits": 1.0})
    assert tier.flush(GUARD)
    assert 399 < redis_server.cli("TTL", f"semcache:ns:use:{TODAY}") / 86_400 <= 400
    (booked,) = redis_server.cli("KEYS", "semcache:ns:booked:*")
    assert 0 < redis_server.cli("TTL", booked) <= 86_400
    tier.close()


# The file alone


def test_file_that_cannot_be_written_is_owed_its_sums(tmp_path):
    """What a transaction that failed would have booked is booked by the next that does not."""
    tier = DiskTier(tmp_path / "cache.db", namespace="ns", ttl=60.0, clock=ManualClock(), timeout=10.0, on_fault=print)
    writer = tier._store._writer
    commit = writer._commit

    def full(batch):
        raise OSError(28, "No space left on device")

    writer._commit = full
    tier.book(TODAY, {"hits": 1.0})
    assert not tier.flush(GUARD)
    writer._commit = commit
    tier.book(TODAY, {"hits": 10.0})
    assert tier.flush(GUARD)
    assert tier.booked(TODAY) == {(TODAY, "hits"): 11.0}
    tier.close()
