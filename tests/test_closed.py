"""A closed cache: its callers go to their origins, and are told why."""

from __future__ import annotations

import asyncio

import semcache


def reasons(*calls):
    """Make some calls, and return why each went by the cache."""
    with semcache.trace() as seen:
        for call in calls:
            call()
    assert {event.kind for event in seen.lookups} == {"bypass"}
    return [event.reason for event in seen.lookups]


def test_calls_of_a_closed_cache_say_that_it_is_closed(open_cache):
    """Nobody has switched anything off: plain calls, generators, many at once and coroutines say what has happened."""
    cache = open_cache()

    @semcache.cached(cache)
    def ask(question):
        return question

    @semcache.cached(cache)
    def stream(question):
        yield question

    @semcache.cached(cache)
    async def aask(question):
        return question

    def many():
        return cache.get_or_load_many([cache.request("a"), cache.request("b")], lambda places: places)

    cache.close()
    told = reasons(lambda: ask("a"), lambda: list(stream("a")), lambda: asyncio.run(aask("a")), many)
    assert set(told) == {"closed"}
    assert len(told) == 5
    assert cache.stats().bypasses == {"closed": 5}


def test_explain_of_a_closed_cache_says_that_it_is_closed(open_cache):
    """As a lookup would."""
    cache = open_cache()
    cache.close()
    assert cache.explain(cache.request("a")).said == [("memory", "not asked: closed")]


def test_a_cache_that_is_off_says_so_still(open_cache):
    """What somebody switched off is not closed."""
    cache = open_cache(mode="off")
    assert reasons(lambda: cache.get_or_load(cache.request("a"), lambda: 1)) == ["mode: off"]
