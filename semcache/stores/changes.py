"""What the writer does inside a transaction; nothing here begins or ends one.

Laws:
- an entry born before a mark of one of its facets is not written (law 8), whichever process made the mark;
- of two entries of a key the one whose load began later stays, as long as it lives; a pinned one stays until it is
  invalidated or pinned anew, and no pressure takes it;
- the pages in use, not a count of our own, decide when to evict.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from semcache.marks import Pair
from semcache.meter import overflow
from semcache.model import Facets
from semcache.stores import facets as combinations
from semcache.stores.about import PLAIN, About, pack
from semcache.stores.schema import IS_PINNED, MODE, PINNED, Row
from semcache.stores.vectors import to_float16

# A row's cell, its index entries and its part of half-empty pages, beside what is counted of it.
ROW_BYTES = 250
# Marks are kept at least this long, for the loads that are still under way.
LONGEST_LOAD_SECONDS = 3600.0
# Pinned entries are never evicted, so they are bounded in number, and in bytes by this share of the file's bound.
MAX_PINNED = 10_000
PINNED_SHARE = 0.5
SWEEP_ROWS = 64
_VACUUM_PAGES = 256
_COUNTER_DAYS = 400
# So many names a day; past them a new one is counted as "other", unless it is a policy's, which bounds its own.
MAX_NAMES = 4096

# An entry from the future, left behind by a clock that went back, is in nobody's way.
_OUTRANKED = """
    SELECT 1 FROM entries
    WHERE key = ? AND (is_pinned > ? OR is_pinned = ? AND born > ? AND expires > ?) AND written <= ?"""
_INSERT_ENTRY = f"""
    INSERT INTO entries ({", ".join(Row._fields)}, is_pinned, ends, facets, position, size, key)
    VALUES ({", ".join("?" * (len(Row._fields) + 6))})"""  # noqa: S608 - names of our own
_INSERT_INDEX_ROW = """
    INSERT INTO log (kind, key, scope, embedder, expires, born, writer, facets, text, vector)
    VALUES ('added', ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
# What is put in place of an entry is another one, with an end of its own.
_SLIDE = """
    UPDATE entries SET touched = max(touched, :read), expires = max(expires, :until), ends = max(ends, :ends)
    WHERE key = :key AND written = :written"""
_IS_BOOKED = "SELECT 1 FROM counters WHERE namespace = ? AND day = ? AND name = ?"
_BOOK = """
    INSERT INTO counters VALUES (?, ?, ?, ?)
    ON CONFLICT (namespace, day, name) DO UPDATE SET amount = amount + excluded.amount"""


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
    # For how long, without its grace, other shared tiers keep it, which heed its marks and cannot keep them.
    others_ttl: float = 0.0
    # Whether the file had no such pinned entry when this one was put.
    is_new_pin: bool = False

    @property
    def born(self) -> int:
        return self.row.born

    @property
    def about(self) -> About:
        about = self.row.about
        return about if isinstance(about, About) else PLAIN

    @property
    def ends(self) -> float:
        """When its grace is over."""
        return min(self.row.expires + self.about.grace, self.about.goes)

    @property
    def life(self) -> float:
        """Seconds in which what other tiers took from it may be around, without having been taken anew."""
        about = self.about
        if about.is_pinned:
            return 0.0  # other tiers give it lives of their own
        ends = about.goes if about.slide and about.goes != inf else self.ends
        return max(ends - self.row.written, self.others_ttl and self.others_ttl + about.grace)

    @property
    def is_indexed(self) -> bool:
        return self.scope is not None and self.text is not None

    @property
    def index_expires(self) -> float:
        """When its index row does: behind its grace; a sliding entry's when that would go at last, so it slides."""
        row, about = self.row, self.about
        if about.is_pinned:
            return inf
        return min(about.goes if about.slide else self.ends, row.written + self.index_ttl)

    @property
    def size(self) -> int:
        """Bytes it takes in the file, roughly."""
        text = len(self.text or "") if self.is_indexed else 0
        vector = 0 if self.vector is None else 2 * len(self.vector)
        return len(self.row.value) + text + vector + combinations.label_bytes(self.facets) + ROW_BYTES

    def outranks(self, other: Record) -> bool:
        """Say whether this entry stays where another is put now: it alone is pinned, or its load began later."""
        if self.about.is_pinned != other.about.is_pinned:
            return self.about.is_pinned
        return self.born > other.born and self.row.expires > other.row.touched

    def has(self, pairs: Sequence[Pair]) -> bool:
        """Say whether an invalidation of one of these means this entry."""
        return any(self.key == value if facet == "key" else self.facets.has(facet, value) for facet, value in pairs)


class Slide(NamedTuple):
    """A reading of a sliding entry: when, until when it lives for that and is kept, and when the entry was written."""

    read: float
    until: float
    ends: float
    written: float


def newest_mark(connection: sqlite3.Connection) -> int:
    """Return the position of the latest mark, 0 where there is none."""
    return int(connection.execute("SELECT ifnull(max(position), 0) FROM marks").fetchone()[0])


def insert(connection: sqlite3.Connection, record: Record, newest: int, writer: bytes) -> bool:
    """Write an entry and its index row in place of the key's older ones; False where it comes too late."""
    row, born, about = record.row, record.row.born, record.about
    if (born < newest and _is_marked(connection, record)) or connection.execute(
        _OUTRANKED, (record.key, about.is_pinned, about.is_pinned, born, row.touched, row.touched)
    ).fetchone():
        return False
    connection.execute("DELETE FROM entries WHERE key = ?", (record.key,))
    facets = combinations.add(connection, record.facets)
    position = _insert_index_row(connection, record, facets, writer) if record.is_indexed else None
    kept = (*row[:-1], None if row.about is None else pack(about))
    connection.execute(_INSERT_ENTRY, (*kept, about.is_pinned, record.ends, facets, position, record.size, record.key))
    return True


def is_pinned(connection: sqlite3.Connection, key: bytes) -> bool:
    """Say whether the file has a pinned entry of a key."""
    return connection.execute(IS_PINNED, (key,)).fetchone() is not None


def has_room(
    connection: sqlite3.Connection, record: Record, max_bytes: int, waiting: int = 0, waiting_bytes: int = 0
) -> bool:
    """Say whether an entry that is to be pinned may be, beside so many others on their way into the file."""
    if is_pinned(connection, record.key):
        return True
    number, used = connection.execute(PINNED).fetchone()
    room = max_bytes * PINNED_SHARE - used - waiting_bytes
    return bool(number + waiting < MAX_PINNED and record.size <= room)


def _insert_index_row(connection: sqlite3.Connection, record: Record, facets: int, writer: bytes) -> int | None:
    row = (
        record.key, record.scope, record.embedder, record.index_expires, record.born, writer, facets, record.text,
        to_float16(record.vector),
    )  # fmt: skip
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
        for facet, value in record.facets.pairs(record.key)
    )


