"""The values that pass between the parts: plain, slotted, without behaviour that does I/O.

A life is always told as seconds *remaining*, never as a clock reading, because each tier has a clock of its own;
only a tier turns a life into an expiry, in its own clock (law 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

if TYPE_CHECKING:
    from semcache.sources import Sources

Mode = Literal["live", "shadow", "exact", "refresh", "off"]
# No token or coin is lost in a float up to here.
_MOST = 2**53
MODES: tuple[Mode, ...] = ("live", "shadow", "exact", "refresh", "off")
SWITCHED: tuple[Mode, ...] = ("live", "shadow", "exact", "off")
"""What all replicas can be set to."""


class Shared(Enum):
    """The tenant of those who share their answers with everybody."""

    SHARED = "shared"


SHARED = Shared.SHARED
Tenant: TypeAlias = str | Shared


# By what an entry can be invalidated; each of the first six has one value or none, an entry has any number of the rest.
FACETS = ("key", "namespace", "function", "version", "tenant", "model", "tag", "document")


@dataclass(slots=True)
class Facets:
    """What an entry can be invalidated by beside its key; empty where it has no such facet."""

    namespace: str = ""
    function: str = ""
    version: str = ""
    tenant: str = ""
    model: str = ""
    tags: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    def pairs(self, key: bytes) -> list[tuple[str, str | bytes]]:
        """Return every (facet, value) of the entry of a key, its key first."""
        pairs: list[tuple[str, str | bytes]] = [("key", key), ("namespace", self.namespace)]
        if self.function:
            pairs.append(("function", self.function))
        if self.version:
            pairs.append(("version", self.version))
        if self.tenant:
            pairs.append(("tenant", self.tenant))
        if self.model:
            pairs.append(("model", self.model))
        pairs += [("tag", tag) for tag in self.tags]
        pairs += [("document", document) for document in self.documents]
        return pairs

    def of(self, namespace: str) -> Facets:
        """Return the same facets in a namespace."""
        return self if self.namespace == namespace else replace(self, namespace=namespace)

    def has(self, facet: str, value: str | bytes) -> bool:
        """Say whether an invalidation of this facet value means an entry with these facets; keys are not here."""
        if facet == "tag":
            return value in self.tags
        if facet == "document":
            return value in self.documents
        return facet != "key" and getattr(self, facet) == value


@dataclass(slots=True, frozen=True)
class Lives:
    """How long an answer may be served, in seconds; made once, when a cache or a function is.

    `ttl` is the entry's own life (None: each tier's ttl decides); `ttl_of` tells it of an answer (None: as before, 0:
    do not keep it). With `sliding` a hit gives it that life anew. At `max_age` it is gone, whatever its hits. Past its
    life it may be served for `stale_while_revalidate` more, while it is loaded anew, and for `stale_if_error` more
    where that load fails (RFC 5861).
    """

    ttl: float | None = None
    sliding: bool = False
    max_age: float = inf
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    ttl_of: Callable[[Any], Any] | None = None

    @property
    def grace(self) -> float:
        """Seconds past its life that an entry is worth keeping."""
        return max(self.stale_while_revalidate, self.stale_if_error)


FOREVER = Lives()


@dataclass(slots=True)
class Usage:
    """What a load cost beside its time: tokens, and money where its owner tells it rather than a table of prices.

    Of the `prompt_tokens`, which are all of the prompt, the provider read `cached_tokens` from its prompt cache, and
    wrote `cache_write_tokens` there. `model` is whose tokens they are, where the call itself does not say it.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    model: str = ""

    def packed(self) -> tuple[float | str, ...]:
        """Return it as it is stored: in order, as short as it was before there were the last three, where it can be."""
        told = self.prompt_tokens, self.completion_tokens, self.money
        has_more = self.cached_tokens or self.cache_write_tokens or self.model
        return (*told, self.cached_tokens, self.cache_write_tokens, self.model) if has_more else told


