"""Connections to one Redis, for threads and for the tasks of any loop, made by redis-py and spoken to directly.

A hit is one command on a socket that is open already, so we hand redis-py's connections packed bytes and read raw
replies: retries, response callbacks and instrumentation of its client would cost as much as the trip itself.

Laws:
- an exchange is many commands and their replies in one round trip; an error reply is a value in its place;
- nobody waits longer than his timeout, all told: for a connection, for connecting, for sending and for every piece of
  the replies; a connection that was given up in the middle of a reply is closed, never reused;
- where the time was too short for connecting and asking, a connection is made behind the caller, for the next one;
- an idle connection that the server has closed meanwhile is replaced once, at once;
- no connection crosses a fork or a loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from semcache.errors import TierError
from semcache.stores.address import Address
from semcache.stores.loop_end import EndsWithLoop
from semcache.stores.redis_trouble import trouble

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

Command = tuple[Any, ...]
Then = Callable[[list[Any]], list[Command]]

# A connection that could not be made within a caller's deadline is made behind him, with more time.
PATIENT_SECONDS = 5.0


class Replies(NamedTuple):
    """The replies of an exchange, in order, and the nanoseconds spent waiting for a connection."""

    values: list[Any]
    waited_ns: int


def _split(lengths: list[int], replies: Replies) -> list[Replies]:
    values = iter(replies.values)
    return [Replies(list(islice(values, length)), replies.waited_ns) for length in lengths]


def _split_values(replies: Replies) -> list[Replies]:
    (values,) = replies.values
    if isinstance(values, Exception):
        raise values
    return [Replies([value], replies.waited_ns) for value in values]


class Link:
    """Speaks to one Redis; at most `address.max_connections` connections of threads, and as many of each loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.where = address.where
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._idle: deque[Any] = deque()
        # As many as there may be connections; a semaphore would cost a quarter of a trip.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(self.address.max_connections):
            self._free.put(None)
        self._opening = Lock()
        self._loops: WeakKeyDictionary[AbstractEventLoop, _LoopPool] = WeakKeyDictionary()

    # Threads

    def exchange(self, asked: Sequence[Command], timeout: float, then: Then | None = None) -> Replies:
        """Send commands and return their replies. Raises TierError, with one word for what went wrong.

        With `then`, which is given the replies, what it returns is sent over the same connection, as after a WATCH, and
        answered.
        """
        deadline, waited_ns = time.monotonic() + timeout, 0
        try:
            self._free.get_nowait()
        except Empty:
            began = time.perf_counter_ns()
            self._wait_for_one(timeout)
            waited_ns = time.perf_counter_ns() - began
        try:
            return Replies(self._converse(asked, deadline, then), waited_ns)
        except (RedisError, OSError) as error:
            raise trouble(error, self.where) from error
        finally:
            self._free.put(None)

    def _wait_for_one(self, timeout: float) -> None:
        try:
            self._free.get(timeout=timeout)
        except Empty:
            full = f"{self.where}: all {self.address.max_connections} connections are in use"
            raise TierError("pool", full) from None

    def _converse(self, asked: Sequence[Command], deadline: float, then: Then | None) -> list[Any]:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._converse_anew(asked, deadline, then)
        connection.deadline = deadline
        try:
            values = _converse(connection, asked, then)
        except RedisConnectionError:
            self._drop_idle()  # the server was restarted, or has closed what was idle for long
            return self._converse_anew(asked, deadline, then)
        self._keep(connection)
        return values

    def _converse_anew(self, asked: Sequence[Command], deadline: float, then: Then | None) -> list[Any]:
        """Connect first; where the time is up before all is done, the next caller is to find a connection."""
        if self._is_closed:
            raise TierError("closed", f"{self.where}: it was closed")
        connection = self.address.connect()
        connection.deadline = deadline
        try:
            connection.connect()
            values = _converse(connection, asked, then)
        except BaseException as error:
            connection.disconnect()
            if isinstance(error, (RedisTimeoutError, TimeoutError)):
                self._open_behind()
            raise
        self._keep(connection)
        return values

    def _keep(self, connection: Any) -> None:
        self._idle.append(connection)
        if self._is_closed:
            self._drop_idle()

    def _open_behind(self) -> None:
        """Make a connection for the next caller: a handshake may well take longer than anybody's deadline."""
        if not self._opening.acquire(blocking=False):
            return

        def work(opening: Lock = self._opening, idle: deque[Any] = self._idle) -> None:
            connection = self.address.connect()
            connection.deadline = time.monotonic() + PATIENT_SECONDS
            try:
                connection.connect()
                idle.append(connection)
            except Exception:  # noqa: BLE001 - the next caller meets it again, and is told
                connection.disconnect()
            finally:
                opening.release()
                if self._is_closed:
                    self._drop_idle()

        try:
            Thread(target=work, name="semcache-connect", daemon=True).start()
        except RuntimeError:
            self._opening.release()

    def _drop_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().disconnect()

    # Tasks

    @staticmethod
    def join(asked: list[Sequence[Command]]) -> tuple[list[Command], Callable[[Replies], list[Replies]]]:
        """Make one exchange of many: of those that are one GET each, one MGET."""
        if all(len(one) == 1 and one[0][0] == "GET" for one in asked):
            return [("MGET", *(one[0][1] for one in asked))], _split_values
        lengths = [len(one) for one in asked]
        return [command for one in asked for command in one], partial(_split, lengths)

    async def aexchange(self, asked: Sequence[Command], timeout: float) -> Replies:
        """Send commands and return their replies, without blocking the loop."""
        loop = asyncio.get_running_loop()
        pool = self._loops.get(loop)
        if pool is None:
            if self._is_closed:
                raise TierError("closed", f"{self.where}: it was closed")
            pool = self._loops[loop] = _LoopPool(self.address)
            await pool.begin()
        try:
            return await pool.exchange(asked, timeout)
        except TimeoutError as error:
            raise TierError("late", f"{self.where}: no answer within {timeout:g} s") from error
        except (RedisError, OSError) as error:
            raise trouble(error, self.where) from error

    def close(self) -> None:
        """Close what is idle; what is in use is closed by whoever uses it."""
        self._is_closed = True
        self._drop_idle()
        for loop, pool in list(self._loops.items()):
            pool.close(loop)

    def after_fork(self) -> None:
        """Begin anew. The parent's sockets are left to it: to close them here would say goodbye in its name."""
        self._inherited = (self._idle, self._loops)
        self._begin()


