"""The pinned entries of one namespace in a Redis, as one process knows them.

A pinned entry stands at a key of its own, beside the place where a load would put its answer: so no load can take its
place, and a read is one GET still, of the place that this mirror names. Its index row stands in the hash `pinned`, for
a record in the log would be trimmed.

Laws: nothing pinned has an expiry, so their number and bytes are bounded; what this process pins it knows at once, what
others pin it hears from the log; where the mirror is wrong, one read is a miss, and mends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from threading import Lock
from typing import Any, NamedTuple

from semcache.errors import DecodeError, TierError
from semcache.marks import Marks, Pair
from semcache.model import Facets
from semcache.stores.redis_keys import unpack

MAX_PINNED = 10_000
MAX_PINNED_BYTES = 256 * 2**20
# Before the key of a pinned entry among what waits to be written, where it stands beside what a load may put.
WAITING = b"pinned "
_LENGTH = 10


class Pin(NamedTuple):
    """A pinned entry: when it was born, its facets, and its bytes."""

    born: int
    facets: Facets
    size: int


class Pins:
    """The pinned entries by key; callers and the follower share it."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lock = Lock()
        self._pins: dict[bytes, Pin] = {}
        self._bytes = 0
        # Pinned here, and not heard of in the log so far.
        self._unheard: set[bytes] = set()

    def __contains__(self, key: bytes) -> bool:
        return key in self._pins

    def __len__(self) -> int:
        return len(self._pins)

    def add(self, key: bytes, pin: Pin) -> None:
        """Know one more. Raises TierError("full") where that would be too many, or too large."""
        with self._lock:
            standing = self._pins.get(key)
            others = len(self._pins) - (standing is not None)
            used = self._bytes - (standing.size if standing else 0)
            if others >= MAX_PINNED or used + pin.size > MAX_PINNED_BYTES:
                raise TierError(
                    "full",
                    f"{others} entries of {used} bytes are pinned, of at most {MAX_PINNED} and {MAX_PINNED_BYTES}: "
                    "invalidate some",
                )
            self._set(key, pin)
            self._unheard.add(key)

    def hear(self, record: list[Any]) -> None:
        """Know what was pinned, as its record says."""
        key, pin = pin_of(record, self._namespace)
        with self._lock:
            self._unheard.discard(key)
            standing = self._pins.get(key)
            if standing is None or standing.born <= pin.born:
                self._set(key, pin)

    def begin(self, stored: Iterable[bytes]) -> None:
        """Know what stands in the hash, and of what was known only what may be on its way there."""
        told = dict(pin_of(record, self._namespace) for record in records(stored))
        with self._lock:
            told |= {key: self._pins[key] for key in self._unheard if key in self._pins}
            self._pins, self._bytes = told, sum(pin.size for pin in told.values())

    def meant(self, pairs: list[Pair], position: int | None = None) -> list[bytes]:
        """Return the keys of those that an invalidation at a position means; without one, of all."""
        return [
            key
            for key, pin in list(self._pins.items())
            if (position is None or pin.born < position)
            and any(key == value if facet == "key" else pin.facets.has(facet, value) for facet, value in pairs)
        ]

    def covered(self, marks: Marks) -> list[bytes]:
        """Return the keys of those that marks cover."""
        return [key for key, pin in list(self._pins.items()) if marks.cover(pin.facets.pairs(key), pin.born)]

    def forget(self, keys: Iterable[bytes]) -> None:
        """Know some no more."""
        with self._lock:
            for key in keys:
                self._unheard.discard(key)
                gone = self._pins.pop(key, None)
                self._bytes -= gone.size if gone else 0

    def after_fork(self) -> None:
        """Go on, with a lock of our own."""
        self._lock = Lock()

    def _set(self, key: bytes, pin: Pin) -> None:
        standing = self._pins.get(key)
        self._bytes += pin.size - (standing.size if standing else 0)
        self._pins[key] = pin


def records(stored: Iterable[bytes]) -> Iterable[list[Any]]:
    """Return the records in the hash `pinned`, those that are ours."""
    for data in stored:
        try:
            record = unpack(data)
        except DecodeError:
            continue
        if len(record) == _LENGTH and record[0] == "p":
            yield record


def record_of(
    key: bytes, pin: Pin, row: tuple[bytes | None, str, str | None], vector: bytes | None, writer: bytes
) -> list[Any]:
    """Return what the hash and the log say of a pinned entry; `row` is its scope, embedder and text, for the index."""
    facets = pin.facets
    about = [facets.function, facets.version, facets.tenant, facets.model, facets.tags, facets.documents]
    return ["p", key, *row, vector, pin.size, about, writer, pin.born]


def row_of(record: list[Any]) -> list[list[Any]]:
    """Return a pinned entry's row as the log has the others', without an end; none where it is not for the index."""
    _, key, scope, embedder, text, vector, _, about, writer, born = record
    if scope is None or text is None:
        return []
    return [["a", key, scope, embedder, text, vector, inf, about, writer, born]]


def pin_of(record: list[Any], namespace: str) -> tuple[bytes, Pin]:
    """Return the key and the entry that a record tells of."""
    _, key, _, _, _, _, size, about, _, born = record
    function, version, tenant, model, tags, documents = about
    return key, Pin(born, Facets(namespace, function, version, tenant, model, tuple(tags), tuple(documents)), size)
