"""The proxy: an ASGI application that answers what is cached, and hands on all else.

Laws: what the servers behind say arrives unchanged, errors too; a request that is too large, too slow or no HTTP of
ours is a 4xx and harms nobody; nothing of ours fails a call (law 10).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from semcache.cache import Cache
from semcache.keys import canonical
from semcache.sidecar.asked import Asked, Found
from semcache.sidecar.credentials import Caller, Credentials, UnknownCallerError
from semcache.sidecar.embeddings import EmbeddingsEndpoint
from semcache.sidecar.endpoint import Endpoint
from semcache.sidecar.headers import Headers, Sorter, cache_headers, given, sent
from semcache.sidecar.health import Health
from semcache.sidecar.refusals import ABSENT, BAD, BUSY, FORBIDDEN, LARGE, UNKNOWN, RefusedError
from semcache.sidecar.settings import Server
from semcache.sidecar.upstream import AnsweredError, BrokenOffError, Opened, Sent, Upstream
from semcache.sidecar.wishes import UnclearWishError, wishes_of
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.openai import ChatCompletions
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.responses import Responses

logger = logging.getLogger("semcache.sidecar")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_JSON: Headers = [(b"content-type", b"application/json")]
_OURS = "/v1/"
# So many ways to ask are remembered, of so many bytes each.
_MOST_KNOWN, _LONGEST_KNOWN = 1024, 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may be: bytes of its body, and how many calls there are at once."""

    body_bytes: int
    requests: int


