"""The Redis store by itself: positions, marks and the log, where a whole cache would hide what happens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from instruments import GUARD

from semcache.errors import ConfigurationError
from semcache.marks import Marks
from semcache.model import Entry, Evidence, Facets, Request
from semcache.plan import run
from semcache.stores.redis_keys import id_of, member, pack, pair_of, position_at, position_of
from semcache.tier import SystemClock
from semcache.tiers.redis import RedisTier


@pytest.fixture
def open_tier(redis_url):
    """Make tiers of one namespace, each with marks of its own, as processes have them."""
    opened = []

    def open_one(clock=None, url=redis_url):
        clock = clock or SystemClock()
        marks = Marks(clock.monotonic, 3600.0)
        tier = RedisTier(
            url, namespace="ns", ttl=100.0, clock=clock, timeout=10.0, marks=marks, on_fault=lambda reason, error: None
        )
        tier.marks = marks
        opened.append(tier)
        return tier

    yield open_one
    for tier in opened:
        tier.close()


def request(name=b"k", **facets):
    return Request(name, facets=Facets("ns", **facets))


def put(tier, name=b"k", value=b"v", **facets):
    run(tier.put(request(name, **facets), Entry(value, born=tier.position()), None))
    assert tier.flush(GUARD)


def value(tier, name=b"k", **facets):
    found = run(tier.get(request(name, **facets)))
    return found.entry.value if hasattr(found, "entry") else None


@pytest.mark.parametrize("stream_id", [b"1700000000000-0", b"1700000000000-4095", b"1577836800001-7"])
def test_position_and_stream_id_are_one_thing(stream_id):
    """A position is a stream id as a number, in the ids' order."""
    assert id_of(position_of(stream_id)) == stream_id


def test_positions_are_exact_as_scores():
    """A sorted set keeps scores as doubles: positions stay below 2**53 until 2089."""
    position = position_of(b"3700000000000-4095")
    assert int(float(position)) == position


def test_position_of_a_time_lies_before_all_ids_given_then():
    """A load that begins at a time is born before whatever is invalidated from then on."""
    assert position_at(1_700_000_000.0) < position_of(b"1700000000000-0")


@pytest.mark.parametrize("pair", [("key", b"\0\xff"), ("tag", "faq"), ("tenant", "ü\0x"), ("model", "\udcff")])
def test_facet_value_comes_back_from_its_member(pair):
    """Whatever a facet's value is, its mark is its own."""
    assert pair_of(member(*pair)) == pair


def test_mark_never_goes_back(open_tier, redis_server):
    """Law 8: of two invalidations that cross each other the later one stands, whichever is written last."""
    tier = open_tier()
    tier.join()
    later, _ = run(tier.mark([("tag", "t")]))
    run(tier._store._mark([("tag", "t")], later - 10_000))
    assert int(redis_server.cli("ZSCORE", "semcache:ns:marks", member("tag", "t"))) == later


def test_mark_lies_after_all_that_anybody_can_have_heard_of(open_tier, redis_server):
    """Law 8: also where the server's clock went back, a load born at the log's end is older than the next mark."""
    tier = open_tier()
    tier.join()
    redis_server.cli("XADD", "semcache:ns:log", "9700000000000-5", "r", b"\x91\xa1x")
    position, _ = run(tier.mark([("tag", "t")]))
    assert position > position_of(b"9700000000000-5")


def test_unfollowed_tier_reads_marks_in_the_gets_own_trip(open_tier):
    """Law 8: who does not follow the log serves nothing that was invalidated, by its key, function or tags."""
    one, other = open_tier(), open_tier()
    one.join()
    for facets in ({"function": "f"}, {"tags": ("t",)}, {"documents": ("d",)}):
        put(one, **facets)
        assert value(other, function=facets.get("function", "")) == b"v"
        ((facet, named),) = facets.items()
        pair = (facet.rstrip("s"), named if isinstance(named, str) else named[0])
        # The value itself is put back, as a late writer would, so that its mark alone is against it.
        kept = one._store.link.exchange([("GET", one._store.names.of(b"k"))], GUARD).values[0]
        run(one.mark([pair]))
        one._store.link.exchange([("SET", one._store.names.of(b"k"), kept)], GUARD)
        assert value(other, function=facets.get("function", "")) is None


def test_evicted_marks_leave_nothing_that_is_trusted(open_tier, redis_server):
    """Law 8: where a full server has evicted the marks, what stood before is a miss for who starts then."""
    one = open_tier()
    one.join()
    put(one, function="f")
    kept = redis_server.cli("GET", "semcache:ns:v:" + b"k".hex())
    run(one.mark([("function", "f")]))
    redis_server.cli("SET", "semcache:ns:v:" + b"k".hex(), kept)
    redis_server.cli("DEL", "semcache:ns:marks")
    late = open_tier()
    late.join()
    assert value(late, function="f") is None
    put(late, function="f", value=b"new")
    assert value(late, function="f") == b"new"


