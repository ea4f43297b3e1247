"""What the parts of the store in a Redis share: where it is, what time it is there, and what was heard of its log."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import ceil
from typing import Any

from semcache.blocks import Blocks
from semcache.errors import TierError
from semcache.marks import Marks
from semcache.stores import header
from semcache.stores.address import address_of
from semcache.stores.link import PATIENT_SECONDS, Command, Link
from semcache.stores.outbox import Outbox, Sent, Write
from semcache.stores.redis_keys import (
    Names,
    member,
    seconds_of,
)
from semcache.stores.redis_ledger import Ledger
from semcache.stores.redis_pins import WAITING, Pins
from semcache.stores.redis_trouble import trouble
from semcache.tier import Clock, SystemClock

LONGEST_LOAD_SECONDS = 3600.0
# Every mark of the namespace in between makes it one more.
_TRIES = 200
# Entries that are written in one trip.
BATCH = 128


class RedisBase:
    """One namespace in one Redis. `marks` are this process's; `on_fault` is told what goes wrong behind the callers."""

    def __init__(
        self, redis: Any, *, namespace: str, timeout: float, clock: Clock, marks: Marks, index_ttl: float, ttl: float,
        on_fault: Callable[[str, BaseException], None], blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        address = address_of(redis)
        self.link = Link(address)
        self.where = address.where
        self.names = Names(namespace)
        self.is_followed = False
        self.pins = Pins(namespace)
        self._on_fault = on_fault
        self.blocks = Blocks() if blocks is None else blocks
        self._steady = Link(address)  # marks and writes do not wait behind readers
        self._ledger = Ledger(self._steady, self.names)
        self.writer: Outbox[list[Command]] = Outbox(
            "semcache-redis", self._deliver, covers=marks.cover, on_fault=self._lost, batch=BATCH, debts=self._ledger
        )
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
        # The latest mode of all replicas that was heard of, and its position: as a pair, the later is the greater.
        self._mode: tuple[int, str] = (0, "")
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

    def _deliver(self, batch: list[Write[list[Command]]]) -> Sent:
        """Write entries in one trip; the first command of each is the one that keeps it."""
        plain = [write for write in batch if not write.key.startswith(WAITING)]
        commands = [command for write in plain for command in write.what]
        marks = self.names.marks, self.names.gone
        newest: list[Command] = [("ZREVRANGE", name, 0, 0, "WITHSCORES") for name in marks]
        replies = self._send(commands + newest + self._upkeep())
        self._take_back(plain, replies[len(commands) : len(commands) + len(newest)])
        sent: Sent = []
        at = 0
        for write in batch:
            if write.key.startswith(WAITING):
                sent.append(self._deliver_pinned(write))
                continue
            sent.append(replies[at] if isinstance(replies[at], Exception) else True)
            at += len(write.what)
        return sent

    def _deliver_pinned(self, write: Write[list[Command]]) -> bool | BaseException:
        """Write a pinned entry, or its row, unless it was invalidated or a younger one stands; it has no end."""
        place, pairs = self.names.of_pinned(write.key.removeprefix(WAITING)), list(write.pairs or ())
        keys = [value for facet, value in pairs if facet == "key"]
        asked: list[Command] = [
            ("WATCH", place, self.names.marks, self.names.gone), ("GETRANGE", place, 0, header.HEADER_BYTES),
            ("ZMSCORE", self.names.marks, *(member(*pair) for pair in pairs)), ("ZMSCORE", self.names.gone, *keys),
        ]  # fmt: skip
        is_whole = write.data is not None

        def then(replies: list[Any]) -> list[Command]:
            _, head, scores, gone = (self._checked(reply) for reply in replies)
            standing = header.born_of(head)
            is_marked = any(score is not None and write.born < int(float(score)) for score in [*scores, *gone])
            is_wanted = standing is None or standing <= write.born if is_whole else standing == write.born
            return [("MULTI",), *(write.what if is_wanted and not is_marked else ()), ("EXEC",)]

        for _ in range(_TRIES):
            done = self._steady.exchange(asked, PATIENT_SECONDS, then).values[-1]
            if isinstance(done, Exception):
                return done
            if done is not None:  # else somebody else wrote in between
                failed: BaseException | None = next((one for one in done if isinstance(one, Exception)), None)
                return failed or bool(done)
        return TierError("busy", f"{self.where}: a pinned entry could not be written, so many others were")

    def _take_back(self, batch: list[Write[list[Command]]], newest: list[Any]) -> None:
        """Drop what another process invalidated just before it was written: the entry may outlive the mark."""
        newest_mark = max((int(float(one[1])) for one in map(self._checked, newest) if one), default=0)
        if newest_mark > self._marks.newest:
            pairs = list({pair: None for write in batch for pair in write.pairs or ()})
            keys = [value for facet, value in pairs if facet == "key"]
            if pairs:
                asked: list[Command] = [("ZMSCORE", self.names.marks, *(member(*pair) for pair in pairs))]
                asked += [("ZMSCORE", self.names.gone, *keys)] if keys else []
                scores = [score for reply in map(self._checked, self._send(asked)) for score in reply]
                for pair, score in zip(pairs + [("key", key) for key in keys], scores, strict=True):
                    if score is not None:
                        self._marks.mark(*pair, int(float(score)))
        doomed = [write.key for write in batch if write.pairs and self._marks.cover(write.pairs, write.born)]
        if doomed:
            self._send([("UNLINK", *map(self.names.of, doomed))])

    def _prolong(self, *names: bytes) -> list[Command]:
        """Let keys stand as long as an entry and its load can, and no shorter than they do; also such as are new.

        GT alone would take a new key, which has no expiry, for one that stands for ever.
        """
        stays = ceil((2 * self._longest + LONGEST_LOAD_SECONDS) * 1000)
        return [("PEXPIRE", name, stays, how) for name in names for how in ("NX", "GT")]

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
