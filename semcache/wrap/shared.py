"""A stream of items that several callers read at once: one origin, pulled by whoever needs the next item.

Laws (law 6 and the design's section 9):
- each item is pulled from the origin once; who asks for one that is there is given a copy of its own;
- there is no leader whose leaving could cut the others: when one stops reading, another pulls; when the last one
  stops before the end, the origin is closed and nothing is kept;
- an error in mid-stream, of whatever kind, goes to all who reach it: what it cut off never passes for a whole stream;
- the origin runs where its first caller ran it: a generator in that caller's context, an async generator in one task
  of its own, from beginning to end, so that no reader's cancellation reaches it.
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future
from threading import RLock, get_ident
from time import perf_counter_ns
from typing import Any, Protocol

from semcache.codec import pack, unpack
from semcache.flight import Flight, enter
from semcache.ledger import Near
from semcache.model import Entry, Request, Usage
from semcache.plan import Call, Outcome, Plan, Wait, running_future


class End(Outcome[Any]):
    """How a stream ended: with what its generator returned, or with its error."""

    __slots__ = ()


# What stands for an item that is not there yet: None is an item.
PENDING = object()
# So many items are handed over before any is pulled ahead.
_AT_ONCE = 2


class Raw:
    """An item, or a returned value, that has no encoding."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Origin(Protocol):
    """Where items come from: `pull` gives the next one, or End, directly or as an awaitable."""

    def pull(self) -> Any:
        """Return the next item, or End; an error of the origin's is an End too."""
        ...

    def take(self) -> Any:
        """Return the next item, or End, where nothing is to be awaited for it; else PENDING."""
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
        except BaseException as error:  # noqa: BLE001 - whatever ended the generator, it has no next item
            return End(error=error)

    take = pull

    def close(self) -> None:
        """Close the generator."""
        self._context.run(self._generator.close)


class AsyncGeneratorOrigin:
    """An async generator, driven by one task, an item at a time, as readers ask; or up to `ahead` before they do."""

    def __init__(self, make: Callable[[], AsyncGenerator[Any, None]], flight: Flight[Any], *, ahead: int = 0) -> None:
        import asyncio

        self._asked = asyncio.Event()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting = False
        self._ahead = ahead
        context = contextvars.copy_context()
        context.run(enter, flight)
        self._task = asyncio.get_running_loop().create_task(self._drive(make), context=context)
        self._task.add_done_callback(self._ended)

    async def _drive(self, make: Callable[[], AsyncGenerator[Any, None]]) -> None:
        import asyncio

        items, pulled = make(), 0
        item: Any = None
        try:
            while not isinstance(item, End):
                if self._answers.qsize() >= self._ahead:
                    await self._asked.wait()
                self._asked.clear()
                item = await _next(items)
                self._answers.put_nowait(item)
                if pulled < _AT_ONCE and self._ahead:  # the first who waits for it shall not wait for more
                    pulled += 1
                    await asyncio.sleep(0)
        finally:
            await items.aclose()

    def _ended(self, _task: object) -> None:
        """Leave nobody waiting, whoever has cancelled the task; behind a regular end nobody reads this."""
        import asyncio

        self._answers.put_nowait(End(error=asyncio.CancelledError()))

    async def pull(self) -> Any:
        """Return the next item, or End; a reader cancelled while it waits leaves the item for the next."""
        if not self._waiting:
            self._waiting = True
            self._asked.set()
        item = await self._answers.get()
        self._waiting = False
        return item

    def take(self) -> Any:
        """Return an item that was pulled ahead."""
        if self._waiting or self._answers.empty():
            return PENDING
        self._asked.set()
        return self._answers.get_nowait()

    async def close(self) -> None:
        """Cancel the task, which closes the generator, and wait for it."""
        import asyncio

        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and self._task.exception() is not None:
            raise self._task.exception()  # type: ignore[misc]


