"""Where a sidecar listens: addresses that are taken before anything slow begins, and the file of a Unix socket.

Laws: what a dead process has left at a path is replaced, what a living one listens at is not; nobody's file but our own
is removed.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

BACKLOG = 2048
_SOCKET_MODE = 0o660


class SocketFile:
    """The file of a socket that listens at a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is = self._found()

    def remove(self) -> None:
        """Remove it, but no other that has been put in its place."""
        with suppress(OSError):
            if self._found() == self._is:
                self._path.unlink()

    def _found(self) -> tuple[int, int]:
        told = self._path.lstat()
        return told.st_dev, told.st_ino


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises OSError, with the mend."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except OSError as error:
        mend = "is another sidecar running? give another --port" if port else "give another --host"
        raise OSError(error.errno, f"cannot listen at {host}:{port}: {_told(error)}; {mend}") from error
    # Which connections inherit: asyncio sets it for sockets alone whose protocol was named.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listening_at(path: Path) -> socket.socket:
    """Return a socket that listens at a path; what a dead process has left there is replaced. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _clear(path)
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen at {path}: {_told(error)}") from error
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at. Raises OSError where somebody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(0, "another process listens there; give another --unix")


def _told(error: OSError) -> str:
    """Return what the system says of an error, without what others have added."""
    return os.strerror(error.errno) if error.errno else str(error.strerror or error)
