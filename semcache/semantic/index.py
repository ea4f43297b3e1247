"""The index of near matches: unit vectors by key, in half precision, searched exactly, within one scope only (law 2).

Laws:
- adding, overwriting and removing take constant time, and the next search sees what they did;
- it holds keys and texts, never answers (law 4); a row whose life is over is not found, and goes by a sweep;
- rows and bytes are bounded; what is over goes by second chance (CLOCK): the nearest row of a search gets one.
"""

from __future__ import annotations

from itertools import count as numbers
from typing import TYPE_CHECKING, Any

from semcache.model import Neighbour
from semcache.semantic.arena import COLD, FREE, HOT, OFFSET, SHIFT, SLAB_ROWS
from semcache.semantic.half import NO_ROW, Scanner, nearest_first
from semcache.semantic.scoped import SCOPE_BYTES, ScopedRows, text_bytes, texts_bytes
from semcache.semantic.threads import limit_faiss_threads
from semcache.semantic.vectors import LARGEST_SQUARE, LEAST_SQUARE, Gathered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy import float32, int64
    from numpy.typing import NDArray

    from semcache.semantic.arena import Slab
    from semcache.semantic.work import NewRow

_WINDOW = 256
# A text is within 1.0 of itself, whatever its product with itself in float32.
_ROUNDING = 1e-6
_PATIENCE = 32
_ROWS_MOVED_AT_ONCE = 32
_EVICTED_AT_ONCE = 16
_SWEPT_AT_ONCE = 64
_ADDED_AT_ONCE = 256
_FEWEST_TOGETHER = 4


