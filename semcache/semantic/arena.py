"""The memory of the index: rows in slabs of 1,024, each slab cut into equal blocks of 1, 2, 4 ... 1,024 rows.

Laws:
- a row is a number, its slab's index times 1,024 plus its offset; the rows of a block that are in use are its first;
- slabs are made one at a time, so growing copies nothing; a slab without a block in use goes back to the system;
- where half of a size's blocks are free and two slabs' worth of them, the emptiest slab of that size is drained:
  it gets no more blocks, and the index moves what it still holds. So no size keeps more free blocks than used ones
  and two slabs, whatever the order in which blocks came and went.
"""

from __future__ import annotations

from array import array
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy import bool_, float16, float32, float64, uint8
    from numpy.typing import NDArray

SHIFT = 10
SLAB_ROWS = 1 << SHIFT
OFFSET = SLAB_ROWS - 1

FREE, COLD, HOT = 0, 1, 2
"""The states of a row; a hot one was found since the clock's hand last passed over it."""


class Slab:
    """1,024 rows: `vectors` is float16[1024, d], all else is one array of a row's field each.

    In a frozen one rows stay where they are, and one that goes leaves a hole: see `large`.
    """

    __slots__ = ("block", "expires", "free", "index", "is_frozen", "keys", "scopes", "state", "texts", "vectors")

    def __init__(self, index: int, block: int, dimension: int) -> None:
        import numpy as np

        self.index = index
        self.block = block
        self.is_frozen = False
        self.free = array("H", range(SLAB_ROWS - block, -1, -block))
        self.vectors = self._make_vectors(dimension)
        self.expires: NDArray[float64] = np.zeros(SLAB_ROWS, dtype=np.float64)
        self.state: NDArray[uint8] = np.zeros(SLAB_ROWS, dtype=np.uint8)
        # Object arrays, not lists: the garbage collector does not walk them, and would take long over a million rows.
        self.keys: Any = np.empty(SLAB_ROWS, dtype=object)
        self.scopes: Any = np.empty(SLAB_ROWS, dtype=object)
        self.texts: Any = np.empty(SLAB_ROWS, dtype=object)

    def _make_vectors(self, dimension: int) -> Any:
        """Return memory for float16[1024, d]."""
        import numpy as np

        # A mapping of its own, because what malloc frees seldom goes back; private, so that a fork shares no writes.
        memory = mmap(-1, 2 * dimension * SLAB_ROWS, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        vectors: NDArray[float16] = np.frombuffer(memory, dtype=np.float16).reshape(SLAB_ROWS, dimension)
        return vectors

    def give_back(self) -> None:
        """Let go of memory that does not go by itself; the slab is not used any more."""

    @property
    def used_blocks(self) -> int:
        return SLAB_ROWS // self.block - len(self.free)

    def may_write(self, at: int, vector: NDArray[float32]) -> bool:
        """Say whether a row that is there may be overwritten: in a frozen slab its vector must be the same."""
        return not self.is_frozen or bool((self.vectors[at] == vector.astype(self.vectors.dtype)).all())

    def write(self, at: int, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        """Fill a row; it is cold."""
        self.vectors[at] = vector
        self.keys[at] = key
        self.scopes[at] = scope
        self.texts[at] = text
        self.expires[at] = expires
        self.state[at] = COLD

    def write_many(
        self, at: int, keys: Sequence[bytes], scope: bytes, vectors: NDArray[float32], texts: Sequence[str],
        expires: Sequence[float],
    ) -> None:  # fmt: skip
        """Fill rows of one scope from this one on; they are cold. `vectors` is float32[n, d]."""
        here = slice(at, at + len(keys))
        self.vectors[here] = vectors
        self.keys[here] = keys
        self.scopes[here] = scope
        self.texts[here] = texts
        self.expires[here] = expires
        self.state[here] = COLD

    def copy(self, at: int, source: Slab, source_at: int, rows: int = 1) -> None:
        """Fill rows from others, which stay as they are."""
        here, there = slice(at, at + rows), slice(source_at, source_at + rows)
        self.vectors[here] = source.vectors[there]
        self.keys[here] = source.keys[there]
        self.scopes[here] = source.scopes[there]
        self.texts[here] = source.texts[there]
        self.expires[here] = source.expires[there]
        self.state[here] = source.state[there]

    def clear(self, at: int, rows: int = 1) -> None:
        """Free rows, and the objects they hold."""
        here = slice(at, at + rows)
        self.keys[here] = None
        self.scopes[here] = None
        self.texts[here] = None
        self.state[here] = FREE

    def expired(self, start: int, stop: int, now: float) -> NDArray[bool_]:
        """Say of each of these rows whether it is in use and its life is over."""
        over: NDArray[bool_] = (self.expires[start:stop] <= now) & (self.state[start:stop] != FREE)
        return over


class Arena:
    """Hands out blocks of rows, by the number of their first row. Not locked: one thread owns it.

    `make_slab` is given a slab's index, the size of its blocks, and the dimension.
    """

    def __init__(self, dimension: int, make_slab: Callable[[int, int, int], Slab] = Slab) -> None:
        self.dimension = dimension
        self._make_slab = make_slab
        self.slabs: list[Slab | None] = []
        self.draining: Slab | None = None
        self._vacant: list[int] = []
        self._roomy: dict[int, dict[int, Slab]] = {1 << order: {} for order in range(SHIFT + 1)}
        self._blocks = dict.fromkeys(self._roomy, 0)
        self._free_blocks = dict.fromkeys(self._roomy, 0)

    def __len__(self) -> int:
        """Return the rows for which there is memory."""
        return (len(self.slabs) - len(self._vacant)) * SLAB_ROWS

    def slab(self, row: int) -> Slab:
        slab = self.slabs[row >> SHIFT]
        if slab is None:  # pragma: no cover - would be a defect of the index
            raise LookupError(row)
        return slab

    def allocate(self, block: int) -> int:
        """Return the first row of a block of so many rows, a power of two of at most 1,024."""
        roomy = self._roomy[block]
        if not roomy:
            self._make_room(block)
        slab = next(reversed(roomy.values()))
        at = slab.free.pop()
        self._free_blocks[block] -= 1
        if not slab.free:
            del roomy[slab.index]
        return slab.index << SHIFT | at

    def release(self, start: int) -> None:
        """Take a block back; its rows are free already."""
        slab = self.slab(start)
        slab.free.append(start & OFFSET)
        self._free_blocks[slab.block] += 1
        if not slab.used_blocks:
            self._drop(slab)
            return
        if slab is not self.draining:
            self._roomy[slab.block][slab.index] = slab
        if self.draining is None and self._is_sparse(slab.block):
            self.draining = min(self._roomy[slab.block].values(), key=lambda roomy: roomy.used_blocks)
            del self._roomy[slab.block][self.draining.index]

    def blocks_to_move(self, rows: int) -> list[int]:
        """Return the first rows of some blocks, of about so many rows, of the slab that is being drained."""
        slab = self.draining
        if slab is None:
            return []
        most = max(1, rows // slab.block)
        used = slab.state[:: slab.block].nonzero()[0][:most] * slab.block
        return [slab.index << SHIFT | at for at in used.tolist()]

    def _is_sparse(self, block: int) -> bool:
        free = self._free_blocks[block]
        return free * 2 > self._blocks[block] and free >= 2 * (SLAB_ROWS // block)

    def _make_room(self, block: int) -> None:
        """Make a slab, or use the one that is being drained after all."""
        slab = self.draining
        if slab is not None and slab.block == block:
            self.draining = None
        else:
            index = self._vacant[-1] if self._vacant else len(self.slabs)
            slab = self._make_slab(index, block, self.dimension)
            if index == len(self.slabs):
                self.slabs.append(slab)
            else:
                self.slabs[self._vacant.pop()] = slab
            self._blocks[block] += len(slab.free)
            self._free_blocks[block] += len(slab.free)
        self._roomy[block][slab.index] = slab

    def _drop(self, slab: Slab) -> None:
        slab.give_back()
        self.slabs[slab.index] = None
        self._vacant.append(slab.index)
        self._roomy[slab.block].pop(slab.index, None)
        self._blocks[slab.block] -= len(slab.free)
        self._free_blocks[slab.block] -= len(slab.free)
        if slab is self.draining:
            self.draining = None
