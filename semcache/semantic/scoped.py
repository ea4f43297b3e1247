"""Where the rows of an index lie, scope by scope.

Laws:
- a scope's rows lie in blocks of the arena: one block of 1, 2, 4 ... 1,024 rows, then full blocks of 1,024 and a last
  one. Adding and removing take constant time (a block that is full is copied to one of twice its size; a removed row is
  replaced by the scope's last);
- what is kept is counted: rows, scopes, bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcache.semantic.arena import OFFSET, SHIFT, SLAB_ROWS, Arena

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import float32
    from numpy.typing import NDArray

    from semcache.semantic.arena import Slab
    from semcache.semantic.work import NewRow

ROW_BYTES = 190
"""What a row takes beside its vector and text: key, number, fields, and its share of the tables."""
SCOPE_BYTES = 150
"""What a scope takes beside its rows."""

_SHARDS = 256
_COUNT_BITS = SHIFT + 1
_COUNT = (1 << _COUNT_BITS) - 1


class ScopedRows:
    """Rows by key, in their scopes' blocks; unbounded. Not locked: one thread owns them, any may ask `has_scope`."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._row_bytes = ROW_BYTES + 2 * dimension
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

    def _make_arena(self) -> Arena:
        return Arena(self.dimension)

    def _rows_of(self, key: bytes) -> dict[bytes, int]:
        """Return the part of the table that a key stands in."""
        return self._rows[hash(key) % _SHARDS]

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
            scope = slab.scopes[start & OFFSET] if used else scope  # one object for all rows of a scope
            if used == slab.block:
                start, used = self._extend(scope, start, used)
        else:
            start, used = self._arena.allocate(1), 0
            self._scopes += 1
            self._bytes += SCOPE_BYTES
        row = start + used
        self._arena.slab(row).write(row & OFFSET, key, scope, vector, text, expires)
        self._rows_of(key)[key] = row
        self._set_tail(scope, start, used + 1)
        self._len += 1
        self._bytes += self._row_bytes + text_bytes(text)

    def _append_many(self, rows: Sequence[NewRow], matrix: NDArray[float32]) -> None:
        """Put new rows of one scope, whose vectors are float32[n, d], behind its last."""
        keys, scopes, _, texts, expires = zip(*rows, strict=True)
        scope, done = scopes[0], 0
        while done < len(keys):
            start, used = self._room_behind(scope, len(keys) - done)
            slab = self._arena.slab(start)
            if used:
                scope = slab.scopes[start & OFFSET]  # one object for all rows of a scope
            some = slice(done, min(done + slab.block - used, len(keys)))
            first, done = start + used, some.stop
            slab.write_many(first & OFFSET, keys[some], scope, matrix[some], texts[some], expires[some])
            for row, key in enumerate(keys[some], first):
                self._rows_of(key)[key] = row
            added = done - some.start
            self._set_tail(scope, start, used + added)
            self._len += added
            self._bytes += added * self._row_bytes + texts_bytes(texts[some])

    def _room_behind(self, scope: bytes, rows: int) -> tuple[int, int]:
        """Return a scope's last block and how many of its rows are in use, with room for some or all of `rows` more.

        Blocks are as large as if the rows came one by one.
        """
        if not self.has_scope(scope):
            self._scopes += 1
            self._bytes += SCOPE_BYTES
            return self._arena.allocate(block_of(rows)), 0
        start, used = self._tail(scope)
        block = self._arena.slab(start).block
        if block < SLAB_ROWS and used + rows > block:
            return self._move(start, block_of(used + rows)), used
        return (
            (start, used) if used < block else self._extend(self._arena.slab(start).scopes[start & OFFSET], start, used)
        )

    def _extend(self, scope: bytes, start: int, used: int) -> tuple[int, int]:
        """Make room behind a block that is full."""
        if used < SLAB_ROWS:
            return self._move(start, 2 * used), used
        behind = self._arena.allocate(SLAB_ROWS)  # first: where there is no memory, nothing has changed
        self._full.setdefault(scope, []).append(start)
        return behind, 0

    def _move(self, start: int, block: int) -> int:
        """Move a scope's only block to one of `block` rows; return where it is now."""
        source, source_at = self._arena.slab(start), start & OFFSET
        scope = source.scopes[source_at]
        used = self._tail(scope)[1]
        target_start = self._arena.allocate(block)
        target, at = self._arena.slab(target_start), target_start & OFFSET
        target.copy(at, source, source_at, used)
        for row, key in enumerate(target.keys[at : at + used], target_start):
            self._rows_of(key)[key] = row
        self._set_tail(scope, target_start, used)
        source.clear(source_at, used)
        self._arena.release(start)
        return target_start

    def _remove(self, key: bytes, row: int) -> None:
        """Drop a row and put the last of its scope in its place."""
        slab, at = self._arena.slab(row), row & OFFSET
        scope = slab.scopes[at]
        self._bytes -= self._row_bytes + text_bytes(slab.texts[at])
        self._len -= 1
        start, used = self._tail(scope)
        last_slab, last = self._arena.slab(start), (start & OFFSET) + used - 1
        if start + used - 1 != row:
            slab.copy(at, last_slab, last)
            last_key = slab.keys[at]
            self._rows_of(last_key)[last_key] = row
        last_slab.clear(last)
        del self._rows_of(key)[key]
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
            self._drop_scope(scope)

    def _drop_scope(self, scope: bytes) -> None:
        del self._tails[hash(scope) % _SHARDS][scope]
        self._scopes -= 1
        self._bytes -= SCOPE_BYTES

    def _host_slabs(self) -> Iterator[Slab]:
        """Yield the slabs whose vectors are here."""
        return (slab for slab in self._arena.slabs if slab is not None)

    def _blocks(self, scope: bytes) -> Iterator[tuple[Slab, int, int]]:
        """Yield a scope's blocks: slab, first offset, rows in use."""
        for start in self._full.get(scope, ()):
            yield self._arena.slab(start), start & OFFSET, SLAB_ROWS
        start, used = self._tail(scope)
        if used:
            yield self._arena.slab(start), start & OFFSET, used


def block_of(rows: int) -> int:
    """Return the smallest block that holds so many rows, or the largest there is."""
    return min(1 << (rows - 1).bit_length(), SLAB_ROWS)


def texts_bytes(texts: Sequence[str]) -> int:
    """Return what some str take; in one step where all are ASCII, as most are."""
    together = "".join(texts)
    return text_bytes(together) + 56 * (len(texts) - 1) if together.isascii() else sum(map(text_bytes, texts))


def text_bytes(text: str) -> int:
    """Return what a str takes; not `sys.getsizeof`, which changes once the str has been encoded."""
    return 56 + len(text) * (1 if text.isascii() else 2)
