"""What a worker hands to its owner: everything but calls, over a socket that only their user can open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from semcache.sidecar.headers import Headers
from semcache.sidecar.incoming import Incoming, Receive
from semcache.sidecar.refusals import BUSY, RefusedError

_NOT_MODIFIED = 304
# Of one connection, or made anew for the next.
_OF_A_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"content-length"))

Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Forward:
    """Hands requests, with bodies of so many bytes at most, to the application that listens at a path."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._path = str(path)
        self._client: Any = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request with what the owner says. Raises RefusedError where it does not answer."""
        import aiohttp
        from yarl import URL

        if self._client is None:
            connector = aiohttp.UnixConnector(self._path)
            self._client = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"] if name not in _OF_A_HOP
        ]  # fmt: skip
        body = await Incoming(receive, self._most_bytes).whole()
        try:
            async with self._client.request(
                scope["method"], URL(f"http://owner{target}", encoded=True), headers=headers, data=body or None,
                skip_auto_headers=("content-type", "user-agent", "accept", "accept-encoding"), allow_redirects=False,
            ) as response:  # fmt: skip
                told: Headers = [
                    (name.lower(), value) for name, value in response.raw_headers if name.lower() not in _OF_A_HOP
                ]  # fmt: skip
                data = await response.read()
        except (OSError, aiohttp.ClientError) as error:
            raise RefusedError(
                BUSY, "the process that holds the cache does not answer; it may just be starting"
            ) from error
        # What has no body says how long it would be, or nothing.
        length = str(len(data)) if data or scope["method"] != "HEAD" else response.headers.get("content-length")
        if length is not None and response.status != _NOT_MODIFIED:
            told.append((b"content-length", length.encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": told})
        await send({"type": "http.response.body", "body": data})

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