async def _next(items: AsyncGenerator[Any, None]) -> Any:
    try:
        return await anext(items)
    except StopAsyncIteration:
        return End()
    except BaseException as error:  # noqa: BLE001 - whatever ended the generator, it has no next item
        return End(error=error)


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

    take = pull

    def rest(self) -> Iterator[Any]:
        """Return the items that were not pulled."""
        return self._items

    def close(self) -> None:
        """Nothing is open."""


class Stream:
    """The items pulled so far, and who may pull the next.

    `max_bytes` bounds what is held: a stream that grows past it, or that cannot be encoded, can no longer be joined or
    stored, and a sole reader's items are let go. `blocks` says that its readers are plain calls, not tasks. `tell`
    makes plain data of an item, where it is none: who pulls an item is given it itself, the others what was told.
    """

    def __init__(
        self, flight: Flight[Any], max_bytes: int, *, blocks: bool, tell: Callable[[Any], Any] | None = None
    ) -> None:
        self.flight = flight
        self.origin: Origin | None = None
        self.items: list[str | bytes | Raw] = []
        self.end: End | None = None
        self.fault: Exception | None = None
        self.born = 0
        self.request: Request | None = None  # of who began to load it
        self.pull_ns = 0
        self.usage: Usage | None = None
        # What was found or kept, and what the pipeline in which it is loaded may make it of.
        self.entry: Entry | None = None
        self.near: tuple[float | None, bytes | None, Near | None] = None, None, None
        # Gives what is read instead where the origin fails before its first item.
        self.instead: Callable[[Exception], Origin] | None = None
        self._is_measured = False
        self._measuring = RLock()
        self._max_bytes = max_bytes
        self._blocks = blocks
        self._tell = tell
        self._bytes = 0
        self._let_go = 0
        self._readers = 0
        self._is_claimed = False
        self._puller = 0
        self._is_pulling = False
        self._pulled: Future[None] | None = None  # what those wait for who need what is being pulled
        self._lock = RLock()  # the collector may close one reader while this thread reads for another

    @property
    def is_too_large(self) -> bool:
        return self._bytes > self._max_bytes

    @property
    def is_kept(self) -> bool:
        """Whether all that was pulled is held, to be shared and stored."""
        return self.fault is None and not self.is_too_large and not isinstance(self.origin, Replayed)

    @property
    def is_joinable(self) -> bool:
        """Whether who comes now may be given all of it."""
        has_failed = self.end is not None and self.end.error is not None
        return self.is_kept and not has_failed and self._readers >= 0 and not self.flight.is_closed

    def step(self, open_: Callable[[], Plan[Origin]], place: int, timeout: float | None = None) -> Plan[Any]:
        """Return the item at a place, or End; who finds nobody pulling pulls. `open_` gives the origin.

        Raises TimeoutError after waiting `timeout` seconds for somebody else's pull.
        """
        while True:
            with self._lock:
                there = self._at(place)
                if there is None and not self._is_pulling:
                    self._is_pulling, self._puller = True, get_ident()
                    break
                pulled = self._awaited() if there is None else None
            if pulled is None:
                return _copy_of(there)
            yield Wait(pulled, timeout)
        try:
            if self.origin is None:
                self.origin = yield from open_()
            began = perf_counter_ns()
            item = yield Call(self.origin.pull)
            self.pull_ns += perf_counter_ns() - began
            instead, self.instead = self.instead, None
            if instead is not None and isinstance(item, End) and isinstance(item.error, Exception):
                self.origin = instead(item.error)
                item = self.origin.pull()
            self._take(item)
            return item
        finally:
            self._end_pull()

    def pull(self, place: int) -> Any:
        """Return the item at a place, or End, to a reader who can pull it at once; else PENDING: `step` is needed.

        That is where it has been pulled, another pulls, or it is to be awaited. Most streams have one reader, who is
        spared the plan.
        """
        with self._lock:
            if self.origin is None or self._is_pulling or self._at(place) is not None:
                return PENDING
            self._is_pulling, self._puller = True, get_ident()
        try:
            began = perf_counter_ns()
            item = self.origin.take()
            self.pull_ns += perf_counter_ns() - began
            if item is not PENDING:
                self._take(item)
            return item
        finally:
            self._end_pull()

    def _awaited(self) -> Future[None]:
        """Return what ends with the pull that is on its way; the lock is held."""
        if self._waits_for_itself():
            raise ValueError("generator already executing")
        if self._pulled is None:
            self._pulled = running_future()
        return self._pulled

    def _end_pull(self) -> None:
        with self._lock:
            pulled, self._pulled, self._is_pulling = self._pulled, None, False
        if pulled is not None:
            pulled.set_result(None)

    def _at(self, place: int) -> str | bytes | Raw | End | None:
        place -= self._let_go
        return self.items[place] if place < len(self.items) else self.end

    def _take(self, item: Any) -> None:
        """Keep what was pulled for the other readers and the store."""
        with self._lock:
            if isinstance(item, End):
                self.end = item if item.error is not None else End(self._packed(item.value))
            elif self._readers == 1 and not self.is_kept:
                self._let_go += len(self.items) + 1
                self.items.clear()
            else:
                self.items.append(self._packed(item, self._tell))

    def _packed(self, value: Any, tell: Callable[[Any], Any] | None = None) -> str | bytes | Raw:
        try:
            told = value if tell is None else tell(value)
            data = told if told.__class__ is str else pack(told)  # a text is copied by nobody
        except Exception as error:  # noqa: BLE001 - an object may break in any way when it is looked into
            self.fault = self.fault or error
            return Raw(value)
        self._bytes += len(data)
        return data

    def _waits_for_itself(self) -> bool:
        """Say whether this thread, in the middle of a pull, would wait for that pull."""
        return self._blocks and self._is_pulling and self._puller == get_ident()

    def alone(self, place: int) -> Iterator[Any] | None:
        """Return what is still to be read of a stored answer, for a sole reader to take by himself: nobody can join.

        None where others read it too, or have read on before this one.
        """
        with self._lock:
            is_sole = self._readers == 1 and isinstance(self.origin, Replayed)
            return self.origin.rest() if is_sole and self._at(place) is None else None  # type: ignore[union-attr]

    def join(self) -> bool:
        """Read along from the beginning; False where that is not possible, or would wait for itself."""
        with self._lock:
            if not self.is_joinable or self._waits_for_itself():
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

    def measured(self, measure: Callable[[list[Any]], Usage | None]) -> Usage | None:
        """Return what the stream's load has cost: `measure` is asked once, with all items, if they are held."""
        with self._measuring:
            items = None if self._is_measured else self.held()
            if items is not None:
                self._is_measured = True
                self.usage = measure(items)
            return self.usage

    def held(self) -> list[Any] | None:
        """Return a copy of all items; None where they are not held, or did not come to a good end."""
        is_whole = self.is_kept and self.end is not None and self.end.error is None
        return [_copy_of(item) for item in self.items] if is_whole else None

    def claim(self) -> bool:
        """Say, to one reader only, that the stream was loaded to a good end, and can be stored."""
        with self._lock:
            is_good = self.end is not None and self.end.error is None and not isinstance(self.origin, Replayed)
            claims = is_good and not self._is_claimed
            self._is_claimed = self._is_claimed or claims
            return claims


def packed(kept: Any) -> Any:
    """Return an item that is held as it is stored."""
    return pack(kept) if isinstance(kept, str) else kept


def _copy_of(kept: Any) -> Any:
    """Return a reader's own copy; what has no encoding is copied in the ordinary way, or, at worst, shared."""
    if isinstance(kept, End):
        return kept if kept.error is not None else End(_copy_of(kept.value))
    if isinstance(kept, str):
        return kept
    if isinstance(kept, bytes):
        return unpack(kept)
    try:
        return copy.deepcopy(kept.value)
    except Exception:  # noqa: BLE001 - objects may refuse in any way; sharing is all that is left
        return kept.value
