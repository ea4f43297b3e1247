"""The values that pass between the parts: plain, slotted, without behaviour that does I/O.

A life is always told as seconds *remaining*, never as a clock reading, because each tier has a clock of its own;
only a tier turns a life into an expiry, in its own clock (law 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Literal, TypeAlias

Mode = Literal["live", "shadow", "exact", "refresh", "off"]
MODES: tuple[Mode, ...] = ("live", "shadow", "exact", "refresh", "off")


class Shared(Enum):
    """The tenant of those who share their answers with everybody."""

    SHARED = "shared"


SHARED = Shared.SHARED
Tenant: TypeAlias = str | Shared


@dataclass(slots=True)
class Facets:
    """What an entry can be invalidated by; empty where it has no such facet."""

    namespace: str = ""
    function: str = ""
    version: str = ""
    tenant: str = ""
    model: str = ""


@dataclass(slots=True)
class Request:
    """What a call means to the cache.

    `key` covers everything that can change the answer. `scope` covers everything that must be equal before `text`
    may be compared with another text; it is None where near matches are out of the question, and `exact_only` says
    why; `embedder` is the identity of the embedder whose vectors the scope holds (law 11). `tenanted` is True where
    the caller said whose near matches may be served. `ttl` is the entry's own life in seconds.
    """

    key: bytes
    scope: bytes | None = None
    text: str | None = None
    facets: Facets = field(default_factory=Facets)
    tenanted: bool = False
    ttl: float | None = None
    mode: Mode = "live"
    embedder: str = ""
    exact_only: str | None = None


@dataclass(slots=True)
class Entry:
    """A stored answer on its way into the tiers.

    `value` is the encoded answer. `life` is the seconds that remain to it (infinite: each tier's own ttl decides);
    `own_ttl` says that the life is the entry's own, which sets its life in the store. `born` is the log position at
    which its load began. `load_seconds` is what the origin took.
    """

    value: bytes
    life: float = inf
    own_ttl: bool = False
    born: int = 0
    age: float = 0.0
    load_seconds: float = 0.0


@dataclass(slots=True)
class Hit:
    """An answer found: `entry.life` is what remains of it in the tier that gave it."""

    entry: Entry
    tier: str
    key: bytes
    similarity: float | None = None
    evidence: Evidence | None = None


@dataclass(slots=True)
class Evidence:
    """What a miss learned on its way, so that the store that follows computes nothing twice.

    `vector` is a float32[d] unit vector of the request's text, `neighbours` the nearest rows, nearest first, and
    `stages` the nanoseconds that embed, search and decide took.
    """

    vector: Any = None
    neighbours: list[Neighbour] = field(default_factory=list)
    decision: Decision | None = None
    stages: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Miss:
    """No answer here: `reason` is None where it is simply not there."""

    reason: str | None = None
    evidence: Evidence | None = None


@dataclass(slots=True)
class Neighbour:
    """A row of the index near to a text: `similarity` is the cosine, -1 to 1."""

    key: bytes
    similarity: float
    text: str


class Verdict(Enum):
    """What a policy says of a near match."""

    REUSE = "reuse"
    EXPLORE = "explore"
    REJECT = "reject"


@dataclass(slots=True)
class Decision:
    """A policy's word on one near match, with the cut it used and the reason in words."""

    verdict: Verdict
    reason: str
    similarity: float | None = None
    cut: float | None = None
