"""What a change log tells of: marks, which are kept here, and rows; plain values and one table of them (law 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple, Self

from semcache.blocks import Block
from semcache.model import Mode

Pair = tuple[str, "str | bytes"]
Mark = tuple[str, "str | bytes", int]


class Between(int):
    """A position of this process alone, between two of the log's: after `position`, before the next that is given.

    What the log could not keep has no position in it, and those of births are the log's own. Where others could see
    it, it is the plain integer, which is older and so safe.
    """

    step: int

    def __new__(cls, position: int) -> Self:
        made = super().__new__(cls, position)
        made.step = getattr(position, "step", 0) + 1
        return made

    def _compare(self, other: object) -> int:
        if not isinstance(other, int):
            raise TypeError(f"a position cannot be compared with {other!r}")
        mine, theirs = (int(self), self.step), (int(other), getattr(other, "step", 0))
        return (mine > theirs) - (mine < theirs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self._compare(other) == 0

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: int) -> bool:
        return self._compare(other) < 0

    def __le__(self, other: int) -> bool:
        return self._compare(other) <= 0

    def __gt__(self, other: int) -> bool:
        return self._compare(other) > 0

    def __ge__(self, other: int) -> bool:
        return self._compare(other) >= 0

    __hash__ = int.__hash__


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
        self._lock = Lock()
        self._marks: dict[Pair, tuple[int, float]] = {}
        # Of the marks and the floor: who is not older is covered by none, and need not say what facets he has.
        self.newest = 0
        # Told of each mark, by whoever hears of it first; it returns at once.
        self.watch: Callable[[Mark], None] | None = None
        # Of the invalidations that no store could keep; none of what is older can be taken from a store unseen.
        self.unkept = 0

    def mark(self, facet: str, value: str | bytes, position: int) -> None:
        """Say that all that has this facet value and was born before `position` is invalid."""
        now = self._clock()
        with self._lock:
            # In place: whoever looks meanwhile, without the lock, is to find one or the other.
            old = self._marks.get((facet, value), (0, 0.0))[0]
            self._marks[facet, value] = max(position, old), now
            self.newest = max(self.newest, position)
            if isinstance(position, Between):
                self.unkept = max(self.unkept, position)
            if len(self._marks) > self._most:
                self._shrink(now)
        watch = self.watch  # it may end in this moment
        if watch is not None:
            watch((facet, value, position))

    def _shrink(self, now: float) -> None:
        young = {pair: mark for pair, mark in self._marks.items() if mark[1] > now - self._keep_seconds}
        if len(young) > self._most // 2:
            oldest = sorted(young, key=lambda pair: young[pair][1])[: len(young) - self._most // 2]
            self._floor = max(self._floor, *(young.pop(pair)[0] for pair in oldest))
        self._marks = young

    def cover(self, pairs: Iterable[Pair], born: int) -> bool:
        """Say whether an entry with these facet values, born at `born`, is invalid."""
        if born >= self.newest:
            return False
        if born < self._floor:
            return True
        marks = self._marks
        return any(born < marks[pair][0] for pair in pairs if pair in marks)

    @property
    def floor(self) -> int:
        """The position before which all counts as invalidated; 0 where no mark had to give way."""
        return self._floor

    def since(self, position: int) -> list[Mark]:
        """Return the marks newer than a position."""
        with self._lock:
            return [(*pair, mark[0]) for pair, mark in self._marks.items() if mark[0] > position]

    def __len__(self) -> int:
        return len(self._marks)

    def after_fork(self) -> None:
        """Begin with a lock of our own."""
        self._lock = Lock()


class Row(NamedTuple):
    """A row that another process has added; `vector` is float32[d] or None, `remaining` in seconds."""

    key: bytes
    scope: bytes
    embedder: str
    text: str
    vector: Any
    remaining: float


@dataclass(slots=True)
class Changes:
    """What came into the log up to `position`, in the log's order.

    `mode` is the switch of all replicas, None where it was never set. Where `is_whole` is False some records were lost
    before they could be read: `marks` are then all there are, and the rows must be read anew. With `is_reset` the log
    is another one than before, so that what was learned from the old one is worth nothing. `log` names the log: what
    was kept beside one of another name is not to be believed; empty where that is not known. `blocks` are what was
    reported as wrong.
    """

    position: int
    marks: list[Mark] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    mode: Mode | None = None
    is_whole: bool = True
    is_reset: bool = False
    log: str = field(default="", compare=False)
    blocks: list[Block] = field(default_factory=list)