def converse(connection: Any, asked: Sequence[Command]) -> list[Any]:
    """Send commands and return their replies, error replies in their places; a broken connection is closed."""
    packed = connection.pack_command(*asked[0]) if len(asked) == 1 else connection.pack_commands(asked)
    connection.send_packed_command(packed, check_health=False)
    values = []
    for _ in asked:
        try:
            values.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            values.append(error)
        except BaseException:
            connection.disconnect()
            raise
    return values


def _converse(connection: Any, asked: Sequence[Command], then: Then | None) -> list[Any]:
    values = converse(connection, asked)
    return values if then is None else converse(connection, then(values))


class _LoopPool(EndsWithLoop):
    """The connections of one loop."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self._address = address
        self._idle: list[Any] = []
        self._free = asyncio.Semaphore(address.max_connections)
        self._making: set[asyncio.Task[Any]] = set()

    def hang_up(self) -> None:
        while self._idle:
            _hang_up(self._idle.pop())

    async def exchange(self, asked: Sequence[Command], timeout: float) -> Replies:
        deadline, waited_ns = asyncio.get_running_loop().time() + timeout, 0
        if self._free.locked():
            began = time.perf_counter_ns()
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
            waited_ns = time.perf_counter_ns() - began
        else:
            await self._free.acquire()  # does not wait
        try:
            if self._idle:
                try:
                    return Replies(await self._converse(self._idle.pop(), asked, deadline), waited_ns)
                except RedisConnectionError:
                    while self._idle:
                        _hang_up(self._idle.pop())
            connection = await self._open(deadline)
            try:
                return Replies(await self._converse(connection, asked, deadline), waited_ns)
            except TimeoutError:
                self._open_behind()
                raise
        finally:
            self._free.release()

    async def _converse(self, connection: Any, asked: Sequence[Command], deadline: float) -> list[Any]:
        is_whole = False
        values: list[Any] = []
        try:
            async with asyncio.timeout_at(deadline):
                packed = connection.pack_command(*asked[0]) if len(asked) == 1 else connection.pack_commands(asked)
                await connection.send_packed_command(packed, check_health=False)
                for _ in asked:
                    try:
                        values.append(await connection.read_response(disable_decoding=True))
                    except ResponseError as error:
                        values.append(error)
                is_whole = True
        finally:
            if is_whole:
                self._idle.append(connection)
            else:
                _hang_up(connection)
        return values

    async def _open(self, deadline: float) -> Any:
        """Connect within the deadline, or let the next caller find what comes of it."""
        making, connection = self._begin_to_make()
        done, _ = await asyncio.wait([making], timeout=max(deadline - asyncio.get_running_loop().time(), 0.0))
        if not done:
            making.add_done_callback(lambda task: self._take(task, connection))
            raise RedisTimeoutError("connecting took too long")
        making.result()
        return connection

    def _open_behind(self) -> None:
        """Make a connection for the next caller, unless one is being made: this one had too little time for both."""
        if not self._making:
            making, connection = self._begin_to_make()
            making.add_done_callback(lambda task: self._take(task, connection))

    def _begin_to_make(self) -> tuple[asyncio.Task[Any], Any]:
        connection = self._address.aconnect()
        making = asyncio.get_running_loop().create_task(self._make(connection))
        self._making.add(making)
        making.add_done_callback(self._made)
        return making, connection

    @staticmethod
    async def _make(connection: Any) -> None:
        try:
            async with asyncio.timeout(PATIENT_SECONDS):
                await connection.connect()
        except BaseException:
            _hang_up(connection)
            raise

    def _made(self, task: asyncio.Task[Any]) -> None:
        self._making.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as lost

    def _take(self, task: asyncio.Task[Any], connection: Any) -> None:
        if not task.cancelled() and task.exception() is None:
            self._idle.append(connection)


def _hang_up(connection: Any) -> None:
    """Close an asyncio connection without waiting: what is in its buffers is nobody's any more."""
    with suppress(Exception):  # its loop may be closing
        connection._parser.on_disconnect()  # noqa: SLF001 - redis-py's own way to close waits, and needs a task
        connection._close()  # noqa: SLF001
