"""The index of near matches: float32 unit vectors by key, searched exactly and within one scope only (law 2).

Laws:
- a scope's rows lie in blocks of the arena: one block of 1, 2, 4 ... 1,024 rows, then full blocks of 1,024 and a last
  one. Adding, overwriting and removing take constant time (a block that is full is copied to one of twice its size; a
  removed row is replaced by the scope's last), and the next search sees what they did;
- it holds keys and texts, never answers (law 4); a row whose life is over is not found, and goes by a sweep;
- rows and bytes are bounded; what is over goes by second chance (CLOCK): the nearest row of a search gets one.
"""

from __future__ import annotations

from itertools import count as numbers
from typing import TYPE_CHECKING, Any

from semcache.model import Neighbour
from semcache.semantic.arena import COLD, FREE, HOT, OFFSET, SHIFT, SLAB_ROWS, Arena
from semcache.semantic.threads import limit_faiss_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import float32, int64
    from numpy.typing import NDArray

    from semcache.semantic.arena import Slab

ROW_BYTES = 190
"""What a row takes beside its vector and text: key, number, fields, and its share of the tables."""
SCOPE_BYTES = 150
"""What a scope takes beside its rows."""

_SHARDS = 256
_COUNT_BITS = SHIFT + 1
_COUNT = (1 << _COUNT_BITS) - 1
_WINDOW = 256
# A text is within 1.0 of itself, whatever its product with itself in float32.
_ROUNDING = 1e-6
_PATIENCE = 32
_ROWS_MOVED_AT_ONCE = 32
_EVICTED_AT_ONCE = 16
_SWEPT_AT_ONCE = 64


