"""What the batcher puts into the worker's queue, and what a worker is given to work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future

    from numpy import float32
    from numpy.typing import NDArray

    from semcache.model import Neighbour
    from semcache.semantic.embedder import TextEmbedder

    Vector: TypeAlias = NDArray[float32]

NewRow: TypeAlias = "tuple[bytes, bytes, Vector, str, float]"
"""A row for an index: key, scope, unit vector, text, and when its life is over."""

Row: TypeAlias = "tuple[bytes, bytes, str, Vector | None, float]"
"""A row to restore: key, scope, text, its vector (of whatever precision) or None, and when its life is over."""


class VectorIndex(Protocol):
    """Vectors by key, found by nearness within a scope; one thread owns it, any may ask `has_scope`."""

    evictions: int

    @property
    def nbytes(self) -> int: ...

    @property
    def scopes(self) -> int: ...

    def add(self, key: bytes, scope: bytes, vector: NDArray[float32], text: str, expires: float) -> None:
        """Keep a unit vector, float32[d], until `expires`; a row of that key, in whatever scope, is replaced.

        Raises ValueError for a vector of another shape, or not of unit length (NaN among them).
        """
        ...

    def add_many(self, rows: Sequence[NewRow]) -> list[Exception]:
        """Add rows, as `add` does one after another, in a fraction of its time; return the errors of those refused."""
        ...

    def remove(self, key: bytes) -> bool:
        """Drop a row; False if there is none."""
        ...

    def search(self, scopes: Sequence[bytes], vectors: NDArray[float32], k: int, now: float) -> list[list[Neighbour]]:
        """Return for each scope, with its row of float32[n, d], the k nearest rows in it, nearest first.

        An index that has a `device` takes vectors there too, as a tensor of it.
        """
        ...

    def vector(self, key: bytes) -> NDArray[float32] | None:
        """Return a copy of a row's vector, float32[d]; None where there is no such row."""
        ...

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[float32] | None]:
        """Return what `vector` does of each, in one step for all that lie on a device."""
        ...

    def within(self, vector: NDArray[float32], similarity: float, now: float) -> list[Neighbour]:
        """Return the live rows of all scopes at least so similar to a unit vector, float32[d], nearest first."""
        ...

    def sweep(self, now: float) -> int:
        """Drop some of the rows whose life is over, in little time; how many."""
        ...

    def has_scope(self, scope: bytes) -> bool:
        """Say whether a scope has rows; any thread may ask."""
        ...

    def clear(self) -> None: ...

    def close(self) -> None:
        """End what works aside for it; no search waits for that."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...


@dataclass(slots=True, frozen=True)
class Settings:
    """What a worker works with; `clock` tells the seconds that lives are counted in."""

    embedder: TextEmbedder
    make_index: Callable[[int], VectorIndex]
    clock: Callable[[], float]
    max_batch: int
    remembered: int
    max_pending: int
    restore: Callable[[], Iterable[Row]] | None
    on_fault: Callable[[str, BaseException], None]


@dataclass(slots=True)
class Found:
    """A text's unit vector, float32[d], and its nearest rows, nearest first.

    What its batch took is in nanoseconds, `embedded` and `searched` are readings of `perf_counter_ns` at their ends.
    Where vectors stay on the device nobody waits between the two: the search's time has what was left of the other's.
    """

    vector: Vector
    neighbours: list[Neighbour]
    embed_ns: int = 0
    search_ns: int = 0
    embedded: int = 0
    searched: int = 0


@dataclass(slots=True)
class Search:
    """Wanted: the nearest rows of a scope for each text, with their vectors or without.

    The future of one is given what was found, or raises; of many, a list with what was found or an error for each. Of
    a call in slices, all but the last end their steps: who asked is told of a slice before the next is begun.
    """

    scopes: Sequence[bytes]
    texts: Sequence[str]
    k: int
    future: Future[Any]
    with_vectors: bool = False
    is_many: bool = False
    ends_step: bool = False


@dataclass(slots=True)
class Within:
    """Wanted: all rows that are at least so similar, whatever their scope."""

    text: str
    similarity: float
    future: Future[list[Neighbour]]


@dataclass(slots=True)
class Embed:
    """Wanted: a vector; `as_it_is` also of a text whose signs the embedder does not know all."""

    text: str
    future: Future[Vector]
    as_it_is: bool = False


@dataclass(slots=True)
class Add:
    """A row for the index."""

    key: bytes
    scope: bytes
    text: str
    vector: Vector | None
    expires: float
    done: Callable[[bytes, Vector], None] | None


@dataclass(slots=True)
class Remove:
    """Rows to drop."""

    keys: list[bytes]


@dataclass(slots=True)
class Take:
    """Rows that came from elsewhere, to be added to those that are there."""

    rows: list[Row]


@dataclass(slots=True)
class Restore:
    """All rows are to be dropped, and read anew."""


@dataclass(slots=True)
class Clear:
    """All rows are to be dropped."""


@dataclass(slots=True)
class Sync:
    """Wanted: to know that all before it is done."""

    future: Future[None]


Item: TypeAlias = Search | Within | Embed | Add | Remove | Take | Restore | Clear | Sync
