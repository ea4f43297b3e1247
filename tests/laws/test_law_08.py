"""Law 8: an invalidation is kept (in this process and its store)."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from instruments import GUARD, Crew, Origin, until, watch_flights

import semcache


@pytest.fixture(params=["memory", "disk", "both"])
def cache(request, open_cache, tmp_path):
    """A cache of each make."""
    disk = None if request.param == "memory" else tmp_path / "cache.db"
    return open_cache(disk=disk, memory=0 if request.param == "disk" else "64MB")


@pytest.fixture(params=["key", "function"])
def invalidate(request):
    """Invalidate what a request asked for: by its key, or by its function."""

    def one(cache, asked):
        facet = {"key": asked.key} if request.param == "key" else {"function": asked.facets.function}
        return cache.invalidate(**facet)

    return one


def test_invalidated_answer_is_loaded_anew(cache, invalidate):
    """Law 8: what was invalidated is a miss from every tier; what was not is a hit; the count is told."""
    ask, other = cache.request("a", function="f"), cache.request("a", function="g")
    for request in (ask, other):
        cache.get_or_load(request, lambda: "old")
    cache.flush()
    assert invalidate(cache, ask) == 1
    assert cache.get_or_load(other, lambda: "new") == "old"
    assert cache.get_or_load(ask, lambda: "new") == "new"
    assert invalidate(cache, cache.request("never asked", function="h")) == 0


def test_answer_invalidated_while_it_loads_is_not_kept(cache, invalidate):
    """Law 8: an entry is born where its load begins, so what was invalidated since is a miss; its caller gets it."""
    request, origin = cache.request("a", function="f"), Origin("old", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(cache.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        invalidate(cache, request)
        origin.go.set()
        assert loading.result(GUARD) == "old"
    cache.flush()
    assert cache.get_or_load(request, lambda: "new") == "new"
    cache.flush()
    assert cache.get_or_load(request, lambda: "newer") == "new"


def test_caller_who_comes_after_an_invalidation_does_not_follow_a_load_begun_before(cache, invalidate):
    """Law 8: after `invalidate` has returned, nobody is given what was loaded before it, not even by a flight."""
    request, origin = cache.request("a", function="f"), Origin("old", hold=True)
    flights = watch_flights(cache)
    with Crew(3) as crew:
        before = [crew.submit(cache.get_or_load, request, origin) for _ in range(2)]
        flights.wait_for(2)
        assert origin.entered.wait(GUARD)
        invalidate(cache, request)
        after = crew.submit(cache.get_or_load, request, lambda: "new")
        assert after.result(GUARD) == "new"
        origin.go.set()
        assert [one.result(GUARD) for one in before] == ["old", "old"]
    assert cache.get_or_load(request, lambda: "newer") == "new"
    assert origin.calls == 1


def test_reader_who_comes_after_an_invalidation_does_not_join_a_stream_begun_before(cache):
    """Law 8: what holds for a flight holds for the items of a stream."""
    world = ["old"]

    @semcache.cached(cache, version="1")
    def function():
        word = world[0]
        yield f"{word} 1"
        yield f"{word} 2"

    early = function()
    assert next(early) == "old 1"
    world[0] = "new"
    function.cache_clear()
    assert list(function()) == ["new 1", "new 2"]
    assert list(early) == ["old 2"]
    assert list(function()) == ["new 1", "new 2"]


@pytest.fixture
def documented(cache):
    """A search that finds what it is asked for, and an answer that is loaded by what it is given."""
    find = semcache.cached_retrieval(cache, corpus="c", version="1")(lambda query: [{"id": query}])

    def answer(load):
        return cache.get_or_load(cache.request("answer", function="answer"), load)

    return find, answer


def test_answer_made_of_a_document_that_was_invalidated_before_its_load_is_not_kept(cache, documented):
    """Law 8: a pipeline's answer is as old as the documents it may be made of, though its own load began later."""
    find, answer = documented
    find("page")
    with semcache.pipeline("tests"):
        find("page")
        find("another")
        cache.invalidate(document="page")
        assert answer(lambda: "of the old page") == "of the old page"
    cache.flush()
    assert answer(lambda: "new") == "new"


def test_answer_made_of_a_document_that_another_has_invalidated_is_not_kept(open_cache, tmp_path):
    """Law 8: so it is where this process has not heard of it yet: the store knows."""
    deaf, other = (open_cache(disk=tmp_path / "cache.db") for _ in range(2))
    deaf.log.stop()  # it follows the log no more, as in the moment before it hears
    find = semcache.cached_retrieval(deaf, corpus="c", version="1")(lambda query: [{"id": query}])
    with semcache.pipeline("tests"):
        find("page")
        deaf.flush()
        other.invalidate(document="page")
        deaf.get_or_load(deaf.request("answer"), lambda: "of the old page")
    deaf.flush()
    assert other.get_or_load(other.request("answer"), lambda: "new") == "new"


