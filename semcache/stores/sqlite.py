"""The embedded exact store: one SQLite file, read in place by any thread, written behind by one.

Laws:
- a reader has a connection to itself while it reads; idle ones wait in a stack, from which taking and giving is atomic;
- what is queued is read before the file is (`Writer.pending`), so a process reads what it wrote;
- several processes may use the file at once; a process never reads what was invalidated before its read began.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from semcache.blocks import Blocks
from semcache.errors import TierError
from semcache.marks import Changes, Pair
from semcache.model import Facets, Mode
from semcache.stores import changes, facets, schema
from semcache.stores.changes import Record, Slide
from semcache.stores.file import StoreFile
from semcache.stores.follower import Follower
from semcache.stores.fork import forking
from semcache.stores.moving import Foreign, Moved, foreign
from semcache.stores.reported import FileReports
from semcache.stores.schema import READ, Row, reason_of, trouble
from semcache.stores.vectors import from_float16
from semcache.stores.writer import PATIENCE_SECONDS, OnFault, Writer
from semcache.tier import Clock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_IDLE = 16
_PAGE_ROWS = 1000
_FORK_WAIT_SECONDS = 5.0
_TALLY_SECONDS = 0.05


class IndexRow(NamedTuple):
    """A row of the index as the store keeps it; `vector` is float32[d], `remaining` in seconds."""

    key: bytes
    scope: bytes
    text: str
    vector: NDArray[np.float32] | None
    remaining: float


class SqliteStore:
    """Entries, index rows and invalidations of one namespace in one file of at most about `max_bytes`."""

    def __init__(
        self, path: Path, *, namespace: str, timeout: float, max_bytes: int, clock: Clock, on_fault: OnFault,
        blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        self._path = path
        self._namespace = namespace
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_fault = on_fault
        self._inherited: list[object] = []
        self._is_closed = False
        self.now = clock.time
        self.reports = FileReports(self, namespace, max_bytes, blocks)
        self._begin()
        self._writer.prepare()
        forking().add(self)

    def _begin(self) -> None:
        name = os.urandom(8)
        self._file = StoreFile(self._path, self._timeout)
        self._opening = Lock()
        self._readers: set[sqlite3.Connection] = set()
        self._idle: deque[sqlite3.Connection] = deque()
        self._writer = Writer(
            self._file, self._namespace, max_bytes=self._max_bytes, clock=self._clock, on_fault=self._on_fault,
            close_readers=self._close_readers, name=name,
        )  # fmt: skip
        self._backlog = self._writer.backlog
        self._pending = self._backlog.pending
        self._follower = Follower(self._file, self._namespace, name, self._clock.time)

    # Reading

    def read(self, key: bytes) -> Row | None:
        """Return an entry as `schema.READ` describes it, be it in the file or on its way there."""
        record = self._pending.get(key)
        if record is not None:
            return record.row
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self._open_reader()
        try:
            row: Row | None = connection.execute(READ, (key,)).fetchone()
        except BaseException as error:
            self._give_up(connection, idle, error)
            raise
        idle.append(connection)
        if idle is not self._idle or len(idle) > _MAX_IDLE:
            self._thin(idle)
        return row

    def facets_of(self, key: bytes) -> Facets | None:
        """Return an entry's facets, be it in the file or on its way there; None where there is none."""
        record = self._pending.get(key)
        if record is not None:
            return record.facets
        with self._reader() as connection:
            connection.execute("BEGIN")  # an entry and its labels are of one moment
            found = facets.of(connection, key)
            connection.execute("COMMIT")
            return found

    def position(self) -> int:
        """Return the log's latest position."""
        return int(self.ask(schema.POSITION)[0][0])

    def rows(self, embedder: str) -> Iterator[IndexRow]:
        """Return the live index rows of this namespace and embedder, in order of position, a page at a time."""
        position = 0
        while True:
            now = self._clock.time()
            page = self.ask(schema.INDEX_PAGE, position, embedder, now, self._namespace, _PAGE_ROWS)
            vectors = from_float16([row[4] for row in page])
            for (_, key, scope, text, _, expires), vector in zip(page, vectors, strict=True):
                yield IndexRow(key, scope, text, vector, expires - now)
            if len(page) < _PAGE_ROWS:
                return
            position = page[-1][0]

    def foreign(self, embedder: str) -> Iterator[list[Foreign]]:
        """Return the live index rows of all other embedders up to now, a page at a time, oldest first."""
        return foreign(self.ask, self.position(), embedder, self._namespace, self._clock.time)

    def count(self, pairs: list[Pair]) -> int:
        """Return how many live entries invalidations mean, written or not."""
        if not pairs:
            return 0
        if self._waiting_for(pairs):  # some of which may be in the file as well
            return len(self.keys_of(pairs))
        with self._reader() as connection:
            return changes.count(connection, self._namespace, pairs, self._clock.time())

    def lacking(self, keys: list[bytes], pair: Pair) -> list[bytes]:
        """Return those of some keys whose entries, written or not, have not a facet value."""
        meant, parameters = facets.meant(self._namespace, [pair])
        found: list[bytes] = []
        for at in range(0, len(keys), _PAGE_ROWS):
            page = keys[at : at + _PAGE_ROWS]
            question = f"SELECT key FROM entries WHERE key IN ({', '.join('?' * len(page))}) AND id NOT IN ({meant})"  # noqa: S608 - names of our own
            found += [key for (key,) in self.ask(question, *page, *parameters)]
        waiting = {key: record for key, record in list(self._pending.items()) if key in set(keys)}
        found = [key for key in found if key not in waiting]
        return found + [key for key, record in waiting.items() if not record.has([pair])]

    def keys_of(self, pairs: list[Pair]) -> list[bytes]:
        """Return the keys of the live entries that invalidations mean, written or not."""
        if not pairs:
            return []
        meant, parameters = facets.meant(self._namespace, pairs)
        question = f"SELECT key FROM entries WHERE id IN ({meant}) AND ends > ?"  # noqa: S608 - names of our own
        standing = [key for (key,) in self.ask(question, *parameters, self._clock.time())]
        return list(dict.fromkeys(standing + self._waiting_for(pairs)))

    def _waiting_for(self, pairs: list[Pair]) -> list[bytes]:
        return [key for key, record in list(self._pending.items()) if record.has(pairs)]

    def booked(self, since_day: str) -> dict[tuple[str, str], float]:
        """Return the counters of this namespace by day and name, from a day on, once what we booked is in the file."""
        self._backlog.settle_booked(PATIENCE_SECONDS)
        return {(day, name): amount for day, name, amount in self.ask(schema.BOOKED, self._namespace, since_day)}

    def tallied(self, days: list[str]) -> dict[tuple[str, str], float]:
        """Return the counters that stand under some days, once what we booked is in the file.

        Raises TierError("late") where it is not so soon: who asks follows the log in the same thread.
        """
        if not self._backlog.settle_booked(_TALLY_SECONDS):
            raise TierError("late", f"{self._file.path}: what was booked is not written yet")
        return {
            (day, name): amount
            for day in days
            for name, amount in self.ask(schema.TALLIED, self._namespace, day)
        }  # fmt: skip

    def stats(self) -> Mapping[str, int | float]:
        """Return entries and bytes of the file, and what this process has done to it and still has to do."""
        found = {"entries": 0, "bytes": 0}
        with suppress(TierError):  # the file cannot be asked; the counts are known all the same
            found = {"entries": self.ask(schema.COUNT)[0][0], "bytes": self._used_bytes()}
        return found | dict(self._writer.counts) | self._backlog.sizes()

    def _used_bytes(self) -> int:
        with self._reader() as connection:
            return changes.used_bytes(connection)

    def ask(self, question: str, *values: Any) -> list[Any]:
        """Return the rows that a question gives. Raises TierError."""
        with self._reader() as connection:
            return connection.execute(question, values).fetchall()

    # Writing

    def put(self, record: Record) -> None:
        """Take an entry; it can be read at once. Raises TierError("full") where too much waits, or is pinned."""
        self._writer.start()
        if record.about.is_pinned:
            self._check_room(record)
        self._backlog.put(record)

    def _check_room(self, record: Record) -> None:
        pending = list(self._pending.values())
        with self._reader() as connection:
            connection.execute("BEGIN")  # all is of one moment
            record.is_new_pin = not changes.is_pinned(connection, record.key)
            waiting_bytes = self._backlog.sizes()["pending_bytes"]
            has_room = changes.has_room(connection, record, self._max_bytes, len(pending), waiting_bytes)
            if not has_room:  # some are not pinned, or were written a moment ago, and count in the file
                others = [
                    each.size
                    for each in pending
                    if each.is_new_pin and each.key != record.key and not changes.is_pinned(connection, each.key)
                ]
                has_room = changes.has_room(connection, record, self._max_bytes, len(others), sum(others))
            connection.execute("COMMIT")
        if not has_room:
            raise TierError(
                "full",
                f"at most {changes.MAX_PINNED} entries are pinned, in {changes.PINNED_SHARE:.0%} of the file's"
                f" {self._max_bytes} bytes: invalidate some, or give a larger bound",
            )

    def attach(self, key: bytes, vector: Any, embedder: str | None) -> None:
        """Give the index row of an entry the vector it lacks."""
        self._writer.start()
        self._backlog.attach(key, vector, embedder)

    def replace_rows(self, rows: list[Moved]) -> Future[list[bool]]:
        """Replace index rows by another embedder's; the future gives for each whether it was still there."""
        self._writer.start()
        return self._backlog.move(rows)

    def mark(self, pairs: list[Pair]) -> Future[tuple[int, int]]:
        """Invalidate durably; the future gives the latest mark's position and how many entries went."""
        self._writer.start()
        return self._backlog.mark(pairs)

    def switch(self, mode: Mode) -> Future[None]:
        """Set the mode of all who use the namespace, durably."""
        self._writer.start()
        return self._backlog.switch(mode)

    def change(self, make: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        """Have a change made durably, in a transaction of the writer's."""
        self._writer.start()
        return self._backlog.change(make)

    def touch(self, key: bytes, when: float) -> None:
        """Remember that an entry was read."""
        self._backlog.touch(key, when)

    def slide(self, key: bytes, slide: Slide, *, is_due: bool) -> None:
        """Remember until when a sliding entry lives; if it is due, others are to know soon."""
        with suppress(TierError):  # a hit is a hit, though nobody can write
            self._writer.start()
            self._backlog.slide(key, slide, is_due=is_due)

    def slid(self, key: bytes, written: float) -> float:
        """Return until when the sliding entry that was written then lives; 0 where the file knows."""
        return self._backlog.slid(key, written)

    def book(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Add to the counters of (day, name)."""
        self._writer.start()
        self._backlog.book(amounts)

    def flush(self, timeout: float | None) -> bool:
        """Wait until all that was put is in the file; False where the time was up, or something could not be kept."""
        return self._backlog.flush(timeout)

    def close(self, timeout: float) -> None:
        """Flush for at most `timeout` seconds, stop the thread, close the file."""
        if self._is_closed:
            return
        self._is_closed = True
        forking().discard(self)
        self._writer.close(timeout)
        self._pending.clear()
        self._follower.close()
        self._close_readers()

    # Following

    def changes(self, since: int) -> Changes:
        """Return what came into the log after a position, as `Follower.changes` does; one thread at a time asks."""
        try:
            found = self._follower.changes(since)
        except (sqlite3.Error, OSError, TierError) as error:
            raise trouble(error, str(self._path)) from error
        self._backlog.hear(found.marks)  # before anybody is told that they are known
        self.reports.settle(found)
        return found

    # Connections

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self._open_reader()
        try:
            yield connection
        except BaseException as error:
            self._give_up(connection, idle, error)
            raise
        idle.append(connection)
        self._thin(idle)

    def _open_reader(self) -> sqlite3.Connection:
        if self._is_closed:
            raise TierError("closed", f"{self._path} was closed")
        try:
            with self._opening:
                connection = self._file.connect_reader()
                self._readers.add(connection)
        except (sqlite3.Error, OSError, TierError) as error:
            raise self._troubled(error) from error
        return connection

    def _give_up(self, connection: sqlite3.Connection, idle: deque[sqlite3.Connection], error: BaseException) -> None:
        self._close_reader(connection)
        if isinstance(error, sqlite3.Error):
            raise self._troubled(error, is_current=idle is self._idle) from error

    def _troubled(self, error: BaseException, *, is_current: bool = True) -> TierError:
        if reason_of(error) == "damaged" and is_current:  # else it was a file that has been replaced since
            self._writer.start()
            self._backlog.suspect(error)
        return trouble(error, str(self._path))

    def _thin(self, idle: deque[sqlite3.Connection]) -> None:
        """Close what is too much in a stack: beyond some, or all where it is no longer in use."""
        with suppress(IndexError):
            while idle is not self._idle or len(idle) > _MAX_IDLE:
                self._close_reader(idle.pop())

    def _close_readers(self) -> None:
        """Close the idle connections; those in use are closed by whoever uses them."""
        idle, self._idle = self._idle, deque()
        self._thin(idle)

    def _close_reader(self, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):  # a damaged file cannot even be closed well
            connection.close()
        self._readers.discard(connection)

    # Forks

    def before_fork(self) -> None:
        """Wait for what is under way, and close every connection."""
        # The backlog first: without it the writer cannot go on to its next transaction.
        locks = (self._backlog.lock, self._writer.transacting, self._opening, self._follower.lock)
        self._held = [lock for lock in locks if lock.acquire(timeout=_FORK_WAIT_SECONDS)]
        if self._writer.transacting in self._held:
            self._writer.disconnect()
        if self._follower.lock in self._held:
            self._follower.disconnect()
        self._close_readers()
        deadline = time.monotonic() + 2 * self._timeout
        while self._readers and time.monotonic() < deadline:
            time.sleep(0.001)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        for lock in self._held:
            lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: threads and locks have stayed behind, and what waits is the parent's to write."""
        self._inherited += (
            self._writer,
            self._readers,
            self._follower,
        )  # what could not be closed in time must not be closed here
        self._file.leave()
        self._begin()
