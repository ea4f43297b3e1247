"""The change log as one process sees it: where it stands, and what was invalidated when (law 8).

An entry is born at the log's position when its load begins. An invalidation takes the next position and leaves a mark
on a facet value; an entry born before one of its marks is a miss. With an exact store that keeps a log, positions and
marks are the store's, so they hold across restarts; without one they are counted here and end with the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Lock
from typing import Protocol

from semcache.model import Facets

FACETS = ("key", *Facets.__slots__)


class Marks:
    """The latest invalidation of each facet value that entries still alive could have been born before.

    A mark is dropped when `keep_seconds` (the longest life an entry can have here) have passed. Past `most` marks the
    oldest half give way to a floor: all that was born before the floor counts as invalidated, which is safe.
    """

    def __init__(self, clock: Callable[[], float], keep_seconds: float, most: int = 100_000) -> None:
        self._clock = clock
        self._keep_seconds = keep_seconds
        self._most = most
        self._floor = 0
        self._marks: dict[tuple[str, str | bytes], tuple[int, float]] = {}

    def mark(self, facet: str, value: str | bytes, position: int) -> None:
        """Say that all that has this facet value and was born before `position` is invalid."""
        now = self._clock()
        old = self._marks.pop((facet, value), (0, 0.0))[0]
        self._marks[facet, value] = max(position, old), now
        if len(self._marks) > self._most:
            self._shrink(now)

    def _shrink(self, now: float) -> None:
        young = {pair: mark for pair, mark in self._marks.items() if mark[1] > now - self._keep_seconds}
        if len(young) > self._most // 2:
            oldest = list(young)[: len(young) - self._most // 2]
            self._floor = max(self._floor, *(young.pop(pair)[0] for pair in oldest))
        self._marks = young

    def cover(self, pairs: Iterable[tuple[str, str | bytes]], born: int) -> bool:
        """Say whether an entry with these facet values, born at `born`, is invalid."""
        if born < self._floor:
            return True
        marks = self._marks
        return bool(marks) and any(born < marks[pair][0] for pair in pairs if pair in marks)


class Store(Protocol):
    """An exact store that keeps the log."""

    def position(self) -> int:
        """Return the log's latest position."""
        ...

    def mark(self, facet: str, value: str | bytes) -> Future[tuple[int, int]]:
        """Invalidate durably; the future gives the mark's position and the number of entries dropped."""
        ...


class Log:
    """Positions and marks of one cache; `store` is the tier that keeps them, if there is one."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._position = 1
        self._lock = Lock()

    def position(self) -> int:
        """Return the position now; where the store cannot say, the latest one known, which is older and so safe."""
        if self._store is None:
            return self._position
        try:
            position = self._store.position()
        except Exception:  # noqa: BLE001 - a store that fails is never in the caller's way (law 10)
            return self._position
        self._advance(position)
        return position

    def mark(self, facet: str, value: str | bytes) -> Future[tuple[int, int]]:
        """Begin an invalidation; its future gives the position and the number of entries the store dropped."""
        if self._store is not None:
            return self._store.mark(facet, value)
        done: Future[tuple[int, int]] = Future()
        with self._lock:
            self._position += 1
            done.set_result((self._position, 0))
        return done

    def _advance(self, position: int) -> None:
        with self._lock:
            self._position = max(self._position, position)

    def after_fork(self) -> None:
        """Begin with a lock of our own: the old one may be held by a thread that the fork left behind."""
        self._lock = Lock()
