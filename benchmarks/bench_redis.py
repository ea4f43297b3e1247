"""What does the Redis tier cost, beside the bare client on the same server?"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

import redis
import redis.asyncio

import semcache

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import RedisServer

ANSWER = "Your parcel left our warehouse on Monday and should reach you within three working days. " * 2
QUESTIONS = [f"Where is my parcel number {number}?" for number in range(500)]
PATIENT = semcache.Timeouts(redis="10s")
PROPAGATIONS = 200


def filled(server, **settings):
    """A cache without memory whose Redis has all the answers, and where they stand."""
    cache = semcache.Cache("bench", memory=0, redis=server.url, timeouts=PATIENT, **settings)
    function = semcache.cached(cache, version="1")(lambda question: ANSWER)
    for question in QUESTIONS:
        function(question)
    assert cache.flush()
    while not cache.redis._store.is_followed:
        time.sleep(0.01)
    return cache, function, list(server.client().scan_iter("semcache:bench:v:*"))


def test_redis_hit(pairs):
    """The bar: 1.3 times a bare redis-py GET of the same bytes."""
    with RedisServer() as server:
        cache, function, names = filled(server)
        bare = server.client()

        def all_ours():
            for question in QUESTIONS:
                function(question)

        def all_bare():
            for name in names:
                bare.get(name)

        assert function(QUESTIONS[7]) == ANSWER
        assert semcache.last().tier == "redis"
        pairs(
            "500 Redis hits of a decorated function / redis-py GETs of the same bytes", all_ours, all_bare, bar=1.3,
            number=1, rounds=21, unit="ms",
        )  # fmt: skip
        assert set(cache.stats().hits) == {"redis"}
        cache.close()


def test_redis_async_hit(pairs):
    """The bar: 1.3 times a bare redis.asyncio GET of the same bytes."""
    with RedisServer() as server, asyncio.Runner() as runner:
        cache, _, names = filled(server)
        bare = redis.asyncio.Redis.from_url(server.url)

        @semcache.cached(cache, version="1", key=lambda question: question)
        async def function(question):
            return ANSWER

        async def fill():
            for question in QUESTIONS:
                await function(question)

        runner.run(fill())
        assert cache.flush()

        async def all_bare():
            for name in names:
                await bare.get(name)

        pairs(
            "500 Redis hits of an async function / redis.asyncio GETs of the same bytes",
            lambda: runner.run(fill()), lambda: runner.run(all_bare()), bar=1.3, number=1, rounds=21, unit="ms",
        )  # fmt: skip
        cache.close()
        runner.run(bare.aclose())


def test_redis_put(pairs):
    """The bar: 1.7 times a bare SET, for an entry with its record in the log, until it is in the store."""
    with RedisServer() as server:
        cache = semcache.Cache("bench", memory=0, redis=server.url, timeouts=PATIENT)
        bare = server.client()
        value = cache.chain.codec.encode(ANSWER) + bytes(64)
        numbers = iter(range(10**9))

        def all_ours():
            for _ in range(200):
                cache.get_or_load(cache.request(next(numbers)), lambda: ANSWER)
            assert cache.flush()

        def all_bare():
            for _ in range(200):
                name = f"bare:{next(numbers)}"
                bare.get(name)
                bare.set(name, value, ex=86400)

        pairs(
            "200 misses, loaded and put, until they are stored / a bare GET and a bare SET each",
            all_ours, all_bare, bar=1.7, number=1, rounds=15, unit="ms",
        )  # fmt: skip
        cache.close()


def test_redis_invalidation_reaches_others(pairs):
    """The bar: 50 ms at the 99th percentile, from the acknowledgement to another cache's memory."""
    with RedisServer() as server:
        ours = semcache.Cache("bench", redis=server.url, timeouts=PATIENT)
        other = semcache.Cache("bench", redis=server.url, timeouts=PATIENT)
        lags = []

        def propagate():
            for number in range(PROPAGATIONS):
                request = ours.request("q", number)
                ours.get_or_load(request, lambda: ANSWER)
                assert ours.flush()
                other.get_or_load(request, lambda: ANSWER)
                ours.invalidate(key=request.key)
                began = time.perf_counter()
                while other.probe(request.key) is not None and time.perf_counter() - began < 5:
                    time.sleep(0.0002)
                lags.append((time.perf_counter() - began) * 1e3)

        pairs.once(propagate)
        lags.sort()
        pairs.record(
            "an invalidation reaches another cache's memory, ms at p99",
            ratio=lags[int(len(lags) * 0.99)], bar=50, higher_is_better=False, unit="ms",
            medians={"p50": statistics.median(lags), "slowest": lags[-1]},
        )  # fmt: skip
        ours.close()
        other.close()
