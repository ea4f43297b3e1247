"""A Redis that is absent, killed, paused, full, closed to us or begun anew: the caller has the origin's answer or
error, unchanged and in time; nothing that was invalidated is served; what the server kept is found again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import threading
import time
from pathlib import Path

import pytest
from instruments import GUARD, Crew, Origin, SlowWire

import semcache
from semcache.blocks import Block
from semcache.errors import TierError
from semcache.ledger import Served, Taken, id_digest
from semcache.log import LOST_SECONDS
from semcache.marks import Marks
from semcache.plan import run
from semcache.stores.address import address_of
from semcache.stores.link import Link
from semcache.stores.redis_keys import id_of
from semcache.tier import SystemClock
from semcache.tiers.redis import RedisTier

SHORT = semcache.Timeouts(redis="50ms")
PATIENT = semcache.Timeouts(redis="10s")
LEAST_RIGHTS = (
    "+get", "+mget", "+set", "+unlink", "+exists", "+getrange", "+pexpire", "+zadd", "+zrem", "+zscore", "+zmscore",
    "+zrange", "+zrevrange", "+zremrangebyscore", "+zremrangebyrank", "+zscan", "+zcard", "+xadd", "+xread",
    "+xrange", "+xrevrange", "+xtrim", "+xinfo|stream", "+hset", "+hvals", "+hdel", "+hlen", "+hincrbyfloat",
    "+hmget", "+hgetall", "+watch", "+time", "+multi", "+exec",
)  # fmt: skip
OPERATIONS = Path(__file__).parent.parent / "docs" / "operations.md"


def works(cache, ask):
    """The caller has the origin's answer, and its error, as they are."""
    error = ValueError("the origin's own")
    for number in range(3):
        assert ask(cache, cache.request("good", number), lambda number=number: number) == number
        with pytest.raises(ValueError, match="the origin's own") as raised:
            ask(cache, cache.request("bad", number), Origin(error))
        assert raised.value is error


def faults(cache):
    return {kind for kind in cache.stats().faults if kind.startswith("redis: ")}


def until(condition):
    """Wait for what another thread or process does."""
    deadline = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def recovers(cache, clock, ask):
    """Soon after the server is back, its tier answers again."""
    deadline = time.monotonic() + GUARD
    for number in range(10**6):
        assert time.monotonic() < deadline, cache.stats().faults
        clock.advance(10)  # past any breaker's pause
        request = cache.request("again", number)
        ask(cache, request, lambda: "stored")
        cache.flush(GUARD)
        if ask(cache, request, lambda: "not found") == "stored":
            return


def test_server_that_is_absent_costs_hits_alone_and_is_found_when_it_comes(open_cache, own_redis, clock, ask):
    """Absent at start: the origin answers; the fault says so; when the server starts it is used."""
    server = own_redis()
    server.kill()
    cache = open_cache(redis=server.url, memory=0, timeouts=SHORT)
    works(cache, ask)
    assert "redis: unreachable" in faults(cache)
    server.start()
    recovers(cache, clock, ask)


@pytest.mark.parametrize("keep_data", [False, True])
def test_server_that_is_killed_and_started_anew(open_cache, own_redis, clock, ask, keep_data):
    """Killed, then restarted, empty or with its data: what it kept is found, what it lost is loaded."""
    server = own_redis(appendonly=True)
    server.cli("CONFIG", "SET", "appendfsync", "always")
    cache = open_cache(redis=server.url, memory=0, timeouts=PATIENT, ttl=semcache.TTL(redis="9d", jitter=0))
    kept = cache.request("kept")
    ask(cache, kept, lambda: "old")
    assert cache.flush(GUARD)
    server.kill()
    works(cache, ask)
    assert faults(cache)
    server.restart(keep_data=keep_data)
    recovers(cache, clock, ask)
    assert ask(cache, kept, lambda: "new") == ("old" if keep_data else "new")


