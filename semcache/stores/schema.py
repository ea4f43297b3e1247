"""The tables of a store's file, and one word for each kind of trouble that SQLite has with it.

Laws:
- an index row goes with its entry, facets with the last entry that has them, and a 'marked' row with its mark, and what
  is pinned is counted, whoever adds or deletes them: triggers see to it;
- a position is never given twice: the log counts on from what it ever held, and a new file begins past all older ones.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import NamedTuple

from semcache.errors import TierError
from semcache.stores.about import About

APPLICATION_ID = 0x73656D63  # "semc"
SCHEMA_VERSION = 2

# The value stands last, so that what is asked of an entry beside it is read without its overflow pages. An entry is
# fresh until `expires`, and gone at `ends`, when its grace is over; `about` is for readers, where there is more to say.
TABLES = (
    """CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID""",
    """CREATE TABLE facets (
        id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, function TEXT NOT NULL, version TEXT NOT NULL,
        tenant TEXT NOT NULL, model TEXT NOT NULL, labels BLOB NOT NULL,
        UNIQUE (namespace, function, version, tenant, model, labels))""",
    """CREATE TABLE labels (
        facet TEXT NOT NULL, value TEXT NOT NULL, facets INTEGER NOT NULL, PRIMARY KEY (facet, value, facets)
        ) WITHOUT ROWID""",
    """CREATE INDEX labels_by_facets ON labels (facets)""",
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, checksum INTEGER NOT NULL, expires REAL NOT NULL,
        written REAL NOT NULL, touched REAL NOT NULL, born INTEGER NOT NULL, load_seconds REAL NOT NULL,
        is_own_ttl INTEGER NOT NULL, about BLOB, is_pinned INTEGER NOT NULL, ends REAL NOT NULL,
        facets INTEGER NOT NULL, position INTEGER, size INTEGER NOT NULL, value BLOB NOT NULL)""",
    """CREATE INDEX entries_by_end ON entries (ends)""",
    """CREATE INDEX entries_by_touch ON entries (touched) WHERE is_pinned = 0""",
    """CREATE INDEX entries_by_facets ON entries (facets)""",
    """CREATE TABLE log (
        position INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('added', 'marked')), key BLOB,
        scope BLOB, embedder TEXT, expires REAL, born INTEGER, writer BLOB, facets INTEGER, text TEXT, vector BLOB)""",
    """CREATE TABLE marks (
        position INTEGER PRIMARY KEY, namespace TEXT NOT NULL, facet TEXT NOT NULL, value NOT NULL,
        written REAL NOT NULL, UNIQUE (namespace, facet, value))""",
    """CREATE TABLE counters (
        namespace TEXT NOT NULL, day TEXT NOT NULL, name TEXT NOT NULL, amount REAL NOT NULL,
        PRIMARY KEY (namespace, day, name)) WITHOUT ROWID""",
    """CREATE TRIGGER entry_gone AFTER DELETE ON entries BEGIN
        DELETE FROM log WHERE position = old.position;
        DELETE FROM facets WHERE id = old.facets AND NOT EXISTS (SELECT 1 FROM entries WHERE facets = old.facets);
    END""",
    """CREATE TRIGGER pinned_came AFTER INSERT ON entries WHEN new.is_pinned BEGIN
        UPDATE meta SET value = value + 1 WHERE name = 'pinned';
        UPDATE meta SET value = value + new.size WHERE name = 'pinned_bytes';
    END""",
    """CREATE TRIGGER pinned_gone AFTER DELETE ON entries WHEN old.is_pinned BEGIN
        UPDATE meta SET value = value - 1 WHERE name = 'pinned';
        UPDATE meta SET value = value - old.size WHERE name = 'pinned_bytes';
    END""",
    """CREATE TRIGGER facets_gone AFTER DELETE ON facets BEGIN DELETE FROM labels WHERE facets = old.id; END""",
    """CREATE TRIGGER mark_gone AFTER DELETE ON marks BEGIN DELETE FROM log WHERE position = old.position; END""",
    """INSERT INTO meta VALUES
        ('longest_life', 0.0), ('identity', randomblob(16)), ('pinned', 0), ('pinned_bytes', 0)""",
)