class FlatIndex:
    """Exact search over one arena, by FAISS, block by block. At most `max_bytes` and `max_rows` are kept."""

    def __init__(self, dimension: int, max_bytes: int, max_rows: int | None = None) -> None:
        limit_faiss_threads()
        self.dimension = dimension
        self.evictions = 0
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._row_bytes = ROW_BYTES + 4 * dimension
        self._now = float("-inf")
        self.clear()

    def clear(self) -> None:
        self._arena = self._make_arena()
        # In shards, because a table of a million keys takes tens of milliseconds to grow.
        self._rows: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]
        # A scope's last block: its first row and, in the low bits, how many of its rows are in use. One number, because
        # chat makes a scope a conversation, most of one row.
        self._tails: list[dict[bytes, int]] = [{} for _ in range(_SHARDS)]
        # The blocks of 1,024 before it, all full; only large scopes have any.
        self._full: dict[bytes, list[int]] = {}
        self._len = 0
        self._scopes = 0
        self._bytes = 0
        self._hand = 0
        self._swept_to = 0

    @property
    def nbytes(self) -> int:
        """Bytes of vectors, texts, rows and scopes; the bound is on these."""
        return self._bytes

    @property
    def scopes(self) -> int:
        return self._scopes

    def __len__(self) -> int:
        return self._len

    def __contains__(self, key: object) -> bool:
        return key in self._rows[hash(key) % _SHARDS]

    def has_scope(self, scope: bytes) -> bool:
        return scope in self._tails[hash(scope) % _SHARDS]

    def add(self, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        """Keep a row; see `work.VectorIndex.add`. One that alone is over the bound is not kept."""
        self._check(vector)
        row = self._rows[hash(key) % _SHARDS].get(key)
        if row is not None:
            slab, at = self._arena.slab(row), row & OFFSET
            if slab.scopes[at] == scope:
                self._bytes += _text_bytes(text) - _text_bytes(slab.texts[at])
                slab.write(at, slab.keys[at], slab.scopes[at], vector, text, expires)
                slab.state[at] = HOT
                self._evict_to(self._max_bytes, self._max_rows)
                return
            self._remove(key, row)
        size = self._row_bytes + SCOPE_BYTES + _text_bytes(text)
        if size > self._max_bytes or self._max_rows == 0:
            self.evictions += 1
            return
        self._evict_to(self._max_bytes - size, None if self._max_rows is None else self._max_rows - 1)
        self._append(key, scope, vector, text, expires)

    def remove(self, key: bytes) -> bool:
        row = self._rows[hash(key) % _SHARDS].get(key)
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
        row = self._row_of(key)
        return None if row is None else self._arena.slab(row).vectors[row & OFFSET].copy()

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[float32] | None]:
        return [self.vector(key) for key in keys]

    def within(self, vector: NDArray[float32], similarity: float, now: float) -> list[Neighbour]:
        """Look at every row; see `work.VectorIndex.within`."""
        found: list[Neighbour] = []
        for slab in self._host_slabs():
            near = slab.vectors @ vector
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
        return sum(self.remove(key) for key in expired)

    def _make_arena(self) -> Arena:
        return Arena(self.dimension)

    def _check(self, vector: NDArray[float32]) -> None:
        square = float(vector.dot(vector)) if vector.shape == (self.dimension,) else None
        if square is None or not 0.98 < square < 1.02:  # noqa: PLR2004 - float16 on the way leaves 0.999; NaN fails too
            message = (
                f"a row must be a unit vector, float32[{self.dimension}]; got shape {vector.shape}, square {square}"
            )
            raise ValueError(message)

    # Rows and blocks

    def _row_of(self, key: bytes) -> int | None:
        return self._rows[hash(key) % _SHARDS].get(key)

    def _tail(self, scope: bytes) -> tuple[int, int]:
        tail = self._tails[hash(scope) % _SHARDS][scope]
        return tail >> _COUNT_BITS, tail & _COUNT

    def _set_tail(self, scope: bytes, start: int, rows: int) -> None:
        self._tails[hash(scope) % _SHARDS][scope] = start << _COUNT_BITS | rows

    def _append(self, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        """Put a new row behind the last of its scope."""
        if self.has_scope(scope):
            start, used = self._tail(scope)
            slab = self._arena.slab(start)
            scope = slab.scopes[start & OFFSET]  # one object for all rows of a scope
            if used == slab.block:
                start, used = self._extend(scope, start, used)
        else:
            start, used = self._arena.allocate(1), 0
            self._scopes += 1
            self._bytes += SCOPE_BYTES
        row = start + used
        self._arena.slab(row).write(row & OFFSET, key, scope, vector, text, expires)
        self._rows[hash(key) % _SHARDS][key] = row
        self._set_tail(scope, start, used + 1)
        self._len += 1
        self._bytes += self._row_bytes + _text_bytes(text)

    def _extend(self, scope: bytes, start: int, used: int) -> tuple[int, int]:
        """Make room behind a block that is full."""
        if used < SLAB_ROWS:
            return self._move(start, 2 * used), used
        self._full.setdefault(scope, []).append(start)
        return self._arena.allocate(SLAB_ROWS), 0

    def _move(self, start: int, block: int) -> int:
        """Move a scope's only block to one of `block` rows; return where it is now."""
        source, source_at = self._arena.slab(start), start & OFFSET
        scope = source.scopes[source_at]
        used = self._tail(scope)[1]
        target_start = self._arena.allocate(block)
        target, at = self._arena.slab(target_start), target_start & OFFSET
        target.copy(at, source, source_at, used)
        for row, key in enumerate(target.keys[at : at + used], target_start):
            self._rows[hash(key) % _SHARDS][key] = row
        self._set_tail(scope, target_start, used)
        source.clear(source_at, used)
        self._arena.release(start)
        return target_start

    def _remove(self, key: bytes, row: int) -> None:
        """Drop a row and put the last of its scope in its place."""
        slab, at = self._arena.slab(row), row & OFFSET
        scope = slab.scopes[at]
        self._bytes -= self._row_bytes + _text_bytes(slab.texts[at])
        self._len -= 1
        start, used = self._tail(scope)
        last_slab, last = self._arena.slab(start), (start & OFFSET) + used - 1
        if start + used - 1 != row:
            slab.copy(at, last_slab, last)
            last_key = slab.keys[at]
            self._rows[hash(last_key) % _SHARDS][last_key] = row
        last_slab.clear(last)
        del self._rows[hash(key) % _SHARDS][key]
        self._shrink(scope, start, used - 1)

    def _shrink(self, scope: bytes, start: int, used: int) -> None:
        """Set how many rows of a scope's last block are in use, and give back what it does not need."""
        if used:
            self._set_tail(scope, start, used)
            block = self._arena.slab(start).block
            # A quarter, not half: a scope that grows and shrinks by a row is not copied each time.
            if used <= block // 4 and scope not in self._full:
                self._move(start, block // 2)
            return
        self._arena.release(start)
        full = self._full.get(scope)
        if full:
            self._set_tail(scope, full.pop(), SLAB_ROWS)
            if not full:
                del self._full[scope]
        else:
            del self._tails[hash(scope) % _SHARDS][scope]
            self._scopes -= 1
            self._bytes -= SCOPE_BYTES

    # Search

    def _host_slabs(self) -> Iterator[Slab]:
        """Yield the slabs whose vectors are here."""
        return (slab for slab in self._arena.slabs if slab is not None)

    def _blocks(self, scope: bytes) -> Iterator[tuple[Slab, int, int]]:
        """Yield a scope's blocks: slab, first offset, rows in use."""
        for start in self._full.get(scope, ()):
            yield self._arena.slab(start), start & OFFSET, SLAB_ROWS
        start, used = self._tail(scope)
        yield self._arena.slab(start), start & OFFSET, used

    def _nearest(self, scope: bytes, queries: NDArray[float32], k: int) -> list[list[Neighbour]]:
        """Return each query's nearest rows: the nearest of each block, merged."""
        import faiss
        import numpy as np

        similarities, rows = self._elsewhere(scope, queries, k)
        for slab, at, used in self._blocks(scope):
            vectors = slab.vectors[at : at + used]
            offsets = None
            alive = slab.expires[at : at + used] > self._now
            if not alive.all():
                offsets = alive.nonzero()[0]
                vectors = vectors[offsets]
            if not len(vectors):
                continue
            near, where = faiss.knn(queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
            similarities.append(near)
            rows.append((where if offsets is None else offsets[where]) + (slab.index << SHIFT | at))
        if not rows:
            return [[] for _ in queries]
        all_near, all_rows = similarities[0], rows[0]
        if len(rows) > 1:
            all_near, all_rows = np.hstack(similarities), np.hstack(rows)
            order = np.argsort(-all_near, axis=1, kind="stable")[:, :k]
            all_near, all_rows = (
                np.take_along_axis(all_near, order, axis=1),
                np.take_along_axis(all_rows, order, axis=1),
            )
        found = list(zip(all_rows.tolist(), all_near.clip(-1.0, 1.0).tolist(), strict=True))
        for nearest, _ in found:
            self._arena.slab(nearest[0]).state[nearest[0] & OFFSET] = HOT
        return [list(map(self._neighbour, *pair)) for pair in found]

    def _elsewhere(self, *_: Any) -> tuple[list[NDArray[float32]], list[NDArray[int64]]]:
        """Return similarities and rows, each [n, found], of what `_blocks` leaves out: here nothing.

        An index that has rows elsewhere is given a scope, float32[n, d] and k.
        """
        return [], []

    def _neighbour(self, row: int, similarity: float) -> Neighbour:
        slab, at = self._arena.slab(row), row & OFFSET
        return Neighbour(slab.keys[at], similarity, slab.texts[at])

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
                    self.remove(key)
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
                self.remove(slab.keys[at + victims[0]])
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


def _text_bytes(text: str) -> int:
    """Return what a str takes; not `sys.getsizeof`, which changes once the str has been encoded."""
    return 56 + len(text) * (1 if text.isascii() else 2)
