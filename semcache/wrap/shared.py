"""A stream of items that several callers read at once: one origin, pulled by whoever needs the next item.

Laws (law 6 and the design's section 9):
- each item is pulled from the origin once; who asks for one that is there is given a copy of its own;
- there is no leader whose leaving could cut the others: when one stops reading, another pulls; when the last one
  stops before the end, the origin is closed and nothing is kept;
- an error in mid-stream goes to all who reach it;
- the origin runs where its first caller ran it: a generator in that caller's context, an async generator in one task
  of its own, from beginning to end, so that no reader's cancellation reaches it.
"""

from __future__ import annotations

import contextvars
import copy
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from threading import Lock, get_ident
from time import perf_counter_ns
from typing import Any, Protocol

from semcache.codec import pack, unpack
from semcache.errors import EncodeError
from semcache.flight import Flight, enter, is_inside
from semcache.plan import Load, Outcome, Plan, Wait


class End:
    """The end of a stream, with what its generator returned."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value


class Origin(Protocol):
    """Where items come from: `pull` gives the next one, or End, directly or as an awaitable."""

    def pull(self) -> Any:
        """Return the next item or End."""
        ...

    def close(self) -> Any:
        """Stop before the end."""
        ...


class GeneratorOrigin:
    """A generator, resumed by any thread, one at a time, always in the context it was made in."""

    def __init__(self, make: Callable[[], Generator[Any, None, Any]], flight: Flight[Any]) -> None:
        self._context = contextvars.copy_context()
        self._context.run(enter, flight)
        self._generator = self._context.run(make)

    def pull(self) -> Any:
        """Return the next item, or End."""
        try:
            return self._context.run(next, self._generator)
        except StopIteration as stop:
            return End(stop.value)

    def close(self) -> None:
        """Close the generator."""
        self._context.run(self._generator.close)


class AsyncGeneratorOrigin:
    """An async generator, driven by one task, an item at a time, as readers ask."""

    def __init__(self, make: Callable[[], AsyncGenerator[Any, None]], flight: Flight[Any]) -> None:
        import asyncio

        self._asked = asyncio.Event()
        self._answers: asyncio.Queue[Outcome[Any]] = asyncio.Queue()
        context = contextvars.copy_context()
        context.run(enter, flight)
        self._waiting = False
        self._task = asyncio.get_running_loop().create_task(self._drive(make), context=context)

    async def _drive(self, make: Callable[[], AsyncGenerator[Any, None]]) -> None:
        items = make()
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    item = End()
                except Exception as error:  # noqa: BLE001 - the origin's error is its readers'
                    self._answers.put_nowait(Outcome(error=error))
                    return
                self._answers.put_nowait(Outcome(item))
                if isinstance(item, End):
                    return
        finally:
            await items.aclose()

    async def pull(self) -> Any:
        """Return the next item, or End; a reader cancelled while it waits leaves the item for the next."""
        if not self._waiting:
            self._waiting = True
            self._asked.set()
        outcome = await self._answers.get()
        self._waiting = False
        return outcome.unwrap()

    async def close(self) -> None:
        """Cancel the task, which closes the generator, and wait for it."""
        import asyncio

        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and self._task.exception() is not None:
            raise self._task.exception()  # type: ignore[misc]


class Replayed:
    """Stored items, and what their generator returned, as an origin."""

    def __init__(self, stored: list[Any]) -> None:
        *items, self._returned = stored
        self._items = iter(items)

    def pull(self) -> Any:
        """Return the next item, or End."""
        for item in self._items:
            return item
        return End(self._returned)

    def close(self) -> None:
        """Nothing is open."""


class Stream:
    """The items pulled so far, and who may pull the next.

    `max_bytes` bounds what is held: a stream that grows past it can no longer be joined or stored, and a sole reader's
    items are let go.
    """

    def __init__(self, flight: Flight[Any], max_bytes: int) -> None:
        self.flight = flight
        self.origin: Origin | None = None
        self.items: list[bytes] = []
        self.end: End | None = None
        self.error: Exception | None = None
        self.is_storable = True
        self.born = 0
        self.pull_ns = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._let_go = 0
        self._raw: list[Any] = []
        self._readers = 0
        self._puller = 0
        self._pulled: Future[None] | None = None
        self._lock = Lock()

    @property
    def is_over(self) -> bool:
        """Whether the origin has ended or failed."""
        return self.end is not None or self.error is not None

    def step(self, open_: Callable[[], Plan[Origin]], place: int) -> Plan[Any]:
        """Return the item at a place, or End; who finds nobody pulling pulls. `open_` gives the origin."""
        while True:
            with self._lock:
                if place < self._let_go + len(self.items) + len(self._raw):
                    return self._copy_of(place - self._let_go)
                if self.error is not None:
                    raise self.error
                if self.end is not None:
                    return self.end
                pulled = self._pulled
                if pulled is None:
                    mine = self._pulled = Future()
                    mine.set_running_or_notify_cancel()
                    self._puller = get_ident()
            if pulled is not None:
                yield Wait(pulled)
                continue
            began = perf_counter_ns()
            try:
                if self.origin is None:
                    self.origin = yield from open_()
                outcome: Outcome[Any] = yield Load(self.origin.pull)
                return self._take(outcome)
            finally:
                with self._lock:
                    self.pull_ns += perf_counter_ns() - began
                    self._pulled = None
                mine.set_result(None)

    def _take(self, outcome: Outcome[Any]) -> Any:
        """Keep what was pulled for the other readers, and return it, or raise the origin's error."""
        with self._lock:
            if outcome.error is not None:
                self.error = outcome.error
                raise outcome.error
            item = outcome.value
            if isinstance(item, End):
                self.end = item
                return item
            try:
                data = b"" if self._raw else pack(item)
            except EncodeError:
                self.is_storable = False
                data = b""
            if data:
                self.items.append(data)
                self._bytes += len(data)
                self._bound()
            else:
                self._raw.append(item)
            return item

    def _bound(self) -> None:
        if self._bytes > self._max_bytes:
            self.is_storable = False
            if self._readers == 1:
                self._let_go += len(self.items)
                self.items.clear()

    def _copy_of(self, place: int) -> Any:
        """Return a reader's own copy of an item; one that cannot be encoded is copied in the ordinary way."""
        if place < len(self.items):
            return unpack(self.items[place])
        item = self._raw[place - len(self.items)]
        try:
            return copy.deepcopy(item)
        except Exception:  # noqa: BLE001 - objects may refuse in any way; sharing is all that is left
            return item

    def join(self) -> bool:
        """Read along from the beginning; False where that is not possible, or would wait for itself."""
        with self._lock:
            closed = self._readers < 0 or self._let_go
            waits_for_itself = self._pulled is not None and self._puller == get_ident() and not _in_task()
            if closed or waits_for_itself or is_inside(self.flight) or not self.is_storable:
                return False
            self._readers += 1
            return True

    def leave(self) -> bool:
        """Read no more; True for the last reader, who closes the origin."""
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._readers = -1
                return True
            return False

    def claim(self) -> bool:
        """Say, to one reader only, that the stream ended well and is to be stored."""
        with self._lock:
            claimed = self.end is not None and self.is_storable
            self.is_storable = self.is_storable and not claimed
            return claimed


def _in_task() -> bool:
    """Say whether this is a task: it can wait for another of its thread, as a plain call cannot."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False
