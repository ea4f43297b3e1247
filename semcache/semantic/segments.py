"""Sealed rows of one scope: segments, each a graph, and the slabs that are being built into one.

Laws:
- a row keeps its number when its slab is sealed: the row at offset o of a segment's slab number p is its graph's p, o;
- a removed row leaves a hole, whose bit is gone at once; what is left of a segment with many holes is moved out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, sqrt
from typing import TYPE_CHECKING

from semcache.semantic.arena import FREE, OFFSET, SHIFT, SLAB_ROWS
from semcache.semantic.half import NO_ROW, nearest_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import float32, int64, uint8
    from numpy.typing import NDArray

    from semcache.semantic.arena import Slab
    from semcache.semantic.hnsw import Graph

SEGMENT_ROWS = 262_144

_MORE_FOUND = 16
"""Rows found beyond those asked for, where lives may be over."""
_LEAST_EFFORT = 96
_MOST_EFFORT = 4


class Segment:
    """A graph and the slabs whose rows it holds; the slabs' lives and states are parts of its arrays."""

    def __init__(self, graph: Graph, slabs: list[Slab]) -> None:
        import numpy as np

        self.graph = graph
        self.slabs = slabs
        self.is_draining = False
        self.expires = np.concatenate([slab.expires for slab in slabs])
        self.state = np.concatenate([slab.state for slab in slabs])
        self._firsts = np.array([slab.index << SHIFT for slab in slabs])
        self._alive = np.packbits(self.state != FREE, bitorder="little")
        self.living = int(np.count_nonzero(self.state))
        self.last = len(slabs) - 1
        """Behind this slab no row lives; meant for whoever moves them out."""
        self.soonest = 0.0
        """No life is over before; 0 where that is not known."""
        for place, slab in enumerate(slabs):
            here = slice(place << SHIFT, (place + 1) << SHIFT)
            slab.vectors, slab.expires, slab.state = graph.rows[here], self.expires[here], self.state[here]

    def __len__(self) -> int:
        return len(self.slabs) << SHIFT

    def bury(self, place: int, at: int) -> None:
        """Leave out a row that was removed: the offset in which slab."""
        number = place << SHIFT | at
        self._alive[number >> 3] &= ~(1 << (number & 7)) & 255
        self.living -= 1

    def search(
        self, queries: NDArray[float32], k: int, effort: int, now: float
    ) -> tuple[NDArray[float32], NDArray[int64]] | None:
        """Return similarities and rows of the nearest that live, both [n, found], -1 for none.

        None where few of them live: a scan is better then.
        """
        import numpy as np

        if self.soonest > now:
            near, found = self.graph.search(queries, k, *self._at_effort(effort, self.living))
            return near, self._as_rows(found)
        near, found = self.graph.search(
            queries, min(k + _MORE_FOUND, len(self)), *self._at_effort(effort, self.living)
        )  # fmt: skip
        lives = (found >= 0) & (self.expires[found] > now)
        if (lives.sum(axis=1) < np.minimum(k, (found >= 0).sum(axis=1))).any():
            alive = (self.expires > now) & (self.state != FREE)
            self.soonest = self._first_end()
            living = int(alive.sum())
            if living * _MOST_EFFORT < len(self):
                return None
            bits = np.packbits(alive, bitorder="little")
            near, found = self.graph.search(queries, k, self._at_effort(effort, living)[0], bits)
            return near, self._as_rows(found)
        if lives.all():
            self.soonest = self.soonest or self._first_end()
        near, found = nearest_first(np.where(lives, near, np.float32(-np.inf)), np.where(lives, found, NO_ROW), k)
        return near, self._as_rows(found)

    def _first_end(self) -> float:
        """Return when the first life of its rows is over."""
        return float(self.expires[self.state != FREE].min(initial=inf))

    def _at_effort(self, effort: int, living: int) -> tuple[int, NDArray[uint8] | None]:
        """Return how many candidates to keep, more where many are holes, and which rows may be found."""
        effort = effort_for(effort, len(self))
        if living == len(self):
            return effort, None
        return effort * min(_MOST_EFFORT, len(self) // max(1, living)), self._alive

    def _as_rows(self, found: NDArray[int64]) -> NDArray[int64]:
        import numpy as np

        return np.where(found < 0, found, self._firsts[found >> SHIFT] | found & OFFSET)


def effort_for(effort: int, rows: int) -> int:
    """Return how many candidates a graph of so many rows needs for the recall that one of 262,144 has with `effort`."""
    return max(_LEAST_EFFORT, round(effort * sqrt(min(1.0, rows / SEGMENT_ROWS))))


@dataclass(slots=True)
class Sealed:
    """What of a scope is sealed, or about to be; `living` counts the rows of both."""

    segments: list[Segment] = field(default_factory=list)
    building: list[Slab] = field(default_factory=list)
    living: int = 0

    @property
    def growing(self) -> Segment | None:
        """The segment that further rows are added to, if there is one."""
        last = self.segments[-1] if self.segments else None
        return None if last is None or last.is_draining else last


@dataclass(slots=True)
class Job:
    """Slabs that are being built into a segment, behind the rows of `base`; and what came of it."""

    scope: bytes
    base: Segment | None
    slabs: Sequence[Slab]
    graph: Graph | None = None
    error: BaseException | None = None

    @property
    def rows(self) -> int:
        """How many rows are added."""
        return len(self.slabs) * SLAB_ROWS
