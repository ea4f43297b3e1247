"""The disk tier: an exact store in one SQLite file, shared by processes, which keeps what the next start needs.

Laws: an entry's own ttl sets its life here, any other life is at most the tier's (law 5); an entry from the future, as
left behind by a clock that went back, or whose bytes are not those that were written, is a miss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from zlib import crc32

from semcache.errors import ConfigurationError, TierError
from semcache.model import Entry, Evidence, Facets, Hit, Miss, Request
from semcache.plan import Plan, Wait
from semcache.tier import Clock

if TYPE_CHECKING:
    from semcache.stores.sqlite import IndexRow

MIN_BYTES = 256 * 2**10
_CLOSE_SECONDS = 5.0
_TOUCH_SECONDS = 60.0
# Clocks of processes on one machine agree; a wall clock may be set by so much without anything being lost.
_SKEW_SECONDS = 1.0


class DiskTier:
    """An exact tier in the SQLite file `path`, of about `max_bytes`; entries live `ttl` seconds, or what they ask for.

    `timeout` is how long a read waits for a lock, `index_ttl` how long an entry has an index row, in seconds.
    `on_fault` is told, with one word and the error, of what goes wrong behind the callers, in whatever thread it does.
    Raises ConfigurationError for what can never work; a file that cannot be used now makes misses, and is tried again.
    """

    name = "disk"
    exact = True

    def __init__(
        self, path: str | os.PathLike[str], *, namespace: str, ttl: float, clock: Clock,
        on_fault: Callable[[str, BaseException], None], jitter: float = 0.0, timeout: float = 0.025,
        max_bytes: int = 2**30, random: Callable[[], float] | None = None, index_ttl: float = inf,
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
        self._jitter = jitter
        self._random = random or Random().random  # noqa: S311 - spreads expiries, keeps no secret
        self._now = clock.time
        self._touch_seconds = min(_TOUCH_SECONDS, ttl / 10)
        self._store = SqliteStore(
            _file_path(path), namespace=namespace, timeout=timeout, max_bytes=max_bytes, clock=clock, on_fault=on_fault
        )

    def peek(self, key: bytes) -> Hit | Miss:
        """Look an entry up by its key alone; raises TierError where the file cannot be read in time or is damaged."""
        row = self._store.read(key)
        if row is None:
            return Miss()
        value, checksum, expires, written, touched, born, load_seconds, is_own_ttl = row
        now = self._now()
        if expires <= now:
            return Miss()
        if written > now + _SKEW_SECONDS:
            return Miss("it was written in the future: the clock went back")
        if crc32(value, crc32(key)) != checksum:
            raise TierError("damaged", f"the entry {key.hex()} is not what was written; it is loaded again")
        if now - touched > self._touch_seconds:
            self._store.touch(key, now)
        return Hit(Entry(value, expires - now, bool(is_own_ttl), born, now - written, load_seconds), self.name, key)

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look an entry up, in place; what waits to be written is found too."""
        return self.peek(request.key)
        yield

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:
        """Hand an entry to the writer; raises TierError("full") where too much waits for it."""
        from semcache.stores.changes import Record

        life = entry.life if entry.own_ttl else min(self._ttl, entry.life)
        life *= 1 - self._jitter * self._random()
        if life <= 0:
            return
        now = self._now()
        key, value, facets = request.key, entry.value, request.facets
        checksum, written = crc32(value, crc32(key)), now - entry.age
        row = (value, checksum, now + life, written, now, entry.born, entry.load_seconds, int(entry.own_ttl))
        owned = Facets(self._namespace, facets.function, facets.version, facets.tenant, facets.model)
        vector = evidence.vector if evidence is not None else None
        self._store.put(Record(key, row, owned, request.scope, request.embedder, request.text, vector, self._index_ttl))
        return
        yield

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:  # noqa: ARG002 - the file gives its own
        """Invalidate durably, as `mark` does, and wait for it; how many entries went."""
        _, removed = yield Wait(self.mark(facet, value))
        return int(removed)

    def mark(self, facet: str, value: str | bytes) -> Future[tuple[int, int]]:
        """Invalidate durably: the future gives the log position of the mark, and how many entries were dropped.

        Afterwards no process reads from the file what was born before. The future raises InvalidationError where that
        cannot be promised.
        """
        from semcache.stores.changes import FACETS

        if facet not in FACETS:
            raise ConfigurationError(f"an entry can be invalidated by {', '.join(sorted(FACETS))}; got {facet!r}")
        return self._store.mark(facet, value)

    def position(self) -> int:
        """Return the log's position now: where loads that begin now are born."""
        return self._store.position()

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

    def stats(self) -> Mapping[str, int | float]:
        """Return entries and bytes of the file, and what this process wrote, evicted, lost and has waiting."""
        return self._store.stats()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is in the file; False where the time was up, or something was lost."""
        return self._store.flush(timeout)

    def close(self) -> None:
        """Flush, for some seconds at most, and close the file."""
        self._store.close(_CLOSE_SECONDS)


def _file_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text or text == ":memory:":
        raise ConfigurationError(f"disk= is the path of a file; got {text!r} (for memory alone leave it out)")
    full = Path(text).absolute()
    if full.is_dir():
        raise ConfigurationError(f"{full} is a directory: give the path of a file in it, as {full / 'cache.db'}")
    return full
