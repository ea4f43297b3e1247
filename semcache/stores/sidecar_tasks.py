"""Connections to sidecars for the tasks of one loop. Law: none is used again that was given up within an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from semcache.errors import TierError
from semcache.stores.loop_end import EndsWithLoop
from semcache.stores.sidecar_address import Address
from semcache.stores.sidecar_answer import Answer, GoneError

MAX_CONNECTIONS = 256


class _Wire(asyncio.Protocol):
    """A connection of a task's."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self.is_lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        answer, waiter = self._answer, self._waiter
        if answer is None or waiter is None or waiter.done():
            self.close()  # nobody has asked
            return
        try:
            answer.feed(data)
        except TierError as error:
            waiter.set_exception(error)
            return
        if answer.is_whole:
            waiter.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error or GoneError("it hung up"))

    async def ask(self, data: bytes) -> Answer:
        """Send a request, and return the whole answer. Raises OSError."""
        if self.is_lost or self.transport is None:
            raise GoneError("it hung up")
        self._answer, self._waiter = Answer(), asyncio.get_running_loop().create_future()
        self.transport.write(data)
        try:
            return await self._waiter
        finally:
            self._answer = self._waiter = None

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class LoopPool(EndsWithLoop):
    """The connections of one loop."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: dict[Address, list[_Wire]] = {}

    def hang_up(self) -> None:
        for idle in self._idle.values():
            self._drop(idle)

    async def ask(self, address: Address, data: bytes) -> Answer:
        """Ask an address. Raises OSError."""
        idle = self._idle.setdefault(address, [])
        while idle:
            wire = idle.pop()
            if not wire.is_lost:
                try:
                    return await self._asked(wire, idle, data)
                except (GoneError, ConnectionError):
                    self._drop(idle)
        return await self._asked(await address.aconnect(_Wire), idle, data)

    @staticmethod
    async def _asked(wire: _Wire, idle: list[_Wire], data: bytes) -> Answer:
        is_whole = False
        try:
            answer = await wire.ask(data)
            is_whole = answer.stays
        finally:
            if is_whole:
                idle.append(wire)
            else:
                wire.close()
        return answer

    @staticmethod
    def _drop(idle: list[_Wire]) -> None:
        while idle:
            idle.pop().close()
