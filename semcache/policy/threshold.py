"""The policy that everybody has: serve what is at least so similar, and what no guard refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from semcache.errors import ConfigurationError
from semcache.model import Decision, Neighbour, Verdict
from semcache.policy.guards import GUARDS, Guards
from semcache.policy.status import ThresholdStatus


class Threshold:
    """Serves near matches of at least this similarity (a cosine, -1 to 1).

    A cut does not transfer between embedders or domains: what serves 3% wrong answers here may serve 19% there.
    Measure yours with `semcache replay`. `guards` are the names of those that are on (docs/trust.md), None for none of
    them; `cross_encoder` is a second stage, as of an ErrorBudget. Raises ConfigurationError.
    """

    def __init__(self, cut: float, *, guards: Iterable[str] | None = GUARDS, cross_encoder: Any = None) -> None:
        if isinstance(cut, bool) or not isinstance(cut, int | float) or not -1 <= cut <= 1:
            raise ConfigurationError(f"a threshold is a cosine, from -1 to 1; got {cut!r}")
        self.cut = float(cut)
        self.guards = Guards(guards)
        self.cross_encoder = cross_encoder
        self._surroundings: Callable[[], list[str]] = list

    def surround(self, told: Callable[[], list[str]]) -> None:
        """Know what stands in the way where we work: of several caches, in the one that was made last."""
        self._surroundings = told

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        """Serve it if it is similar enough and no guard refuses it."""
        similarity = neighbour.similarity
        if similarity < self.cut:
            return Decision.below(self.cut, similarity)
        served = Decision(Verdict.REUSE, f"similarity {similarity:.4f} >= {self.cut:g}", similarity, self.cut)
        return self.guards.over(served, text, neighbour)

    def status(self) -> ThresholdStatus:
        """Return what it serves, what keeps its cache from that, and that nothing bounds its wrong share: print it."""
        return ThresholdStatus(self.cut, self.guards.listed, obstacles=tuple(self._surroundings()))

    def __repr__(self) -> str:
        names = self.guards.listed
        if len(names) == len(GUARDS):
            return f"Threshold({self.cut:g})"
        return f"Threshold({self.cut:g}, guards={list(names) or None})"


class UnmeasuredThresholdWarning(UserWarning):
    """A threshold was set that nobody has measured on this traffic."""


def warn_unmeasured(policy: object) -> None:
    """Say, once for each place that sets one, that a threshold is a guess until it is measured."""
    if isinstance(policy, Threshold):
        warnings.warn(
            f"{policy!r} is a guess until it is measured on your traffic and embedder: run `semcache replay` on a "
            "recording to see the wrong hits it serves",
            UnmeasuredThresholdWarning,
            stacklevel=3,
        )
