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
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from math import ceil, inf
from typing import Any, NamedTuple

from semcache.errors import TierError
from semcache.marks import Pair
from semcache.model import Entry, Facets
from semcache.plan import Exchange, Plan
from semcache.stores import header
from semcache.stores.fork import forking
from semcache.stores.link import PATIENT_SECONDS, Command
from semcache.stores.moving import PAGE, Foreign, Moved
from semcache.stores.outbox import Write
from semcache.stores.redis_base import LONGEST_LOAD_SECONDS
from semcache.stores.redis_follow import MAX_MARKS, Following, facets_of
from semcache.stores.redis_keys import (
    member,
    pack,
    position_at,
)
from semcache.stores.redis_ledger import KEEP_SECONDS
from semcache.stores.redis_pins import WAITING, Pin, record_of
from semcache.stores.vectors import to_float16

MAX_RECORDS = 1_000_000
_UPKEEP_SECONDS = 60.0
_MARGIN_SECONDS = 60.0
_MOST_AWAITING = 4096
_TALLY_SECONDS = 0.05
_DAY_SECONDS = 86_400.0


class Asked(NamedTuple):
    """What may be put: an entry's key and facets, and its row for the index where it has one."""

    key: bytes
    facets: Facets
    scope: bytes | None
    embedder: str
    text: str | None