def test_kill_switch_outlives_a_server_that_comes_back_empty(open_cache, own_redis):
    """What was switched off stays off, for who lived through it and for who starts then, until it is switched on."""
    server = own_redis()
    survivor = open_cache(redis=server.url, timeouts=PATIENT)
    survivor.warm()
    survivor.set_mode("off")
    server.restart()
    until(lambda: server.cli("ZRANGE", "semcache:tests:mode", 0, -1) == [b"off"])
    late = open_cache(redis=server.url, timeouts=PATIENT)
    late.warm()
    until(lambda: late.mode == "off")
    assert survivor.mode == "off"
    late.set_mode("live")
    until(lambda: survivor.mode == "live")


def test_invalidation_while_the_server_is_down_raises(open_cache, own_redis):
    """Law 8: what cannot be kept is not promised; in this process it is gone all the same."""
    server = own_redis()
    cache = open_cache(redis=server.url, timeouts=PATIENT)
    request = cache.request("a", function="f")
    cache.get_or_load(request, lambda: "old")
    assert cache.flush(GUARD)
    server.kill()
    with pytest.raises(semcache.InvalidationError, match="try again"):
        cache.invalidate(function="f")
    assert cache.probe(request.key) is None


def test_acknowledged_invalidation_outlives_a_restart(open_cache, own_redis):
    """Law 8: what the server kept of it holds for whoever comes then."""
    server = own_redis(appendonly=True)
    server.cli("CONFIG", "SET", "appendfsync", "always")
    cache = open_cache(redis=server.url, timeouts=PATIENT)
    request = cache.request("a", function="f")
    cache.get_or_load(request, lambda: "old")
    assert cache.flush(GUARD)
    assert cache.invalidate(function="f") == 1
    cache.close()
    server.restart(keep_data=True)
    late = open_cache(redis=server.url, timeouts=PATIENT)
    assert late.get_or_load(request, lambda: "new") == "new"


def test_paused_server_is_late_and_then_left_alone(open_cache, own_redis, clock, ask):
    """SIGSTOP: each lookup waits its budget at most, then the breaker opens; resumed, the server is used again."""
    server = own_redis()
    cache = open_cache(redis=server.url, memory=0, timeouts=SHORT)
    ask(cache, cache.request("a"), lambda: "stored")
    assert cache.flush(GUARD)
    server.pause()
    for number in range(8):
        assert ask(cache, cache.request("paused", number), lambda: "loaded") == "loaded"
    assert {"redis: late", "redis: open"} <= faults(cache)
    server.resume()
    recovers(cache, clock, ask)
    assert ask(cache, cache.request("a"), lambda: "new") == "stored"


def test_server_whose_clients_are_paused_is_late(open_cache, own_redis, clock, ask):
    """CLIENT PAUSE: the connection stands, the answer does not come."""
    server = own_redis()
    cache = open_cache(redis=server.url, memory=0, timeouts=SHORT)
    ask(cache, cache.request("a"), lambda: "stored")
    assert cache.flush(GUARD)
    server.cli("CLIENT", "PAUSE", 2000, "ALL")
    assert ask(cache, cache.request("paused"), lambda: "loaded") == "loaded"
    assert "redis: late" in faults(cache)
    recovers(cache, clock, ask)


def test_full_server_that_evicts_nothing_loses_puts_alone(open_cache, own_redis, ask):
    """noeviction: what is there is served, what is new is not kept, and that is told."""
    server = own_redis(args=["--maxmemory-policy", "noeviction"])
    cache = open_cache(redis=server.url, memory=0, timeouts=PATIENT)
    ask(cache, cache.request("a"), lambda: "stored")
    assert cache.flush(GUARD)
    server.cli("CONFIG", "SET", "maxmemory", "1")
    assert ask(cache, cache.request("b"), lambda: "loaded") == "loaded"
    assert not cache.flush(GUARD)
    assert ask(cache, cache.request("a"), lambda: "new") == "stored"
    assert cache.stats().tiers["redis"]["lost"] == 1
    assert "redis: space" in faults(cache)
    with pytest.raises(semcache.InvalidationError):
        cache.invalidate(namespace="tests")
    server.cli("CONFIG", "SET", "maxmemory", "0")
    ask(cache, cache.request("b"), lambda: "loaded")
    assert cache.flush(GUARD)
    assert ask(cache, cache.request("b"), lambda: "new") == "loaded"


