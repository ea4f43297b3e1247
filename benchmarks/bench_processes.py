"""What do eight processes that share a Redis reach together, beside eight bare clients of it?"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import redis

import semcache

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from children import Child, obey
from servers import RedisServer

PROCESSES, KEYS = 8, 1000
PUTS = 0.05
SECONDS, ROUNDS = 2.0, 9
ANSWER = "Your parcel left our warehouse on Monday and should reach you within three working days. " * 11


class Worker:
    """Asks at random; a put is a load in the mode that looks for nothing, and a bare SET with an expiry."""

    def __init__(self, cache, url, number) -> None:
        self._cache = cache
        self._draw = random.Random(number)
        self._function = semcache.cached(cache, version="1")(lambda number: ANSWER)
        self._client = redis.Redis.from_url(url)
        self._names = [f"bare:{number}" for number in range(KEYS)]
        self._value = cache.chain.codec.encode(ANSWER) + bytes(64)  # as long as an entry with its header

    def fill(self):
        for number in range(KEYS):
            self._ask(number)
            self._function(number)
            self._set(number)
            assert number % 100 or self._cache.flush()
        assert self._cache.flush()

    def work(self, job, seconds):
        """Calls answered in a second, of so many seconds; what was put is in the store when they are over."""
        get, put = {
            "ours": (self._function, self._refreshed(self._function)),
            "get_or_load": (self._ask, self._refreshed(self._ask)),
            "bare": (self._get, self._set),
        }[job]
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            for _ in range(10):
                (put if self._draw.random() < PUTS else get)(self._draw.randrange(KEYS))
            count += 10
        assert self._cache.flush()
        return count / (time.monotonic() - began)

    def faults(self):
        return self._cache.stats().faults

    @staticmethod
    def _refreshed(call):
        def put(number):
            with semcache.context(mode="refresh"):
                call(number)

        return put

    def _ask(self, number):
        return self._cache.get_or_load(self._cache.request(number), lambda: ANSWER)

    def _get(self, number):
        return self._client.get(self._names[number])

    def _set(self, number):
        self._client.set(self._names[number], self._value, px=86_400_000)


def _child(settings):
    with semcache.Cache("bench", memory=0, redis=settings["url"], timeouts=semcache.Timeouts(redis="10s")) as cache:
        worker = Worker(cache, **settings)
        obey({"fill": worker.fill, "work": worker.work, "faults": worker.faults})


def test_eight_processes(pairs):
    """The bar: at least 0.8 of what eight bare redis-py clients do; 95% GET, memory tier off."""
    rates = {"ours": [], "bare": [], "get_or_load": []}
    with RedisServer() as server, ExitStack() as stack:
        children = [stack.enter_context(Child(__file__, url=server.url, number=n)) for n in range(PROCESSES)]
        children[0].ask("fill")

        def measure():
            for _ in range(ROUNDS):
                for job, all_rates in rates.items():
                    for child in children:
                        child.tell("work", job, SECONDS)
                    all_rates.append(sum(child.hear() for child in children))

        pairs.once(measure)
        assert not any(child.ask("faults") for child in children)
    ratios = [ours / bare for ours, bare in zip(rates["ours"][1:], rates["bare"][1:], strict=True)]
    pairs.record(
        f"calls a second of {PROCESSES} processes on {len(os.sched_getaffinity(0))} cores, decorated function, 95% hits"
        " in Redis, 5% puts, no memory / redis-py clients, the same GETs and SETs",
        ratio=statistics.median(ratios), bar=0.8, higher_is_better=True, unit="calls/s",
        medians={name: statistics.median(all_rates[1:]) for name, all_rates in rates.items()},
    )  # fmt: skip


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
