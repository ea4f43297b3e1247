"""Connections to one memcached, for threads and tasks.

Laws:
- nobody waits longer than his timeout, for a connection, for connecting and for all replies together; there are no
  retries, but for an idle connection that the server has closed meanwhile, which is replaced once, at once;
- a connection that was given up in the middle of a reply is closed, never reused; none crosses a fork.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from math import inf
from threading import BoundedSemaphore, Lock, Thread
from typing import Any, NamedTuple

from pymemcache.client.base import Client  # type: ignore[import-untyped]
from pymemcache.exceptions import (  # type: ignore[import-untyped]
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
)

from semcache.errors import TierError

Command = tuple[Any, ...]
Address = tuple[str, int]

# For what nobody's answer waits for: writes, invalidations, and connections that took longer than a caller could wait.
PATIENT_SECONDS = 2.0
MAX_CONNECTIONS = 32
_THREADS = 16
_OPENING = 8
_RECEIVE_BYTES = 64 * 2**10


class Replies(NamedTuple):
    """The replies of an exchange, in order, and the nanoseconds spent waiting for a thread and a connection."""

    values: list[Any]
    waited_ns: int


_SILENT = {"late": "no answer in time", "unreachable": "it hung up"}


def trouble(error: BaseException, where: str) -> TierError:
    """Return what went wrong as the tier's own error, with one word for it and the mend where there is one."""
    said = error.args[0] if error.args else None
    text, mend = said.decode(errors="replace") if isinstance(said, bytes) else str(error), ""
    if isinstance(error, TimeoutError):
        reason = "late"
    elif isinstance(error, (MemcacheUnexpectedCloseError, OSError)):
        reason = "unreachable"
    elif isinstance(error, MemcacheServerError) and "too large" in text:
        reason, mend = "large", " (raise its item size, memcached -I, or lower max_value=)"
    elif isinstance(error, MemcacheServerError) and "out of memory" in text:
        reason, mend = "space", " (raise its memory, memcached -m)"
    else:
        reason = "reply"
    return TierError(reason, f"{where}: {text or _SILENT.get(reason, type(error).__name__)}{mend}")