def test_full_server_that_evicts_serves_nothing_invalidated(open_cache, own_redis):
    """allkeys-lru may evict the marks and the log too: who starts then trusts nothing that stood."""
    server = own_redis(args=["--maxmemory-policy", "allkeys-lru"])
    cache = open_cache(redis=server.url, memory=0, timeouts=PATIENT, max_value="1MB")
    request = cache.request("a", function="f")
    cache.get_or_load(request, lambda: "old")
    assert cache.flush(GUARD)
    value = server.cli("GET", "semcache:tests:v:" + request.key.hex())
    cache.invalidate(function="f")
    cache.close()
    used = server.client().info("memory")["used_memory"]
    server.cli("CONFIG", "SET", "maxmemory", str(used + 200_000))
    numbers, deadline = itertools.count(), time.monotonic() + GUARD
    while server.cli("EXISTS", "semcache:tests:marks", "semcache:tests:log"):
        assert time.monotonic() < deadline, "nothing of ours was evicted"
        server.cli("SET", f"theirs:{next(numbers)}", "x" * 4000)
    server.cli("CONFIG", "SET", "maxmemory", "0")
    server.cli("SET", "semcache:tests:v:" + request.key.hex(), value)  # had it not been dropped, it might stand
    late = open_cache(redis=server.url, memory=0, timeouts=PATIENT)
    assert late.get_or_load(request, lambda: "new") == "new"


@pytest.mark.parametrize("how", ["password", "rights"])
def test_server_that_refuses_us_is_named_and_used_once_it_lets_us_in(open_cache, own_redis, clock, how, ask):
    """A wrong password, or a user without rights: misses, and one word that says why; mended, it is used."""
    server = own_redis(password="secret")
    if how == "password":
        url = server.url.replace("secret", "wrong")
    else:
        server.cli("ACL", "SETUSER", "poor", "on", ">pw", "~semcache:*", "+ping")
        url = server.url.replace(":secret@", "poor:pw@")
    cache = open_cache(redis=url, memory=0, timeouts=PATIENT)
    works(cache, ask)
    assert "redis: rights" in faults(cache)
    if how == "password":
        server.cli("ACL", "SETUSER", "default", ">wrong")
    else:
        server.cli("ACL", "SETUSER", "poor", *LEAST_RIGHTS)
    recovers(cache, clock, ask)


def live(cache, other, clear):
    """Do all that caches do to their server: look up, keep, slide, match, count, invalidate, switch, book, report."""
    request = cache.request(text="stored", function="f", tags="t", ttl=60, sliding=True)
    cache.get_or_load(request, lambda: "answer")
    assert cache.flush(GUARD)
    clear(cache)
    assert cache.get_or_load(request, lambda: "new") == "answer"
    assert other.get_or_load(request, lambda: "new") == "answer"
    assert cache.invalidate(tag="t", dry_run=True) == 1
    assert cache.invalidate(key=request.key, dry_run=True) == 1
    assert cache.invalidate(tag="t") == 1
    cache.invalidate(key=request.key)
    assert cache.stats().tiers["redis"]["lost"] == 0
    cache.set_mode("exact")
    deadline = time.monotonic() + GUARD
    while other.mode != "exact":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    cache.set_mode("live")
    cache.store.book("2001-09-09", {"hits": 1.0})
    assert cache.store.booked("2001-09-09")[("2001-09-09", "hits")] == 1.0
    reports, block = cache.store.reports, Block(b"stored", b"words", 0.9, 1e9)
    row = Served(cache.clock.time(), b"asked", b"stored", 0.9, "a", "b", b"words")
    reports.serve_now(Taken([row], {id_digest("chatcmpl-1"): request.key}))
    assert (reports.served({}), reports.named("chatcmpl-1")) == ([row], request.key)
    reports.block([block])
    reports.unblock([block])
    assert reports.blocked() == []


