"""Many plans carried out as one: what they ask of one server goes in one trip, what they load is loaded in one call.

Laws: each plan sees exactly what it would see alone, so no procedure is written twice for many; nothing waits for
somebody else's flight before our own loads have landed, so two callers who each lead what the other wants never wait
for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from time import monotonic
from typing import Any, cast

from semcache.plan import Exchange, Follow, Load, Outcome, Plan, Step, Wait


def together(plans: Sequence[Plan[Any]], load: Callable[[list[int]], Any] | None = None) -> Plan[list[Outcome[Any]]]:
    """Carry out plans side by side; the outcome of each, in their order.

    `load` is given the places of the plans that want to load, and returns as many answers.
    """
    crowd = _Crowd(plans)
    try:
        for place in range(len(plans)):
            crowd.go(place, None)
        while crowd.steps:
            yield from crowd.next(load)
    except BaseException as error:
        crowd.stop(error)
        raise
    return crowd.outcomes


class _Crowd:
    """Plans under way: the step that each waits for, in the order in which they came to it."""

    def __init__(self, plans: Sequence[Plan[Any]]) -> None:
        self.plans = plans
        self.steps: dict[int, Step] = {}
        # Since when each waits: those that came to their steps in one round, since the same moment.
        self.since: dict[int, float] = {}
        self._now = monotonic()
        self.outcomes: list[Outcome[Any]] = [Outcome() for _ in plans]

    def go(self, place: int, result: Any, error: BaseException | None = None) -> None:
        """Give a plan what its step brought, and take its next."""
        self.steps.pop(place, None)
        self.since[place] = self._now
        plan = self.plans[place]
        try:
            self.steps[place] = plan.send(result) if error is None else plan.throw(error)
        except StopIteration as stop:
            self.outcomes[place].value = stop.value
        except Exception as raised:  # noqa: BLE001 - it is that plan's, and whoever wants its outcome is told
            self.outcomes[place].error = raised

    def stop(self, error: BaseException) -> None:
        """Let every plan clean up after what stops them all."""
        for place in reversed(list(self.steps)):
            with suppress(BaseException):  # the caller raises what stopped them
                self.plans[place].throw(error)

    def next(self, load: Callable[[list[int]], Any] | None) -> Plan[None]:
        """Take one step for as many plans as it serves: servers first, then loads, then the flights of others."""
        self._now = monotonic()
        exchanges: dict[int, list[int]] = {}
        for place, step in self.steps.items():
            if isinstance(step, Exchange):
                exchanges.setdefault(id(step.peer), []).append(place)
        if exchanges:
            yield from self._exchange(next(iter(exchanges.values())))
            return
        overdue = [place for place, step in self.steps.items() if isinstance(step, Follow) and self._left(place) == 0]
        loads = [place for place, step in self.steps.items() if isinstance(step, Load)]
        alone = [place for place, step in self.steps.items() if not isinstance(step, Load | Follow)] or overdue
        if alone or not loads or load is None:
            yield from self._alone((alone or loads or list(self.steps))[0])
        else:
            yield from self._load(loads, load)

    def _left(self, place: int) -> float | None:
        """Return how long a plan waits still: its time began when it came to its step, not when its turn comes."""
        timeout = getattr(self.steps[place], "timeout", None)
        return None if timeout is None else max(0.0, timeout - (monotonic() - self.since[place]))

    def _alone(self, place: int) -> Plan[None]:
        step = self.steps[place]
        try:
            result = yield type(step)(step.future, self._left(place)) if isinstance(step, Wait) else step
        except Exception as error:  # noqa: BLE001 - the plan decides what a failed step means
            self.go(place, None, error)
        else:
            self.go(place, result)

    def _exchange(self, places: list[int]) -> Plan[None]:
        steps: list[Exchange] = [self.steps[place] for place in places]  # type: ignore[misc]
        if len(steps) == 1:
            yield from self._alone(places[0])
            return
        peer = steps[0].peer
        asked, split = peer.join([step.asked for step in steps])
        try:
            replies = split((yield Exchange(peer, asked, min(step.timeout for step in steps))))
        except Exception as error:  # noqa: BLE001 - each plan decides what a failed step means
            for place in places:
                self.go(place, None, error)
        else:
            for place, reply in zip(places, replies, strict=True):
                self.go(place, reply)

    def _load(self, places: list[int], load: Callable[[list[int]], Any]) -> Plan[None]:
        wanted = sorted(places)
        outcome: Outcome[Any] = yield Load(lambda: load(wanted))
        answers: dict[int, Outcome[Any]] = {}
        if outcome.error is None:
            told = outcome.value
            # Not of a text or a dict, whose items would pass for answers.
            is_list = isinstance(told, Iterable) and not isinstance(told, str | bytes | Mapping | AbstractSet)
            listed = list(cast("Iterable[Any]", told)) if is_list else []
            if is_list and len(listed) == len(wanted):
                answers = {place: Outcome(one, shares=len(wanted)) for place, one in zip(wanted, listed, strict=True)}
            else:
                got = f"{len(listed)}" if is_list else f"a {type(told).__name__}"
                asked = f"load is asked for a list of {len(wanted)} answers, in order"
                outcome.error = TypeError(f"{asked}; it returned {got}")
        # The last to come here is the first to go on: each has set the context, and sets it back.
        for place in reversed(places):
            self.go(place, answers.get(place) or Outcome(error=outcome.error, shares=len(wanted)))