def as_usage(told: object) -> Usage | None:
    """Take what a user's callable told, in plain numbers that can be summed. Raises TypeError or ValueError."""
    if told is None:
        return None
    if not isinstance(told, Usage):
        raise TypeError(f"usage= returns a semcache.Usage or None; got a {type(told).__name__}")
    prompt, completion, money = int(told.prompt_tokens), int(told.completion_tokens), float(told.money)
    cached, written = int(told.cached_tokens), int(told.cache_write_tokens)
    if not all(0 <= number <= _MOST for number in (prompt, completion, money, cached, written)):
        raise ValueError(f"tokens and money are numbers from 0 on; got {told!r}")
    if cached + written > prompt:
        raise ValueError(
            f"prompt_tokens are all of the prompt, cached_tokens and cache_write_tokens with it; got {told!r}"
        )
    if not isinstance(told.model, str):
        raise TypeError(f"the model of a usage is its name; got {told.model!r}")
    return Usage(prompt, completion, money, cached, written, told.model)


@dataclass(slots=True)
class Request:
    """What a call means to the cache.

    `key` covers everything that can change the answer. `scope` covers everything that must be equal before `text`
    may be compared with another text; it is None where near matches are out of the question, and `exact_only` says
    why; `embedder` is the identity of the embedder whose vectors the scope holds (law 11). `tenanted` is True where
    the caller said whose near matches may be served. `lives` says how long the answer may be served, and how; `stage`
    is what its cost and time are booked on. `documents_of` tells of an answer which documents it holds, beside those
    in `facets`. `accepts` says of a stored answer whether this caller can use it (None: any): callers of one key may
    want it in several forms, of which not each can be made of each other. `sources` are the documents that the answers
    of its pipeline may be made of; None outside of one, and for what inherits none, as a vector.
    `family` is a digest of what a policy learns over, the scope without namespace, tenant and earlier turns;
    empty where no policy asks for it. `identify` finds in a stored answer the id that its provider gave it; `says`
    returns its text, as its reader sees it (None: the answer itself, or its JSON). `least` is the similarity below
    which this caller wants no near match, whatever the policy says; what is older than `oldest` seconds is a miss.
    """

    key: bytes
    scope: bytes | None = None
    text: str | None = None
    facets: Facets = field(default_factory=Facets)
    tenanted: bool = False
    lives: Lives = field(default_factory=lambda: FOREVER)
    mode: Mode = "live"
    embedder: str = ""
    exact_only: str | None = None
    stage: str = ""
    documents_of: Callable[[Any], Iterable[str]] | None = None
    accepts: Callable[[Any], bool] | None = None
    sources: Sources | None = None
    family: bytes = b""
    identify: Callable[[Any], str | None] | None = None
    says: Callable[[Any], str | None] | None = None
    least: float = -1.0
    oldest: float = inf

    def at(self, key: bytes) -> Request:
        """Return the same request of another key; `replace` would take ten times as long."""
        return Request(
            key, self.scope, self.text, self.facets, self.tenanted, self.lives, self.mode, self.embedder,
            self.exact_only, self.stage, self.documents_of, self.accepts, self.sources, self.family,
            self.identify, self.says, self.least, self.oldest,
        )  # fmt: skip


class Alike(Sequence[Request]):
    """Requests that differ in their keys alone; each is made when somebody wants it."""

    def __init__(self, one: Request, keys: list[bytes]) -> None:
        self.one = one
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> Alike: ...
    def __getitem__(self, place: int | slice) -> Request | Alike:
        keys = self.keys[place]
        return self.one.at(keys) if isinstance(keys, bytes) else Alike(self.one, keys)


