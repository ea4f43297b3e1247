"""Seeding: curated answers that nobody loaded, and pinned ones, over every kind of store."""

from __future__ import annotations

import time

import pytest
from instruments import GUARD, Compass, Crew, Origin

import semcache
from semcache.errors import EncodeError, InvalidationError, TierError

STORES = ["memory", "disk", "redis"]


def until(happens):
    """Ask again until it happens, as it does when the others' log was read."""
    deadline = time.monotonic() + GUARD
    while not happens():
        assert time.monotonic() < deadline


@pytest.fixture
def open_store(open_cache, tmp_path, request):
    """Open caches over one store."""

    def open_one(store, **more):
        if store == "disk":
            more["disk"] = tmp_path / "cache.db"
        if store == "redis":
            more["redis"] = request.getfixturevalue("redis_url")
        return open_cache(**more)

    return open_one


@pytest.mark.parametrize("store", STORES)
def test_put_answer_is_served_and_not_loaded(open_store, ask, store):
    """What was put stands where a loaded answer would."""
    cache = open_store(store)
    origin = Origin("loaded")
    cache.put(cache.request("a"), value={"answer": 1})
    assert ask(cache, cache.request("a"), origin) == {"answer": 1}
    assert origin.calls == 0


@pytest.mark.parametrize("store", STORES)
def test_put_takes_the_place_of_what_stands(open_store, ask, store):
    """A curated answer replaces a loaded one, also in memory."""
    cache = open_store(store)
    assert ask(cache, cache.request("a"), Origin("loaded")) == "loaded"
    cache.put(cache.request("a"), value="curated")
    assert ask(cache, cache.request("a"), Origin("loaded")) == "curated"
    assert cache.flush(10)
    assert ask(cache, cache.request("a"), Origin("loaded")) == "curated"


@pytest.mark.parametrize("store", STORES)
def test_put_right_after_an_invalidation_stays(open_store, ask, store):
    """Law 8 the other way round: what is put after `invalidate` has returned is younger, whoever called it."""
    cache, other = open_store(store), open_store(store)
    for n in range(20):
        other.invalidate(namespace=other.namespace)
        cache.put(cache.request("a"), value=n)
        assert cache.flush(10)
        assert ask(cache, cache.request("a"), Origin("loaded")) == n


@pytest.mark.parametrize("store", STORES)
def test_pinned_answer_outlives_every_ttl(open_store, ask, clock, store):
    """No ttl ends a pinned answer."""
    cache = open_store(store, ttl=semcache.TTL(memory=10, disk=20, redis=20, semantic=20, jitter=0))
    cache.put(cache.request("a", ttl=5), value="curated", pinned=True)
    assert cache.flush(10)
    clock.advance(1_000_000)
    assert ask(cache, cache.request("a"), Origin("loaded")) == "curated"


@pytest.mark.parametrize("store", STORES)
def test_load_does_not_take_the_place_of_a_pinned_answer(open_store, ask, store):
    """Who refreshes is given what it loads; the pinned answer stays for all others."""
    cache = open_store(store)
    cache.put(cache.request("a"), value="curated", pinned=True)
    assert cache.flush(10)
    with semcache.context(mode="refresh"):
        assert ask(cache, cache.request("a"), Origin("loaded")) == "loaded"
    assert cache.flush(10)
    assert ask(cache, cache.request("a"), Origin("loaded")) == "curated"


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("facet", ["key", "tag", "namespace"])
def test_pinned_answer_ends_with_its_invalidation(open_store, ask, store, facet):
    """An invalidation means pinned answers too, counts them, and makes room for others."""
    cache = open_store(store)
    request = cache.request("a", tags=["faq"])
    cache.put(request, value="curated", pinned=True)
    assert cache.flush(10)
    told = {facet: {"key": request.key, "tag": "faq", "namespace": cache.namespace}[facet]}
    assert cache.invalidate(**told, dry_run=True) == 1
    assert ask(cache, request, Origin("loaded")) == "curated"
    assert cache.invalidate(**told) == 1
    assert cache.invalidate(**told, dry_run=True) == 0
    assert ask(cache, request, Origin("loaded")) == "loaded"


