"""Cached generators: stored when they ended well, replayed item by item.

The steps are those of `lookup`; only the load comes in pieces, and is shared while it comes (see `shared`). A cached
generator takes no values by `send`: what it yields could depend on them, and no key would know.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from functools import partial
from threading import RLock
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from semcache.cache import Cache
from semcache.context import current
from semcache.errors import TierError
from semcache.events import Event
from semcache.finding import find, note_hit
from semcache.flight import Flight
from semcache.inherit import made_of, tell_context, tell_found, tell_loaded
from semcache.keep import is_kept, keep, to_entry, usage_of
from semcache.labelling import answer_text
from semcache.lookup import compare, takes_near
from semcache.model import Evidence, Hit, Request, Usage
from semcache.plan import Plan, arun, run
from semcache.wrap.call import Call
from semcache.wrap.shared import PENDING, AsyncGeneratorOrigin, End, GeneratorOrigin, Origin, Replayed, Stream, packed

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class Streamed(Protocol):
    """What is read as a stream: where its readers meet, what of it is kept, and in which form.

    Only readers of one `variant` read along with each other. `tell` makes plain data of an item, where it is none, and
    `replayed` makes of a stored answer the list of its items, and behind them what its generator returned.
    """

    @property
    def cache(self) -> Cache: ...
    @property
    def streams(self) -> dict[Any, Stream]: ...
    @property
    def streams_lock(self) -> RLock: ...
    @property
    def when(self) -> Callable[[Any], Any] | None: ...
    @property
    def usage(self) -> Callable[[Any], Usage | None] | None: ...
    @property
    def variant(self) -> Any: ...
    @property
    def tell(self) -> Callable[[Any], Any] | None: ...
    @property
    def replayed(self) -> Callable[[Any], list[Any]]: ...


OriginType = Callable[[Callable[[], Any], Flight[Any]], Origin]


def replaying(call_of: Callable[[], Call]) -> Callable[..., Generator[Any, None, Any]]:
    """Make the generator function that yields the items of a cached one, and returns what that returned."""

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
        call = call_of()
        stored, opened = call.open(args, kwargs)
        if opened is None:
            *items, returned = stored
            for item in items:
                _refuse_sent((yield item))
            return returned
        request, event = opened
        origin = partial(call.function, *args, **kwargs)
        if request is None or request.mode == "off":
            _bypass(call, event)
            return (yield from origin())
        reading = Reading(call, request, event, origin, GeneratorOrigin, None)
        try:
            while True:
                item = reading.pull()
                if isinstance(item, End):
                    return item.unwrap()
                _refuse_sent((yield item))
        finally:
            reading.close()

    return wrapper


def areplaying(call_of: Callable[[], Call]) -> Callable[..., AsyncGenerator[Any, None]]:
    """Make the async generator function that yields the items of a cached one."""

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        import asyncio

        call = call_of()
        stored, opened = call.open(args, kwargs)
        if opened is None:
            for item in stored[:-1]:
                _refuse_sent((yield item))
            return
        request, event = opened
        origin = partial(call.function, *args, **kwargs)
        if request is None or request.mode == "off":
            _bypass(call, event)
            async with aclosing(origin()) as items:
                async for item in items:
                    _refuse_sent((yield item))
            return
        reading = Reading(call, request, event, origin, AsyncGeneratorOrigin, asyncio.get_running_loop())
        try:
            while True:
                item = await reading.apull()
                if isinstance(item, End):
                    item.unwrap()
                    return
                _refuse_sent((yield item))
        finally:
            await reading.aclose()

    return wrapper


def _items_text(value: Any) -> str | None:
    """Return what a generator's items say, without what it returned."""
    items = value[:-1]
    return "".join(items) if all(isinstance(item, str) for item in items) else answer_text(items)


def _refuse_sent(sent: object) -> None:
    if sent is not None:
        raise TypeError("a cached generator takes no values by send(): call its __wrapped__ instead")


def _bypass(call: Call, event: Event) -> None:
    event.kind, event.reason = "bypass", event.reason or call.cache.chain.why_off
    told = current.get()
    tell_context(call.cache.chain)
    if told is not None and told.sources is not None and call.documents is not None:
        told.sources.doubt()  # what goes by is not held, to be asked for its documents
    call.cache.recorder.lookup(event)


