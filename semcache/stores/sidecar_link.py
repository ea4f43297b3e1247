"""Connections to sidecars, for threads and for the tasks of any loop: HTTP/1.1, kept alive, over TCP, TLS or a socket.

A hit is one request on a connection that is open already, so the head is written once and answers are read by llhttp
(httptools): a general client would cost as much as the trip itself.

Laws:
- nobody waits longer than his timeout, all told; a connection that was given up in the middle of an answer is closed,
  never reused; an idle one that the sidecar has closed meanwhile is replaced once, at once;
- of several sidecars the first that is well is asked; one that failed is left alone for a while, and then tried again;
- no connection crosses a fork or a loop; no token is in a message.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from msgpack import Packer, packb, unpackb

from semcache.errors import TierError
from semcache.stores.sidecar_address import Address
from semcache.stores.sidecar_answer import Answer, GoneError
from semcache.stores.sidecar_tasks import MAX_CONNECTIONS, LoopPool

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

Op = tuple[str, Any]

PATH = "/semcache/v1/cache"
CONTROL = "/semcache/v1/control"
KIND = "application/msgpack"
_RECEIVE_BYTES = 256 * 2**10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_OK = 200
_REASONS = {401: "refused", 403: "refused", 404: "reply", 413: "large", 503: "busy"}
# For which another of the list is asked: it is no sidecar, or a gateway answers for one, or it has too much to do.
_ELSEWHERE = ("reply", "busy")
# What one message holds: a sidecar takes a thousand operations, and 32 MB.
_MOST_OPERATIONS, _MOST_BYTES = 256, 8 * 2**20


class Replies(NamedTuple):
    """What came of each operation, in order, and the nanoseconds spent waiting for a connection."""

    values: list[Any]
    waited_ns: int


class Line:
    """A connection of a thread's, to one address."""

    def __init__(self, address: Address, deadline: float) -> None:
        self.address = address
        self._socket = address.connect(_left(deadline))
        self.stays = True

    def ask(self, data: bytes, deadline: float) -> Answer:
        """Send a request, and return the whole answer. Raises OSError, GoneError where it closed before it began."""
        answer = Answer()
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data)
        while not answer.is_whole:
            self.read(answer, deadline)
        self.stays = answer.stays
        return answer

    def send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data)

    def read(self, answer: Answer, deadline: float) -> None:
        """Wait for more of an answer. Raises OSError."""
        self._socket.settimeout(_left(deadline))
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise GoneError(f"{self.address.where}: it hung up")
        answer.feed(data)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # who waits in `read`, in another thread, goes on
        self._socket.close()


