"""The ledger of near matches that were served, of seven days: what was asked, what was given, how near; for `blast`.

Laws:
- in a lookup a row is noted and nothing more: it is made, and handed to the store, by who books what was saved;
- API keys, addresses and card numbers are replaced by marks before a row goes anywhere, and texts are cut short, so a
  number of rows is a number of bytes; a tenant is told by a digest;
- what waits here is bounded, and so is what is kept where there is no store: the oldest goes first;
- beside the rows stand the ids of clients' answers (`chatcmpl-...`), each with its entry's key, for as long.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from semcache.blocks import words_of
from semcache.model import Hit, Request

if TYPE_CHECKING:
    from semcache.events import Event
    from semcache.redact import Redactor

KEEP_SECONDS = 7 * 86_400.0
# Rows of a namespace in a store; with texts cut at TEXT_BYTES one takes less than ROW_BYTES.
MAX_ROWS = 50_000
TEXT_BYTES = 256
ROW_BYTES = 1024
# The ids of answers: 36 bytes each, and what the store adds.
MAX_NAMES = 100_000
_MOST_WAITING = 10_000
# Where there is no store, so many stay here.
_MOST_HERE = 2_000
# So much of a text is read for secrets: what is cut inside one is far behind what is kept.
_MOST_READ = 4096
_ID_BYTES = 16
_TENANT_BYTES = 8


@dataclass(slots=True)
class Near:
    """What a near match was made of, as its event tells it: both texts, whose they are, and what ranked it."""

    text: str
    neighbour: str
    family: bytes = b""
    tenant: str = ""
    score: float | None = None


class Served(NamedTuple):
    """A near match that was served: when (seconds since 1970), to which key, from which, and how near (a cosine).

    Both texts are redacted and cut short. `words` is the digest that a block knows the text by, `tenant` one of whose
    it was, empty where all share; `response_id` is the id of the client's answer that was given, where it has one.
    """

    at: float
    asked: bytes
    stored: bytes
    similarity: float
    text: str
    neighbour: str
    words: bytes
    tenant: bytes = b""
    family: bytes = b""
    response_id: str = ""


def near_of(request: Request, hit: Hit) -> Near:
    """Return what a near match was made of."""
    for near in () if hit.evidence is None else hit.evidence.neighbours:
        if near.key == hit.key:
            return Near(request.text or "", near.text, request.family, request.facets.tenant, near.score)
    return Near(request.text or "", "", request.family, request.facets.tenant)


def tenant_digest(tenant: str) -> bytes:
    """Return what a tenant is told by in a row; nothing for those who share."""
    return blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=_TENANT_BYTES).digest() if tenant else b""


def id_digest(response_id: str) -> bytes:
    """Return what a store knows an answer's id by."""
    return blake2b(response_id.encode("utf-8", "surrogatepass"), digest_size=_ID_BYTES).digest()


# When, the keys asked and stored, how near, what it was made of, the id of the answer.
_Noted = tuple[float, bytes, bytes | None, float, Near | None, str | None]


class Taken(NamedTuple):
    """What a store is to keep: rows, and keys by the digests of their answers' ids."""

    rows: list[Served]
    names: dict[bytes, bytes]


class Ledger:
    """Rows on their way into the store; where they `stay` there is none. `clock` is seconds since 1970."""

    def __init__(self, clock: Callable[[], float], *, stay: bool = False) -> None:
        self._clock = clock
        self._most = _MOST_HERE if stay else _MOST_WAITING
        self._redactor: Redactor | None = None
        # Noted without a lock: appending is atomic.
        self._noted: deque[_Noted] = deque(maxlen=self._most)
        self._lock = Lock()
        self._rows: deque[Served] = deque(maxlen=self._most)
        self._names: dict[bytes, bytes] = {}

    def note(self, event: Event, answer: Any) -> None:
        """Note a lookup, where it was answered by a near match or has loaded an answer with an id."""
        if event.identify is not None and not event.failed and (event.near is not None or event.kind != "hit"):
            event.response_id = event.response_id or event.identify(answer)
        if (event.near is not None or event.response_id) and event.kind != "bypass":
            similarity = event.similarity or 0.0
            self._noted.append(
                (self._clock(), event.key, event.neighbour, similarity, event.near, event.response_id)
            )  # fmt: skip

    def _turn(self) -> None:
        """Make rows of what was noted; the lock is held."""
        while self._noted:
            at, asked, stored, similarity, near, response_id = self._noted.popleft()
            if near is not None and stored is not None:
                texts = self._shown(near.text), self._shown(near.neighbour)
                whose = words_of(near.text), tenant_digest(near.tenant), near.family
                self._rows.append(Served(at, asked, stored, similarity, *texts, *whose, response_id or ""))
            if response_id:
                self._names.pop(digest := id_digest(response_id), None)
                self._names[digest] = stored or asked
                if len(self._names) > _MOST_WAITING:
                    self._names.pop(next(iter(self._names)), None)

    def _shown(self, text: str) -> str:
        if self._redactor is None:
            from semcache.redact import Redactor

            self._redactor = Redactor(os.urandom(32))  # nobody can tell from a mark what it stands for
        told = self._redactor.text(text[:_MOST_READ]).encode("utf-8", "replace")
        return told[:TEXT_BYTES].decode("utf-8", "ignore")

    def take(self) -> Taken:
        """Take what waits, to be kept by the store."""
        with self._lock:
            self._turn()
            rows, names = list(self._rows), self._names
            self._rows.clear()
            self._names = {}
        return Taken(rows, names)

    def put_back(self, taken: Taken) -> None:
        """Have what the store could not take wait again."""
        with self._lock:
            room = self._most - len(self._rows)
            self._rows.extendleft(reversed(taken.rows[-room:] if room else []))
            self._names = dict(list({**taken.names, **self._names}.items())[-_MOST_WAITING:])

    def standing(self) -> Taken:
        """Return what is here, of the last seven days, and leave it."""
        since = self._clock() - KEEP_SECONDS
        with self._lock:
            self._turn()
            while self._rows and self._rows[0].at < since:
                self._rows.popleft()
            return Taken(list(self._rows), dict(self._names))

    def after_fork(self) -> None:
        """Begin anew: what waits is the parent's to hand over."""
        self._lock = Lock()
        self._noted.clear()
        self._rows.clear()
        self._names = {}


def selected(rows: Iterable[Served], wanted: Mapping[str, bytes]) -> list[Served]:
    """Return the rows that have all of some values: of "asked", "stored", "words", "tenant"."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
