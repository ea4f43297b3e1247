"""What was booked, on its way into Redis: one hash for each day, to which every process adds its sums.

An increment is not as harmless to repeat as a write: a server that was paused may carry out what was given up as late,
after what was sent in its place. So each batch has a number, which the transaction that adds it writes under
`booked:PROCESS`; that key is watched and read first.

Laws:
- a batch is added once, however often it is sent;
- a hash has at most about MAX_NAMES names: once there are as many, a new one is counted as "other", unless
  it is a policy's, which bounds its own;
- each hash is kept for 400 days; what waits here is bounded, in the same way as a hash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from threading import Lock
from typing import Any

from semcache.errors import TierError
from semcache.meter import overflow
from semcache.stores.link import PATIENT_SECONDS, Command, Link
from semcache.stores.redis_keys import Names
from semcache.stores.redis_trouble import trouble

MAX_NAMES = 4096
KEEP_SECONDS = 400 * 86_400
_MOST_WAITING = 20_000
_BATCH = 1000
_TRIES = 3
# Far longer than a batch is tried for, or a server can be paused with one in its buffers.
_NUMBER_SECONDS = 86_400

Sums = dict[tuple[str, str], float]


class Ledger:
    """Sums by (day, name) that are to be added to the store's; filled by callers, sent by the writer's thread."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link = link
        self._names = names
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        self._process = os.urandom(8)
        self._waiting: Sums = {}
        self._batch: Sums = {}
        self._number = 0

    def add(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Take what is to be added."""
        with self._lock:
            for (day, name), amount in amounts.items():
                is_new = (day, name) not in self._waiting
                at = (day, overflow(name) if is_new and len(self._waiting) >= _MOST_WAITING else name)
                self._waiting[at] = self._waiting.get(at, 0.0) + amount

    @property
    def is_owing(self) -> bool:
        """Whether there is anything that the server has not taken yet."""
        return bool(self._batch or self._waiting)

    def send(self) -> None:
        """Have the server add what waits. Raises TierError where some of it waits still."""
        while self._take():
            for _ in range(_TRIES):
                if self._is_added():
                    break
            else:
                raise TierError("busy", f"{self._link.where}: what was booked could not be added, and waits")
            self._batch = {}

    def _take(self) -> bool:
        """Give a batch its number, unless one waits that may be there already; False where there is nothing to send."""
        with self._lock:
            if not self._batch and self._waiting:
                names = list(self._waiting)[:_BATCH]
                self._batch = {at: self._waiting.pop(at) for at in names}
                self._number += 1
        return bool(self._batch)

    def _is_added(self) -> bool:
        """Send the batch, if it is not known to be there; False where somebody, an earlier try, was quicker."""
        mine, number = self._names.booked(self._process), b"%d" % self._number
        days: dict[str, list[str]] = {}
        for day, name in self._batch:
            days.setdefault(day, []).append(name)
        asked: list[Command] = [("WATCH", mine), ("GET", mine)]
        for day, names in days.items():
            asked += [("HLEN", self._names.use(day)), ("HMGET", self._names.use(day), *names)]
        heard: list[Any] = []

        def then(replies: list[Any]) -> list[Command]:
            heard[:] = replies
            if replies[1] == number or any(isinstance(reply, Exception) for reply in replies):
                return [("MULTI",), ("EXEC",)]  # watches no more
            adding: list[Command] = [("MULTI",)]
            for (day, names), length, standing in zip(days.items(), replies[2::2], replies[3::2], strict=True):
                adding += self._adding(day, names, int(length), standing)
            return [*adding, ("SET", mine, number, "PX", _NUMBER_SECONDS * 1000), ("EXEC",)]

        told = self._link.exchange(asked, PATIENT_SECONDS, then).values
        done = (
            told[-1] if isinstance(told[-1], list) else []
        )  # one that fails alone, on a foreign value, is lost and told
        failed = next((reply for reply in [*heard, *told, *done] if isinstance(reply, Exception)), None)
        if failed is not None:
            raise trouble(failed, self._link.where)
        return heard[1] == number or told[-1] is not None

    def _adding(self, day: str, names: list[str], length: int, standing: list[Any]) -> list[Command]:
        at, adding = self._names.use(day), []
        for name, amount in zip(names, standing, strict=True):
            if amount is None:
                length += 1
            told = overflow(name) if amount is None and length > MAX_NAMES else name
            adding.append(("HINCRBYFLOAT", at, told, repr(float(self._batch[day, name]))))
        return [*adding, ("PEXPIRE", at, KEEP_SECONDS * 1000)]

    def after_fork(self) -> None:
        """Begin anew, as another process: what waits is the parent's to send."""
        self._begin()