def test_caller_who_comes_after_an_invalidation_does_not_follow_a_load_that_may_be_made_of_it(cache, documented):
    """Law 8: which documents a pipeline's answer is made of is known when it is kept; until then it may be any."""
    find, answer = documented
    origin = Origin("of the old page", hold=True)

    def before():
        with semcache.pipeline("tests"):
            find("page")
            return answer(origin)

    with Crew(2) as crew:
        early = crew.submit(before)
        assert origin.entered.wait(GUARD)
        cache.invalidate(document="page")
        assert crew.submit(answer, lambda: "new").result(GUARD) == "new"
        origin.go.set()
        assert early.result(GUARD) == "of the old page"
    assert answer(lambda: "newer") == "new"


def test_invalidation_of_another_key_leaves_a_flight_open(open_cache):
    """Law 8: only what is meant is loaded twice."""
    cache = open_cache()
    flights, origin = watch_flights(cache), Origin(hold=True)
    request, other = cache.request("a", function="f"), cache.request("b", function="g")
    with Crew(2) as crew:
        first = crew.submit(cache.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        cache.invalidate(key=other.key)
        cache.invalidate(function="g")
        second = crew.submit(cache.get_or_load, request, origin)
        flights.wait_for(2)
        origin.go.set()
        assert (first.result(GUARD), second.result(GUARD)) == ("answer", "answer")
    assert origin.calls == 1


def test_invalidation_holds_for_a_cache_that_is_opened_later(open_cache, tmp_path, invalidate):
    """Law 8: an invalidation survives a restart."""
    first = open_cache(disk=tmp_path / "cache.db")
    request = first.request("a", function="f")
    first.get_or_load(request, lambda: "old")
    first.flush()
    invalidate(first, request)
    first.close()
    second = open_cache(disk=tmp_path / "cache.db")
    assert second.get_or_load(request, lambda: "new") == "new"


def test_invalidation_is_durable_when_it_returns(open_cache, tmp_path):
    """Law 8: a process that is killed right after `invalidate` has returned has invalidated."""
    script = """
import os, semcache, sys
cache = semcache.Cache("tests", disk=sys.argv[1], timeouts=semcache.Timeouts(disk="10s"))
request = cache.request("a", function="f")
cache.get_or_load(request, lambda: "old")
cache.flush()
print(cache.invalidate(function="f"), flush=True)
os._exit(0)
"""
    path = str(tmp_path / "cache.db")
    command = [sys.executable, "-c", script, path]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=GUARD)
    assert ran.stdout == "1\n"
    cache = open_cache(disk=path)
    assert cache.get_or_load(cache.request("a", function="f"), lambda: "new") == "new"


def test_invalidation_that_cannot_be_durable_raises(open_cache, tmp_path, invalidate):
    """Law 8: `invalidate` does not fail open: it raises; in this process the entry is gone all the same."""
    (tmp_path / "file").write_text("in the way")
    cache = open_cache(disk=tmp_path / "file" / "cache.db")
    request = cache.request("a", function="f")
    cache.get_or_load(request, lambda: "old")
    assert cache.get_or_load(request, lambda: "new") == "old"
    with pytest.raises(semcache.InvalidationError, match="try again"):
        invalidate(cache, request)
    assert cache.get_or_load(request, lambda: "new") == "new"


def refuse_marks(path):
    """Let the file take entries, but no invalidation."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TRIGGER refuse BEFORE INSERT ON marks BEGIN SELECT RAISE(ABORT, 'refused'); END")


def take_marks(path):
    """Let the file take invalidations again."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DROP TRIGGER refuse")


@pytest.fixture(params=["64MB", 0], ids=["memory", "no memory"])
def unkept(request, open_cache, tmp_path, invalidate):
    """A cache whose file takes no invalidation: what it kept, and what invalidates that all the same."""
    cache = open_cache(disk=tmp_path / "cache.db", memory=request.param)
    asked = cache.request("a", function="f", tags="t")
    cache.get_or_load(asked, lambda: "old")
    cache.get_or_load(cache.request("other", function="g"), lambda: "other")
    assert cache.flush(GUARD)
    refuse_marks(tmp_path / "cache.db")

    def fail():
        with pytest.raises(semcache.InvalidationError):
            invalidate(cache, asked)

    return cache, asked, fail


def test_answer_loaded_after_an_invalidation_that_could_not_be_kept_is_kept(unkept):
    """Law 8: what was born before is not served here, from memory or file; what is loaded since is kept in both."""
    cache, asked, fail = unkept
    for answer in ("new", "newer"):
        fail()
        assert cache.get_or_load(asked, lambda answer=answer: answer) == answer
        assert cache.get_or_load(asked, lambda: "not again") == answer
        assert cache.flush(GUARD)
        if cache.memory is not None:
            cache.memory.clear()
        assert cache.get_or_load(asked, lambda: "not again") == answer
        assert semcache.last().tier == "disk"
    assert cache.get_or_load(cache.request("other", function="g"), lambda: "not again") == "other"


