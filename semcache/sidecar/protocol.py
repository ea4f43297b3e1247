"""HTTP as uvicorn speaks it, with bounds: how large a request's head may be, and how long head and body may take."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD_BYTES = 64 << 10
# A body that brings so much at least gets its time anew: a large one may come over a slow line.
_ENOUGH_BYTES = 16 << 10
_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Bounded(HttpToolsProtocol):
    """The protocol whose connections are closed where a request's head, or then its body, is not there in time."""

    head_seconds = 10.0
    body_seconds = 60.0
    _head_bytes = 0
    _body_bytes = 0
    _is_in_head = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, as many as a head may have."""
        super().data_received(data)
        if self._is_in_head:
            if self._timer is None:  # the next request on a connection that was kept
                self._wait(self.head_seconds)
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._close(_LARGE)

    def on_message_begin(self) -> None:
        """Take note that a head begins."""
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Wait for the body, be it of no bytes."""
        self._is_in_head = False
        self._stop()
        super().on_headers_complete()
        self._wait(self.body_seconds)

    def on_body(self, body: bytes) -> None:
        """Wait for the rest of it."""
        self._body_bytes += len(body)
        if self._body_bytes >= _ENOUGH_BYTES and self._timer is not None:
            self._body_bytes = 0
            self._stop()
            self._wait(self.body_seconds)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for it no more."""
        self._stop()
        super().on_message_complete()

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._close, _SLOW)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, said: bytes) -> None:
        self._stop()
        if not self.transport.is_closing():
            if self._is_in_head or (self.cycle is not None and not self.cycle.response_started):
                self.transport.write(said)
            self.transport.close()


def bounded(head_seconds: float, body_seconds: float) -> type[Bounded]:
    """Return the protocol with so many seconds for a head and a body."""
    return type("Bounded", (Bounded,), {"head_seconds": head_seconds, "body_seconds": body_seconds})
