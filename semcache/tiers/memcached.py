"""The memcached tier: an exact tier that all processes of a service share, and that may forget what it likes.

Laws: a hit is one round trip; puts are written behind the caller, and read from the queue meanwhile; an own ttl longer
than the tier's is cut where another store keeps the answers, and holds where memcached is the only one (law 5).

Law 8 here: a memcached keeps no marks. Where another store keeps the log, this process's marks decide at each hit, and
while they cannot be followed everything is a miss; entries stand under the log's name, so that those who follow
different logs, or one that was begun anew, never meet. Alone, it takes no entry with tags or documents, and only keys
can be invalidated: by a tombstone, which refuses late puts for as long as a load may take, unless the server is flushed
or evicts it before. Births and positions must compare among all processes that share it, and marks be kept for its ttl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from semcache.errors import ConfigurationError, InvalidationError, MissingExtraError, TierError
from semcache.keys import KEY_BYTES
from semcache.marks import Marks, Pair
from semcache.model import Entry, Evidence, Facets, Hit, Lives, Miss, Request
from semcache.plan import Exchange, Plan
from semcache.stores import header
from semcache.stores.fork import forking
from semcache.tier import Clock

if TYPE_CHECKING:
    from semcache.stores.memcached import Item
    from semcache.stores.outbox import Write

DEFAULT_PORT = 11211
MAX_NAME_BYTES = 250
_CLOSE_SECONDS = 5.0
# A log's name: a file's identity, or the position that a namespace of a Redis was last begun at.
_LONGEST_LOG = "0" * 32
_MARGIN_SECONDS = 60.0
# A sliding entry may end earlier than its last hit gave it by so much of its life: not each hit is a write.
_SLIDE_SHARE = 0.1
_MOST_SLIDES = 4096


class MemcachedTier:
    """An exact tier in the memcached at `url`; entries live at most `ttl` seconds.

    `timeout` is how long a read waits, in seconds. `marks` are this process's; `keeps_marks` says that another store
    keeps them, durably and for all: until `find` has named its log, everything is a miss. `on_fault` is told what goes
    wrong behind the callers. Raises ConfigurationError for what can never work; a memcached that is down makes misses.
    """

    name = "memcached"
    exact = True

    def __init__(
        self, url: str, *, namespace: str, ttl: float, clock: Clock, marks: Marks, keeps_marks: bool,
        on_fault: Callable[[str, BaseException], None], jitter: float = 0.0, timeout: float = 0.025,
        random: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        address = address_of(url)
        try:
            import pymemcache  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            raise MissingExtraError("memcached=", "memcached") from None
        from semcache.stores.memcached import open_outbox
        from semcache.stores.memcached_link import MemcachedLink

        names = _prefix(namespace, _LONGEST_LOG if keeps_marks else "")
        self._names = None if keeps_marks else names
        self._namespace = namespace
        self._ttl = ttl
        self._clock = clock
        self._marks = marks
        self._keeps_marks = keeps_marks
        self._jitter = jitter
        self._timeout = timeout
        self._random = random or Random().random  # noqa: S311 - spreads expiries, keeps no secret
        self._trusted_until = -inf if keeps_marks else inf
        self._slid: dict[bytes, float] = {}
        self._is_closed = False
        self._link = MemcachedLink(address)
        self._writer = open_outbox(self._link, marks.cover, clock.time, on_fault)
        forking().add(self)

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Look an entry up in one round trip; what waits to be written is found too."""
        self._check_open()
        names = self._names
        if names is None or self._clock.monotonic() >= self._trusted_until:
            return Miss("memcached: the log is not followed")
        name = _name(names, request.key)
        pending = self._writer.pending.get(request.key)
        if pending is not None and pending.what.name == name:
            return self._judge(request, pending.what.data, 0)
        replies = yield Exchange(self._link, [("gets", name)], self._timeout)
        data, cas = replies.values[0]
        if data is None:
            return Miss(waited_ns=replies.waited_ns)
        found = self._judge(request, data, replies.waited_ns)
        if isinstance(found, Hit) and found.entry.slide:
            self._slide(name, found, data, cas)
        return found

    def fetch(self, key: bytes, grace: float = 0.0) -> Plan[Hit | Miss]:
        """Look an entry up by its key alone: where memcached stands alone, marks are of keys alone.

        One that expired less than `grace` seconds ago is a hit without life.
        """
        lives = Lives(stale_while_revalidate=grace)
        return (yield from self.get(Request(key, facets=Facets(self._namespace), lives=lives)))

    def facets_of(self, key: bytes) -> Plan[Facets | None]:
        """Return the facets of the entry of a key; None where there is none, or the log is not followed."""
        self._check_open()
        if self._names is None:
            return None
        replies = yield Exchange(self._link, [("gets", _name(self._names, key))], self._timeout)
        told = header.peek(replies.values[0][0] or b"")
        return None if told is None else told[2].of(self._namespace)

    def _judge(self, request: Request, data: bytes, waited_ns: int) -> Hit | Miss:
        from semcache.stores.memcached import buried_at

        key = request.key
        if buried_at(data) is not None:
            return Miss(waited_ns=waited_ns)
        entry = header.read(key, data, self._clock.time(), request.lives.grace)
        if entry is None:
            return Miss(waited_ns=waited_ns)
        if entry.facets is not None:
            entry.facets.namespace = self._namespace
        if self._is_marked(key, entry.facets or request.facets, entry.born):
            return Miss(waited_ns=waited_ns)
        return Hit(entry, self.name, key, waited_ns=waited_ns)

    def _is_marked(self, key: bytes, facets: Facets, born: int) -> bool:
        return born < self._marks.newest and self._marks.cover(facets.of(self._namespace).pairs(key), born)

    def _slide(self, name: bytes, hit: Hit, data: bytes, cas: bytes) -> None:
        """Have the server keep a sliding entry for its life anew."""
        from semcache.stores.memcached import Item, expiry
        from semcache.stores.outbox import Write

        key, entry, now = hit.key, hit.entry, self._clock.monotonic()
        if now < self._slid.get(key, 0.0):
            return
        if len(self._slid) >= _MOST_SLIDES:
            self._slid = {}
        self._slid[key] = now + entry.slide * _SLIDE_SHARE
        with suppress(TierError):  # a full queue: it slides at another hit
            item = Item(name, data, expiry(min(entry.slide, entry.limit)), cas)
            self._writer.put(Write(key, item, size=len(data)))

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:  # noqa: ARG002
        """Hand an entry to the writer; beside a store it is passed over until that one's log is followed.

        Raises TierError: "full" where too much waits for it; without a store that keeps marks, also "unmarked" for an
        entry with tags or documents and "unpinned" for a pinned one. Raises EncodeError for too many facets.
        """
        self._check_open()
        facets, names = (entry.facets or request.facets).of(self._namespace), self._names
        if names is None or (entry.is_pinned and self._keeps_marks):
            return  # the store has it
        self._check_keepable(entry, facets)
        life = entry.life_in(self._ttl, is_store=not self._keeps_marks) * (1 - self._jitter * self._random())
        if life <= 0:
            return
        if self._is_marked(request.key, facets, entry.born):
            self._writer.refuse()
            return
        self._writer.put(self._write(_name(names, request.key), request.key, entry, facets, life))
        return
        yield

    def _check_keepable(self, entry: Entry, facets: Facets) -> None:
        if entry.is_pinned:
            raise TierError(
                "unpinned", "memcached forgets what it likes, so nothing can be pinned: add disk= or redis="
            )
        if not self._keeps_marks and (facets.tags or facets.documents):
            raise TierError(
                "unmarked",
                "an answer with tags or documents is not kept: memcached alone cannot invalidate by them; "
                "add disk= or redis=, which can",
            )

    def _write(self, name: bytes, key: bytes, entry: Entry, facets: Facets, life: float) -> Write[Item]:
        from semcache.stores.memcached import Item, expiry
        from semcache.stores.outbox import Write

        if entry.slide:
            entry = replace(entry, slide=min(entry.slide, life))
            stays = life  # the server's to end
        else:
            stays = min(life + entry.grace, entry.limit) + _MARGIN_SECONDS
        data = header.write(key, entry, facets, life, self._clock.time())
        return Write(key, Item(name, data, expiry(stays)), data, entry.born, facets.pairs(key), len(data))

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:
        """Drop what was born before a position: a key at the server too, what waits here in any case.

        For who invalidates, not for each that hears of it. Without a store that keeps marks a key is gone durably, or
        it raises InvalidationError, as for any other facet; with one, its mark holds also where the server is away.
        """
        self._check_open()
        self._marks.mark(facet, value, position)
        waiting = self._writer.drop([(facet, value)], position)
        if not isinstance(value, bytes):
            self._check_markable(facet)
            return 0
        stood = False
        try:
            stood = yield from self._bury(value, position)
        except TierError as error:
            if not self._keeps_marks:
                raise InvalidationError(f"the key could not be invalidated durably, try again: {error}") from error
        return int(stood or waiting > 0)

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many live entries an invalidation of these keys would drop. Raises as `remove` does."""
        found = 0
        for facet, value in pairs:
            if not isinstance(value, bytes):
                self._check_markable(facet)
                continue
            found += isinstance((yield from self.fetch(value)), Hit)
        return found

    def _check_markable(self, facet: str) -> None:
        if not self._keeps_marks:
            raise InvalidationError(
                f"memcached alone can only invalidate by key, not by {facet}: it keeps no marks; "
                "add disk= or redis=, which keeps them"
            )

    def _bury(self, key: bytes, position: int) -> Plan[bool]:
        """Put a tombstone where nothing born later stands; whether it took an entry's place."""
        from semcache.stores.memcached import LONGEST_LOAD_SECONDS, buried_at, outranks, settle, tombstone
        from semcache.stores.memcached_link import PATIENT_SECONDS

        if self._names is None:
            return False
        patience = self._timeout if self._keeps_marks else PATIENT_SECONDS

        def judge(standing: bytes | None) -> tuple[bytes, int] | None:
            older = None if standing is None else buried_at(standing)
            if older is None and standing is not None and outranks(standing, key, position - 1, self._clock.time()):
                return None
            return tombstone(max(position, older or 0)), LONGEST_LOAD_SECONDS

        name = _name(self._names, key)
        is_buried, stood = yield from settle(self._link, name, judge, looks=True, timeout=patience)
        return is_buried and stood is not None and buried_at(stood) is None

    # Following

    def lose(self, seconds: float) -> None:
        """Answer for so long at most: nobody can tell us of invalidations."""
        if self._keeps_marks:
            self._trusted_until = min(self._trusted_until, self._clock.monotonic() + seconds)

    def find(self, log: str) -> None:
        """Answer from now on what was kept beside this log: all its marks are known."""
        if self._keeps_marks:
            self._names = _prefix(self._namespace, log)
            self._trusted_until = inf

    # Life

    def stats(self) -> Mapping[str, int | float]:
        """Return what this process wrote, lost and has waiting; how many entries there are, a memcached cannot tell."""
        return self._writer.sizes()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is in the server; False where the time was up, or something was lost."""
        return self._writer.flush(timeout)

    def close(self) -> None:
        """Flush, for some seconds at most, and close every connection."""
        if self._is_closed:
            return
        self._is_closed = True
        forking().discard(self)
        self._writer.close(_CLOSE_SECONDS)
        self._link.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise TierError("closed", "the memcached tier was closed")

    def before_fork(self) -> None:
        """Nothing to hold: what is under way goes on in the parent alone."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew, with connections and a queue of one's own."""
        self._link.after_fork()
        self._writer.after_fork()
        if self._keeps_marks:
            self._names, self._trusted_until = None, -inf  # until the child follows the log by itself


