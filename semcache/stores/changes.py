"""What the writer does inside a transaction; nothing here begins or ends one.

Laws:
- an entry born before a mark of one of its facets is not written (law 8), whichever process made the mark;
- of two entries of a key the one whose load began later stays, as long as it lives;
- the pages in use, not a count of our own, decide when to evict.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from semcache.model import Facets
from semcache.stores.schema import Row
from semcache.tier import facet_pairs

# A row's cell, its index entries and its part of half-empty pages, beside what is counted of it.
ROW_BYTES = 250
# Marks are kept at least this long, for the loads that are still under way.
LONGEST_LOAD_SECONDS = 3600.0
SWEEP_ROWS = 64
_VACUUM_PAGES = 256

# An entry from the future, left behind by a clock that went back, is in nobody's way.
_OUTRANKED = "SELECT 1 FROM entries WHERE key = ? AND born > ? AND expires > ? AND written <= ?"
_INSERT_ENTRY = """
    INSERT INTO entries (key, checksum, expires, written, touched, born, load_seconds, is_own_ttl, facets, position,
        size, value)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, (SELECT id FROM facets
        WHERE namespace = ? AND function = ? AND version = ? AND tenant = ? AND model = ?), ?, ?, ?)"""
_INSERT_INDEX_ROW = """
    INSERT INTO log (kind, key, scope, embedder, expires, facets, text, vector)
    VALUES ('added', ?, ?, ?, ?, (SELECT id FROM facets
        WHERE namespace = ? AND function = ? AND version = ? AND tenant = ? AND model = ?), ?, ?)"""
_DELETE = {"key": "DELETE FROM entries WHERE key = :value"} | {
    facet: f"DELETE FROM entries WHERE facets IN (SELECT id FROM facets WHERE namespace = :owner AND {facet} = :value)"  # noqa: S608 - names of our own
    for facet in Facets.__slots__
}
FACETS = frozenset(_DELETE)


@dataclass(slots=True)
class Record:
    """An entry on its way into the file, with its index row where it has a scope and a text.

    `vector` is the text's, float32[d] or None; the index row lives `index_ttl` seconds, or as long as the entry.
    """

    key: bytes
    row: Row
    facets: Facets
    scope: bytes | None = None
    embedder: str = ""
    text: str | None = None
    vector: Any = None
    index_ttl: float = inf

    @property
    def born(self) -> int:
        return self.row[5]

    @property
    def life(self) -> float:
        return self.row[2] - self.row[3]

    @property
    def is_indexed(self) -> bool:
        return self.scope is not None and self.text is not None

    @property
    def size(self) -> int:
        """Bytes it takes in the file, roughly."""
        text = len(self.text or "") if self.is_indexed else 0
        return len(self.row[0]) + text + (0 if self.vector is None else 2 * len(self.vector)) + ROW_BYTES

    def outranks(self, other: Record) -> bool:
        """Say whether this entry stays where another is put now, whose load began earlier."""
        return self.born > other.born and self.row[2] > other.row[4]

    def has(self, facet: str, value: str | bytes) -> bool:
        """Say whether an invalidation of this facet value means this entry."""
        return self.key == value if facet == "key" else getattr(self.facets, facet) == value


def to_float16(vector: Any) -> bytes | None:
    """Return a vector as it is stored: float16, little-endian."""
    if vector is None:
        return None
    import numpy as np

    return np.asarray(vector, dtype="<f2").tobytes()


def newest_mark(connection: sqlite3.Connection) -> int:
    """Return the position of the latest mark, 0 where there is none."""
    return int(connection.execute("SELECT ifnull(max(position), 0) FROM marks").fetchone()[0])


def insert(connection: sqlite3.Connection, record: Record, newest: int) -> bool:
    """Write an entry and its index row in place of the key's older ones; False where it comes too late."""
    value, checksum, expires, written, touched, born, load_seconds, is_own_ttl = record.row
    if (born < newest and _is_marked(connection, record)) or connection.execute(
        _OUTRANKED, (record.key, born, touched, touched)
    ).fetchone():
        return False
    facets = record.facets
    names = (facets.namespace, facets.function, facets.version, facets.tenant, facets.model)
    connection.execute("DELETE FROM entries WHERE key = ?", (record.key,))
    connection.execute(
        "INSERT OR IGNORE INTO facets (namespace, function, version, tenant, model) VALUES (?, ?, ?, ?, ?)", names
    )
    position = _insert_index_row(connection, record, names) if record.is_indexed else None
    connection.execute(
        _INSERT_ENTRY,
        (record.key, checksum, expires, written, touched, born, load_seconds, is_own_ttl, *names, position,
         record.size, value),
    )  # fmt: skip
    return True


