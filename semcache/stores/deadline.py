"""Connections of threads that keep to one deadline, whatever they do: connect, say who they are, send, read.

redis-py counts its timeout anew at every wait: for each address of a host, each step of the handshake, each piece of a
reply. So a call could take several times what it was given.

Laws:
- until `deadline` the connection may wait, and not beyond it, in however many pieces; looking a host's name up is the
  system's own wait, with the system's own limit;
- a single wait is no longer than `silence`: what is to outlive a slow answer, as the follower is, bounds that alone.
"""

from __future__ import annotations

import socket
import time
from math import inf
from typing import Any

from redis import connection as theirs


class Timely:
    """What a connection of redis-py is made of beside its own class; `deadline` is read on the monotonic clock."""

    deadline = inf
    silence = inf

    @property
    def socket_timeout(self) -> float | None:
        """What is left, which redis-py asks for before each step; what it was made with does not count."""
        return self.left()

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        """Ignore what redis-py would have."""

    socket_connect_timeout = socket_timeout

    def left(self) -> float | None:
        """Return how long a wait may be that begins now, None for ever. Raises TimeoutError where the time is up."""
        seconds = min(self.deadline - time.monotonic(), self.silence)
        if seconds <= 0:
            raise TimeoutError("the time is up")
        return None if seconds == inf else seconds

    def _connect(self) -> Socket:
        return Socket(super()._connect(), self)  # type: ignore[misc] # the other half is redis-py's


class Socket:
    """A connected socket whose every wait is as long as its connection has left."""

    def __init__(self, made: socket.socket, owner: Timely) -> None:
        self._made = made
        self._left = owner.left

    def recv_into(self, buffer: Any) -> int:
        self._made.settimeout(self._left())
        return self._made.recv_into(buffer)

    def recv(self, most: int) -> bytes:
        self._made.settimeout(self._left())
        return self._made.recv(most)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # over TLS the socket's own `sendall` would begin to count anew with each record
            self._made.settimeout(self._left())
            rest = rest[self._made.send(rest) :]

    def settimeout(self, seconds: float | None) -> None:
        """Ignore what redis-py would have."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


class TimelyConnection(Timely, theirs.Connection):
    """Over TCP."""


class TimelySSLConnection(Timely, theirs.SSLConnection):
    """Over TLS."""


class TimelyUnixConnection(Timely, theirs.UnixDomainSocketConnection):
    """Over a unix socket."""
