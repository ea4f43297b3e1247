"""One of several processes that share a store: reads and invalidates at random, and writes down what it saw.

python history.py SETTINGS.json SEED: settings name the store, the truth (a file of one 64-bit version a key), how long,
which of how many processes this is, and whether answers have tags to be invalidated by. It writes each read and each
acknowledged invalidation to stdout.

A key's version only grows. Its one writer bumps it, then invalidates, and writes the time of the acknowledgement down;
a load returns the version that stands. So of each read it can be told whether it was older than an acknowledged one.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import random
import struct
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import NamedTuple

KEYS = 20


class Read(NamedTuple):
    """What a call that began then was given, and by whom."""

    key: int
    version: int
    began: float
    took: float
    tier: str
    process: int = 0


class Acknowledged(NamedTuple):
    """An invalidation of all versions before this one, that had returned then."""

    key: int
    version: int
    at: float


class Starved(NamedTuple):
    """A time in which a process did not let a thread run that had slept enough: no other could hear a thing either."""

    process: int
    since: float
    until: float


class _Promised:
    """What had been acknowledged of each key at any time."""

    def __init__(self, acknowledged):
        self._at, self._versions = {}, {}
        for one in sorted(acknowledged, key=lambda one: one.at):
            versions = self._versions.setdefault(one.key, [])
            versions.append(max(one.version, versions[-1] if versions else 0))
            self._at.setdefault(one.key, []).append(one.at)

    def version(self, key, at):
        """Return the latest version that was acknowledged before then."""
        number = bisect_left(self._at.get(key, ()), at)
        return self._versions[key][number - 1] if number else 0

    def since(self, key, version):
        """Return when a version later than this one was first acknowledged."""
        return self._at[key][bisect_right(self._versions[key], version)]


def stale(reads, acknowledged, lag, starved=()):
    """Return every read that was given less than what had been acknowledged `lag` seconds before it began.

    `lag` is a number, or what gives one for the time when a read began. Seconds in which the reader's process was
    starved do not count.
    """
    promised, of = _Promised(acknowledged), lag if callable(lag) else lambda began: lag
    told = ((read, promised.version(read.key, read.began - of(read.began))) for read in reads)
    found = [(read, must) for read, must in told if read.version < must]
    return [
        (read, must) for read, must in found
        if read.began - (since := promised.since(read.key, read.version)) - _starved(read, since, starved)
        > of(read.began)
    ]  # fmt: skip


def _starved(read, since, starved):
    """Return for how many of the seconds from then until a read began its process was starved."""
    own = (one for one in starved if one.process == read.process)
    return sum(max(0.0, min(one.until, read.began) - max(one.since, since)) for one in own)


def beat(starved, number, stop, every=0.01, least=0.01):
    """Note down when this thread was not let run."""
    while not stop.is_set():
        due = time.monotonic() + every
        time.sleep(every)
        now = time.monotonic()
        if now - due > least:
            starved.append(["s", number, due, now])


def staleness(reads, acknowledged):
    """Return, of each read that was given something outdated, for how many seconds it had been that when it began."""
    promised = _Promised(acknowledged)
    return [read.began - promised.since(read.key, read.version) for read, _ in stale(reads, acknowledged, 0.0)]


def trace(reads, acknowledged, key, around, most=40):
    """Return the lines of what happened to a key up to some moment, the latest last."""
    lines = [
        (one.began, f"process {one.process} read {one.version} from {one.tier}, took {one.took:.4f}")
        for one in reads
        if one.key == key
    ]
    lines += [(one.at, f"acknowledged {one.version}") for one in acknowledged if one.key == key]
    return [f"{at - around:+.4f} {what}" for at, what in sorted(lines) if at <= around][-most:]


def main(settings, seed):
    import semcache

    with Path(settings["truth"]).open("r+b") as file:
        truth = mmap.mmap(file.fileno(), 8 * KEYS)
    draw = random.Random(seed)
    patient = semcache.Timeouts(redis="100ms", memcached="100ms", disk="1s")
    cache = semcache.Cache("history", **settings["store"], timeouts=patient, ttl=semcache.TTL(memory="1h"))

    def version(key):
        return struct.unpack_from("<q", truth, 8 * key)[0]

    def get(request, key):
        return cache.get_or_load(request, lambda: version(key)), semcache.last().tier or "load"

    async def aget(request, key):
        return await cache.aget_or_load(request, lambda: version(key)), semcache.last().tier or "load"

    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + settings["seconds"]
    lines, starved, stop = [], [], threading.Event()
    heart = threading.Thread(target=beat, args=(starved, settings["number"], stop))
    heart.start()
    with asyncio.Runner() as runner:
        while (began := time.monotonic()) < until:
            key = draw.randrange(KEYS)
            request = cache.request(key, function="f", tags=[f"tag{key}"] if settings["tags"] else [])
            if draw.random() < 0.03 and key % settings["processes"] == settings["number"]:
                struct.pack_into("<q", truth, 8 * key, version(key) + 1)
                bumped = version(key)
                try:
                    if draw.random() < 0.5 or not settings["tags"]:
                        cache.invalidate(key=request.key)
                    else:
                        cache.invalidate(tag=f"tag{key}")
                except semcache.InvalidationError:
                    continue
                lines.append(["w", key, bumped, time.monotonic()])
                continue
            seen, tier = get(request, key) if draw.random() < 0.5 else runner.run(aget(request, key))
            lines.append(["r", key, seen, began, time.monotonic() - began, tier, settings["number"]])
    stop.set()
    heart.join()
    json.dump(lines + starved, sys.stdout)
    cache.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