class Reading:
    """One caller's reading of a stream; `loop` is the event loop whose tasks alone can share it, None for threads."""

    def __init__(
        self, call: Streamed, request: Request, event: Event, make: Callable[[], Any], origin: OriginType,
        loop: AbstractEventLoop | None,
    ) -> None:  # fmt: skip
        self._call = call
        self._chain = call.cache.chain
        self._request = request
        self._event = event
        self._make = make
        self._origin = origin
        self._blocks = loop is None
        self._place = 0
        self._led = False
        self._follows = False
        self._found = False
        self._value: list[Any] | None = None
        self._evidence: Evidence | None = None
        # Who may not be given a near match reads no stream that may be one's.
        refreshes = b"refresh" if request.mode == "refresh" else b""
        if request.says is None:
            request.says = _items_text
        self._at = (request.key + refreshes, loop, takes_near(request), call.variant)
        self._stream = self._board()

    def _board(self) -> Stream:
        """Read along with who reads already, or begin."""
        streams = self._call.streams
        with self._call.streams_lock:
            self._drop_forgotten()
            stream = streams.get(self._at)
            if stream is not None and self._joins(stream):
                return stream
            begun = self._begin()
            if stream is None or not stream.is_joinable:
                streams[self._at] = begun
                self._chain.flights.open(begun.flight)
            return begun

    def _joins(self, stream: Stream) -> bool:
        flights = self._chain.flights
        self._follows = flights.follow(stream.flight, blocks=False)
        if self._follows and not stream.join():
            flights.unboard(stream.flight)
            self._follows = False
        return self._follows

    def _begin(self) -> Stream:
        flight: Flight[Any] = Flight(self._request.key, self._request)
        flight.thread = 0  # whoever needs the next item pulls it
        begun = Stream(flight, self._chain.max_value_bytes, blocks=self._blocks, tell=self._call.tell)
        begun.join()
        return begun

    def _drop_forgotten(self) -> None:
        """Drop the streams of loops that were closed in the middle of them: nobody else will."""
        streams = self._call.streams
        for at in [at for at in streams if at[1] is not None and at[1].is_closed()]:
            self._chain.flights.abandon(streams.pop(at).flight)

    def step(self) -> Plan[Any]:
        """Return the next item, or End."""
        patience = self._chain.flight_timeout if self._place == 0 else None
        try:
            item = yield from self._stream.step(self._open, self._place, patience)
        except TimeoutError:  # of our waiting; the origin's errors come as an End
            self._event.fault("flight", TierError("late", f"the leader took over {patience:g} s"))
            self._leave()
            self._stream = self._begin()
            item = yield from self._stream.step(self._open, 0)
        return self._took(item)

    def pull(self) -> Any:
        """Return the next item, or End, as `step` does, to a plain reader."""
        item = self._stream.pull(self._place)
        return run(self.step()) if item is PENDING else self._took(item)

    def alone(self) -> Iterator[Any] | None:
        """Return what is still to be read, where it was found in a tier and nobody else reads it."""
        return self._stream.alone(self._place) if self._found else None

    async def apull(self) -> Any:
        """Return the next item, or End, as `step` does, to a task."""
        item = self._stream.pull(self._place)
        return await arun(self.step()) if item is PENDING else self._took(item)

    def _took(self, item: Any) -> Any:
        self._place += 1
        if isinstance(item, End):
            self._event.failed = item.error is not None
            if self._event.watch is not None and self._led and not self._found:
                self._event.watch.loaded(item.error)
        return item

    def _open(self) -> Plan[Origin]:
        """Find the items in a tier, or start the origin."""
        self._led = True
        if self._request.mode != "refresh":
            found, value, self._evidence = yield from find(self._chain, self._request, self._event, audits=True)
            if found is not None:
                return self._replay(found, value)
            if self._evidence is not None and self._evidence.audited is not None:
                self._stream.instead = partial(self._fall_back, *self._evidence.audited)
        self._stream.born, self._stream.request = self._chain.position(), self._request
        watch = self._event.watch
        if watch is None:
            return self._origin(self._make, self._stream.flight)
        entered = watch.enter()
        try:
            return self._origin(self._make, self._stream.flight)  # which runs in a copy of this context
        finally:
            watch.leave(entered)

    def _replay(self, found: Hit, value: Any) -> Replayed:
        self._found, self._value = True, value
        self._stream.usage, self._stream.entry = self._event.usage, found.entry
        self._stream.near = self._event.similarity, self._event.neighbour, self._event.near
        return Replayed(self._call.replayed(value))

    def _fall_back(self, found: Hit, value: Any, error: Exception) -> Replayed:
        """Read the near match that was to be compared, which would have been served, where its load failed."""
        self._chain.audit_failed()
        self._event.fault("origin", error)
        note_hit(self._chain, self._request, self._event, found.tier, found)
        return self._replay(found, value)

    def _leave(self) -> bool:
        """Read no more; True for the last reader."""
        if self._follows:
            self._chain.flights.unboard(self._stream.flight)
            self._follows = False
        return self._stream.leave()

    def close(self) -> None:
        """End the reading of a plain caller, and close an origin that nobody reads to its end."""
        unread = run(self._finish())
        if unread is not None:
            unread.close()

    async def aclose(self) -> None:
        """End the reading of a task, as `close` does."""
        unread = await arun(self._finish())
        if isinstance(unread, AsyncGeneratorOrigin):
            await unread.close()

    def _finish(self) -> Plan[Origin | None]:
        """End the reading: keep what ended well, record the lookup; returns an origin that nobody reads to its end."""
        stream, event = self._stream, self._event
        is_last = self._leave()
        if not self._found:
            event.shared = not self._led
            if self._led:
                event.took("load", stream.pull_ns)
                event.load_seconds = stream.pull_ns / 1e9
            elif not event.failed:
                event.kind, event.tier = "hit", "flight"
                event.similarity, event.neighbour, event.near = stream.near
            event.usage = stream.measured(lambda items: usage_of(self._call.usage, items, event))
        try:
            if stream.claim():
                yield from self._keep()
        finally:
            if is_last or stream.end is not None:
                self._close()
        unread = stream.origin if is_last and stream.end is None else None
        if unread is not None and not self._found:
            event.reason = "not kept: closed before its end"
        self._tell()
        if event.identify is not None and not event.failed and (event.near is not None or not self._found):
            event.response_id = event.identify(self._value if self._value is not None else stream.items[:2])
        recorder = self._chain.recorder
        recorder.lookup(event, None if recorder.recording is None else self._items())
        return unread

    def _items(self) -> list[Any] | None:
        """Return what the caller was given as it is stored, None where it is not held."""
        if self._value is not None:
            return self._value
        held = self._stream.held()
        return None if held is None else [*held, None]

    def _tell(self) -> None:
        """Tell our pipeline what the items are made of; of what we found ourselves it was told then."""
        request, stream = self._request, self._stream
        if request.sources is None or self._found:
            return
        if stream.entry is not None:
            facets = stream.entry.facets or (stream.request or request).facets
            tell_found(self._chain, request, facets, stream.entry.born)
            return
        documents, born = made_of(self._chain, stream.request or request, None, stream.born)
        items = None if request.documents_of is None else stream.held()
        if request.documents_of is not None and items is None:
            documents = None
        tell_loaded(self._chain, request, items, documents, born, is_told=items is None)

    def _close(self) -> None:
        """Let nobody read along any more."""
        self._chain.flights.abandon(self._stream.flight)
        with self._call.streams_lock:
            if self._call.streams.get(self._at) is self._stream:
                del self._call.streams[self._at]

    def _keep(self) -> Plan[None]:
        """Store the items, and behind them what the generator returned."""
        stream, event = self._stream, self._event
        if stream.fault is not None:
            event.fault("codec", stream.fault)
            return
        if stream.is_too_large or stream.end is None:
            event.reason = "not kept: over max_value"
            return
        began = perf_counter_ns()
        try:
            data = self._chain.codec.join([*map(packed, stream.items), packed(stream.end.value)])
            # Who ends first may be another than who began: it was loaded with what that one said.
            led = stream.request or self._request
            is_asked = any((self._call.when, led.lives.ttl_of, led.documents_of))
            items = self._chain.codec.decode(data)[:-1] if is_asked else None
        except Exception as error:  # noqa: BLE001 - an object may break in any way when it is looked into
            event.fault("codec", error)
            return
        entry = to_entry(led, data, stream.born, event)
        entry.load_seconds = stream.pull_ns / 1e9
        if is_kept(self._chain, led, self._call.when, entry, items, event):
            stream.entry = entry
            yield from keep(self._chain, led, entry, self._evidence, event, exact=True)
            yield from keep(self._chain, led, entry, self._evidence, event, exact=False)
            yield from compare(self._chain, led, entry, self._evidence, None)
        event.took("put", perf_counter_ns() - began)
