"""The thread that writes entries to Redis behind the callers, many in one round trip.

Laws:
- an entry can be read from `pending` from the moment it is put until it is in the store;
- value first, then its place among the keys, then its record; an entry born before a mark is not written (law 8);
- what is queued is bounded; what cannot be written is dropped, counted and told, and the thread lives on;
- what was booked is never dropped: it is tried again with what is booked next, and by `flush`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from semcache.errors import TierError
from semcache.stores.redis_ledger import Ledger

MAX_ENTRIES = 4096
MAX_BYTES = 64 * 2**20
BATCH = 128
_BATCH_BYTES = 4 * 2**20
_TRIES = 3
_PAUSE_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class Write:
    """What is to be sent for one key; `data` is what a reader finds meanwhile, None where there is nothing to read."""

    key: bytes
    commands: list[tuple[Any, ...]]
    data: bytes | None = None
    born: int = 0
    pairs: list[tuple[str, str | bytes]] | None = None
    size: int = 0


class RedisWriter:
    """Sends what is put; `send` is an exchange with the server, `covers` says that (pairs, born) was invalidated."""

    def __init__(
        self, send: Callable[[list[tuple[Any, ...]]], list[Any]], covers: Callable[[Any, int], bool],
        upkeep: Callable[[], list[tuple[Any, ...]]], on_fault: Callable[[BaseException], None], ledger: Ledger,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._send = send
        self._covers = covers
        self._upkeep = upkeep
        self._on_fault = on_fault
        self.counts = Counter(written=0, refused=0, lost=0)
        self._begin()

    def _begin(self) -> None:
        self.pending: dict[bytes, Write] = {}
        self._queue: dict[bytes | object, Write] = {}
        self._bytes = 0
        self._sending = 0
        self._has_lost = False
        self._is_to_book = False
        self._is_booking = False
        self._is_closing = False
        self._lock = Condition()
        self._thread: Thread | None = None

    def put(self, write: Write) -> None:
        """Queue a write; a later one of a key replaces an earlier one. Raises TierError("full") if too much waits."""
        with self._lock:
            if self._is_closing:
                raise TierError("closed", "the store was closed")
            at: bytes | object = write.key if write.data is not None else object()
            older = self._queue.get(at)
            more = write.size - (older.size if older else 0)
            if (older is None and len(self._queue) >= MAX_ENTRIES) or self._bytes + more > MAX_BYTES:
                raise TierError("full", f"{len(self._queue)} entries, {self._bytes} bytes wait to be written")
            if older is not None and older.born > write.born:
                return
            self._queue[at] = write
            self._bytes += more
            if write.data is not None:
                self.pending[write.key] = write
            self._start()
            self._lock.notify_all()

    def book(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Queue what is to be added to the counters of (day, name). Raises TierError("closed")."""
        with self._lock:
            if self._is_closing:
                raise TierError("closed", "the store was closed")
            self._start()
            self._ledger.add(amounts)
            self._is_to_book = True
            self._lock.notify_all()

    def settle(self, timeout: float | None) -> bool:
        """Wait until what was booked is in the store; False where it is not."""
        with self._lock:
            self._ask_again()
            self._lock.wait_for(lambda: not self._is_to_book and not self._is_booking, timeout)
            return not self._ledger.is_owing

    def _ask_again(self) -> None:
        """Have tried again what could not be booked; the lock is held."""
        if self._ledger.is_owing and self._thread is not None:
            self._is_to_book = True
            self._lock.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            thread = Thread(target=self._run, name="semcache-redis", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise TierError("thread", str(error)) from error
            self._thread = thread

    def drop(self, means: Callable[[Write], bool]) -> int:
        """Forget what waits and was invalidated; how many entries."""
        with self._lock:
            doomed = [at for at, write in self._queue.items() if write.data is not None and means(write)]
            for at in doomed:
                self._bytes -= self._queue.pop(at).size
            for key, write in list(self.pending.items()):
                if means(write):
                    del self.pending[key]
            self._lock.notify_all()
            return len(doomed)

    def flush(self, timeout: float | None) -> bool:
        """Wait until nothing waits; False where the time was up, or something was lost since the last flush."""
        with self._lock:
            self._ask_again()
            done = self._lock.wait_for(self._is_idle, timeout)
            lost, self._has_lost = self._has_lost, False
            return done and not lost and not self._ledger.is_owing

    def _is_idle(self) -> bool:
        return not (self._queue or self._sending or self._is_to_book or self._is_booking)

    def close(self, timeout: float) -> None:
        """Write what waits, for so long at most, and stop."""
        self.flush(timeout)
        with self._lock:
            self._is_closing = True
            self._queue.clear()
            self.pending.clear()
            self._bytes = 0
            self._is_to_book = False
            self._lock.notify_all()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)

    def sizes(self) -> dict[str, int]:
        """Return how much waits, and what became of the rest."""
        with self._lock:
            return {"pending": len(self._queue) + self._sending, "pending_bytes": self._bytes} | dict(self.counts)

    def after_fork(self) -> None:
        """Begin anew: what waits is the parent's to write."""
        self._ledger.after_fork()
        self._begin()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._queue or self._is_to_book or self._is_closing)
                if not self._queue and not self._is_to_book:
                    return
                batch = self._take()
                self._is_booking, self._is_to_book = self._is_to_book, False
            if batch:
                self._write(batch)
            if self._is_booking:
                self._book()
            with self._lock:
                self._is_booking = False
                for write in batch:
                    if self.pending.get(write.key) is write:
                        del self.pending[write.key]
                self._sending = 0
                self._lock.notify_all()

    def _book(self) -> None:
        try:
            self._ledger.send()
        except Exception as error:  # noqa: BLE001 - the thread lives on, and what was booked waits
            self._on_fault(error)

    def _take(self) -> list[Write]:
        batch: list[Write] = []
        size = 0
        while self._queue and len(batch) < BATCH and size < _BATCH_BYTES:
            write = self._queue.pop(next(iter(self._queue)))
            batch.append(write)
            size += write.size
        self._bytes -= size
        self._sending = len(batch)
        return batch

    def _write(self, batch: list[Write]) -> None:
        wanted = [write for write in batch if write.pairs is None or not self._covers(write.pairs, write.born)]
        self.counts["refused"] += len(batch) - len(wanted)
        commands = [command for write in wanted for command in write.commands]
        if not commands:
            return
        error: BaseException | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_SECONDS * attempt)
            try:
                replies = self._send(commands + self._upkeep())
            except Exception as trouble:  # noqa: BLE001 - the thread lives on
                error = trouble
                if self._is_closing:
                    break
                continue
            self._judge(wanted, replies)
            return
        self._lose(len(wanted), error or TierError("unreachable"))

    def _judge(self, wanted: list[Write], replies: list[Any]) -> None:
        """See which entries the server took: the first command of each is the one that keeps it."""
        at, refused = 0, []
        for write in wanted:
            if isinstance(replies[at], Exception):
                refused.append(replies[at])
            at += len(write.commands)
        self.counts["written"] += len(wanted) - len(refused)
        if refused:
            self._lose(len(refused), refused[0])

    def _lose(self, count: int, error: BaseException) -> None:
        with self._lock:
            self.counts["lost"] += count
            self._has_lost = True
        self._on_fault(error)
