"""What a store's file keeps of near matches: those that were reported, those that were served, and ids of answers.

Laws: blocks are durable when the call returns, and have a position in the log, so that followers hear of them; rows and
ids are bounded by number and age, and take no more than a share of the file's bound; a file of before there were such
is given their tables by whoever writes to it first, and until then holds none; a file that is begun in the place of
another is given the blocks that its processes know, and those that can be read of a damaged one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semcache.blocks import WORDS_BYTES, Block, Blocks
from semcache.errors import TierError
from semcache.ledger import KEEP_SECONDS, MAX_NAMES, MAX_ROWS, ROW_BYTES, Served, Taken, id_digest
from semcache.marks import Changes

if TYPE_CHECKING:
    from semcache.stores.sqlite import SqliteStore

TABLES = (
    """CREATE TABLE IF NOT EXISTS blocks (
        namespace TEXT NOT NULL, stored BLOB NOT NULL, words BLOB NOT NULL, similarity REAL NOT NULL,
        written REAL NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (namespace, stored, words)) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS blocks_by_position ON blocks (position)""",
    """CREATE TABLE IF NOT EXISTS served (
        id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, at REAL NOT NULL, asked BLOB NOT NULL, stored BLOB NOT NULL,
        similarity REAL NOT NULL, text TEXT NOT NULL, neighbour TEXT NOT NULL, words BLOB NOT NULL,
        tenant BLOB NOT NULL, family BLOB NOT NULL, response_id TEXT NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS served_by_stored ON served (stored)""",
    """CREATE INDEX IF NOT EXISTS served_by_asked ON served (asked)""",
    """CREATE TABLE IF NOT EXISTS answers (
        id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, response BLOB NOT NULL, key BLOB NOT NULL,
        written REAL NOT NULL, UNIQUE (namespace, response))""",
)
# Of the file's bound; the entries are what it is there for.
_SHARE = 0.05
_NAME_BYTES = 160
_PATIENCE_SECONDS = 5.0

_BLOCK = """
    INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, stored, words) DO UPDATE SET
    similarity = max(similarity, excluded.similarity), written = max(written, excluded.written),
    position = excluded.position"""
BLOCKS_SINCE = "SELECT stored, words, similarity, written FROM blocks WHERE position > ? AND +namespace = ?"
_SERVE = f"""
    INSERT INTO served (namespace, {", ".join(Served._fields)})
    VALUES (?, {", ".join("?" * len(Served._fields))})"""  # noqa: S608 - names of our own
_NAME = """
    INSERT INTO answers (namespace, response, key, written) VALUES (?, ?, ?, ?)
    ON CONFLICT (namespace, response) DO UPDATE SET key = excluded.key, written = excluded.written"""
_SALVAGED = """
    SELECT namespace, stored, words, similarity, written FROM blocks
    ORDER BY namespace {order}, stored {order}, words {order} LIMIT ?"""
_MOST_SALVAGED = 100_000
_MOST_COSINE = 1.001
HAS_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'answers'"


def block(connection: sqlite3.Connection, namespace: str, blocks: list[Block]) -> None:
    """Keep blocks, each at a position of its own; the log itself need not say more."""
    for one in blocks:
        position = connection.execute("INSERT INTO log (kind) VALUES ('marked')").lastrowid
        connection.execute("DELETE FROM log WHERE position = ?", (position,))
        connection.execute(_BLOCK, (namespace, *one, position))


def salvaged(path: Path) -> tuple[list[tuple[str, Block]], bool]:
    """Return the blocks that can be read in a damaged file, with their namespaces, and whether these are all."""
    found: dict[tuple[str, bytes, bytes], Block] = {}
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            if not connection.execute(HAS_TABLES).fetchone()[0]:
                return [], True
            is_whole = False
            for order in ("ASC", "DESC"):  # from both ends up to the first page that is no more
                with suppress(sqlite3.Error):
                    for namespace, *told in connection.execute(_SALVAGED.format(order=order), (_MOST_SALVAGED,)):
                        if _is_block(told):
                            found[namespace, told[0], told[1]] = Block(*told)
                    is_whole = True
                    break
    except sqlite3.Error:
        is_whole = False
    return [(namespace, block) for (namespace, _, _), block in found.items()], is_whole


def _is_block(told: list[Any]) -> bool:
    """Say whether a row of a damaged file can be what was written."""
    stored, words, similarity, written = told
    is_pair = isinstance(stored, bytes) and isinstance(words, bytes) and len(words) == WORDS_BYTES
    return is_pair and isinstance(similarity, float) and abs(similarity) <= _MOST_COSINE and isinstance(written, float)


def take_over(connection: sqlite3.Connection, blocks: list[tuple[str, Block]]) -> None:
    """Keep blocks of several namespaces."""
    for namespace, one in blocks:
        block(connection, namespace, [one])


def unblock(connection: sqlite3.Connection, namespace: str, blocks: list[Block]) -> None:
    """Keep blocks no more."""
    connection.executemany(
        "DELETE FROM blocks WHERE namespace = ? AND stored = ? AND words = ?",
        [(namespace, one.stored, one.words) for one in blocks],
    )


def serve(connection: sqlite3.Connection, namespace: str, taken: Taken, now: float, max_bytes: int) -> None:
    """Keep rows and ids; the oldest beyond the bounds go."""
    connection.executemany(_SERVE, [(namespace, *row) for row in taken.rows])
    connection.executemany(_NAME, [(namespace, response, key, now) for response, key in taken.names.items()])
    for table, when, most in (
        ("served", "at", min(MAX_ROWS, int(max_bytes * _SHARE) // ROW_BYTES)),
        ("answers", "written", min(MAX_NAMES, int(max_bytes * _SHARE) // _NAME_BYTES)),
    ):
        past = f"id <= (SELECT max(id) FROM {table}) - ? OR (id < (SELECT min(id) FROM {table}) + ? AND {when} < ?)"  # noqa: S608 - names of our own
        connection.execute(f"DELETE FROM {table} WHERE {past}", (most, 1000, now - KEEP_SECONDS))  # noqa: S608 - as above


class FileReports:
    """The blocks, rows and ids of one namespace in a store's file; `blocks` are what this process knows."""

    def __init__(self, store: SqliteStore, namespace: str, max_bytes: int, blocks: Blocks | None = None) -> None:
        self._store = store
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._blocks = Blocks() if blocks is None else blocks

    def settle(self, found: Changes) -> None:
        """Have a file that is another than before keep what this process knows beside it, behind the caller."""
        if not found.is_reset:
            return
        known = {one[:2] for one in found.blocks}
        lost = [one for one in self._blocks.listed() if one[:2] not in known]
        if lost:
            with suppress(TierError):  # nobody can write here; this process blocks them all the same
                self._store.change(partial(block, namespace=self._namespace, blocks=lost))

    def block(self, blocks: list[Block]) -> None:
        """Keep blocks durably. Raises TierError."""
        self._settled(self._store.change(partial(block, namespace=self._namespace, blocks=blocks)))

    def unblock(self, blocks: list[Block]) -> None:
        """Keep blocks no more. Raises TierError."""
        self._settled(self._store.change(partial(unblock, namespace=self._namespace, blocks=blocks)))

    def blocked(self) -> list[Block]:
        """Return all blocks. Raises TierError."""
        return [Block(*row) for row in self._ask(BLOCKS_SINCE, -1, self._namespace)]

    def serve(self, taken: Taken, failed: Any) -> None:
        """Keep rows and ids, behind the caller; `failed` is called where that cannot be. Raises TierError."""
        made = self._serve(taken)
        made.add_done_callback(lambda done: None if done.exception() is None else failed(taken))

    def serve_now(self, taken: Taken) -> None:
        """Keep rows and ids, and wait for it. Raises TierError."""
        self._settled(self._serve(taken))

    def _serve(self, taken: Taken) -> Future[Any]:
        now = self._store.now()
        return self._store.change(
            partial(serve, namespace=self._namespace, taken=taken, now=now, max_bytes=self._max_bytes)
        )

    def served(self, wanted: Mapping[str, bytes]) -> list[Served]:
        """Return the rows with all of some values, oldest first. Raises TierError."""
        asked = "".join(f" AND {name} = ?" for name in wanted)
        question = f"SELECT {', '.join(Served._fields)} FROM served WHERE +namespace = ? AND at > ?{asked} ORDER BY id"  # noqa: S608 - names of our own
        since = self._store.now() - KEEP_SECONDS
        return [Served(*row) for row in self._ask(question, self._namespace, since, *wanted.values())]

    def named(self, response_id: str) -> bytes | None:
        """Return the key of the entry whose answer has this id, as far as it is known. Raises TierError."""
        question = "SELECT key FROM answers WHERE namespace = ? AND response = ? AND written > ?"
        since = self._store.now() - KEEP_SECONDS
        found = self._ask(question, self._namespace, id_digest(response_id), since)
        return found[0][0] if found else None

    def _ask(self, question: str, *values: Any) -> list[Any]:
        return self._store.ask(question, *values) if self._store.ask(HAS_TABLES)[0][0] else []

    def _settled(self, future: Future[Any]) -> None:
        try:
            future.result(_PATIENCE_SECONDS)
        except TimeoutError:
            raise TierError("late", f"the file did not take it within {_PATIENCE_SECONDS:g} s") from None