@pytest.mark.parametrize("store", STORES)
def test_pinned_answer_can_be_pinned_anew(open_store, ask, store):
    """The later of two pinned answers is served."""
    cache = open_store(store)
    for answer in ("first", "second"):
        cache.put(cache.request("a"), value=answer, pinned=True)
        assert cache.flush(10)
        assert ask(cache, cache.request("a"), Origin("loaded")) == answer


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_put_takes_the_place_of_what_others_have_in_memory(open_store, ask, store):
    """A curated answer is told to all: nobody goes on with the loaded one in his memory."""
    cache, other = open_store(store), open_store(store)
    assert ask(other, other.request("a"), Origin("loaded")) == "loaded"
    assert other.flush(10)
    cache.put(cache.request("a"), value="curated")
    assert cache.flush(10)
    until(lambda: ask(other, other.request("a"), Origin("loaded"), when=lambda _: False) == "curated")


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_pinned_answer_is_there_in_another_process_and_after_a_restart(open_store, ask, clock, store):
    """Whoever opens the store finds what was pinned, however old."""
    first = open_store(store)
    other = open_store(store)
    ask(other, other.request("warm"), Origin())
    first.put(first.request("a"), value="curated", pinned=True)
    assert first.flush(10)
    first.close()
    clock.advance(1_000_000)
    until(lambda: ask(other, other.request("a"), Origin("loaded"), when=lambda _: False) == "curated")
    third = open_store(store)
    assert ask(third, third.request("a"), Origin("loaded")) == "curated"


@pytest.mark.semantic
@pytest.mark.parametrize("store", STORES)
def test_put_answer_is_found_by_a_near_text(open_store, ask, clock, store):
    """A curated answer is indexed; a pinned one stays in the index past the semantic ttl, and after a restart."""
    near = {"embedder": Compass(), "policy": semcache.Threshold(0.9, guards=None), "tenant": semcache.SHARED}
    cache = open_store(store, **near)
    cache.put(cache.request(text="stored"), value="curated", pinned=True)
    assert cache.flush(10)
    clock.advance(1_000_000)
    assert ask(cache, cache.request(text="asked"), Origin("loaded")) == "curated"
    if store == "memory":
        return
    cache.close()
    again = open_store(store, **near)
    again.warm()
    assert ask(again, again.request(text="asked"), Origin("loaded")) == "curated"


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_pinned_answer_is_meant_by_who_has_just_begun(open_store, store):
    """An invalidation that is a process's first act counts and drops what others have pinned."""
    cache = open_store(store)
    cache.put(cache.request("a", tags="t"), value="curated", pinned=True)
    assert cache.flush(10)
    for _ in range(5):
        assert open_store(store).invalidate(tag="t", dry_run=True) == 1
    assert open_store(store).invalidate(tag="t") == 1
    assert open_store(store).invalidate(tag="t", dry_run=True) == 0


def test_put_of_a_decorated_functions_call(open_cache):
    """`f.request` says what a call means, and `put` seeds it."""
    cache = open_cache()

    @semcache.cached(cache)
    def answer(question, locale="en"):
        return f"loaded {question} {locale}"

    cache.put(answer.request("how?", locale="de"), value="curated")
    assert answer("how?", locale="de") == "curated"
    assert answer("how?") == "loaded how? en"


def test_put_raises_what_a_lookup_would_swallow(open_cache, tmp_path):
    """Who curates is told: of a value that cannot be stored, one too large, and of a cache that keeps nothing."""
    cache = open_cache(max_value=1000)
    with pytest.raises(EncodeError):
        cache.put(cache.request("a"), value=object())
    with pytest.raises(EncodeError, match="max_value"):
        cache.put(cache.request("a"), value="x" * 2000)
    nowhere = open_cache(memory=0)
    with pytest.raises(TierError, match="no tier keeps answers"):
        nowhere.put(nowhere.request("a"), value=1)