def _insert_index_row(connection: sqlite3.Connection, record: Record, names: tuple[str, ...]) -> int | None:
    vector = to_float16(record.vector)
    expires = min(record.row[2], record.row[3] + record.index_ttl)
    row = (record.key, record.scope, record.embedder, expires, *names, record.text, vector)
    try:
        return connection.execute(_INSERT_INDEX_ROW, row).lastrowid
    except UnicodeEncodeError:  # half a surrogate pair: no embedder takes such a text either
        return None


def _is_marked(connection: sqlite3.Connection, record: Record) -> bool:
    return any(
        connection.execute(
            "SELECT 1 FROM marks WHERE namespace = ? AND facet = ? AND value = ? AND position > ?",
            (record.facets.namespace, facet, value, record.born),
        ).fetchone()
        for facet, value in facet_pairs(record.facets, record.key)
    )


def mark(
    connection: sqlite3.Connection,
    namespace: str,
    facet: str,
    value: str | bytes,
    unwritten: Collection[bytes],
    now: float,
) -> tuple[int, int]:
    """Invalidate a facet value: the position of its mark, and how many entries went.

    `unwritten` are the keys of entries that went before they were written; what they were to replace goes as well.
    """
    owner = value if facet == "namespace" else namespace
    connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in unwritten])
    connection.execute("DELETE FROM marks WHERE namespace = ? AND facet = ? AND value = ?", (owner, facet, value))
    position = connection.execute("INSERT INTO log (kind) VALUES ('marked')").lastrowid
    connection.execute("INSERT INTO marks VALUES (?, ?, ?, ?, ?)", (position, owner, facet, value, now))
    removed = connection.execute(_DELETE[facet], {"owner": owner, "value": value}).rowcount
    return int(position or 0), removed + len(unwritten)


def attach(connection: sqlite3.Connection, key: bytes, vector: Any, embedder: str | None) -> None:
    """Give an index row that has none its vector, where the row is of that embedder."""
    connection.execute(
        "UPDATE log SET vector = :vector WHERE position = (SELECT position FROM entries WHERE key = :key)"
        " AND vector IS NULL AND embedder = ifnull(:embedder, embedder)",
        {"vector": to_float16(vector), "key": key, "embedder": embedder},
    )


def touch(connection: sqlite3.Connection, touches: Mapping[bytes, float]) -> None:
    """Note when entries were last read."""
    connection.executemany(
        "UPDATE entries SET touched = max(touched, ?) WHERE key = ?", [(when, key) for key, when in touches.items()]
    )


def lengthen(connection: sqlite3.Connection, life: float) -> None:
    """Note the longest life that an entry of this file was given, in seconds."""
    connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'longest_life'", (life,))


def sweep(connection: sqlite3.Connection, now: float, most: int = SWEEP_ROWS) -> int:
    """Drop some expired entries, and marks that no entry is old enough for; how many entries."""
    expired = connection.execute(
        "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)",
        (now, most),
    ).rowcount
    (longest_life,) = connection.execute("SELECT value FROM meta WHERE name = 'longest_life'").fetchone()
    connection.execute(
        "DELETE FROM marks WHERE position IN (SELECT position FROM marks ORDER BY position LIMIT ?) AND written < ?",
        (most, now - max(longest_life, LONGEST_LOAD_SECONDS)),
    )
    return expired


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the file's pages that hold something."""
    pages, free, page_bytes = _pages(connection)
    return (pages - free) * page_bytes


def _pages(connection: sqlite3.Connection) -> tuple[int, int, int]:
    pages: tuple[int, int, int] = connection.execute(
        "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ).fetchone()
    return pages


def evict(connection: sqlite3.Connection, max_bytes: int) -> int:
    """Drop the least recently touched entries until the file is within its bound, with some room; how many."""
    evicted = 0
    target = max_bytes if used_bytes(connection) <= max_bytes else max_bytes - max_bytes // 20
    while (excess := used_bytes(connection) - target) > 0:
        doomed = []
        for row, size in connection.execute("SELECT id, size FROM entries ORDER BY touched, id"):
            doomed.append((row,))
            excess -= size
            if excess <= 0:
                break
        if not doomed:
            break
        connection.executemany("DELETE FROM entries WHERE id = ?", doomed)
        evicted += len(doomed)
    return evicted


def give_back(connection: sqlite3.Connection, max_bytes: int) -> None:
    """Return some free pages to the file system where there are many, as after an invalidation."""
    pages, free, page_bytes = _pages(connection)
    if pages * page_bytes > max_bytes + max_bytes // 8 or free * page_bytes > max_bytes // 4:
        for _ in range(_VACUUM_PAGES):  # the module sqlite3 steps this statement once, which frees one page
            connection.execute("PRAGMA incremental_vacuum")