class RedisStore(Following):
    """Entries of one namespace in one Redis: read in one trip, written behind the callers."""

    def __init__(self, redis: Any, **settings: Any) -> None:
        super().__init__(redis, **settings)
        forking().add(self)

    # Reading

    def get(self, key: bytes, facets: Facets, grace: float) -> Plan[tuple[Entry | None, int]]:
        """Return an entry that no mark covers, and the nanoseconds spent waiting for a connection."""
        is_pinned = key in self.pins
        pending = self.writer.pending.get(WAITING + key if is_pinned else key)
        if pending is not None and pending.data is not None and self.is_followed:
            return self.read(key, pending.data, facets, grace), 0
        if self.is_followed:
            asked: list[Command] = [("GET", self.names.of_pinned(key) if is_pinned else self.names.of(key))]
            replies = yield Exchange(self.link, asked, self._timeout)
            data = self._checked(replies.values[0])
            if data is None and is_pinned and WAITING + key not in self.writer.pending:
                self.pins.forget([key])  # evicted, or never written: from now on it is loaded as others are
            return (None if data is None else self.read(key, data, facets, grace)), replies.waited_ns
        return (yield from self._get_unfollowed(key, facets, grace))

    def are_plain(self, keys: Sequence[bytes]) -> bool:
        """Say whether each is read with one GET: the log is followed, none is pinned or waits here."""
        pins, pending = self.pins, self.writer.pending
        is_waiting = bool(pending) and any(key in pending for key in keys)
        return self.is_followed and not is_waiting and not (len(pins) and any(key in pins for key in keys))

    def get_many(self, keys: Sequence[bytes]) -> Plan[list[bytes | None]]:
        """Return what stands for keys that are plain, in one trip."""
        asked: list[Command] = [("MGET", *map(self.names.of, keys))]
        replies = yield Exchange(self.link, asked, self._timeout)
        return list(self._checked(replies.values[0]))

    def read_plain(self, keys: Sequence[bytes], found: Sequence[Any]) -> tuple[list[bytes | None], float]:
        """Return the answers of those that `read` would give as they are, and what loading these took."""
        return header.read_plain(keys, found, self.now(), self._marks.newest)

    def _get_unfollowed(self, key: bytes, facets: Facets, grace: float) -> Plan[tuple[Entry | None, int]]:
        """Read the entry with its marks and the server's time: nobody has told us of either, or of what is pinned."""
        pairs = facets.pairs(key)
        asked: list[Command] = [("GET", self.names.of_pinned(key)), ("GET", self.names.of(key)), ("TIME",)]
        replies = yield Exchange(self.link, asked + self._ask_marks(pairs), self._timeout)
        pinned, plain, clock, scores, gone = (self._checked(reply) for reply in replies.values)
        data = plain if pinned is None else pinned
        server = self._set_clock(clock)
        self._heard(max(position_at(server), *self._take_marks(pairs, scores, gone)))
        if scores[1] is None:  # the namespace has no mark: nobody has used it yet, or its marks are gone
            yield from self._begin_marks(server, self._timeout)
            return None, replies.waited_ns
        if data is None:
            return None, replies.waited_ns
        entry = self.read(key, data, facets, grace)
        if entry is not None and entry.facets is not None:
            more = [pair for pair in entry.facets.pairs(key) if pair not in pairs]
            if more:
                again = yield Exchange(self.link, self._ask_marks(more)[:1], self._timeout)
                self._take_marks(more, self._checked(again.values[0]), None)
                entry = self.read(key, data, facets, grace)
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

    def read(self, key: bytes, data: bytes, facets: Facets, grace: float) -> Entry | None:
        """Return the entry that bytes hold, None where it is over or a mark covers it. Raises DecodeError."""
        entry = header.read(key, data, self.now(), grace)
        if entry is None:
            return None
        if entry.facets is not None:
            entry.facets.namespace = self._namespace
            facets = entry.facets
        is_marked = entry.born < self._marks.newest and self._marks.cover(facets.pairs(key), entry.born)
        return None if is_marked else entry

    # Writing

    def put(self, asked: Asked, entry: Entry, life: float, vector: Any) -> None:
        """Queue an entry. Raises TierError("full") where too much waits, EncodeError for too many facets."""
        if entry.is_pinned:
            self._pin(asked, entry, vector)
            return
        if asked.key in self.pins:
            return
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
            remaining = min(life + entry.grace, entry.limit, self._index_ttl)
            record = self._record(asked, entry.born, now + remaining)
            if vector is not None:
                commands.append(self._added(record, vector))
            else:
                self._await(key, record)
        self.writer.put(Write(key, commands, data, entry.born, asked.facets.pairs(key), len(data) + 256))

    def _pin(self, asked: Asked, entry: Entry, vector: Any) -> None:
        """Queue a pinned entry, at its own place. Raises TierError("full"), also where too much is pinned."""
        key = asked.key
        data = header.write(key, entry, asked.facets, inf, self.now())
        pin = Pin(entry.born, asked.facets, len(data))
        is_new = key not in self.pins
        self.pins.add(key, pin)
        row = (asked.scope, asked.embedder, asked.text) if asked.text is not None else (None, "", None)
        record = record_of(key, pin, row, to_float16(vector), self._token)
        commands: list[Command] = [("SET", self.names.of_pinned(key), data), *self._pinned(key, record)]
        commands += [("UNLINK", self.names.of(key)), ("ZREM", self.names.keys, key)]
        try:
            self.writer.put(Write(WAITING + key, commands, data, entry.born, asked.facets.pairs(key), len(data) + 256))
        except TierError:
            if is_new:
                self.pins.forget([key])
            raise
        if vector is None and row[0] is not None:
            self._await(key, record)

    def _pinned(self, key: bytes, record: list[Any]) -> list[Command]:
        packed = pack(record)
        return [("HSET", self.names.pinned, key, packed), ("XADD", self.names.log, "*", "r", packed)]

    def _record(self, asked: Asked, born: int, expires: float) -> list[Any]:
        facets = asked.facets
        about = [facets.function, facets.version, facets.tenant, facets.model, facets.tags, facets.documents]
        return ["a", asked.key, asked.scope, asked.embedder, asked.text, None, expires, about, self._token, born]

    def _added(self, record: list[Any], vector: Any) -> Command:
        record = [*record[:5], to_float16(vector), *record[6:]]
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
            self._write_row(record, vector)

    def _write_row(self, record: list[Any], vector: Any) -> None:
        """Queue the record of an entry that stands already. Raises TierError("full")."""
        key, pairs = record[1], facets_of(record[7], self._namespace).pairs(record[1])
        commands = [self._added(record, vector)]
        if record[0] == "p":
            commands = self._pinned(key, [*record[:5], to_float16(vector), *record[6:]])
        at = WAITING + key if record[0] == "p" else key
        self.writer.put(Write(at, commands, None, record[9], pairs, 2048))

    def foreign(self, embedder: str) -> Iterator[list[Foreign]]:
        """Return the live rows of all other embedders, one for each key that has none of this, a page at a time.

        The log's latest record of a key counts; that of a page which another process has moved meanwhile comes too.
        """
        done: set[bytes] = set()
        for page in self._backwards():
            done.update(record[1] for record in page if record[3] == embedder)
        for page in self._backwards():
            now, rows = self.now(), []
            for record in page:
                kind, key, scope, other, text, _, ends, *_ = record
                if key not in done:
                    done.add(key)
                    rows.append(Foreign(record, key, scope, other, text, inf if kind == "p" else ends - now))
            for at in range(0, len(rows), PAGE):
                yield rows[at : at + PAGE]

    def replace_rows(self, rows: list[Moved]) -> list[bool]:
        """Write another embedder's rows for the entries that still stand; which of them do. Raises TierError."""
        asked: list[Command] = [
            ("EXISTS", self.names.of_pinned(row.key) if row.at[0] == "p" else self.names.of(row.key))
            for row, *_ in rows
        ]
        stood = [bool(self._checked(reply)) for reply in self._send(asked)]
        for (row, scope, embedder, vector), stands in zip(rows, stood, strict=True):
            if stands:
                record = [*row.at[:2], scope, embedder, row.text, None, *row.at[6:8], self._token, row.at[9]]
                self._write_row(record, vector)
        if not self.writer.flush(PATIENT_SECONDS):
            raise TierError("lost", f"{self.where}: not all rows could be written, try again")
        return stood

    def slide(self, key: bytes, seconds: float) -> None:
        """Give an entry that was read its life anew."""
        name, stays = self.names.of(key), seconds + _MARGIN_SECONDS
        commands: list[Command] = [("PEXPIRE", name, ceil(seconds * 1000))]
        commands.append(("ZADD", self.names.keys, "XX", "GT", self.now() + stays, key))
        self.writer.put(Write(key, commands, None, 0, None, 64))

    def _upkeep(self) -> list[Command]:
        """Return, once a minute, what keeps our keys bounded and alive as long as an entry can be."""
        if time.monotonic() < self._upkeep_at:
            return []
        self._upkeep_at = time.monotonic() + _UPKEEP_SECONDS
        names, now = self.names, self.now()
        commands = self._prolong(names.keys, names.marks, names.gone, names.log)
        commands.append(("ZREMRANGEBYSCORE", names.keys, "-inf", now))
        # Others may hold a key for as long as an entry lives: in memory, or in a memcached beside this store.
        stays = self._longest + LONGEST_LOAD_SECONDS
        commands.append(("ZREMRANGEBYSCORE", names.gone, "-inf", position_at(now - stays)))
        commands.append(("ZREMRANGEBYRANK", names.gone, 0, -MAX_MARKS - 1))
        commands.append(("XTRIM", names.log, "MAXLEN", "~", MAX_RECORDS))
        return commands

    def book(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Add to the counters of (day, name), behind the caller. Raises TierError("closed")."""
        self._ledger.add(amounts)
        self.writer.pay()

    def booked(self, since_day: str) -> dict[tuple[str, str], float]:
        """Return what all processes booked, by day and name, once what we booked is there. Raises TierError."""
        self.writer.settle(PATIENT_SECONDS)
        today = datetime.fromtimestamp(self.now() + _DAY_SECONDS, UTC).date()  # one more, for the clocks of others
        first = max(_date(since_day), today - timedelta(seconds=KEEP_SECONDS))
        days = [(first + timedelta(number)).isoformat() for number in range((today - first).days + 1)]
        return self._tallies(days)

    def tallied(self, days: list[str]) -> dict[tuple[str, str], float]:
        """Return what all processes booked under some days, once what we booked is there.

        Raises TierError, "late" where that is not so soon: who asks follows the log in the same thread.
        """
        if not self.writer.settle(_TALLY_SECONDS):
            raise TierError("late", f"{self.link.where}: what was booked is not there yet")
        return self._tallies(days)

    def _tallies(self, days: list[str]) -> dict[tuple[str, str], float]:
        replies = self._send([("HGETALL", self.names.use(day)) for day in days]) if days else []
        found: dict[tuple[str, str], float] = {}
        for day, reply in zip(days, replies, strict=True):
            told = self._checked(reply)
            listed = list(told.items()) if isinstance(told, dict) else list(zip(told[::2], told[1::2], strict=True))
            found |= {(day, name.decode()): float(amount) for name, amount in listed}
        return found

    def namespaces(self) -> list[str]:
        """Return our namespace, if anything stands in it; nothing is begun by asking."""
        names = self.names
        (found,) = self._send([("EXISTS", names.marks, names.gone, names.keys, names.pinned, names.log)])
        return [self._namespace] if int(self._checked(found)) else []

    def entries(self) -> int:
        """Return how many entries the namespace has, about."""
        return sum(map(int, map(self._checked, self._send([("ZCARD", self.names.keys), ("HLEN", self.names.pinned)]))))

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
        self.pins.after_fork()
        self._following = None
        self.is_followed = False
        self._token = os.urandom(8)


def _date(day: str) -> date:
    """Return a day; the first there is where it is none."""
    try:
        return date.fromisoformat(day)
    except ValueError:
        return date.min
