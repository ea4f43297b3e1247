"""What does it cost a process to follow what others learn, how fast can it, and how soon does it hear of invalidations?

Three processes: one writes entries with texts and vectors, one follows with an index, and one, this, asks them; they
share a Redis, or a file. Entries go into the store's tier as a miss puts them, with the vector that it computed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import semcache
from semcache.model import Entry, Evidence
from semcache.plan import run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from children import Child, obey
from servers import RedisServer

ANSWER = b"x" * 1000
DIMENSION, SCOPES = 384, 40
RATE, SECONDS = 1000, 8.0
RECORDS = 40_000
PROPAGATIONS = 200
STORES = ["redis", "disk"]


class Embedder:
    """Any text's vector, from a table: what is measured is what becomes of vectors."""

    identity = "table"
    dimension = DIMENSION

    def __init__(self) -> None:
        table = np.random.default_rng(0).standard_normal((4096, DIMENSION)).astype(np.float32)
        self._table = table / np.linalg.norm(table, axis=1, keepdims=True)

    def __call__(self, texts):
        return np.stack([self._table[hash(text) & 4095] for text in texts])


def make_cache(store):
    """A cache whose disk or Redis lets a busy machine take its time."""
    patient = semcache.Timeouts(redis="10s", disk="10s", semantic="10s")
    return semcache.Cache(
        "bench", **store, embedder=Embedder(), policy=semcache.Threshold(0.9), tenant=semcache.SHARED,
        timeouts=patient,
    )  # fmt: skip


# In the children


class Writer:
    """Writes entries, at a rate or as fast as it can."""

    def __init__(self, cache) -> None:
        self._cache = cache
        self._written = 0
        cache.warm()
        while cache.redis is not None and not cache.redis._store.is_followed:  # who knows no position yet keeps nothing
            time.sleep(0.01)

    def write(self, entries, rate=None):
        embed, store = Embedder(), self._cache.redis or self._cache.disk
        due = time.monotonic()
        for _ in range(entries):
            number, self._written = self._written, self._written + 1
            text = f"Where is my parcel number {number}, which I was promised for Monday?"
            request = self._cache.request("support", number % SCOPES, text=text, function="answer")
            entry = Entry(ANSWER, born=self._cache.log.position(), load_seconds=0.5)
            run(store.put(request, entry, Evidence(embed([text])[0])))
            if rate is not None and number % 8 == 7:
                due += 8 / rate
                time.sleep(max(0.0, due - time.monotonic()))
            elif rate is None and number % 512 == 511:
                store.flush()
        assert store.flush(30)
        return self._written


class FollowerOf:
    """Follows, and says what that took."""

    def __init__(self, cache) -> None:
        self._cache = cache
        self._known = 0
        cache.warm()

    def rows(self):
        self._cache.semantic.flush()
        return self._cache.semantic.stats()["rows"]

    def spend(self, seconds):
        """The share of a core that this process used in so many seconds."""
        used, began = time.process_time(), time.monotonic()
        time.sleep(seconds)
        return (time.process_time() - used) / (time.monotonic() - began)

    def wait_for(self, rows):
        """When the index had so many rows, by a clock that all processes share."""
        semantic = self._cache.semantic
        while semantic.flush() and semantic.stats()["rows"] < rows:
            time.sleep(0.005)
        return time.monotonic()

    def know(self):
        """Have an answer in memory, of which the other process is told the key."""
        self._known += 1
        request = self._cache.request("known", self._known)
        self._cache.get_or_load(request, lambda: "known")
        assert self._cache.flush()
        return request.key.hex()

    def forget(self, key):
        """When memory had that key no longer."""
        key = bytes.fromhex(key)
        while self._cache.probe(key) is not None:
            time.sleep(0.0002)
        return time.monotonic()


def _child(settings):
    with make_cache(settings["store"]) as cache:
        if settings["role"] == "writer":
            obey({"write": Writer(cache).write})
        else:
            follower = FollowerOf(cache)
            obey({name: getattr(follower, name) for name in ("rows", "spend", "wait_for", "know", "forget")})


# The benchmarks


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Where the processes meet: (its name, what a cache is given)."""
    if request.param == "disk":
        yield "a file", {"disk": str(tmp_path / "cache.db")}
    else:
        with RedisServer() as server:
            yield "a Redis", {"redis": server.url}


@pytest.fixture
def processes(store):
    """A writer and a follower of the same store, and its name."""
    name, told = store
    with Child(__file__, role="follower", store=told) as follower, Child(__file__, role="writer", store=told) as writer:
        yield name, told, writer, follower


def test_share_of_a_core(pairs, processes):
    """The bar: under 5% of a core more than an idle follower, at 1,000 entries a second."""
    name, _, writer, follower = processes
    idle, busy, rates = [], [], []

    def measure():
        for _ in range(3):
            idle.append(follower.ask("spend", 3.0))
            before, began = follower.ask("rows"), time.monotonic()
            writer.tell("write", int(RATE * (SECONDS + 1)), RATE)
            time.sleep(0.5)
            busy.append(follower.ask("spend", SECONDS))
            total = writer.hear()
            took = time.monotonic() - began
            follower.ask("wait_for", total)
            rates.append((total - before) / took)

    pairs.once(measure)
    shares = [100 * (one - other) for one, other in zip(busy, idle, strict=True)]
    pairs.record(
        f"following 1,000 entries a second in {name}, % of a core beyond idle",
        ratio=statistics.median(shares), bar=5.0, higher_is_better=False, unit="",
        medians={"% idle": 100 * statistics.median(idle), "entries/s": statistics.median(rates)},
    )  # fmt: skip


def test_greatest_rate(pairs, processes):
    """The bar: 20,000 entries a second of a log that a stopped follower finds, until the last is in its index."""
    name, _, writer, follower = processes
    rates = []

    def measure():
        for _ in range(3):
            follower.ask("rows")
            follower.pause()
            total = writer.ask("write", RECORDS)
            began = time.monotonic()
            follower.resume()
            rates.append(RECORDS / (follower.ask("wait_for", total) - began))

    pairs.once(measure)
    pairs.record(
        f"entries of a log in {name}, a second, read and added to the index of a process that was stopped",
        ratio=statistics.median(rates), bar=20_000.0, higher_is_better=True, unit="entries/s",
        medians={"slowest": min(rates), "fastest": max(rates)},
    )  # fmt: skip


@pytest.mark.parametrize("rate", [None, RATE], ids=["quiet", "busy"])
def test_invalidation_reaches_others(pairs, processes, rate):
    """The bar: 50 ms at the 99th percentile, from the acknowledgement to another process's memory."""
    name, told, writer, follower = processes
    lags = []

    def measure():
        with make_cache(told) as cache:
            cache.log.start()
            pause = 0.03 if rate is None else 0.0
            if rate is not None:
                writer.tell("write", rate * 20, rate)
            for _ in range(PROPAGATIONS):
                key = follower.ask("know")
                follower.tell("forget", key)
                time.sleep(pause)
                cache.invalidate(key=bytes.fromhex(key))
                at = time.monotonic()
                lags.append(max(0.0, follower.hear() - at) * 1e3)
            if rate is not None:
                writer.hear()

    pairs.once(measure)
    lags.sort()
    beside = "quiet" if rate is None else "1,000 entries a second beside it"
    pairs.record(
        f"an invalidation reaches another process's memory through {name}, {beside}, ms at p99",
        ratio=lags[int(len(lags) * 0.99)], bar=50.0, higher_is_better=False, unit="ms",
        medians={"p50": statistics.median(lags), "slowest": lags[-1]},
    )  # fmt: skip


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
