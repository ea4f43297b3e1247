"""The memory tier: an LRU in this process, bounded in bytes, each entry with its own expiry.

A probe takes no lock: it reads the entry, checks its expiry and notes the key; the notes are applied to the LRU's order
many at once, before the next put at the latest (as Caffeine's read buffer does), so pressure drops what was not used.

Laws: it holds encoded answers, never objects, so that who mutates a hit changes nobody else's (law 9); an entry born
before a mark of one of its facets is not taken, and what stands is dropped with the mark (law 8); while nobody can tell
this process of marks, nothing lives longer than `lost_seconds`. Of two entries of a key the one whose load began later
stays, and a pinned one gives way to pinned ones alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from random import Random
from threading import Lock

from cachetools import Cache as CacheOf
from cachetools import TLRUCache

from semcache.codec import plain_body
from semcache.errors import TierError
from semcache.marks import Marks
from semcache.model import Entry, Evidence, Facets, Hit, Miss, Request
from semcache.plan import Plan
from semcache.tier import Clock, Glance

# What an entry costs beside its answer: the objects here and in the LRU; measured, and held by a test.
ENTRY_BYTES = 900
_NOTES = 256
# Where memory is the store, what is pinned is beyond the LRU: it may take this share of the bound.
PINNED_SHARE = 0.5
_LONGEST_LOAD_SECONDS = 3600.0


# What the LRU is made of, without its reordering: one read of a dict, which needs no lock.
_read = CacheOf.__getitem__


class Kept:
    """An entry in memory; `expires` and `since` are readings of the monotonic clock.

    `body` is the msgpack inside `value`, ready to unpack; None where it is packed in another way.
    """

    __slots__ = (
        "body", "born", "ends", "expires", "facets", "grace", "is_pinned", "limit", "load_seconds", "own_ttl", "since",
        "slide", "usage", "value",
    )  # fmt: skip

    def __init__(self, entry: Entry, facets: Facets, since: float, now: float, life: float) -> None:
        self.value = entry.value
        self.body = plain_body(entry.value)
        self.expires = now + life
        self.limit = now + entry.limit
        self.grace = entry.grace
        self.slide = min(entry.slide, life)
        self.ends = self.limit if self.slide else min(self.expires + entry.grace, self.limit)
        self.since = since
        self.born = entry.born
        self.load_seconds = entry.load_seconds
        self.own_ttl = entry.own_ttl
        self.usage = entry.usage
        self.is_pinned = entry.is_pinned
        self.facets = facets

    def limit_to(self, until: float) -> None:
        """Let it live no longer than that, without any grace: nobody can tell us of invalidations."""
        self.expires = self.ends = min(self.expires, until)
        self.slide = self.grace = 0.0


class _Entries(TLRUCache[bytes, Kept]):
    """The LRU, counting what pressure drops."""

    evictions = 0

    def popitem(self) -> tuple[bytes, Kept]:
        self.evictions += 1
        return super().popitem()


class MemoryTier:
    """An exact tier of at most `max_bytes`; each entry lives at most `ttl` seconds.

    With `is_store`, memory is the exact store: an entry's own ttl may then be longer than the tier's. After `longest`
    seconds an entry is gone, whatever its grace: for who can never be told of invalidations.
    """

    name = "memory"
    exact = True

    def __init__(
        self, max_bytes: int, ttl: float, *, clock: Clock, jitter: float = 0.0, is_store: bool = False,
        random: Callable[[], float] | None = None, marks: Marks | None = None, longest: float = inf,
    ) -> None:  # fmt: skip
        self._ttl = ttl
        self._longest = longest
        self._most = inf
        self._jitter = jitter
        self._is_store = is_store
        self._is_closed = False
        self._random = random or Random().random  # noqa: S311 - spreads expiries, keeps no secret
        self._now = clock.monotonic
        self._lock = Lock()
        self._too_large = 0
        self._touched: dict[bytes, None] = {}
        self._marks = Marks(clock.monotonic, _LONGEST_LOAD_SECONDS) if marks is None else marks
        self._max_pinned_bytes = max_bytes * PINNED_SHARE
        self._pinned: dict[bytes, Kept] = {}
        self._entries = _Entries(
            max_bytes, ttu=lambda _key, kept, _now: kept.ends, timer=clock.monotonic, getsizeof=_weigh
        )

    def probe(self, key: bytes) -> Kept | None:
        """Return the entry of a key: a plain function, for the call that is answered here."""
        try:
            kept = _read(self._entries, key)
        except KeyError:
            return self._pinned.get(key)
        if kept.expires <= self._now():
            return self._pinned.get(key)
        if kept.slide:
            kept.expires = max(kept.expires, min(self._now() + kept.slide, kept.limit))
        touched = self._touched
        touched[key] = None
        if len(touched) > _NOTES:
            with self._lock:
                self._apply_touches()
        return kept

    def _apply_touches(self) -> None:
        """Bring the LRU's order up to date; the lock is held."""
        touched, self._touched = self._touched, {}
        with self._entries.timer:  # time stands still: nothing can expire between two looks
            for key in list(touched):
                self._entries.get(key)

    def peek(self, key: bytes, grace: float = 0.0) -> Hit | Miss:
        """Look an entry up by its key alone; one that expired less than `grace` seconds ago is a hit without life."""
        kept = self.probe(key)
        now = self._now()
        if kept is None:
            kept = self._stale(key, grace, now) if grace else None
            if kept is None:
                return Miss()
        entry = Entry(
            kept.value, kept.expires - now, kept.own_ttl, kept.born, now - kept.since, kept.load_seconds, kept.grace,
            kept.slide, kept.limit - now, kept.is_pinned, kept.facets, kept.usage,
        )  # fmt: skip
        return Hit(entry, self.name, key)

    def fetch(self, key: bytes, grace: float = 0.0) -> Plan[Hit | Miss]:
        """Look an entry up by its key alone; one that expired less than `grace` seconds ago is a hit without life."""
        return self.peek(key, grace)
        yield

    def _stale(self, key: bytes, grace: float, now: float) -> Kept | None:
        try:
            kept = _read(self._entries, key)
        except KeyError:
            return None
        return kept if kept.expires + min(grace, kept.grace) > now and kept.limit > now else None

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look an entry up."""
        if self._is_closed:
            raise TierError("closed", "the memory tier was closed")
        return self.peek(request.key, request.lives.grace)
        yield

    def get_many(self, requests: Sequence[Request]) -> Plan[list[Hit | Miss]]:
        """Look many entries up, without a plan for each."""
        if self._is_closed:
            raise TierError("closed", "the memory tier was closed")
        return [self.peek(request.key, request.lives.grace) for request in requests]
        yield

    def glance(self, keys: Sequence[bytes]) -> Plan[Glance | None]:
        """Look many keys up."""
        if self._is_closed:
            return None
        kept = list(map(self.probe, keys))
        seconds = sum(one.load_seconds for one in kept if one is not None and one.usage is None)
        values = [one.value if one is not None and one.usage is None else None for one in kept]
        return Glance(values, seconds, kept)
        yield

    def settle(self, request: Request, stands: Kept | None) -> Hit | Miss:  # noqa: ARG002 - it may be gone by now
        """Look again, as `get` does."""
        return self.peek(request.key, request.lives.grace)

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:  # noqa: ARG002
        """Keep an entry for the smaller of the tier's ttl and what remains of its life.

        Raises TierError("full") for one that is to be pinned here, in the store, where too much is.
        """
        if self._is_closed:
            raise TierError("closed", "the memory tier was closed")
        if entry.limit > self._longest:
            entry = replace(entry, limit=self._longest)
        life = entry.life_in(self._ttl, is_store=self._is_store)
        if life != inf:
            life *= 1 - self._jitter * self._random()
        if life <= 0:
            return
        now = self._now()
        facets = entry.facets or request.facets
        kept = Kept(entry, facets, now - entry.age, now, life)
        with self._lock:
            if self._most != inf:
                kept.limit_to(now + self._most)
            if entry.born < self._marks.newest and self._marks.cover(facets.pairs(request.key), entry.born):
                return
            standing = self._standing(request.key)
            if standing is not None and (standing.is_pinned, standing.born) > (entry.is_pinned, entry.born):
                return
            if entry.is_pinned and self._is_store:
                self._pin(request.key, kept)
                return
            try:
                self._apply_touches()
                self._entries[request.key] = kept
            except ValueError:  # larger than the whole tier
                self._too_large += 1
                self._entries.pop(request.key, None)
        return
        yield

    def _standing(self, key: bytes) -> Kept | None:
        try:
            kept = _read(self._entries, key)
        except KeyError:
            return self._pinned.get(key)
        return kept if kept.expires > self._now() else self._pinned.get(key)

    def _pin(self, key: bytes, kept: Kept) -> None:
        used = sum(_weigh(one) for other, one in self._pinned.items() if other != key)
        if used + _weigh(kept) > self._max_pinned_bytes:
            raise TierError(
                "full",
                f"pinned entries take {used} bytes of at most {self._max_pinned_bytes:.0f}, half of memory=: "
                "invalidate some, or give a larger bound",
            )
        self._pinned[key] = kept
        self._entries.pop(key, None)

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:
        """Drop the entries with a facet value, and refuse those born before `position` that are still to come."""
        entries = self._entries
        with self._lock, entries.timer:
            self._marks.mark(facet, value, position)
            keys = {key for key, kept in self._meant(facet, value) if kept.born < position}
            for key in keys:
                entries.pop(key, None)
                self._pinned.pop(key, None)
        return len(keys)
        yield

    def _meant(self, facet: str, value: str | bytes) -> list[tuple[bytes, Kept]]:
        if facet != "key":
            return [(key, kept) for key, kept in self._all() if kept.facets.has(facet, value)]
        key = value if isinstance(value, bytes) else b""
        found = [_read(self._entries, key)] if key in self._entries else []
        if key in self._pinned:
            found.append(self._pinned[key])
        return [(key, kept) for kept in found]

    def _all(self) -> list[tuple[bytes, Kept]]:
        """Return what is here, read past the LRU, whose order this is no reason to change; the lock is held."""
        return [(key, _read(self._entries, key)) for key in self._entries] + list(self._pinned.items())

    def lose(self, seconds: float) -> None:
        """Serve what is here, and what comes, for so long at most: nobody can tell us of invalidations."""
        with self._lock, self._entries.timer:
            self._most = seconds
            until = self._now() + seconds
            for key in self._entries:
                _read(self._entries, key).limit_to(until)

    def find(self) -> None:
        """Give what comes its whole life again."""
        self._most = inf

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._pinned.clear()

    def count(self, pairs: list[tuple[str, str | bytes]]) -> int:
        """Return how many entries an invalidation of these would drop."""
        with self._lock, self._entries.timer:
            now = self._now()
            kept = self._all()
        return sum(
            one.expires > now
            and any(key == value if facet == "key" else one.facets.has(facet, value) for facet, value in pairs)
            for key, one in kept
        )

    def lacking(self, keys: list[bytes], pair: tuple[str, str | bytes]) -> Plan[list[bytes]]:
        """Return those of some keys whose entries are here, and have not a facet value."""
        with self._lock:
            standing = {key: self._standing(key) for key in keys}
        return [key for key, kept in standing.items() if kept is not None and not kept.facets.has(*pair)]
        yield

    def facets_of(self, key: bytes) -> Plan[Facets | None]:
        """Return the facets of the entry of a key; None where there is none."""
        with self._lock:
            kept = self._standing(key)
        return None if kept is None else kept.facets
        yield

    def stats(self) -> Mapping[str, int | float]:
        """Return entries, bytes, evictions, and how many answers were larger than the tier."""
        with self._lock:
            return {
                "entries": len(self._entries) + len(self._pinned),
                "bytes": self._entries.currsize + sum(map(_weigh, self._pinned.values())),
                "evictions": self._entries.evictions,
                "too_large": self._too_large,
            }

    def flush(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - the protocol's
        """Nothing waits here."""
        return True

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._is_closed = True
            self._entries.clear()
            self._pinned.clear()

    def before_fork(self) -> None:
        """Wait for a put under way: the child is to find it done."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on, with a lock of our own."""
        self._lock = Lock()


def _weigh(kept: Kept) -> int:
    return len(kept.value) + ENTRY_BYTES