@dataclass(slots=True)
class Entry:
    """A stored answer on its way into or out of the tiers; all lives are seconds that *remain*.

    `value` is the encoded answer. At the end of its `life` it is stale (infinite: each tier's own ttl decides; below
    zero: stale for so long); `own_ttl` says that the life is the entry's own, which sets its life in the store. For
    `grace` seconds more it may be kept, to be served stale. `slide` is the life that a hit gives it anew (0: none), and
    after `limit` it must go, whatever its hits. `born` is the log position at which its load began, `load_seconds` and
    `usage` what the load took. `facets` are its own where they are known: who asks may have named other tags.
    """

    value: bytes
    life: float = inf
    own_ttl: bool = False
    born: int = 0
    age: float = 0.0
    load_seconds: float = 0.0
    grace: float = 0.0
    slide: float = 0.0
    limit: float = inf
    is_pinned: bool = False
    facets: Facets | None = None
    usage: Usage | None = None

    def life_in(self, ttl: float, *, is_store: bool) -> float:
        """Return the life that a tier of this ttl gives the entry (law 5): in the store its own, if it has one."""
        if self.is_pinned and is_store:
            return inf
        return min(self.life if self.own_ttl and is_store else min(ttl, self.life), self.limit)


@dataclass(slots=True)
class Hit:
    """An answer found: `entry.life` is what remains of it in the tier that gave it.

    `waited_ns` are the nanoseconds that went into waiting for a connection.
    """

    entry: Entry
    tier: str
    key: bytes
    similarity: float | None = None
    evidence: Evidence | None = None
    waited_ns: int = 0


@dataclass(slots=True)
class Match:
    """The near match of a request: the first neighbour that no guard refuses and whose answer, `value`, is at hand.

    `is_drawn` says whether it is one of the sample that bounds are made of; None until it was drawn or not. One that
    `is_doubted` a second stage is still to be asked of: if that refuses it, it is no near match.
    """

    neighbour: Neighbour
    value: bytes
    is_drawn: bool | None = None
    is_doubted: bool = False

    @property
    def key(self) -> bytes:
        return self.neighbour.key


@dataclass(slots=True)
class Evidence:
    """What a miss learned on its way, so that the store that follows computes nothing twice.

    `vector` is a float32[d] unit vector of the request's text, `neighbours` the nearest rows, nearest first, and
    `stages` what embed, search and decide took, in turn, each until when: nanoseconds, and a reading of
    `perf_counter_ns`, or 0 where another process took them. `match` is there for a policy that learns, `audited`
    what would have been served, with its answer, and is loaded to be compared. `is_drawn` says whether the request is
    one of a shadow embedder's sample; None until it was drawn or not.
    """

    vector: Any = None
    neighbours: list[Neighbour] = field(default_factory=list)
    decision: Decision | None = None
    stages: list[tuple[str, int, int]] = field(default_factory=list)
    match: Match | None = None
    audited: tuple[Hit, Any] | None = None
    is_drawn: bool | None = None


@dataclass(slots=True)
class Miss:
    """No answer here: `reason` is None where it is simply not there."""

    reason: str | None = None
    evidence: Evidence | None = None
    waited_ns: int = 0


@dataclass(slots=True)
class Neighbour:
    """A row of the index near to a text: `similarity` is the cosine, -1 to 1.

    `vector` is its text's float32[d] unit vector, where the search gives it; `score` is what a policy that learns takes
    for the chance that its answer is right, 0 to 1, where one has said so; `rates` is that of each score which it uses
    or tests, by the score's number.
    """

    key: bytes
    similarity: float
    text: str
    vector: Any = None
    score: float | None = None
    rates: dict[int, float] | None = None


BELOW = "below the cut"
"""How the reason of a near match begins that was not near enough; the figures follow it."""


class Verdict(Enum):
    """What a policy says of a near match."""

    REUSE = "reuse"
    EXPLORE = "explore"
    REJECT = "reject"


@dataclass(slots=True)
class Decision:
    """A policy's word on one near match, with the cut it used and the reason in words.

    `guard` names the guard that refused it, if one did. Where a learned `score` decided, the cut is one of the score.
    """

    verdict: Verdict
    reason: str
    similarity: float | None = None
    cut: float | None = None
    guard: str = ""
    score: float | None = None

    @classmethod
    def below(cls, cut: float, similarity: float, score: float | None = None) -> Decision:
        """Reject what does not reach the cut, naming both."""
        what, value = ("similarity", similarity) if score is None else ("score", score)
        return cls(Verdict.REJECT, f"{BELOW}: {what} {value:.4f} < {cut:g}", similarity, cut, score=score)
