"""Law 5: no life is lengthened by moving."""

from __future__ import annotations

import pytest

import semcache

DAY = 86400.0


def is_loaded(cache, *parts, **about):
    """Look up, and say whether that took a load."""
    calls = []
    cache.get_or_load(cache.request(*parts, **about), lambda: calls.append(1))
    return bool(calls)


def test_entry_moved_to_memory_lives_no_longer_than_in_the_store(open_cache, clock, tmp_path):
    """Law 5: filling a nearer tier takes the smaller of its own ttl and what remains."""
    cache = open_cache(disk=tmp_path / "cache.db", ttl=semcache.TTL(memory=300, disk=1000, jitter=0))
    assert is_loaded(cache, "a")
    cache.flush()
    clock.advance(900)
    assert not is_loaded(cache, "a")
    assert semcache.last().tier == "disk"
    clock.advance(99)
    assert not is_loaded(cache, "a")
    assert semcache.last().tier == "memory"
    clock.advance(2)
    assert is_loaded(cache, "a")


def test_hits_extend_no_life(open_cache, clock, tmp_path):
    """Law 5: a hit extends a life only where a sliding ttl was asked for; there is none."""
    cache = open_cache(disk=tmp_path / "cache.db", ttl=semcache.TTL(memory=100, disk=1000, jitter=0))
    is_loaded(cache, "a")
    cache.flush()
    tiers = []
    for _ in range(11):
        clock.advance(95)
        tiers.append("load" if is_loaded(cache, "a") else semcache.last().tier)
    assert tiers.index("load") == 10


def test_memory_hits_extend_no_life(open_cache, clock):
    """Law 5: however often an entry is read, it goes when its ttl has passed."""
    cache = open_cache(ttl=semcache.TTL(memory=100, jitter=0))

    @semcache.cached(cache, version="1")
    def function():
        return clock.monotonic()

    born = [function()]
    for _ in range(9):
        clock.advance(10)
        born.append(function())
    assert set(born) == {0.0}
    clock.advance(10)
    assert function() == 100.0


@pytest.mark.parametrize("own", [10.0, 2 * DAY])
def test_own_ttl_is_the_life_in_the_store(open_cache, clock, tmp_path, own):
    """Law 5: an entry's own ttl sets its life in the store, shorter or longer than the tier's."""
    cache = open_cache(disk=tmp_path / "cache.db", memory=0)
    is_loaded(cache, "a", ttl=own)
    cache.flush()
    clock.advance(own - 1)
    assert not is_loaded(cache, "a", ttl=own)
    clock.advance(2)
    assert is_loaded(cache, "a", ttl=own)


def test_own_ttl_is_at_most_the_tiers_elsewhere(open_cache, clock, tmp_path):
    """Law 5: every other tier takes the smaller of its own ttl and what remains."""
    cache = open_cache(disk=tmp_path / "cache.db", ttl=semcache.TTL(memory=100, jitter=0))
    is_loaded(cache, "a", ttl=1000)
    cache.flush()
    clock.advance(101)
    assert not is_loaded(cache, "a", ttl=1000)
    assert semcache.last().tier == "disk"
    clock.advance(898)
    assert not is_loaded(cache, "a", ttl=1000)
    assert semcache.last().tier == "disk"
    clock.advance(2)
    assert is_loaded(cache, "a", ttl=1000)


def test_context_shortens_a_life(open_cache, clock):
    """Law 5: a ttl given for the calls inside a context is their entries' own."""
    cache = open_cache()
    with semcache.context(ttl=5):
        is_loaded(cache, "a")
    clock.advance(6)
    assert is_loaded(cache, "a")


def test_life_goes_on_over_a_restart(open_cache, clock, tmp_path):
    """Law 5: an entry carries its expiry in its store's time; a new process gives it no new life."""
    settings = {"disk": tmp_path / "cache.db", "ttl": semcache.TTL(memory=600, disk=1000, jitter=0)}
    first = open_cache(**settings)
    is_loaded(first, "a")
    first.close()
    clock.advance(999)
    second = open_cache(**settings)
    assert not is_loaded(second, "a")
    clock.advance(2)
    assert is_loaded(second, "a")


def test_jitter_only_shortens(open_cache, clock):
    """Law 5: a ttl is the longest life, whatever the jitter draws."""
    cache = open_cache(ttl=semcache.TTL(memory=100, jitter=0.5), seed=1)
    for number in range(50):
        is_loaded(cache, number)
    clock.advance(49.9)
    assert not any(is_loaded(cache, number) for number in range(50))
    clock.advance(50.1)
    assert all(is_loaded(cache, number) for number in range(50))


@pytest.mark.semantic
def test_near_match_lives_no_longer_than_the_semantic_ttl(open_near, clock, tmp_path):
    """Law 5: the index has a ttl of its own, though the store keeps the answer longer."""
    cache = open_near(disk=tmp_path / "cache.db")
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    clock.advance(3599)
    assert not is_loaded(cache, text="asked")
    clock.advance(2)
    assert is_loaded(cache, text="asked")


@pytest.mark.semantic
def test_near_match_lives_no_longer_for_a_restart(open_near, clock, tmp_path):
    """Law 5: an index that is rebuilt gives its rows what remains to them, not a new life."""
    first = open_near(disk=tmp_path / "cache.db")
    first.get_or_load(first.request(text="stored"), lambda: "stored")
    first.close()
    clock.advance(3599)
    second = open_near(disk=tmp_path / "cache.db")
    assert not is_loaded(second, text="asked")
    clock.advance(2)
    assert is_loaded(second, text="asked again")
