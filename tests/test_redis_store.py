"""The Redis store by itself: positions, marks and the log, where a whole cache would hide what happens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from instruments import GUARD

from semcache.errors import ConfigurationError, TierError
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


@pytest.mark.parametrize("pinned", [False, True])
def test_write_that_crosses_an_invalidation_leaves_nothing_behind(open_cache, redis_server, redis_url, pinned):
    """Law 8: what is written just after another process has invalidated it is taken back, before its mark is gone."""
    cache, other = (open_cache(redis=redis_url) for _ in range(2))
    request = cache.request("a")
    for each in (cache, other):
        each.get_or_load(each.request("warm"), lambda: "answer")
        assert each.flush(GUARD)
    store = cache.redis._store
    cache.log.stop()
    send = store._send

    def send_late(commands):
        if commands[0][0] == "SET":
            other.invalidate(key=request.key)
        return send(commands)

    exchange = store._steady.exchange
    late = iter([lambda: other.invalidate(key=request.key)])

    def exchange_late(commands, timeout, then=None):
        def after(replies):
            next(late, lambda: None)()
            return then(replies)

        return exchange(commands, timeout, then and after)

    store._send = send_late
    store._steady.exchange = exchange_late
    entry = Entry(cache.chain.codec.encode("old"), born=cache.log.position(), is_pinned=pinned)
    run(cache.redis.put(request, entry, None))
    assert cache.flush(GUARD)
    name = (store.names.of_pinned if pinned else store.names.of)(request.key)
    assert redis_server.cli("EXISTS", name) == 0
    assert redis_server.cli("HLEN", store.names.pinned) == 0


def test_cancelled_mark_leaves_nothing_to_be_served_here(open_tier):
    """Law 8: whoever invalidates and is cancelled before the server was asked is served nothing of it all the same."""
    tier = open_tier()
    tier.join()
    put(tier, tags=("t",))
    marking = tier.mark([("tag", "t")])
    next(marking)
    with pytest.raises(KeyboardInterrupt):
        marking.throw(KeyboardInterrupt)
    assert value(tier) is None
    put(tier, tags=("t",), value=b"new")
    assert value(tier) == b"new"


# The mode of all replicas


def mode_told(tier):
    """What a process that starts is told."""
    return tier.join().mode


@pytest.mark.parametrize("lost", ["everything", "the mode alone"])
def test_survivor_writes_the_mode_anew(open_tier, redis_server, lost):
    """A server that has forgotten the kill switch is told by those who heard of it, and tells who starts then."""
    said, heard = open_tier(), open_tier()
    since = heard.join().position
    run(said.switch("off"))
    assert heard.follow(since).mode == "off"
    said.close()
    redis_server.cli(*(["FLUSHALL"] if lost == "everything" else ["DEL", "semcache:ns:mode"]))
    heard._store._verify_at = 0.0
    assert heard.follow(since).mode == "off"
    assert mode_told(open_tier()) == "off"


def test_survivor_that_set_the_mode_itself_writes_it_anew(open_tier, redis_server):
    """Whoever was told that the switch is kept keeps it, also where its own record was never read."""
    tier = open_tier()
    tier.join()
    run(tier.switch("off"))
    redis_server.cli("FLUSHALL")
    assert mode_told(tier) == "off"
    assert mode_told(open_tier()) == "off"


@pytest.mark.parametrize("newer", ["live", "off"])
def test_survivor_does_not_set_a_newer_mode_back(open_tier, redis_server, newer):
    """Who was cut off while the switch was thrown takes the newer word, and does not write his own over it."""
    older = "off" if newer == "live" else "shadow"
    sleeper = open_tier()
    run(sleeper.switch(older))
    assert mode_told(sleeper) == older
    run(open_tier().switch(newer))
    assert mode_told(sleeper) == newer
    assert mode_told(open_tier()) == newer


def test_older_snapshots_mode_gives_way_to_the_survivors(open_tier, redis_server):
    """A server that comes back with an older switch than the latest is told the latest."""
    tier = open_tier()
    run(tier.switch("live"))
    run(tier.switch("off"))
    redis_server.cli("ZREM", "semcache:ns:mode", "off")
    assert mode_told(tier) == "off"
    assert mode_told(open_tier()) == "off"


def test_mode_is_the_latest_where_the_servers_clock_went_back(open_tier, redis_server):
    """A switch that was thrown in the future is no later than the one thrown now."""
    redis_server.cli("ZADD", "semcache:ns:mode", position_of(b"3700000000000-0"), "off")
    run(open_tier().switch("live"))
    assert mode_told(open_tier()) == "live"


def test_mode_that_the_server_refuses_raises(open_tier, redis_server):
    """A switch is kept when the call returns, or it raises."""
    redis_server.cli("SET", "semcache:ns:mode", "theirs")
    with pytest.raises(TierError, match="WRONGTYPE"):
        run(open_tier().switch("off"))


# How many trips


def trips(plan):
    """Carry out a plan; how many times it asks the server."""
    asked = 0
    try:
        step = next(plan)
        while True:
            asked += 1
            step = plan.send(step.run())
    except StopIteration:
        return asked


def test_first_read_of_an_unused_namespace_takes_two_trips(open_tier):
    """Who does not follow yet begins the namespace's marks in one trip more, and the next finds them there."""
    tier = open_tier()
    assert trips(tier.get(request())) == 2
    assert trips(tier.get(request())) == 1
    put(tier)
    assert value(tier) == b"v"
    assert trips(open_tier().get(request())) == 1


def test_first_read_of_who_follows_an_unused_namespace_takes_one_trip(open_tier):
    """What is to be begun the follower has begun, in nobody's way."""
    tier = open_tier()
    tier.join()
    assert trips(tier.get(request())) == 1


def test_marks_that_are_begun_lie_after_the_log_where_the_servers_clock_went_back(open_tier, redis_server):
    """Law 8: with the marks gone nothing that stands is trusted, were it born later than the server's time now."""
    redis_server.cli("XADD", "semcache:ns:log", "9700000000000-5", "r", b"\x91\xa1x")
    tier = open_tier()
    assert value(tier) is None
    assert tier.position() > position_of(b"9700000000000-5")
    assert tier.marks.cover([("namespace", "ns")], position_of(b"9700000000000-5"))


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