def rights_used(server):
    """Return what the server was asked to do, as rights."""
    told = server.client().info("commandstats")
    used = {"+" + name.removeprefix("cmdstat_") for name, counts in told.items() if counts["calls"]}
    return used - {"+info", "+config|resetstat", "+acl|log", "+auth", "+hello", "+client|setinfo"}


@pytest.mark.semantic
def test_least_rights_suffice_and_each_is_used(open_near, own_redis):
    """The least rights are all that a whole life takes, under our prefix: nothing is denied, and none is idle."""
    server = own_redis()
    server.cli("ACL", "SETUSER", "least", "on", ">pw", "~semcache:tests:*", *LEAST_RIGHTS)
    url = server.url.replace("redis://", "redis://least:pw@")
    degrees = {"stored": 0, "asked": 1}
    server.cli("CONFIG", "RESETSTAT")
    cache, other = (open_near(degrees, redis=url, timeouts=PATIENT) for _ in range(2))
    live(cache, other, lambda cache: cache.memory.clear())
    deadline = time.monotonic() + GUARD
    while not rights_used(server) >= set(LEAST_RIGHTS):
        assert time.monotonic() < deadline, set(LEAST_RIGHTS) - rights_used(server)
        cache.redis._store.is_followed = False  # as after a cut: a read then asks for the marks too
        cache.memory.clear()
        cache.get_or_load(cache.request("again"), lambda: "answer")
        other.memory.clear()
        other.get_or_load_many(
            [other.request("again"), other.request("and again")], lambda places: ["answer"] * len(places)
        )
        cache.put(cache.request("pinned", tags="curated"), value="answer", pinned=True)
        assert cache.flush(GUARD)
        cache.invalidate(tag="curated")
    cache.close()
    other.close()
    assert rights_used(server) == set(LEAST_RIGHTS)
    assert server.cli("ACL", "LOG") == []


def test_least_rights_are_those_that_operators_are_told():
    """docs/operations.md names the same rights, and the one that another database than the first needs."""
    (told,) = re.findall(r"ACL SETUSER .*?```", OPERATIONS.read_text(), re.DOTALL)
    assert set(re.findall(r" (\+[a-z|]+)", told)) == {*LEAST_RIGHTS, "+select"}


def test_connection_cap_is_named_and_the_server_used_once_it_is_raised(open_cache, own_redis, clock, ask):
    """maxclients reached: misses, and the mend; raised, the server is used."""
    server = own_redis()
    theirs = server.client(single_connection_client=True)
    theirs.config_set("maxclients", 1)
    heard = []
    cache = open_cache(redis=server.url, memory=0, timeouts=PATIENT, observers=[heard.append])
    works(cache, ask)
    assert "redis: clients" in faults(cache)
    assert any("maxclients" in message for event in heard for tier, _, message in event.faults if tier == "redis")
    theirs.config_set("maxclients", 1000)
    recovers(cache, clock, ask)


def test_pool_that_is_used_up_is_a_miss_in_time(open_cache, own_redis):
    """With all connections in use a caller waits his budget at most, and then for nothing."""
    server = own_redis()
    cache = open_cache(redis=server.url + "?max_connections=1", memory=0, timeouts=semcache.Timeouts(redis="200ms"))
    cache.get_or_load(cache.request("a"), lambda: "stored")
    assert cache.flush(GUARD)
    link = cache.redis._store.link
    assert link._free.get(timeout=GUARD) is None
    try:
        assert cache.get_or_load(cache.request("b"), lambda: "loaded") == "loaded"
        assert "redis: pool" in faults(cache)
    finally:
        link._free.put(None)