def mark(
    connection: sqlite3.Connection, namespace: str, pairs: Sequence[Pair], unwritten: Collection[bytes], now: float
) -> tuple[int, int]:
    """Invalidate facet values: the position of the latest mark, and how many entries went that were still alive.

    `unwritten` are the keys of entries that went before they were written; what they were to replace goes as well.
    """
    connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in unwritten])
    position, removed = 0, len(unwritten)
    for facet, value in pairs:
        owner = value if facet == "namespace" else namespace
        connection.execute("DELETE FROM marks WHERE namespace = ? AND facet = ? AND value = ?", (owner, facet, value))
        position = connection.execute("INSERT INTO log (kind) VALUES ('marked')").lastrowid or 0
        connection.execute("INSERT INTO marks VALUES (?, ?, ?, ?, ?)", (position, owner, facet, value, now))
        removed += count(connection, namespace, [(facet, value)], now)
        meant, parameters = combinations.meant(namespace, [(facet, value)])
        connection.execute(f"DELETE FROM entries WHERE id IN ({meant})", parameters)  # noqa: S608 - names of our own
    return position, removed


def count(connection: sqlite3.Connection, namespace: str, pairs: Sequence[Pair], now: float) -> int:
    """Return how many live entries invalidations mean."""
    meant, parameters = combinations.meant(namespace, pairs)
    question = f"SELECT count(*) FROM entries WHERE id IN ({meant}) AND ends > ?"  # noqa: S608 - names of our own
    return int(connection.execute(question, (*parameters, now)).fetchone()[0])


def switch(connection: sqlite3.Connection, namespace: str, mode: str) -> None:
    """Set the mode of all who use the namespace."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (MODE + namespace, mode))


def book(connection: sqlite3.Connection, namespace: str, amounts: Mapping[tuple[str, str], float]) -> None:
    """Add to the counters of (day, name), and drop those of days long past."""
    counted: dict[str, int] = {}
    for (day, name), amount in amounts.items():
        told = name
        if not connection.execute(_IS_BOOKED, (namespace, day, name)).fetchone():
            if day not in counted:
                counted[day] = _names(connection, namespace, day)
            counted[day] += 1
            told = overflow(name) if counted[day] > MAX_NAMES else name
        connection.execute(_BOOK, (namespace, day, told, amount))
    if amounts:
        latest = max(day for day, _ in amounts)
        connection.execute(
            "DELETE FROM counters WHERE namespace = ? AND day < date(?, ?)",
            (namespace, latest[:10], f"-{_COUNTER_DAYS} days"),
        )


def _names(connection: sqlite3.Connection, namespace: str, day: str) -> int:
    question = "SELECT count(*) FROM counters WHERE namespace = ? AND day = ?"
    return int(connection.execute(question, (namespace, day)).fetchone()[0])


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


def slide(connection: sqlite3.Connection, slides: Mapping[bytes, Slide]) -> None:
    """Give entries that were read the lives they slid to."""
    connection.executemany(
        _SLIDE,
        [{"key": key, **each._asdict()} for key, each in slides.items()],
    )


def lengthen(connection: sqlite3.Connection, life: float) -> None:
    """Note the longest life that an entry of this file was given, in seconds."""
    connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'longest_life'", (life,))


def sweep(connection: sqlite3.Connection, now: float, most: int = SWEEP_ROWS) -> int:
    """Drop some expired entries, and marks that no entry is old enough for; how many entries."""
    expired = connection.execute(
        "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE ends <= ? ORDER BY ends LIMIT ?)",
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
        for row, size in connection.execute("SELECT id, size FROM entries WHERE is_pinned = 0 ORDER BY touched, id"):
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
