"""What other bounds would have answered: curves of memory size and of ttl, each from one pass over the requests.

Laws: pure; exact matches alone, since what a near match answers is not stored. A request is answered from an LRU of so
many bytes if, and only if, its *reuse distance* is no larger: the bytes of all that was asked since it was last asked,
its own with them (Mattson et al. 1970). A Fenwick tree over the requests sums them in n log n (Bennett and Kruskal
1975). It holds from the size of the largest answer on; below, an LRU refuses what it has no room for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, log

from semcache.codec import Codec
from semcache.replay.recording import Asked
from semcache.tiers.memory import ENTRY_BYTES

_POINTS = 80
_SHORTEST = 1.0


@dataclass(slots=True)
class Curve:
    """`hits` of `of` requests at each of `at` (bytes, or seconds), which ascends."""

    of: int
    at: list[float] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)

    def shares(self) -> list[float]:
        """Return the hits as shares of 1."""
        return [hits / self.of for hits in self.hits]

    def needed(self, share: float) -> float | None:
        """Return the first place with at least that share of the most hits; None where there are none."""
        most = max(self.hits, default=0)
        if not most:
            return None
        return next(at for at, hits in zip(self.at, self.hits, strict=True) if hits >= share * most)


class _Fenwick:
    """Sums over a row of numbers, each sum and each change in logarithmic time."""

    def __init__(self, length: int) -> None:
        self._tree = [0] * (length + 1)
        self.total = 0

    def add(self, place: int, amount: int) -> None:
        """Add to the number at a place, from 0."""
        self.total += amount
        place += 1
        while place < len(self._tree):
            self._tree[place] += amount
            place += place & -place

    def before(self, place: int) -> int:
        """Return the sum of the numbers before a place."""
        found = 0
        while place:
            found += self._tree[place]
            place -= place & -place
        return found


def reuse_distances(keys: Sequence[Hashable], sizes: Sequence[int]) -> list[int | None]:
    """Return each request's reuse distance in bytes; None where its key is asked for the first time.

    A key has the size that it came with first.
    """
    tree = _Fenwick(len(keys))
    latest: dict[Hashable, tuple[int, int]] = {}
    distances: list[int | None] = []
    for place, key in enumerate(keys):
        previous, size = latest.get(key, (None, sizes[place]))
        if previous is None:
            distances.append(None)
        else:
            distances.append(tree.total - tree.before(previous))
            tree.add(previous, -size)
        tree.add(place, size)
        latest[key] = place, size
    return distances


def by_memory(asked: Sequence[Asked]) -> Curve:
    """Return how many requests a memory of so many bytes would answer, if nothing in it expired."""
    encode = Codec().encode
    keys: list[bytes] = []
    sizes: list[int] = []
    known: dict[bytes, int] = {}
    for one in asked:
        if one.request is not None:
            key = one.request.key
            if key not in known:
                known[key] = ENTRY_BYTES + len(encode([one.position, one.answer]))
            keys.append(key)
            sizes.append(known[key])
    distances = sorted(distance for distance in reuse_distances(keys, sizes) if distance is not None)
    curve = Curve(len(asked))
    if distances:
        least = float(max(sizes))
        curve.at = _spread(least, max(least, float(distances[-1])))
        curve.hits = [bisect_right(distances, at) for at in curve.at]
    return curve


def arrivals(asked: Iterable[Asked], time_scale: float) -> list[list[float]]:
    """Return when each key was asked for, in the caches' seconds; keys that were asked for once are left out."""
    times: dict[bytes, list[float]] = {}
    for one in asked:
        if one.request is not None:
            times.setdefault(one.request.key, []).append(one.ts * time_scale)
    return [one for one in times.values() if len(one) > 1]


def fixed_hits(times: Iterable[Sequence[float]], ttl: float) -> int:
    """Count the requests that are answered where an answer lives `ttl` seconds from its load."""
    hits = 0
    for one in times:
        loads = place = 0
        while place < len(one):
            loads += 1
            place = bisect_left(one, one[place] + ttl, place + 1)
        hits += len(one) - loads
    return hits


def by_ttl(asked: Sequence[Asked], time_scale: float, shown: float) -> tuple[Curve, Curve]:
    """Return how many requests would be answered with a ttl of so many seconds, in a store with room for everything.

    The first curve is of lives from the load, the second of lives that begin anew with each hit (`sliding=True`), which
    the gaps between requests tell. Both reach to the ttl `shown` at least.
    """
    times = arrivals(asked, time_scale)
    fixed, sliding = Curve(len(asked)), Curve(len(asked))
    gaps = sorted(later - earlier for one in times for earlier, later in pairwise(one))
    if gaps:
        longest = max(one[-1] - one[0] for one in times)
        fixed.at = sliding.at = _spread(_SHORTEST, max(2 * _SHORTEST, 1.5 * longest, shown))
        fixed.hits = [fixed_hits(times, at) for at in fixed.at]
        sliding.hits = [bisect_left(gaps, at) for at in sliding.at]
    return fixed, sliding


def _spread(least: float, most: float) -> list[float]:
    """Return places from the least to the most, each as many times the one before."""
    if most <= least:
        return [least]
    step = log(most / least) / (_POINTS - 1)
    return [least * exp(step * place) for place in range(_POINTS - 1)] + [most]
