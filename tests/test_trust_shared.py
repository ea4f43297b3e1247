"""What a policy has learned, in the exact store: shared by processes, there after a restart, and no usage."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager

import pytest
from instruments import GUARD, Compass, until

import semcache
from semcache.accounts import BOOK_SECONDS
from semcache.policy.label import Label, Source

pytestmark = pytest.mark.semantic

TEXT = "how do I pay my bill"


@pytest.fixture
def open_one(open_cache, store):
    """Make caches with a policy of their own over one store."""

    def make(**settings):
        cache = open_cache(**{
            "embedder": Compass(), "policy": semcache.ErrorBudget(0.05), "tenant": semcache.SHARED, "audit": 0.0,
        } | store | settings)  # fmt: skip
        cache.warm()
        return cache

    return make


def learn(cache, count, *, is_right=True, first=0):
    """Give the policy of a cache labels of a family."""
    request = cache.request(text=TEXT)
    cache.policy.within(request)
    for number in range(first, first + count):
        at = b"%d" % number
        cache.policy.learn(Label(request.family, at, at, "a", "b", 0.99, 0.99, is_right, Source.AUDIT))


def flush(cache):
    """Flush until the sums of all processes were read: a busy store is late, and read at the next time."""

    def is_read():
        late = [count for what, count in cache.stats().faults.items() if what.endswith("late")]
        cache.flush()
        return late == [count for what, count in cache.stats().faults.items() if what.endswith("late")]

    until(is_read)


def served(cache):
    """Say whether a near match of the family is served."""
    return cache.get_or_load(cache.request(text="in which way do I pay my bill"), lambda: "loaded") == "stored"


def test_what_was_learned_is_there_after_a_restart(open_one):
    """Labels, cut and alarms stand in the store: the next process serves what this one would."""
    cache = open_one()
    learn(cache, 1000)
    learn(cache, 6, is_right=False)
    learn(cache, 400, first=5000)
    flush(cache)
    before = cache.policy.status().families[0]
    cache.close()
    again = open_one()
    flush(again)
    after = again.policy.status().families[0]
    assert (before.state, before.alarms, before.cut) == ("open", 1, after.cut)
    assert (after.labels, after.wrong, after.alarms, after.state) == (before.labels, before.wrong, 1, "open")


def test_processes_add_up(open_one):
    """Neither has labels enough, both together have, and both serve."""
    one, other = open_one(), open_one()
    one.get_or_load(one.request(text=TEXT), lambda: "stored")
    flush(one)
    learn(one, 80)
    learn(other, 80, first=1000)
    assert one.policy.status().families[0].state == "closed"
    for cache in (one, other, one):
        flush(cache)
    for cache in (one, other):
        assert cache.policy.status().families[0].labels == 160
        assert cache.policy.status().families[0].state == "open"
        assert served(cache)


def test_learned_counts_are_no_usage(open_one):
    """What stands beside the counters of usage does not show in them, and goes with its season."""
    cache = open_one()
    learn(cache, 50)
    cache.flush()
    assert cache.usage() == []
    (day,) = {day for day, _ in cache.store.tallied(cache.policy.days())}
    assert day.endswith("t")
    assert cache.store.tallied(["2026-11-27"]) == {}


def test_counts_are_handed_over_while_the_cache_is_used(open_one, clock):
    """Nobody need flush: the follower hands over some seconds after it did last, and reads what others learned."""
    one, other = open_one(), open_one()
    learn(one, 200)
    for cache in (one, other):
        cache.get_or_load(cache.request(text="x"), lambda: "x")
    clock.advance(BOOK_SECONDS + 1)
    for cache in (one, other, one, other):
        cache._book_at = 0.0
        cache._book_when_due()
        assert cache.store.flush(GUARD)
    assert other.policy.status().families[0].labels == 200


def test_a_report_before_any_lookup_is_of_the_right_family(open_one):
    """A process that has looked nothing up knows all the same whose vectors it compares."""
    one, other = open_one(), open_one()
    request = one.request(text=TEXT)
    learn(one, 400)
    flush(one)
    flush(other)
    other.policy.learn(Label(request.family, b"asked", b"stored", "a", "b", 0.99, 0.99, False, Source.REPORT))
    (told,) = other.policy.status().families
    assert (told.labels, told.informing) == (400, 1)
    flush(other)
    flush(one)
    (told,) = one.policy.status().families
    assert (told.labels, told.informing) == (400, 1)


@pytest.fixture
def held_up(store, request):
    """Hold up all that writes to the store, while what reads goes on."""

    @contextmanager
    def hold():
        if "disk" in store:
            with closing(sqlite3.connect(store["disk"], isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield
                connection.execute("ROLLBACK")
        else:
            server = request.getfixturevalue("redis_server")
            server.cli("CLIENT", "PAUSE", "20000", "WRITE")
            yield
            server.cli("CLIENT", "UNPAUSE")

    return hold


def test_what_the_store_has_not_written_yet_is_not_forgotten(open_one, held_up):
    """Sums in which our own labels are missing are not taken for all there is, nor waited for in the follower."""
    cache = open_one()
    learn(cache, 400)
    cache.flush()
    learn(cache, 3, is_right=False, first=5000)
    with held_up():
        for _ in range(3):
            cache._book()
            told = cache.policy.status().families[0]
            assert (told.labels, told.wrong.count, told.alarms) == (403, 3, 0)
        assert any("late" in what for what in cache.stats().faults)
    assert cache.store.flush(GUARD)
    cache._book()
    told = cache.policy.status().families[0]
    assert (told.labels, told.wrong.count, told.alarms) == (403, 3, 0)


def test_a_store_that_cannot_be_asked_loses_nothing(open_one, monkeypatch):
    """What could not be handed over counts here, and is handed over later, once."""
    cache = open_one()
    learn(cache, 50)

    def fail(*_):
        raise semcache.TierError("unreachable", "no route")

    with monkeypatch.context() as patched:
        patched.setattr(cache.store, "book", fail)
        patched.setattr(cache.store, "tallied", fail)
        cache.flush()
        assert cache.policy.status().families[0].labels == 50
    cache.flush()
    cache.flush()
    assert cache.policy.status().families[0].labels == 50
    assert open_one().policy.status().families[0].labels == 50