def test_large_value_is_kept_whole(open_cache, own_redis, ask):
    """10 MB: not kept over `max_value`, kept and found whole within it."""
    server = own_redis()
    large = "x" * 10_000_000
    small = open_cache(redis=server.url, memory=0, timeouts=PATIENT)
    with semcache.trace() as seen:
        assert ask(small, small.request("a"), lambda: large) == large
    assert seen.lookups[0].reason == "not kept: over max_value"
    assert small.flush(GUARD)
    assert ask(small, small.request("a"), lambda: "new") == "new"
    wide = open_cache(redis=server.url, memory=0, timeouts=PATIENT, max_value="20MB")
    assert ask(wide, wide.request("b"), lambda: large) == large
    assert wide.flush(GUARD)
    assert ask(wide, wide.request("b"), lambda: "new") == large


@pytest.fixture
def open_slowly(own_redis, open_cache):
    """Make caches of one server with a password, which stores "a" as told, over a wire of some pace."""
    server, wires = own_redis(password="secret"), []

    def open_one(pace, answer, **settings):
        settings = {"memory": 0, "max_value": "20MB"} | settings
        with open_cache(redis=server.url, memory=0, max_value="20MB") as near:
            near.get_or_load(near.request("a"), lambda: answer)
            assert near.flush(GUARD)
        wires.append(SlowWire(server.port, pace))
        return open_cache(redis=f"redis://:secret@127.0.0.1:{wires[-1].port}/0", **settings)

    yield open_one
    for wire in wires:
        wire.__exit__()


def test_answer_that_comes_in_many_pieces_has_one_budget(open_slowly, ask):
    """Every piece comes in time, all of them do not: a miss, not one budget for each."""
    cache = open_slowly(0.04, "x" * 2_000_000, timeouts=semcache.Timeouts(redis="500ms"))
    assert ask(cache, cache.request("a"), lambda: "loaded") == "loaded"
    assert "redis: late" in faults(cache)


def test_large_answer_over_a_slow_wire_is_found_within_its_budget(open_slowly, ask):
    """10 MB that come slowly, and go on coming, are found by who has the time."""
    large = "x" * 10_000_000
    cache = open_slowly(0.005, large, timeouts=semcache.Timeouts(redis="30s"))
    assert ask(cache, cache.request("a"), lambda: "loaded") == large


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_first_call_has_one_budget_for_connecting_and_asking_and_leaves_a_connection(open_slowly, clock, colour):
    """Connecting and asking each take less than the budget, both take more: a miss, and the next finds a connection."""
    cache = open_slowly(0.2, "stored", timeouts=semcache.Timeouts(redis="350ms"))
    request = cache.request("a")

    async def main():
        found = []
        deadline = time.monotonic() + GUARD
        while "stored" not in found:
            assert time.monotonic() < deadline, cache.stats().faults
            clock.advance(10)  # past any breaker's pause
            if colour == "sync":
                found.append(cache.get_or_load(request, lambda: "loaded", when=lambda answer: False))
            else:
                found.append(await cache.aget_or_load(request, lambda: "loaded", when=lambda answer: False))
        return found

    assert asyncio.run(main())[0] == "loaded"
    assert "redis: late" in faults(cache)


def test_caller_that_waited_for_a_connection_has_what_is_left_for_the_answer(own_redis):
    """The time spent waiting for a connection is not given again for the answer."""
    server = own_redis()
    with SlowWire(server.port, 0.3) as wire:
        link = Link(address_of(f"redis://127.0.0.1:{wire.port}/0?max_connections=1"))
        assert link.exchange([("PING",)], GUARD).values == [b"PONG"]
        told, deadline = None, time.monotonic() + GUARD
        with Crew(1) as crew:
            while told is None:  # where this thread comes late to the queue, it has not waited enough
                assert time.monotonic() < deadline
                first = crew.submit(link.exchange, [("PING",)], GUARD)
                while link._free.qsize() and not first.done():
                    pass
                try:
                    link.exchange([("PING",)], 0.4)
                except TierError as error:
                    told = error.reason
                first.result(GUARD)
        assert told == "late"
        link.close()