class _Line:
    """A connection, as the socket of a client of pymemcache's: all that is done before `deadline` must be."""

    __slots__ = ("_socket", "client", "deadline")

    def __init__(self, address: Address, timeout: float) -> None:
        self.deadline = inf
        # Not left to the client, which tries the first address of a name alone: often ::1, where no memcached listens.
        self._socket = socket.create_connection(address, timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = Client(address, default_noreply=False)
        self.client.sock = self

    def converse(self, asked: Sequence[Command], deadline: float) -> list[Any]:
        self.deadline = deadline
        return [getattr(self.client, name)(*arguments) for name, *arguments in asked]

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(data)

    def recv(self, size: int) -> bytes:
        self._socket.settimeout(self._left())
        return self._socket.recv(max(size, _RECEIVE_BYTES))  # the client asks for 4 kB, and takes what comes

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left

    def close(self) -> None:
        self._socket.close()


class MemcachedLink:
    """Speaks to one memcached; at most `MAX_CONNECTIONS` connections, which threads and tasks share."""

    def __init__(self, address: Address) -> None:
        host, port = address
        self.where = f"memcached://[{host}]:{port}" if ":" in host else f"memcached://{host}:{port}"
        self._address = address
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._idle: deque[_Line] = deque()
        self._free = BoundedSemaphore(MAX_CONNECTIONS)
        self._opening = BoundedSemaphore(_OPENING)
        self._lock = Lock()
        self._threads: ThreadPoolExecutor | None = None

    @staticmethod
    def join(asked: list[Sequence[Command]]) -> tuple[list[Command], Callable[[Replies], list[Replies]]]:
        """Make one exchange of many: of those that are one `gets` each, one `gets_many`."""
        if all(len(one) == 1 and one[0][0] == "gets" for one in asked):
            names = [one[0][1] for one in asked]

            def pick(replies: Replies) -> list[Replies]:
                (found,) = replies.values
                return [Replies([found.get(name, (None, None))], replies.waited_ns) for name in names]

            return [("gets_many", names)], pick

        def split(replies: Replies) -> list[Replies]:
            values = iter(replies.values)
            return [Replies(list(islice(values, len(one))), replies.waited_ns) for one in asked]

        return [command for one in asked for command in one], split

    def exchange(self, asked: Sequence[Command], timeout: float) -> Replies:
        """Call methods of a pymemcache client; what they return. Raises TierError, with one word for what was wrong."""
        return self._talk(asked, time.monotonic() + timeout)

    async def aexchange(self, asked: Sequence[Command], timeout: float) -> Replies:
        """Do the same without blocking the loop: pymemcache has no client for tasks, so a few threads do it."""
        began = time.monotonic()
        try:
            talk = asyncio.get_running_loop().run_in_executor(
                self._executor(), self._talk, asked, began + timeout, began
            )
        except RuntimeError as error:  # the interpreter ends, or it was closed in this moment
            raise TierError("closed", f"{self.where}: {error}") from error
        try:
            async with asyncio.timeout(timeout):
                return await talk
        except TimeoutError as error:
            raise trouble(error, self.where) from error

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._is_closed:
                raise TierError("closed", f"{self.where}: it was closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, "semcache-memcached-task")
            return self._threads

    def _talk(self, asked: Sequence[Command], deadline: float, waits_since: float | None = None) -> Replies:
        if not self._free.acquire(blocking=False):
            waits_since = waits_since or time.monotonic()
            if not self._free.acquire(timeout=_left(deadline)):
                raise TierError("pool", f"{self.where}: all {MAX_CONNECTIONS} connections are in use")
        waited_ns = 0 if waits_since is None else int((time.monotonic() - waits_since) * 1e9)
        try:
            try:
                line, is_used = self._idle.pop(), True
            except IndexError:
                line, is_used = self._open(deadline), False
            try:
                return Replies(self._converse(line, asked, deadline), waited_ns)
            except (MemcacheUnexpectedCloseError, ConnectionError):
                if not is_used:
                    raise
                self._drop_idle()  # the server was begun anew, or has closed what was idle for long
                return Replies(self._converse(self._open(deadline), asked, deadline), waited_ns)
        except TierError:
            raise
        except Exception as error:  # what a server that is no memcached sends may break the client in any way
            raise trouble(error, self.where) from error
        finally:
            self._free.release()

    def _converse(self, line: _Line, asked: Sequence[Command], deadline: float) -> list[Any]:
        is_whole = False
        try:
            values = line.converse(asked, deadline)
            is_whole = True
        finally:
            if is_whole:
                self._idle.append(line)
                if self._is_closed:
                    self._drop_idle()
            else:
                line.close()
        return values

    def _open(self, deadline: float) -> _Line:
        """Connect in a thread: looking up a name knows no timeout. What comes too late is the next caller's."""
        if self._is_closed:
            raise TierError("closed", f"{self.where}: it was closed")
        if not self._opening.acquire(timeout=_left(deadline)):
            raise TimeoutError("connecting took too long")
        made: Future[_Line] = Future()
        try:
            Thread(
                target=self._make, args=(made, self._idle, self._opening), name="semcache-connect", daemon=True
            ).start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            self._opening.release()
            raise TierError("thread", str(error)) from error
        try:
            return made.result(_left(deadline))
        except TimeoutError:
            if made.cancel():
                raise
            return made.result()  # it has come in this moment, or is the server's own kind of late

    def _make(self, made: Future[_Line], idle: deque[_Line], opening: BoundedSemaphore) -> None:
        line, failure = None, None
        try:
            line = _Line(self._address, PATIENT_SECONDS)
        except Exception as error:  # noqa: BLE001 - it is raised where the connection was wanted
            failure = error
        finally:
            opening.release()
        if not made.set_running_or_notify_cancel():
            if line is not None:
                idle.append(line)
                if self._is_closed:
                    self._drop_idle()
        elif line is not None:
            made.set_result(line)
        else:
            made.set_exception(failure)

    def _drop_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed by whoever uses it."""
        with self._lock:
            self._is_closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            # Without cancelling what waits for a thread: tasks would take it for a cancellation of their own.
            threads.shutdown(wait=False)
        self._drop_idle()

    def after_fork(self) -> None:
        """Begin anew; closing our copies of the parent's sockets says nothing to the server."""
        self._drop_idle()
        self._begin()


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
