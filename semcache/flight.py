"""Flights: one load for all who wait for the same key (law 6).

Who boards a key first leads: it loads, then lands the flight with what it got. Who boards later follows, and waits
for the landing. What the traps of the design's section 9 need stands here:

- a flight's future is marked as running, so that no follower's cancellation can cancel it for the others;
- a leader that is cancelled abandons its flight: its followers board anew, and the first of them leads;
- who would wait for itself loads alone: a call made inside the load of its own key, on whatever thread or task that
  inherited the context; two loads that would wait for each other; and a call that blocks the thread its leader runs on.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import ContextVar, Token
from threading import Lock, get_ident
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# The flights whose loads this call runs inside of, outermost first.
_inside: ContextVar[tuple[Flight[Any], ...]] = ContextVar("semcache_inside", default=())


class Abandoned(Exception):  # noqa: N818 - a message between flights, no error anybody sees
    """The leader was cancelled: board anew."""


class Flight(Generic[T]):
    """One load in progress."""

    __slots__ = ("followers", "future", "key", "thread", "waits_for")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.thread = get_ident()
        self.followers = 0
        self.waits_for: set[Flight[T]] = set()
        self.future: Future[T] | None = None  # made for the first follower: most flights have none


class Flights(Generic[T]):
    """The flights of one cache."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight[T]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._flights)

    def board(self, key: bytes, *, blocks: bool) -> tuple[Flight[T] | None, bool]:
        """Return the key's flight, and whether the caller leads it; None where it must load alone.

        `blocks` says that the caller's waiting stops its whole thread, and with it any task that runs there.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = Flight(key)
                return flight, True
            if blocks and flight.thread == get_ident():
                return None, False
            inside = _inside.get()
            if inside:
                if _reaches(flight, inside):
                    return None, False
                for outer in inside:
                    outer.waits_for.add(flight)
            flight.followers += 1
            if flight.future is None:
                flight.future = Future()
                flight.future.set_running_or_notify_cancel()
            return flight, False

    def unboard(self, flight: Flight[T]) -> None:
        """Say that a follower waits no more."""
        with self._lock:
            flight.followers -= 1
            for outer in _inside.get():
                outer.waits_for.discard(flight)

    def land(self, flight: Flight[T], result: T) -> None:
        """Hand the result to all who wait, and let the next caller look for itself."""
        if self._remove(flight):
            flight.future.set_result(result)  # type: ignore[union-attr]

    def abandon(self, flight: Flight[T]) -> None:
        """Give the flight up; who waits boards anew."""
        if self._remove(flight):
            flight.future.set_exception(Abandoned())  # type: ignore[union-attr]

    def _remove(self, flight: Flight[T]) -> bool:
        """Close the flight to boarders; say whether anyone has boarded."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            return flight.future is not None

    def forget(self) -> None:
        """Drop all flights: after a fork, their leaders live in another process."""
        self._flights = {}
        self._lock = Lock()


def enter(flight: Flight[T]) -> Token[Any]:
    """Mark this context, and what it starts, as the flight's load; returns the token for `leave`."""
    return _inside.set((*_inside.get(), flight))


def is_inside(flight: Flight[T]) -> bool:
    """Say whether this call runs inside the flight's load."""
    return any(one is flight for one in _inside.get())


def leave(token: Token[Any]) -> None:
    """End what `enter` began."""
    _inside.reset(token)


def _reaches(flight: Flight[T], inside: tuple[Flight[Any], ...]) -> bool:
    """Say whether waiting for `flight` would, over whatever its load waits for, wait for one of our own."""
    seen: set[int] = set()
    waiting: list[Flight[Any]] = [flight]
    while waiting:
        one = waiting.pop()
        if any(one is own for own in inside):
            return True
        if id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.waits_for)
    return False
