"""HTTP as uvicorn speaks it, with bounds: how large a request's head may be, and how long head and body may take.

Laws: time is counted while bytes are awaited alone, not while nothing is read; nothing is written into another answer;
what is asked is what the head says: fields that come after a body are dropped, other protocols are not spoken.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from semcache.sidecar.credentials import CERTIFICATE_HEADER

_MOST_HEAD_BYTES = 64 << 10
# A body that brings so much at least gets its time anew: a large one may come over a slow line.
_ENOUGH_BYTES = 16 << 10


def _refusal(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()


_WRONG = _refusal("400 Bad Request")
_SLOW = _refusal("408 Request Timeout")
_LARGE = _refusal("431 Request Header Fields Too Large")


class _TooLargeError(Exception):
    """Fields of more bytes than a request may have."""


class _Flow(FlowControl):
    """Flow control that tells when reading stops and goes on."""

    def __init__(self, transport: Any, tell: Callable[[], None]) -> None:
        super().__init__(transport)
        self._tell = tell

    def pause_reading(self) -> None:
        super().pause_reading()
        self._tell()

    def resume_reading(self) -> None:
        was_paused = self.read_paused
        super().resume_reading()
        if was_paused:
            self._tell()


class Bounded(HttpToolsProtocol):
    """The protocol whose connections are closed where a request's head, or then its body, is not there in time."""

    head_seconds = 10.0
    body_seconds = 60.0
    write_seconds = 60.0
    is_behind = False
    _is_in_head = False
    _is_in_body = False
    _is_upgrade = False
    _field_bytes = 0  # of the head, and of what comes after the body
    _other_bytes = 0  # read since the head began, or since the last of its body
    _body_bytes = 0
    _read_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _subject: bytes | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self._watch_request)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop()
        self._stop_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, as many as a head may have."""
        self._unset_keepalive_if_required()
        self._read_bytes = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._close(_LARGE if isinstance(error.__context__, _TooLargeError) else _WRONG)
            return
        if self._is_in_head or self._is_in_body:
            self._other_bytes += len(data)
            if self._other_bytes > _MOST_HEAD_BYTES:
                self._close(_LARGE)
                return
        if self._timer is None and not self._is_in_body:  # the next request on a connection that was kept
            self._watch()

    def _feed(self, data: bytes) -> None:
        """Parse; the parser stops where another protocol is asked for, and what was asked is read without that."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._is_upgrade = False
                head = self._head()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                self.parser.feed_data(head)
            else:
                return

    def _head(self) -> bytes:
        """Return the head that was read, without `Upgrade`. Raises HttpParserError."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("there is no way through")
        fields = (b"%s: %s\r\n" % one for one in self.headers if one[0] != b"upgrade")
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(fields))

    def on_message_begin(self) -> None:
        """Take note that a head begins."""
        super().on_message_begin()
        self._is_in_head, self._field_bytes = True, 0
        self._other_bytes = -self._read_bytes

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; one that comes after the body is dropped."""
        self._count(len(name) + len(value))
        if self._is_in_head and (self.is_behind or name.lower() != CERTIFICATE_HEADER):  # which is ours alone to say
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Wait for the body, be it of no bytes."""
        self._is_in_head = False
        if self.parser.should_upgrade():
            self._is_upgrade = True
            return
        if self._subject is None:
            self._subject = self._proved()
        if self._subject:
            self.headers.append((CERTIFICATE_HEADER, self._subject))
        super().on_headers_complete()
        self._is_in_body, self._body_bytes = True, 0
        self._watch()

    def _proved(self) -> bytes:
        """Return the subject of the certificate that the connection's client has shown; none where none was wanted."""
        tls = self.transport.get_extra_info("ssl_object")
        shown = tls.getpeercert() if tls is not None else None
        names = (f"{name}={value}" for part in (shown or {}).get("subject", ()) for name, value in part)
        return ",".join(names).encode()

    def on_body(self, body: bytes) -> None:
        """Wait for the rest of it."""
        self._other_bytes = -self._read_bytes
        self._body_bytes += len(body)
        super().on_body(body)
        if self._body_bytes >= _ENOUGH_BYTES:
            self._body_bytes = 0
            self._watch()

    def on_message_complete(self) -> None:
        """Wait for it no more."""
        if not self._is_upgrade:
            self._is_in_body = False
            self._stop()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for what comes next, where it has begun."""
        super().on_response_complete()
        self._watch_request()
        self._watch_write()

    def pause_writing(self) -> None:
        """Write no more for now, and see whether it is read."""
        super().pause_writing()
        self._watch_write()

    def resume_writing(self) -> None:
        """Write on; what is left may still not be read."""
        super().resume_writing()
        self._watch_write()

    def _watch_write(self) -> None:
        """Give a caller its time to read what was sent; it has it anew with all that it reads."""
        self._stop_write()
        if self.transport.get_write_buffer_size():
            self._unread_bytes = self._unread()
            self._write_timer = self.loop.call_later(self.write_seconds, self._check_read)

    def _check_read(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() and self._unread() >= self._unread_bytes:
            self.transport.abort()
        else:
            self._watch_write()

    def _unread(self) -> int:
        """Return how many bytes are not read, of ours and of the system's, which takes megabytes at a time."""
        size: int = self.transport.get_write_buffer_size()
        with suppress(OSError, ValueError):  # there is no such word for this kind of connection, or system
            told = ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, bytes(4))
            size += int.from_bytes(told, sys.byteorder)
        return size

    def _stop_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > _MOST_HEAD_BYTES:
            raise _TooLargeError

    def _watch_request(self) -> None:
        if self._is_in_head or self._is_in_body:
            self._watch()

    def _watch(self) -> None:
        """Give what is awaited its time anew; it has no end while nothing is read, or another call is answered."""
        self._stop()
        if not (self.flow.read_paused or self._is_behind or self.transport.is_closing()):
            self._timer = self.loop.call_later(
                self.body_seconds if self._is_in_body else self.head_seconds, self._late
            )  # fmt: skip

    @property
    def _is_behind(self) -> bool:
        """Whether an earlier call is still being answered."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (is_open and not self._is_in_body)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._close(_SLOW if self._is_in_head or self._is_in_body else b"")

    def _close(self, said: bytes) -> None:
        self._stop()
        if not self.transport.is_closing():
            has_begun = self._is_in_body and (self.cycle.response_started or self.cycle.response_complete)
            if not (self._is_behind or has_begun):
                self.transport.write(said)
            self.transport.close()


def bounded(
    head_seconds: float, body_seconds: float, write_seconds: float, *, is_behind: bool = False
) -> type[Bounded]:  # fmt: skip
    """Return the protocol with so many seconds for a head and a body, and for who does not read what was sent.

    Where only processes of ours ask, those that are `is_behind`, it believes whose certificate they have seen.
    """
    told = {
        "head_seconds": head_seconds, "body_seconds": body_seconds, "write_seconds": write_seconds,
        "is_behind": is_behind,
    }  # fmt: skip
    return type("Bounded", (Bounded,), told)
