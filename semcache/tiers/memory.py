"""The memory tier: an LRU in this process, bounded in bytes, each entry with its own expiry.

A probe takes no lock: it reads the entry, checks its expiry and notes the key; the notes are applied to the LRU's order
many at once, before the next put at the latest (as Caffeine's read buffer does), so pressure drops what was not used.

Laws: it holds encoded answers, never objects, so that who mutates a hit changes nobody else's (law 9); an entry born
before a mark of one of its facets is not taken (law 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from threading import Lock

from cachetools import Cache as CacheOf
from cachetools import TLRUCache

from semcache.codec import plain_body
from semcache.errors import TierError
from semcache.log import Marks
from semcache.model import Entry, Evidence, Facets, Hit, Miss, Request
from semcache.plan import Plan
from semcache.tier import Clock, facet_pairs

# What an entry costs beside its answer: the objects here and in the LRU; measured, and held by a test.
ENTRY_BYTES = 900
_NOTES = 256
_LONGEST_LOAD_SECONDS = 3600.0


# What the LRU is made of, without its reordering: one read of a dict, which needs no lock.
_read = CacheOf.__getitem__


class Kept:
    """An entry in memory; `expires` and `since` are readings of the monotonic clock.

    `body` is the msgpack inside `value`, ready to unpack; None where it is packed in another way.
    """

    __slots__ = ("body", "born", "expires", "facets", "load_seconds", "own_ttl", "since", "value")

    def __init__(self, entry: Entry, facets: Facets, since: float, expires: float) -> None:
        self.value = entry.value
        self.body = plain_body(entry.value)
        self.expires = expires
        self.since = since
        self.born = entry.born
        self.load_seconds = entry.load_seconds
        self.own_ttl = entry.own_ttl
        self.facets = facets


class _Entries(TLRUCache[bytes, Kept]):
    """The LRU, counting what pressure drops."""

    evictions = 0

    def popitem(self) -> tuple[bytes, Kept]:
        self.evictions += 1
        return super().popitem()


class MemoryTier:
    """An exact tier of at most `max_bytes`; each entry lives at most `ttl` seconds.

    With `is_store`, memory is the exact store: an entry's own ttl may then be longer than the tier's.
    """

    name = "memory"
    exact = True

    def __init__(
        self, max_bytes: int, ttl: float, *, clock: Clock, jitter: float = 0.0, is_store: bool = False,
        random: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self._ttl = ttl
        self._jitter = jitter
        self._is_store = is_store
        self._is_closed = False
        self._random = random or Random().random  # noqa: S311 - spreads expiries, keeps no secret
        self._now = clock.monotonic
        self._lock = Lock()
        self._too_large = 0
        self._touched: dict[bytes, None] = {}
        self._marks = Marks(clock.monotonic, _LONGEST_LOAD_SECONDS)
        self._entries = _Entries(
            max_bytes, ttu=lambda _key, kept, _now: kept.expires, timer=clock.monotonic, getsizeof=_weigh
        )

    def probe(self, key: bytes) -> Kept | None:
        """Return the entry of a key: a plain function, for the call that is answered here."""
        try:
            kept = _read(self._entries, key)
        except KeyError:
            return None
        if kept.expires <= self._now():
            return None
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

    def peek(self, key: bytes) -> Hit | Miss:
        """Look an entry up by its key alone."""
        kept = self.probe(key)
        if kept is None:
            return Miss()
        now = self._now()
        entry = Entry(
            kept.value, life=kept.expires - now, own_ttl=kept.own_ttl, born=kept.born, age=now - kept.since,
            load_seconds=kept.load_seconds,
        )  # fmt: skip
        return Hit(entry, self.name, key)

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look an entry up."""
        if self._is_closed:
            raise TierError("closed", "the memory tier was closed")
        return self.peek(request.key)
        yield

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:  # noqa: ARG002
        """Keep an entry for the smaller of the tier's ttl and what remains of its life."""
        if self._is_closed:
            raise TierError("closed", "the memory tier was closed")
        longest = entry.life if self._is_store and entry.own_ttl else min(self._ttl, entry.life)
        now = self._now()
        kept = Kept(entry, request.facets, now - entry.age, now + longest * (1 - self._jitter * self._random()))
        with self._lock:
            if self._marks.cover(facet_pairs(request.facets, request.key), entry.born):
                return
            try:
                self._apply_touches()
                self._entries[request.key] = kept
            except ValueError:  # larger than the whole tier
                self._too_large += 1
                self._entries.pop(request.key, None)
        return
        yield

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:
        """Drop the entries with a facet value, and refuse those born before `position` that are still to come."""
        entries = self._entries
        with self._lock, entries.timer:
            self._marks.mark(facet, value, position)
            if facet == "key":
                keys = [value] if value in entries else []
            else:  # read past the LRU, whose order this is no reason to change
                keys = [key for key in entries if getattr(_read(entries, key).facets, facet) == value]
            for key in keys:
                entries.pop(key, None)  # type: ignore[arg-type]
        return len(keys)
        yield

    def stats(self) -> Mapping[str, int | float]:
        """Return entries, bytes, evictions, and how many answers were larger than the tier."""
        with self._lock:
            return {
                "entries": len(self._entries),
                "bytes": self._entries.currsize,
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
