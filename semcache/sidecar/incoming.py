"""A request as it comes: its body in pieces or whole, never over its bound, and whether its caller is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from semcache.sidecar.refusals import BAD, LARGE, RefusedError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may be: bytes of its body, and how many calls there are at once."""

    body_bytes: int
    requests: int


class Incoming:
    """A body as it comes; what was wrong with it is in `refusal`, whatever its reader makes of it."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self.refusal: RefusedError | None = None

    async def whole(self) -> bytes:
        """Return all of it. Raises RefusedError."""
        parts, size, more = [], 0, True
        while more:
            body, more = await self._next(size)
            size += len(body)
            parts.append(body)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield it in pieces. Raises RefusedError."""
        size, more = 0, True
        while more:
            body, more = await self._next(size)
            size += len(body)
            yield body

    async def _next(self, size: int) -> tuple[bytes, bool]:
        """Return the next piece behind so many bytes, and whether there are more. Raises RefusedError."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.refusal = RefusedError(BAD, "the caller has gone")
            raise self.refusal
        body: bytes = message.get("body", b"")
        if size + len(body) > self._most_bytes:
            self.refusal = too_large(self._most_bytes)
            raise self.refusal
        return body, message.get("more_body", False)


def too_large(most_bytes: int) -> RefusedError:
    """Return what is said of a body that is larger."""
    return RefusedError(LARGE, f"the body is over {most_bytes} bytes (limit.body)")


async def while_there(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Do something for a caller until it has gone; its own way out, as streams to be closed, it may go then."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one
    is_over = has_gone = False

    def leave(_gone: object) -> None:
        nonlocal has_gone
        if not is_over:
            has_gone = True
            task.cancel()

    gone = asyncio.ensure_future(_gone(receive))
    gone.add_done_callback(leave)
    try:
        await work()
    except asyncio.CancelledError:
        if not has_gone or task.uncancel():
            raise
    finally:
        is_over = True
        gone.cancel()


async def _gone(receive: Receive) -> None:
    """Return when the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