def test_answer_loading_while_an_invalidation_cannot_be_kept_is_not_kept(unkept):
    """Law 8: its load began before, though it ends after, and the log has not moved in between."""
    cache, asked, fail = unkept
    fail()
    origin = Origin("begun before", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(cache.get_or_load, asked, origin)
        assert origin.entered.wait(GUARD)
        fail()
        origin.go.set()
        assert loading.result(GUARD) == "begun before"
    assert cache.flush(GUARD)
    assert cache.get_or_load(asked, lambda: "new") == "new"
    assert cache.get_or_load(asked, lambda: "not again") == "new"


def test_invalidation_by_another_means_what_was_loaded_after_one_that_could_not_be_kept(unkept, open_cache, tmp_path):
    """Law 8: an answer loaded after a failed invalidation is older than the next that is kept, whoever makes it."""
    cache, asked, fail = unkept
    fail()
    assert cache.get_or_load(asked, lambda: "new") == "new"
    assert cache.flush(GUARD)
    take_marks(tmp_path / "cache.db")
    other = open_cache(disk=tmp_path / "cache.db")
    other.invalidate(function="f")
    until(lambda: cache.get_or_load(asked, lambda: "newest") == "newest")
    assert cache.get_or_load(asked, lambda: "not again") == "newest"


def test_invalidation_is_kept_at_the_second_try(unkept, open_cache, tmp_path, invalidate):
    """Law 8: asked again when the file takes it, it is kept, for others too."""
    cache, asked, fail = unkept
    fail()
    take_marks(tmp_path / "cache.db")
    invalidate(cache, asked)
    assert cache.get_or_load(asked, lambda: "new") == "new"
    assert cache.flush(GUARD)
    assert open_cache(disk=tmp_path / "cache.db").get_or_load(asked, lambda: "not again") == "new"


def test_invalidation_of_a_closed_cache_raises(open_cache, tmp_path, invalidate):
    """Law 8: a store that is closed cannot keep it."""
    cache = open_cache(disk=tmp_path / "cache.db")
    cache.close()
    with pytest.raises(semcache.InvalidationError):
        invalidate(cache, cache.request("a", function="f"))


def test_cancelled_invalidation_leaves_nothing_in_memory(open_cache, tmp_path):
    """Law 8: whether a cancelled invalidation came to the store or not, this process serves nothing of it."""
    cache = open_cache(disk=tmp_path / "cache.db")
    request = cache.request("a", function="f")
    cache.get_or_load(request, lambda: "old")

    async def main():
        task = asyncio.create_task(cache.ainvalidate(function="f"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cache.probe(request.key) is None


def test_invalidation_on_a_loop_is_kept(open_cache, tmp_path):
    """Law 8: in the other colour too."""
    cache = open_cache(disk=tmp_path / "cache.db")
    request = cache.request("a", function="f")
    cache.get_or_load(request, lambda: "old")
    cache.flush()
    assert asyncio.run(cache.ainvalidate(function="f")) == 1
    assert cache.get_or_load(request, lambda: "new") == "new"


def test_refused_answer_of_another_function_is_kept(open_cache):
    """Law 8: marks are of facets: an answer of another function, loaded meanwhile, is kept."""
    cache = open_cache()
    request, origin = cache.request("a", function="f"), Origin("kept", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(cache.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        cache.invalidate(function="g")
        origin.go.set()
        loading.result(GUARD)
    assert cache.get_or_load(request, lambda: "new") == "kept"


@pytest.mark.semantic
def test_invalidated_answer_is_no_near_match(open_near, tmp_path, invalidate):
    """Law 8: also by a near match nothing invalidated is served, before a restart or after."""
    cache = open_near(disk=tmp_path / "cache.db")
    stored = cache.request(text="stored", function="f")
    cache.get_or_load(stored, lambda: "old")
    cache.flush()
    invalidate(cache, stored)
    assert cache.get_or_load(cache.request(text="asked", function="f"), lambda: "new") == "new"
    invalidate(cache, cache.request(text="asked", function="f"))
    cache.close()
    again = open_near(disk=tmp_path / "cache.db")
    assert again.stats().tiers["semantic"]["rows"] == 0


def test_function_is_invalidated_by_name_or_itself(open_cache):
    """Law 8: `invalidate(function=)`, `cache_clear()` and `f.invalidate(...)` are one thing."""
    cache, calls = open_cache(), []

    @semcache.cached(cache, version="1")
    def function(x):
        calls.append(x)

    for invalidate in (
        lambda: cache.invalidate(function=function),
        lambda: cache.invalidate(function=function.__semcache_name__),
        function.cache_clear,
        lambda: function.invalidate(1),
        lambda: cache.invalidate(key=semcache.last().key.hex()),
    ):
        function(1)
        calls.clear()
        function(1)
        assert calls == []
        assert invalidate() == 1
        function(1)
        assert calls == [1]
