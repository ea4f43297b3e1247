"""Vectors of large scopes on a device: slots of 1,024 rows in chunks, written late, searched by products and topk.

Laws:
- chunks are made one at a time, so growing copies nothing; at most `max_bytes` of them, and where the device has no
  memory left there is no slot: who asked keeps the rows itself;
- what is written or moved waits on the host, and goes to the device in one copy, before it is next read;
- what a search finds is compared once more in float32, so it is exact to the rounding of the rows; of the slots only
  those with the largest maxima are looked into, since one topk of all rows took longer than their product;
- few queries of a scope that stays as it is are one CUDA graph: some forty launches took longer than the work;
- a device that is short of memory is given smaller products, then none: the rows come to the host (law 10);
- where rows could not be written or read, whatever the reason, none is believed any more: moves read what other writes
  replace, so they cannot be tried again.

Written against `torch.device`: the same code runs on a CPU.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from semcache.errors import TierError
from semcache.semantic.arena import OFFSET, SHIFT, SLAB_ROWS
from semcache.semantic.failing import is_short, losing, lost
from semcache.semantic.graphs import Graph, capture
from semcache.semantic.nearest import Slots, fill, find, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

_FIRST_CHUNK = 64
_LARGEST_CHUNK = 2048
_PENDING = 4096
_PRODUCTS = 2**28
"""Similarities that a product makes at once: half a gigabyte."""
_LEAST_PRODUCTS = 2**20
_GATHERED = 128
_MOST_COPIES = 16
_HALF_ROUNDING = 2e-3
_GRAPH_QUERIES = 256
_GRAPH_WORK = 2**28
"""Similarities of a search that is a graph: what more takes hardly feels its launches."""
_GRAPH_PRODUCTS = 2**26
"""Of them at once: graphs keep their memory, which those of a device share."""
_GRAPH_AFTER = 64
"""Searches of the same slots before they get a graph: to capture one takes longer than to search a few times."""
_MOST_GRAPHS = 64


class DeviceRows:
    """Slots for float32[1024, d] each, kept as `dtype` on `device`. Not locked: one thread owns it."""

    def __init__(
        self, dimension: int, device: Any, dtype: Any, max_bytes: int | None = None,
        troubles: deque[BaseException] | None = None,
    ) -> None:  # fmt: skip
        import torch

        self.device = torch.device(device)
        self.dimension = dimension
        self.dtype = dtype
        self.troubles: deque[BaseException] = deque(maxlen=16) if troubles is None else troubles
        self._slot_bytes: int = SLAB_ROWS * dimension * dtype.itemsize
        self._max_slots = None if max_bytes is None else max_bytes // self._slot_bytes
        self._chunks: list[Any] = []
        self._starts: list[int] = []
        self._slots = 0
        self._free: list[int] = []
        # What a row is to be: a place of the stage, or, as -1 - row, what the device has now as another row.
        self._pending: dict[int, int] = {}
        self._stage: Any = None
        self._staged = 0
        self._end = ""
        self._products = _PRODUCTS
        self._graphs: WeakSet[Graph] = WeakSet()
        self._with_graphs: WeakSet[Slots] = WeakSet()
        self._pool: Any = None
        self._use_graphs = self.device.type == "cuda"
        self.why = ""
        """Why no search is a CUDA graph."""

    @property
    def nbytes(self) -> int:
        """Bytes of the device that the chunks take."""
        return self._slots * self._slot_bytes

    @property
    def used(self) -> int:
        """How many slots are in use."""
        return self._slots - len(self._free)

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
        if self._staged + len(vectors) > _PENDING:
            self.flush()
        if self._stage is None:
            import torch

            pinned = self.device.type == "cuda"
            with self._whole():
                self._stage = torch.empty((_PENDING, self.dimension), dtype=torch.float32, pin_memory=pinned)
            self._stage_here = self._stage.numpy()
        staged = self._staged
        self._stage_here[staged : staged + len(vectors)] = vectors
        self._pending.update(zip(range(row, row + len(vectors)), range(staged, staged + len(vectors)), strict=True))
        self._staged += len(vectors)

    def move(self, row: int, source: int, rows: int) -> None:
        """Fill rows from others, which stay as they are."""
        found = [self._pending.get(place, -1 - place) for place in range(source, source + rows)]
        self._pending.update(enumerate(found, row))

    def read(self, row: int, rows: int) -> NDArray[float32]:
        """Return float32[rows, d] of one slot. Raises TierError("lost")."""
        self.flush()
        chunk, at = self._where(row)
        with self._whole():
            vectors: NDArray[float32] = chunk[at : at + rows].float().cpu().numpy()
        return vectors

    def read_some(self, rows: Sequence[int]) -> NDArray[float32]:
        """Return float32[n, d] of rows of whatever slots, in one copy. Raises TierError("lost")."""
        import torch

        self.flush()
        with self._whole(), torch.inference_mode():
            vectors: NDArray[float32] = self._gather(torch.tensor(rows).to(self.device)).float().cpu().numpy()
        return vectors

    def flush(self) -> None:
        """Bring to the device what waits. Raises TierError("lost"), and from then on always."""
        if self._end:
            raise TierError("lost", self._end)
        if not self._pending:
            self._staged = 0
            return
        import numpy as np
        import torch

        targets = np.fromiter(self._pending, np.int64, len(self._pending))
        sources = np.fromiter(self._pending.values(), np.int64, len(targets))
        staged, self._pending, self._staged = self._staged, {}, 0
        with self._whole(), torch.inference_mode():
            is_new = sources >= 0
            moves = torch.from_numpy(-1 - sources[~is_new])
            moved = self._gather(moves.to(self.device)) if len(moves) else None  # before any is written
            if is_new.any():
                self._place(targets[is_new], sources[is_new], self._stage[:staged].to(self.device))
            if moved is not None:
                self._scatter(targets[~is_new], moved)

    def search(
        self, slots: Slots, used: int, queries: Any, k: int, alive: NDArray[bool_] | None = None
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return the k nearest of some slots' rows, `used` of them in the last: similarities and rows, [n, k].

        `queries` are float32[n, d], of numpy or a tensor on whatever device. `alive` says of each row, in the order of
        the slots, whether it may be found. Raises TierError("lost").
        """
        return self.found(slots, self.begin(slots, used, queries, k, alive))

    def begin(self, slots: Slots, used: int, queries: Any, k: int, alive: NDArray[bool_] | None = None) -> Any:
        """Begin a search, as `search` has it, and return what `found` makes rows of, before the next is begun."""
        import torch

        self.flush()
        try:
            with torch.inference_mode():
                return self._search(slots, used, queries, k, alive)
        except RuntimeError as error:
            if not is_short(error):
                raise lost(error) from error
            self.troubles.append(error)
        self._give_up_graphs()
        if self.device.type == "cuda":
            with losing():
                torch.cuda.empty_cache()
        if self._products > _LEAST_PRODUCTS:
            self._products //= 4
            return self.begin(slots, used, queries, k, alive)
        with losing(), torch.inference_mode():
            return self._search(slots, used, queries, k, alive, on_host=True)

    def found(self, slots: Slots, begun: Any) -> tuple[NDArray[float32], NDArray[int64]]:
        """Wait for a search that was begun, and return what it finds. Raises TierError("lost")."""
        import numpy as np

        with losing():
            found = begun.cpu().numpy()
        k = found.shape[1] // 2
        places = found[:, k:].view(np.int32).astype(np.int64)
        return found[:, :k], slots.numbers[places >> SHIFT] << SHIFT | places & OFFSET

    def together(self, numbers: Sequence[int], patience: int = 0) -> Slots:
        """Return slots as they are to be searched, of so much patience at least, as long as they are in use."""
        import numpy as np

        slots = np.fromiter(numbers, np.int64, len(numbers))
        breaks = (np.diff(slots) != 1) | np.isin(slots[1:], self._starts)
        firsts = np.concatenate([[0], breaks.nonzero()[0] + 1])
        counts = np.diff(np.concatenate([firsts, [len(slots)]]))
        there = np.unique(np.searchsorted(self._starts, slots, side="right") - 1).tolist()
        chunks = [(self._chunks[number], self._starts[number] << SHIFT) for number in there]
        return Slots(
            slots, list(zip(slots[firsts].tolist(), counts.tolist(), strict=True)), chunks, max(patience, _GRAPH_AFTER)
        )

    def near(self, vector: NDArray[float32], similarity: float) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return similarities and rows of all, free ones included, that may be so near. Raises TierError("lost")."""
        import numpy as np
        import torch

        self.flush()
        found = []
        with losing(), torch.inference_mode():
            query = torch.from_numpy(np.ascontiguousarray(vector)).to(self.device)
            for chunk, start in zip(self._chunks, self._starts, strict=True):
                rough = chunk @ query.to(self.dtype)
                at = (rough >= similarity - _HALF_ROUNDING).nonzero()[:, 0]
                near = chunk[at].float() @ query
                found.append((near.cpu().numpy(), (at + (start << SHIFT)).cpu().numpy()))
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
        except RuntimeError as error:
            if not is_short(error):
                raise lost(error) from error
            self.troubles.append(error)
            self._max_slots = self._slots
            return False
        self._starts.append(self._slots)
        self._chunks.append(chunk)
        self._free += range(self._slots, self._slots + slots)  # greater than all before: still a heap
        self._slots += slots
        return True

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Let no row be believed any more where some cannot be brought to the device or from there."""
        try:
            yield
        except RuntimeError as error:
            self._end = f"rows of the index could not be brought to its device or from there: {error}"
            raise TierError("lost", self._end) from error

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

    def _place(self, targets: NDArray[int64], sources: NDArray[int64], stage: Any) -> None:
        """Fill rows from places of the stage; those that come in few runs, as rows put in at once do, by copies."""
        import numpy as np
        import torch

        breaks = (np.diff(targets) != 1) | (np.diff(sources) != 1) | (targets[1:] & OFFSET == 0)
        if breaks.sum() >= _MOST_COPIES:
            self._scatter(targets, stage.to(self.dtype)[torch.from_numpy(sources).to(self.device)])
            return
        firsts = np.concatenate([[0], breaks.nonzero()[0] + 1])
        for first, stop in zip(firsts.tolist(), [*firsts[1:].tolist(), len(targets)], strict=True):
            chunk, at = self._where(int(targets[first]))
            chunk[at : at + stop - first].copy_(stage[sources[first] : sources[first] + stop - first])

    def _scatter(self, rows: NDArray[int64], vectors: Any) -> None:
        import numpy as np
        import torch

        numbers = np.searchsorted(self._starts, rows >> SHIFT, side="right") - 1
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            at = torch.from_numpy(rows[mine] - (self._starts[number] << SHIFT)).to(self.device)
            some = vectors if mine.all() else vectors[torch.from_numpy(mine.nonzero()[0]).to(self.device)]
            self._chunks[number][at] = some

    def _search(
        self, slots: Slots, used: int, queries: Any, k: int, alive: NDArray[bool_] | None, *, on_host: bool = False
    ) -> Any:
        """Return what `_find` does, on its way: a graph's is its own until the next one."""
        import torch

        n = len(queries)
        graph = None if on_host or alive is not None else self._graph(slots, n, k)
        if graph is not None:
            slots.replayed += 1
            fill(graph.given[:n], queries, used)
            return graph.replay()[:n]
        device = torch.device("cpu") if on_host else self.device
        given = torch.empty((n, self.dimension + 1), dtype=torch.float32, device=device)
        fill(given, queries, used)
        return self._find(slots, k, self._products, given, alive, on_host=on_host)

    def _graph(self, slots: Slots, queries: int, k: int) -> Graph | None:
        """Return the graph of a search of so many queries, once such were asked often enough."""
        import torch

        fewest = size_of(queries)
        is_small = fewest <= _GRAPH_QUERIES and (fewest * len(slots)) << SHIFT <= _GRAPH_WORK
        if not self._use_graphs or not is_small or slots.is_scattered:
            return None
        graph = slots.graphs.get((fewest, k))
        if graph is not None:
            return graph
        slots.asked[fewest, k] += 1
        if slots.asked[fewest, k] < slots.patience or len(self._graphs) >= _MOST_GRAPHS:
            return None
        if self.device.type == "cuda" and not self._graphs:  # a pool goes with the last graph that has it
            self._pool = torch.cuda.graph_pool_handle()
        shape = fewest, self.dimension + 1
        find = partial(self._find, slots, k, min(self._products, _GRAPH_PRODUCTS))
        made = capture(find, lambda: torch.zeros(shape, device=self.device), self._pool)
        if isinstance(made, str):
            self.why = made
            self._give_up_graphs()
            return None
        slots.graphs[fewest, k] = made
        self._graphs.add(made)
        self._with_graphs.add(slots)
        return made

    def _give_up_graphs(self) -> None:
        """Search plainly from now on, and let the memory of all graphs go."""
        self._use_graphs, self._pool = False, None
        for slots in list(self._with_graphs):
            slots.graphs.clear()

    def _find(
        self, slots: Slots, k: int, products: int, given: Any, alive: NDArray[bool_] | None = None, *,
        on_host: bool = False,
    ) -> Any:  # fmt: skip
        """Find, with at most so many products at once."""
        groups = self._groups(slots, max(1, products // len(given) >> SHIFT), on_host=on_host)
        return find(slots, k, groups, given, self.dtype, alive, on_host=on_host)

    def _groups(self, slots: Slots, most: int, *, on_host: bool) -> Iterator[tuple[int, list[Any]]]:
        """Yield the place of a first slot and the vectors from there on, at most so many slots of them."""
        if slots.is_scattered and not on_host:  # to gather takes memory of the device, which then has none
            most = min(_GATHERED, most)
            for first in range(0, len(slots), most):
                yield first, [self._gathered(slots.numbers[first : first + most])]
            return
        first, parts, size = 0, [], 0
        for slot, count in slots.runs:
            chunk, at = self._where(slot << SHIFT)
            taken = 0
            while taken < count:
                some = min(count - taken, most - size)
                parts.append(chunk[at + (taken << SHIFT) : at + ((taken + some) << SHIFT)])
                taken, size = taken + some, size + some
                if size == most:
                    yield first, parts
                    first, parts, size = first + size, [], 0
        if parts:
            yield first, parts

    def _gathered(self, numbers: NDArray[int64]) -> Any:
        import torch

        offsets = torch.arange(SLAB_ROWS, device=self.device)
        return self._gather((torch.from_numpy(numbers).to(self.device)[:, None] * SLAB_ROWS + offsets).flatten())
