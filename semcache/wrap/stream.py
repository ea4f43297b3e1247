"""Cached generators: stored when they ended well, replayed item by item.

The steps are those of `lookup`; only the load comes in pieces, and is shared while it comes (see `shared`). A cached
generator takes no values by `send`: what it yields could depend on them, and no key would know.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from time import perf_counter_ns
from typing import Any

from semcache.codec import pack
from semcache.errors import EncodeError
from semcache.events import Event
from semcache.flight import Flight
from semcache.lookup import find, is_kept, keep, to_entry
from semcache.model import Evidence, Request
from semcache.plan import Plan, arun, run
from semcache.wrap.call import Call
from semcache.wrap.shared import AsyncGeneratorOrigin, End, GeneratorOrigin, Origin, Replayed, Stream

OriginType = type[GeneratorOrigin] | type[AsyncGeneratorOrigin]


def replay(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, None, Any]:
    """Yield the items of a cached generator, and return what it returned."""
    stored, opened = call.open(args, kwargs)
    if opened is None:
        *items, returned = stored
        for item in items:
            _refuse_sent((yield item))
        return returned
    request, event = opened
    if request is None or request.mode == "off":
        _bypass(call, event)
        return (yield from call.function(*args, **kwargs))
    reading = Reading(call, request, event, partial(call.function, *args, **kwargs), GeneratorOrigin, 0)
    try:
        while True:
            item = run(reading.step())
            if isinstance(item, End):
                return item.value
            _refuse_sent((yield item))
    finally:
        unread = run(reading.finish())
        if unread is not None:
            unread.close()


async def areplay(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """Yield the items of a cached async generator."""
    import asyncio

    stored, opened = call.open(args, kwargs)
    if opened is None:
        for item in stored[:-1]:
            _refuse_sent((yield item))
        return
    request, event = opened
    if request is None or request.mode == "off":
        _bypass(call, event)
        async for item in call.function(*args, **kwargs):
            yield item
        return
    loop = id(asyncio.get_running_loop())
    reading = Reading(call, request, event, partial(call.function, *args, **kwargs), AsyncGeneratorOrigin, loop)
    try:
        while True:
            item = await arun(reading.step())
            if isinstance(item, End):
                return
            _refuse_sent((yield item))
    finally:
        unread = await arun(reading.finish())
        if isinstance(unread, AsyncGeneratorOrigin):
            await unread.close()


def _refuse_sent(sent: object) -> None:
    if sent is not None:
        raise TypeError("a cached generator takes no values by send(): call its __wrapped__ instead")


def _bypass(call: Call, event: Event) -> None:
    event.kind, event.reason = "bypass", event.reason or "mode: off"
    call.cache.recorder.lookup(event)


class Reading:
    """One caller's reading of a stream; `loop` is the event loop whose tasks alone can share it, 0 for threads."""

    def __init__(
        self, call: Call, request: Request, event: Event, make: Callable[[], Any], origin: OriginType, loop: int
    ) -> None:
        self._call = call
        self._chain = call.cache.chain
        self._request = request
        self._event = event
        self._make = make
        self._origin = origin
        self._place = 0
        self._led = False
        self._found = False
        self._evidence: Evidence | None = None
        self._at = (request.key + (b"refresh" if request.mode == "refresh" else b""), loop)
        self._stream = self._board()

    def _board(self) -> Stream:
        """Read along with who reads already, or begin."""
        streams = self._call.streams
        with self._call.streams_lock:
            stream = streams.get(self._at)
            if stream is not None and stream.join():
                return stream
            begun = Stream(Flight(self._request.key), self._chain.max_value_bytes)
            begun.join()
            if stream is None:
                streams[self._at] = begun
            return begun

    def step(self) -> Plan[Any]:
        """Return the next item, or End."""
        item = yield from self._stream.step(self._open, self._place)
        self._place += 1
        return item

    def _open(self) -> Plan[Origin]:
        """Find the items in a tier, or start the origin."""
        self._led = True
        if self._request.mode != "refresh":
            found, value, self._evidence = yield from find(self._chain, self._request, self._event)
            if found is not None:
                self._found = True
                self._stream.is_storable = False
                return Replayed(value)
        self._stream.born = self._chain.position()
        return self._origin(self._make, self._stream.flight)

    def finish(self) -> Plan[Origin | None]:
        """End the reading: keep what ended well, record the lookup; returns an origin that nobody reads to its end."""
        stream, event = self._stream, self._event
        is_last = stream.leave()
        if not self._found:
            event.failed = stream.error is not None
            event.shared = not self._led
            if self._led:
                event.took("load", stream.pull_ns)
                event.load_seconds = stream.pull_ns / 1e9
            elif stream.error is None:
                event.kind, event.tier = "hit", "flight"
        if stream.claim():
            yield from self._keep()
        if is_last or stream.is_over:
            with self._call.streams_lock:
                if self._call.streams.get(self._at) is stream:
                    del self._call.streams[self._at]
        unread = stream.origin if is_last and not stream.is_over else None
        if unread is not None and not self._found:
            event.reason = "not kept: closed before its end"
        self._chain.recorder.lookup(event)
        return unread

    def _keep(self) -> Plan[None]:
        """Store the items, and behind them what the generator returned."""
        stream, event = self._stream, self._event
        began = perf_counter_ns()
        try:
            data = self._chain.codec.join([*stream.items, pack(stream.end.value if stream.end else None)])
        except EncodeError as error:
            event.fault("codec", error)
            return
        entry = to_entry(self._request, data, stream.born, event)
        entry.load_seconds = stream.pull_ns / 1e9
        items = self._chain.codec.decode(data)[:-1] if self._call.when is not None else None
        if is_kept(self._chain, self._call.when, entry, items, event):
            yield from keep(self._chain, self._request, entry, self._evidence, event, exact=True)
            yield from keep(self._chain, self._request, entry, self._evidence, event, exact=False)
        event.took("put", perf_counter_ns() - began)
