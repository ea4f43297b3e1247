"""The policies that learn: `ErrorBudget`, which serves what the labels allow, and `Shadow`, which serves nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from semcache.model import Decision, Neighbour, Verdict
from semcache.policy.eprocess import CUTS, check_budget
from semcache.policy.equivalent import Comparator, Judge
from semcache.policy.guards import GUARDS
from semcache.policy.learner import Learner
from semcache.policy.scoring import rank_of


class ErrorBudget(Learner):
    """Serves near matches of which at most a share of `max_wrong` is wrong, as its labels prove it with `confidence`.

    It learns from the traffic itself: what is loaded although there was a near match is compared with that match's
    answer. So at first it serves nothing, and at 0.01 needs some 600 labels of good matches; `status()` says how
    many it has. `judge` takes the stored answer and the fresh one and says True, False or None (it does not know, which
    counts as wrong), or an awaitable of it; without one answers are the same where texts, numbers and JSON are.
    `guards` are the names of those that are on (docs/trust.md). With `learn_score` labelled pairs of texts are kept in
    the process's memory, and teach a score that rates matches better than their cosine. `cross_encoder` is a second
    stage: a model's folder or name, or a `semcache.CrossEncoder`, asked of what would be served and is in doubt. Make
    one for each cache. Raises ConfigurationError.
    """

    budget: float

    def __init__(
        self, max_wrong: float, confidence: float = 0.95, *, guards: Iterable[str] | None = GUARDS,
        judge: Judge | Comparator | None = None, learn_score: bool = False, cross_encoder: Any = None,
    ) -> None:  # fmt: skip
        budget, confidence = check_budget(max_wrong, confidence)
        super().__init__(budget, confidence, guards, judge, learn_score=learn_score, cross_encoder=cross_encoder)

    def twin(self) -> ErrorBudget:
        return ErrorBudget(
            self.budget, self.confidence, guards=self.guards.names, judge=self.comparator.twin(),
            learn_score=self.learns_score, cross_encoder=self.cross_encoder,
        )  # fmt: skip

    @property
    def serves(self) -> bool:
        """Whether a cut is open in some family."""
        return any(place is not None for place in list(self._open.values()))

    def decision(self, place: int | None, why: str, neighbour: Neighbour) -> Decision:
        """Serve what is at or above the lowest open cut."""
        rank, similarity = rank_of(neighbour), neighbour.similarity
        if place is None:
            return Decision(Verdict.REJECT, f"no cut is open for {why}", similarity)
        cut = CUTS[place]
        if rank < cut:
            return Decision.below(cut, similarity, neighbour.score)
        what = "similarity" if neighbour.score is None else "score"
        return Decision(Verdict.REUSE, f"{what} {rank:.4f} >= {cut:g}, open for {why}", similarity, cut)

    def __repr__(self) -> str:
        return f"ErrorBudget({self.budget:g}, confidence={self.confidence:g})"


class Shadow(Learner):
    """The policy where none is given: near matches are found, compared and recorded, never served.

    `status()` says what an ErrorBudget would have served. The other settings are as there.
    """

    serves = False

    def __init__(
        self, *, confidence: float = 0.95, guards: Iterable[str] | None = GUARDS,
        judge: Judge | Comparator | None = None, learn_score: bool = False, cross_encoder: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(None, confidence, guards, judge, learn_score=learn_score, cross_encoder=cross_encoder)

    def twin(self) -> Shadow:
        return Shadow(
            confidence=self.confidence, guards=self.guards.names, judge=self.comparator.twin(),
            learn_score=self.learns_score, cross_encoder=self.cross_encoder,
        )  # fmt: skip

    def decision(self, place: int | None, why: str, neighbour: Neighbour) -> Decision:  # noqa: ARG002 - the same for all
        """Reject, whatever is asked."""
        return Decision(Verdict.REJECT, "shadow: no policy is set", neighbour.similarity)

    def __repr__(self) -> str:
        return "Shadow()"
