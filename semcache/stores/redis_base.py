"""What the parts of the store in a Redis share: where it is, what time it is there, and what was heard of its log."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from semcache.marks import Marks
from semcache.model import Mode
from semcache.stores.address import address_of
from semcache.stores.link import PATIENT_SECONDS, Command, Link, trouble
from semcache.stores.redis_keys import (
    Names,
    member,
    seconds_of,
)
from semcache.stores.redis_ledger import Ledger
from semcache.stores.redis_writer import RedisWriter
from semcache.tier import Clock, SystemClock

LONGEST_LOAD_SECONDS = 3600.0


class RedisBase:
    """One namespace in one Redis. `marks` are this process's; `on_fault` is told what goes wrong behind the callers."""

    def __init__(
        self, redis: Any, *, namespace: str, timeout: float, clock: Clock, marks: Marks, index_ttl: float, ttl: float,
        on_fault: Callable[[str, BaseException], None],
    ) -> None:  # fmt: skip
        address = address_of(redis)
        self.link = Link(address)
        self.where = address.where
        self.names = Names(namespace)
        self.is_followed = False
        self._on_fault = on_fault
        self._steady = Link(address)  # marks and writes do not wait behind readers
        self.writer = RedisWriter(self._send, marks.cover, self._upkeep, self._lost, Ledger(self._steady, self.names))
        self._own = member("namespace", namespace)
        self._namespace = namespace
        self._timeout = timeout
        self._clock = clock
        self._marks = marks
        self._index_ttl = index_ttl
        self._longest = max(ttl, index_ttl)
        self._token = os.urandom(8)
        self._offset = 0.0
        self._position = 0
        self._awaiting: dict[bytes, list[Any]] = {}
        self._following: Any = None
        self._verify_at = 0.0
        self._floor = 0
        self._last_seen = 0
        self._read_so_far = 0
        self._upkeep_at = 0.0
        self._mode: Mode | None = None
        self._is_closed = False

    # Time and place

    def now(self) -> float:
        """Return the server's time, as this process knows it; a clock that was injected is taken for the server's."""
        return self._clock.time() + self._offset

    def position(self) -> int:
        """Return the latest position that was heard of."""
        return self._position

    def _heard(self, position: int) -> None:
        self._position = max(self._position, position)

    def _set_clock(self, reply: Any) -> float:
        if isinstance(reply, Exception):
            raise trouble(reply, self.where)
        server = seconds_of(reply)
        if isinstance(self._clock, SystemClock):
            self._offset = server - self._clock.time()
        return server

    def _send(self, commands: list[Command]) -> list[Any]:
        values: list[Any] = self._steady.exchange(commands, PATIENT_SECONDS).values
        return values

    def _lost(self, error: BaseException) -> None:
        """Tell of what could not be written, in the tier's own words."""
        told = trouble(error, self.where)
        self._on_fault(told.reason, told)

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, Exception):
            raise trouble(reply, self.where)
        return reply

    def _upkeep(self) -> list[Command]:
        """Return what is due with the next write, to keep our keys bounded."""
        return []
