"""The file of a store: opens it, begins it, tells whether it is ours, and moves a damaged one aside.

Laws:
- who uses the file holds a shared lock on PATH-lock; a damaged file is moved only under the exclusive one, so never
  away from a process that is still content with it (an invalidation written there would be lost);
- a file of another schema, or of another program, is left as it is.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock

from semcache.errors import TierError
from semcache.stores import reported
from semcache.stores.schema import APPLICATION_ID, SCHEMA_VERSION, TABLES

# A write transaction waits this long at a time; between, the writer looks whether it is to stop.
WRITE_WAIT_SECONDS = 0.25
_LEFTOVER_WAL_BYTES = 4 * 2**20


class StoreFile:
    """One SQLite file in WAL mode; `timeout` is how long a read waits for a lock, in seconds."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._lock: int | None = None
        self._joining = Lock()
        self._identity: tuple[int, int] | None = None
        self._was_replaced = False

    def connect_reader(self) -> sqlite3.Connection:
        """Open the file for reading; raises where there is none, or none that is ours."""
        self._join()
        connection = self._connect("rw", self._timeout)
        self._identity = self._identity or self.identify()
        try:
            is_begun = self._is_ours(connection)
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        if not is_begun:
            connection.close()
            raise TierError("unready", f"{self.path} is empty so far: it is begun with the first write")
        return connection

    def connect_writer(self) -> sqlite3.Connection:
        """Open the file for writing; begin it where there is none."""
        self._join()
        connection = self._connect("rwc", WRITE_WAIT_SECONDS)
        try:
            self._identity = self.identify()
            connection.execute("PRAGMA synchronous = NORMAL")
            if not self._is_ours(connection):
                self._begin(connection)
            for statement in reported.TABLES:  # a file of before there were these is given them
                connection.execute(statement)
            connection.execute(f"PRAGMA journal_size_limit = {_LEFTOVER_WAL_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def is_current(self) -> bool:
        """Say whether the path still names the file that was opened last for writing."""
        return self._identity == self.identify()

    def replace_damaged(self) -> Path | None:
        """Move the damaged file aside, once; returns where to, or None where another store was quicker.

        This store's connections must be closed. Raises TierError where another store still uses the file, or where the
        file begun in its place is damaged too.
        """
        if self._was_replaced:
            raise TierError("damaged", f"{self.path} is damaged again: check the disk it is on")
        self.leave()  # two stores that find the damage at once must not wait for each other
        lock = self._open_lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._move_aside()
        except BlockingIOError as error:
            message = f"{self.path} is damaged, and other processes use it: it is moved aside when they have closed it"
            raise TierError("damaged", message) from error
        finally:
            os.close(lock)

    def _move_aside(self) -> Path | None:
        if not self.is_current():
            return None
        aside = next(path for n in count(1) if not (path := Path(f"{self.path}.damaged-{n}")).exists())
        # The file first: SQLite drops a WAL that is left without one, but would replay it into another.
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        self._was_replaced = True
        return aside

    def leave(self) -> None:
        """Let go of the lock file."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _join(self) -> None:
        with self._joining:
            if self._lock is not None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._open_lock()
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BaseException:
                os.close(lock)
                raise
            self._lock = lock

    def _open_lock(self) -> int:
        return os.open(f"{self.path}-lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def identify(self) -> tuple[int, int] | None:
        """Return what tells the file that is at the path now from every other; None where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self, mode: str, timeout: float) -> sqlite3.Connection:
        # One thread at a time uses a connection, but not always the same one.
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=timeout, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """Say whether the file is ours; False where it is empty. Another's, or of another schema, is an error."""
        application, version, tables = connection.execute(
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
            " FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
            return True
        if (application, version, tables) == (0, 0, 0):
            return False
        whose = f"has schema {version}" if application == APPLICATION_ID else "is another program's database"
        message = f"{self.path} {whose}; this semcache keeps schema {SCHEMA_VERSION}: give another path, or remove it"
        raise TierError("version", message)

    def _begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise TierError("wal", f"{self.path} is where SQLite cannot keep a WAL: give a path on a local disk")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._is_ours(connection):  # another process may have been quicker
                for statement in TABLES:
                    connection.execute(statement)
                # Microseconds since 1970: past every position that an older file at this path can have given.
                connection.execute("INSERT INTO sqlite_sequence VALUES ('log', ?)", (time.time_ns() // 1000,))
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
