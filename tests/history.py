"""One of several processes that share a store: reads and invalidates at random, and writes down what it saw.

python history.py SETTINGS.json SEED: settings name the store, the truth (a file of one 64-bit version a key), how long,
and which of how many processes this is. It prints a JSON list of its reads and acknowledged invalidations.

A key's version only grows. Its one writer bumps it, then invalidates, and notes the time of the acknowledgement; a load
returns the version that stands. So of each read it can be told whether it was older than an acknowledged one.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import random
import struct
import sys
import time
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


class Acknowledged(NamedTuple):
    """An invalidation of all versions before this one, that had returned then."""

    key: int
    version: int
    at: float


def stale(reads, acknowledged, lag):
    """Return every read that was given less than what had been acknowledged `lag` seconds before it began."""
    by_key = {}
    for one in sorted(acknowledged, key=lambda one: one.at):
        by_key.setdefault(one.key, []).append(one)
    found = []
    for read in reads:
        must = max((one.version for one in by_key.get(read.key, ()) if one.at + lag < read.began), default=0)
        if read.version < must:
            found.append((read, must))
    return found


def main(settings, seed):
    import semcache

    with Path(settings["truth"]).open("r+b") as file:
        truth = mmap.mmap(file.fileno(), 8 * KEYS)
    draw = random.Random(seed)
    patient = semcache.Timeouts(redis="100ms", disk="1s")
    cache = semcache.Cache("history", **settings["store"], timeouts=patient, ttl=semcache.TTL(memory="1h"))

    def version(key):
        return struct.unpack_from("<q", truth, 8 * key)[0]

    async def aget(request, key):
        return await cache.aget_or_load(request, lambda: version(key)), semcache.last().tier

    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + settings["seconds"]
    lines = []
    with asyncio.Runner() as runner:
        while (began := time.monotonic()) < until:
            key = draw.randrange(KEYS)
            request = cache.request(key, function="f", tags=f"tag{key}")
            if draw.random() < 0.03 and key % settings["processes"] == settings["number"]:
                struct.pack_into("<q", truth, 8 * key, version(key) + 1)
                bumped = version(key)
                try:
                    if draw.random() < 0.5:
                        cache.invalidate(key=request.key)
                    else:
                        cache.invalidate(tag=f"tag{key}")
                except semcache.InvalidationError:
                    continue
                lines.append(["w", key, bumped, time.monotonic()])
                continue
            if draw.random() < 0.5:
                seen, tier = cache.get_or_load(request, lambda key=key: version(key)), semcache.last().tier
            else:
                seen, tier = runner.run(aget(request, key))
            lines.append(["r", key, seen, began, time.monotonic() - began, tier or "load"])
    json.dump(lines, sys.stdout)
    cache.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
