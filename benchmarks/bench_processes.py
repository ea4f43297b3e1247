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


def _child(settings):
    """Ask at random; a put is a load in the mode that looks for nothing, and a bare SET with an expiry."""
    draw = random.Random(settings["number"])
    cache = semcache.Cache("bench", memory=0, redis=settings["url"], timeouts=semcache.Timeouts(redis="10s"))
    function = semcache.cached(cache, version="1")(lambda number: ANSWER)
    client = redis.Redis.from_url(settings["url"])
    names = [f"bare:{number}" for number in range(KEYS)]
    value = cache.chain.codec.encode(ANSWER) + bytes(64)  # as long as an entry with its header

    def fill():
        for number, name in enumerate(names):
            function(number)
            cache.get_or_load(cache.request(number), lambda: ANSWER)
            client.set(name, value, px=86_400_000)
            assert number % 100 or cache.flush()
        assert cache.flush()

    def ours(number):
        if draw.random() < PUTS:
            with semcache.context(mode="refresh"):
                function(number)
        else:
            function(number)

    def get_or_load(number):
        if draw.random() < PUTS:
            with semcache.context(mode="refresh"):
                cache.get_or_load(cache.request(number), lambda: ANSWER)
        else:
            cache.get_or_load(cache.request(number), lambda: ANSWER)

    def bare(number):
        if draw.random() < PUTS:
            client.set(names[number], value, px=86_400_000)
        else:
            client.get(names[number])

    def work(job, seconds):
        """Calls answered in so many seconds; what was put is in the store when they are over."""
        call, count = {"ours": ours, "bare": bare, "get_or_load": get_or_load}[job], 0
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            for _ in range(10):
                call(draw.randrange(KEYS))
            count += 10
        assert cache.flush()
        return count / (time.monotonic() - began)

    with cache:
        obey({"fill": fill, "work": work, "faults": lambda: cache.stats().faults})


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
        f"calls of a decorated function in {PROCESSES} processes on {len(os.sched_getaffinity(0))} cores, 95% hits in Redis, memory off, a second"
        " / redis-py clients, the same GETs and SETs",
        ratio=statistics.median(ratios), bar=0.8, higher_is_better=True, unit="calls/s",
        medians={name: statistics.median(all_rates[1:]) for name, all_rates in rates.items()},
    )  # fmt: skip


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
