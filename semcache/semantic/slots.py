"""Slabs of an index whose vectors lie on a device, each in a slot there; keys, texts and lives stay on the host.

Law: a slab that comes to a device keeps its number, so no row changes its own, and no table of rows is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semcache.semantic.arena import SHIFT, SLAB_ROWS, Slab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import bool_, float32, float64, int64
    from numpy.typing import NDArray

    from semcache.semantic.rows import DeviceRows


_TOGETHER = 64
_PART = SLAB_ROWS * _TOGETHER


class Lives:
    """When the rows of slabs on devices expire, by the slabs' numbers: many rows are looked up in few steps.

    `soonest` says of each slab before when no row does, `indexes` which of the index's slabs it is.
    """

    def __init__(self) -> None:
        import numpy as np

        self.soonest: NDArray[float64] = np.empty(0)
        self.indexes: NDArray[int64] = np.empty(0, np.int64)
        self._parts: list[NDArray[float64]] = []

    def of(self, number: int) -> NDArray[float64]:
        """Return when the rows of a slab expire, float64[1024], to be written to; make room for them first."""
        import numpy as np

        while len(self.soonest) <= number:
            self._parts.append(np.zeros((_TOGETHER, SLAB_ROWS)))
            self.soonest = np.append(self.soonest, np.full(_TOGETHER, np.inf))
            self.indexes = np.append(self.indexes, np.zeros(_TOGETHER, np.int64))
        lives: NDArray[float64] = self._parts[number // _TOGETHER][number % _TOGETHER]
        return lives

    def are_alive(self, rows: NDArray[int64], now: float) -> NDArray[bool_]:
        """Say of each of some rows, by their slabs' numbers, whether its life goes on."""
        import numpy as np

        alive: NDArray[bool_] = np.zeros(rows.shape, dtype=bool)
        parts = rows // _PART
        for part in np.unique(parts).tolist():
            here = parts == part
            alive[here] = self._parts[part].ravel()[rows[here] % _PART] > now
        return alive


class DeviceSlab(Slab):
    """A slab of one block of 1,024 rows, made of one on the host of which `used` rows are in use.

    It leaves `others`, the slabs by number, when it goes.
    """

    __slots__ = ("lives", "number", "others", "rows", "slot")

    def __init__(
        self, source: Slab, used: int, *, rows: DeviceRows, slot: int, number: int, lives: Lives,
        others: dict[int, DeviceSlab],
    ) -> None:  # fmt: skip
        for name in Slab.__slots__:
            setattr(self, name, getattr(source, name))
        self.rows = rows
        self.slot = slot
        self.number = number
        self.lives = lives
        self.others = others
        self.expires = lives.of(number)
        self.expires[:] = source.expires
        lives.indexes[number] = source.index
        lives.soonest[number] = float("inf")
        self._expires_at(*self.expires[:used].tolist())
        if used:
            rows.write(slot << SHIFT, source.vectors[:used])
        self.vectors: Any = _Vectors(rows, slot)
        others[number] = self

    def write(self, at: int, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        super().write(at, key, scope, vector, text, expires)
        self._expires_at(expires)

    def write_many(
        self, at: int, keys: Sequence[bytes], scope: bytes, vectors: NDArray[float32], texts: Sequence[str],
        expires: Sequence[float],
    ) -> None:  # fmt: skip
        super().write_many(at, keys, scope, vectors, texts, expires)
        self._expires_at(*expires)

    def copy(self, at: int, source: Slab, source_at: int, rows: int = 1) -> None:
        super().copy(at, source, source_at, rows)
        self._expires_at(*self.expires[at : at + rows].tolist())

    def give_back(self) -> None:
        self.rows.give(self.slot)
        del self.others[self.number]

    def _expires_at(self, *times: float) -> None:
        soonest = self.lives.soonest
        soonest[self.number] = min(soonest[self.number], *times) if times else soonest[self.number]


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
        if isinstance(vectors, _Some) and vectors.rows is self._rows:  # from the device to the device
            self._rows.move(first, vectors.first, vectors.count)
        elif isinstance(vectors, _Some):  # to another one
            self._rows.write(first, vectors.rows.read(vectors.first, vectors.count))
        else:
            self._rows.write(first, vectors if isinstance(at, slice) else vectors[None])


class _Some:
    """Rows in a row, read when they are looked at: numpy does so where they are put into host memory."""

    def __init__(self, rows: DeviceRows, first: int, count: int) -> None:
        self.rows = rows
        self.first = first
        self.count = count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's own
        vectors = self.rows.read(self.first, self.count)
        return vectors if dtype is None else vectors.astype(dtype)
