"""What a program owes its sidecar beside entries: sums that were booked, and ids of answers; sent behind everybody.

Laws: nobody waits for it, least of all who follows the control stream; a batch of sums has a number, and is added
once, however often it is sent; what the sidecar does not understand is dropped, as it never will.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice
from threading import Lock
from typing import Any

from semcache.errors import TierError

_MOST_BATCHES, _MOST_NAMES = 500, 10_000
_AT_ONCE = 500


class Owed:
    """Sums and ids on their way; `ask` has a sidecar carry out an operation, and raises TierError."""

    def __init__(self, ask: Callable[[str, Any], Any]) -> None:
        self._ask = ask
        self.after_fork()

    def after_fork(self) -> None:
        """Begin anew: what is owed is the parent's to send."""
        self._sums: list[list[Any]] = []
        self._names: dict[bytes, bytes] = {}
        self._lock, self._sending = Lock(), Lock()

    @property
    def is_owing(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._sums or self._names)

    def book(self, day: str, amounts: Mapping[str, float]) -> None:
        """Owe the sums of a day. Raises TierError where too much is owed already."""
        with self._lock:
            if len(self._sums) >= _MOST_BATCHES:
                raise TierError("full", "the sidecar has not taken what was booked for long")
            self._sums.append([os.urandom(8), day, dict(amounts)])

    def name(self, names: Mapping[bytes, bytes]) -> None:
        """Owe the ids of answers; of too many the oldest go."""
        with self._lock:
            self._names.update(names)
            for name in list(islice(self._names, max(0, len(self._names) - _MOST_NAMES))):
                del self._names[name]

    def send(self) -> None:
        """Send all. Raises TierError; what was not taken is owed on."""
        with self._sending:
            with self._lock:
                sums, names = list(self._sums), dict(islice(self._names.items(), _AT_ONCE))
            if sums:
                self._told("book", sums)
                with self._lock:
                    del self._sums[: len(sums)]
            if names:
                self._told("names", [[name, key] for name, key in names.items()])
                with self._lock:
                    for name, key in names.items():
                        if self._names.get(name) == key:
                            del self._names[name]
        if self._names:
            self.send()

    def _told(self, what: str, told: Any) -> None:
        try:
            self._ask(what, told)
        except TierError as error:
            if error.reason not in ("unreadable", "unknown"):
                raise
