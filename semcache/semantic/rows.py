"""Vectors of large scopes on a device: slots of 1,024 rows in chunks, written late, searched by a product and a topk.

Laws:
- chunks are made one at a time, so growing copies nothing; at most `max_bytes` of them, and where the device has no
  memory left there is no slot: who asked keeps the rows itself;
- what is written or moved waits on the host, and goes to the device in one copy, before it is next read;
- what a search finds is compared once more in float32, so it is exact to the rounding of the rows;
- a device that is short of memory is given smaller products, then none: the rows come to the host (law 10).

Written against `torch.device`: the same code runs on a CPU.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Any

from semcache.errors import TierError
from semcache.semantic.arena import SHIFT, SLAB_ROWS
from semcache.semantic.passes import is_lost

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

_FIRST_CHUNK = 64
_LARGEST_CHUNK = 2048
_PENDING = 4096
_MOST_RUNS = 8
_LONG_RUN = 64
"""Runs of slots are searched where they lie; of more and shorter ones than this the rows are gathered first, as each
costs some launches."""
_PRODUCTS = 2**28
"""Similarities that a product makes at once: half a gigabyte."""
_LEAST_PRODUCTS = 2**20
_GATHERED = 128
_HALF_ROUNDING = 2e-3


class Slots:
    """Slots that are searched together, in order, and the runs of them that lie side by side: (first, count)."""

    __slots__ = ("numbers", "runs")

    def __init__(self, numbers: Sequence[int], runs: list[tuple[int, int]]) -> None:
        self.numbers = numbers
        self.runs = runs

    def __len__(self) -> int:
        return len(self.numbers)


class DeviceRows:
    """Slots for float32[1024, d] each, kept as `dtype` on `device`. Not locked: one thread owns it."""

    def __init__(self, dimension: int, device: Any, dtype: Any, max_bytes: int | None = None) -> None:
        import torch

        self.device = torch.device(device)
        self.dimension = dimension
        self.dtype = dtype
        self.troubles: deque[BaseException] = deque(maxlen=16)
        self._slot_bytes: int = SLAB_ROWS * dimension * dtype.itemsize
        self._max_slots = None if max_bytes is None else max_bytes // self._slot_bytes
        self._chunks: list[Any] = []
        self._starts: list[int] = []
        self._slots = 0
        self._free: list[int] = []
        # What a row is to be: a vector, or what the device has now as another row.
        self._pending: dict[int, NDArray[float32] | int] = {}
        self._products = _PRODUCTS

    @property
    def nbytes(self) -> int:
        """Bytes of the device that the chunks take."""
        return self._slots * self._slot_bytes

    def take(self) -> int | None:
        """Return a slot, or None where there is none to be had."""
        if not self._free and not self._grow():
            return None
        return heapq.heappop(self._free)

    def give(self, slot: int) -> None:
        """Take a slot back; a chunk at the end without one in use goes back to the device."""
        first = slot << SHIFT
        for row in [row for row in self._pending if first <= row < first + SLAB_ROWS]:
            del self._pending[row]
        heapq.heappush(self._free, slot)
        last = self._starts[-1]
        if sum(one >= last for one in self._free) == self._slots - last and len(self._chunks) > 1:
            self.flush()  # what is to move from there is read before it goes
            self._free = [one for one in self._free if one < last]
            heapq.heapify(self._free)
            self._chunks.pop()
            self._starts.pop()
            self._slots = last

    def write(self, row: int, vectors: NDArray[float32]) -> None:
        """Fill rows from this one on, with float32[n, d]."""
        for place, vector in enumerate(vectors, row):
            self._pending[place] = vector.copy()
        if len(self._pending) >= _PENDING:
            self.flush()

    def move(self, row: int, source: int, rows: int) -> None:
        """Fill rows from others, which stay as they are."""
        found = [self._pending.get(place, place) for place in range(source, source + rows)]
        self._pending.update(enumerate(found, row))

    def read(self, row: int, rows: int) -> NDArray[float32]:
        """Return float32[rows, d] of one slot. Raises TierError("lost")."""
        self.flush()
        chunk, at = self._where(row)
        vectors: NDArray[float32] = chunk[at : at + rows].float().cpu().numpy()
        return vectors

    def flush(self) -> None:
        """Bring to the device what waits. Raises TierError("lost")."""
        if not self._pending:
            return
        import numpy as np
        import torch

        pending, self._pending = self._pending, {}
        moves = [(row, source) for row, source in pending.items() if isinstance(source, int)]
        writes = {row: vector for row, vector in pending.items() if not isinstance(vector, int)}
        try:
            with torch.inference_mode():
                parts = []
                if moves:  # all are read before any is written
                    sources = torch.tensor([source for _, source in moves], device=self.device)
                    parts.append(self._gather(sources))
                if writes:
                    host = torch.from_numpy(np.stack(list(writes.values()))).to(self.dtype)
                    host = host.pin_memory() if self.device.type == "cuda" else host
                    parts.append(host.to(self.device, non_blocking=True))
                targets = np.fromiter((*(row for row, _ in moves), *writes), np.int64, len(pending))
                self._scatter(targets, torch.cat(parts))
        except RuntimeError as error:
            raise lost(error) from error

    def search(
        self, slots: Slots, used: int, queries: NDArray[float32], k: int, alive: NDArray[bool_] | None = None
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return the k nearest of some slots' rows, `used` of them in the last: similarities and rows, [n, k].

        `alive` says of each row, in the order of the slots, whether it may be found. Raises TierError("lost").
        """
        import torch

        self.flush()
        try:
            with torch.inference_mode():
                return self._search(slots, used, queries, k, alive)
        except torch.cuda.OutOfMemoryError as error:
            self.troubles.append(error)
        except RuntimeError as error:
            raise lost(error) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._products > _LEAST_PRODUCTS:
            self._products //= 4
            return self.search(slots, used, queries, k, alive)
        with torch.inference_mode():
            return self._search(slots, used, queries, k, alive, on_host=True)

    def together(self, numbers: Sequence[int]) -> Slots:
        """Return slots as they are to be searched; it holds as long as they are in use."""
        import numpy as np

        slots = np.fromiter(numbers, np.int64, len(numbers))
        breaks = (np.diff(slots) != 1) | np.isin(slots[1:], self._starts)
        firsts = np.concatenate([[0], breaks.nonzero()[0] + 1])
        counts = np.diff(np.concatenate([firsts, [len(slots)]]))
        return Slots(numbers, list(zip(slots[firsts].tolist(), counts.tolist(), strict=True)))

    def near(self, vector: NDArray[float32], similarity: float) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return similarities and rows of all, free ones included, that may be so near. Raises TierError("lost")."""
        import numpy as np
        import torch

        self.flush()
        found = []
        try:
            with torch.inference_mode():
                query = torch.from_numpy(np.ascontiguousarray(vector)).to(self.device)
                for chunk, start in zip(self._chunks, self._starts, strict=True):
                    rough = chunk @ query.to(self.dtype)
                    at = (rough >= similarity - _HALF_ROUNDING).nonzero()[:, 0]
                    near = chunk[at].float() @ query
                    found.append((near.cpu().numpy(), (at + (start << SHIFT)).cpu().numpy()))
        except RuntimeError as error:
            raise lost(error) from error
        if not found:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        return np.concatenate([near for near, _ in found]), np.concatenate([rows for _, rows in found])

    def _grow(self) -> bool:
        import torch

        slots = min(max(_FIRST_CHUNK, self._slots), _LARGEST_CHUNK)
        if self._max_slots is not None:
            slots = min(slots, self._max_slots - self._slots)
        if slots <= 0:
            return False
        try:
            chunk = torch.zeros((slots * SLAB_ROWS, self.dimension), dtype=self.dtype, device=self.device)
        except torch.cuda.OutOfMemoryError as error:
            self.troubles.append(error)
            self._max_slots = self._slots
            return False
        except RuntimeError as error:
            raise lost(error) from error
        self._starts.append(self._slots)
        self._chunks.append(chunk)
        self._free += range(self._slots, self._slots + slots)  # greater than all before: still a heap
        self._slots += slots
        return True

    def _where(self, row: int) -> tuple[Any, int]:
        """Return the chunk of a row, and the row in it."""
        number = bisect_right(self._starts, row >> SHIFT) - 1
        return self._chunks[number], row - (self._starts[number] << SHIFT)

    def _gather(self, rows: Any) -> Any:
        """Return rows of whatever chunks, in order."""
        import torch

        out = torch.empty((len(rows), self.dimension), dtype=self.dtype, device=self.device)
        for chunk, start in zip(self._chunks, self._starts, strict=True):
            at = rows - (start << SHIFT)
            mine = ((at >= 0) & (at < len(chunk))).nonzero()[:, 0]
            out[mine] = chunk[at[mine]]
        return out

    def _scatter(self, rows: NDArray[int64], vectors: Any) -> None:
        import torch

        for chunk, start in zip(self._chunks, self._starts, strict=True):
            at = rows - (start << SHIFT)
            mine = ((at >= 0) & (at < len(chunk))).nonzero()[0]
            if len(mine) == len(rows):
                chunk[torch.from_numpy(at).to(self.device)] = vectors
            elif len(mine):
                chunk[torch.from_numpy(at[mine]).to(self.device)] = vectors[torch.from_numpy(mine).to(self.device)]

    def _search(
        self, slots: Slots, used: int, queries: NDArray[float32], k: int, alive: NDArray[bool_] | None,
        *, on_host: bool = False,
    ) -> tuple[NDArray[float32], NDArray[int64]]:  # fmt: skip
        import torch

        device = torch.device("cpu") if on_host else self.device
        exact = torch.from_numpy(queries).to(device)
        rough = exact if on_host else exact.to(self.dtype)
        may = None if alive is None else torch.from_numpy(alive).to(device)
        nears, founds, vectors_found, seen = [], [], [], 0
        for vectors, rows in self._pieces(slots, used, max(SLAB_ROWS, self._products // len(queries))):
            here = vectors.cpu().float() if on_host else vectors
            near = rough @ here.T
            if may is not None:
                near.masked_fill_(~may[seen : seen + len(here)], -torch.inf)
            seen += len(here)
            near, at = near.topk(min(k, len(here)))
            nears.append(near)
            founds.append(at + rows if isinstance(rows, int) else rows.to(device)[at])
            vectors_found.append(here[at])
        near, found, again = torch.cat(nears, 1), torch.cat(founds, 1), torch.cat(vectors_found, 1)
        near = torch.where(near == -torch.inf, -torch.inf, torch.einsum("qkd,qd->qk", again.float(), exact))
        near, order = near.topk(min(k, near.shape[1]))
        return near.cpu().numpy(), found.gather(1, order).cpu().numpy()

    def _pieces(self, slots: Slots, used: int, most: int) -> Iterator[tuple[Any, Any]]:
        """Yield vectors, at most so many, and the row of the first or of each, in the order of the slots."""
        runs = slots.runs
        if len(runs) > _MOST_RUNS and len(slots) < _LONG_RUN * len(runs):
            yield from self._gathered(slots, used, max(1, min(_GATHERED, most >> SHIFT)))
            return
        for number, (first, count) in enumerate(runs):
            rows = count << SHIFT
            if number == len(runs) - 1:
                rows += used - SLAB_ROWS
            chunk, at = self._where(first << SHIFT)
            for start in range(0, rows, most):
                stop = min(start + most, rows)
                yield chunk[at + start : at + stop], (first << SHIFT) + start

    def _gathered(self, slots: Slots, used: int, most: int) -> Iterator[tuple[Any, Any]]:
        import torch

        offsets = torch.arange(SLAB_ROWS, device=self.device)
        for at in range(0, len(slots), most):
            some = torch.tensor(slots.numbers[at : at + most], device=self.device)
            rows = (some[:, None] * SLAB_ROWS + offsets).flatten()
            if at + most >= len(slots):
                rows = rows[: len(rows) + used - SLAB_ROWS]
            yield self._gather(rows), rows


def lost(error: RuntimeError) -> Exception:
    """Return what a caller is to raise: that the device is lost, or the error itself."""
    if is_lost(error):
        return TierError("lost", f"the device of the index has failed: {error}")
    return error
