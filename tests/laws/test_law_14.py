"""Law 14: the user's Redis is the user's."""

from __future__ import annotations

import pytest
from instruments import GUARD

import semcache
from semcache.blocks import Block
from semcache.errors import TierError
from semcache.ledger import Served, Taken

THEIRS = {b"theirs": b"precious", b"semcache:shop2:v:00": b"another service's"}


@pytest.fixture
def cache(open_cache, redis_server, redis_url):
    """A cache beside what others keep in the same Redis."""
    for name, value in THEIRS.items():
        redis_server.cli("SET", name, value)
    return open_cache("shop", redis=redis_url)


def live(cache):
    """Do all that a cache does to its Redis."""
    for number in range(20):
        request = cache.request("q", number, function="f", tags="t", model="m")
        cache.get_or_load(request, lambda: "answer")
    assert cache.flush(GUARD)
    cache.memory.clear()
    cache.get_or_load(request, lambda: "answer")
    cache.get_or_load(cache.request("slides", ttl=60, sliding=True), lambda: "answer")
    assert cache.flush(GUARD)
    cache.memory.clear()
    cache.get_or_load(cache.request("slides", ttl=60, sliding=True), lambda: "answer")
    cache.invalidate(key=request.key)
    assert cache.invalidate(tag="t", dry_run=True) == 19
    assert cache.invalidate(tag="t") == 19
    cache.get_or_load(request, lambda: "answer")
    assert cache.flush(GUARD)
    cache.put(cache.request("pinned", tags="t"), value="curated", pinned=True)
    assert cache.flush(GUARD)
    cache.set_mode("exact")
    cache.store.book("2001-09-09", {"hits": 1.0})
    assert cache.flush(GUARD)
    assert cache.store.booked("2001-09-09")[("2001-09-09", "hits")] == 1.0
    reports, row = cache.store.reports, Served(cache.clock.time(), b"asked", b"stored", 0.9, "a", "b", b"words")
    reports.serve(Taken([row], {b"id": b"stored"}), print)
    assert cache.flush(GUARD)
    assert reports.served({}) == [row]
    reports.block([Block(b"stored", b"words", 0.9, 1e9), Block(b"stored", b"others", 0.9, 1e9)])
    reports.unblock([Block(b"stored", b"others", 0.9, 1e9)])
    assert len(reports.blocked()) == 1
    assert cache.report_wrong(response_id="chatcmpl-none").reason
    cache.stats()


def test_only_keys_under_our_prefix_are_written(cache, redis_server):
    """Law 14: what is written stands under `semcache:NAMESPACE:`, and what others keep stays as it is."""
    live(cache)
    cache.close()
    names = set(redis_server.cli("KEYS", "*")) - THEIRS.keys()
    assert names
    assert all(name.startswith(b"semcache:shop:") for name in names)
    assert {name: redis_server.cli("GET", name) for name in THEIRS} == THEIRS


def test_invalidating_a_whole_namespace_leaves_the_others_alone(cache, redis_server):
    """Law 14: the largest thing there is to invalidate is one's own namespace."""
    live(cache)
    cache.invalidate(namespace="shop")
    assert {name: redis_server.cli("GET", name) for name in THEIRS} == THEIRS
    with pytest.raises(semcache.ConfigurationError, match="namespace"):
        cache.invalidate(namespace="shop2")


def test_every_key_has_an_expiry(cache, redis_server):
    """Law 14: every key has an expiry; but for the modes, what is pinned and what was reported, which are bounded."""
    live(cache)
    cache.close()
    names = set(redis_server.cli("KEYS", "semcache:shop:*"))
    forever = {name for name in names if redis_server.cli("PTTL", name) < 0}
    pinned = {name for name in forever if name.startswith(b"semcache:shop:p:")}
    assert len(pinned) == 1
    assert forever - pinned == {b"semcache:shop:mode", b"semcache:shop:pinned", b"semcache:shop:wrong"}


def test_what_is_pinned_is_bounded(cache, monkeypatch):
    """Law 14: what has no expiry has a bound, in number and in bytes; an invalidation makes room."""
    monkeypatch.setattr("semcache.stores.redis_pins.MAX_PINNED", 2)
    for number in range(2):
        cache.put(cache.request(number, tags="t"), value="curated", pinned=True)
    with pytest.raises(TierError, match=r"2 entries of [0-9]+ bytes are pinned"):
        cache.put(cache.request(2), value="curated", pinned=True)
    cache.put(cache.request(1, tags="t"), value="anew", pinned=True)
    cache.invalidate(tag="t")
    monkeypatch.setattr("semcache.stores.redis_pins.MAX_PINNED_BYTES", 1000)
    cache.put(cache.request(3), value="x" * 500, pinned=True)
    with pytest.raises(TierError, match="bytes are pinned"):
        cache.put(cache.request(4), value="x" * 500, pinned=True)


def test_commands_that_are_not_ours_to_give_are_never_sent(cache, redis_server):
    """Law 14: no CONFIG, KEYS, SCAN, FLUSH, no scripts; counted by the server itself."""
    redis_server.cli("CONFIG", "RESETSTAT")
    live(cache)
    cache.close()
    told = redis_server.client().info("commandstats")
    sent = {name.removeprefix("cmdstat_").partition("|")[0] for name in told}
    assert not sent & {"keys", "scan", "flushdb", "flushall", "eval", "evalsha", "fcall", "function", "script", "debug"}
    assert told.get("cmdstat_config|set") is None


def test_shared_store_wants_a_namespace(redis_url):
    """Law 14: no two services meet by default."""
    with pytest.raises(semcache.ConfigurationError, match="namespace"):
        semcache.Cache(redis=redis_url)


@pytest.mark.parametrize("namespace", ["a:b", "a*", "a b", "a%3Ab", "ü"])
def test_strange_namespaces_do_not_meet(open_cache, redis_server, redis_url, namespace):
    """Law 14: a namespace is quoted, so that none is a part or a pattern of another."""
    cache = open_cache(namespace, redis=redis_url, memory=0)
    other = open_cache("a", redis=redis_url, memory=0)
    cache.get_or_load(cache.request("q"), lambda: "ours")
    assert cache.flush(GUARD)
    assert other.invalidate(namespace="a") == 0
    assert cache.get_or_load(cache.request("q"), lambda: "not again") == "ours"
    names = {name.split(b":")[1] for name in redis_server.cli("KEYS", "semcache:*")}
    assert len(names) == 2
