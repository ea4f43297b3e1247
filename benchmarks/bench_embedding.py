"""What do cached embeddings cost, beside the bare client on the same server?"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import redis.asyncio

import semcache

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import RedisServer

TEXTS = [f"Where is my parcel number {number}?" for number in range(64)]
DIMENSION = 384
PATIENT = semcache.Timeouts(redis="10s")


class Model:
    """Embeds texts as random vectors; counts the texts that it sees."""

    def __init__(self):
        self.seen = 0
        self._random = np.random.default_rng(1)

    def embed(self, texts):
        self.seen += len(texts)
        return self._random.standard_normal((len(texts), DIMENSION), np.float32)


def filled(server, model):
    """A cache without memory whose Redis has the vectors of all texts, and where they stand."""
    cache = semcache.Cache("bench", memory=0, redis=server.url, timeouts=PATIENT)
    embed = semcache.cached_embedding(cache, model="bench", version="1")(model.embed)
    embed(TEXTS)
    assert cache.flush()
    while not cache.redis._store.is_followed:
        time.sleep(0.01)
    return cache, embed, list(server.client().scan_iter("semcache:bench:v:*"))


def test_64_cached_texts_over_redis(pairs):
    """The bar: 1.5 times a bare redis-py MGET of the same bytes."""
    with RedisServer() as server:
        model = Model()
        cache, embed, names = filled(server, model)
        bare = server.client()
        pairs(
            "cached_embedding of 64 cached texts over Redis / redis-py MGET of the same bytes",
            lambda: embed(TEXTS), lambda: bare.mget(names), bar=1.5, number=20, rounds=31, unit="ms",
        )  # fmt: skip
        assert model.seen == len(TEXTS)
        assert set(cache.stats().hits) == {"redis"}
        cache.close()


def test_64_cached_texts_over_redis_async(pairs):
    """The bar: 1.5 times a bare redis.asyncio MGET of the same bytes."""
    with RedisServer() as server, asyncio.Runner() as runner:
        model = Model()
        cache, _, names = filled(server, model)
        bare = redis.asyncio.Redis.from_url(server.url)

        async def compute(texts):
            return model.embed(texts)

        aembed = semcache.cached_embedding(cache, model="bench", version="1")(compute)
        runner.run(aembed(TEXTS))
        assert cache.flush()

        async def repeat(job):
            for _ in range(20):
                await job()

        pairs(
            "20 async cached_embeddings of 64 cached texts over Redis / redis.asyncio MGETs of the same bytes",
            lambda: runner.run(repeat(lambda: aembed(TEXTS))), lambda: runner.run(repeat(lambda: bare.mget(names))),
            bar=1.5, number=1, rounds=31, unit="ms",
        )  # fmt: skip
        assert model.seen == 2 * len(TEXTS)
        cache.close()
        runner.run(bare.aclose())


def test_64_texts_in_memory(pairs):
    """No bar: what is left where no server is asked, beside the making of the array."""
    model = Model()
    cache = semcache.Cache("bench")
    embed = semcache.cached_embedding(cache, model="bench", version="1")(model.embed)
    rows = list(embed(TEXTS))
    pairs(
        "cached_embedding of 64 texts in memory / numpy.stack of their vectors",
        lambda: embed(TEXTS), lambda: np.stack(rows), number=100, rounds=31,
    )  # fmt: skip
    cache.close()


def test_half_cached_computes_the_other_half(pairs):
    """The bar: the model sees exactly 32 of 64 texts, of which 32 are cached."""
    with RedisServer() as server:
        model = Model()
        cache, embed, _ = filled(server, model)
        numbers, seen = count(), []

        def half():
            before = model.seen
            fresh = [f"Where is my invoice number {next(numbers)}?" for _ in range(32)]
            embed([text for pair in zip(TEXTS[:32], fresh, strict=True) for text in pair])
            seen.append(model.seen - before)

        pairs.once(lambda: [half() for _ in range(20)])
        assert set(seen) == {32}
        pairs.record(
            "texts that the model sees of 64, of which 32 are cached", ratio=max(seen), bar=32, higher_is_better=False,
            medians={}, unit="texts",
        )  # fmt: skip
        cache.close()
