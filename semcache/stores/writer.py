"""The one thread of a process that writes to a store's file.

Laws:
- what is queued is taken together into one transaction; there is no timer;
- invalidations and modes go first, and each is durable before its future is done;
- whatever a write meets, the thread lives on, and tells; only what cannot be written is dropped, and counted.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TypeVar

from semcache.errors import TierError
from semcache.stores import changes
from semcache.stores.backlog import Backlog, Batch, Change, Invalidation, Order
from semcache.stores.file import WRITE_WAIT_SECONDS, StoreFile
from semcache.stores.moving import Move, move
from semcache.stores.reported import salvaged, take_over
from semcache.stores.schema import reason_of, trouble
from semcache.tier import Clock

T = TypeVar("T")
OnFault = Callable[[str, BaseException], None]

# One transaction holds other processes' writers up, and lets the file grow past its bound, for no more than this.
MAX_BATCH_BYTES = 8 * 2**20
PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.02
_SWEEP_ROWS_AT_OPEN = 1024


class Writer:
    """Empties the backlog into the file, behind the callers; `close_readers` makes readers open it anew.

    `name` stands at its index rows, so that who follows the log knows its own.
    """

    def __init__(
        self, file: StoreFile, namespace: str, *, max_bytes: int, clock: Clock, on_fault: OnFault,
        close_readers: Callable[[], None], name: bytes,
    ) -> None:  # fmt: skip
        self.backlog = Backlog(min(MAX_BATCH_BYTES, max_bytes // 8))
        self.counts = Counter(written=0, refused=0, lost=0, expired=0, evicted=0)
        # Held while the write connection is in use; a fork waits for it.
        self.transacting = Lock()
        self._file = file
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_fault = on_fault
        self._close_readers = close_readers
        self._name = name
        self._connection: sqlite3.Connection | None = None
        self._longest_life = 0.0
        self._thread: Thread | None = None

    def start(self) -> None:
        """See to it that the thread runs."""
        if self._thread is None:
            with self.backlog.lock:
                if self.backlog.is_closing:
                    raise TierError("closed", "the store was closed")
                if self._thread is None:
                    thread = Thread(target=self._run, name="semcache-writer", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as error:  # no more threads, or the interpreter ends
                        raise TierError("thread", str(error)) from error
                    self._thread = thread

    def prepare(self) -> None:
        """Open or begin the file, in the caller's thread; trouble is told, and the next put meets it again."""
        for _ in range(2):
            try:
                self._transact(self._tidy, patience=WRITE_WAIT_SECONDS)
            except Exception as error:  # noqa: BLE001 - whatever it is, the cache goes on without the store (law 10)
                if reason_of(error) == "damaged" and self._replace(error):
                    continue
                self._tell(error)
            return

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds, and stop."""
        self.backlog.flush(timeout)
        self.backlog.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(2 * WRITE_WAIT_SECONDS)  # in a stuck file system it closes its connection when it can
        else:
            self.disconnect()
            self._file.leave()

    def disconnect(self) -> None:
        """Close the write connection; the next transaction opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # a damaged file cannot even be closed well
                connection.close()

    def _run(self) -> None:
        while self.backlog.wait():
            self._look_after_the_file()
            orders = self.backlog.orders()
            if orders:
                self._carry_out(orders)
            batch = self.backlog.take()
            if batch is not None:
                self._write(batch)
        with self.transacting:
            self.disconnect()
        self._file.leave()

    def _look_after_the_file(self) -> None:
        damage, is_to_open = self.backlog.requests()
        if damage is not None:
            self._replace(damage)
        if is_to_open:
            self.prepare()
        if damage is not None or is_to_open:
            self.backlog.settle_requests()

    # Orders

    def _carry_out(self, orders: list[Order]) -> None:
        try:
            made = self._transact(partial(self._order, orders), is_durable=True)
        except Exception as error:  # noqa: BLE001 - whoever waits for the future is told
            reason = reason_of(error)
            if reason == "damaged" and self._replace(error):
                return  # they wait still, and are made in the new file
            if reason in ("record", "space") and len(orders) > 1:  # a large one is no reason against an invalidation
                for order in orders:
                    self._carry_out([order])
                return
            self._tell(error)
            for order in orders:
                self.backlog.settle_order(order, error)
        else:
            for order, result in zip(orders, made, strict=True):
                self.backlog.settle_order(order, result)

    def _order(self, orders: list[Order], connection: sqlite3.Connection) -> list[Any]:
        now = self._clock.time()
        made: list[Any] = []
        for order in orders:
            if isinstance(order, Invalidation):
                made.append(changes.mark(connection, self._namespace, order.pairs, order.unwritten, now))
            elif isinstance(order, Change):
                made.append(order.make(connection))
            elif isinstance(order, Move):
                made.append(move(connection, order.rows, self._name))
            else:
                changes.switch(connection, self._namespace, order.mode)
                made.append(None)
        return made

    # Entries

    def _write(self, batch: Batch) -> None:
        lost = 0
        owed: dict[tuple[str, str], float] = {}
        try:
            self._commit(batch)
        except Exception as error:  # noqa: BLE001 - the thread lives on
            reason = reason_of(error)
            if reason == "busy" and not self.backlog.is_closing:
                self._tell(error)
                return  # the batch waits still, and is tried again
            if reason == "damaged" and self._replace(error):
                return
            if reason == "record" and batch.records:
                one_by_one = [Batch([record]) for record in batch.records]
                rest = Batch([], batch.vectors, batch.touches, batch.slides, batch.amounts)
                lost = sum(not self._write_one(each) for each in one_by_one)
                owed = {} if self._write_one(rest) else batch.amounts
            else:
                lost, owed = len(batch.records), batch.amounts
                self._tell(error)
        self.counts["lost"] += lost
        self.backlog.settle(batch, lost, owed)

    def _write_one(self, batch: Batch) -> bool:
        try:
            self._commit(batch)
        except Exception as error:  # noqa: BLE001 - one bad record is no other's loss
            self._tell(error)
            return False
        return True

    def _commit(self, batch: Batch) -> None:
        self.counts.update(self._transact(partial(self._apply, batch)))

    def _apply(self, batch: Batch, connection: sqlite3.Connection) -> dict[str, int]:
        newest_mark = changes.newest_mark(connection)
        written = sum(self._insert(connection, record, newest_mark) for record in batch.records)
        for key, (vector, embedder) in batch.vectors.items():
            changes.attach(connection, key, vector, embedder)
        changes.touch(connection, batch.touches)
        changes.slide(connection, batch.slides)
        changes.book(connection, self._namespace, batch.amounts)
        life = max((record.life for record in batch.records), default=0.0)
        if life > self._longest_life:
            changes.lengthen(connection, life)
            self._longest_life = life
        tidied = self._tidy(connection, changes.SWEEP_ROWS)
        return {"written": written, "refused": len(batch.records) - written} | tidied

    def _insert(self, connection: sqlite3.Connection, record: changes.Record, newest_mark: int) -> bool:
        if record.about.is_pinned and not changes.has_room(connection, record, self._max_bytes):
            return False  # other processes have pinned so many meanwhile
        return changes.insert(connection, record, newest_mark, self._name)

    def _tidy(self, connection: sqlite3.Connection, most: int = _SWEEP_ROWS_AT_OPEN) -> dict[str, int]:
        expired = changes.sweep(connection, self._clock.time(), most)
        evicted = changes.evict(connection, self._max_bytes)
        changes.give_back(connection, self._max_bytes)
        return {"expired": expired, "evicted": evicted}

    # Transactions

    def _transact(
        self, change: Callable[[sqlite3.Connection], T], *, is_durable: bool = False, patience: float | None = None
    ) -> T:
        """Make a change in one transaction; other processes' transactions are waited for, up to `patience` seconds."""
        deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
        while True:
            try:
                with self.transacting:
                    return self._transact_now(change, is_durable=is_durable)
            except (sqlite3.Error, OSError) as error:
                if reason_of(error) != "busy" or self.backlog.is_closing or time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _transact_now(self, change: Callable[[sqlite3.Connection], T], *, is_durable: bool) -> T:
        connection = self._open()
        try:
            # What is only cached survives a killed process without an fsync; an invalidation must survive the machine.
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = change(connection)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some kinds of trouble SQLite has rolled back by itself
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if reason_of(error) != "busy":
                self.disconnect()
            raise
        return result

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and not self._file.is_current():  # it was removed or replaced
            self.disconnect()
            self._close_readers()
            self._file.leave()
        if self._connection is None:
            try:
                self._connection = self._file.connect_writer()
                self.backlog.doubt(changes.newest_mark(self._connection))
            except Exception as error:
                self.disconnect()
                if reason_of(error) != "busy":  # that passes: what is put until then may wait
                    self.backlog.trouble = trouble(error, str(self._file.path))
                raise
            self.backlog.trouble = None
        return self._connection

    def _replace(self, damage: BaseException) -> bool:
        """Move the damaged file aside, so that the next transaction begins another; False where that cannot be."""
        with self.transacting:
            self.disconnect()
            self._close_readers()
            try:
                aside = self._file.replace_damaged()
            except (OSError, TierError) as error:
                failure: Exception = error
                is_replaced = False
            else:
                kept = f"it is kept as {aside}" if aside else "another process has moved it aside"
                failure = TierError("damaged", f"{self._file.path} was damaged ({damage}): {kept}, and begun anew")
                is_replaced = True
        if is_replaced and aside is not None:
            failure = TierError("damaged", f"{failure}{self._take_over_blocks(aside)}")
        self._tell(failure)
        return is_replaced

    def _take_over_blocks(self, aside: Path) -> str:
        """Keep what was reported as wrong in the new file, as far as the damaged one can be read; tell of it."""
        blocks, is_whole = salvaged(aside)
        try:
            if blocks:
                self._transact(partial(take_over, blocks=blocks), is_durable=True)
        except Exception as error:  # noqa: BLE001 - the file is begun anew all the same, and what is lost is told
            blocks, is_whole, why = [], False, f" ({error})"
        else:
            why = ""
        told = f"; reports of wrong answers taken over: {len(blocks)}" if blocks else ""
        return (
            told if is_whole else f"{told}; those that cannot be read are lost{why}: report again what is still wrong"
        )

    def _tell(self, error: BaseException) -> None:
        with suppress(Exception):  # who listens cannot stop the writer
            self._on_fault(reason_of(error), trouble(error, str(self._file.path)))
