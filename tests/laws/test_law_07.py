"""Law 7: the origin's errors are never cached, nor what is not complete."""

from __future__ import annotations

import asyncio

import pytest
from instruments import Origin

import semcache


class Rude(Exception):  # noqa: N818 - an origin's own error
    """An error that does not come back from a copy."""

    def __init__(self, first, second):
        super().__init__(first)


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError(1), Rude(1, 2), TimeoutError(), semcache.TierError("late")]
)
def test_error_is_raised_as_it_was_and_not_kept(open_cache, tmp_path, ask, error):
    """Law 7: the caller gets the origin's own error, the next caller a new load."""
    cache = open_cache(disk=tmp_path / "cache.db")
    request, origin = cache.request("a"), Origin(error)
    with pytest.raises(type(error)) as raised:
        ask(cache, request, origin)
    assert raised.value is error
    assert cache.flush()
    origin.answer = "answer"
    assert ask(cache, request, origin) == "answer"
    assert origin.calls == 2
    assert (cache.stats().loads, cache.stats().load_errors, cache.stats().faults) == (2, 1, {})


def test_stop_iteration_is_raised_as_it_was(open_cache):
    """Law 7: also the one error that no generator lets through, though a lookup is one."""
    cache = open_cache()

    @semcache.cached(cache)
    def function(items):
        return next(iter(items))

    with pytest.raises(StopIteration) as raised:
        function([])
    assert raised.value.__cause__ is None
    with pytest.raises(StopIteration):
        cache.get_or_load(cache.request("a"), lambda: next(iter([])))


def test_generator_that_fails_is_not_kept(open_cache):
    """Law 7: a stream that did not complete is no answer; its error comes where it came."""
    fails = [True]

    @semcache.cached(open_cache(), version="1")
    def function():
        yield 1
        if fails:
            raise ValueError(fails.pop())
        yield 2

    items = function()
    assert next(items) == 1
    with pytest.raises(ValueError, match="True"):
        next(items)
    assert list(function()) == [1, 2]


def test_generator_that_is_not_read_to_its_end_is_not_kept(open_cache):
    """Law 7: half a stream is no answer."""
    begun = []

    @semcache.cached(open_cache(), version="1")
    def function():
        begun.append(1)
        yield 1
        yield 2

    items = function()
    assert next(items) == 1
    items.close()
    assert list(function()) == [1, 2]
    assert list(function()) == [1, 2]
    assert len(begun) == 2


def test_async_generator_that_fails_is_not_kept(open_cache):
    """Law 7: nor is half an async stream."""
    fails = [True]

    @semcache.cached(open_cache(), version="1")
    async def function():
        yield 1
        if fails:
            raise ValueError(fails.pop())
        yield 2

    async def read():
        return [item async for item in function()]

    with pytest.raises(ValueError, match="True"):
        asyncio.run(read())
    assert asyncio.run(read()) == [1, 2]


def test_answer_that_its_owner_does_not_want_is_not_kept(open_cache, ask):
    """Law 7: a refusal or a truncated answer is the caller's, and nobody else's; `when` says which are."""
    cache = open_cache()
    request, origin = cache.request("a"), Origin({"finish_reason": "length"})

    def is_complete(answer):
        return answer["finish_reason"] == "stop"

    with semcache.trace() as seen:
        assert ask(cache, request, origin, when=is_complete) == {"finish_reason": "length"}
    assert seen.lookups[0].reason == "not kept: when"
    origin.answer = {"finish_reason": "stop"}
    assert ask(cache, request, origin, when=is_complete) == {"finish_reason": "stop"}
    assert ask(cache, request, origin, when=is_complete) == {"finish_reason": "stop"}
    assert origin.calls == 2
