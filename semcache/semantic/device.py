"""The index with its large scopes on one or more devices: FlatIndex in all else, so small scopes never leave the host.

Laws:
- a scope that has grown past the crossover lies on a device, slab by slab, each a slot there: what it gets from then on
  at once, what it had before one slab at a time, as it grows or is swept, so no call waits for more; meanwhile, and
  where no device has memory left, the others lie on the host and are searched there, all in one search;
- of several devices each has its share of the slabs, all search at the same time, and what they find is merged;
- keys, texts and lives stay on the host; a row whose life is over is left out of what the device found, and where too
  few are left the device is asked again, for living rows alone;
- the device's path is PyTorch's product and topk: one query at a million rows took a tenth of FAISS's time on the same
  GPU.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from semcache.errors import ConfigurationError
from semcache.model import Neighbour
from semcache.semantic.arena import FREE, OFFSET, SHIFT, SLAB_ROWS, Arena, Slab
from semcache.semantic.failing import is_lost, losing
from semcache.semantic.half import nearest_first
from semcache.semantic.index import FlatIndex
from semcache.semantic.large import LargeIndex
from semcache.semantic.rows import DeviceRows
from semcache.semantic.slots import DeviceSlab, Lives

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

    from semcache.semantic.nearest import Slots
    from semcache.semantic.work import NewRow

CROSSOVER = 4096
"""Rows of a scope up to which it is searched on the host. Measured on an H200 beside 16 cores: there the device pays
from 2,048 rows on for one query, and from between 4,096 and 16,384 for 32."""

_MORE_FOUND = 16
"""Rows found beyond those asked for: half precision may have put the last ones in another order, or lives be over."""


@dataclass(slots=True)
class _Shard:
    """What one device has of a scope, in the scope's order."""

    device: int
    rows: DeviceRows
    slabs: list[DeviceSlab]
    slots: Slots
    numbers: NDArray[int64]


