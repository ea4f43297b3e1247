"""Law 8 across caches that share a store: what one invalidates, nobody serves, now or after a restart."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from instruments import GUARD, Crew, Origin, until

import semcache


@pytest.fixture(params=["disk", "redis"])
def store(request, tmp_path):
    """Settings of caches that share a store."""
    return {"redis": request.getfixturevalue("redis_url")} if request.param == "redis" else {"disk": tmp_path / "c.db"}


@pytest.fixture
def pair(open_cache, store):
    """Two caches over one store, as two processes have them."""
    return open_cache(**store), open_cache(**store)


FACETS = {
    "function": "f", "tag": "faq", "tenant": "acme", "model": "m", "version": "7", "document": "d1",
    "namespace": "tests",
}  # fmt: skip


def ask(cache, answer, name="a"):
    """Look up as somebody with all facets, and wait until what was loaded is stored."""
    with semcache.context(tags=["faq", "other"], documents=["d1", "d2"], tenant="acme"):
        request = cache.request(name, function="f", version="7", model="m")
        given = cache.get_or_load(request, lambda: answer)
    assert cache.flush(GUARD)
    return given


def key_of(cache, name="a"):
    with semcache.context(tenant="acme"):
        return cache.request(name, function="f", version="7", model="m").key


@pytest.mark.parametrize("facet", FACETS)
def test_invalidation_reaches_the_other_caches_memory(pair, facet):
    """Law 8: by whatever facet, what one cache invalidates goes from the other's memory and from the store."""
    one, other = pair
    assert ask(one, "old") == "old"
    assert ask(other, "not loaded") == "old"
    assert other.probe(key_of(other)) is not None
    assert one.invalidate(**{facet: FACETS[facet]}, dry_run=True) == 1
    assert one.invalidate(**{facet: FACETS[facet]}) == 1
    until(lambda: other.probe(key_of(other)) is None)
    assert ask(other, "new") == "new"


def test_invalidation_by_key_reaches_the_other_caches_memory(pair):
    """Law 8: a single key too."""
    one, other = pair
    ask(one, "old")
    ask(other, "not loaded")
    assert one.invalidate(key=key_of(one), dry_run=True) == 1
    assert one.invalidate(key=key_of(one)) == 1
    until(lambda: other.probe(key_of(other)) is None)
    assert ask(other, "new") == "new"


def test_other_facets_stay(pair):
    """Law 8: only what is meant goes."""
    one, other = pair
    ask(one, "old")
    for facet in FACETS.keys() - {"namespace"}:
        assert one.invalidate(**{facet: "another"}) == 0
    one.memory.clear()
    assert ask(one, "not loaded") == "old"
    assert ask(other, "not loaded") == "old"


def test_answer_that_another_was_loading_is_not_kept(pair):
    """Law 8: an answer whose load began before somebody else's invalidation is kept nowhere."""
    one, other = pair
    ask(other, "first", "begun")  # its log is followed
    request, origin = other.request("a", function="f"), Origin("old", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(other.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        one.invalidate(function="f")
        origin.go.set()
        assert loading.result(GUARD) == "old"
    until(lambda: other.probe(request.key) is None)
    other.flush(GUARD)
    assert one.get_or_load(one.request("a", function="f"), lambda: "new") == "new"


@pytest.mark.parametrize("hears_first", [False, True], ids=["put before", "put after"])
def test_answer_that_waits_to_be_written_is_not_read_once_another_invalidated_it(open_cache, tmp_path, hears_first):
    """Law 8: who has heard of an invalidation serves nothing older, though a busy file keeps it from being refused."""
    path = tmp_path / "c.db"
    one, other = (
        open_cache(disk=path, memory=0),
        open_cache(disk=path, memory=0, timeouts=semcache.Timeouts(disk="10s")),
    )
    request, origin = other.request("a", function="f"), Origin("old", hold=True)
    ask(one, "opens the file", "b")
    ask(other, "opens the file", "c")
    heard = lambda: other.log.marks.cover([("function", "f")], 1)  # noqa: E731
    writing = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    follow = other.log.store.follow
    with closing(writing), Crew(1) as crew:
        loading = crew.submit(other.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        if not hears_first:
            other.log.stop()
        since = other.log.position()
        one.invalidate(function="f")
        if hears_first:
            until(heard)
        writing.execute("BEGIN IMMEDIATE")
        origin.go.set()
        assert loading.result(GUARD) == "old"
        assert other.stats().tiers["disk"]["pending"] == 1
        if not hears_first:
            assert follow(since).marks
        assert other.get_or_load(request, lambda: "new") == "new"
        writing.execute("ROLLBACK")
    assert other.flush(GUARD)
    assert other.get_or_load(request, lambda: "newer") == "new"


def test_invalidation_holds_for_a_cache_that_starts_later(pair, open_cache, store):
    """Law 8: a mark outlives the cache that made it."""
    one, other = pair
    ask(one, "old")
    one.invalidate(tag="faq")
    one.close()
    other.close()
    assert ask(open_cache(**store), "new") == "new"


def test_mode_of_all_replicas_reaches_the_other(pair, open_cache, store):
    """The kill switch: one call switches everybody, those who start later too, and only ever tightens."""
    one, other = pair
    ask(one, "kept")
    ask(other, "not loaded")
    one.set_mode("off")
    until(lambda: other.mode == "off")
    assert ask(other, "loaded") == "loaded"
    later = open_cache(**store, mode="exact")
    ask(later, "begun", "b")
    until(lambda: later.mode == "off")
    other.set_mode("live")
    until(lambda: (one.mode, later.mode) == ("live", "exact"))
    assert ask(one, "not loaded") == "kept"


@pytest.mark.semantic
def test_index_learns_what_another_cache_loaded(open_near, store):
    """What one process learned, the others match, whether they were there before or start later."""
    degrees = {"asked before": 90, "stored": 0, "asked": 1}
    early = open_near(degrees, **store)
    early.get_or_load(early.request(text="asked before"), lambda: "loaded")
    one = open_near(degrees, **store)
    one.get_or_load(one.request(text="stored"), lambda: "answer")
    assert one.flush(GUARD)
    until(lambda: early.flush(GUARD) and early.stats().tiers["semantic"]["rows"] == 2)
    assert early.get_or_load(early.request(text="asked"), lambda: "loaded") == "answer"
    late = open_near(degrees, **store)
    assert late.get_or_load(late.request(text="asked"), lambda: "loaded") == "answer"


@pytest.mark.semantic
def test_index_of_another_cache_forgets_what_was_invalidated(open_near, store):
    """Law 8: nothing invalidated is a near match anywhere."""
    degrees = {"elsewhere": 90, "stored": 0, "asked": 1, "asked again": 2}
    one, other = open_near(degrees, **store), open_near(degrees, **store)
    one.get_or_load(one.request(text="stored"), lambda: "old")
    assert one.flush(GUARD)
    elsewhere = other.request(text="elsewhere")
    other.get_or_load(elsewhere, lambda: "loaded")
    until(lambda: other.flush(GUARD) and other.stats().tiers["semantic"]["rows"] == 2)
    assert other.get_or_load(other.request(text="asked"), lambda: "not loaded") == "old"
    one.invalidate(namespace="tests")
    until(lambda: other.probe(elsewhere.key) is None)
    assert other.get_or_load(other.request(text="asked again"), lambda: "new") == "new"
