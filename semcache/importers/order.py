"""Writing what was found in the order of its times, with no more than a window of it in memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import TextIO

from semcache.importers.found import Found, Skipped
from semcache.traffic import Recorded, line_of

# So many requests wait for earlier ones: logs are written when calls end, or in batches, and not quite in order.
WINDOW = 4096
_BAD_SHOWN = 100


@dataclass(slots=True)
class Imported:
    """What came of a log: the first bad lines are in `bad`, all are counted. `late` had to take the time of another."""

    written: int = 0
    bad_lines: int = 0
    late: int = 0
    untimed: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[int, str]] = field(default_factory=list)


class _Order:
    """Writes requests by their times, as seconds since the first."""

    def __init__(self, file: TextIO, told: Imported) -> None:
        self._file = file
        self._told = told
        self._waiting: list[tuple[float, int, Recorded]] = []
        self._number = count()
        self._first: float | None = None
        self._latest = 0.0

    def add(self, one: Recorded) -> None:
        heapq.heappush(self._waiting, (one.ts, next(self._number), one))
        if len(self._waiting) > WINDOW:
            self._write()

    def end(self) -> None:
        while self._waiting:
            self._write()

    def _write(self) -> None:
        at, _, one = heapq.heappop(self._waiting)
        if self._first is None:
            self._first = at
        since = round(at - self._first, 6)
        self._told.late += since < self._latest
        self._latest = one.ts = max(since, self._latest)
        self._file.write(line_of(one) + "\n")
        self._told.written += 1


def write_ordered(
    found: Iterable[Found], file: TextIO, *, rate: float, redact: Callable[[Recorded], Recorded] | None = None
) -> Imported:
    """Write what was found, and tell what came of it; what has no time comes at `rate` a second behind the last."""
    told = Imported()
    order, step, previous = _Order(file, told), 1 / rate, None
    for one in found:
        if isinstance(one, Skipped):
            _count(told, one)
            continue
        if one.ts != one.ts:
            told.untimed += 1
            one.ts = 0.0 if previous is None else previous + step
        previous = one.ts
        order.add(one if redact is None else redact(one))
    order.end()
    return told


def _count(told: Imported, skipped: Skipped) -> None:
    if not skipped.is_bad:
        told.passed[skipped.reason] = told.passed.get(skipped.reason, 0) + 1
        return
    told.bad_lines += 1
    if len(told.bad) < _BAD_SHOWN:
        told.bad.append((skipped.line, skipped.reason))
