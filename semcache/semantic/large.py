"""The index with its large scopes in graphs: FlatIndex in all else, so that small scopes are searched exactly.

Laws:
- once a scope has `crossover` rows in full slabs those are frozen and, aside, built into the scope's growing segment;
  until that is done, and behind it, rows are scanned: nothing waits, and what is added is found by the next search;
- in a frozen slab rows stay where they are: one that is removed leaves a hole, one that is given another vector moves;
- of a segment a third of which are holes the rest is moved behind the scope's last row, some at a time, and so built
  anew; the memory of its holes comes to `nbytes` until then;
- a build needs memory for one more copy of the segment that it grows: at most a quarter of the index's bound.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from semcache.semantic.arena import OFFSET, SHIFT, SLAB_ROWS
from semcache.semantic.aside import Aside
from semcache.semantic.half import Scanner
from semcache.semantic.hnsw import LINK_BYTES, grown
from semcache.semantic.index import FlatIndex
from semcache.semantic.scoped import block_of, text_bytes
from semcache.semantic.segments import SEGMENT_ROWS, Job, Sealed, Segment
from semcache.semantic.threads import share_faiss_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import float16, float32, int64
    from numpy.typing import NDArray

    from semcache.semantic.arena import Slab
    from semcache.semantic.work import NewRow

CROSSOVER = 8192
"""Measured (benchmarks/RESULTS.md): so many rows are scanned in half a millisecond, and a graph of them takes half of
that: below it there is too little to win for what it costs to build, and for its links."""
EFFORT = 176

_JOB_SLABS = 32
_URGENT_SLABS = 64
_MOST_HOLES = 1 / 3
_MOVED_AT_ONCE = 4
_MOVED_BY_SWEEP = 64
_NONE = -1
"""The first row of a tail that is not there, of a scope whose rows are all sealed."""


class LargeIndex(FlatIndex):
    """A FlatIndex whose scopes are graphs from about `crossover` rows on, of at most `segment_rows` rows each.

    `effort` is how many candidates a search of a graph of 262,144 rows keeps: recall for time.
    """

    path = "FAISS, HNSW"

    def __init__(
        self, dimension: int, max_bytes: int, max_rows: int | None = None, *, crossover: int = CROSSOVER,
        segment_rows: int = SEGMENT_ROWS, effort: int = EFFORT,
    ) -> None:  # fmt: skip
        self.crossover = crossover
        self.troubles: deque[BaseException] = deque(maxlen=16)
        """What went wrong aside since it was last looked at; its rows are scanned."""
        self._effort = effort
        row_bytes = 2 * dimension + LINK_BYTES
        self._most_slabs = max(1, min(segment_rows, max(max_bytes // 4 // row_bytes, crossover)) >> SHIFT)
        self._least_slabs = max(1, crossover >> SHIFT)
        self._aside = Aside("semcache-index")
        self._job: Job | None = None
        self._finished: deque[Job] = deque()
        self._sealed: dict[bytes, Sealed] = {}
        self._changed = threading.Event()
        self._finalizer = weakref.finalize(self, self._aside.close)
        super().__init__(dimension, max_bytes, max_rows)

    def clear(self) -> None:
        self._job = None  # what comes of it is of rows that are no more
        gone = [segment for sealed in self._sealed.values() for segment in sealed.segments]
        self._sealed = {}
        self._places: dict[int, tuple[Segment, int]] = {}
        self._ripe: dict[bytes, None] = {}
        self._draining: deque[tuple[bytes, Segment]] = deque()
        super().clear()
        for segment in gone:
            self._let_go(segment)

    def close(self) -> None:
        self._finalizer()

    def settle(self, timeout: float) -> bool:
        """Wait until nothing is left to build or to move; say whether that is so."""
        end = monotonic() + timeout
        while True:
            self._tend(_MOVED_BY_SWEEP)
            if self._job is None and not self._draining:
                return True
            if monotonic() >= end:
                return False
            self._changed.wait(max(0.0, min(1.0 if self._job is not None else 0.01, end - monotonic())))

    def add(self, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        self._tend(_MOVED_AT_ONCE)
        super().add(key, scope, vector, text, expires)
        row = self._rows_of(key).get(key)
        place = None if row is None else self._places.get(row >> SHIFT)
        if place is not None:
            place[0].soonest = min(place[0].soonest, expires)
        self._evict_to(self._max_bytes, self._max_rows)

    def add_many(self, rows: Sequence[NewRow]) -> list[Exception]:
        self._tend(_MOVED_BY_SWEEP)
        refused = super().add_many(rows)
        self._evict_to(self._max_bytes, self._max_rows)
        return refused

    def remove(self, key: bytes) -> bool:
        self._tend(_MOVED_AT_ONCE)
        return super().remove(key)

    def sweep(self, now: float) -> int:
        self._tend(_MOVED_BY_SWEEP)
        return super().sweep(now)

    # Rows and blocks

    def _append(self, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        if self.has_scope(scope) and self._tail(scope)[0] == _NONE:
            self._set_tail(scope, self._arena.allocate(1), 0)
        super()._append(key, scope, vector, text, expires)

    def _room_behind(self, scope: bytes, rows: int) -> tuple[int, int]:
        if self.has_scope(scope) and self._tail(scope)[0] == _NONE:
            start = self._arena.allocate(block_of(rows))
            self._set_tail(scope, start, 0)
            return start, 0
        return super()._room_behind(scope, rows)

    def _extend(self, scope: bytes, start: int, used: int) -> tuple[int, int]:
        made = super()._extend(scope, start, used)
        if used == SLAB_ROWS:
            self._bytes += LINK_BYTES * SLAB_ROWS
            self._begin(scope)
        return made

    def _shrink(self, scope: bytes, start: int, used: int) -> None:
        full, sealed = len(self._full.get(scope, ())), self._sealed.get(scope)
        if used or full or sealed is None or not sealed.living:
            super()._shrink(scope, start, used)
            self._bytes -= LINK_BYTES * SLAB_ROWS * (full - len(self._full.get(scope, ())))
        else:
            self._arena.release(start)
            self._set_tail(scope, _NONE, 0)

    def _remove(self, key: bytes, row: int) -> None:
        slab = self._arena.slab(row)
        if slab.is_frozen:
            del self._rows_of(key)[key]
            self._leave_hole(slab, row & OFFSET)
        else:
            super()._remove(key, row)

    def _leave_hole(self, slab: Slab, at: int) -> None:
        """Take out a row of a frozen slab, and what is over with it."""
        scope = slab.scopes[at]
        sealed = self._sealed[scope]
        self._bytes -= self._row_bytes + text_bytes(slab.texts[at])
        self._len -= 1
        slab.clear(at)
        slab.expires[at] = -inf
        sealed.living -= 1
        if slab.index in self._places:
            segment, place = self._places[slab.index]
            segment.bury(place, at)
            self._look_at(scope, segment)
        if not sealed.living and self._tail(scope)[0] == _NONE:
            self._drop_scope(scope)
        self._tidy(scope)

    def _tidy(self, scope: bytes) -> None:
        """Drop what is left of builds that have failed, once none of its rows lives."""
        sealed = self._sealed.get(scope)
        if sealed is None or sealed.living or (self._job is not None and self._job.scope == scope):
            return
        for left in sealed.building:
            self._release(left)
        sealed.building.clear()
        if not sealed.segments:
            del self._sealed[scope]

    # Segments

    def _tend(self, rows: int) -> None:
        """Take what has been built, and move some rows of segments that are to go: never what was called for."""
        try:
            if self._finished:
                self._install(self._finished.popleft())
            if self._draining and rows:
                self._drain(rows)
        except Exception as error:  # noqa: BLE001 - memory: what is not installed or moved is scanned where it is
            self.troubles.append(error)

    def _begin(self, scope: bytes | None = None) -> None:
        """Have a scope's full slabs built into a segment, or those of one that waits, unless others are."""
        if scope is not None and self._waiting(scope) >= self._least_slabs:
            self._ripe[scope] = None
        while self._ripe and self._job is None:
            ripe = next(iter(self._ripe))
            del self._ripe[ripe]
            if self._waiting(ripe) >= self._least_slabs:
                self._build(ripe, self._full.get(ripe, []))

    def _waiting(self, scope: bytes) -> int:
        """Return how many full slabs of a scope are not sealed."""
        sealed = self._sealed.get(scope)
        return len(self._full.get(scope, ())) + (len(sealed.building) if sealed is not None else 0)

    def _build(self, scope: bytes, full: list[int]) -> None:
        sealed = self._sealed.setdefault(scope, Sealed())
        base = sealed.growing
        room = self._most_slabs - (len(base.slabs) if base is not None else 0)
        if room <= 0:
            base, room = None, self._most_slabs
        is_urgent = len(full) >= _URGENT_SLABS
        # Those of a build that has failed come first.
        for start in full[: max(0, min(room, _JOB_SLABS) - len(sealed.building))]:
            slab = self._arena.slab(start)
            slab.is_frozen = True
            sealed.building.append(slab)
            sealed.living += SLAB_ROWS
            full.remove(start)
        if not full:
            self._full.pop(scope, None)
        job = self._job = Job(scope, base, sealed.building[:room])
        self._changed.clear()
        rows = [slab.vectors for slab in job.slabs]
        build = partial(_build, job, rows, self.dimension, self._aside.is_closed, is_urgent=is_urgent)
        if not self._aside.submit(partial(_tell, weakref.ref(self), job, build)):
            self._job = None  # closed, or no thread to be had: the rows are scanned

    def _install(self, job: Job) -> None:
        """Put a segment that was built in the place of the one it grew from, and begin the next."""
        if job is not self._job:  # of before the index was cleared
            return
        self._job = None
        if job.graph is None:
            if job.error is not None:
                self.troubles.append(job.error)
            if job.base is not None:
                self._look_at(job.scope, job.base)
            self._tidy(job.scope)
            self._begin()
            return
        sealed, base = self._sealed[job.scope], job.base
        segment = Segment(job.graph, [*(base.slabs if base is not None else ()), *job.slabs])
        for place, slab in enumerate(segment.slabs):
            self._places[slab.index] = segment, place
        del sealed.building[: len(job.slabs)]
        if base is None:
            sealed.segments.append(segment)
        else:
            sealed.segments[sealed.segments.index(base)] = segment
            self._let_go(base)
        self._look_at(job.scope, segment)
        self._begin(job.scope)

    def _look_at(self, scope: bytes, segment: Segment) -> None:
        """Drop a segment without rows, and begin to move the rows of one with many holes."""
        if self._job is not None and self._job.base is segment:
            return  # when it has been built anew
        if not segment.living:
            self._drop(scope, segment)
        elif not segment.is_draining and segment.living < (1 - _MOST_HOLES) * len(segment):
            segment.is_draining = True
            self._draining.append((scope, segment))

    def _drain(self, rows: int) -> None:
        """Move some rows of a segment behind its scope's last, unless many wait there to be built already."""
        scope, segment = self._draining[0]
        if self._waiting(scope) > 2 * self._least_slabs:
            self._draining.rotate()
            return
        while not segment.slabs[segment.last].state.any():
            segment.last -= 1
        slab = segment.slabs[segment.last]
        for at in slab.state.nonzero()[0][:rows].tolist():
            state = slab.state[at]
            key, vector = slab.keys[at], slab.vectors[at].astype("float32")
            if slab.expires[at] <= self._now:
                self._remove(key, slab.index << SHIFT | at)
                continue
            self._append(key, scope, vector, slab.texts[at], float(slab.expires[at]))
            row = self._rows_of(key)[key]
            self._arena.slab(row).state[row & OFFSET] = state
            self._leave_hole(slab, at)

    def _drop(self, scope: bytes, segment: Segment) -> None:
        sealed = self._sealed[scope]
        sealed.segments.remove(segment)
        if segment.is_draining:
            self._draining.remove((scope, segment))
        for slab in segment.slabs:
            del self._places[slab.index]
            self._release(slab)
        self._let_go(segment)
        if not sealed.segments and not sealed.building:
            del self._sealed[scope]

    def _release(self, slab: Slab) -> None:
        self._arena.release(slab.index << SHIFT)
        self._bytes -= LINK_BYTES * SLAB_ROWS

    def _let_go(self, segment: Segment) -> None:
        """Free a segment's memory aside, which takes milliseconds; it is not used any more."""
        self._aside.submit(segment.graph.free)

    # Search

    def _blocks(self, scope: bytes) -> Iterator[tuple[Slab, int, int]]:
        """Yield what is not sealed."""
        yield from super()._blocks(scope)
        sealed = self._sealed.get(scope)
        for slab in sealed.building if sealed is not None else ():
            yield slab, 0, SLAB_ROWS

    def _elsewhere(self, *asked: Any) -> list[tuple[NDArray[float32], NDArray[int64]]]:
        """Search what is sealed."""
        scope, queries, k = asked
        self._tend(0)
        found = []
        sealed = self._sealed.get(scope)
        for segment in sealed.segments if sealed is not None else ():
            nearest = segment.search(queries, k, self._effort, self._now)
            if nearest is None:
                nearest = self._scan(((slab, 0, SLAB_ROWS) for slab in segment.slabs), queries, k)
            found.append(nearest)
        return found


def _build(
    job: Job, rows: list[NDArray[float16]], dimension: int, is_closed: Any, *, is_urgent: bool
) -> None:  # fmt: skip
    """Build the job's graph; runs aside."""
    try:
        share_faiss_threads(is_urgent=is_urgent)
        scanner = Scanner(dimension)
        base = None if job.base is None else job.base.graph
        job.graph = grown(base, map(scanner.convert, rows), job.rows, dimension, is_closed)
    except BaseException as error:  # noqa: BLE001 - memory, most likely: the rows are scanned instead
        job.error = error


def _tell(owner: weakref.ref[LargeIndex], job: Job, build: Any) -> None:
    """Build, and leave what came of it for the index to take."""
    build()
    index = owner()
    if index is not None:
        index._finished.append(job)  # noqa: SLF001 - its own
        index._changed.set()  # noqa: SLF001
