"""What does a memory hit cost, beside the simplest cache that is safe among threads?"""

from __future__ import annotations

import asyncio
import functools
import json
import statistics
from hashlib import sha256
from threading import Lock
from time import perf_counter

import cachetools
from cashews import Cache as Cashews

import semcache

ANSWER = "Your parcel left our warehouse on Monday and should reach you within three working days. " * 2
REQUEST = {
    "model": "assistant-1",
    "temperature": 0,
    "max_tokens": 300,
    "messages": [
        {"role": "system", "content": "You answer questions of a bank's customers, briefly and politely. " * 4},
        {"role": "user", "content": "What does a transfer to another country cost me? " * 2},
        {"role": "assistant", "content": "It depends on the country and on the amount that you send. " * 3},
        {"role": "user", "content": "And to Austria?"},
    ],
}
RESPONSE = {
    "id": "chatcmpl-1",
    "model": "assistant-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER * 2}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 212, "completion_tokens": 61},
}


def test_function(pairs):
    """The bar: 3 times `cachetools.cached(TTLCache, lock=Lock())`."""

    def answer(question):
        return ANSWER

    ours = semcache.cached(semcache.Cache())(answer)
    bare = cachetools.cached(cachetools.TTLCache(1000, 300), lock=Lock())(answer)
    bound = functools.lru_cache(answer)
    pairs(
        "memory hit of a one-argument function / cachetools.cached(TTLCache, lock)",
        lambda: ours("Where is my parcel?"),
        lambda: bare("Where is my parcel?"),
        bar=3.0,
        peers={"functools.lru_cache": lambda: bound("Where is my parcel?")},
    )


def test_async_function(pairs):
    """The bar: at most 1.5 us more than the sync hit; beside it, cashews' memory hit."""
    cache = semcache.Cache()
    cashews = Cashews()
    cashews.setup("mem://")

    @semcache.cached(cache)
    def answer(question):
        return ANSWER

    @semcache.cached(cache)
    async def aanswer(question):
        return ANSWER

    @cashews(ttl="5m")
    async def peer(question):
        return ANSWER

    async def time_async(function, number):
        await function("Where is my parcel?")
        began = perf_counter()
        for _ in range(number):
            await function("Where is my parcel?")
        return (perf_counter() - began) / number * 1e6

    def time_sync(number):
        answer("Where is my parcel?")
        began = perf_counter()
        for _ in range(number):
            answer("Where is my parcel?")
        return (perf_counter() - began) / number * 1e6

    sync_us, async_us, peer_us = [], [], []
    for _ in range(31):
        sync_us.append(time_sync(1000))
        async_us.append(asyncio.run(time_async(aanswer, 1000)))
        peer_us.append(asyncio.run(time_async(peer, 200)))
    extra = statistics.median(late - soon for late, soon in zip(async_us, sync_us, strict=True))
    pairs.record(
        "memory hit of an async function, microseconds more than the sync one",
        ratio=extra,
        bar=1.5,
        higher_is_better=False,
        medians={
            "ours": statistics.median(async_us),
            "bare": statistics.median(sync_us),
            "cashews": statistics.median(peer_us),
        },
        unit="us",
    )
    pairs.once(lambda: asyncio.run(time_async(aanswer, 1000)))


def test_chat_request(pairs):
    """The bar: 1.5 times `sha256(json.dumps(request, sort_keys=True))` alone, answer decoded."""

    @semcache.cached(semcache.Cache())
    def complete(request):
        return RESPONSE

    pairs(
        "memory hit keyed on a chat request of 4 messages, decoded / sha256(json.dumps(request, sort_keys=True))",
        lambda: complete(REQUEST),
        lambda: sha256(json.dumps(REQUEST, sort_keys=True).encode()).hexdigest(),
        bar=1.5,
        number=500,
    )
