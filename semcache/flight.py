"""Flights: one load for all who wait for the same key (law 6).

Who boards a key first leads: it loads, then lands the flight with what it got. Who boards later follows, and waits
for the landing. What the traps of the design's section 9 need stands here:

- a flight's future is marked as running, so that no follower's cancellation can cancel it for the others;
- a leader that is cancelled abandons its flight: its followers board anew, and the first of them leads;
- nobody boards a flight that began before an invalidation of what it brings: what it brings may be old; where its
  leader waits for the load of a near text (`joining`), that is what it brings;
- who would wait for itself loads alone: a call made inside the load of its own key, on whatever thread or task that
  inherited the context; two loads that would wait for each other; and a call that blocks the thread its leader runs on.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, Token
from threading import RLock, get_ident
from typing import Any, Generic, TypeVar

from semcache.model import Request
from semcache.plan import running_future

T = TypeVar("T")

# The flights whose loads this call runs inside of, outermost first.
_inside: ContextVar[tuple[Flight[Any], ...]] = ContextVar("semcache_inside", default=())


class Abandoned(Exception):  # noqa: N818 - a message between flights, no error anybody sees
    """The leader was cancelled: board anew."""


class Flight(Generic[T]):
    """One load in progress; `request` is what it answers, so that an invalidation finds it."""

    __slots__ = ("brings", "future", "is_closed", "key", "landing", "lingers", "request", "thread", "waits_for")

    def __init__(self, key: bytes, request: Request | None = None) -> None:
        self.key = key
        self.request = request
        self.brings: Request | None = None  # of the near text whose load its leader waits for
        self.is_closed = False
        self.landing: T | None = None
        self.lingers = False
        self.thread = get_ident()
        self.waits_for: list[Flight[Any]] = []
        self.future: Future[T] | None = None  # made for the first follower: most flights have none


class Flights(Generic[T]):
    """The flights of one cache."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight[T]] = {}
        self._open: set[Flight[T]] = set()
        self._blocked: dict[int, Flight[T]] = {}
        # The collector may end an abandoned load, and its flight, while this thread holds the lock.
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._open)

    def board(self, key: bytes, request: Request | None = None, *, blocks: bool) -> tuple[Flight[T] | None, bool]:
        """Return the key's flight, and whether the caller leads it; None where it must load alone.

        `blocks` says that the caller's waiting stops its whole thread, and with it any task that runs there.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None or flight.is_closed:
                flight = self._flights[key] = Flight(key, request)
                self._open.add(flight)
                return flight, True
            if not self.follow(flight, blocks=blocks):
                return None, False
            flight.future = flight.future or running_future()
            return flight, False

    def follow(self, flight: Flight[T], *, blocks: bool, leading: Flight[T] | None = None) -> bool:
        """Note that this call waits for a flight, until `unboard`; False where it would wait for itself.

        With `leading`, a flight that this call leads, it waits for that of a near text, which lingers: False also where
        that has left, or brings what was invalidated.
        """
        inside, thread = _waiting(leading), get_ident()
        with self._lock:
            if leading is not None and (flight.is_closed or flight not in self._open):
                return False
            if self._reaches(flight, inside, thread if blocks else 0):
                return False
            for one in inside:
                one.waits_for.append(flight)
            if leading is not None:
                leading.brings = flight.request
                if flight.future is None:
                    flight.future = running_future()
                    if flight.landing is not None:
                        flight.future.set_result(flight.landing)
            if blocks:
                self._blocked[thread] = flight
            return True

    def unboard(self, flight: Flight[T], leading: Flight[T] | None = None) -> None:
        """Say that a follower waits no more."""
        with self._lock:
            self._blocked.pop(get_ident(), None)
            for one in _waiting(leading):
                if flight in one.waits_for:
                    one.waits_for.remove(flight)

    def _reaches(self, flight: Flight[Any], inside: tuple[Flight[Any], ...], thread: int) -> bool:
        """Say whether a flight, over whatever its load or its thread waits for, waits for one of us or our thread."""
        seen: set[Flight[Any]] = set()
        waiting = [flight]
        while waiting:
            one = waiting.pop()
            if one in inside or (thread and one.thread == thread):
                return True
            if one not in seen:
                seen.add(one)
                waiting += one.waits_for
                if one.thread in self._blocked:
                    waiting.append(self._blocked[one.thread])
        return False

    def flies(self, key: bytes) -> bool:
        """Say whether somebody leads a flight of this key that can still be boarded."""
        flight = self._flights.get(key)
        return flight is not None and not flight.is_closed

    def open(self, flight: Flight[T]) -> None:
        """Let invalidations close a flight that is boarded elsewhere, as a stream is, until it is abandoned."""
        with self._lock:
            self._open.add(flight)

    def linger(self, flight: Flight[T]) -> None:
        """Let calls of near texts wait for a flight, also when it has landed, until `leave`."""
        flight.lingers = True

    def leave(self, flight: Flight[T]) -> None:
        """Let nobody wait any more for a flight that lingered."""
        with self._lock:
            self._open.discard(flight)

    def close(self, facet: str, value: str | bytes) -> None:
        """Let nobody board what an invalidation means: who comes after it is given what was loaded after it (law 8).

        Who has boarded already came before it, and is given what it waits for.
        """
        with self._lock:
            for flight in list(self._open):
                brought = (flight.request, flight.brings)
                if any(asked is not None and _may_bring(asked, facet, value) for asked in brought):
                    flight.is_closed = True

    def land(self, flight: Flight[T], result: T) -> None:
        """Hand the result to all who wait, and let the next caller look for itself."""
        flight.landing = result
        if self._remove(flight):
            flight.future.set_result(result)  # type: ignore[union-attr]

    def abandon(self, flight: Flight[T]) -> None:
        """Give the flight up; who waits boards anew."""
        flight.lingers = False
        if self._remove(flight):
            flight.future.set_exception(Abandoned())  # type: ignore[union-attr]

    def _remove(self, flight: Flight[T]) -> bool:
        """Close the flight to boarders; say whether anyone has boarded and waits still."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            if not flight.lingers:
                self._open.discard(flight)
            return flight.future is not None and not flight.future.done()

    def forget(self) -> None:
        """Drop all flights: after a fork, their leaders live in another process."""
        self._flights = {}
        self._open = set()
        self._blocked = {}
        self._lock = RLock()


def _waiting(leading: Flight[Any] | None) -> tuple[Flight[Any], ...]:
    """Return the flights that wait with this call: those whose loads it runs inside of, and the one it leads."""
    inside = _inside.get()
    return inside if leading is None else (*inside, leading)


def _may_bring(asked: Request, facet: str, value: str | bytes) -> bool:
    """Say whether an invalidation means what a request may be answered with.

    Which documents an answer holds, it tells itself; which it is made of, its pipeline, when it is kept.
    """
    if facet == "key":
        return asked.key == value
    return asked.facets.has(facet, value) or (
        facet == "document" and (asked.documents_of is not None or asked.sources is not None)
    )


def enter(flight: Flight[T]) -> Token[Any]:
    """Mark this context, and what it starts, as the flight's load; returns the token for `leave`."""
    return _inside.set((*_inside.get(), flight))


def leave(token: Token[Any]) -> None:
    """End what `enter` began."""
    with suppress(ValueError):  # the collector ends a load that its closed loop forgot in a context of its own
        _inside.reset(token)
