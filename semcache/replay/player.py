"""Asks a cache what a recording asks, request by request, and notes how each was answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

from semcache.cache import Cache
from semcache.events import Event, last
from semcache.model import Decision, Neighbour, Request
from semcache.policy import Policy, within
from semcache.replay.recording import Asked
from semcache.replay.score import NEAR, Outcome


class Witness:
    """A policy that decides as another one does, and remembers which neighbour each decision was about.

    An event tells a decision, but names the neighbour only where it was served.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._here = threading.local()

    @property
    def serves(self) -> bool:
        """Whether the other one can serve anything."""
        return bool(getattr(self.policy, "serves", True))

    def within(self, request: Request) -> Witness:
        """Decide as the other one does for a request."""
        return self.deciding(within(self.policy, request))

    def deciding(self, policy: Policy) -> Witness:
        """Decide as this one does, in this thread's lookup."""
        self._here.policy = policy
        return self

    @property
    def rank(self) -> Callable[..., list[Neighbour]] | None:
        """How the other one ranks neighbours, if it does."""
        found: Callable[..., list[Neighbour]] | None = getattr(self._here.policy, "rank", None)
        return found

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        decision: Decision = self._here.policy.decide(text, neighbour)
        self._here.seen.append((decision, neighbour))
        return decision

    def begin(self) -> None:
        """Forget this thread's earlier lookup."""
        self._here.seen, self._here.policy = [], self.policy

    def neighbour_of(self, decision: Decision | None) -> Neighbour | None:
        """Return the neighbour that a decision of this thread's lookup was about."""
        return next((neighbour for seen, neighbour in self._here.seen if seen is decision), None)


class Player:
    """Plays a recording's requests to one cache; several threads may `answer` at once.

    The origin gives the recorded answer, once `work`, if it is given, is done.
    """

    def __init__(
        self, cache: Cache, asked: Sequence[Asked], witness: Witness, work: Callable[[Asked], object] | None = None
    ) -> None:
        self.cache = cache
        self.asked = asked
        self._witness = witness
        self._work = work
        # Who loaded the answer that stands under a key.
        self._makers: dict[bytes, int] = {}

    def answer(self, one: Asked) -> Outcome:
        """Ask for one request's answer."""
        request = one.request
        if request is None:
            return Outcome()
        key = request.key

        def load() -> list[Any]:
            self._makers[key] = one.position
            if self._work is not None:
                self._work(one)
            return [one.position, one.answer]  # an answer tells whose it is, whichever way it comes back

        self._witness.begin()
        began = perf_counter_ns()
        maker, _ = self.cache.get_or_load(request, load)
        took = perf_counter_ns() - began
        event = last()
        return Outcome() if event is None else self._outcome(event, maker, took)

    def _outcome(self, event: Event, maker: int, took: int) -> Outcome:
        # A lookup on whose way something was late or broken says nothing about how long one takes.
        outcome = Outcome()
        if not event.faults:
            outcome.nanoseconds, outcome.stages = took - event.stages.get("load", 0), event.stages
        neighbour = self._witness.neighbour_of(event.decision)
        if neighbour is not None and neighbour.key in self._makers:
            outcome.nearest = (self._makers[neighbour.key], neighbour.similarity)
            outcome.guard = "" if event.decision is None else event.decision.guard
        if event.is_hit:
            # What the policy let through is a near match, be it from the index or from a load in flight.
            is_near = event.similarity is not None and neighbour is not None
            outcome.tier, outcome.maker = NEAR if is_near else event.tier, maker
        return outcome