class Proxy:
    """The application; `longest` is the life, in seconds, that no caller's wish makes longer."""

    def __init__(
        self, cache: Cache, upstream: Upstream, credentials: Credentials, options: ClientOptions, limits: Limits,
        health: Health, longest: float,
    ) -> None:  # fmt: skip
        self._upstream = upstream
        self._credentials = credentials
        self._limits = limits
        self._health = health
        self._sorter = Sorter()
        self._where: dict[tuple[Any, ...], bytes] = {}
        self._running = 0
        self._endpoints: Mapping[str, Endpoint | EmbeddingsEndpoint] = {
            "/v1/chat/completions": Endpoint(cache, ChatCompletions(), options, upstream, longest),
            "/v1/responses": Endpoint(cache, Responses(), options, upstream, longest),
            "/v1/messages": Endpoint(cache, Messages(), options, upstream, longest),
            "/v1/embeddings": EmbeddingsEndpoint(cache, options, upstream, longest),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        path = scope["path"]
        try:
            if not path.startswith(_OURS) and self._shows(scope, path) and await self._health.answered(scope, send):
                return
            await self._admitted(scope, path, receive, send)
        except RefusedError as error:
            await _refuse(send, path, error.status, str(error))

    def _shows(self, scope: Scope, path: str) -> bool:
        """Say whether a path is anybody's to see; metrics are, where there are tokens, for who may look."""
        if path == "/metrics":
            rights = self._caller(self._sorter.of(scope["headers"]).proofs).rights
            if rights.isdisjoint(("read", "admin")):
                raise RefusedError(FORBIDDEN, "this token may not look: it lacks the right `read`")
        return True

    def _caller(self, proofs: Headers) -> Caller:
        try:
            return self._credentials.of(proofs)
        except UnknownCallerError as error:
            raise RefusedError(UNKNOWN, str(error)) from None

    async def _admitted(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        if self._running >= self._limits.requests:
            raise RefusedError(BUSY, f"there are {self._running} calls already (limit.requests): try again")
        self._running += 1
        try:
            await self._answered(scope, path, receive, send)
        finally:
            self._running -= 1

    async def _answered(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        if not path.startswith(_OURS):
            raise RefusedError(ABSENT, f"there is no {path[:80]} here: calls are at /v1")
        if ".." in path.split("/"):
            raise RefusedError(BAD, "a path leads down alone: there is no `..` in it")
        headers: Headers = scope["headers"]
        told = self._sorter.of(headers)
        caller = self._caller(told.proofs)
        if "proxy" not in caller.rights:
            raise RefusedError(FORBIDDEN, "this token is not for proxied calls: it lacks the right `proxy`")
        endpoint = self._endpoints.get(path) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._through(scope, path, headers, caller.keys, receive, send)
            return
        try:
            wishes = wishes_of(told.wishes)
        except UnclearWishError as error:
            raise RefusedError(BAD, str(error)) from None
        body = await _body(receive, self._limits)
        if body is None:
            return  # the caller has gone
        query = scope["query_string"]
        asked = Asked(
            body, self._where_of(path, query, told.keyed), caller.tenant, wishes,
            partial(self._send, path, query, headers, caller.keys, body),
        )  # fmt: skip
        found = endpoint.remembered(asked)
        if found is None:
            try:
                found = await endpoint.answer(asked)
            except AnsweredError as error:
                await _failed(send, path, error)
                return
        await _give(found, receive, send)

    def _where_of(self, path: str, query: bytes, told: Headers) -> bytes:
        """Return the canonical form of whom a call asks, and how. Which server it is its model says, which is keyed."""
        name = (path, query, tuple(told))
        where = self._where.get(name)
        if where is None:
            parts = [[one.decode("latin-1") for one in pair] for pair in sorted(told)]
            where = canonical([path, query.decode("latin-1"), parts])
            if len(self._where) >= _MOST_KNOWN:  # callers that differ in a header at each call fill it
                self._where.clear()
            if len(where) <= _LONGEST_KNOWN:
                self._where[name] = where
        return where

    async def _send(
        self, path: str, query: bytes, headers: Headers, keys: Iterable[tuple[bytes, bytes]], own: bytes,
        server: Server, body: bytes | None,
    ) -> Opened:  # fmt: skip
        """Ask a server behind what was asked, or another body. Raises AnsweredError."""
        told, url = sent(headers, keys), _url(server, path, query)
        return await self._upstream.open(Sent("POST", url, told, own if body is None else body))

    async def _through(
        self, scope: Scope, path: str, headers: Headers, keys: Iterable[tuple[bytes, bytes]], receive: Receive,
        send: Send,
    ) -> None:  # fmt: skip
        """Hand on what is none of the endpoints that are cached, as it comes, both ways."""
        length = [one for one in headers if one[0] == b"content-length"]
        has_body = length or any(name == b"transfer-encoding" for name, _ in headers)
        incoming = _Incoming(receive, self._limits)
        url = _url(self._upstream.of(None), scope["raw_path"].decode("latin-1"), scope["query_string"])
        told = [*sent(headers, keys), *length]
        try:
            response = await self._upstream.open(
                Sent(scope["method"], url, told, incoming.pieces() if has_body else b"")
            )  # fmt: skip
        except AnsweredError as error:
            if incoming.refusal is not None:
                raise incoming.refusal from None
            await _failed(send, path, error)
            return
        try:
            await send({
                "type": "http.response.start", "status": response.status,
                "headers": [*given(response.headers), (b"x-semcache", b"bypass")],
            })  # fmt: skip
            async for data in response.pieces():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            response.close()


class _Incoming:
    """A body that is handed on as it comes; what was wrong with it is in `refusal`, whatever its reader makes of it."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self.refusal: RefusedError | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield it in pieces. Raises RefusedError."""
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.refusal = RefusedError(BAD, "the caller has gone")
                raise self.refusal
            body: bytes = message.get("body", b"")
            size += len(body)
            if size > self._limits.body_bytes:
                self.refusal = _too_large(self._limits)
                raise self.refusal
            more = message.get("more_body", False)
            yield body


async def _give(found: Found, receive: Receive, send: Send) -> None:
    """Send an answer to the caller."""
    head = found.head if found.is_ours else given(found.head)
    told = cache_headers(found.event, stored=found.stored, status=None if found.is_ours else found.status)
    if found.blocks is None:
        length = (b"content-length", b"%d" % len(found.body))
        await send({"type": "http.response.start", "status": found.status, "headers": [*head, length, *told]})
        await send({"type": "http.response.body", "body": found.body})
        return
    await send({"type": "http.response.start", "status": found.status, "headers": [*head, *told]})
    gone = asyncio.create_task(_gone(receive))
    try:
        async with aclosing(found.blocks) as blocks:
            await _stream(blocks, gone, send)
    except (AnsweredError, BrokenOffError) as error:
        # The status was sent: that it broke off can only be told by breaking off.
        raise BrokenOffError(str(error)) from error
    finally:
        gone.cancel()


async def _stream(blocks: AsyncGenerator[str, None], gone: asyncio.Task[None], send: Send) -> None:
    async for block in blocks:
        await send({
            "type": "http.response.body", "body": block.encode("utf-8", "surrogateescape"), "more_body": True
        })  # fmt: skip
        if gone.done():
            return
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    """Return when the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive, limits: Limits) -> bytes | None:
    """Return a request's body; None where its caller has gone, or was too slow. Raises RefusedError."""
    message = await receive()
    if not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
        return None if message["type"] == "http.disconnect" else body
    parts: list[bytes] = []
    size = 0
    while True:
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limits.body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
        if message["type"] == "http.disconnect":
            return None


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(LARGE, f"the body is over {limits.body_bytes} bytes (limit.body)")


def _url(server: Server, path: str, query: bytes) -> str:
    return f"{server.url}{path}{'?' + query.decode('latin-1') if query else ''}"


async def _failed(send: Send, path: str, error: AnsweredError) -> None:
    """Tell a caller what the server behind said, or that it said nothing."""
    answer = error.answer
    if error.is_ours:
        await _refuse(send, path, answer.status, answer.body.decode("utf-8", "replace"))
        return
    length = (b"content-length", b"%d" % len(answer.body))
    headers = [*given(answer.headers), length, (b"x-semcache", b"miss")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _refuse(send: Send, path: str, status: int, message: str) -> None:
    """Tell an error of ours in the words of the protocol that was asked in."""
    kind = {UNKNOWN: "authentication_error", FORBIDDEN: "permission_error", ABSENT: "not_found_error"}.get(
        status, "invalid_request_error" if status < 500 else "api_error"  # noqa: PLR2004 - as HTTP parts them
    )  # fmt: skip
    error: dict[str, Any] = {"message": f"semcache: {message}", "type": kind}
    told = {"type": "error", "error": error} if path == "/v1/messages" else {
        "error": {**error, "param": None, "code": f"semcache_{status}"}
    }  # fmt: skip
    body = json.dumps(told).encode()
    headers = [*_JSON, (b"content-length", b"%d" % len(body)), (b"x-semcache", b"bypass")]
    if status == LARGE:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
