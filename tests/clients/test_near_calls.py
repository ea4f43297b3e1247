"""Calls of a cached client whose texts are near to each other, under way at once."""

from __future__ import annotations

import asyncio
import threading

import pytest
from dialects import Asking, OneWay
from instruments import GUARD, JoinedFlights

import semcache
from semcache.testing.protocols import last_text

pytestmark = pytest.mark.semantic

NEAR = {"embedder": OneWay(), "policy": semcache.Threshold(0.9, guards=None), "tenant": semcache.SHARED}


def test_near_calls_at_once_are_sent_once(models, open_cache):
    """Of two tasks that ask nearly the same, one sends; the other is given its answer, in the SDK's own type."""
    cache, asking = open_cache(**NEAR), Asking("openai", is_async=True)
    cache.warm()
    cache.chain.flights = JoinedFlights()
    client = asking.cached(models, cache)
    entered, go = threading.Event(), threading.Event()

    def reply(body):
        entered.set()
        assert go.wait(GUARD)
        return last_text(body)

    models.reply = reply

    async def main():
        first = asyncio.create_task(asking.create(client, "Do you ship?"))
        await asyncio.to_thread(entered.wait, GUARD)
        second = asyncio.create_task(asking.create(client, "Do you ship at all?"))
        await asyncio.to_thread(cache.chain.flights.wait_for, 1)
        go.set()
        return await asyncio.gather(first, second)

    with semcache.trace() as seen:
        answers = asking.run(main())
    assert [asking.text(answer) for answer in answers] == ["Do you ship?"] * 2
    assert type(answers[0]) is type(answers[1])
    assert models.calls == 1
    assert sorted(str(event.tier) for event in seen.lookups) == ["None", "flight"]
    asking.close()


def test_gathering_in_a_loop_waits_for_no_near_call_that_it_blocks(models, open_cache):
    """Law 6: threads that work for who blocks a loop do not wait for a near text's call that a task of it leads."""
    cache = open_cache(**NEAR, timeouts=semcache.Timeouts(semantic="30s", flight="5s"))
    cache.warm()
    ahead, behind = Asking("openai", is_async=True), Asking("openai", is_async=False)
    client, blocking = ahead.cached(models, cache), behind.cached(models, cache)
    calls = [{"messages": [{"role": "user", "content": text}], "model": "m"} for text in "bc"]

    async def main():
        first = asyncio.create_task(ahead.create(client, "a"))
        await asyncio.sleep(0)
        assert len(cache.chain.nearby) == 1
        gathered = semcache.gather(blocking, calls)
        return [await first, *gathered]

    with semcache.trace() as seen:
        answers = ahead.run(main())
    assert [ahead.text(answer) for answer in answers] == [f"Answer to: {text}" for text in "abc"]
    assert [event.faults for event in seen.lookups] == [[]] * 3
    ahead.close()
    behind.close()
