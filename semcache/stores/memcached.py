"""One memcached, as threads and tasks speak to it, and the thread that writes entries to it behind the callers.

Laws:
- nobody waits longer than his timeout, for a connection, for connecting and for all replies together; there are no
  retries, but for an idle connection that the server has closed meanwhile, which is replaced once, at once;
- a connection that was given up in the middle of a reply is closed, never reused; none crosses a fork;
- of two entries the one born later stays, and none replaces a tombstone of a later position: what comes between a look
  and a write is told by its cas id (so the server must not run with `-C`, which takes these away);
- an entry can be read from `pending` from the moment it is put until it is written; what is queued is bounded; what
  cannot be written is dropped, counted and told, and the thread lives on.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, inf
from struct import Struct
from threading import BoundedSemaphore, Condition, Lock, Thread
from typing import Any, NamedTuple

from pymemcache.client.base import Client  # type: ignore[import-untyped]
from pymemcache.exceptions import (  # type: ignore[import-untyped]
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
)

from semcache.errors import DecodeError, TierError
from semcache.marks import Pair
from semcache.plan import Exchange, Plan, run
from semcache.stores import header

Command = tuple[Any, ...]
Address = tuple[str, int]

# For what nobody's answer waits for: writes, invalidations, and connections that took longer than a caller could wait.
PATIENT_SECONDS = 2.0
# A late put can come as long after its key was invalidated as a load may take.
LONGEST_LOAD_SECONDS = 3600
MAX_CONNECTIONS = 32
MAX_ENTRIES = 4096
MAX_BYTES = 64 * 2**20
_THREADS = 16
_OPENING = 8
_RECEIVE_BYTES = 64 * 2**10
_TRIES = 3
_PAUSE_SECONDS = 0.05
_ROUNDS = 16
# To a server, more than 30 days is a time since 1970, and zero, which we never say, is for ever.
_LONGEST_RELATIVE = 30 * 86400
_LAST_TIME = 2**31 - 1

_TOMBSTONE = Struct("<BQ")


def tombstone(position: int) -> bytes:
    """Return the record that stands for a key invalidated at a position."""
    return _TOMBSTONE.pack(header.TOMBSTONE, position)


def buried_at(data: bytes) -> int | None:
    """Return the position of a tombstone; None where the record is none."""
    if len(data) != _TOMBSTONE.size or data[0] != header.TOMBSTONE:
        return None
    return int(_TOMBSTONE.unpack(data)[1])


def expiry(seconds: float) -> int:
    """Return how to tell a server that something is worth keeping for so long, in its whole seconds."""
    if seconds <= _LONGEST_RELATIVE:
        return max(1, ceil(seconds))
    return int(min(time.time() + seconds, _LAST_TIME))  # the server's own clock, whatever ours is in a test


def outranks(standing: bytes, key: bytes, born: int, now: float) -> bool:
    """Say whether what stands at a key keeps out an entry born at `born`."""
    position = buried_at(standing)
    if position is not None:
        return born < position
    try:
        entry = header.read(key, standing, now, inf)
    except DecodeError:  # not ours, or damaged (law 9)
        return False
    return entry is not None and entry.born > born


class Replies(NamedTuple):
    """The replies of an exchange, in order, and the nanoseconds spent waiting for a thread and a connection."""

    values: list[Any]
    waited_ns: int


_SILENT = {"late": "no answer in time", "unreachable": "it hung up"}


def trouble(error: Exception, where: str) -> TierError:
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


Judge = Callable[["bytes | None"], "tuple[bytes, int] | None"]


def settle(
    link: MemcachedLink, name: bytes, judge: Judge, *, looks: bool, timeout: float = PATIENT_SECONDS
) -> Plan[tuple[bool, bytes | None]]:
    """Put a record where another may stand, and whatever others do meanwhile: whether it was put, and what stood there.

    `judge` is given what stands, None for nothing, and says what to put there and until when, or None to let it be.
    Without `looks` it is taken for granted at first that nothing does. `timeout` is for each trip. Raises TierError.
    """
    standing, cas = None, None
    for turn in range(_ROUNDS):
        if looks or turn:
            found = yield Exchange(link, [("gets", name)], timeout)
            standing, cas = found.values[0]
        wanted = judge(standing)
        if wanted is None:
            return False, standing
        data, until = wanted
        command = ("add", name, data, until) if standing is None else ("cas", name, data, cas, until)
        stored = yield Exchange(link, [command], timeout)
        if stored.values[0]:
            return True, standing
    raise TierError("contended", f"{link.where}: {name.decode()} was changed by others {_ROUNDS} times in a row")


@dataclass(slots=True, eq=False)
class Write:
    """An entry that waits to be written; with `cas` it stands already, and is written again to live on."""

    key: bytes
    name: bytes
    data: bytes
    until: int
    born: int = 0
    pairs: Sequence[Pair] = ()
    cas: bytes | None = None


class MemcachedWriter:
    """Writes what is put, one after the other; `covers` says that (pairs, born) was invalidated."""

    def __init__(
        self, link: MemcachedLink, covers: Callable[[Sequence[Pair], int], bool], now: Callable[[], float],
        on_fault: Callable[[str, BaseException], None],
    ) -> None:  # fmt: skip
        self._link = link
        self._covers = covers
        self._now = now
        self._on_fault = on_fault
        self.counts = Counter(written=0, refused=0, lost=0)
        self._begin()

    def _begin(self) -> None:
        self.pending: dict[bytes, Write] = {}
        self._queue: dict[tuple[bytes, bool], Write] = {}
        self._bytes = 0
        self._current: Write | None = None
        self._has_lost = False
        self._is_closing = False
        self._lock = Condition()
        self._thread: Thread | None = None

    def put(self, write: Write) -> None:
        """Queue a write; a later one of a key replaces an earlier one. Raises TierError("full") if too much waits."""
        with self._lock:
            if self._is_closing:
                raise TierError("closed", f"{self._link.where}: it was closed")
            standing = self.pending.get(write.key)
            if standing is not None and write.cas is not None:
                return
            if standing is not None and standing.born > write.born:
                self.counts["refused"] += 1
                return
            at = write.key, write.cas is not None
            older = self._queue.get(at)
            size = self._bytes + len(write.data) - (len(older.data) if older else 0)
            if (older is None and len(self._queue) >= MAX_ENTRIES) or size > MAX_BYTES:
                raise TierError("full", f"{len(self._queue)} entries, {self._bytes} bytes wait to be written")
            self._start()
            self._queue[at] = write
            self._bytes = size
            if write.cas is None:
                self.pending[write.key] = write
            self._lock.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            thread = Thread(target=self._run, name="semcache-memcached", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise TierError("thread", str(error)) from error
            self._thread = thread

    def drop(self, pair: Pair, position: int) -> int:
        """Forget the entries with a facet value that wait and were born before a position; how many."""
        facet, value = pair

        def is_meant(write: Write) -> bool:
            has = write.key == value if facet == "key" else pair in write.pairs
            return has and write.born < position

        with self._lock:
            for at in [at for at, write in self._queue.items() if is_meant(write)]:
                self._bytes -= len(self._queue.pop(at).data)
            doomed = [key for key, write in self.pending.items() if is_meant(write)]
            for key in doomed:
                del self.pending[key]
            self._lock.notify_all()
            return len(doomed)

    def flush(self, timeout: float | None) -> bool:
        """Wait until nothing waits; False where the time was up, or something was lost since the last flush."""
        with self._lock:
            done = self._lock.wait_for(lambda: not self._queue and self._current is None, timeout)
            lost, self._has_lost = self._has_lost, False
            return done and not lost

    def close(self, timeout: float) -> None:
        """Write what waits, for so long at most, and stop."""
        self.flush(timeout)
        with self._lock:
            self._is_closing = True
            self.counts["lost"] += self._clear()
            self._lock.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)

    def _clear(self) -> int:
        entries = sum(write.cas is None for write in self._queue.values())
        self._queue.clear()
        self.pending.clear()
        self._bytes = 0
        return entries

    def sizes(self) -> dict[str, int]:
        """Return how much waits, and what became of the rest."""
        with self._lock:
            waiting = len(self._queue) + (self._current is not None)
            return {"pending": waiting, "pending_bytes": self._bytes} | dict(self.counts)

    def refuse(self) -> None:
        """Count an entry that is invalid already."""
        with self._lock:
            self.counts["refused"] += 1

    def after_fork(self) -> None:
        """Begin anew: what waits is the parent's to write."""
        self._begin()

    # The thread's side

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._queue or self._is_closing)
                if not self._queue:
                    return
                write = self._queue.pop(next(iter(self._queue)))
                self._bytes -= len(write.data)
                self._current = write
            try:
                self._attempt(write)
            except TierError as error:
                self._lose(write, error)
            except Exception as error:  # noqa: BLE001 - the thread lives on, whatever it is
                self._lose(write, trouble(error, self._link.where))
            with self._lock:
                if self.pending.get(write.key) is write:
                    del self.pending[write.key]
                self._current = None
                self._lock.notify_all()

    def _attempt(self, write: Write) -> None:
        """Write it, also where the server is away for a moment."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._write(write)
            except TierError as error:
                if error.reason != "unreachable" or attempt == _TRIES:
                    raise
                with self._lock:
                    if self._lock.wait_for(lambda: self._is_closing, _PAUSE_SECONDS * attempt):
                        raise
            else:
                return

    def _write(self, write: Write) -> None:
        if write.cas is not None:
            # Not `touch`: that would also shorten the life of a tombstone that has come meanwhile.
            self._link.exchange([("cas", write.name, write.data, write.cas, write.until)], PATIENT_SECONDS)
            return
        is_written = False
        if not self._covers(write.pairs, write.born):
            is_written, _ = run(
                settle(self._link, write.name, lambda standing: self._judge(write, standing), looks=False)
            )
        with self._lock:
            self.counts["written" if is_written else "refused"] += 1

    def _judge(self, write: Write, standing: bytes | None) -> tuple[bytes, int] | None:
        if standing is not None and outranks(standing, write.key, write.born, self._now()):
            return None
        return write.data, write.until

    def _lose(self, write: Write, error: TierError) -> None:
        """Drop what could not be written; where the server is gone, all that waits, which would fare no better."""
        entries = int(write.cas is None)
        with self._lock:
            if error.reason in ("late", "unreachable"):
                entries += self._clear()
            self.counts["lost"] += entries
            self._has_lost = self._has_lost or entries > 0
        with suppress(Exception):
            self._on_fault(error.reason, error)
