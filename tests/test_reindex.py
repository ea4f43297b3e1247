"""Reindexing: texts that another embedder has embedded are found again by the new one, and nothing else changes."""

from __future__ import annotations

import asyncio
import threading

import pytest
from instruments import GUARD, Compass, Origin

import semcache

pytestmark = pytest.mark.semantic

DEGREES = {"a": 0, "b": 90, "c": 180, "near a": 10, "near b": 100}


@pytest.fixture
def open_as(open_near, store):
    """Make caches with an embedder of a name; the new one points all texts elsewhere than the old one."""

    def open_one(name, turned=0, embedder=None, **settings):
        degrees = {text: angle + turned for text, angle in DEGREES.items()}
        return open_near(embedder=embedder or Compass(degrees, identity=name), **store, **settings)

    return open_one


def fill(cache, texts, **more):
    """Store each text under itself; in shadow, so that none is answered by its neighbour's."""
    with semcache.context(mode="shadow"):
        for text in texts:
            cache.get_or_load(cache.request(text=text, **more), lambda text=text: f"{text}'s")
    assert cache.flush(GUARD)


def ask(cache, text, **more):
    return cache.get_or_load(cache.request(text=text, **more), Origin("loaded"))


def rows(cache):
    return cache.stats().tiers["semantic"]["rows"]


def test_texts_of_another_embedder_are_found_again(open_as):
    """Here at once, and by whoever starts later; the exact answers were there all the while."""
    fill(open_as("old"), "abc")
    new = open_as("new", turned=45)
    assert rows(new) == 0
    told = new.reindex()
    assert told == semcache.Reindexed({"old": 3}, embedded=3)
    assert [ask(new, text) for text in ("near a", "near b")] == ["a's", "b's"]
    assert new.flush(GUARD)
    assert [ask(open_as("new", turned=45), text) for text in ("near b", "near a")] == ["b's", "a's"]


def test_it_may_be_awaited(open_as):
    """A loop goes on meanwhile."""
    fill(open_as("old"), "a")
    new = open_as("new")
    assert asyncio.run(new.areindex()).embedded == 1
    assert ask(new, "near a") == "a's"


def test_processes_that_run_take_the_rows_from_the_log(open_as):
    """As they take what others learn: nobody has to start anew."""
    fill(open_as("old"), "ab")
    running, taken = open_as("new"), threading.Semaphore(0)
    fill(running, "c")
    take = running.log.listener.added

    def added(found):
        take(found)
        for _ in found:
            taken.release()

    running.log.listener.added = added
    assert open_as("new").reindex().embedded == 2
    assert all(taken.acquire(timeout=GUARD) for _ in range(2))
    assert [ask(running, text) for text in ("near a", "near b")] == ["a's", "b's"]


def test_old_process_beside_it_goes_on(open_as):
    """Law 11: who has the old embedder finds with its vectors alone, and is given none of the new ones."""
    old = open_as("old")
    fill(old, "ab")
    new = open_as("new", turned=90)
    assert new.reindex().embedded == 2
    assert [ask(old, text) for text in ("near a", "near b")] == ["a's", "b's"]
    assert rows(old) == 2
    fill(new, "c")
    assert ask(old, "c") == "c's"


def test_scopes_stay_apart(open_as):
    """Law 2: what stood in a scope stands in the same one of the new embedder, tenants and functions apart."""
    old = open_as("old")
    for tenant in ("one", "two"):
        with semcache.context(mode="shadow"):
            old.get_or_load(old.request(text="a", tenant=tenant), lambda tenant=tenant: tenant)
    fill(old, "b", function="f")
    new = open_as("new")
    assert new.reindex().embedded == 3
    assert [ask(new, "near a", tenant=tenant) for tenant in ("two", "one")] == ["two", "one"]
    assert [ask(new, "near b"), ask(new, "near b", function="f")] == ["loaded", "b's"]


def test_what_is_done_is_not_done_again(open_as):
    """Idempotent: a second run finds nothing, and embeds nothing."""
    fill(open_as("old"), "abc")
    embedder = Compass(DEGREES, identity="new")
    new = open_as("new", embedder=embedder)
    new.reindex()
    embedder.asked.clear()
    assert new.reindex() == semcache.Reindexed()
    assert embedder.asked == []


