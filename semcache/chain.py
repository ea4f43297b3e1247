"""What the lookups of one cache share, and what a leader hands to its followers: values, no procedure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from semcache.codec import Codec
from semcache.events import Event, Kind, Recorder
from semcache.flight import Flights
from semcache.labelling import Labelling
from semcache.model import Hit, Request, Usage
from semcache.nearby import Nearby
from semcache.plan import Crew
from semcache.shadowing import Shadowing
from semcache.sources import Birth
from semcache.tier import Breaker, Tier
from semcache.trace import followed


@dataclass(slots=True)
class Landing:
    """What a leader hands to its followers: the encoded answer, or the origin's error; neither: load yourself.

    `near` says that the answer is a near match's, which not every follower may be given. `documents` is what it is made
    of, but for what an answer tells itself (None: not all is known), since the position `born`. With `is_kept` it was
    loaded, and may be served to others from now on; what was found is `age` seconds old.
    """

    value: bytes | None = None
    error: BaseException | None = None
    load_seconds: float = 0.0
    near: Hit | None = None
    usage: Usage | None = None
    documents: tuple[str, ...] | None = ()
    born: int = 0
    is_kept: bool = False
    age: float = 0.0


@dataclass(slots=True)
class Chain:
    """What a lookup needs of its cache: the ordered tiers, each behind its breaker, and what they share.

    `in_place` is the place of the exact tier that answers `peek` in the caller's own thread, as a file does; `crew`
    loads anew, behind the callers, what was served stale; `labelling` compares answers for a policy that learns,
    `shadowing` learns of a second embedder's matches.
    With `names_tenants` events say whose calls they are. `nearby` knows which texts are loading, where there are near
    matches.
    """

    tiers: Sequence[tuple[Tier, Breaker]]
    codec: Codec
    recorder: Recorder
    position: Callable[[], int]
    birth: Birth
    flight_timeout: float
    max_value_bytes: int
    crew: Crew
    flights: Flights[Landing] = field(default_factory=Flights)
    in_place: int | None = None
    names_tenants: bool = False
    labelling: Labelling | None = None
    nearby: Nearby | None = None
    is_closed: bool = False
    shadowing: Shadowing | None = None

    @property
    def why_off(self) -> str:
        """Why nothing is looked up, where nothing is: the cache was closed, or somebody switched it off."""
        return "closed" if self.is_closed else "mode: off"

    @property
    def learning(self) -> list[Labelling]:
        """What compares answers, for the policy in use and for a shadow embedder's."""
        beside = None if self.shadowing is None else self.shadowing.labelling
        return [labelling for labelling in (self.labelling, beside) if labelling is not None]

    def audit_failed(self) -> None:
        """Say that the load of a match failed that was made to compare it."""
        for learns in (self.labelling, self.shadowing):
            if learns is not None:
                learns.failed()

    def begin(self, kind: Kind, request: Request) -> Event:
        """Begin the event of a request."""
        facets = request.facets
        event = Event(
            kind, facets.function, facets.namespace, key=request.key, stage=request.stage, model=facets.model,
            tenant=facets.tenant if self.names_tenants else "", identify=request.identify,
            text=request.text,
        )  # fmt: skip
        event.watch = followed(self.recorder.observers, event)
        return event


@dataclass(slots=True)
class Origin:
    """What loads an answer, which answers are worth keeping, and what loading one has cost."""

    load: Callable[[], Any]
    keeps: Callable[[Any], Any] | None = None
    usage: Callable[[Any], Usage | None] | None = None