class FlatIndex(ScopedRows):
    """Exact search over one arena, block by block. At most `max_bytes` and `max_rows` are kept."""

    path = "FAISS, flat"
    """How large scopes are searched."""
    crossover: int | None = None
    """How many rows a scope has at most that is compared row by row on the CPU; None: however many."""

    def __init__(self, dimension: int, max_bytes: int, max_rows: int | None = None) -> None:
        limit_faiss_threads()
        self.evictions = 0
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._scanner = Scanner(dimension)
        self._now = float("-inf")
        self._gathered = Gathered(_ADDED_AT_ONCE, dimension)
        super().__init__(dimension)

    def clear(self) -> None:
        super().clear()
        self._hand = 0
        self._swept_to = 0

    def add(self, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        """Keep a row; see `work.VectorIndex.add`. One that alone is over the bound is not kept."""
        self._check(vector)
        row = self._rows_of(key).get(key)
        if row is not None:
            slab, at = self._arena.slab(row), row & OFFSET
            if slab.scopes[at] == scope and slab.may_write(at, vector):
                self._bytes += text_bytes(text) - text_bytes(slab.texts[at])
                slab.write(at, slab.keys[at], slab.scopes[at], vector, text, expires)
                slab.state[at] = HOT
                self._evict_to(self._max_bytes, self._max_rows)
                return
            self._remove(key, row)
        size = self._row_bytes + SCOPE_BYTES + text_bytes(text)
        if size > self._max_bytes or self._max_rows == 0:
            self.evictions += 1
            return
        self._evict_to(self._max_bytes - size, None if self._max_rows is None else self._max_rows - 1)
        self._append(key, scope, vector, text, expires)

    def add_many(self, rows: Sequence[NewRow]) -> list[Exception]:
        """Keep many rows; see `work.VectorIndex.add_many`. New ones of one scope are put in together."""
        refused: list[Exception] = []
        for first in range(0, len(rows), _ADDED_AT_ONCE):
            some = rows[first : first + _ADDED_AT_ONCE]
            matrix = self._gathered.matrix([row[2] for row in some])
            if matrix is None or not self._has_room_for(some):
                self._add_each(some, refused)
            else:
                self._add_each(self._add_new(some, matrix), refused)
        return refused

    def _add_each(self, rows: Iterable[NewRow], refused: list[Exception]) -> None:
        for row in rows:
            try:
                self.add(*row)
            except ValueError as error:
                refused.append(error)

    def _has_room_for(self, rows: Sequence[NewRow]) -> bool:
        """Say whether nothing will have to go for rows, each of them new and in a scope of its own at worst."""
        if self._max_rows is not None and self._len + len(rows) > self._max_rows:
            return False
        size = len(rows) * (self._row_bytes + SCOPE_BYTES) + texts_bytes([row[3] for row in rows])
        return self._bytes + size <= self._max_bytes

    def _add_new(self, rows: Sequence[NewRow], matrix: NDArray[float32]) -> list[NewRow]:
        """Add those rows whose keys are new, and return the others, which are to be added after them.

        Nothing has to go for any, so their order counts among those of one key alone.
        """
        keys = [row[0] for row in rows]
        is_known = [key in self._rows_of(key) for key in keys]
        others: list[NewRow] = []
        places_of: dict[bytes, list[int]] = {}
        if any(is_known) or len(set(keys)) < len(keys) or len({row[1] for row in rows}) > 1:
            seen: set[bytes] = set()
            for place, (row, known) in enumerate(zip(rows, is_known, strict=True)):
                if known or row[0] in seen:
                    others.append(row)
                else:
                    seen.add(row[0])
                    places_of.setdefault(row[1], []).append(place)
        else:
            self._append_many(rows, matrix)
        for places in places_of.values():
            if len(places) < _FEWEST_TOGETHER:
                for place in places:
                    self._append(*rows[place])
            else:
                self._append_many([rows[place] for place in places], matrix[places])
        return others

    def remove(self, key: bytes) -> bool:
        return self._take_out(key)

    def _take_out(self, key: bytes) -> bool:
        """Drop a row, and move some of a slab that is being drained."""
        row = self._rows_of(key).get(key)
        if row is None:
            return False
        self._remove(key, row)
        for start in self._arena.blocks_to_move(_ROWS_MOVED_AT_ONCE):
            self._move(start, self._arena.slab(start).block)
        return True

    def search(self, scopes: Sequence[bytes], vectors: NDArray[float32], k: int, now: float) -> list[list[Neighbour]]:
        """Search; see `work.VectorIndex.search`. Queries of one scope are searched together."""
        import numpy as np

        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.shape != (len(scopes), self.dimension) or not np.isfinite(queries).all():
            message = f"queries must be finite float32[{len(scopes)}, {self.dimension}]; got shape {queries.shape}"
            raise ValueError(message)
        self._now = now
        places_of: dict[bytes, list[int]] = {}
        for place, scope in enumerate(scopes):
            places_of.setdefault(scope, []).append(place)
        found: list[list[Neighbour]] = [[] for _ in scopes]
        for scope, places in places_of.items():
            if k > 0 and self.has_scope(scope):
                for place, neighbours in zip(places, self._nearest(scope, queries[places], k), strict=True):
                    found[place] = neighbours
        return found

    def vector(self, key: bytes) -> NDArray[float32] | None:
        row = self._rows_of(key).get(key)
        return None if row is None else self._arena.slab(row).vectors[row & OFFSET].astype("float32")

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[float32] | None]:
        return [self.vector(key) for key in keys]

    def within(self, vector: NDArray[float32], similarity: float, now: float) -> list[Neighbour]:
        """Look at every row; see `work.VectorIndex.within`."""
        found: list[Neighbour] = []
        for slab in self._host_slabs():
            near = self._scanner.convert(slab.vectors) @ vector
            alive = (slab.state != FREE) & (slab.expires > now)
            found += [
                Neighbour(slab.keys[at], min(float(near[at]), 1.0), slab.texts[at])
                for at in (alive & (near >= similarity - _ROUNDING)).nonzero()[0].tolist()
            ]
        return sorted(found, key=lambda one: -one.similarity)

    def sweep(self, now: float) -> int:
        """Drop at most 64 expired rows of the next slab, in turn."""
        slabs = self._arena.slabs
        self._now = now
        if not slabs:
            return 0
        self._swept_to %= len(slabs)
        slab = slabs[self._swept_to]
        expired = self._expired_keys(slab, 0, SLAB_ROWS)[:_SWEPT_AT_ONCE] if slab else []
        if len(expired) < _SWEPT_AT_ONCE:
            self._swept_to += 1
        return sum(self._take_out(key) for key in expired)

    def settle(self, timeout: float) -> bool:  # noqa: ARG002 - nothing is waited for
        """Wait until nothing is left to do aside, of which there is nothing here; say whether that is so."""
        return True

    def close(self) -> None:
        """End what works aside, of which there is nothing here."""

    def _check(self, vector: NDArray[float32]) -> None:
        square = float(vector.dot(vector)) if vector.shape == (self.dimension,) else None
        if square is None or not LEAST_SQUARE < square < LARGEST_SQUARE:
            message = (
                f"a row must be a unit vector, float32[{self.dimension}]; got shape {vector.shape}, square {square}"
            )
            raise ValueError(message)

    # Search

    def _nearest(self, scope: bytes, queries: NDArray[float32], k: int) -> list[list[Neighbour]]:
        """Return each query's nearest rows: the nearest of each block, merged."""
        import numpy as np

        found_in = self._elsewhere(scope, queries, k)
        blocks = list(self._blocks(scope))
        if blocks:
            found_in.append(self._scan(blocks, queries, k))
        if not found_in:
            return [[] for _ in queries]
        all_near, all_rows = found_in[0]
        if len(found_in) > 1:
            all_near, all_rows = map(np.hstack, zip(*found_in, strict=True))
            all_near, all_rows = nearest_first(all_near, all_rows, k)
        return self._neighbours(all_rows.tolist(), all_near.clip(-1.0, 1.0).tolist())

    def _scan(
        self, blocks: Iterable[tuple[Slab, int, int]], queries: NDArray[float32], k: int
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return similarities and rows of the nearest in some blocks, each [n, k]; -1 where there are fewer."""
        parts = (
            (slab.vectors[at : at + used], slab.expires[at : at + used] > self._now, slab.index << SHIFT | at)
            for slab, at, used in blocks
        )
        return self._scanner.nearest(queries, parts, k)

    def _elsewhere(self, *_: Any) -> list[tuple[NDArray[float32], NDArray[int64]]]:
        """Return similarities and rows, each [n, found], -1 for none, of what `_blocks` leaves out: here nothing.

        An index that has rows elsewhere is given a scope, float32[n, d] and k.
        """
        return []

    def _neighbours(self, rows: list[list[int]], similarities: list[list[float]]) -> list[list[Neighbour]]:
        """Return what was found, of each query the nearest first, which has been found now.

        Without a call for each: a batch has a thousand.
        """
        slabs: list[Any] = self._arena.slabs
        for found in rows:
            if found[0] != NO_ROW:
                slabs[found[0] >> SHIFT].state[found[0] & OFFSET] = HOT
        return [
            [
                Neighbour((slab := slabs[row >> SHIFT]).keys[at := row & OFFSET], similarity, slab.texts[at])
                for row, similarity in zip(found, near, strict=True)
                if row != NO_ROW
            ]
            for found, near in zip(rows, similarities, strict=True)
        ]

    # Bounds

    def _evict_to(self, most_bytes: int, most_rows: int | None) -> None:
        while self._len and (self._bytes > most_bytes or (most_rows is not None and self._len > most_rows)):
            self._evict()

    def _evict(self) -> None:
        """Drop the next row that has not been found since the hand last passed, or else what has expired near it."""
        for tried in numbers():
            slab, at = self._slab_at_hand()
            stop = (at | (_WINDOW - 1)) + 1
            expired = self._expired_keys(slab, at, stop)
            if expired:
                for key in expired[:_EVICTED_AT_ONCE]:
                    self._take_out(key)
                return
            state = slab.state[at:stop]
            # After 32 windows of hot rows any will do: no insert waits for a whole round.
            victims = (state == COLD if tried < _PATIENCE else state != FREE).nonzero()[0]
            passed = state[: victims[0]] if len(victims) else state
            passed[passed == HOT] = COLD
            self._hand += len(passed)
            if len(victims):
                self._hand += 1
                self.evictions += 1
                self._take_out(slab.keys[at + victims[0]])
                return

    def _slab_at_hand(self) -> tuple[Slab, int]:
        """Return the slab and offset that the hand points to, once it is past what is not there."""
        slabs = self._arena.slabs
        while True:
            self._hand %= len(slabs) << SHIFT
            slab = slabs[self._hand >> SHIFT]
            if slab is not None:
                return slab, self._hand & OFFSET
            self._hand = ((self._hand >> SHIFT) + 1) << SHIFT

    def _expired_keys(self, slab: Slab, start: int, stop: int) -> list[bytes]:
        offsets = slab.expired(start, stop, self._now).nonzero()[0] + start
        keys: list[bytes] = slab.keys[offsets].tolist() if len(offsets) else []
        return keys