class DeviceIndex(FlatIndex):
    """A FlatIndex whose large scopes lie on torch devices, in `dtype`: half precision on CUDA unless told.

    `device` is one, or several: "cuda:0,cuda:1". `max_device_bytes` bounds what the rows take of each. Scopes of more
    rows than `crossover` lie there, rounded up to whole slabs of 1,024; what a scope of at most 512 has is no slab.
    """

    path = "PyTorch"
    crossover: int

    def __init__(
        self, dimension: int, max_bytes: int, max_rows: int | None = None, *, device: str,
        dtype: Any = None, max_device_bytes: int | None = None, crossover: int = CROSSOVER,
    ) -> None:  # fmt: skip
        import torch

        self.devices = device.split(",")
        self.device = torch.device(self.devices[0])
        """Where queries may lie already."""
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        self.crossover = crossover
        self.troubles: deque[BaseException] = deque(maxlen=16)
        """What went wrong on a device since it was last looked at, and was done in another way."""
        self._max_device_bytes = max_device_bytes
        super().__init__(dimension, max_bytes, max_rows)

    @property
    def device_bytes(self) -> int:
        """Bytes of the devices that rows take, or are kept for them."""
        return sum(rows.nbytes for rows in self._devices)

    def search(self, scopes: Sequence[bytes], vectors: Any, k: int, now: float) -> list[list[Neighbour]]:
        """Search; see `work.VectorIndex.search`. The queries may also be a tensor on a device: they then stay there.

        Only for scopes on the host they are copied to it, once. Raises TierError("lost"), and RuntimeError where a
        device has no memory for the queries themselves.
        """
        import torch

        if not isinstance(vectors, torch.Tensor):
            return super().search(scopes, vectors, k, now)
        if tuple(vectors.shape) != (len(scopes), self.dimension):
            message = f"queries must be finite float32[{len(scopes)}, {self.dimension}]; got {tuple(vectors.shape)}"
            raise ValueError(message)
        self._now = now
        with losing():
            return self._search_for(scopes, vectors, k)

    def _search_for(self, scopes: Sequence[bytes], vectors: Any, k: int) -> list[list[Neighbour]]:
        """Search for a tensor of queries."""
        import torch

        places_of: dict[bytes, list[int]] = {}
        for place, scope in enumerate(scopes):
            places_of.setdefault(scope, []).append(place)
        found: list[list[Neighbour]] = [[] for _ in scopes]
        are_finite = vectors.isfinite().all()  # looked at below: to wait for it here would keep the device waiting
        on_host: NDArray[float32] | None = None
        for scope, places in places_of.items():
            if k <= 0 or not self.has_scope(scope):
                continue
            mine: Any = vectors
            if not self._lies_on_devices(scope):
                on_host = vectors.float().cpu().numpy() if on_host is None else on_host
                mine = on_host[places]
            elif len(places) < len(scopes):
                at = torch.tensor(places, pin_memory=vectors.is_cuda)  # pinned: else the copy waits for the device
                mine = vectors[at.to(vectors.device, non_blocking=True)]
            for place, neighbours in zip(places, self._nearest(scope, mine, k), strict=True):
                found[place] = neighbours
        if not are_finite:
            raise ValueError("queries must be finite; among them are NaN or infinity")
        return found

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[float32] | None]:
        """Return what `vector` does of each, in one step for all that lie on a device."""
        found: list[NDArray[float32] | None] = [None] * len(keys)
        asked: dict[DeviceRows, list[tuple[int, int]]] = {}
        for place, key in enumerate(keys):
            row = self._rows_of(key).get(key)
            slab = None if row is None else self._arena.slab(row)
            if row is not None and isinstance(slab, DeviceSlab):
                asked.setdefault(slab.rows, []).append((place, slab.slot << SHIFT | row & OFFSET))
            elif slab is not None:
                found[place] = self.vector(key)
        for rows, pairs in asked.items():
            for (place, _), vector in zip(pairs, rows.read_some([row for _, row in pairs]), strict=True):
                found[place] = vector
        return found

    def within(self, vector: NDArray[float32], similarity: float, now: float) -> list[Neighbour]:
        found = super().within(vector, similarity, now)
        for device, rows in enumerate(self._devices):
            nears, places = rows.near(vector, similarity)
            for near, place in zip(nears.tolist(), places.tolist(), strict=True):
                slab, at = self._slab_of.get((place >> SHIFT) * len(self._devices) + device), place & OFFSET
                alive = slab is not None and slab.state[at] != FREE and slab.expires[at] > now
                if slab is not None and alive and near >= similarity - 1e-6:
                    found.append(Neighbour(slab.keys[at], min(near, 1.0), slab.texts[at]))
        return sorted(found, key=lambda one: -one.similarity)

    def sweep(self, now: float) -> int:
        self._bring_one()
        return super().sweep(now)

    def settle(self, timeout: float) -> bool:
        """Bring to devices all that is to lie there; say whether that took less than so many seconds."""
        end = monotonic() + timeout
        while self._waiting and monotonic() < end:
            self._bring_one()
        return not self._waiting

    def _make_arena(self) -> Arena:
        self._devices = [
            DeviceRows(self.dimension, name, self.dtype, self._max_device_bytes, self.troubles) for name in self.devices
        ]
        # By number: a slot times the count of devices, plus which device.
        self._slab_of: dict[int, DeviceSlab] = {}
        self._lives = Lives()
        self._shards_of: dict[bytes, list[_Shard]] = {}
        self._patience_of: dict[bytes, int] = {}
        # Scopes that have slabs to bring to a device, and those for whose slabs there was no room.
        self._waiting: dict[bytes, None] = {}
        self._refused: dict[bytes, None] = {}
        return super()._make_arena()

    # What changes which slabs a scope has, and where they lie

    def _append_many(self, rows: Sequence[NewRow], matrix: NDArray[float32]) -> None:
        super()._append_many(rows, matrix)
        scope = rows[0][1]
        start, used = self._tail(scope)
        if used > self.crossover and scope not in self._full and self._arena.slab(start).block == SLAB_ROWS:
            self._waiting[scope] = None  # it came at once, and no block was begun behind the crossover
            self._bring_one()

    def _extend(self, scope: bytes, start: int, used: int) -> tuple[int, int]:
        self._forget_shards(scope)
        self._bring_one()
        is_there = isinstance(self._arena.slab(self._full.get(scope, [start])[0]), DeviceSlab)
        start, used = super()._extend(scope, start, used)
        slab, before = self._arena.slab(start), len(self._full.get(scope, ())) * SLAB_ROWS + used
        if slab.block == SLAB_ROWS and (before >= self.crossover or is_there):
            if not self._bring(scope, slab, used):
                self._refused[scope] = None
            elif not is_there and scope in self._full:
                self._waiting[scope] = None
        return start, used

    def _shrink(self, scope: bytes, start: int, used: int) -> None:
        if not used or used <= SLAB_ROWS // 4:
            self._forget_shards(scope)
        before = len(self._slab_of)
        super()._shrink(scope, start, used)
        if not used and not self.has_scope(scope):
            self._patience_of.pop(scope, None)
        if self._refused and len(self._slab_of) < before:
            self._waiting |= self._refused
            self._refused.clear()

    def _bring_one(self) -> None:
        """Bring one slab to a device, of a scope that waits for it."""
        scope = next(iter(self._waiting), None)
        if scope is None:
            return
        for slab, _, used in super()._blocks(scope) if self.has_scope(scope) else ():
            if slab.block == SLAB_ROWS and not isinstance(slab, DeviceSlab):
                if self._bring(scope, slab, used):
                    self._forget_shards(scope)
                    return
                self._refused[scope] = None
                break
        del self._waiting[scope]

    def _bring(self, scope: bytes, slab: Slab, used: int) -> bool:
        """Let a slab lie on the device with the fewest of its scope, and then of all; False where none has room."""
        count = len(self._devices)
        there: Counter[int] = Counter()
        if count > 1:
            slabs = (one for one, _, _ in super()._blocks(scope))
            there.update(one.number % count for one in slabs if isinstance(one, DeviceSlab))
        for device in sorted(range(count), key=lambda one: (there[one], self._devices[one].used)):
            rows = self._devices[device]
            slot = rows.take()
            if slot is None:
                continue
            self._arena.slabs[slab.index] = DeviceSlab(
                slab, used, rows=rows, slot=slot, number=slot * count + device, lives=self._lives, others=self._slab_of
            )
            slab.give_back()
            return True
        return False

    # Search

    def _host_slabs(self) -> Iterator[Slab]:
        return (slab for slab in super()._host_slabs() if not isinstance(slab, DeviceSlab))

    def _blocks(self, scope: bytes) -> Iterator[tuple[Slab, int, int]]:
        """Yield what lies on the host."""
        if self._lies_on_devices(scope):  # else a search among a million rows would look at a thousand slabs
            return iter(())
        return (one for one in super()._blocks(scope) if not isinstance(one[0], DeviceSlab))

    def _shards(self, scope: bytes) -> list[_Shard]:
        """Return what lies on devices of a scope."""
        if self._arena.slab(self._tail(scope)[0]).block != SLAB_ROWS:
            return []
        shards = self._shards_of.get(scope)
        if shards is None:
            slabs = [slab for slab, _, _ in super()._blocks(scope) if isinstance(slab, DeviceSlab)]
            shards = []
            for device, rows in enumerate(self._devices):
                mine = [slab for slab in slabs if slab.rows is rows] if len(self._devices) > 1 else slabs
                if mine:
                    slots = rows.together([slab.slot for slab in mine], self._patience_of.get(scope, 0))
                    numbers = slots.numbers * len(self._devices) + device
                    shards.append(_Shard(device, rows, mine, slots, numbers))
            if shards:
                self._shards_of[scope] = shards
        return shards

    def _forget_shards(self, scope: bytes) -> None:
        """Look anew, at the next search, at what lies on devices of a scope."""
        shards = self._shards_of.pop(scope, None)
        if shards is not None:
            self._patience_of[scope] = max(shard.slots.patience_left for shard in shards)

    def _lies_on_devices(self, scope: bytes) -> bool:
        """Say whether no row of a scope lies on the host."""
        return sum(len(shard.slabs) for shard in self._shards(scope)) == len(self._full.get(scope, ())) + 1

    def _elsewhere(self, *asked: Any) -> list[tuple[NDArray[float32], NDArray[int64]]]:
        """Search what lies on devices, on all of them at once."""
        scope, queries, k = asked
        shards = self._shards(scope)
        start, used = self._tail(scope)
        begun = []
        for shard in shards:
            here = used if shard.slabs[-1].index == start >> SHIFT else SLAB_ROWS
            rows = (len(shard.slabs) - 1) * SLAB_ROWS + here
            begun.append((shard, here, shard.rows.begin(shard.slots, here, queries, min(k + _MORE_FOUND, rows))))
        found = [self._found(shard, here, queries, k, some) for shard, here, some in begun]
        return [one for one in found if one[0].shape[1]]

    def _found(
        self, shard: _Shard, used: int, queries: Any, k: int, begun: Any
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return the living rows that a shard has found, at most k of each, and the index's numbers of them."""
        import numpy as np

        rows = (len(shard.slabs) - 1) * SLAB_ROWS + used
        near, found = self._numbered(shard, *shard.rows.found(shard.slots, begun))
        if (self._lives.soonest[shard.numbers] > self._now).all():
            near, found = near[:, :k], found[:, :k]
        else:
            near, found = self._living(near, found, min(k, rows))
            if near.size and (near[:, -1] == -np.inf).any() and rows > k + _MORE_FOUND:
                near, found = self._living_alone(shard, used, queries, k)
            kept = int((near != -np.inf).sum(axis=1).max(initial=0))
            near, found = near[:, :kept], found[:, :kept]
        return near, self._lives.indexes[found >> SHIFT] << SHIFT | found & OFFSET

    def _numbered(
        self, shard: _Shard, near: NDArray[float32], found: NDArray[int64]
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Let what a device has found bear the numbers that its slabs have among those of all devices."""
        count = len(self._devices)
        return near, found if count == 1 else ((found >> SHIFT) * count + shard.device) << SHIFT | found & OFFSET

    def _living(self, near: NDArray[float32], found: NDArray[int64], k: int) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return the first k of each that live, the nearest first; what is none stands last, at -inf."""
        import numpy as np

        alive = self._lives.are_alive(found, self._now)
        near = np.where(alive, near, np.float32(-np.inf))
        return nearest_first(near, found, k)

    def _living_alone(
        self, shard: _Shard, used: int, queries: Any, k: int
    ) -> tuple[NDArray[float32], NDArray[int64]]:  # fmt: skip
        import numpy as np

        lives: list[NDArray[bool_]] = [slab.expires > self._now for slab in shard.slabs]
        alive = np.concatenate(lives)[: (len(shard.slabs) - 1) * SLAB_ROWS + used]
        for slab in shard.slabs:
            self._lives.soonest[slab.number] = slab.expires[slab.state != FREE].min(initial=np.inf)
        count = int(alive.sum())
        if not count:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        return self._numbered(shard, *shard.rows.search(shard.slots, used, queries, min(k, count), alive))


def make_index(
    dimension: int, max_bytes: int, device: str | None, gpu_memory: int | None, asked: str = "auto"
) -> FlatIndex:  # fmt: skip
    """Make the index that goes with an embedder's device: on GPUs, with at most so many bytes on each, or on the CPU.

    `asked` is the setting; where it names several devices and the embedder is on one, the index has all of them that
    have not failed. Raises ConfigurationError for one that is not there.
    """
    if device is None or not device.startswith("cuda"):
        return LargeIndex(dimension, max_bytes)
    names = asked.split(",") if "," in asked else [device]
    if len(names) > 1:
        if (mend := missing(names)) is not None:
            raise ConfigurationError(f"device={asked!r}: {mend}")
        names = [name for name in names if _answers(name)]
    if not names:
        return LargeIndex(dimension, max_bytes)
    return DeviceIndex(dimension, max_bytes, device=",".join(names), max_device_bytes=gpu_memory)


def missing(names: Sequence[str]) -> str | None:
    """Return which of some GPUs, "cuda:1", are not there, with the mend; None where all are."""
    import torch

    count = torch.cuda.device_count()
    absent = [name for name in names if int(name.partition(":")[2] or 0) >= count]
    if not absent:
        return None
    return (
        f"{', '.join(absent)} cannot be used, this process sees {count} CUDA devices, counted from cuda:0; name those "
        "that are there (nvidia-smi and CUDA_VISIBLE_DEVICES say which)"
    )


def _answers(name: str) -> bool:
    """Say whether a device still works in this process."""
    import torch

    try:
        torch.ones(1, device=name).sum().item()
    except RuntimeError as error:
        return not is_lost(error)
    return True
