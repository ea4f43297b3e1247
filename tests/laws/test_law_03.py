"""Law 3: a near match is never stored as exact, and the query it answered is never indexed."""

from __future__ import annotations

import pytest

import semcache

pytestmark = pytest.mark.semantic


def test_near_match_is_not_stored_under_the_key_that_asked(open_near, tmp_path):
    """Law 3: one false accept must not become a truth: when its source goes, the answer goes."""
    cache = open_near(disk=tmp_path / "cache.db")
    stored, asked = cache.request(text="stored"), cache.request(text="asked")
    cache.get_or_load(stored, lambda: "stored")
    cache.flush()
    assert cache.get_or_load(asked, lambda: "loaded") == "stored"
    assert semcache.last().tier == "semantic"
    cache.flush()
    with semcache.context(mode="exact"):
        exact = cache.explain(cache.request(text="asked"))
    assert exact.said == [("memory", "miss"), ("disk", "miss"), ("semantic", "not asked: mode: exact")]
    cache.invalidate(key=stored.key)
    assert cache.get_or_load(asked, lambda: "loaded") == "loaded"


def test_query_of_a_near_match_is_not_indexed(open_near, tmp_path):
    """Law 3: answers do not drift from A over B to C."""
    cache = open_near({"a": 0, "b": 20, "c": 40}, disk=tmp_path / "cache.db")
    ask = {text: cache.request(text=text) for text in "abc"}
    cache.get_or_load(ask["a"], lambda: "A")
    cache.flush()
    assert cache.get_or_load(ask["b"], lambda: "B") == "A"
    cache.flush()
    assert cache.stats().tiers["semantic"]["rows"] == 1
    assert cache.get_or_load(ask["c"], lambda: "C") == "C"


def test_rewording_asked_again_is_not_embedded_again(open_near):
    """Law 3: a small memory of texts spares a repeated rewording its embedding."""
    cache = open_near()
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    for _ in range(3):
        assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "stored"
    assert cache.stats().tiers["semantic"]["embedded"] == 3  # "warm", "stored" and "asked"