def test_bytes_that_are_not_ours_are_a_miss_and_overwritten(open_cache, redis_server, redis_url, ask):
    """Law 9: whatever stands at our key, it is loaded anew."""
    cache = open_cache(redis=redis_url, memory=0)
    request = cache.request("a")
    name = "semcache:tests:v:" + request.key.hex()
    ask(cache, request, lambda: "first")
    assert cache.flush(GUARD)
    stored = redis_server.cli("GET", name)
    for foreign in (b"", b"\x01", b"theirs" * 40, stored[:-1], bytes([9]) + stored[1:], stored[:-1] + b"\0"):
        redis_server.cli("SET", name, foreign)
        assert ask(cache, request, lambda: "loaded") == "loaded"
        assert cache.flush(GUARD)
        assert ask(cache, request, lambda: "not again") == "loaded"
    assert "redis: DecodeError" in faults(cache)


def test_another_kind_of_key_at_ours_costs_hits_alone(open_cache, redis_server, redis_url, ask):
    """Somebody's list under our key is an error of the store, and no error of the caller's."""
    cache = open_cache(redis=redis_url, memory=0)
    request = cache.request("a")
    redis_server.cli("RPUSH", "semcache:tests:v:" + request.key.hex(), "x")
    assert ask(cache, request, lambda: "loaded") == "loaded"
    assert "redis: reply" in faults(cache)


def test_memory_is_trusted_for_seconds_while_nobody_can_tell_of_invalidations(open_cache, own_redis, clock):
    """A process that has lost the log serves what memory holds for LOST_SECONDS, and no longer; then it loads."""
    server = own_redis()
    lost = threading.Event()

    def hear(event):
        if event.kind == "fault" and event.reason == "unfollowed":
            lost.set()

    cache = open_cache(redis=server.url, timeouts=PATIENT, observers=[hear])
    request = cache.request("a")
    cache.get_or_load(request, lambda: "old")
    assert cache.flush(GUARD)
    until(lambda: cache.redis._store.is_followed)
    server.kill()
    assert lost.wait(GUARD)
    clock.advance(LOST_SECONDS - 1)
    assert cache.get_or_load(request, lambda: "new") == "old"
    clock.advance(2)
    assert cache.get_or_load(request, lambda: "new") == "new"
    clock.advance(LOST_SECONDS - 1)
    assert cache.get_or_load(request, lambda: "newer") == "new"
    clock.advance(2)
    assert cache.get_or_load(request, lambda: "newer") == "newer"


def test_memory_is_trusted_for_seconds_where_the_server_was_never_there(open_cache, own_redis, clock):
    """Law 8: absent from the start is lost too, and told once; found, memory has its whole life again."""
    server, told = own_redis(), threading.Semaphore(0)
    server.kill()

    def hear(event):
        if event.kind == "fault" and event.reason == "unfollowed":
            told.release()

    cache = open_cache(redis=server.url, timeouts=SHORT, observers=[hear])
    request = cache.request("a")
    cache.get_or_load(request, lambda: "old")
    assert told.acquire(timeout=GUARD)
    clock.advance(LOST_SECONDS - 1)
    assert cache.get_or_load(request, lambda: "new") == "old"
    clock.advance(2)
    assert cache.get_or_load(request, lambda: "new") == "new"
    server.start()
    until(lambda: cache.redis._store.is_followed)
    recovers(cache, clock, lambda cache, asked, load: cache.get_or_load(asked, load))
    cache.get_or_load(request, lambda: "newer")
    clock.advance(LOST_SECONDS + 1)
    assert cache.probe(request.key) is not None
    assert not told.acquire(blocking=False)


def test_forked_child_whose_server_is_gone_trusts_its_memory_for_seconds(open_cache, own_redis, clock):
    """Law 8: what a child has in memory from its parent, it serves no longer than a parent that lost the log would."""
    server = own_redis()
    cache = open_cache(redis=server.url, timeouts=SHORT)
    request = cache.request("a")
    cache.get_or_load(request, lambda: "old")
    assert cache.flush(GUARD)
    server.pause()  # the parent's follower, which waits for an answer, has not noticed yet
    child = os.fork()
    if not child:
        status = 1
        try:
            cache.get_or_load(cache.request("b"), lambda: "loaded")
            until(lambda: "redis: unfollowed" in faults(cache))
            clock.advance(LOST_SECONDS + 1)
            status = int(cache.get_or_load(request, lambda: "new") != "new")
        finally:
            os._exit(status)
    server.kill()
    assert os.waitpid(child, 0)[1] == 0