def test_survivor_writes_its_marks_anew(open_tier, redis_server):
    """Law 8: a server that comes back from an older snapshot learns from those who live what was invalidated since."""
    one = open_tier()
    one.join()
    put(one, function="f")
    kept = redis_server.cli("GET", "semcache:ns:v:" + b"k".hex())
    changes = one.follow(one.join().position)
    run(one.mark([("function", "f")]))
    redis_server.cli("ZREM", "semcache:ns:marks", member("function", "f"))
    redis_server.cli("DEL", "semcache:ns:log")
    redis_server.cli("SET", "semcache:ns:v:" + b"k".hex(), kept)
    one.join()
    late = open_tier()
    late.join()
    assert value(late, function="f") is None
    assert changes.is_whole


def test_log_trimmed_past_a_sleeper_is_told_whole(open_tier, redis_server):
    """Who slept past the log's trim is given all marks, and told to read the index anew."""
    sleeper, other = open_tier(), open_tier()
    since = sleeper.join().position
    other.join()
    run(other.mark([("tag", "t")]))
    redis_server.cli("XTRIM", "semcache:ns:log", "MAXLEN", 0)
    sleeper._store._verify_at = 0.0
    changes = sleeper.follow(since)
    assert not changes.is_whole
    assert ("tag", "t") in {mark[:2] for mark in changes.marks}


def test_flushed_server_is_a_reset(open_tier, redis_server):
    """Who finds another log than the one it followed drops what it has learned."""
    tier = open_tier()
    since = tier.join().position
    redis_server.cli("FLUSHALL")
    tier._store._verify_at = 0.0
    changes = tier.follow(since)
    assert changes.is_reset
    put(tier)
    assert value(tier) == b"v"


def test_servers_clock_counts(open_tier):
    """Law 5: a process whose clock is an hour off serves an entry no longer, and no shorter, than the others."""

    class Off(SystemClock):
        @staticmethod
        def time():
            return SystemClock.time() + 3600.0

    off, right = open_tier(Off()), open_tier()
    off.join()
    right.join()
    put(off)
    found = run(right.get(request()))
    assert 10.0 < found.entry.life <= 100.0
    assert 0 <= found.entry.age < 90.0


@pytest.mark.parametrize("url", ["localhost:6379", "http://x", "redis+cluster://x", 7, "redis://x?nonsense=1"])
def test_address_that_cannot_be_one_is_refused(open_tier, url):
    """What can never work is an error where it is said, with the forms there are; a password is never shown."""
    with pytest.raises(ConfigurationError, match="redis="):
        open_tier(url=url)


def test_client_object_is_taken_for_its_address(open_tier, redis_server):
    """A redis.Redis client says where to go; its own settings of time and retries are not taken over."""
    tier = open_tier(url=redis_server.client(socket_timeout=0.001))
    tier.join()
    put(tier)
    assert value(tier) == b"v"


def test_unix_socket_is_spoken_to(open_tier, redis_server, redis_url):
    """Over a unix socket as over TCP."""
    tier = open_tier(url=redis_server.unix_url)
    tier.join()
    put(tier)
    assert value(tier) == b"v"


@pytest.mark.parametrize("vector", [7, "text", b"odd", b"\0\0\0\0"])
def test_record_of_another_hand_does_not_stop_the_follower(open_tier, redis_server, vector):
    """Law 10: a row whose vector is none, or of another length, costs no row beside it, and is not met forever."""
    ours, other = open_tier(), open_tier()
    since = ours.join().position
    other.join()
    evidence = Evidence(vector=np.ones(3, np.float32))
    asked = replace(request(b"good"), scope=b"s", text="text", embedder="e")
    run(other.put(asked, Entry(b"v", born=other.position()), evidence))
    assert other.flush(GUARD)
    about = ["", "", "", "", [], []]
    record = pack(["a", b"odd", b"s", "e", "odd", vector, 4e9, about, b"another", other.position()])
    redis_server.client().xadd("semcache:ns:log", {"r": record})
    keys = []
    while b"good" not in keys or len(keys) < (2 if vector == b"\0\0\0\0" else 1):
        changes = ours.follow(since)
        since, keys = changes.position, keys + [row.key for row in changes.rows]
    assert since == position_of(redis_server.client().xrevrange("semcache:ns:log", count=1)[0][0])
    assert [row.key for row in ours.rows("e")] == keys
