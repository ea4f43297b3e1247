"""What waits to be written: callers fill it, the writer's thread empties it.

Laws: an entry can be read from `pending` from the moment it is put until it is in the file; an invalidation takes what
it means out of `pending` at once, and keeps what was born before it from coming back; everything here is bounded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any, TypeAlias

from semcache.errors import InvalidationError, TierError
from semcache.marks import Mark, Pair
from semcache.meter import overflow
from semcache.model import Mode
from semcache.stores.changes import Record, Slide
from semcache.stores.moving import Move, Moved

MAX_ENTRIES = 4096
MAX_BYTES = 64 * 2**20
MAX_TOUCHES = 4096
MAX_MARKS = 1000
MAX_AMOUNTS = 20_000


@dataclass(slots=True, eq=False)
class Invalidation:
    """An invalidation that waits to be made; `unwritten` are the keys of queued entries that it dropped."""

    pairs: list[Pair]
    unwritten: list[bytes]
    future: Future[Any]

    def fail(self, error: BaseException) -> None:
        """Tell who waits that it was not made."""
        what = ", ".join(dict.fromkeys(facet for facet, _ in self.pairs))
        failure = InvalidationError(f"{what} could not be invalidated durably, try again: {error}")
        failure.__cause__ = error
        self.future.set_exception(failure)


@dataclass(slots=True, eq=False)
class Switch:
    """A mode for all who use the namespace, that waits to be set."""

    mode: Mode
    future: Future[Any]

    def fail(self, error: BaseException) -> None:
        """Tell who waits that it was not set."""
        failure = TierError("mode", f"mode {self.mode!r} could not be set durably, try again: {error}")
        failure.__cause__ = error
        self.future.set_exception(failure)


@dataclass(slots=True, eq=False)
class Change:
    """What else is to be written, in a transaction of the writer's; the future gives what it returns."""

    make: Callable[[sqlite3.Connection], Any]
    future: Future[Any]

    def fail(self, error: BaseException) -> None:
        """Tell who waits that it was not made."""
        self.future.set_exception(TierError(getattr(error, "reason", "unwritten"), str(error)))


# What is durable when its future is done.
Order: TypeAlias = Invalidation | Switch | Change | Move


@dataclass(slots=True, eq=False)
class Batch:
    """What one transaction writes."""

    records: list[Record] = field(default_factory=list)
    vectors: dict[bytes, tuple[Any, str | None]] = field(default_factory=dict)
    touches: dict[bytes, float] = field(default_factory=dict)
    slides: dict[bytes, Slide] = field(default_factory=dict)
    amounts: dict[tuple[str, str], float] = field(default_factory=dict)


