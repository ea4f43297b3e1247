"""What others have done to a store's file, read from its log by one who keeps asking.

Laws:
- it never waits, and where nothing was committed since the last look it reads nothing but the file's change counter;
- what it returns is of one moment: marks, rows and position of one read transaction;
- a file that is another than before, or older than what is known of it, is a reset, never a guess.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

from semcache.blocks import Block
from semcache.errors import TierError
from semcache.marks import Changes, Row
from semcache.model import MODES, Mode
from semcache.stores import reported, schema
from semcache.stores.file import StoreFile
from semcache.stores.vectors import from_float16

# More rows than this are for the next look.
_PAGE_ROWS = 1000


class Follower:
    """Follows the log of one namespace for the writer of that name, over a connection of its own."""

    def __init__(self, file: StoreFile, namespace: str, writer: bytes, now: Callable[[], float]) -> None:
        # Held while the connection is in use; a fork waits for it.
        self.lock = Lock()
        self._file = file
        self._namespace = namespace
        self._writer = writer
        self._now = now
        self._is_closed = False
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None
        self._identity: bytes | None = None
        # The file's change counter, as this connection tells it, and the position that all was read up to.
        self._seen = (-1, -1)
        self._mode: Mode | None = None

    def changes(self, since: int) -> Changes:
        """Return what came after a position; below 0 the position, all marks and no rows."""
        with self.lock:
            try:
                connection = self._connect()
            except TierError as error:
                if error.reason == "unready":
                    return Changes(max(since, 0))
                raise
            try:
                (counter,) = connection.execute("PRAGMA data_version").fetchone()
                if (counter, since) == self._seen:
                    return Changes(since, mode=self._mode, log=self._log)
                connection.execute("BEGIN")
                changes, is_all = self._read(connection, since)
                connection.execute("COMMIT")
            except BaseException:
                self.disconnect()
                raise
            self._seen = (counter, changes.position) if is_all else (-1, -1)
            self._mode = changes.mode
            return changes

    def _read(self, connection: sqlite3.Connection, since: int) -> tuple[Changes, bool]:
        identity, position, mode = connection.execute(schema.STATE, (schema.MODE + self._namespace,)).fetchone()
        before, self._identity = self._identity, identity
        changes = Changes(position, mode=mode if mode in MODES else None, log=self._log)
        if since >= 0 and (since > position or before not in (None, identity)):
            changes.is_whole, changes.is_reset = False, True
            since = -1
        changes.marks = connection.execute(schema.MARKS_SINCE, (since, self._namespace)).fetchall()
        if connection.execute(reported.HAS_TABLES).fetchone()[0]:
            told = connection.execute(reported.BLOCKS_SINCE, (since, self._namespace))
            changes.blocks = [Block(*block) for block in told]
        if since < 0:
            return changes, True
        now = self._now()
        page = connection.execute(schema.ROWS_SINCE, (since, self._writer, now, self._namespace, _PAGE_ROWS)).fetchall()
        vectors = from_float16([row[5] for row in page])
        changes.rows = [
            Row(key, scope, embedder, text, vector, expires - now)
            for (_, key, scope, embedder, text, _, expires), vector in zip(page, vectors, strict=True)
        ]
        if len(page) == _PAGE_ROWS:
            changes.position = page[-1][0]
            return changes, False
        changes.position = position
        return changes, True

    @property
    def _log(self) -> str:
        return self._identity.hex() if self._identity is not None else ""

    def _connect(self) -> sqlite3.Connection:
        if self._is_closed:
            raise TierError("closed", f"{self._file.path} was closed")
        place = self._file.identify()
        if self._connection is not None and place != self._place:  # it was removed or replaced
            self.disconnect()
        if self._connection is None:
            self._place, self._seen = place, (-1, -1)
            self._connection = self._file.connect_reader()
        return self._connection

    def disconnect(self) -> None:
        """Close the connection, with the lock held; the next look opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # a damaged file cannot even be closed well
                connection.close()

    def close(self) -> None:
        """Close the connection for good."""
        with self.lock:
            self._is_closed = True
            self.disconnect()
