"""What the batcher puts into the worker's queue, and what a worker is given to work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from numpy import float32
    from numpy.typing import NDArray

    from semcache.model import Neighbour
    from semcache.semantic.embedder import TextEmbedder
    from semcache.semantic.index import VectorIndex

    Vector: TypeAlias = NDArray[float32]

Row: TypeAlias = "tuple[bytes, bytes, str, Vector | None, float]"
"""A row to restore: key, scope, text, its vector (of whatever precision) or None, and when its life is over."""


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
    """A text's unit vector, float32[d], and its nearest rows, nearest first; what its batch took, in nanoseconds."""

    vector: Vector
    neighbours: list[Neighbour]
    embed_ns: int = 0
    search_ns: int = 0


@dataclass(slots=True)
class Search:
    """Wanted: the nearest rows of a scope, with their vectors or without."""

    scope: bytes
    text: str
    k: int
    future: Future[Found]
    with_vectors: bool = False


@dataclass(slots=True)
class Within:
    """Wanted: all rows that are at least so similar, whatever their scope."""

    text: str
    similarity: float
    future: Future[list[Neighbour]]


@dataclass(slots=True)
class Embed:
    """Wanted: a vector."""

    text: str
    future: Future[Vector]


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
