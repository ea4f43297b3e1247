"""Slabs of an index whose vectors lie on a device, each in a slot there; keys, texts and lives stay on the host.

Law: a slab that comes to a device keeps its number, so no row changes its own, and no table of rows is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semcache.semantic.arena import SHIFT, Slab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import float32, float64
    from numpy.typing import NDArray

    from semcache.semantic.rows import DeviceRows


class DeviceSlab(Slab):
    """A slab of one block of 1,024 rows, made of one on the host of which `used` rows are in use.

    `expires` and `soonest` are its places among the lives of many slabs, `others` the slabs by number that it leaves
    when it goes.
    """

    __slots__ = ("number", "others", "rows", "slot", "soonest")

    def __init__(
        self, source: Slab, used: int, *, rows: DeviceRows, slot: int, number: int, expires: NDArray[float64],
        soonest: NDArray[float64], others: dict[int, DeviceSlab],
    ) -> None:  # fmt: skip
        for name in Slab.__slots__:
            setattr(self, name, getattr(source, name))
        self.rows = rows
        self.slot = slot
        self.number = number
        self.others = others
        self.soonest = soonest
        """No row's life is over before: float64[1], one of an array, so that many are compared at once."""
        expires[:] = source.expires
        self.expires = expires
        soonest[0] = expires[:used].min(initial=float("inf"))
        if used:
            rows.write(slot << SHIFT, source.vectors[:used])
        self.vectors: Any = _Vectors(rows, slot)
        others[number] = self

    def write(self, at: int, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        super().write(at, key, scope, vector, text, expires)
        self.soonest[0] = min(self.soonest[0], expires)

    def write_many(
        self, at: int, keys: Sequence[bytes], scope: bytes, vectors: NDArray[float32], texts: Sequence[str],
        expires: Sequence[float],
    ) -> None:  # fmt: skip
        super().write_many(at, keys, scope, vectors, texts, expires)
        self.soonest[0] = min(self.soonest[0], *expires)

    def copy(self, at: int, source: Slab, source_at: int, rows: int = 1) -> None:
        super().copy(at, source, source_at, rows)
        self.soonest[0] = min(self.soonest[0], self.expires[at : at + rows].min())

    def give_back(self) -> None:
        self.rows.give(self.slot)
        del self.others[self.number]


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
