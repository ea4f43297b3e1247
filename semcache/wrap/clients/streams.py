"""The streams that a cached client gives: the SDK's own type, whose chunks come from a reading, or from what is stored.

A reading begins with the response's head, so that what the SDK raises when it asks (429, a lost connection) is raised
where the SDK raises it, by `create`, and to followers too. Closing the SDK's stream ends the reading: what nobody reads
on is closed at its origin and not kept.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import httpx  # of the client's: this module is imported when there is one

from semcache.events import Event
from semcache.model import Request
from semcache.plan import arun, run
from semcache.wrap.clients.asked import Asked, Head, Tap
from semcache.wrap.shared import AsyncGeneratorOrigin, End, GeneratorOrigin
from semcache.wrap.stream import Reading

# What a response says of the bytes that came, which are not those that ours holds.
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")

# So many chunks of a stream are read before somebody asks for them: what came together is read at one go.
_AHEAD = 4


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """What the response of a stream holds: the chunks as they would come over the wire; with it the reading ends.

    The SDK's stream is given the chunks themselves. Who reads the response, as older SDKs' helpers do, is given events.
    """

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield _event(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield _event(chunk)

    def close(self) -> None:
        self._chunks.close()

    async def aclose(self) -> None:
        await self._chunks.aclose()


def _event(chunk: Any) -> bytes:
    """Return a chunk as a server-sent event, with a name where it has a type."""
    told = chunk.to_dict(mode="json", warnings=False)
    name = f"event: {told['type']}\n" if "type" in told else ""
    return f"{name}data: {json.dumps(told)}\n\n".encode()


def stream(asked: Asked, request: Request, event: Event, stream_type: Callable[..., Any], path: str) -> Any:
    """Return the SDK's stream of a plain client. Raises what asking the origin raises."""
    chunks = _read(asked, request, event)
    return _streamed(asked, next(chunks), chunks, stream_type, path)


async def astream(asked: Asked, request: Request, event: Event, stream_type: Callable[..., Any], path: str) -> Any:
    """Return the SDK's stream of an async client. Raises what asking the origin raises."""
    chunks = _aread(asked, request, event)
    return _streamed(asked, await anext(chunks), chunks, stream_type, path)


def replay(asked: Asked, stream_type: Callable[..., Any], path: str) -> Any:
    """Return the SDK's stream of a plain client, of what is stored."""
    head, *chunks = asked.found
    return _streamed(asked, head, _paced(asked, chunks), stream_type, path)


def areplay(asked: Asked, stream_type: Callable[..., Any], path: str) -> Any:
    """Return the SDK's stream of an async client, of what is stored."""
    head, *chunks = asked.found
    return _streamed(asked, head, _apaced(asked, chunks), stream_type, path)


def _paced(asked: Asked, chunks: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield stored chunks, at once or at the rate that was asked for."""
    rate = asked.endpoint.settings.replay_rate
    for place, chunk in enumerate(chunks):
        if rate is not None and place:
            asked.cache.clock.sleep(1 / rate)
        yield asked.chunk(chunk)


async def _apaced(asked: Asked, chunks: Iterable[Any]) -> AsyncGenerator[Any, None]:
    rate = asked.endpoint.settings.replay_rate
    for place, chunk in enumerate(chunks):
        if rate is not None and place:
            await asked.cache.clock.asleep(1 / rate)
        yield asked.chunk(chunk)


def _read(asked: Asked, request: Request, event: Event) -> Generator[Any, None, None]:
    def begin() -> Generator[Any, None, None]:
        sent = asked.send()
        tap = Tap(sent)
        try:
            yield Head(sent.response, with_usage=asked.variant)
            for chunk in sent:
                yield chunk, tap.text
        finally:
            sent.close()

    reading = Reading(asked, request, event, begin, GeneratorOrigin, None)
    try:
        item = run(reading.step())
        while not isinstance(item, End):
            yield asked.chunk(item)
            rest = reading.alone()
            if rest is not None:
                yield from _paced(asked, rest)
                return
            item = reading.pull()
        item.unwrap()
    finally:
        reading.close()


async def _aread(asked: Asked, request: Request, event: Event) -> AsyncGenerator[Any, None]:
    import asyncio

    async def begin() -> AsyncGenerator[Any, None]:
        sent = await asked.send()
        tap = Tap(sent)
        try:
            yield Head(sent.response, with_usage=asked.variant)
            async for chunk in sent:
                yield chunk, tap.text
        finally:
            await sent.close()

    origin = partial(AsyncGeneratorOrigin, ahead=_AHEAD)
    reading = Reading(asked, request, event, begin, origin, asyncio.get_running_loop())
    try:
        item = await arun(reading.step())
        while not isinstance(item, End):
            yield asked.chunk(item)
            rest = reading.alone()
            if rest is not None:
                async for chunk in _apaced(asked, rest):
                    yield chunk
                return
            item = await reading.apull()
        item.unwrap()
    finally:
        await reading.aclose()


def _streamed(asked: Asked, head: Any, chunks: Any, stream_type: Callable[..., Any], path: str) -> Any:
    """Make the SDK's own stream, over a response of ours that closes the reading and not the connection of others."""
    if isinstance(head, Head):
        status, headers, sent = head.response.status_code, head.response.headers.copy(), head.response.request
        for name in _OF_THE_WIRE:
            headers.pop(name, None)
    else:
        base = str(asked.client.base_url).rstrip("/")
        status, headers, sent = 200, head["head"], httpx.Request("POST", base + path)
    response = httpx.Response(status, headers=headers, stream=_Body(chunks), request=sent)
    made = stream_type(cast_to=asked.chunk_type, response=response, client=asked.client)
    made._iterator = chunks  # noqa: SLF001 - the SDK's stream reads nothing else
    return made
