"""The Redis tier: an exact store that all processes of a service share.

Laws: a hit is one round trip, whatever the colour; puts are written behind the caller by the store's thread, and are
read from its queue meanwhile; an entry born before one of its marks is a miss (law 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from semcache.blocks import Blocks
from semcache.errors import DecodeError, TierError
from semcache.marks import Changes, Marks, Pair, Row
from semcache.model import Entry, Evidence, Facets, Hit, Miss, Mode, Request
from semcache.plan import Plan
from semcache.stores.moving import Foreign, Moved
from semcache.stores.redis import Asked, RedisStore
from semcache.stores.redis_keys import Names
from semcache.stores.redis_reported import Reporting
from semcache.tier import Clock, Glance
from semcache.together import together

_CLOSE_SECONDS = 5.0


class RedisTier:
    """An exact tier in the Redis at `redis`, a URL or a redis.Redis; entries live `ttl` seconds, or what they ask for.

    `timeout` is how long a read waits, `index_ttl` how long an entry has a row in the log, `others_ttl` how long tiers
    that need its marks keep one, in seconds. `marks` are this process's. Raises ConfigurationError for an address that
    can never work; a Redis that is down makes misses.
    """

    name = "redis"
    exact = True

    def __init__(
        self, redis: Any, *, namespace: str, ttl: float, clock: Clock, marks: Marks,
        on_fault: Callable[[str, BaseException], None], jitter: float = 0.0, timeout: float = 0.025,
        random: Callable[[], float] | None = None, index_ttl: float = 3600.0, others_ttl: float = 0.0,
        blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        self._namespace = namespace
        self._ttl = ttl
        self._jitter = jitter
        self._random = random or Random().random  # noqa: S311 - spreads expiries, keeps no secret
        self._is_closed = False
        self._store = RedisStore(
            redis, namespace=namespace, timeout=timeout, clock=clock, marks=marks, index_ttl=index_ttl,
            ttl=max(ttl, others_ttl), on_fault=on_fault, blocks=blocks,
        )  # fmt: skip

    @property
    def reports(self) -> Reporting:
        """What the store keeps of near matches."""
        return self._store

    def move(self, names: Names) -> None:
        """Keep all under other names; only before the first use. For a trial within the rights of a namespace."""
        self._store.names = names

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look an entry up in one round trip; what waits to be written is found too."""
        if self._is_closed:
            raise TierError("closed", "the Redis tier was closed")
        key = request.key
        entry, waited_ns = yield from self._store.get(key, request.facets.of(self._namespace), request.lives.grace)
        return self._hit(key, entry, waited_ns)

    def get_many(self, requests: Sequence[Request]) -> Plan[list[Hit | Miss | BaseException | None]]:
        """Look many entries up as `get` does each, in one round trip; what one of them fails at stands in its place."""
        store, keys = self._store, [request.key for request in requests]
        if self._is_closed or not store.are_plain(keys):
            outcomes = yield from together([self.get(request) for request in requests])
            return [outcome.value if outcome.error is None else outcome.error for outcome in outcomes]
        found: list[Hit | Miss | BaseException | None] = []
        for request, data in zip(requests, (yield from store.get_many(keys)), strict=True):
            try:
                found.append(self.settle(request, data))
            except DecodeError as error:
                found.append(error)
        return found

    def glance(self, keys: Sequence[bytes]) -> Plan[Glance | None]:
        """Look many keys up in one round trip."""
        store = self._store
        if self._is_closed or not store.are_plain(keys):
            return None
        found = yield from store.get_many(keys)
        return Glance(*store.read_plain(keys, found), found)

    def settle(self, request: Request, stands: bytes | None) -> Hit | Miss:
        """Make of what stands at a request's key what `get` returns. Raises DecodeError."""
        entry = stands and self._store.read(
            request.key, stands, request.facets.of(self._namespace), request.lives.grace
        )  # fmt: skip
        return self._hit(request.key, entry or None, 0)

    def _hit(self, key: bytes, entry: Entry | None, waited_ns: int) -> Hit | Miss:
        if entry is None:
            return Miss(waited_ns=waited_ns)
        if entry.slide:
            with suppress(TierError):  # a full queue: it slides at another hit
                self._store.slide(key, min(entry.slide, entry.limit))
        return Hit(entry, self.name, key, waited_ns=waited_ns)

    def fetch(self, key: bytes, grace: float = 0.0) -> Plan[Hit | Miss]:
        """Look an entry up by its key alone; one that expired less than `grace` seconds ago is a hit without life."""
        entry, waited_ns = yield from self._store.get(key, Facets(self._namespace), grace)
        return self._hit(key, entry, waited_ns)

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:
        """Hand an entry to the writer; raises TierError("full") where too much waits for it."""
        if self._is_closed:
            raise TierError("closed", "the Redis tier was closed")
        life = entry.life_in(self._ttl, is_store=True)
        if not entry.is_pinned:
            life *= 1 - self._jitter * self._random()
        if life <= 0:
            return
        facets = (entry.facets or request.facets).of(self._namespace)
        asked = Asked(request.key, facets, request.scope, request.embedder, request.text)
        self._store.put(asked, entry, life, evidence.vector if evidence is not None else None)
        return
        yield

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:  # noqa: ARG002 - the store gives its own
        """Invalidate durably, as `mark` does; how many entries went."""
        _, removed = yield from self.mark([(facet, value)])
        return removed

    # The log

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate durably; the marks' position, and how many entries went. Raises InvalidationError."""
        return (yield from self._store.mark(pairs))

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many live entries an invalidation of these would drop. Raises TierError."""
        return (yield from self._store.count(pairs))

    def lacking(self, keys: list[bytes], pair: Pair) -> Plan[list[bytes]]:
        """Return those of some keys whose entries are here, and have not a facet value. Raises TierError."""
        return (yield from self._store.lacking(keys, pair))

    def facets_of(self, key: bytes) -> Plan[Facets | None]:
        """Return the facets of the entry of a key; None where there is none. Raises TierError."""
        return (yield from self._store.facets_of(key))

    def switch(self, mode: Mode) -> Plan[None]:
        """Set the mode of all who use the namespace. Raises TierError."""
        yield from self._store.switch(mode)

    def position(self) -> int:
        """Return the latest position that was heard of."""
        return self._store.position()

    def beyond(self, known: int) -> int:
        """Return the position of the latest invalidation, kept or not: it lies after all births before it."""
        return max(known, self._store.position())

    def join(self) -> Changes:
        """Begin to follow the log. Raises TierError."""
        return self._store.join()

    def follow(self, since: int) -> Changes:
        """Return what came after a position; waits some tenths of a second for it. Raises TierError."""
        return self._store.follow(since)

    def rest(self) -> None:
        """Let the follower wait no longer."""
        self._store.rest()

    def attach(self, key: bytes, vector: Any, embedder: str) -> None:
        """Write the row of an entry whose vector was computed behind its put."""
        self._store.attach(key, vector, embedder)

    def rows(self, embedder: str) -> Iterator[Row]:
        """Return the live rows of an embedder in the log, oldest first. Raises TierError."""
        return self._store.rows(embedder)

    def foreign(self, embedder: str) -> Iterator[list[Foreign]]:
        """Return the live rows of all other embedders in the log, a page at a time. Raises TierError."""
        return self._store.foreign(embedder)

    def replace_rows(self, rows: list[Moved]) -> list[bool]:
        """Write another embedder's rows for those of these entries that still stand; which. Raises TierError."""
        return self._store.replace_rows(rows)

    # Counters

    def book(self, day: str, amounts: Mapping[str, float]) -> None:
        """Add to the counters of a day, "2026-11-27", behind the caller. Raises TierError("closed")."""
        self._store.book({(day, name): amount for name, amount in amounts.items()})

    def booked(self, since_day: str) -> dict[tuple[str, str], float]:
        """Return what all processes have booked in this namespace, by day and name, from a day on. Raises TierError."""
        return self._store.booked(since_day)

    def namespaces(self) -> list[str]:
        """Return our namespace, if anything stands in it: no other one's keys are read. Raises TierError."""
        return self._store.namespaces()

    def tallied(self, days: list[str]) -> dict[tuple[str, str], float]:
        """Return what all processes have booked under some days. Raises TierError."""
        return self._store.tallied(days)

    # Life

    def stats(self) -> Mapping[str, int | float]:
        """Return the entries of the namespace, and what this process wrote, lost and has waiting."""
        found: dict[str, int | float] = {"entries": 0}
        with suppress(TierError):  # it cannot be asked; the counts are known all the same
            found = {"entries": self._store.entries()}
        return found | self._store.writer.sizes()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is in the store; False where the time was up, or something was lost."""
        return self._store.writer.flush(timeout)

    def close(self) -> None:
        """Flush, for some seconds at most, and close every connection."""
        self._is_closed = True
        self._store.close(_CLOSE_SECONDS)
