"""What the tests of the wrappers share: a cache that tells who waits, and threads that end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

import pytest
from waiting import PATIENCE

import semcache
from semcache.flight import Flights
from semcache.testing import ManualClock


class WatchedFlights(Flights):
    """Flights that tell when somebody has begun to follow, so that no test sleeps until it has."""

    def __init__(self):
        super().__init__()
        self.followed = 0
        self._arrivals = Semaphore(0)

    def follow(self, flight, **how):
        follows = super().follow(flight, **how)
        if follows:
            self.followed += 1
            self._arrivals.release()
        return follows

    def await_followers(self, count):
        """Block until so many more have begun to follow."""
        for _ in range(count):
            assert self._arrivals.acquire(timeout=PATIENCE)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def cache(clock):
    """A cache of memory alone; after the test nothing is in flight any more."""
    with semcache.Cache("test", clock=clock) as made:
        made.chain.flights = WatchedFlights()
        yield made
        assert len(made.chain.flights) == 0
        assert not made.chain.flights._flights
        assert not made.chain.flights._blocked
        # A call that waits for itself is freed by its timeout, and would pass for one that does not.
        assert "flight: late" not in made.stats().faults


@pytest.fixture
def flights(cache):
    return cache.chain.flights


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as threads:
        yield threads