class Backlog:
    """Entries, vectors, readings, counts and orders on their way into the file."""

    def __init__(self, max_batch_bytes: int) -> None:
        self.pending: dict[bytes, Record] = {}
        # Why nothing can be written at present; who puts is told, and the writer asked to look again.
        self.trouble: TierError | None = None
        self.is_closing = False
        self.lock = Lock()
        self._work = Condition(self.lock)
        self._done = Condition(self.lock)
        self._max_batch_bytes = max_batch_bytes
        self._queue: dict[bytes, Record] = {}
        self._queued_bytes = 0
        self._vectors: dict[bytes, tuple[Any, str | None]] = {}
        self._touches: dict[bytes, float] = {}
        self._slides: dict[bytes, Slide] = {}
        self._is_slide_due = False
        self._amounts: dict[tuple[str, str], float] = {}
        self._owed: dict[tuple[str, str], float] = {}
        self._orders: list[Order] = []
        self._batch: Batch | None = None
        # The latest invalidations, made here or heard of, oldest first; of what was born before the floor, nothing is
        # known.
        self._marks: dict[Pair, int] = {}
        self._newest_mark = 0
        self._floor = 0
        self._damage: BaseException | None = None
        self._is_to_open = False
        self._has_lost = False

    # The callers' side

    def put(self, record: Record) -> None:
        """Queue an entry; from now on it can be read. Raises TierError("full") where too much waits."""
        with self.lock:
            self._check_usable()
            standing = self.pending.get(record.key) or self._queue.get(record.key)
            if standing is not None and standing.outranks(record):
                return
            older = self._queue.get(record.key)
            queued_bytes = self._queued_bytes + record.size - (older.size if older else 0)
            if (older is None and len(self._queue) >= MAX_ENTRIES) or queued_bytes > MAX_BYTES:
                raise TierError("full", f"{len(self._queue)} entries, {self._queued_bytes} bytes wait to be written")
            self._queue[record.key] = record
            self._queued_bytes = queued_bytes
            if self._is_marked(record):  # not read until the file, which knows all marks, has taken it
                self.pending.pop(record.key, None)
            else:
                self.pending[record.key] = record
            self._work.notify()

    def attach(self, key: bytes, vector: Any, embedder: str | None) -> None:
        """Queue the vector of an index row that was written without one."""
        with self.lock:
            self._check_open()
            queued = self._queue.get(key)
            if queued is not None:
                if queued.vector is None and embedder in (None, queued.embedder):
                    self._queued_bytes -= queued.size
                    queued.vector = vector
                    self._queued_bytes += queued.size
            elif len(self._vectors) < MAX_ENTRIES:  # beyond, the row stays as it is, and is embedded at the next start
                self._vectors[key] = (vector, embedder)
                self._work.notify()

    def mark(self, pairs: list[Pair]) -> Future[tuple[int, int]]:
        """Queue an invalidation before all else; what it means can no longer be read from here."""
        with self.lock:
            self._check_open()
            unwritten = [key for key, record in self._queue.items() if record.has(pairs)]
            for key in unwritten:
                self._queued_bytes -= self._queue.pop(key).size
            self._hide(pairs)
            return self._order(Invalidation(pairs, unwritten, Future()))

    def switch(self, mode: Mode) -> Future[None]:
        """Queue a mode for all who use the namespace."""
        with self.lock:
            self._check_open()
            return self._order(Switch(mode, Future()))

    def change(self, make: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        """Queue a change of another kind."""
        with self.lock:
            self._check_open()
            return self._order(Change(make, Future()))

    def move(self, rows: Sequence[Moved]) -> Future[list[bool]]:
        """Queue index rows that replace another embedder's."""
        with self.lock:
            self._check_open()
            return self._order(Move(rows, Future()))

    def _order(self, order: Order) -> Future[Any]:
        order.future.set_running_or_notify_cancel()  # who waits for it may go away, it is made all the same
        self._orders.append(order)
        self._work.notify()
        return order.future

    def touch(self, key: bytes, when: float) -> None:
        """Remember when an entry was read, for the next transaction."""
        if key not in self._touches:
            with self.lock:
                if len(self._touches) < MAX_TOUCHES:  # beyond, the writer is stuck, and the order of eviction suffers
                    self._touches[key] = when
                if len(self._touches) >= MAX_TOUCHES:
                    self._work.notify()

    def slide(self, key: bytes, slide: Slide, *, is_due: bool) -> None:
        """Remember until when a sliding entry lives, for the next transaction; if it is due, there is one at once."""
        with self.lock:
            if key in self._slides or len(self._slides) < MAX_TOUCHES:
                self._slides[key] = slide
            if is_due or len(self._slides) >= MAX_TOUCHES:
                self._is_slide_due = True
                self._work.notify()

    def slid(self, key: bytes, written: float) -> float:
        """Return until when the entry lives that was written then, as far as the file does not know yet; 0: no more."""
        with self.lock:
            slide = self._slides.get(key) or (self._batch and self._batch.slides.get(key))
            return slide.until if slide and slide.written == written else 0.0

    def book(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Queue what is to be added to the counters of (day, name). Raises TierError where nothing can be written."""
        with self.lock:
            self._check_usable()
            _add(self._amounts, amounts)
            self._pay()
            self._work.notify()

    def _pay(self) -> None:
        """Queue again what could not be booked; the lock is held."""
        owed, self._owed = self._owed, {}
        _add(self._amounts, owed)
        if owed:
            self._work.notify()

    def settle_booked(self, timeout: float) -> bool:
        """Wait until what was booked is in the file; False where it is not."""
        with self.lock:
            self._pay()
            is_tried = self._done.wait_for(
                lambda: not (self._amounts or (self._batch and self._batch.amounts)), timeout
            )
            return is_tried and not self._owed

    def suspect(self, damage: BaseException) -> None:
        """Say that a reader found the file damaged."""
        with self.lock:
            self._damage = damage
            self._work.notify()

    def flush(self, timeout: float | None) -> bool:
        """Wait until nothing waits; False where the time is up, or something was lost since the last flush."""
        with self.lock:
            if self._slides:
                self._is_slide_due = True
                self._work.notify()
            self._pay()
            is_done = self._done.wait_for(lambda: not self._is_waiting(), timeout)
            has_lost, self._has_lost = self._has_lost, False
            return is_done and not has_lost and not self._owed

    def close(self) -> None:
        """Let the writer end when nothing waits."""
        with self.lock:
            self.is_closing = True
            self._work.notify()

    def sizes(self) -> dict[str, int]:
        """Return how much waits."""
        with self.lock:
            writing = len(self._batch.records) if self._batch else 0
            return {"pending": len(self._queue) + writing, "pending_bytes": self._queued_bytes}

    def _check_open(self) -> None:
        if self.is_closing:
            raise TierError("closed", "the store was closed")

    def _check_usable(self) -> None:
        self._check_open()
        if self.trouble is not None:
            self._is_to_open = True
            self._work.notify()
            raise TierError(self.trouble.reason, str(self.trouble))

    # The writer's side

    def wait(self) -> bool:
        """Wait for work; False where there is none and none will come."""
        with self.lock:
            while not (self._is_waiting() or self._has_touches()):
                if self.is_closing:
                    return False
                self._work.wait()
        return True

    def requests(self) -> tuple[BaseException | None, bool]:
        """Return the damage that a reader found, and whether the file is to be opened again."""
        with self.lock:
            return self._damage, self._is_to_open

    def settle_requests(self) -> None:
        """Be done with both; what comes up again is asked for again."""
        with self.lock:
            self._damage, self._is_to_open = None, False
            self._notify_done()

    def orders(self) -> list[Order]:
        """Return what is to be made durable; it waits until it is settled."""
        with self.lock:
            return self._orders.copy()

    def hear(self, marks: list[Mark]) -> None:
        """Take note of invalidations that others have made: what they mean can no longer be read from here."""
        with self.lock:
            for facet, value, position in marks:
                self._remember([(facet, value)], position)
            for key, record in list(self.pending.items()) if marks else ():
                if self._is_marked(record):
                    del self.pending[key]

    def doubt(self, newest_mark: int) -> None:
        """Take note of the latest mark in the file: what was born before it may be meant by one not known here."""
        self._newest_mark = max(self._newest_mark, newest_mark)
        self._floor = max(self._floor, newest_mark)

    def settle_order(self, order: Order, result: Any) -> None:
        """Tell who waits what became of an order: its result, or the error."""
        with self.lock:
            self._orders.remove(order)
            if isinstance(order, Invalidation) and not isinstance(result, BaseException):
                self._remember(order.pairs, result[0])
                self._hide(order.pairs, result[0])
            self._notify_done()
        if isinstance(result, BaseException):
            order.fail(result)
        else:
            order.future.set_result(result)

    def take(self) -> Batch | None:
        """Return the batch that is not settled yet, or else one of what is queued, if anything is."""
        with self.lock:
            if self._batch is None:
                if not (self._queue or self._vectors or self._amounts or self._is_slide_due or self._has_touches()):
                    return None
                self._batch = batch = Batch([], self._vectors, self._touches, self._slides, self._amounts)
                self._vectors, self._touches, self._slides, self._amounts = {}, {}, {}, {}
                self._is_slide_due = False
                batch_bytes = 0
                while self._queue and batch_bytes < self._max_batch_bytes:
                    record = self._queue.pop(next(iter(self._queue)))
                    batch.records.append(record)
                    batch_bytes += record.size
            return self._batch

    def settle(self, batch: Batch, lost: int, owed: Mapping[tuple[str, str], float]) -> None:
        """Be done with a batch, of which so many entries were lost; `owed` is booked with what comes next."""
        with self.lock:
            _add(self._owed, owed)
            for record in batch.records:
                self._queued_bytes -= record.size
                if self.pending.get(record.key) is record:
                    del self.pending[record.key]
            self._batch = None
            self._has_lost = self._has_lost or lost > 0
            self._done.notify_all()

    def _is_waiting(self) -> bool:
        has_requests = self._damage is not None or self._is_to_open or self._is_slide_due
        queued = self._queue or self._vectors or self._amounts or self._orders or self._batch
        return has_requests or bool(queued)

    def _has_touches(self) -> bool:
        return len(self._touches) + len(self._slides) >= (1 if self.is_closing else MAX_TOUCHES)

    def _notify_done(self) -> None:
        if not self._is_waiting():
            self._done.notify_all()

    def _hide(self, pairs: list[Pair], born_before: int | None = None) -> None:
        for key, record in list(self.pending.items()):
            if (born_before is None or record.born < born_before) and record.has(pairs):
                del self.pending[key]

    def _remember(self, pairs: list[Pair], position: int) -> None:
        for pair in pairs:
            self._marks[pair] = max(position, self._marks.pop(pair, 0))
            self._newest_mark = max(position, self._newest_mark)
            if len(self._marks) > MAX_MARKS:
                self._floor = max(self._floor, self._marks.pop(next(iter(self._marks))))

    def _is_marked(self, record: Record) -> bool:
        if record.born >= self._newest_mark:
            return False
        pairs = record.facets.pairs(record.key)
        return record.born < self._floor or any(record.born < self._marks.get(pair, 0) for pair in pairs)


def _add(amounts: dict[tuple[str, str], float], more: Mapping[tuple[str, str], float]) -> None:
    """Add amounts by (day, name); past a number of names, a new one is "other", unless it is a policy's."""
    for (day, name), amount in more.items():
        at = (day, name if (day, name) in amounts or len(amounts) < MAX_AMOUNTS else overflow(name))
        amounts[at] = amounts.get(at, 0.0) + amount
