"""What waits to be written to a server, and the thread that sends it behind the callers.

Laws:
- an entry can be read from `pending` from the moment it is put until it is written, or was invalidated meanwhile;
- an entry born before a mark is not written (law 8), and of two of a key the one born later is;
- what is queued is bounded; what cannot be written is dropped, counted and told, and the thread lives on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

from semcache.errors import TierError
from semcache.marks import Pair

MAX_ENTRIES = 4096
MAX_BYTES = 64 * 2**20
_BATCH_BYTES = 4 * 2**20
_TRIES = 3
_PAUSE_SECONDS = 0.05

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Write(Generic[T]):
    """What is to be sent for one key, `size` bytes of it.

    `data` is what a reader finds meanwhile, None where there is nothing to read; `pairs` is what it can be invalidated
    by, None where it is sent in any case, and not missed where it is lost.
    """

    key: bytes
    what: T
    data: bytes | None = None
    born: int = 0
    pairs: Sequence[Pair] | None = None
    size: int = 0


# What became of each write of a batch: it was written, it was refused for a better one, or what was wrong with it.
Sent = list[bool | BaseException]


def _always(error: BaseException) -> bool:  # noqa: ARG001
    return True


def _never(error: BaseException) -> bool:  # noqa: ARG001
    return False


class Debts(Protocol):
    """What is sent beside the writes, in the same thread, and is never dropped."""

    @property
    def is_owing(self) -> bool: ...
    def send(self) -> None: ...
    def after_fork(self) -> None: ...


class Outbox(Generic[T]):
    """Sends what is put, up to `batch` writes at once.

    `send` is given a batch, and raises where nothing of it was written; that is tried again where `passes` says that it
    may be over in a moment. Where `is_away` says so of what it raised at last, all that waits is dropped, which would
    fare no better. `covers` says that (pairs, born) was invalidated; `on_fault` is told what was lost for. `debts` are
    sent when `pay` asks for it, and tried again with what is owed next, and by `flush`.
    """

    def __init__(
        self, name: str, send: Callable[[list[Write[T]]], Sent], *, covers: Callable[[Sequence[Pair], int], bool],
        on_fault: Callable[[BaseException], None], batch: int, passes: Callable[[BaseException], bool] = _always,
        is_away: Callable[[BaseException], bool] = _never, debts: Debts | None = None,
    ) -> None:  # fmt: skip
        self._name = name
        self._send = send
        self._covers = covers
        self._on_fault = on_fault
        self._batch = batch
        self._passes = passes
        self._is_away = is_away
        self._debts = debts
        self.counts = Counter(written=0, refused=0, lost=0)
        self._begin()

    def _begin(self) -> None:
        self.pending: dict[bytes, Write[T]] = {}
        self._queue: dict[bytes | object, Write[T]] = {}
        self._bytes = 0
        self._sending = 0
        self._is_to_pay = False
        self._is_paying = False
        self._has_lost = False
        self._is_closing = False
        self._lock = Condition()
        self._thread: Thread | None = None

    def put(self, write: Write[T]) -> None:
        """Queue a write; a later one of a key replaces an earlier one. Raises TierError("full") if too much waits."""
        with self._lock:
            if self._is_closing:
                raise TierError("closed", "the store was closed")
            at: bytes | object = write.key if write.data is not None else object()
            older, standing = self._queue.get(at), self.pending.get(write.key)
            if write.data is not None and standing is not None and standing.born > write.born:
                self.counts["refused"] += 1
                return
            more = write.size - (older.size if older else 0)
            if (older is None and len(self._queue) >= MAX_ENTRIES) or self._bytes + more > MAX_BYTES:
                raise TierError("full", f"{len(self._queue)} entries, {self._bytes} bytes wait to be written")
            self._start()
            self._queue[at] = write
            self._bytes += more
            if write.data is not None:
                self.pending[write.key] = write
            self._lock.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            thread = Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter ends
                raise TierError("thread", str(error)) from error
            self._thread = thread

    def drop(self, pairs: Sequence[Pair], position: int) -> int:
        """Forget the entries with one of these facet values that were born before a position; how many."""

        def is_meant(write: Write[T]) -> bool:
            return write.born < position and any(pair in (write.pairs or ()) for pair in pairs)

        with self._lock:
            doomed = [at for at, write in self._queue.items() if write.data is not None and is_meant(write)]
            for at in doomed:
                self._bytes -= self._queue.pop(at).size
            gone = [key for key, write in self.pending.items() if is_meant(write)]
            for key in gone:
                del self.pending[key]
            self._lock.notify_all()
            return len(gone)

    def pay(self) -> None:
        """Have the debts sent, behind the caller. Raises TierError("closed")."""
        with self._lock:
            if self._is_closing:
                raise TierError("closed", "the store was closed")
            self._start()
            self._is_to_pay = True
            self._lock.notify_all()

    def settle(self, timeout: float | None) -> bool:
        """Wait until the debts are paid; False where they are not."""
        with self._lock:
            self._pay_again()
            self._lock.wait_for(lambda: not self._is_to_pay and not self._is_paying, timeout)
            return not self._is_owing

    @property
    def _is_owing(self) -> bool:
        return self._debts is not None and self._debts.is_owing

    def _pay_again(self) -> None:
        if self._is_owing and self._thread is not None:
            self._is_to_pay = True
            self._lock.notify_all()

    def _is_idle(self) -> bool:
        return not (self._queue or self._sending or self._is_to_pay or self._is_paying)

    def refuse(self) -> None:
        """Count an entry that is invalid already."""
        with self._lock:
            self.counts["refused"] += 1

    def flush(self, timeout: float | None) -> bool:
        """Wait until nothing waits; False where the time was up, or something was lost since the last flush."""
        with self._lock:
            self._pay_again()
            done = self._lock.wait_for(self._is_idle, timeout)
            lost, self._has_lost = self._has_lost, False
            return done and not lost and not self._is_owing

    def close(self, timeout: float) -> None:
        """Write what waits, for so long at most, and stop."""
        self.flush(timeout)
        with self._lock:
            self._is_closing = True
            self.counts["lost"] += self._clear()
            self._is_to_pay = False
            self._lock.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)

    def _clear(self) -> int:
        entries = sum(write.pairs is not None for write in self._queue.values())
        self._queue.clear()
        self.pending.clear()
        self._bytes = 0
        return entries

    def sizes(self) -> dict[str, int]:
        """Return how much waits, and what became of the rest."""
        with self._lock:
            return {"pending": len(self._queue) + self._sending, "pending_bytes": self._bytes} | dict(self.counts)

    def after_fork(self) -> None:
        """Begin anew: what waits is the parent's to write."""
        if self._debts is not None:
            self._debts.after_fork()
        self._begin()

    # The thread's side

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._queue or self._is_to_pay or self._is_closing)
                if not self._queue and not self._is_to_pay:
                    return
                batch = self._take()
                self._is_paying, self._is_to_pay = self._is_to_pay, False
            if batch:
                self._write(batch)
            if self._is_paying:
                self._pay()
            with self._lock:
                self._is_paying = False
                for write in batch:
                    if self.pending.get(write.key) is write:
                        del self.pending[write.key]
                self._sending = 0
                self._lock.notify_all()

    def _pay(self) -> None:
        try:
            self._debts.send()  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - the thread lives on, and what is owed waits
            with suppress(Exception):
                self._on_fault(error)

    def _take(self) -> list[Write[T]]:
        batch: list[Write[T]] = []
        size = 0
        while self._queue and len(batch) < self._batch and size < _BATCH_BYTES:
            write = self._queue.pop(next(iter(self._queue)))
            batch.append(write)
            size += write.size
        self._bytes -= size
        self._sending = len(batch)
        return batch

    def _write(self, batch: list[Write[T]]) -> None:
        wanted = [write for write in batch if write.pairs is None or not self._covers(write.pairs, write.born)]
        with self._lock:
            self.counts["refused"] += len(batch) - len(wanted)
        try:
            sent = self._attempt(wanted) if wanted else []
        except Exception as error:  # noqa: BLE001 - the thread lives on, whatever it is
            self._lose(wanted, error)
            return
        failed = [write for write, became in zip(wanted, sent, strict=True) if isinstance(became, BaseException)]
        with self._lock:
            for write, became in zip(wanted, sent, strict=True):
                if isinstance(became, bool) and write.pairs is not None:
                    self.counts["written" if became else "refused"] += 1
        if failed:
            self._lose(failed, next(became for became in sent if isinstance(became, BaseException)))

    def _attempt(self, batch: list[Write[T]]) -> Sent:
        """Send a batch, also where the server is away for a moment."""
        attempt = 1
        while True:
            try:
                return self._send(batch)
            except Exception as error:
                if attempt == _TRIES or not self._passes(error):
                    raise
                with self._lock:
                    if self._lock.wait_for(lambda: self._is_closing, _PAUSE_SECONDS * attempt):
                        raise
                attempt += 1

    def _lose(self, batch: list[Write[T]], error: BaseException) -> None:
        entries = sum(write.pairs is not None for write in batch)
        with self._lock:
            if self._is_away(error):
                entries += self._clear()
            self.counts["lost"] += entries
            self._has_lost = self._has_lost or entries > 0
        with suppress(Exception):  # who listens cannot stop the thread
            self._on_fault(error)