class Row(NamedTuple):
    """What READ gives, in its order; an entry that waits to be written has the same, `about` not packed yet."""

    value: bytes
    checksum: int
    expires: float
    written: float
    touched: float
    born: int
    load_seconds: float
    is_own_ttl: int
    about: bytes | About | None = None


READ = f"SELECT {', '.join(Row._fields)} FROM entries WHERE key = ?"  # noqa: S608 - names of our own

POSITION = "SELECT seq FROM sqlite_sequence WHERE name = 'log'"
COUNT = "SELECT count(*) FROM entries"
INDEX_PAGE = """
    SELECT position, key, scope, text, vector, expires FROM log
    WHERE position > ? AND kind = 'added' AND embedder = ? AND expires > ?
        AND facets IN (SELECT id FROM facets WHERE namespace = ?)
    ORDER BY position LIMIT ?"""
NAMESPACES = "SELECT namespace FROM facets UNION SELECT namespace FROM marks UNION SELECT namespace FROM counters"
PINNED = """
    SELECT (SELECT value FROM meta WHERE name = 'pinned'), (SELECT value FROM meta WHERE name = 'pinned_bytes')"""
IS_PINNED = "SELECT 1 FROM entries WHERE key = ? AND is_pinned = 1"
# What stands under a day with a letter behind it is no usage.
BOOKED = "SELECT day, name, amount FROM counters WHERE namespace = ? AND day >= ? AND length(day) = 10"
TALLIED = "SELECT name, amount FROM counters WHERE namespace = ? AND day = ?"

# What a follower asks, all in one read transaction; `mode` stands in meta under MODE and the namespace.
MODE = "mode "
STATE = """
    SELECT (SELECT value FROM meta WHERE name = 'identity'), (SELECT seq FROM sqlite_sequence WHERE name = 'log'),
        (SELECT value FROM meta WHERE name = ?)"""
# By position, not by the index of namespaces, which the plus keeps SQLite from: few marks are new, many may be known.
MARKS_SINCE = "SELECT facet, value, position FROM marks WHERE position > ? AND +namespace = ? ORDER BY position"
# Every live row of others, whatever its embedder.
ROWS_SINCE = """
    SELECT log.position, key, scope, embedder, text, vector, expires FROM log JOIN facets ON facets.id = log.facets
    WHERE log.position > ? AND kind = 'added' AND writer != ? AND expires > ? AND namespace = ?
    ORDER BY log.position LIMIT ?"""

_REASONS = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_FULL: "space",
    sqlite3.SQLITE_READONLY: "readonly",
    sqlite3.SQLITE_PERM: "readonly",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_CANTOPEN: "unreachable",
    sqlite3.SQLITE_IOERR: "io",
}
_OS_REASONS = {
    errno.ENOSPC: "space", errno.EDQUOT: "space", errno.EFBIG: "space",
    errno.EROFS: "readonly", errno.EACCES: "readonly", errno.EPERM: "readonly",
    errno.EAGAIN: "busy",
}  # fmt: skip
_MENDS = {
    "busy": "another process holds the file; this passes",
    "space": "make room on the disk, or give a smaller bound",
    "readonly": "let this user write the file and its directory, or give another path",
    "damaged": "it is moved aside and begun anew as soon as no other process uses it",
    "unreachable": "is there such a directory?",
}


def reason_of(error: BaseException) -> str:
    """Return one word for what went wrong; "record" where it is not the file's fault but one record's."""
    if isinstance(error, TierError):
        return error.reason
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return "record" if code is None else _REASONS.get(code & 0xFF, "record")
    if isinstance(error, OSError):
        return _OS_REASONS.get(error.errno or 0, "unreachable")
    return "record"


def trouble(error: BaseException, path: str) -> TierError:
    """Return an error as the tier's own, with the mend where there is one."""
    if isinstance(error, TierError):
        return TierError(error.reason, str(error))
    reason = reason_of(error)
    mend = _MENDS.get(reason)
    return TierError(reason, f"{path}: {error}" + (f" ({mend})" if mend else ""))
