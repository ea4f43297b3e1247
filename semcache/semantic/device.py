"""The index with its large scopes on a device: FlatIndex in all else, so small scopes never leave the host.

Laws:
- a scope's full blocks of 1,024 rows, and its last one once it has over 512, lie on the device, each a slot there; what
  is smaller, and what the device has no memory for, lies on the host and is searched there, both in one search;
- keys, texts and lives stay on the host; a row whose life is over is left out of what the device found, and where too
  few are left the device is asked again, for living rows alone;
- the device's path is PyTorch's product and topk: one query at a million rows took a tenth of FAISS's time on the same
  GPU.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from semcache.model import Neighbour
from semcache.semantic.arena import FREE, OFFSET, SHIFT, SLAB_ROWS, Arena, Slab
from semcache.semantic.index import FlatIndex
from semcache.semantic.nearest import Slots
from semcache.semantic.rows import DeviceRows

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Sequence

    from numpy import bool_, float32, float64, int64
    from numpy.typing import NDArray

_MORE_FOUND = 16
"""Rows found beyond those asked for: half precision may have put the last ones in another order, or lives be over."""
_LIVES = 64


class DeviceSlab(Slab):
    """A slab of one block of 1,024 rows, whose vectors are a slot of the device."""

    __slots__ = ("others", "rows", "slot", "soonest")

    def __init__(
        self, index: int, block: int, dimension: int, *, rows: DeviceRows, slot: int, expires: NDArray[float64],
        soonest: NDArray[float64], others: dict[int, DeviceSlab],
    ) -> None:  # fmt: skip
        self.rows = rows
        self.slot = slot
        self.others = others
        self.soonest = soonest
        """No row's life is over before: float64[1], one of an array, so that many are compared at once."""
        soonest[0] = float("inf")
        super().__init__(index, block, dimension)
        self.expires = expires

    def _make_vectors(self, dimension: int) -> Any:  # noqa: ARG002 - the rows know it
        return _Vectors(self.rows, self.slot)

    def write(self, at: int, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        super().write(at, key, scope, vector, text, expires)
        self.soonest[0] = min(self.soonest[0], expires)

    def copy(self, at: int, source: Slab, source_at: int, rows: int = 1) -> None:
        super().copy(at, source, source_at, rows)
        self.soonest[0] = min(self.soonest[0], self.expires[at : at + rows].min())

    def give_back(self) -> None:
        self.rows.give(self.slot)
        del self.others[self.slot]


class _Vectors:
    """A slot's vectors, as a slab takes and gives them."""

    def __init__(self, rows: DeviceRows, slot: int) -> None:
        self._rows = rows
        self._first = slot << SHIFT

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return _Some(self._rows, self._first + at.start, at.stop - at.start)
        return self._rows.read(self._first + int(at), 1)[0]

    def __setitem__(self, at: int | slice, vectors: Any) -> None:
        first = self._first + (at.start if isinstance(at, slice) else at)
        if isinstance(vectors, _Some):  # from the device to the device
            self._rows.move(first, vectors.first, vectors.count)
        else:
            self._rows.write(first, vectors if isinstance(at, slice) else vectors[None])


class _Some:
    """Rows in a row, read when they are looked at: numpy does so where they are put into host memory."""

    def __init__(self, rows: DeviceRows, first: int, count: int) -> None:
        self._rows = rows
        self.first = first
        self.count = count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's own
        vectors = self._rows.read(self.first, self.count)
        return vectors if dtype is None else vectors.astype(dtype)


def make_index(dimension: int, max_bytes: int, device: str | None, gpu_memory: int | None) -> FlatIndex:
    """Make the index that goes with a device: on a GPU, with at most so many bytes there, or on the CPU."""
    if device is None or not device.startswith("cuda"):
        return FlatIndex(dimension, max_bytes)
    return DeviceIndex(dimension, max_bytes, device=device, max_device_bytes=gpu_memory)


class DeviceIndex(FlatIndex):
    """A FlatIndex whose large scopes lie on a torch device, in `dtype`: half precision on CUDA unless told.

    `max_device_bytes` bounds what the rows take there.
    """

    path = "PyTorch"
    crossover = SLAB_ROWS // 2
    """A scope of more rows is searched on the device."""

    def __init__(
        self, dimension: int, max_bytes: int, max_rows: int | None = None, *, device: str,
        dtype: Any = None, max_device_bytes: int | None = None,
    ) -> None:  # fmt: skip
        import torch

        self.device = torch.device(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        self._max_device_bytes = max_device_bytes
        super().__init__(dimension, max_bytes, max_rows)

    @property
    def device_bytes(self) -> int:
        """Bytes of the device that rows take, or are kept for them."""
        return self._device_rows.nbytes

    @property
    def troubles(self) -> deque[BaseException]:
        """What went wrong on the device since it was last looked at, and was done in another way."""
        return self._device_rows.troubles

    def within(self, vector: NDArray[float32], similarity: float, now: float) -> list[Neighbour]:
        found = super().within(vector, similarity, now)
        nears, rows = self._device_rows.near(vector, similarity)
        for near, row in zip(nears.tolist(), rows.tolist(), strict=True):
            slab, at = self._slab_of_slot.get(row >> SHIFT), row & OFFSET
            alive = slab is not None and slab.state[at] != FREE and slab.expires[at] > now
            if slab is not None and alive and near >= similarity - 1e-6:
                found.append(Neighbour(slab.keys[at], min(near, 1.0), slab.texts[at]))
        return sorted(found, key=lambda one: -one.similarity)

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[float32] | None]:
        """Look them up; those on the device come in one copy."""
        found: list[NDArray[float32] | None] = [None] * len(keys)
        places, rows = [], []
        for place, row in enumerate(map(self._row_of, keys)):
            if row is None:
                continue
            slab, at = self._arena.slab(row), row & OFFSET
            if isinstance(slab, DeviceSlab):
                places.append(place)
                rows.append(slab.slot << SHIFT | at)
            else:
                found[place] = slab.vectors[at].copy()
        if rows:
            for place, vector in zip(places, self._device_rows.read_some(rows), strict=True):
                found[place] = vector
        return found

    def _make_arena(self) -> Arena:
        self._device_rows = DeviceRows(self.dimension, self.device, self.dtype, self._max_device_bytes)
        self._slab_of_slot: dict[int, DeviceSlab] = {}
        # When lives end, of so many slots together: those of all rows that a search found are looked up in few steps.
        self._lives: list[NDArray[float64]] = []
        self._soonest: list[NDArray[float64]] = []
        self._slots_of: dict[bytes, tuple[list[DeviceSlab], Slots]] = {}
        return Arena(self.dimension, self._make_slab)

    def _make_slab(self, index: int, block: int, dimension: int) -> Slab:
        import numpy as np

        slot = self._device_rows.take() if block == SLAB_ROWS else None
        if slot is None:
            return Slab(index, block, dimension)
        while len(self._lives) <= slot // _LIVES:
            self._lives.append(np.zeros((_LIVES, SLAB_ROWS)))
            self._soonest.append(np.full((_LIVES, 1), np.inf))
        slab = self._slab_of_slot[slot] = DeviceSlab(
            index, block, dimension, rows=self._device_rows, slot=slot,
            expires=self._lives[slot // _LIVES][slot % _LIVES],
            soonest=self._soonest[slot // _LIVES][slot % _LIVES], others=self._slab_of_slot,
        )  # fmt: skip
        return slab

    # What changes which slabs a scope has

    def _extend(self, scope: bytes, start: int, used: int) -> tuple[int, int]:
        self._slots_of.pop(scope, None)
        return super()._extend(scope, start, used)

    def _shrink(self, scope: bytes, start: int, used: int) -> None:
        if not used or used <= SLAB_ROWS // 4:
            self._slots_of.pop(scope, None)
        super()._shrink(scope, start, used)

    # Search

    def _host_slabs(self) -> Iterator[Slab]:
        return (slab for slab in super()._host_slabs() if not isinstance(slab, DeviceSlab))

    def _blocks(self, scope: bytes) -> Iterator[tuple[Slab, int, int]]:
        """Yield what lies on the host."""
        return (one for one in super()._blocks(scope) if not isinstance(one[0], DeviceSlab))

    def _elsewhere(self, *asked: Any) -> tuple[list[NDArray[float32]], list[NDArray[int64]]]:
        """Search what lies on the device."""
        import numpy as np

        scope, queries, k = asked
        if self._arena.slab(self._tail(scope)[0]).block != SLAB_ROWS:
            return [], []
        known = self._slots_of.get(scope)
        if known is None:
            slabs = [one for one, _, _ in super()._blocks(scope) if isinstance(one, DeviceSlab)]
            if not slabs:
                return [], []
            known = self._slots_of[scope] = slabs, self._device_rows.together([slab.slot for slab in slabs])
        slabs, slots = known
        start, used = self._tail(scope)
        used = used if slabs[-1].index == start >> SHIFT else SLAB_ROWS
        rows = (len(slabs) - 1) * SLAB_ROWS + used
        search = partial(self._device_rows.search, slots, used, queries)
        near, found = search(min(k + _MORE_FOUND, rows))
        if (np.concatenate(self._soonest)[slots.numbers, 0] > self._now).all():
            near, found = near[:, :k], found[:, :k]
        else:
            near, found = self._living(near, found, min(k, rows))
            if near.size and (near[:, -1] == -np.inf).any() and rows > k + _MORE_FOUND:
                near, found = self._living_alone(slabs, used, search, k)
            kept = int((near != -np.inf).sum(axis=1).max(initial=0))
            near, found = near[:, :kept], found[:, :kept]
        if not near.shape[1]:
            return [], []
        return [near], [self._as_rows(found)]

    def _living(self, near: NDArray[float32], found: NDArray[int64], k: int) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return the first k of each that live, the nearest first; what is none stands last, at -inf."""
        import numpy as np

        alive = np.zeros(found.shape, dtype=bool)
        parts = found // (_LIVES * SLAB_ROWS)
        for part in np.unique(parts).tolist():
            here = parts == part
            alive[here] = self._lives[part].ravel()[found[here] % (_LIVES * SLAB_ROWS)] > self._now
        near = np.where(alive, near, np.float32(-np.inf))
        order = np.argsort(-near, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(near, order, axis=1), np.take_along_axis(found, order, axis=1)

    def _living_alone(
        self, slabs: list[DeviceSlab], used: int, search: Any, k: int
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        import numpy as np

        lives: list[NDArray[bool_]] = [slab.expires > self._now for slab in slabs]
        alive = np.concatenate(lives)[: (len(slabs) - 1) * SLAB_ROWS + used]
        for slab in slabs:
            slab.soonest[0] = slab.expires[slab.state != FREE].min(initial=np.inf)
        count = int(alive.sum())
        if not count:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
        found: tuple[NDArray[float32], NDArray[int64]] = search(min(k, count), alive)
        return found

    def _as_rows(self, found: NDArray[int64]) -> NDArray[int64]:
        """Return the index's rows for the device's."""
        import numpy as np

        slots, places = np.unique(found >> SHIFT, return_inverse=True)
        indexes = np.fromiter((self._slab_of_slot[slot].index for slot in slots.tolist()), np.int64, len(slots))
        return indexes[places].reshape(found.shape) << SHIFT | found & OFFSET
