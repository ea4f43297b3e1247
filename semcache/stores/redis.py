"""The exact store in a Redis: entries, and the log that all its processes share.

Laws:
- a hit is one GET; only a process that does not follow the log reads marks in the same trip;
- a mark and its record are written in one transaction; its position lies after all that any process can have heard of
  before, so that no load that began before it is taken for younger;
- where the marks themselves are gone (evicted, flushed, a server begun anew), nothing that stands is trusted: the first
  who finds no mark of the namespace sets one, before which everything counts as invalidated;
- every key we write has an expiry or a bound, and stands under our prefix; no KEYS, SCAN, CONFIG, FLUSH, script (law
  14).

Needs Redis 7.0 or newer, or what speaks like it (Valkey).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil
from typing import Any, NamedTuple

from semcache.errors import DecodeError, InvalidationError, TierError
from semcache.marks import Changes, Mark, Marks, Pair, Row
from semcache.model import MODES, Entry, Facets, Mode
from semcache.plan import Exchange, Plan, run
from semcache.stores import header
from semcache.stores.address import address_of
from semcache.stores.fork import forking
from semcache.stores.link import PATIENT_SECONDS, Command, Link, trouble
from semcache.stores.redis_keys import (
    Names,
    id_of,
    member,
    pack,
    pair_of,
    position_at,
    position_of,
    seconds_of,
    unpack,
)
from semcache.stores.redis_writer import RedisWriter, Write
from semcache.tier import Clock, SystemClock

LONGEST_LOAD_SECONDS = 3600.0
MAX_MARKS = 100_000
MAX_RECORDS = 1_000_000
_BLOCK_MS = 400
_PAGE = 1000
_SWEEP_PAGE = 500
_VERIFY_SECONDS = 1.0
_UPKEEP_SECONDS = 60.0
_MARGIN_SECONDS = 60.0
_MOST_AWAITING = 4096
# Enough for the header and the facets of all but entries with many documents, which are read whole.
_PEEK_BYTES = header.HEADER_BYTES + 512


class Asked(NamedTuple):
    """What may be put: an entry's key and facets, and its row for the index where it has one."""

    key: bytes
    facets: Facets
    scope: bytes | None
    embedder: str
    text: str | None


