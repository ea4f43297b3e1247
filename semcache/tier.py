"""The protocol of a tier, and the circuit breaker that stands before each.

A tier answers `get` with a Hit or a Miss and takes what was loaded with `put`. Its methods are plans: they yield what
must be waited for, so one class serves both colours. A tier raises freely; the lookup turns what it raises into a miss
and an event (law 10). `put` and `remove` hand their work to the tier's own thread where it has one, and return at once.

A tier may have `get_many` beside `get`: a plan that takes requests and returns a Hit, a Miss or an error for each, in
their order. Without it many are asked together, by a plan for each. It may also have `glance`: a plan that takes keys
and returns a Glance, None where it can only be asked for each, and `settle`, which makes of a request, and of what
stands for its key, what `get` would return.

A new tier is one file, and one line in the contract suite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

from semcache.model import Entry, Evidence, Hit, Miss, Request
from semcache.plan import Plan


class Clock(Protocol):
    """Two clocks: `monotonic` seconds for lives inside a process, `time` seconds since 1970 for what is shared.

    `sleep` and `asleep` let seconds pass, for a thread and for a task.
    """

    def monotonic(self) -> float: ...
    def time(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...
    async def asleep(self, seconds: float, /) -> None: ...


class SystemClock:
    """The clocks of this machine."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    time = staticmethod(time.time)

    @staticmethod
    async def asleep(seconds: float) -> None:
        """Let a task wait."""
        import asyncio

        await asyncio.sleep(seconds)


class Tier(Protocol):
    """One level of the cache. `exact` tiers hold values by key; a near one holds vectors and asks them for values."""

    name: str
    exact: bool

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look for an answer. Raises whatever went wrong."""
        ...

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:
        """Take an answer, for at most the smaller of the tier's ttl and `entry.life` (law 5)."""
        ...

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:
        """Drop all entries with that facet value ("key" takes the key's bytes); how many, where that is known."""
        ...

    def stats(self) -> Mapping[str, int | float]:
        """Entries, bytes, evictions and whatever else this tier counts."""
        ...

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is kept; False if the time was up first."""
        ...

    def close(self) -> None:
        """Flush, stop threads, close files. A closed tier answers with TierError("closed")."""
        ...


class AlsoFailed(Exception):  # noqa: N818 - it says of an error that it is another's too
    """An error that one trip had for several: the breaker is told of the first, for one trip is one failure."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Glance(NamedTuple):
    """What a tier has for many keys: the encoded answers that are fresh and tell no more than themselves, else None.

    `seconds` is what loading these took, `stands` what is there for each, as `settle` takes it.
    """

    values: list[bytes | None]
    seconds: float
    stands: Sequence[Any]


class Breaker:
    """Opens after `failures` failures in a row; then lets one caller through every `pause` seconds to try again.

    `pause` doubles from 0.1 s up to 5 s while the trials fail.
    """

    __slots__ = ("_clock", "_failures", "_lock", "_pause", "_retry_at", "_threshold")

    FIRST_PAUSE = 0.1
    LONGEST_PAUSE = 5.0

    def __init__(self, clock: Callable[[], float], failures: int = 5) -> None:
        self._clock = clock
        self._threshold = failures
        self._failures = 0
        self._pause = self.FIRST_PAUSE
        self._retry_at = 0.0
        self._lock = Lock()

    @property
    def is_open(self) -> bool:
        return self._failures >= self._threshold

    def allows(self) -> bool:
        """Say whether this caller may use the tier; where it is open, one caller a pause may."""
        if self._failures < self._threshold:
            return True
        with self._lock:
            now = self._clock()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._pause
            return True

    def succeeded(self) -> None:
        if self._failures:
            with self._lock:
                self._failures = 0
                self._pause = self.FIRST_PAUSE

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures > self._threshold:
                self._pause = min(self._pause * 2, self.LONGEST_PAUSE)
            if self._failures >= self._threshold:
                self._retry_at = self._clock() + self._pause
