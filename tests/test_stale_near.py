"""Stale-while-revalidate for near matches: one is served, and the text that asked is loaded behind the caller."""

from __future__ import annotations

import asyncio

import pytest
from instruments import GUARD, Compass, Crew, Origin

import semcache
from semcache.plan import run

pytestmark = pytest.mark.semantic

LIVES = {"ttl": 50, "stale_while_revalidate": 20}
DEGREES = {"stored": 0, "asked": 20, "other": 10, "far": 90}


@pytest.fixture(params=["memory", "disk", "redis"])
def store(request, tmp_path):
    """The settings of each exact store."""
    if request.param == "memory":
        return {}
    return (
        {"disk": tmp_path / "cache.db"} if request.param == "disk" else {"redis": request.getfixturevalue("redis_url")}
    )


def filled(open_near, clock, **settings):
    """Make a cache with one answer in it, which is stale by 10 seconds."""
    cache = open_near(DEGREES, **settings)
    assert get(cache, "stored", Origin("old")) == "old"
    assert cache.flush(GUARD)
    clock.advance(60)
    return cache


def get(cache, text, load, **lives):
    with semcache.trace() as seen:
        answer = cache.get_or_load(cache.request(text=text, **(lives or LIVES)), load)
    get.event = next(event for event in seen.lookups if event.kind != "refresh")  # which may end before its caller
    return answer


@pytest.mark.parametrize("colour", ["thread", "task"])
def test_stale_near_match_is_served_while_the_asking_text_is_loaded(open_near, clock, store, colour):
    """The next one who asks this text hits exactly: what was loaded behind is its own answer, under its own text."""
    cache = filled(open_near, clock, **store)
    request = cache.request(text="asked", **LIVES)

    async def task():
        answer = await cache.aget_or_load(request, lambda: "asked's")
        event = semcache.last()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        return answer, event

    if colour == "thread":
        answer, event = get(cache, "asked", lambda: "asked's"), get.event
    else:
        answer, event = asyncio.run(task())
    assert answer == "old"
    assert (event.kind, event.tier, event.is_stale, event.neighbour) == (
        "hit", "semantic", True, cache.request(text="stored").key
    )  # fmt: skip
    assert cache.flush(GUARD)
    assert get(cache, "asked", Origin("unused")) == "asked's"
    assert (get.event.similarity, get.event.is_stale) == (None, False)
    stats = cache.stats()
    assert (stats.stale, stats.refreshes, stats.loads) == (1, 1, 2)


def test_stale_answer_itself_is_not_stored_under_the_asking_text(open_near, clock, store):
    """Law 3: where the load behind fails there is nothing of the asking text, and the next is served stale again."""
    cache = filled(open_near, clock, **store)
    assert get(cache, "asked", Origin(ValueError("down"))) == "old"
    assert cache.flush(GUARD)
    with semcache.context(mode="exact"):
        assert cache.explain(cache.request(text="asked")).tier is None
    assert get(cache, "asked", Origin("asked's")) == "old"


def test_near_match_past_its_grace_is_loaded(open_near, clock, store):
    """After ttl and `stale_while_revalidate` there is nothing near left."""
    cache = filled(open_near, clock, **store)
    clock.advance(11)
    assert get(cache, "asked", Origin("asked's")) == "asked's"


def test_grace_of_near_matches_is_the_callers_to_ask_for(open_near, clock, store):
    """Who asks for no stale answers is given no stale near one, though it was kept for others."""
    cache = filled(open_near, clock, **store)
    assert get(cache, "asked", Origin("asked's"), ttl=50) == "asked's"


def test_stale_near_match_does_not_stand_in_for_a_failed_load(open_near, clock):
    """`stale_if_error` is of a text's own answer: a near one is not served because an origin fails."""
    cache = open_near(DEGREES)
    get(cache, "stored", Origin("old"), ttl=50, stale_if_error=20)
    cache.flush()
    clock.advance(60)
    with pytest.raises(LookupError):
        get(cache, "asked", Origin(LookupError("down")), ttl=50, stale_if_error=20)


def test_fresh_near_match_is_served_before_a_nearer_stale_one(open_near, clock):
    """What is stale is for want of what is fresh."""
    cache = filled(open_near, clock)
    with semcache.context(mode="shadow"):
        get(cache, "asked", Origin("fresh"))
    cache.flush()
    assert get(cache, "other", Origin("unused")) == "fresh"
    cache.semantic.batcher.embed("nearer stored").result(GUARD)
    assert get(cache, "nearer stored", Origin("unused")) == "fresh"
    assert not get.event.is_stale


def test_invalidated_near_match_is_not_served_stale(open_near, clock, store):
    """Law 8: an invalidation ends the grace too."""
    cache = filled(open_near, clock, **store)
    cache.invalidate(key=cache.request(text="stored").key)
    assert get(cache, "asked", Origin("asked's")) == "asked's"


def test_next_start_finds_what_is_stale_by_then(open_near, clock, tmp_path):
    """The index row lives as long as its answer may be served, in the store too."""
    filled(open_near, clock, disk=tmp_path / "cache.db").close()
    cache = open_near(DEGREES, disk=tmp_path / "cache.db")
    assert get(cache, "asked", Origin("asked's")) == "old"
    assert get.event.is_stale


def test_one_load_behind_serves_all_near_texts(open_near, clock):
    """Of several near texts that are served stale, whoever comes to load later finds the first one's fresh answer."""
    cache = filled(open_near, clock)
    late, start = [], cache.chain.crew.start_thread
    cache.chain.crew.start_thread = late.append
    assert [get(cache, text, lambda text=text: text) for text in ("asked", "other")] == ["old", "old"]
    cache.chain.crew.start_thread = start
    for plan in late:
        run(plan())
        cache.flush()
    assert len(late) == 2
    assert cache.stats().refreshes == 1
    assert get(cache, "other", Origin("unused")) == "asked"


def test_load_behind_waits_for_one_of_a_near_text_under_way(open_near, clock):
    """Of several near texts that are served stale at once one is loaded; what it brings is fresh for all."""
    cache, origin = filled(open_near, clock), Origin("new", hold=True)
    assert get(cache, "asked", origin) == "old"
    assert origin.entered.wait(GUARD)
    assert get(cache, "other", Origin("unused")) == "old"
    origin.go.set()
    assert cache.flush(GUARD)
    assert cache.stats().refreshes == 1
    assert get(cache, "other", Origin("unused")) == "new"


def test_call_that_is_to_load_anew_waits_for_no_near_text(open_near):
    """Mode refresh asks for a load of its own, whatever else is loading."""
    cache, origin = open_near(DEGREES), Origin("held", hold=True)
    with Crew(2) as crew:
        led = crew.submit(cache.get_or_load, cache.request(text="stored"), origin)
        assert origin.entered.wait(GUARD)
        with semcache.context(mode="refresh"):
            assert get(cache, "asked", Origin("anew")) == "anew"
        origin.go.set()
        assert led.result(GUARD) == "held"


def test_embedder_is_asked_once_for_a_text_that_is_loaded_behind(open_near, clock):
    """Nothing is computed twice: the search, the load behind and its row share one vector."""
    embedder = Compass(DEGREES)
    cache = filled(open_near, clock, embedder=embedder)
    embedder.asked.clear()
    get(cache, "asked", Origin("asked's"))
    assert cache.flush(GUARD)
    assert embedder.asked == ["asked"]
