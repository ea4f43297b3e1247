"""A clock that moves only when it is told to, so that no test sleeps."""

from __future__ import annotations


class ManualClock:
    """Both clocks of `semcache.tier.Clock`, in seconds, standing still until `advance`."""

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self._time = start
        self._monotonic = 0.0

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._time

    def sleep(self, seconds: float) -> None:
        """Let time pass, and wait for nothing."""
        self.advance(seconds)

    async def asleep(self, seconds: float) -> None:
        """Let time pass, and wait for nothing."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._monotonic += seconds
        self._time += seconds

    def set_time(self, time: float) -> None:
        """Set the wall clock alone, forward or back, as an administrator or NTP does."""
        self._time = time
