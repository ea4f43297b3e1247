"""Texts that are being loaded right now, by scope: who asks for a near one may wait for what they bring.

Laws:
- only what a call loads itself stands here, and from the moment it is begun it waits for no other text; so nobody who
  waits for it waits for a chain, and no answer drifts from A over B to C (law 3);
- to see that nobody near is loading, and to be seen oneself, is one step: of two who come at once one sees the other;
- it stays until the index has its row: who searched before that, and asks here after it, is told to search again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol

from semcache.flight import Flight
from semcache.model import Decision, Hit, Miss, Neighbour, Request
from semcache.plan import Plan

# So many texts of a scope, the latest, are compared with at most.
_MOST_LOADING = 128
# So many scopes are known in which a load has ended.
_MOST_ENDED = 1024


class NearTier(Protocol):
    """What is asked of the semantic tier."""

    @property
    def serves(self) -> bool: ...
    def get(self, request: Request) -> Plan[Hit | Miss]: ...
    def vectors(self, texts: list[str]) -> Plan[list[Any]]: ...
    def judge(self, request: Request, vector: Any, neighbour: Neighbour) -> Decision: ...


@dataclass(slots=True, eq=False)
class Loading:
    """A text on its way: its flight, its request, and its float32[d] unit vector, once somebody has wanted it."""

    flight: Flight[Any]
    request: Request
    vector: Any = None
    is_unseen: bool = False  # the embedder does not see it whole: nothing is near to it


class Nearby:
    """The loads of one cache that near requests may wait for, and the tier that says what is near."""

    def __init__(self, tier: NearTier) -> None:
        self.tier = tier
        self.ended = 0  # so many loads so far
        self._loading: dict[bytes, dict[Flight[Any], Loading]] = {}
        self._ended: dict[bytes, int] = {}
        self._lock = RLock()  # the collector may end an abandoned load while this thread holds it

    @property
    def serves(self) -> bool:
        """Whether the policy can serve anything near."""
        return self.tier.serves

    def __len__(self) -> int:
        return sum(map(len, self._loading.values()))

    def meet(self, one: Loading, met: Collection[Flight[Any]], since: int) -> tuple[list[Loading], bool]:
        """Return who else loads in the scope of one, without those met, and whether a load there has ended since.

        Where there is neither, `one` begins to load.
        """
        scope = one.request.scope or b""
        with self._lock:
            others = [each for flight, each in self._loading.get(scope, {}).items() if flight not in met]
            has_ended = self._ended.get(scope, 0) > since
            if not others and not has_ended:
                self.begin(one)
            return others[-_MOST_LOADING:], has_ended

    def begin(self, one: Loading) -> None:
        """Let others see what a call begins to load."""
        with self._lock:
            self._loading.setdefault(one.request.scope or b"", {})[one.flight] = one

    def end(self, flight: Flight[Any], scope: bytes | None, *, is_kept: bool) -> None:
        """Let nobody see a load any more, if it was seen; where its answer was kept, the index has it now."""
        if scope not in self._loading:
            return
        with self._lock:
            loading = self._loading.get(scope, {})
            if loading.pop(flight, None) is None:
                return
            if not loading:
                del self._loading[scope]
            if is_kept:
                self.ended += 1
                self._ended.pop(scope, None)
                self._ended[scope] = self.ended
                if len(self._ended) > _MOST_ENDED:
                    del self._ended[next(iter(self._ended))]

    def forget(self) -> None:
        """Begin anew: after a fork, what was loading is the parent's."""
        self._loading = {}
        self._lock = RLock()