def test_run_that_was_stopped_goes_on_where_it_was(open_as):
    """Resumable: what a run has kept before it failed stays, and the next one does the rest."""
    fill(open_as("old"), "abc")
    embedder = Compass(DEGREES, identity="new")
    new = open_as("new", embedder=embedder)

    def stop(_what, done, _of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new.reindex(max_batch=1, progress=stop)
    assert new.reindex() == semcache.Reindexed({"old": 1}, embedded=1)
    assert sorted(embedder.asked[1:]) == ["a", "b", "c"]  # the first is to warm it


def test_dry_run_counts_and_embeds_nothing(open_as):
    """What would be done is told by embedder."""
    fill(open_as("old"), "ab")
    fill(open_as("older"), "c")
    embedder = Compass(DEGREES, identity="new")
    new = open_as("new", embedder=embedder)
    embedder.asked.clear()
    assert new.reindex(dry_run=True) == semcache.Reindexed({"old": 2, "older": 1})
    assert embedder.asked == []
    assert new.reindex().embedded == 3


def test_batches_and_rate_are_bounded(open_as, clock):
    """At most so many texts at once, and so many a second; how far it is, is told."""
    fill(open_as("old"), "abc")

    class Counting(Compass):
        def __call__(self, texts):
            sizes.append(len(texts))
            return super().__call__(texts)

    sizes, seen = [], []
    new = open_as("new", embedder=Counting(DEGREES, identity="new"))
    sizes.clear()
    began = clock.monotonic()
    new.reindex(rate=2, max_batch=2, progress=lambda *told: seen.append(told))
    assert max(sizes) <= 2
    assert clock.monotonic() - began == pytest.approx(1.5)
    assert seen == [("reindex", 0, 3), ("reindex", 2, 3), ("reindex", 3, 3)]


def test_invalidated_texts_are_not_brought_back(open_as):
    """Law 8: what was invalidated before is not embedded, and what is invalidated later is not found."""
    old = open_as("old")
    fill(old, "a", tags=["one"])
    fill(old, "b", tags=["two"])
    old.invalidate(tag="one")
    new = open_as("new")
    assert new.reindex().embedded == 1
    assert ask(new, "near a") == "loaded"
    new.invalidate(tag="two")
    assert ask(new, "near b") == "loaded"


def test_life_is_not_lengthened(open_as, clock):
    """Law 5: a row ends when the one before it would have ended."""
    fill(open_as("old"), "a", ttl=50)
    clock.advance(40)
    new = open_as("new")
    assert new.reindex().embedded == 1
    assert [row.remaining for row in new.store.rows("new")] == [pytest.approx(10)]
    clock.advance(11)
    assert ask(new, "near a") == "loaded"


def test_texts_that_are_not_seen_whole_are_left_out(open_as):
    """Law 12: what the new embedder does not cover stays exact only, and is counted."""
    fill(open_as("old"), ["a", "a longer text"])
    embedder = Compass(DEGREES, identity="new")
    embedder.window, embedder.count = 2, lambda text: len(text.split())
    new = open_as("new", embedder=embedder)
    assert new.reindex() == semcache.Reindexed({"old": 2}, embedded=1, uncovered=1)
    assert ask(new, "a longer text") == "a longer text's"


def test_pinned_answers_are_found_again(open_as):
    """What was curated has no end, and goes on without one."""
    old = open_as("old")
    old.put(old.request(text="a"), value="curated", pinned=True)
    assert old.flush(GUARD)
    new = open_as("new")
    assert new.reindex().embedded == 1
    assert ask(new, "near a") == "curated"
    assert ask(open_as("new"), "near a") == "curated"
    assert new.reindex() == semcache.Reindexed()


@pytest.mark.parametrize("settings", [{}, {"embedder": Compass(), "tenant": semcache.SHARED}], ids=["none", "memory"])
def test_without_embedder_or_store_it_is_refused(open_cache, settings):
    """There is nothing to embed, or nothing to embed with."""
    with pytest.raises(semcache.ConfigurationError, match="embedder="):
        open_cache(**settings).reindex()


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"max_batch": 0}])
def test_bounds_that_are_none_are_refused(open_as, wrong):
    """Nothing is embedded at no speed."""
    with pytest.raises(semcache.ConfigurationError, match="over 0"):
        open_as("new").reindex(**wrong)
