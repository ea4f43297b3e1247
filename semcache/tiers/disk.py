"""The disk tier: an exact store in one SQLite file, shared by processes, which keeps what the next start needs.

Laws: an entry's own ttl sets its life here, any other life is at most the tier's (law 5); a hit lengthens the life of a
sliding entry alone, and only while it is fresh; an entry from the future, as left behind by a clock that went back, or
whose bytes are not those that were written, is a miss; so is, in this process, what was born before an invalidation
that the file could not keep, as long as it stands there (law 8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from zlib import crc32

from semcache.blocks import Blocks
from semcache.errors import ConfigurationError, TierError
from semcache.marks import Between, Changes, Mark, Marks, Pair
from semcache.model import FACETS, MODES, Entry, Evidence, Facets, Hit, Miss, Mode, Request
from semcache.plan import Plan, Wait
from semcache.tier import Clock

if TYPE_CHECKING:
    from semcache.stores.about import About
    from semcache.stores.moving import Foreign, Moved
    from semcache.stores.sqlite import IndexRow

MIN_BYTES = 256 * 2**10
_CLOSE_SECONDS = 5.0
_MOST_SINCE = 4096
_TOUCH_SECONDS = 60.0
# The file may lag behind the life that a hit gave by so much of it, and others with it.
_SLIDE_SHARE = 0.1
# Clocks of processes on one machine agree; a wall clock may be set by so much without anything being lost.
_SKEW_SECONDS = 1.0


class DiskTier:
    """An exact tier in the SQLite file `path`, of about `max_bytes`; entries live `ttl` seconds, or what they ask for.

    `timeout` is how long a read waits for a lock, `index_ttl` how long an entry has an index row, `others_ttl` how long
    tiers that need its marks keep one, in seconds. `marks` and `blocks` are this process's. `on_fault` is told, with
    one word and the error, of what goes wrong behind the callers, in whatever thread it does. Raises ConfigurationError
    for what can never work; a file that cannot be used now makes misses, and is tried again.
    """

    name = "disk"
    exact = True

    def __init__(
        self, path: str | os.PathLike[str], *, namespace: str, ttl: float, clock: Clock,
        on_fault: Callable[[str, BaseException], None], jitter: float = 0.0, timeout: float = 0.025,
        max_bytes: int = 2**30, random: Callable[[], float] | None = None, index_ttl: float = inf,
        others_ttl: float = 0.0, marks: Marks | None = None, blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        from semcache.stores.sqlite import SqliteStore

        if ttl <= 0 or timeout <= 0 or not 0 <= jitter < 1:
            raise ConfigurationError(
                f"ttl and timeout are positive seconds, jitter is a share below 1; got {ttl!r}, {timeout!r}, {jitter!r}"
            )
        if max_bytes < MIN_BYTES:
            raise ConfigurationError(f"the disk tier needs at least {MIN_BYTES} bytes; got {max_bytes!r}")
        self._namespace = namespace
        self._ttl = ttl
        self._index_ttl = index_ttl
        self._others_ttl = others_ttl
        self._jitter = jitter
        self._random = random or Random().random  # noqa: S311 - spreads expiries, keeps no secret
        self._now = clock.time
        self._marks = Marks(clock.monotonic, ttl) if marks is None else marks
        # Of what was put here after an invalidation that could not be kept: when it was written, and its true birth.
        self._since: dict[bytes, tuple[float, int]] = {}
        self._touch_seconds = min(_TOUCH_SECONDS, ttl / 10)
        self._store = SqliteStore(
            file_path(path), namespace=namespace, timeout=timeout, max_bytes=max_bytes, clock=clock, on_fault=on_fault,
            blocks=blocks,
        )  # fmt: skip
        self.reports = self._store.reports

    def peek(self, key: bytes, grace: float = 0.0) -> Hit | Miss:
        """Look an entry up by its key alone; one that expired less than `grace` seconds ago is a hit with no life left.

        Raises TierError where the file cannot be read in time or is damaged.
        """
        row = self._store.read(key)
        if row is None:
            return Miss()
        value, checksum, expires, written, touched, born, load_seconds, is_own_ttl, about = row
        if born < self._marks.unkept and self._is_doubted(key, written, born):
            return Miss("it was invalidated, though that could not be kept")
        now = self._now()
        entry = Entry(value, expires - now, bool(is_own_ttl), born, now - written, load_seconds)
        if about is None:
            if expires <= now:
                return Miss()
        else:
            self._fill(key, entry, about, written, now)
            if entry.life <= 0 and (entry.life <= -min(grace, entry.grace) or entry.limit <= 0):
                return Miss()
        if written > now + _SKEW_SECONDS:
            return Miss("it was written in the future: the clock went back")
        if crc32(value, crc32(key)) != checksum:
            raise TierError("damaged", f"the entry {key.hex()} is not what was written; it is loaded again")
        if about is not None and entry.slide:
            self._slide(key, entry, expires, written, now)
        if now - touched > self._touch_seconds:
            self._store.touch(key, now)
        return Hit(entry, self.name, key)

    def _is_doubted(self, key: bytes, written: float, born: int) -> bool:
        """Say whether an invalidation that the file could not keep means what stands there for a key."""
        since = self._since.get(key)
        if since is not None and since[0] == written:
            born = since[1]
        facets = self._store.facets_of(key)
        return facets is None or self._marks.cover(facets.pairs(key), born)

    def _fill(self, key: bytes, entry: Entry, about: bytes | About, written: float, now: float) -> None:
        """Tell an entry what its bytes and what waits to be written say of it."""
        from semcache.stores.about import unpack

        (unpack(about) if isinstance(about, bytes) else about).fill(entry, self._namespace, now)
        if entry.slide:
            entry.life = max(entry.life, self._store.slid(key, written) - now)
            if entry.life <= 0:  # what waited may have come into the file after that was read
                again = self._store.read(key)
                if again is not None and again[3] == written:
                    entry.life = again[2] - now
        entry.life = min(entry.life, entry.limit)

    def _slide(self, key: bytes, entry: Entry, expires: float, written: float, now: float) -> None:
        """Give a sliding entry that is read while it is fresh its life anew."""
        from semcache.stores.changes import Slide

        life = min(entry.slide, entry.limit)
        if 0 < entry.life < life:
            entry.life = life
            ends = now + min(life + entry.grace, entry.limit)
            is_due = now + life - expires > entry.slide * _SLIDE_SHARE
            self._store.slide(key, Slide(now, now + life, ends, written), is_due=is_due)

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look an entry up, in place; what waits to be written is found too."""
        return self.peek(request.key, request.lives.grace)
        yield

    def fetch(self, key: bytes, grace: float = 0.0) -> Plan[Hit | Miss]:
        """Look an entry up by its key alone; one that expired less than `grace` seconds ago is a hit without life."""
        return self.peek(key, grace)
        yield

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:
        """Hand an entry to the writer; raises TierError("full") where too much waits for it, or is pinned."""
        from semcache.stores.about import PLAIN, of
        from semcache.stores.changes import Record
        from semcache.stores.facets import canonical
        from semcache.stores.schema import Row

        life = entry.life_in(self._ttl, is_store=True)
        if not entry.is_pinned:
            life *= 1 - self._jitter * self._random()
        if life <= 0:
            return
        now = self._now()
        key, value, facets = request.key, entry.value, canonical(self._namespace, entry.facets or request.facets)
        checksum, written, about = crc32(value, crc32(key)), now - entry.age, of(entry, facets, now)
        row = Row(
            value, checksum, now + life, written, now, int(entry.born), entry.load_seconds, int(entry.own_ttl),
            None if about == PLAIN else about,
        )  # fmt: skip
        if isinstance(entry.born, Between):
            if len(self._since) >= _MOST_SINCE:
                self._since = {}  # what was told here is doubted again, and loaded anew
            self._since[key] = written, entry.born
        vector = evidence.vector if evidence is not None else None
        self._store.put(
            Record(
                key, row, facets, request.scope, request.embedder, request.text, vector, self._index_ttl,
                self._others_ttl,
            )
        )  # fmt: skip
        return
        yield

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:  # noqa: ARG002 - the file gives its own
        """Invalidate durably, as `mark` does; how many entries went."""
        _, removed = yield from self.mark([(facet, value)])
        return removed

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate durably, all in one transaction; the position of the latest mark, and how many entries went.

        Afterwards no process reads from the file what was born before. Raises InvalidationError where that cannot be
        promised.
        """
        position, removed = yield Wait(self._store.mark(_known(pairs)))
        self._take([(facet, value, position) for facet, value in pairs])
        return position, removed

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many live entries an invalidation of these would drop."""
        return self._store.count(_known(pairs))
        yield

    def lacking(self, keys: list[bytes], pair: Pair) -> Plan[list[bytes]]:
        """Return those of some keys whose entries are here, and have not a facet value."""
        return self._store.lacking(keys, pair)
        yield

    def facets_of(self, key: bytes) -> Plan[Facets | None]:
        """Return the facets of the entry of a key, written or not; None where there is none."""
        return self._store.facets_of(key)
        yield

    def keys_of(self, pairs: list[Pair]) -> list[bytes]:
        """Return the keys of the live entries that an invalidation of these would drop."""
        return self._store.keys_of(_known(pairs))

    def switch(self, mode: Mode) -> Plan[None]:
        """Set the mode of all who use the namespace, durably; they hear of it as they follow. Raises TierError."""
        if mode not in MODES:
            raise ConfigurationError(f"a mode is one of {', '.join(MODES)}; got {mode!r}")
        yield Wait(self._store.switch(mode))

    def join(self) -> Changes:
        """Begin to follow the log: return its position, all marks and the mode, and no rows. Raises TierError."""
        return self.follow(-1)

    def follow(self, since: int) -> Changes:
        """Return what others did after a position, without waiting for it; one thread at a time. Raises TierError."""
        changes = self._store.changes(since)
        self._take(changes.marks)
        return changes

    def _take(self, marks: list[Mark]) -> None:
        for facet, value, position in marks:
            self._marks.mark(facet, value, position)

    def rest(self) -> None:
        """Do nothing: `follow` never waits."""

    def book(self, day: str, amounts: Mapping[str, float]) -> None:
        """Add to the counters of a day, "2026-11-27", behind the caller. Raises TierError where that cannot be now."""
        self._store.book({(day, name): amount for name, amount in amounts.items()})

    def booked(self, since_day: str) -> dict[tuple[str, str], float]:
        """Return what all processes have booked in this namespace, by day and name, from a day on. Raises TierError."""
        return self._store.booked(since_day)

    def namespaces(self) -> list[str]:
        """Return the namespaces of which something stands in the file, in order. Raises TierError."""
        from semcache.stores.schema import NAMESPACES

        return [name for (name,) in self._store.ask(NAMESPACES)]

    def tallied(self, days: list[str]) -> dict[tuple[str, str], float]:
        """Return what all processes have booked under some days. Raises TierError."""
        return self._store.tallied(days)

    def position(self) -> int:
        """Return the log's position now: where loads that begin now are born."""
        return self._store.position()

    def beyond(self, known: int) -> int:
        """Return a position after all births so far, and before the next of the file's."""
        return Between(known)

    def attach(self, key: bytes, vector: Any, embedder: str | None = None) -> None:
        """Fill in the vector, float32[d], of an index row that was written without one.

        With `embedder`, only where the row is still of that embedder: another process may have written the key since,
        with another one (law 11).
        """
        self._store.attach(key, vector, embedder)

    def rows(self, embedder: str) -> Iterator[IndexRow]:
        """Return (key, scope, text, vector, remaining seconds) of every live index row of an embedder, oldest first.

        The vector is float32[d] with the precision of float16, or None. Read a page at a time; raises TierError.
        """
        return self._store.rows(embedder)

    def foreign(self, embedder: str) -> Iterator[list[Foreign]]:
        """Return the live index rows of all other embedders, a page at a time. Raises TierError."""
        return self._store.foreign(embedder)

    def replace_rows(self, rows: list[Moved]) -> list[bool]:
        """Replace index rows by another embedder's, durably; whether each was still there. Raises TierError."""
        return self._store.replace_rows(rows).result()

    def stats(self) -> Mapping[str, int | float]:
        """Return entries and bytes of the file, and what this process wrote, evicted, lost and has waiting."""
        return self._store.stats()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is in the file; False where the time was up, or something was lost."""
        return self._store.flush(timeout)

    def close(self) -> None:
        """Flush, for some seconds at most, and close the file."""
        self._store.close(_CLOSE_SECONDS)


def _known(pairs: list[Pair]) -> list[Pair]:
    for facet, _ in pairs:
        if facet not in FACETS:
            raise ConfigurationError(f"an entry can be invalidated by {', '.join(FACETS)}; got {facet!r}")
    return pairs


def file_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path that disk= means. Raises ConfigurationError."""
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text or text == ":memory:":
        raise ConfigurationError(f"disk= is the path of a file; got {text!r} (for memory alone leave it out)")
    full = Path(text).absolute()
    if full.is_dir():
        raise ConfigurationError(f"{full} is a directory: give the path of a file in it, as {full / 'cache.db'}")
    return full