def address_of(url: str) -> tuple[str, int]:
    """Read a URL. Raises ConfigurationError, with the mend."""
    form = f'memcached= is "memcached://host:{DEFAULT_PORT}"'
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{form}; got {_without_password(url)!r}: {error}") from error
    if not isinstance(url, str) or parts.scheme != "memcached" or not host or parts.path not in ("", "/"):
        raise ConfigurationError(f"{form}; got {_without_password(url)!r}")
    if "," in host:
        raise ConfigurationError(f"{form}, one server; got {url!r} (for several, give the address of a proxy)")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{form}; got {_without_password(url)!r}: a memcached is reached without a password and has no options here"
        )
    return host, DEFAULT_PORT if port is None else port


def _without_password(url: object) -> object:
    if not isinstance(url, str) or "@" not in url:
        return url
    return f"{url.partition('://')[0]}://...@{url.rpartition('@')[2]}"


def _name(names: bytes, key: bytes) -> bytes:
    return names + key.hex().encode()


def _prefix(namespace: str, log: str) -> bytes:
    prefix = f"semcache:{quote(namespace, safe='')}:{log and log + ':'}v:".encode()
    over = len(prefix) + 2 * KEY_BYTES - MAX_NAME_BYTES
    if over > 0:
        raise ConfigurationError(
            f"the namespace {namespace!r} is {over} bytes too long for memcached, whose keys have at most "
            f"{MAX_NAME_BYTES} (what is neither an ASCII letter, a digit nor one of _.-~ takes 3 a byte): shorten it"
        )
    return prefix