class SidecarLink:
    """Speaks to the first of some sidecars that is well; at most MAX_CONNECTIONS of threads, as many of each loop."""

    def __init__(self, addresses: Sequence[Address], headers: Sequence[tuple[str, str]] = ()) -> None:
        self.addresses = tuple(addresses)
        self.where = ", ".join(address.where for address in self.addresses)
        self._heads = {address: _head(address, headers) for address in self.addresses}
        self._controls = {address: _control(address, headers) for address in self.addresses}
        self._pauses = dict.fromkeys(self.addresses, 0.0)
        self._retry_at = dict.fromkeys(self.addresses, 0.0)
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._idle: dict[Address, deque[Line]] = {address: deque() for address in self.addresses}
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(MAX_CONNECTIONS):
            self._free.put(None)
        self._loops: WeakKeyDictionary[AbstractEventLoop, LoopPool] = WeakKeyDictionary()

    # Which of them

    def candidates(self) -> list[Address]:
        """Return whom to ask, in order: who is well, in the order given, then who failed, the longest ago first."""
        if len(self.addresses) == 1:
            return list(self.addresses)
        now = time.monotonic()
        return sorted(self.addresses, key=lambda address: max(self._retry_at[address] - now, 0.0))

    def failed(self, address: Address) -> None:
        """Leave an address alone for a while."""
        pause = min(max(self._pauses[address] * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        self._pauses[address], self._retry_at[address] = pause, time.monotonic() + pause

    def succeeded(self, address: Address) -> None:
        """Ask an address first again, where it comes first."""
        if self._pauses[address]:
            self._pauses[address] = self._retry_at[address] = 0.0

    # Threads

    def exchange(self, asked: Sequence[Op], timeout: float) -> Replies:
        """Have operations carried out, and return what came of each. Raises TierError, with one word for what is wrong.

        What one of them failed at is a TierError in its place.
        """
        deadline, waited_ns = time.monotonic() + timeout, 0
        try:
            self._free.get_nowait()
        except Empty:
            began = time.perf_counter_ns()
            try:
                self._free.get(timeout=timeout)
            except Empty:
                raise self._crowded() from None
            waited_ns = time.perf_counter_ns() - began
        try:
            values: list[Any] = []
            for body in _packed(asked):
                values += self._converse(body, deadline)
            return Replies(values, waited_ns)
        finally:
            self._free.put(None)

    def _converse(self, body: bytes, deadline: float) -> list[Any]:
        trouble: OSError | TierError | None = None
        for address in self.candidates():
            try:
                values = opened(self._ask(address, self._heads[address](len(body)) + body, deadline), address)
            except (OSError, TierError) as error:
                trouble = error
                if self._is_final(address, error) or time.monotonic() >= deadline:
                    break
                continue
            self.succeeded(address)
            return values
        raise self._trouble(trouble)

    def _ask(self, address: Address, data: bytes, deadline: float) -> Answer:
        idle = self._idle[address]
        try:
            line = idle.pop()
        except IndexError:
            return self._ask_anew(address, data, deadline)
        try:
            return self._asked(line, data, deadline)
        except (GoneError, ConnectionError):
            self._drop(idle)  # the sidecar was begun anew, or has closed what was idle for long
            return self._ask_anew(address, data, deadline)

    def _ask_anew(self, address: Address, data: bytes, deadline: float) -> Answer:
        if self._is_closed:
            raise TierError("closed", f"{self.where}: it was closed")
        return self._asked(Line(address, deadline), data, deadline)

    def _asked(self, line: Line, data: bytes, deadline: float) -> Answer:
        is_whole = False
        try:
            answer = line.ask(data, deadline)
            is_whole = line.stays
        finally:
            if is_whole and not self._is_closed:
                self._idle[line.address].append(line)
            else:
                line.close()
        return answer

    @staticmethod
    def _drop(idle: deque[Line]) -> None:
        with suppress(IndexError):
            while True:
                idle.pop().close()

    def control(self, address: Address, timeout: float) -> Line:
        """Open a connection to an address and ask for its control stream. Raises OSError."""
        deadline = time.monotonic() + timeout
        line = Line(address, deadline)
        try:
            line.send(self._controls[address], deadline)
        except BaseException:
            line.close()
            raise
        return line

    # Tasks

    async def aexchange(self, asked: Sequence[Op], timeout: float) -> Replies:
        """Do as `exchange` does, without blocking the loop."""
        loop = asyncio.get_running_loop()
        pool = self._loops.get(loop)
        if pool is None:
            if self._is_closed:
                raise TierError("closed", f"{self.where}: it was closed")
            pool = self._loops[loop] = LoopPool()
            await pool.begin()
        deadline, waited_ns = loop.time() + timeout, 0
        if pool.free.locked():
            began = time.perf_counter_ns()
            try:
                async with asyncio.timeout_at(deadline):
                    await pool.free.acquire()
            except TimeoutError:
                raise self._crowded() from None
            waited_ns = time.perf_counter_ns() - began
        else:
            await pool.free.acquire()  # does not wait
        try:
            values: list[Any] = []
            for body in _packed(asked):
                values += await self._aconverse(pool, body, deadline)
            return Replies(values, waited_ns)
        finally:
            pool.free.release()

    async def _aconverse(self, pool: LoopPool, body: bytes, deadline: float) -> list[Any]:
        loop, trouble = asyncio.get_running_loop(), None
        for address in self.candidates():
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await pool.ask(address, self._heads[address](len(body)) + body)
                values = opened(answer, address)
            except (OSError, TierError) as error:
                trouble = error
                if self._is_final(address, error) or loop.time() >= deadline:
                    break
                continue
            self.succeeded(address)
            return values
        raise self._trouble(trouble)

    # Both

    @staticmethod
    def join(asked: list[Sequence[Op]]) -> tuple[list[Op], Callable[[Replies], list[Replies]]]:
        """Make one exchange of many."""

        def split(replies: Replies) -> list[Replies]:
            values = iter(replies.values)
            return [Replies(list(islice(values, len(one))), replies.waited_ns) for one in asked]

        return [op for one in asked for op in one], split

    def _crowded(self) -> TierError:
        return TierError("pool", f"{self.where}: all {MAX_CONNECTIONS} connections are in use")

    def _is_final(self, address: Address, error: OSError | TierError) -> bool:
        """Take note that asking an address failed; whether no other is to be asked."""
        if isinstance(error, TierError) and error.reason not in _ELSEWHERE:
            return True
        self.failed(address)
        return False

    def _trouble(self, error: OSError | TierError | None) -> TierError:
        if isinstance(error, TierError):
            return error
        reason = "late" if isinstance(error, TimeoutError) else "unreachable"
        told = "no answer in time" if reason == "late" else f"{error or 'nobody there'}"
        return TierError(reason, f"{self.where}: {told}")

    def close(self) -> None:
        """Close what is idle; what is in use is closed by whoever uses it."""
        self._is_closed = True
        for idle in self._idle.values():
            self._drop(idle)
        for loop, pool in list(self._loops.items()):
            pool.close(loop)

    def after_fork(self) -> None:
        """Begin anew. The parent's sockets are left to it."""
        self._inherited = (self._idle, self._loops)
        self._begin()


def opened(answer: Answer, address: Address) -> list[Any]:
    """Return what came of each operation. Raises TierError for an answer that is none."""
    if answer.status != _OK:
        told = answer.body[:300].decode("utf-8", "replace").strip()
        reason = _REASONS.get(answer.status, "reply")
        raise TierError(reason, f"{address.where}: status {answer.status}: {told}")
    try:
        return list(_values(unpackb(answer.body, strict_map_key=False, unicode_errors="surrogatepass")))
    except (ValueError, TypeError) as error:
        raise TierError("reply", f"{address.where}: it does not answer as a sidecar of this version does") from error


def _values(told: Any) -> Iterator[Any]:
    for is_well, value in told:
        yield value if is_well else TierError(str(value[0]), str(value[1]))


def _packed(asked: Sequence[Op]) -> Iterator[bytes]:
    """Yield messages of some operations each."""
    if len(asked) == 1:
        yield b"\x91" + packb(asked[0], unicode_errors="surrogatepass")
        return
    message: list[bytes] = []
    size = 0
    for op in asked:
        packed: bytes = packb(op, unicode_errors="surrogatepass")
        if message and (len(message) >= _MOST_OPERATIONS or size + len(packed) > _MOST_BYTES):
            yield _message(message)
            message, size = [], 0
        message.append(packed)
        size += len(packed)
    yield _message(message)


def _message(packed: list[bytes]) -> bytes:
    head: bytes = Packer().pack_array_header(len(packed))
    return head + b"".join(packed)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _told(address: Address, headers: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in (("host", address.host), *headers, *address.headers))


def _head(address: Address, headers: Sequence[tuple[str, str]]) -> Callable[[int], bytes]:
    begin = f"POST {PATH} HTTP/1.1\r\n{_told(address, headers)}content-type: {KIND}\r\ncontent-length: ".encode()
    return lambda length: b"%b%d\r\n\r\n" % (begin, length)


def _control(address: Address, headers: Sequence[tuple[str, str]]) -> bytes:
    return f"GET {CONTROL} HTTP/1.1\r\n{_told(address, headers)}\r\n".encode()
