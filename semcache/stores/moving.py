"""Index rows on their way from one embedder to another: what a store tells of them, and what it is given in return.

Laws: a row that was made for another embedder is only read and replaced, never searched (law 11); what stands in its
place has the old one's birth and end, so that no invalidation is undone and no life is lengthened (laws 5 and 8).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from semcache.errors import TierError
from semcache.stores.vectors import to_float16

# Rows that are read, and moved, together.
PAGE = 256

_FOREIGN_PAGE = """
    SELECT position, key, scope, embedder, text, expires FROM log
    WHERE position > ? AND position <= ? AND kind = 'added' AND embedder != ? AND expires > ?
        AND facets IN (SELECT id FROM facets WHERE namespace = ?)
    ORDER BY position LIMIT ?"""
_COPY = """
    INSERT INTO log (kind, key, scope, embedder, expires, born, writer, facets, text, vector)
    SELECT 'added', key, ?, ?, expires, born, ?, facets, text, ? FROM log WHERE position = ? AND key = ?"""


class Foreign(NamedTuple):
    """A row of another embedder; `at` is its place in the store, `remaining` in seconds."""

    at: Any
    key: bytes
    scope: bytes
    embedder: str
    text: str
    remaining: float


class Moved(NamedTuple):
    """What is to stand in a row's place; `vector` is float32[d]."""

    row: Foreign
    scope: bytes
    embedder: str
    vector: Any


@dataclass(slots=True, eq=False)
class Move:
    """Rows that wait to be replaced; the future gives for each whether it was still there."""

    rows: Sequence[Moved]
    future: Future[Any]

    def fail(self, error: BaseException) -> None:
        """Tell who waits that none was replaced."""
        failure = TierError("lost", f"{len(self.rows)} rows could not be moved, try again: {error}")
        failure.__cause__ = error
        self.future.set_exception(failure)


def foreign(
    ask: Callable[..., list[Any]], last: int, embedder: str, namespace: str, now: Callable[[], float]
) -> Iterator[list[Foreign]]:  # fmt: skip
    """Yield the live rows of all other embedders in a file up to a position, a page at a time, oldest first."""
    position = 0
    while True:
        moment = now()
        page = ask(_FOREIGN_PAGE, position, last, embedder, moment, namespace, PAGE)
        if page:
            yield [Foreign(at, key, scope, other, text, end - moment) for at, key, scope, other, text, end in page]
        if len(page) < PAGE:
            return
        position = page[-1][0]


def move(connection: sqlite3.Connection, rows: Sequence[Moved], writer: bytes) -> list[bool]:
    """Replace rows of a file, each by one at the log's end, where others find it; whether each was still there."""
    moved: list[bool] = []
    for (position, key, *_), scope, embedder, vector in rows:
        copied = connection.execute(_COPY, (scope, embedder, writer, to_float16(vector), position, key))
        if copied.rowcount:
            place = copied.lastrowid, key, position
            connection.execute("UPDATE entries SET position = ? WHERE key = ? AND position = ?", place)
            connection.execute("DELETE FROM log WHERE position = ?", (position,))
        moved.append(bool(copied.rowcount))
    return moved