def test_open_and_close_leaves_nothing_behind(own_redis):
    """A cache that is closed leaves no thread, no connection and no memory: over many cycles the counts stand still."""
    server = own_redis()

    def cycle():
        with semcache.Cache("tests", redis=server.url, timeouts=PATIENT) as cache:
            cache.get_or_load(cache.request("a"), lambda: "answer")
            cache.flush(GUARD)

    cycle()
    before = threading.active_count()
    for _ in range(30):
        cycle()
    assert threading.active_count() == before
    deadline = time.monotonic() + GUARD
    while len(server.client().client_list()) > 2:
        assert time.monotonic() < deadline, server.client().client_list()
        time.sleep(0.01)


# The log, trimmed or given ids in the past


@pytest.fixture
def open_tier(own_redis):
    """Make tiers of one namespace in one server, each with marks of its own, as processes have them."""
    server, opened = own_redis(), []

    def open_one():
        marks = Marks(SystemClock().monotonic, 3600.0)
        tier = RedisTier(
            server.url, namespace="tests", ttl=100.0, clock=SystemClock(), timeout=10.0, marks=marks,
            on_fault=lambda reason, error: None,
        )  # fmt: skip
        tier.server, tier.marks = server, marks
        opened.append(tier)
        return tier

    yield open_one
    for tier in opened:
        tier.close()


def knows(tier, tag):
    """Whether a tag's mark was heard of here."""
    return ("tag", tag) in {mark[:2] for mark in tier.marks.since(0)}


def follow(tier, since):
    """Follow the log until it has been verified after all that has come; what was told."""
    told = []
    for _ in range(3):
        told.append(tier.follow(since))
        since = told[-1].position
        tier._store._verify_at = 0.0
    return told


def test_log_trimmed_past_a_sleeper_is_told_whole(open_tier):
    """Who slept past the log's trim is given all marks, and told to read the index anew."""
    sleeper, other = open_tier(), open_tier()
    since = sleeper.join().position
    other.join()
    for tag in ("one", "two", "three"):
        run(other.mark([("tag", tag)]))
    sleeper.server.cli("XTRIM", "semcache:tests:log", "MAXLEN", 0)
    told = follow(sleeper, since)
    (missed,) = [changes for changes in told if not changes.is_whole]
    assert {("tag", "one"), ("tag", "two"), ("tag", "three")} <= {mark[:2] for mark in missed.marks}
    assert not missed.is_reset
    assert all(knows(sleeper, tag) for tag in ("one", "two", "three"))


def test_log_trimmed_between_a_look_at_it_and_the_next_read_is_told_whole(open_tier):
    """Who reads as many records after a gap as there were in it has still missed those in it."""
    sleeper, other = open_tier(), open_tier()
    other.join()
    since = sleeper.join().position
    run(other.mark([("tag", "missed")]))
    sleeper.server.cli("XTRIM", "semcache:tests:log", "MAXLEN", 0)
    for tag in ("read", "read too"):
        run(other.mark([("tag", tag)]))
    assert any(not changes.is_whole for changes in follow(sleeper, since))
    assert knows(sleeper, "missed")


def test_record_with_an_id_in_the_past_is_not_missed(open_tier):
    """A server whose clock went back gives ids that lie before where an idle log was joined."""
    tier = open_tier()
    since = tier.join().position
    tier.server.cli("ZADD", "semcache:tests:marks", since + 1, b"tag\0missed")
    tier.server.cli("XADD", "semcache:tests:log", id_of(since - (500 << 12)), "r", b"of a mark")
    follow(tier, since)
    assert knows(tier, "missed")
