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
from math import ceil
from typing import Any, NamedTuple

from semcache.marks import Pair
from semcache.model import Entry, Facets
from semcache.plan import Exchange, Plan
from semcache.stores import header
from semcache.stores.fork import forking
from semcache.stores.link import Command
from semcache.stores.redis_base import LONGEST_LOAD_SECONDS
from semcache.stores.redis_follow import Following, facets_of
from semcache.stores.redis_keys import (
    member,
    pack,
    position_at,
)
from semcache.stores.redis_writer import Write
from semcache.stores.vectors import to_float16

MAX_RECORDS = 1_000_000
_UPKEEP_SECONDS = 60.0
_MARGIN_SECONDS = 60.0
_MOST_AWAITING = 4096


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

    def get(self, key: bytes, pairs: list[Pair], grace: float) -> Plan[tuple[Entry | None, int]]:
        """Return an entry that no mark covers, and the nanoseconds spent waiting for a connection."""
        pending = self.writer.pending.get(key)
        if pending is not None and pending.data is not None and self.is_followed:
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
        record = record.copy()
        record[5] = to_float16(vector)
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
            pairs = facets_of(record[7], self._namespace).pairs(key)
            self.writer.put(Write(key, [self._added(record, vector)], None, record[9], pairs, 2048))

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
        names, now, stays = self.names, self.now(), ceil((2 * self._longest + LONGEST_LOAD_SECONDS) * 1000)
        commands: list[Command] = []
        for name in (names.keys, names.marks, names.gone, names.log):
            commands += [("PEXPIRE", name, stays, "NX"), ("PEXPIRE", name, stays, "GT")]
        commands.append(("ZREMRANGEBYSCORE", names.keys, "-inf", now))
        commands.append(("ZREMRANGEBYSCORE", names.gone, "-inf", position_at(now - LONGEST_LOAD_SECONDS)))
        commands.append(("XTRIM", names.log, "MAXLEN", "~", MAX_RECORDS))
        return commands

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
