"""Invalidation by text: every entry whose text is near enough, whatever function, tenant or parameters it is of."""

from __future__ import annotations

import pytest
from instruments import GUARD, Compass, Origin

import semcache
from semcache.errors import InvalidationError

DEGREES = {"refunds": 0, "money back": 10, "returns": 20, "opening hours": 90}


@pytest.fixture(params=["memory", "disk", "redis"])
def open_store(request, open_cache, tmp_path):
    """Open caches with an index over one kind of store."""

    def open_one(**more):
        more = {"embedder": Compass(DEGREES), "tenant": semcache.SHARED} | more
        if request.param == "disk":
            more["disk"] = tmp_path / "cache.db"
        if request.param == "redis":
            more["redis"] = request.getfixturevalue("redis_url")
        cache = open_cache(**more)
        cache.warm()
        return cache

    return open_one


def fill(cache, **more):
    for text in DEGREES:
        cache.get_or_load(cache.request(text=text, **more), lambda text=text: f"about {text}")
    assert cache.flush(GUARD)


def kept(cache, **more):
    """The texts whose answers are still there."""
    asked = {text: cache.request(text=text, **more) for text in DEGREES}
    return {text for text in asked if cache.get_or_load(asked[text], lambda: "new", when=lambda _: False) != "new"}


@pytest.mark.semantic
def test_text_means_all_that_is_near_enough(open_store):
    """All entries within the similarity go, whatever their scope; the others stay; `dry_run` counts the same."""
    cache = open_store()
    fill(cache, function="f")
    fill(cache, function="g")
    assert cache.invalidate(text="refunds", similarity=0.95, dry_run=True) == 4
    assert kept(cache, function="f") == DEGREES.keys()
    assert cache.invalidate(text="refunds", similarity=0.95) == 4
    assert kept(cache, function="f") == kept(cache, function="g") == {"returns", "opening hours"}
    assert cache.invalidate(text="refunds", similarity=0.95, dry_run=True) == 0
    assert cache.invalidate(text="refunds") == 2


@pytest.mark.semantic
def test_text_of_a_tenant_means_that_tenants_alone(open_store):
    """With `tenant=` the entries of others stay."""
    import asyncio

    cache = open_store()
    fill(cache, tenant="acme")
    fill(cache, tenant="zenith")
    assert cache.invalidate(text="refunds", similarity=0.95, tenant="acme", dry_run=True) == 2
    assert asyncio.run(cache.ainvalidate(text="refunds", similarity=0.95, tenant="acme")) == 2
    assert kept(cache, tenant="acme") == {"returns", "opening hours"}
    assert kept(cache, tenant="zenith") == DEGREES.keys()


@pytest.mark.semantic
@pytest.mark.parametrize("open_store", ["disk", "redis"], indirect=True)
def test_text_means_pinned_answers_and_what_others_put(open_store):
    """What another cache has put, pinned or not, is in the index as well, and goes from its memory too."""
    other = open_store()
    other.put(other.request(text="refunds"), value="curated", pinned=True)
    fill(other, function="f")
    third = open_store()
    assert third.invalidate(text="refunds", similarity=0.99) == 2
    assert third.flush(GUARD)
    assert "refunds" not in kept(third)
    assert kept(third, function="f") == DEGREES.keys() - {"refunds"}


@pytest.mark.semantic
def test_text_is_told_with_a_similarity_and_a_tenant_alone(open_store):
    """What cannot be meant is said at once."""
    cache = open_store()
    for told in ({"text": ""}, {"tag": "b"}, {"similarity": 2}, {"tenant": semcache.SHARED}):
        with pytest.raises(semcache.ConfigurationError):
            cache.invalidate(**{"text": "a"} | told)


def test_text_without_an_index_is_refused_with_the_mend(open_cache):
    """Only the index knows which texts are near."""
    with pytest.raises(semcache.ConfigurationError, match="embedder="):
        open_cache().invalidate(text="refunds")


@pytest.mark.semantic
def test_text_that_cannot_be_embedded_raises(open_store):
    """Nobody is told that something went which did not."""

    class Broken(Compass):
        def __call__(self, texts):
            if "poison" in texts:
                raise RuntimeError("no vector")
            return super().__call__(texts)

    cache = open_store(embedder=Broken(DEGREES))
    fill(cache)
    with pytest.raises(InvalidationError, match="no vector"):
        cache.invalidate(text="poison")
    assert cache.get_or_load(cache.request(text="refunds"), Origin("new")) == "about refunds"


@pytest.mark.semantic
def test_text_while_the_model_cannot_be_loaded_raises(open_cache):
    """Whoever asks is told, every time, and nobody hangs; nor where the cache was closed."""

    class Absent(Compass):
        def load(self):
            raise OSError("no network")

    cache = open_cache(embedder=Absent(DEGREES))
    for _ in range(3):
        with pytest.raises(InvalidationError, match="no network"):
            cache.invalidate(text="refunds")
    cache.close()
    with pytest.raises(InvalidationError, match="closed"):
        cache.invalidate(text="refunds")


@pytest.mark.semantic
def test_entry_that_cannot_be_looked_into_is_taken_for_the_tenants(open_store):
    """An invalidation that returns has dropped all that it may mean: what nobody can look into goes too."""
    cache = open_store()
    with semcache.context(documents=[f"document {number}" for number in range(60)]):
        request = cache.request(text="refunds", tenant="acme")
    cache.get_or_load(request, lambda: "old")
    assert cache.flush(GUARD)
    cache.invalidate(text="refunds", similarity=0.99, tenant="acme")
    assert cache.get_or_load(request, lambda: "new") == "new"


@pytest.mark.semantic
def test_entry_that_waits_to_be_written_is_the_tenants_too(open_store):
    """What was loaded a moment ago goes as well."""
    cache = open_store()
    request = cache.request(text="refunds", tenant="acme")
    for number in range(30):
        cache.get_or_load(request, lambda number=number: number)
        cache.invalidate(text="refunds", similarity=0.99, tenant="acme")
        assert cache.get_or_load(request, lambda: "new", when=lambda _: False) == "new"
