"""How a process follows the log in a Redis: what came, what was missed, and what the index is built of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

from semcache.blocks import Block
from semcache.errors import DecodeError, TierError
from semcache.marks import Changes, Mark, Row
from semcache.model import MODES, Facets, Mode
from semcache.plan import run
from semcache.stores import header
from semcache.stores.link import PATIENT_SECONDS, Command, converse
from semcache.stores.redis_keys import (
    id_of,
    member,
    pack,
    pair_of,
    position_at,
    position_of,
    told_mode,
    unpack,
)
from semcache.stores.redis_pins import records, row_of
from semcache.stores.redis_reported import Reporting
from semcache.stores.redis_trouble import trouble
from semcache.stores.vectors import from_float16

MAX_MARKS = 100_000
_BLOCK_MS = 400
_PAGE = 2000
_VERIFY_SECONDS = 1.0
# A server that says nothing for so long, where it is asked to wait no longer than `_BLOCK_MS`, is lost.
_SILENT_SECONDS = _BLOCK_MS / 1000 + 1.0


class Following(Reporting):
    """One thread's view of the log, over a connection of its own that `rest` can cut."""

    def join(self) -> Changes:
        """Begin to follow: position, all marks and the mode; begins the namespace's marks where there are none."""
        self.is_followed = False
        names = self.names
        replies = self._talk([
            ("TIME",), ("XINFO", "STREAM", names.log), ("ZSCORE", names.marks, self._own), self._ask_mode(),
            ("HVALS", names.pinned), ("ZRANGE", names.wrong, 0, -1, "WITHSCORES"),
        ])  # fmt: skip
        clock, info, own, mode, pinned, wrong = replies
        self._last_seen, self._read_so_far, _ = _stream_told(info)
        own = self._checked(own)
        server = self._set_clock(clock)
        position = max(position_at(server), self._last_seen)
        self._settle_mode(mode)
        if own is None:
            run(self._begin_marks(server))
        marks = self._all_marks()
        self._floor = max((mark[2] for mark in marks if mark[0] == "namespace"), default=0)
        self._republish(marks)
        for mark in marks:  # before a reader is told that they are known
            self._marks.mark(*mark)
        self.pins.begin(self._checked(pinned))
        for key in self.pins.covered(self._marks):
            self._unpin_covered(key)
        blocks = self._settle_blocks(wrong)
        self._heard(max([position, *(mark[2] for mark in marks)]))
        self.is_followed = True
        self._verify_at = time.monotonic() + _VERIFY_SECONDS
        return Changes(position, marks, [], self._told_mode(), log=self._log, blocks=blocks)

    @property
    def _log(self) -> str:
        """Name the log: by when its namespace was begun, or invalidated as a whole, which no two have in common."""
        return str(self._floor)

    def _unpin_covered(self, key: bytes) -> None:
        """Drop a pinned entry that a mark covers, which may be gone before it: unless it was pinned anew meanwhile."""
        self.pins.forget([key])
        place = self.names.of_pinned(key)
        _, head = self._talk([("WATCH", place), ("GETRANGE", place, 0, header.HEADER_BYTES + 0xFFFF)])
        told = header.peek(self._checked(head))
        if not head:
            self._talk([("MULTI",), ("HDEL", self.names.pinned, key), ("EXEC",)])
        elif told is None or not self._marks.cover(told[2].of(self._namespace).pairs(key), told[0]):
            self._talk([("MULTI",), ("EXEC",)])
        else:
            self._talk([("MULTI",), ("UNLINK", place), ("HDEL", self.names.pinned, key), ("EXEC",)])

    def _settle_mode(self, reply: Any) -> None:
        """Hear the mode of all replicas; write it anew where the store knows none, or an older one."""
        stored = told_mode(self._checked(reply))
        self._hear_mode(stored)
        position, mode = self._mode
        if stored < (position, mode):
            self._talk([("ZADD", self.names.mode, "GT", position, mode)])

    def _told_mode(self) -> Mode | None:
        return cast("Mode", self._mode[1]) if self._mode[1] else None

    def _republish(self, stored: list[Mark]) -> None:
        """Write anew what this process knows and the store does not: it has come back from an older snapshot."""
        known = {(facet, value): position for facet, value, position in stored}
        lost = [mark for mark in self._marks.since(0) if mark[2] > known.get(mark[:2], 0)]
        for at in range(0, len(lost), _PAGE):
            commands: list[Command] = []
            for facet, value, position in lost[at : at + _PAGE]:
                if facet == "key":
                    commands.append(("ZADD", self.names.gone, "GT", position, value))
                    commands.append(("UNLINK", self.names.of(value)))  # type: ignore[arg-type]
                else:
                    commands.append(("ZADD", self.names.marks, "GT", position, member(facet, value)))
                commands.append(("XADD", self.names.log, "*", "r", pack(["m", facet, value, position])))
            self._talk(commands)

    def _all_marks(self) -> list[Mark]:
        marks, gone = self._talk([
            ("ZRANGE", self.names.marks, 0, -1, "WITHSCORES"), ("ZRANGE", self.names.gone, 0, -1, "WITHSCORES"),
        ])  # fmt: skip
        marks, gone = self._checked(marks), self._checked(gone)
        found: list[Mark] = [
            (*pair_of(name), int(float(score))) for name, score in zip(marks[::2], marks[1::2], strict=True)
        ]
        found += [("key", key, int(float(score))) for key, score in zip(gone[::2], gone[1::2], strict=True)]
        return found

    def follow(self, since: int) -> Changes:
        """Return what came after a position; waits for it, some tenths of a second at most."""
        try:
            if time.monotonic() >= self._verify_at or not self.is_followed:
                missed = self._verify(since)
                if missed is not None:
                    return missed
            asked = ("XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK_MS, "STREAMS", self.names.log, id_of(since))
            (reply,) = self._talk([asked], _SILENT_SECONDS)
            records = self._checked(reply)
            changes = self._changes(since, records[0][1] if records else [])
        except BaseException:
            self.is_followed = False
            raise
        self._heard(changes.position)
        self.is_followed = True
        return changes

    def _verify(self, since: int) -> Changes | None:
        """See whether the log is the one we follow, and whole from there on; once a second, and after a cut."""
        names = self.names
        replies = self._talk([
            ("TIME",), ("XINFO", "STREAM", names.log), ("ZSCORE", names.marks, self._own),
            ("ZREVRANGE", names.marks, 0, 0, "WITHSCORES"), ("ZREVRANGE", names.gone, 0, 0, "WITHSCORES"),
            self._ask_mode(), ("ZCARD", names.marks),
        ], _SILENT_SECONDS)  # fmt: skip
        clock, info, own, newest, gone, mode, count = replies
        self._set_clock(clock)
        self._settle_mode(mode)
        if int(self._checked(count)) > MAX_MARKS:
            self._thin_marks()
        last, added, trimmed = _stream_told(info)
        newest_mark = max((int(float(one[1])) for one in map(self._checked, (newest, gone)) if one), default=0)
        self._verify_at = time.monotonic() + _VERIFY_SECONDS
        is_reset = self._checked(own) is None or int(float(own)) != self._floor
        is_reset = is_reset or 0 < last < self._last_seen  # a new primary has lost the log's end
        # Records were trimmed that we have not read; or the log was evicted, and may have been begun anew.
        is_behind = trimmed > self._read_so_far or added < self._read_so_far or (not last and newest_mark > since)
        # Or we are at the log's end, and have read less than was added: between two looks some went, or came behind us.
        is_behind = is_behind or (last <= max(since, self._last_seen) and self._read_so_far < added)
        if not is_reset and not is_behind:
            return None
        joined = self.join()
        joined.is_whole, joined.is_reset = False, is_reset
        return joined

    def _thin_marks(self) -> None:
        """Let the older half of too many marks give way to one of the namespace, which is safe."""
        kept = self._checked(
            self._talk([("ZRANGE", self.names.marks, MAX_MARKS // -2, MAX_MARKS // -2, "WITHSCORES")])[0]
        )
        if kept:
            position = int(float(kept[1]))
            run(self._mark([("namespace", self._namespace)], position))
            self._floor = position
            self._talk([("ZREMRANGEBYSCORE", self.names.marks, "-inf", f"({position}")])

    def _changes(self, since: int, records: list[Any]) -> Changes:
        changes = Changes(since, mode=self._told_mode(), log=self._log)
        if not records:
            return changes
        self._read_so_far += len(records)
        self._last_seen = max(self._last_seen, position_of(records[-1][0]))
        changes.position = max(since, self._last_seen)
        now, known = self.now(), len(self.pins)
        added: list[list[Any]] = []
        for _, fields in records:
            try:
                added += self._hear(unpack(fields[1]), changes, now)
            except (DecodeError, ValueError, IndexError, TypeError):
                continue  # a record of a later version, or of another hand
        changes.rows, changes.mode = _rows(added, now), self._told_mode()
        if changes.marks or len(self.pins) != known:
            for key in self.pins.covered(self._marks):
                self._unpin_covered(key)
        return changes

    def _hear(self, record: list[Any], changes: Changes, now: float) -> list[list[Any]]:
        """Take in what a record tells; return the row of another process's that it brings, if it does."""
        kind = record[0]
        if kind == "a":
            return [record] if record[8] != self._token and self._is_alive(record, now) else []
        if kind == "p":
            self.pins.hear(record)
            return row_of(record) if record[8] != self._token and record[5] is not None else []
        if kind == "m":
            _, facet, value, position = record
            self._marks.mark(facet, value, position)
            changes.marks.append((facet, value, position))
        elif kind == "w":
            changes.blocks.append(Block(*record[1:]))
        elif kind == "o":
            _, mode, position = record
            self._hear_mode((int(position), mode) if mode in MODES else (0, ""))
        return []

    def _is_alive(self, record: list[Any], now: float) -> bool:
        """Say whether a record's row may be found: its life is not over, and no mark covers it."""
        _, key, _, _, _, _, expires, about, _, born = record
        if expires <= now:
            return False
        return born >= self._marks.newest or not self._marks.cover(facets_of(about, self._namespace).pairs(key), born)

    def rows(self, embedder: str) -> Iterator[Row]:
        """Return the live rows of an embedder, pinned ones, then the log's, oldest first. Raises TierError."""
        pinned = records(self._checked(self._send([("HVALS", self.names.pinned)])[0]))
        standing = [row for record in pinned for row in row_of(record)]
        yield from _rows([row for row in standing if row[3] == embedder and self._is_alive(row, 0.0)], 0.0)
        start: bytes = b"-"
        while True:
            asked: list[Command] = [("XRANGE", self.names.log, start, "+", "COUNT", _PAGE)]
            page = self._checked(self._send(asked)[0])
            now = self.now()
            found = []
            for _, fields in page:
                try:
                    record = unpack(fields[1])
                    # Also our own: an index that is built anew has forgotten them.
                    if record[0] == "a" and record[3] == embedder and self._is_alive(record, now):
                        found.append(record)
                except (DecodeError, ValueError, IndexError, TypeError):
                    continue
            yield from _rows(found, now)
            if len(page) < _PAGE:
                return
            start = b"(" + page[-1][0]

    def _backwards(self) -> Iterator[list[list[Any]]]:
        """Return the live records of rows that the log holds by now, latest first, then the pinned ones, in pages."""
        end: bytes = b"+"
        while True:
            asked: list[Command] = [("XREVRANGE", self.names.log, end, "-", "COUNT", _PAGE)]
            page = self._checked(self._send(asked)[0])
            now, found = self.now(), []
            for _, fields in page:
                try:
                    record = unpack(fields[1])
                    if record[0] == "a" and self._is_alive(record, now):
                        found.append(record)
                except (DecodeError, ValueError, IndexError, TypeError):
                    continue
            yield found
            if len(page) < _PAGE:
                break
            end = b"(" + page[-1][0]
        pinned = records(self._checked(self._send([("HVALS", self.names.pinned)])[0]))
        yield [record for record in pinned for row in row_of(record) if self._is_alive(row, 0.0)]

    def _talk(self, asked: list[Command], timeout: float = PATIENT_SECONDS) -> list[Any]:
        """Exchange on the follower's own connection, which `rest` can cut; lost is who is silent, not who is slow."""
        if self._is_closed:
            raise TierError("closed", "the store was closed")
        connection = self._following
        try:
            if connection is None:
                connection = self._following = self.link.address.connect()
                connection.silence = PATIENT_SECONDS
                connection.connect()
            connection.silence = timeout
            return converse(connection, asked)
        except Exception as error:
            self._following = None
            connection.disconnect()
            raise trouble(error, self.where) from error

    def rest(self) -> None:
        """Cut the follower's connection, so that it waits no longer."""
        connection = self._following
        if connection is not None:
            connection.disconnect()


def facets_of(about: list[Any], namespace: str) -> Facets:
    """Return the facets that a record tells of."""
    function, version, tenant, model, tags, documents = about
    return Facets(namespace, function, version, tenant, model, tuple(tags), tuple(documents))


def _stream_told(info: Any) -> tuple[int, int, int]:
    """Return a stream's last position, how many records it was ever given, and how many of them are trimmed."""
    if isinstance(info, Exception):
        if "no such key" in str(info):
            return 0, 0, 0
        raise info
    told = dict(zip(info[::2], info[1::2], strict=True))
    added = int(told[b"entries-added"])
    return position_of(told[b"last-generated-id"]), added, added - int(told[b"length"])


def _rows(records: list[list[Any]], now: float) -> list[Row]:
    try:
        vectors = from_float16([record[5] for record in records])
    except (TypeError, ValueError):  # one of them is of another hand
        return [row for record in records for row in _rows([record], now)] if len(records) > 1 else []
    return [
        Row(key, scope, embedder, text, vector, expires - now)
        for (_, key, scope, embedder, text, _, expires, *_), vector in zip(records, vectors, strict=True)
    ]
