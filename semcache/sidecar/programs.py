"""The endpoints for programs with caches of their own: `/semcache/v1/cache` and `/semcache/v1/control`, in msgpack.

They are asked before any table is looked at, as a lookup's whole time is one trip to here. Laws: a token with the
right `cache` is wanted where there are tokens, and what it reaches is its tenant's (`reach`); what is no message is a
4xx, and leaves nothing done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

from semcache.cache import Cache
from semcache.errors import DecodeError
from semcache.sidecar.control import Control
from semcache.sidecar.credentials import Caller
from semcache.sidecar.incoming import Incoming, Receive, too_large, while_there
from semcache.sidecar.native import Native
from semcache.sidecar.reach import Reach
from semcache.sidecar.refusals import BAD, BUSY, RefusedError

if TYPE_CHECKING:
    from semcache.sidecar.headers import Headers

CACHE = "/semcache/v1/cache"
CONTROL = "/semcache/v1/control"
MEDIA = "application/msgpack"
USING = ("cache",)
"""The right to use the cache service."""
METHODS = {CACHE: "POST", CONTROL: "GET"}
_NOT_ALLOWED, _NO_MEDIA = 405, 415
_MOST_REACHES = 1024
_LONGEST_NAMESPACE = 200

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Check = Callable[[Mapping[str, Any]], Caller]


class Programs:
    """Answers programs; `check` says who asks, or raises RefusedError, `secret` parts tenants' keys.

    Those that are trusted are workers of this sidecar.
    """

    def __init__(
        self, cache: Cache, check: Check, secret: bytes, most_bytes: int, most_requests: int, *,
        is_trusted: bool = False,
    ) -> None:  # fmt: skip
        self._is_trusted = is_trusted
        self._cache = cache
        self._check = check
        self._secret = secret
        self._most_bytes = most_bytes
        self._most_requests = most_requests
        self._running = self._streams = 0
        self._reaches: dict[tuple[str, str], Reach] = {}
        self.native = Native(cache)
        self.control = Control(cache)

    @staticmethod
    def has(path: str) -> bool:
        """Say whether a path is one of these."""
        return path in METHODS

    async def answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request. Raises RefusedError, before anything is sent."""
        path = scope["path"]
        if scope["method"] != METHODS[path]:
            raise RefusedError(_NOT_ALLOWED, f"{path} takes {METHODS[path]}, not {scope['method'][:20]}")
        reach = self._reach_of(self._check(scope), scope["headers"])
        if path == CONTROL:
            if self._streams >= self._most_requests:
                raise RefusedError(BUSY, f"{self._streams} programs follow already (limit.requests): try again")
            self._streams += 1
            try:
                await while_there(receive, partial(self._told, reach, send))
            finally:
                self._streams -= 1
            return
        if self._running >= self._most_requests:
            raise RefusedError(BUSY, f"there are {self._running} calls already (limit.requests): try again")
        self._running += 1
        try:
            body = await self._body(scope["headers"], receive)
            told = await self.native.answer(body, reach)
        except DecodeError as error:
            raise RefusedError(BAD, str(error)) from None
        finally:
            self._running -= 1
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", MEDIA.encode()), (b"content-length", b"%d" % len(told)),
        ]})  # fmt: skip
        await send({"type": "http.response.body", "body": told})

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        kind = b""
        for name, value in headers:
            if name == b"content-type":
                kind = value
            elif name == b"content-length" and int(value) > self._most_bytes:
                raise too_large(self._most_bytes)
        if kind != MEDIA.encode():
            raise RefusedError(_NO_MEDIA, f"the body is {MEDIA}", f"send content-type: {MEDIA}")
        return await Incoming(receive, self._most_bytes).whole()

    def _reach_of(self, caller: Caller, headers: Headers) -> Reach:
        told = b""
        for name, value in headers:
            if name == b"x-semcache-namespace":
                told = value
        namespace = told.decode("utf-8", "replace")
        reach = self._reaches.get((caller.reach, namespace))
        if reach is None:
            if len(namespace) > _LONGEST_NAMESPACE:
                raise RefusedError(BAD, f"x-semcache-namespace is over {_LONGEST_NAMESPACE} characters")
            if len(self._reaches) >= _MOST_REACHES:
                self._reaches.clear()
            reach = Reach(
                caller.reach, namespace, self._cache.namespace, self._secret, is_trusted=self._is_trusted
            )  # fmt: skip
            self._reaches[caller.reach, namespace] = reach
        return reach

    async def _told(self, reach: Reach, send: Send) -> None:
        """Send the control stream to its end."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", MEDIA.encode())]})
        async for frame in self.control.frames(reach):
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