def test_pinned_in_memory_alone_is_bounded_and_no_pressure_takes_it(open_cache, ask):
    """Half of the memory may be pinned; the rest is the LRU's."""
    cache = open_cache(memory=100_000)
    for n in range(4):
        cache.put(cache.request("pinned", n), value="x" * 10_000, pinned=True)
    with pytest.raises(TierError, match="pinned") as told:
        cache.put(cache.request("pinned", 4), value="x" * 10_000, pinned=True)
    assert told.value.reason == "full"
    for n in range(50):
        ask(cache, cache.request("other", n), lambda: "x" * 10_000)
    for n in range(4):
        assert ask(cache, cache.request("pinned", n), Origin("loaded")) == "x" * 10_000


def test_put_keeps_to_the_ttl_that_the_answer_tells(open_cache, clock):
    """`ttl=callable` holds for what is put; what it says not to keep is refused."""
    cache = open_cache()
    cache.put(cache.request("a", ttl=lambda _: 10), value="curated")
    clock.advance(11)
    assert cache.get_or_load(cache.request("a"), Origin("loaded")) == "loaded"
    with pytest.raises(semcache.ConfigurationError, match="ttl"):
        cache.put(cache.request("b", ttl=lambda _: 0), value="curated")


def test_put_that_raises_is_served_by_nobody(open_cache, tmp_path, memcached_url, redis_url, monkeypatch):
    """Where the store refuses, neither memory nor the memcached before it has the answer."""
    monkeypatch.setattr("semcache.stores.redis_pins.MAX_PINNED", 0)
    cache = open_cache(redis=redis_url, memcached=memcached_url)
    with pytest.raises(TierError):
        cache.put(cache.request("a"), value="curated", pinned=True)
    assert cache.flush(10)
    assert cache.get_or_load(cache.request("a"), Origin("loaded")) == "loaded"


def test_pinned_answers_that_many_put_at_once_stay(open_cache, redis_url):
    """Replicas that seed the same answers at their start do not undo each other's."""
    caches = [open_cache(redis=redis_url) for _ in range(3)]
    with Crew() as crew:
        for number in range(40):
            puts = [crew.submit(cache.put, cache.request(number), value=number, pinned=True) for cache in caches]
            for put in puts:
                put.result(GUARD)
    for cache in caches:
        assert cache.flush(GUARD)
    fresh = open_cache(redis=redis_url, memory=0)
    assert [fresh.get_or_load(fresh.request(number), Origin("loaded")) for number in range(40)] == list(range(40))


def test_pinned_slots_are_freed(open_cache, redis_server, redis_url):
    """What is no longer there holds none of the places of the pinned: neither a late row nor a lost value does."""
    cache = open_cache(redis=redis_url)
    cache.put(cache.request("a", tags="t"), value=1, pinned=True)
    assert cache.flush(GUARD)
    store = cache.redis._store
    redis_server.cli("DEL", store.names.of_pinned(cache.request("a").key))
    cache.invalidate(tag="t")
    until(lambda: redis_server.cli("HLEN", store.names.pinned) == 0)
    assert len(store.pins) == 0
    assert store.pins._bytes == 0


def test_what_is_no_request_is_told(open_cache):
    """A call is made a request first; what else is given is a TypeError that says so."""
    cache = open_cache()
    for wrong in (
        lambda: cache.put("a", value=1), lambda: cache.get_or_load("a", int),
        lambda: cache.get_or_load_many(["a"], list),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"f.request\(\*args\)"):
            wrong()


def test_put_that_cannot_be_kept_says_that_it_was_not_put(open_cache, own_redis):
    """Who curates is told of the answer, not of an invalidation."""
    server = own_redis()
    cache = open_cache(redis=server.url)
    server.kill()
    with pytest.raises(InvalidationError, match="the answer was not put") as told:
        cache.put(cache.request("a"), value=1)
    assert str(told.value).count("try again") <= 1
