"""An error budget in a replay: it learns of a recording, by its labels, what it would have learned of the traffic.

Laws: a label is what the recording says of two requests: by their `answer_id`s, else by their responses and the
policy's comparator, and where neither tells it is wrong; every comparison is done before the next request is asked, so
that a replay comes out the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from semcache.cache import Cache
from semcache.model import Request
from semcache.policy import ErrorBudget, Policy
from semcache.policy.equivalent import Comparator
from semcache.policy.status import PolicyStatus
from semcache.replay.player import Witness
from semcache.replay.recording import Asked
from semcache.replay.score import is_wrong


class Change(NamedTuple):
    """What the budget allowed, or no longer did: after so many requests, `ts` seconds after the begin."""

    requests: int
    ts: float
    what: str


@dataclass(slots=True)
class Learned:
    """What an error budget learned in a replay: each change of what it served, and what it knew at the end."""

    changes: list[Change] = field(default_factory=list)
    status: PolicyStatus | None = None


class Rehearsed(ErrorBudget):
    """An error budget whose decisions a player's witness sees, and whose labels are those of a recording."""

    def __init__(self, policy: ErrorBudget) -> None:
        self.recorded = Recorded(policy.comparator)
        super().__init__(policy.budget, policy.confidence, guards=policy.guards.names, judge=self.recorded)
        self.witness = Witness(self)
        self.learned = Learned()
        self._asking: Asked | None = None

    def within(self, request: Request) -> Witness:  # type: ignore[override]  # it decides as what it stands before
        return self.witness.deciding(super().within(request))

    def bind(
        self, owner: Callable[[], bool], now: Callable[[], float], audit: float, tell: Callable[..., None]
    ) -> None:
        def told(what: str, name: str) -> None:
            one = self._asking
            if one is not None:
                self.learned.changes.append(Change(one.position + 1, one.ts, what))
            tell(what, name)

        super().bind(owner, now, audit, told)

    def take(self, asked: Sequence[Asked]) -> None:
        """Take the labels of these requests."""
        self.recorded.asked = asked
        for one in asked:
            if one.request is not None:
                one.request.says = _position

    def begin(self, one: Asked) -> None:
        """Take note of who asks."""
        self._asking = one

    def settle(self, cache: Cache) -> None:
        """Wait until what was loaded is compared."""
        if cache.chain.labelling is not None:
            cache.chain.labelling.flush()


class Recorded(Comparator):
    """Compares answers that name the requests that loaded them, as the recording's labels do."""

    def __init__(self, comparator: Comparator) -> None:
        super().__init__()
        self.asked: Sequence[Asked] = ()
        self._comparator = comparator

    def equivalent(self, cached: str, fresh: str) -> bool | None:
        maker, one = self.asked[int(cached)], self.asked[int(fresh)]
        wrong = is_wrong(one, maker)
        if wrong is not None:
            return not wrong
        if one.has_response and maker.has_response:
            return self._comparator.equivalent(maker.answer or "", one.answer or "")
        return None


def rehearsed(policy: Policy | None) -> Rehearsed | None:
    """Return what replays an error budget; None for another policy."""
    return Rehearsed(policy) if isinstance(policy, ErrorBudget) else None


def _position(value: list[object]) -> str:
    """Return what a player's answer says: whose it is."""
    return str(value[0])