class RedisStore:
    """One namespace in one Redis. `marks` are this process's; `on_fault` is told what goes wrong behind the callers."""

    def __init__(
        self, redis: Any, *, namespace: str, timeout: float, clock: Clock, marks: Marks, index_ttl: float, ttl: float,
        on_fault: Callable[[str, BaseException], None],
    ) -> None:  # fmt: skip
        address = address_of(redis)
        self.link = Link(address)
        self.where = address.where
        self.names = Names(namespace)
        self.is_followed = False
        self.writer = RedisWriter(self._send, marks.cover, self._upkeep, on_fault)
        self._steady = Link(address)  # marks and writes do not wait behind readers
        self._own = member("namespace", namespace)
        self._namespace = namespace
        self._timeout = timeout
        self._clock = clock
        self._marks = marks
        self._index_ttl = index_ttl
        self._longest = max(ttl, index_ttl)
        self._token = os.urandom(8)
        self._offset = 0.0
        self._position = 0
        self._awaiting: dict[bytes, list[Any]] = {}
        self._following: Any = None
        self._verify_at = 0.0
        self._floor = 0
        self._last_seen = 0
        self._read_so_far = 0
        self._upkeep_at = 0.0
        self._mode: Mode | None = None
        self._is_closed = False
        forking().add(self)

    # Time and place

    def now(self) -> float:
        """Return the server's time, as this process knows it; a clock that was injected is taken for the server's."""
        return self._clock.time() + self._offset

    def position(self) -> int:
        """Return the latest position that was heard of."""
        return self._position

    def _heard(self, position: int) -> None:
        self._position = max(self._position, position)

    def _set_clock(self, reply: Any) -> float:
        if isinstance(reply, Exception):
            raise trouble(reply, self.where)
        server = seconds_of(reply)
        if isinstance(self._clock, SystemClock):
            self._offset = server - self._clock.time()
        return server

    # Reading

    def get(self, key: bytes, pairs: list[Pair], grace: float) -> Plan[tuple[Entry | None, int]]:
        """Return an entry that no mark covers, and the nanoseconds spent waiting for a connection."""
        pending = self.writer.pending.get(key)
        if pending is not None and pending.data is not None:
            return self._read(key, pending.data, pairs, grace), 0
        asked: list[Command] = [("GET", self.names.of(key))]
        if self.is_followed:
            replies = yield Exchange(self.link, asked, self._timeout)
            data = self._checked(replies.values[0])
            return (None if data is None else self._read(key, data, pairs, grace)), replies.waited_ns
        return (yield from self._get_unfollowed(key, pairs, grace, asked))

    def _get_unfollowed(
        self, key: bytes, pairs: list[Pair], grace: float, asked: list[Command]
    ) -> Plan[tuple[Entry | None, int]]:
        """Read the entry with its marks and the server's time: nobody has told us of either."""
        replies = yield Exchange(self.link, [*asked, ("TIME",), *self._ask_marks(pairs)], self._timeout)
        data, clock, scores, gone = (self._checked(reply) for reply in replies.values)
        self._heard(max(position_at(self._set_clock(clock)), *self._take_marks(pairs, scores, gone)))
        if scores[1] is None:  # the namespace has no mark: nobody has used it yet, or its marks are gone
            yield from self._begin_marks(self._timeout)
            return None, replies.waited_ns
        if data is None:
            return None, replies.waited_ns
        entry = self._read(key, data, pairs, grace)
        if entry is not None and entry.facets is not None:
            more = [pair for pair in entry.facets.pairs(key) if pair not in pairs]
            if more:
                again = yield Exchange(self.link, self._ask_marks(more)[:1], self._timeout)
                self._take_marks(more, self._checked(again.values[0]), None)
                entry = self._read(key, data, pairs, grace)
        return entry, replies.waited_ns

    def _ask_marks(self, pairs: list[Pair]) -> list[Command]:
        asked = [member(facet, value) for facet, value in pairs]
        return [("ZMSCORE", self.names.marks, *asked), ("ZSCORE", self.names.gone, pairs[0][1])]

    def _take_marks(self, pairs: list[Pair], scores: list[Any], gone: Any) -> list[int]:
        found = [0]
        for (facet, value), score in zip(pairs, scores, strict=True):
            if score is not None:
                self._marks.mark(facet, value, int(float(score)))
                found.append(int(float(score)))
        if gone is not None:
            self._marks.mark(*pairs[0], int(float(gone)))
            found.append(int(float(gone)))
        return found

    def get_many(self, keys: list[tuple[bytes, list[Pair]]], grace: float) -> Plan[list[Entry | Exception | None]]:
        """Return many entries in one trip; an error in place of one whose bytes are not ours."""
        replies = yield Exchange(self.link, [("MGET", *(self.names.of(key) for key, _ in keys))], self._timeout)
        found: list[Entry | Exception | None] = []
        for (key, pairs), data in zip(keys, self._checked(replies.values[0]), strict=True):
            try:
                found.append(None if data is None else self._read(key, data, pairs, grace))
            except DecodeError as error:
                found.append(error)
        return found

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, Exception):
            raise trouble(reply, self.where)
        return reply

    def _read(self, key: bytes, data: bytes, pairs: list[Pair], grace: float) -> Entry | None:
        entry = header.read(key, data, self.now(), grace)
        if entry is None:
            return None
        if entry.facets is not None:
            entry.facets.namespace = self._namespace
            pairs = entry.facets.pairs(key)
        return None if self._marks.cover(pairs, entry.born) else entry

    # Writing

    def put(self, asked: Asked, entry: Entry, life: float, vector: Any) -> None:
        """Queue an entry. Raises TierError("full") where too much waits, EncodeError for too many facets."""
        key, now = asked.key, self.now()
        data = header.write(key, entry, asked.facets, life, now)
        stays = min(life + entry.grace, entry.limit) + _MARGIN_SECONDS
        self._longest = max(self._longest, stays)
        name = self.names.of(key)
        commands: list[Command] = [
            ("SET", name, data, "PX", ceil(stays * 1000)),
            ("ZADD", self.names.keys, now + stays, key),
        ]
        if asked.scope is not None and asked.text is not None:
            remaining = min(life, self._index_ttl)
            record = self._record(asked, entry.born, now + remaining)
            if vector is not None:
                commands.append(self._added(record, vector))
            else:
                self._await(key, record)
        self.writer.put(Write(key, commands, data, entry.born, asked.facets.pairs(key), len(data) + 256))

    def _record(self, asked: Asked, born: int, expires: float) -> list[Any]:
        facets = asked.facets
        about = [facets.function, facets.version, facets.tenant, facets.model, facets.tags, facets.documents]
        return ["a", asked.key, asked.scope, asked.embedder, asked.text, None, expires, about, self._token, born]

    def _added(self, record: list[Any], vector: Any) -> Command:
        import numpy as np

        record = record.copy()
        record[5] = None if vector is None else np.asarray(vector, dtype="<f2").tobytes()
        trim = max(int((self.now() - self._index_ttl - _MARGIN_SECONDS) * 1000), 1)
        return ("XADD", self.names.log, "MINID", "~", trim, "*", "r", pack(record))

    def _await(self, key: bytes, record: list[Any]) -> None:
        """Keep a record until its vector is there: others could but compute it again."""
        self._awaiting.pop(key, None)
        self._awaiting[key] = record
        if len(self._awaiting) > _MOST_AWAITING:
            self._awaiting.pop(next(iter(self._awaiting)), None)

    def attach(self, key: bytes, vector: Any, embedder: str) -> None:
        """Write the record of an entry whose vector was computed behind its put."""
        record = self._awaiting.pop(key, None)
        if record is not None and record[3] == embedder:
            pairs = _facets(record[7], self._namespace).pairs(key)
            self.writer.put(Write(key, [self._added(record, vector)], None, record[9], pairs, 2048))

    def slide(self, key: bytes, seconds: float) -> None:
        """Give an entry that was read its life anew."""
        name, stays = self.names.of(key), seconds + _MARGIN_SECONDS
        commands: list[Command] = [("PEXPIRE", name, ceil(seconds * 1000))]
        commands.append(("ZADD", self.names.keys, "XX", "GT", self.now() + stays, key))
        self.writer.put(Write(key, commands, None, 0, None, 64))

    def _send(self, commands: list[Command]) -> list[Any]:
        values: list[Any] = self._steady.exchange(commands, PATIENT_SECONDS).values
        return values

    def _upkeep(self) -> list[Command]:
        """Return, once a minute, what keeps our keys bounded and alive as long as an entry can be."""
        if time.monotonic() < self._upkeep_at:
            return []
        self._upkeep_at = time.monotonic() + _UPKEEP_SECONDS
        names, now, stays = self.names, self.now(), ceil((2 * self._longest + LONGEST_LOAD_SECONDS) * 1000)
        commands: list[Command] = []
        for name in (names.keys, names.marks, names.gone, names.log):
            commands += [("PEXPIRE", name, stays, "NX"), ("PEXPIRE", name, stays, "GT")]
        commands.append(("ZREMRANGEBYSCORE", names.keys, "-inf", now))
        commands.append(("ZREMRANGEBYSCORE", names.gone, "-inf", position_at(now - LONGEST_LOAD_SECONDS)))
        commands.append(("XTRIM", names.log, "MAXLEN", "~", MAX_RECORDS))
        return commands

    # Invalidating

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate durably; the position of the marks, and how many entries went. Raises InvalidationError."""
        try:
            position = yield from self._next_position()
            for facet, value in pairs:  # before it is sent: nothing older is written behind it
                self._marks.mark(facet, value, position)
            dropped = yield from self._mark(pairs, position)
        except TierError as error:
            raise InvalidationError(f"not invalidated durably, try again: {error}") from error
        facets = [pair for pair in pairs if pair[0] != "key"]
        self.writer.drop(lambda write: write.born < position and any(pair in (write.pairs or ()) for pair in pairs))
        if facets:
            with suppress(TierError):  # the marks hold; what was not dropped is a miss until it expires
                dropped += yield from self._sweep(facets, position, drops=True)
        return position, dropped

    def _next_position(self, timeout: float = PATIENT_SECONDS) -> Plan[int]:
        """Return a position after all that anybody can have heard of, also where the server's clock went back."""
        asked: list[Command] = [("TIME",), ("XREVRANGE", self.names.log, "+", "-", "COUNT", 1)]
        replies = yield Exchange(self._steady, asked, timeout)
        clock, last = (self._checked(reply) for reply in replies.values)
        heard = position_of(last[0][0]) if last else 0
        return max(position_at(self._set_clock(clock)), heard, self._position) + 1

    def _mark(self, pairs: list[Pair], position: int) -> Plan[int]:
        names, stays = self.names, ceil((2 * self._longest + LONGEST_LOAD_SECONDS) * 1000)
        commands: list[Command] = [("MULTI",)]
        keys = [value for facet, value in pairs if facet == "key"]
        for facet, value in pairs:
            if facet != "key":
                commands.append(("ZADD", names.marks, "GT", position, member(facet, value)))
            commands.append(("XADD", names.log, "*", "r", pack(["m", facet, value, position])))
        if keys:
            commands.append(("UNLINK", *(names.of(key) for key in keys)))  # type: ignore[arg-type]
            commands.append(("ZADD", names.gone, "GT", *(part for key in keys for part in (position, key))))
            commands.append(("ZREM", names.keys, *keys))
        # A namespace that nobody has begun yet: see `_begin_marks`.
        commands.append(("ZADD", names.marks, "NX", position, self._own))
        for name in (names.marks, names.gone, names.log):
            commands += [("PEXPIRE", name, stays, "NX"), ("PEXPIRE", name, stays, "GT")]
        commands.append(("EXEC",))
        replies = yield Exchange(self._steady, commands, PATIENT_SECONDS)
        done = replies.values[-1]
        failed = next((one for one in [done, *(done or [])] if isinstance(one, Exception)), None)
        if failed is not None or done is None:
            refused = next((one for one in replies.values if isinstance(one, Exception)), failed)
            raise trouble(refused or TierError("refused", f"{self.where}: it refused the transaction"), self.where)
        self._heard(position)
        if not keys:
            return 0
        return int(done[next(at for at, command in enumerate(commands[1:-1]) if command[0] == "UNLINK")])

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many entries an invalidation of these would drop. Raises TierError."""
        keys = [value for facet, value in pairs if facet == "key"]
        facets = [pair for pair in pairs if pair[0] != "key"]
        found = 0
        if keys:
            asked: list[Command] = [("EXISTS", *(self.names.of(key) for key in keys))]  # type: ignore[arg-type]
            replies = yield Exchange(self._steady, asked, PATIENT_SECONDS)
            found = int(self._checked(replies.values[0]))
        if facets:
            found += yield from self._sweep(facets, 2**53, drops=False)
        return found

    def _sweep(self, pairs: list[Pair], position: int, *, drops: bool) -> Plan[int]:
        """Look at every entry of the namespace, a page a trip; drop, or only count, what the pairs mean."""
        cursor, seen = b"0", set()
        now = self.now()
        while True:
            asked: list[Command] = [("ZSCAN", self.names.keys, cursor, "COUNT", _SWEEP_PAGE)]
            replies = yield Exchange(self._steady, asked, PATIENT_SECONDS)
            cursor, listed = self._checked(replies.values[0])
            keys = [key for key in listed[::2] if key not in seen]
            if keys:
                heads = yield Exchange(
                    self._steady, [("GETRANGE", self.names.of(key), 0, _PEEK_BYTES) for key in keys], PATIENT_SECONDS
                )
                meant = [
                    key for key, head in zip(keys, heads.values, strict=True)
                    if isinstance(head, bytes) and self._is_meant(key, head, pairs, position, now)
                ]  # fmt: skip
                seen.update(meant)
                if meant and drops:
                    gone: list[Command] = [("UNLINK", *(self.names.of(key) for key in meant))]
                    yield Exchange(self._steady, [*gone, ("ZREM", self.names.keys, *meant)], PATIENT_SECONDS)
            if cursor in (b"0", 0):
                return len(seen)

    def _is_meant(self, key: bytes, head: bytes, pairs: list[Pair], position: int, now: float) -> bool:
        told = header.peek(head)
        if told is None:
            return False
        born, ends, facets = told
        facets.namespace = self._namespace
        already = position == 2**53 and self._marks.cover(facets.pairs(key), born)
        return not already and born < position and ends > now and any(facets.has(*pair) for pair in pairs)

    def switch(self, mode: Mode) -> Plan[None]:
        """Set the mode of all who use the namespace; they hear of it as they follow."""
        commands: list[Command] = [
            ("MULTI",),
            ("SET", self.names.mode, mode),
            ("XADD", self.names.log, "*", "r", pack(["o", mode])),
            ("EXEC",),
        ]
        replies = yield Exchange(self._steady, commands, PATIENT_SECONDS)
        for reply in replies.values:
            self._checked(reply)

    # Following (the log's thread)

    def join(self) -> Changes:
        """Begin to follow: position, all marks and the mode; begins the namespace's marks where there are none."""
        self.is_followed = False
        names = self.names
        replies = self._talk([
            ("TIME",), ("XINFO", "STREAM", names.log), ("ZSCORE", names.marks, self._own),
            ("GET", names.mode),
        ])  # fmt: skip
        clock, info, own, mode = replies
        self._last_seen, self._read_so_far, _ = _stream_told(info)
        own, mode = self._checked(own), self._checked(mode)
        position = max(position_at(self._set_clock(clock)), self._last_seen)
        self._mode = _mode(mode)
        if own is None:
            run(self._begin_marks())
        marks = self._all_marks()
        self._floor = max((mark[2] for mark in marks if mark[0] == "namespace"), default=0)
        self._republish(marks)
        for mark in marks:  # before a reader is told that they are known
            self._marks.mark(*mark)
        self._heard(max([position, *(mark[2] for mark in marks)]))
        self.is_followed = True
        self._verify_at = time.monotonic() + _VERIFY_SECONDS
        return Changes(position, marks, [], self._mode)

    def _begin_marks(self, timeout: float = PATIENT_SECONDS) -> Plan[None]:
        """Set the mark of a namespace that has none: nothing that stands is trusted. Of several the first stays."""
        position = yield from self._next_position(timeout)
        stays = ceil((2 * self._longest + LONGEST_LOAD_SECONDS) * 1000)
        asked: list[Command] = [
            ("ZADD", self.names.marks, "NX", position, self._own), ("PEXPIRE", self.names.marks, stays, "NX"),
            ("ZSCORE", self.names.marks, self._own),
        ]  # fmt: skip
        replies = yield Exchange(self._steady, asked, timeout)
        score = int(float([self._checked(reply) for reply in replies.values][-1]))
        self._marks.mark("namespace", self._namespace, score)
        self._heard(max(position, score))

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
            (reply,) = self._talk([asked], _BLOCK_MS / 1000 + 1.0)
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
            ("GET", names.mode), ("ZCARD", names.marks),
        ])  # fmt: skip
        clock, info, own, newest, gone, mode, count = replies
        self._set_clock(clock)
        self._mode = _mode(self._checked(mode))
        if int(self._checked(count)) > MAX_MARKS:
            self._thin_marks()
        last, added, trimmed = _stream_told(info)
        newest_mark = max((int(float(one[1])) for one in map(self._checked, (newest, gone)) if one), default=0)
        self._verify_at = time.monotonic() + _VERIFY_SECONDS
        is_reset = self._checked(own) is None or int(float(own)) != self._floor
        is_reset = is_reset or 0 < last < self._last_seen  # a new primary has lost the log's end
        # Records were trimmed that we have not read; or the log was evicted, and may have been begun anew.
        is_behind = trimmed > self._read_so_far or added < self._read_so_far or (not last and newest_mark > since)
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
        changes = Changes(since, mode=self._mode)
        now = self.now()
        vectors: list[bytes | None] = []
        for stream_id, fields in records:
            self._read_so_far += 1
            self._last_seen = max(self._last_seen, position_of(stream_id))
            changes.position = max(changes.position, self._last_seen)
            try:
                record = unpack(fields[1])
                kind = record[0]
                if kind == "a":
                    row = self._row(record, now)
                    if row is not None:
                        changes.rows.append(row)
                        vectors.append(record[5])
                elif kind == "m":
                    _, facet, value, position = record
                    changes.marks.append((facet, value, position))
                    self._marks.mark(facet, value, position)
                elif kind == "o":
                    changes.mode = self._mode = _mode(record[1])
            except (DecodeError, ValueError, IndexError, TypeError):
                continue  # a record of a later version, or of another hand
        changes.rows = _with_vectors(changes.rows, vectors)
        return changes

    def _row(self, record: list[Any], now: float) -> Row | None:
        """Read a record of another process's row; None for our own, and for what is over."""
        _, key, scope, embedder, text, _, expires, about, writer, born = record
        if writer == self._token or expires <= now:
            return None
        if born < self._marks.newest and self._marks.cover(_facets(about, self._namespace).pairs(key), born):
            return None
        return Row(key, scope, embedder, text, None, expires - now)

    def rows(self, embedder: str) -> Iterator[Row]:
        """Return the live rows of an embedder in the log, oldest first, a page at a time. Raises TierError."""
        start: bytes = b"-"
        while True:
            asked: list[Command] = [("XRANGE", self.names.log, start, "+", "COUNT", _PAGE)]
            records = self._checked(self._send(asked)[0])
            now = self.now()
            for _, fields in records:
                try:
                    record = unpack(fields[1])
                    if record[0] != "a" or record[3] != embedder:
                        continue
                    record[8] = b""  # also our own: an index that is built anew has forgotten them
                    row = self._row(record, now)
                except (DecodeError, ValueError, IndexError, TypeError):
                    continue
                if row is not None:
                    yield from _with_vectors([row], [record[5]])
            if len(records) < _PAGE:
                return
            start = b"(" + records[-1][0]

    def _talk(self, asked: list[Command], timeout: float = PATIENT_SECONDS) -> list[Any]:
        """Exchange on the follower's own connection, which `rest` can cut."""
        if self._is_closed:
            raise TierError("closed", "the store was closed")
        from semcache.stores.link import converse

        connection = self._following
        try:
            if connection is None:
                connection = self._following = self.link.address.connect(PATIENT_SECONDS)
                connection.connect()
            return converse(connection, asked, timeout)
        except Exception as error:
            self._following = None
            connection.disconnect()
            raise trouble(error, self.where) from error

    def rest(self) -> None:
        """Cut the follower's connection, so that it waits no longer."""
        connection = self._following
        if connection is not None:
            connection.disconnect()

    def entries(self) -> int:
        """Return how many entries the namespace has, about."""
        return int(self._checked(self._send([("ZCARD", self.names.keys)])[0]))

    # Life

    def close(self, timeout: float) -> None:
        """Write what waits, for some seconds at most, and close every connection."""
        if self._is_closed:
            return
        forking().discard(self)
        self.writer.close(timeout)
        self._is_closed = True
        self.is_followed = False
        self.rest()
        self.link.close()
        self._steady.close()

    def before_fork(self) -> None:
        """Nothing to hold: what is under way goes on in the parent alone."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew, with connections, a queue and a name of one's own."""
        self.link.after_fork()
        self._steady.after_fork()
        self.writer.after_fork()
        self._following = None
        self.is_followed = False
        self._token = os.urandom(8)


def _facets(about: list[Any], namespace: str) -> Facets:
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


def _mode(told: bytes | str | None) -> Mode | None:
    name = told.decode("ascii", "replace") if isinstance(told, bytes) else told
    return name if name in MODES else None


def _with_vectors(rows: list[Row], vectors: list[bytes | None]) -> list[Row]:
    """Give rows their vectors, all of one length at once: one by one they would cost more than their rows."""
    if not rows:  # a process that follows for its memory's sake alone needs no numpy
        return rows
    import numpy as np

    told = [vector for vector in vectors if vector is not None]
    if told and len(told) == len(rows) and len({len(vector) for vector in told}) == 1:
        matrix = np.frombuffer(b"".join(told), dtype="<f2").reshape(len(rows), -1).astype(np.float32)
        return [row._replace(vector=vector) for row, vector in zip(rows, matrix, strict=True)]
    made = [None if vector is None else np.frombuffer(vector, dtype="<f2").astype(np.float32) for vector in vectors]
    return [row._replace(vector=vector) for row, vector in zip(rows, made, strict=True)]
