"""The proxy: an ASGI application that answers what is cached, and hands on all else.

Laws: what the servers behind say arrives unchanged, errors too; a request that is too large, too slow or no HTTP of
ours is a 4xx and harms nobody; nothing of ours fails a call (law 10).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

from semcache.cache import Cache
from semcache.keys import canonical
from semcache.sidecar.asked import Asked, Found, parsed
from semcache.sidecar.board import Board
from semcache.sidecar.credentials import Caller, Credentials, UnknownCallerError
from semcache.sidecar.doors import Doors
from semcache.sidecar.embeddings import EmbeddingsEndpoint
from semcache.sidecar.endpoint import Endpoint
from semcache.sidecar.headers import Headers, Sorted, Sorter, sent
from semcache.sidecar.health import Health
from semcache.sidecar.incoming import Incoming, Limits, Receive, too_large, while_there
from semcache.sidecar.own import PATHS as OWN_PATHS
from semcache.sidecar.own import OwnEmbeddings, give
from semcache.sidecar.programs import Programs
from semcache.sidecar.refusals import ABSENT, BAD, BUSY, FORBIDDEN, UNKNOWN, RefusedError, not_cached
from semcache.sidecar.replies import failed, give_found, hand_on, refuse
from semcache.sidecar.service import LOOKING, Service
from semcache.sidecar.settings import Server
from semcache.sidecar.upstream import AnsweredError, Opened, Sent, Upstream
from semcache.sidecar.wishes import UnclearWishError, Wishes, wishes_of
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.openai import ChatCompletions
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.responses import Responses

Scope = MutableMapping[str, Any]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Elsewhere = Callable[[Scope, Receive, Send], Awaitable[None]]

_OURS = "/v1/"
# So many ways to ask are remembered, of so many bytes each.
_MOST_KNOWN, _LONGEST_KNOWN = 1024, 4096


class Proxy:
    """The application; `longest` is the life, in seconds, that no caller's wish makes longer.

    What is no call goes `elsewhere`, where another process holds the cache.
    """

    def __init__(
        self, cache: Cache, upstream: Upstream, credentials: Credentials, options: ClientOptions, limits: Limits,
        health: Health, longest: float, doors: Doors, board: Board, own: OwnEmbeddings,
        elsewhere: Elsewhere | None = None,
    ) -> None:  # fmt: skip
        self._doors = doors
        self._elsewhere = elsewhere
        self._service = Service(cache, credentials, doors, limits, self._asked, board)
        self._upstream = upstream
        self._own = own
        self._credentials = credentials
        self._limits = limits
        self._health = health
        self._sorter = Sorter()
        self._where: dict[tuple[Any, ...], bytes] = {}
        self._running = 0
        # A task that nobody holds may be collected before its end.
        self._left: set[asyncio.Future[Found]] = set()
        self._closing: set[asyncio.Future[None]] = set()
        credentials.check([server.url for server in upstream.servers])
        texts = board.live.texts
        self._endpoints: Mapping[str, Endpoint | EmbeddingsEndpoint] = {
            "/v1/chat/completions": Endpoint(cache, ChatCompletions(), options, upstream, longest, keeps_texts=texts),
            "/v1/responses": Endpoint(cache, Responses(), options, upstream, longest, keeps_texts=texts),
            "/v1/messages": Endpoint(cache, Messages(), options, upstream, longest, keeps_texts=texts),
            "/v1/embeddings": EmbeddingsEndpoint(cache, options, upstream, longest),
        }

    @property
    def programs(self) -> Programs:
        """What answers programs with caches of their own."""
        return self._service.programs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        path = scope["path"]
        try:
            if not path.startswith(_OURS):
                if self._elsewhere is not None and path != "/livez" and not self.programs.has(path):
                    if self._service.has(path) or path == "/metrics":
                        self._doors.check_service(scope)  # it is asked over a socket there, where no name is looked at
                    await self._elsewhere(scope, receive, send)
                    return
                if self._service.has(path):
                    await self._service.answer(scope, receive, send)
                    return
                self._check_looking(scope, path)
                if await self._health.answered(scope, send):
                    return
            await self._admitted(scope, path, receive, send)
        except RefusedError as error:
            self._health.counts.refused(error.status)
            await refuse(send, path, error.status, str(error))

    def _check_looking(self, scope: Scope, path: str) -> None:
        """Refuse metrics to who may not look at what is all tenants'."""
        if path == "/metrics":
            self._service.check(scope, LOOKING, is_of_all=True)

    def _caller(self, proofs: Headers, *, stays_here: bool = False) -> Caller:
        try:
            return self._credentials.of(proofs, stays_here=stays_here)
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
        if ".." in path.replace("\\", "/").split("/"):
            raise RefusedError(BAD, "a path leads down alone: there is no `..` in it")
        headers: Headers = list(scope["headers"])  # what comes behind the body is none of it
        self._doors.check_call(scope)
        told = self._sorter.of(headers)
        is_own = path in OWN_PATHS and bool(self._own.names)
        caller = self._caller(told.proofs, stays_here=is_own)
        if not (is_own and "cache" in caller.rights):
            _check_proxied(caller)
        wishes = _wishes(told)
        if any(name == b"content-length" and int(value) > self._limits.body_bytes for name, value in headers):
            raise too_large(self._limits.body_bytes)  # before any of it is handed on
        endpoint = self._endpoints.get(path) if scope["method"] == "POST" else None
        if endpoint is None:
            if is_own and path == OWN_PATHS[1] and not ("proxy" in caller.rights and self._upstream.servers):
                await give(send, self._own.listed())
                return
            _check_proxied(caller)
            if wishes.is_only_cached:
                raise not_cached()
            await self._through(scope, headers, caller, receive, send)
            return
        await self._cached(endpoint, scope, headers, told, wishes, caller, receive, send)

    async def _cached(
        self, endpoint: Endpoint | EmbeddingsEndpoint, scope: Scope, headers: Headers, told: Sorted, wishes: Wishes,
        caller: Caller, receive: Receive, send: Send,
    ) -> None:  # fmt: skip
        """Answer a call of an endpoint that is cached."""
        path = scope["path"]
        body = await Incoming(receive, self._limits.body_bytes).whole()
        own = self._own.asked(path, body)
        if own is not None:
            if self._elsewhere is not None:
                await self._elsewhere(scope, _again(body), send)
                return
            await give(send, await self._own.answer(own))
            return
        _check_proxied(caller)
        query = scope["query_string"]
        asked = Asked(
            body, self._where_of(path, query, told.keyed), caller.tenant, wishes,
            partial(self._send, path, query, headers, caller, body), owner=caller.reach,
        )  # fmt: skip
        found = endpoint.remembered(asked)
        if found is not None:
            await give_found(found, send)
            return
        answering = asyncio.ensure_future(endpoint.answer(asked))
        await while_there(receive, partial(_settled, answering))
        if not answering.done():
            self._leave(answering)
            return
        try:
            found = answering.result()
        except AnsweredError as error:
            await failed(send, path, error)
            return
        if found.blocks is None:
            await give_found(found, send)
            return
        try:
            await while_there(receive, partial(give_found, found, send))
        finally:
            await found.blocks.close()

    def _asked(
        self, target: str, headers: Headers, body: bytes, tenant: str
    ) -> tuple[Endpoint | EmbeddingsEndpoint, Asked]:
        """Return a call as it would be if it were posted to a target with these headers, by a tenant, else by who asks.

        Raises RefusedError.
        """
        path, _, query = target.partition("?")
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            raise RefusedError(BAD, f"calls of {path[:80]} go by the cache", f"there are {', '.join(self._endpoints)}")
        told = self._sorter.of(headers)
        wishes = _wishes(told)
        caller = self._caller(told.proofs)
        whose, query_bytes = tenant or caller.tenant, query.encode("utf-8", "replace")
        owner = caller.reach or (whose.partition("/")[0] if self._credentials.has_tokens else "")
        send = partial(self._send, path, query_bytes, headers, caller, body)
        return endpoint, Asked(body, self._where_of(path, query_bytes, told.keyed), whose, wishes, send, owner=owner)

    def _leave(self, answering: asyncio.Future[Found]) -> None:
        """Let a call go on whose caller has gone: its answer is paid for, and is kept for the next.

        A stream ends when it begins, as nobody reads it.
        """
        self._left.add(answering)
        answering.add_done_callback(self._left.discard)
        answering.add_done_callback(self._let_go)
        if len(self._left) > self._limits.requests:
            answering.cancel()

    def _let_go(self, answering: asyncio.Future[Found]) -> None:
        """Close the stream of a caller who has gone; an error has nobody to be told to."""
        if not answering.cancelled() and answering.exception() is None:
            blocks = answering.result().blocks
            if blocks is not None:
                closing = asyncio.ensure_future(blocks.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

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
        self, path: str, query: bytes, headers: Headers, caller: Caller, own: bytes, server: Server, body: bytes | None
    ) -> Opened:
        """Ask a server behind what was asked, or another body. Raises AnsweredError, RefusedError."""
        told, url = self._sent(headers, caller, server), _url(server, path, query)
        return await self._upstream.open(Sent(server.url, "POST", url, told, own if body is None else body))

    def _sent(self, headers: Headers, caller: Caller, server: Server) -> Headers:
        if caller.upstream and caller.upstream != server.url:
            raise RefusedError(FORBIDDEN, f"this token's key is for {caller.upstream}, which does not have the model")
        return sent(headers, self._credentials.keys_of(caller, headers))

    async def _through(self, scope: Scope, headers: Headers, caller: Caller, receive: Receive, send: Send) -> None:
        """Hand on what is none of the endpoints that are cached, as it comes, both ways."""
        self._health.counts.handed_through += 1
        incoming = Incoming(receive, self._limits.body_bytes)
        length = [one for one in headers if one[0] == b"content-length"]
        has_body = bool(length) or any(name == b"transfer-encoding" for name, _ in headers)
        body: bytes | AsyncIterator[bytes] = incoming.pieces() if has_body else b""
        server = self._upstream.first
        if has_body and len(self._upstream.servers) > 1:
            # Which server it is for, its model says: the caller's key is for no other.
            body = await incoming.whole()
            server = self._upstream.of(_model_of(body))
        url = _url(server, scope["raw_path"].decode("latin-1"), scope["query_string"])
        told = [*self._sent(headers, caller, server), *length]
        try:
            response = await self._upstream.open(Sent(server.url, scope["method"], url, told, body))
        except AnsweredError as error:
            if incoming.refusal is not None:
                raise incoming.refusal from None
            await failed(send, scope["path"], error)
            return
        try:
            await while_there(receive, partial(hand_on, response, send))
        finally:
            response.close()


def _again(body: bytes) -> Receive:
    """Return what gives a body that was read already."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _check_proxied(caller: Caller) -> None:
    """Refuse a call of the servers behind to who may not. Raises RefusedError."""
    if "proxy" not in caller.rights:
        raise RefusedError(FORBIDDEN, "this token is not for proxied calls: it lacks the right `proxy`")


async def _settled(answering: asyncio.Future[Any]) -> None:
    """Wait for an answer that others may want too: who waits may be cancelled, and it goes on."""
    await asyncio.wait([answering])


def _wishes(told: Sorted) -> Wishes:
    """Return what headers ask for. Raises RefusedError."""
    try:
        return wishes_of(told.wishes)
    except UnclearWishError as error:
        raise RefusedError(BAD, str(error)) from None


def _url(server: Server, path: str, query: bytes) -> str:
    return f"{server.url}{path}{'?' + query.decode('latin-1') if query else ''}"


def _model_of(body: bytes) -> object:
    """Return the model that a body names, as far as it can be read."""
    try:
        told = parsed(body)
    except (ValueError, RecursionError):
        return None
    return told.get("model")
