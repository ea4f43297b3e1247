"""Law 4: the index holds keys, not values."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from instruments import Compass

import semcache
from semcache.plan import run

pytestmark = pytest.mark.semantic

# Seven texts, nearest first to one that points to 0.
DEGREES = {f"t{number}": number for number in range(1, 8)}


def fill(cache, texts, **about):
    """Store an answer for each text; in shadow, so that none is answered by its neighbour's."""
    with semcache.context(mode="shadow"):
        for text in texts:
            cache.get_or_load(cache.request(text=text, **about), lambda text=text: text.upper())
    cache.flush()


def drop(cache, text):
    """Take an answer from the exact store, as eviction does, and tell nobody."""
    run(cache.memory.remove("key", cache.request(text=text).key, cache.log.position() + 1))


def test_neighbour_without_a_value_gives_way_to_the_next(open_near):
    """Law 4: a neighbour without a value is dropped and the next is tried, however many there are of them."""
    cache = open_near(DEGREES)
    fill(cache, DEGREES)
    for text in list(DEGREES)[:6]:
        drop(cache, text)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "T7"
    cache.flush()
    assert cache.stats().tiers["semantic"]["rows"] == 1


def test_neighbour_that_cannot_be_read_gives_way_to_the_next(open_near, tmp_path):
    """Law 4: a neighbour whose bytes are damaged has no value either."""
    cache = open_near(DEGREES, disk=tmp_path / "cache.db", memory=0)
    fill(cache, ["t1", "t2"])
    with closing(sqlite3.connect(tmp_path / "cache.db")) as file, file:
        file.execute("UPDATE entries SET value = x'0100c0' WHERE key = ?", (cache.request(text="t1").key,))
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "T2"


def test_near_match_does_not_outlive_its_value(open_near, clock):
    """Law 4: expiry holds for near matches too: an entry's own short life is its near matches' life."""
    cache = open_near(DEGREES)
    fill(cache, ["t1"], ttl=10)
    clock.advance(9)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "T1"
    clock.advance(2)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"


def test_near_match_goes_with_an_evicted_value(open_near):
    """Law 4: what pressure drops from the exact store is no near match any more."""
    cache = open_near(memory=3000)
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    for number in range(3):
        cache.get_or_load(cache.request(number), lambda: "x" * 900)
    assert cache.stats().tiers["memory"]["evictions"]
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"


def test_near_match_goes_with_an_invalidated_value(open_near):
    """Law 4: an invalidation by function, of which the index knows nothing, holds for near matches too."""
    cache = open_near()
    stored, asked = (cache.request(text=text, function="f") for text in ("stored", "asked"))
    cache.get_or_load(stored, lambda: "stored")
    cache.flush()
    cache.invalidate(function="f")
    assert cache.get_or_load(asked, lambda: "loaded") == "loaded"


def test_memory_alone_keeps_answers_as_long_as_the_index(open_near, open_cache, clock):
    """Law 4: without disk or redis, memory is the exact store, and its default ttl is the semantic one."""
    alone = open_near()
    alone.get_or_load(alone.request(text="stored"), lambda: "stored")
    alone.flush()
    clock.advance(3599)
    assert alone.get_or_load(alone.request(text="asked"), lambda: "loaded") == "stored"


def test_index_and_store_keep_no_value(open_near, tmp_path):
    """Law 4: what the index knows, and what it is rebuilt from, are keys and texts."""
    cache = open_near(embedder=Compass(), disk=tmp_path / "cache.db")
    cache.get_or_load(cache.request(text="stored"), lambda: "the-answer")
    cache.flush()
    (row,) = cache.disk.rows("compass")
    assert (row.key, row.text) == (cache.request(text="stored").key, "stored")
    assert semcache.last().stages.keys() >= {"load", "put"}
    (neighbour,) = cache.explain(cache.request(text="asked")).neighbours
    assert (neighbour.key, neighbour.text) == (row.key, "stored")
