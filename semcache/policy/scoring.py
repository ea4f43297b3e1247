"""Scores of a policy that learns: the one in use, and one that was taught since and proves itself beside it.

A score rates the near match of a request, the nearest that no guard refuses; it does not choose another. So each label
of a match is one for every score, and a new one is tested by the labels that come after it was taught, while the old
one goes on serving. Laws:
- no label that taught a score tests it: its tests begin when it is known, each with its share of alpha, whose number no
  other test of the family ever has;
- it takes over where its own tests allow it to serve more; a bad score only serves nothing;
- its number is had once: whoever would teach it says so in the store first, and gives way to who did so before.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any

from semcache.model import Decision, Neighbour, Verdict
from semcache.policy.eprocess import CUTS, place_of
from semcache.policy.guards import Guards
from semcache.policy.lessons import Lessons
from semcache.policy.status import ScoreStatus
from semcache.policy.tally import OTHERS, SEASONS, Booked, Family, day_of, season_of
from semcache.policy.telling import BUDGETS

if TYPE_CHECKING:
    from semcache.policy.label import Label
    from semcache.policy.score import Score

FLOOR = CUTS[-1]
"""The least cosine of a near match: below it nothing is compared, whatever a score may say."""
COSINE = 1
"""The number of the score that there is at first."""
STEP = 3
"""Between the numbers of two scores: the old one's next season, and its next alarm, have numbers of their own."""
_CLAIM, _READY = "claim", "ready"
_PARTS = 4


def rank_of(neighbour: Neighbour) -> float:
    """Return what ranks a near match: the learned score, where there is one, else the cosine."""
    return neighbour.similarity if neighbour.score is None else neighbour.score


def is_match(neighbour: Neighbour) -> bool:
    """Say whether a neighbour is near enough to be a near match, whatever a score says of it."""
    return neighbour.similarity >= FLOOR


class Scoring:
    """The part of a Learner that knows scores; the rest of it gives it what it needs."""

    budget: float | None
    generation: int
    challenger: int | None
    lessons: Lessons | None
    guards: Guards
    _lock: RLock
    _time: Callable[[], float]
    _season: int
    _families: dict[str, Family]
    _open: dict[str, int | None]
    _returned: Booked
    _called: Callable[..., tuple[str, str]]
    _lowest: Callable[..., int | None]
    _settle: Callable[..., list[tuple[str, str]]]
    _tell_all: Callable[[list[tuple[str, str]]], None]

    def _begin_scores(self) -> None:
        self.generation = COSINE
        self.challenger = None
        self.scores: dict[int, Score] = {}
        self._taught_in = 0
        self._claims: dict[int, set[str]] = {}
        # What stands in the store: which score was taught, beside which, in which season.
        self._ready: dict[int, tuple[int, int]] = {}
        self._said_on = ""
        self.token = os.urandom(8).hex()

    # Rating

    def rate(self, text: str, vector: Any, neighbours: Sequence[Neighbour]) -> list[Neighbour]:
        """Rate the neighbours that may be a match by each score that is used or tested; their order stays."""
        import numpy as np

        rated = [one for one in neighbours if one.vector is not None and is_match(one)]
        if rated:
            vectors = np.stack([one.vector for one in rated])
            cosines = [one.similarity for one in rated]
            for generation, score in list(self.scores.items()):
                if generation in (self.generation, self.challenger):
                    rates = score.rate(text, vector, [one.text for one in rated], vectors, cosines)
                    for one, rate in zip(rated, rates, strict=True):
                        one.rates = {**(one.rates or {}), generation: rate}
            for one in rated:
                one.score = None if self.generation == COSINE else (one.rates or {}).get(self.generation, 0.0)
        return list(neighbours)

    def rates_of(self, neighbour: Neighbour) -> dict[int, float]:
        """Return what a match is worth by the score in use and the one that is tested, as far as they are known."""
        rates = {COSINE: neighbour.similarity, **(neighbour.rates or {})}
        if self.generation not in rates and neighbour.score is not None:
            rates[self.generation] = neighbour.score
        return {one: rates[one] for one in (self.generation, self.challenger) if one is not None and one in rates}

    # Another score

    def challenge(self, generation: int, score: Score, beside: int, taught_in: int) -> bool:
        """Begin to test a score of this number beside the one in use; False where it is not the latest, or not ours."""
        if score.embedder != self._embedder():
            return False
        with self._lock:
            if generation <= self.newest:
                return False
            self.scores = {one: kept for one, kept in self.scores.items() if one == self.generation}
            self.scores[generation] = score
            self.challenger, self._taught_in = generation, taught_in
            self._ready[generation] = beside, taught_in
        self.put_off(2 * score.labels)
        self._tell_all([(f"score {generation}, of {score.labels} pairs, is tested beside the one in use", "")])
        return True

    def resume(self, score: Score, generation: int) -> None:
        """Go on with a score that was in use when the latest one was taught."""
        with self._lock:
            is_ours = score.embedder == self._embedder() and self.generation == COSINE and not self.scores
            if is_ours:
                self.scores[generation] = score
        if is_ours:
            self.rescored(generation)

    @property
    def newest(self) -> int:
        """The number of the latest score that is used or tested."""
        return max(self.generation, self.challenger or 0)

    def is_due(self) -> bool:
        """Say whether there are pairs enough in this process to teach the next score."""
        with self._lock:
            return self.lessons is not None and self.lessons.is_due

    def read_lessons(self) -> list[Label]:
        """Return the pairs that teach the next score."""
        with self._lock:
            return [] if self.lessons is None else self.lessons.read()

    def put_off(self, pairs: int) -> None:
        """Teach no score before there are so many pairs."""
        with self._lock:
            if self.lessons is not None:
                self.lessons.wait_for(pairs)

    def _embedder(self) -> str:
        raise NotImplementedError

    def rescored(self, generation: int) -> None:
        """Go on with another score: what labels said of the one before says nothing of it.

        No label that trained it is counted: its tests began when it was taught, or begin here.
        """
        with self._lock:
            self.generation = generation
            if self.challenger is not None and self.challenger <= generation:
                self.challenger = None
            self.scores = {one: kept for one, kept in self.scores.items() if one >= generation}
            self._let_go()
            told = [one for family in list(self._families.values()) for one in self._settle(family, [])]
        self._tell_all(told)

    def _let_go(self) -> None:
        raise NotImplementedError

    def promote(self) -> bool:
        """Have the score that is tested take over, if its tests allow it to serve more; say whether it does."""
        with self._lock:
            taken = self.challenger
            if taken is None or not (self._serves_more(taken) or self._season - self._taught_in >= SEASONS - 1):
                return False
        self.rescored(taken)
        self._tell_all([(f"score {taken} has taken over", "")])
        return True

    def _serves_more(self, challenger: int) -> bool:
        """Compare what both would serve of the matches met since the newer one is tested; the lock is held."""
        season = season_of(self._time())
        families = list(self._families.values())
        asked = {family.name: family.alone("asked", season, challenger) for family in families}
        alone = sum(asked[name] for name in asked if name in self._open and not name.startswith(OTHERS))
        mine = theirs = 0.0
        for budget in BUDGETS if self.budget is None else (self.budget,):
            for family in families:
                weight = asked[family.name]
                if family.name.startswith(OTHERS):  # where all are counted, those by themselves too
                    weight -= alone
                elif family.name not in self._open:
                    continue
                theirs += weight * self._served(family, budget, season, challenger)
                mine += weight * self._served(family, budget, season, self.generation)
        return theirs > mine

    def _served(self, family: Family, budget: float, season: int, generation: int) -> float:
        place = self._lowest(family, budget, generation)
        asked = family.alone("asked", season, generation)
        return 0.0 if place is None or not asked else family.met(season, generation)[place] / asked

    # What processes say to each other of scores

    def _score_name(self, kind: str, told: str) -> str:
        return f"trust|score:{self._called(b'')[1].partition(':')[2]}|{kind}|{told}"

    def claim(self) -> int:
        """Say to the others that we would teach the next score; return its number."""
        with self._lock:
            number = max([self.newest, *self._claims, *self._ready]) + STEP
            self._book_claim(number, 1.0)
            return number

    def release(self, number: int) -> None:
        """Take a claim back: the number is free again, for no test has begun under it."""
        with self._lock:
            self._book_claim(number, -1.0)

    def _book_claim(self, number: int, amount: float) -> None:
        at = day_of(self._season), self._score_name(_CLAIM, f"{number}.{self.token}")
        self._returned[at] = self._returned.get(at, 0.0) + amount

    def is_ours(self, number: int) -> bool | None:
        """Say whether a number that we claimed is ours; None while the store does not tell of the claim yet."""
        with self._lock:
            claims = self._claims.get(number, set())
            return None if self.token not in claims else claims == {self.token}

    def is_claimed(self) -> bool:
        """Say whether another process would teach a score, and has not published it yet."""
        with self._lock:
            others = [one for one, whose in self._claims.items() if whose - {self.token}]
            return max(others, default=0) > max([self.newest, *self._ready])

    def is_said(self) -> bool:
        """Say whether the store tells of scores in this season, as counts that are too old go."""
        with self._lock:
            return not self.scores or self._said_on >= day_of(season_of(self._time()))

    def publish(self, generation: int) -> None:
        """Say to the others that a score can be read."""
        with self._lock:
            beside, taught_in = self._ready.get(generation, (COSINE, self._season))
            told = f"{generation}.{beside}.{taught_in}"
            self._returned[day_of(self._season), self._score_name(_READY, told)] = 1.0

    def latest(self) -> tuple[int, int, int] | None:
        """Return the number of the latest score that can be read, the one beside which and when it was taught."""
        with self._lock:
            return max(((one, *told) for one, told in self._ready.items()), default=None)

    def _hear(self, booked: Mapping[tuple[str, str], float]) -> None:
        """Take what the store tells of scores; the lock is held."""
        ours = self._score_name(_CLAIM, "").split("|")[1]
        claims: Counter[tuple[int, str]] = Counter()
        for (day, name), amount in booked.items():
            parts = name.split("|")
            if len(parts) != _PARTS or parts[:2] != ["trust", ours]:
                continue
            numbers = parts[3].split(".")
            if parts[2] == _CLAIM and numbers[0].isdecimal() and len(numbers) == 2:  # noqa: PLR2004 - number, whose
                claims[int(numbers[0]), numbers[1]] += round(amount)
            elif parts[2] == _READY and len(numbers) == 3 and all(map(str.isdecimal, numbers)):  # noqa: PLR2004 - as told
                generation, beside, taught_in = map(int, numbers)
                self._ready[generation] = beside, taught_in
                self._said_on = max(self._said_on, day)
        self._claims = {}
        for (number, whose), standing in claims.items():
            if standing > 0:
                self._claims.setdefault(number, set()).add(whose)

    def _score_status(self) -> ScoreStatus | None:
        """Return what there is to tell of scores; the lock is held."""
        if self.lessons is None:
            return None
        score, tested = self.scores.get(self.generation), self.scores.get(self.challenger or 0)
        return ScoreStatus(
            None if self.generation == COSINE else self.generation, score.labels if score else 0, self.challenger,
            tested.labels if tested else 0, len(self.lessons), self.lessons.right, self.lessons.due_at,
        )  # fmt: skip


class InFamily:
    """Decides in one scope family; `others` are all that have not labels enough, together."""

    __slots__ = ("_learner", "name", "others")

    def __init__(self, learner: Any, name: str, others: str) -> None:
        self._learner = learner
        self.name = name
        self.others = others

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        """Reject what a guard refuses or no open cut serves."""
        learner, similarity = self._learner, neighbour.similarity
        # A match that no cut can ever serve need not be looked into.
        is_looked_into = is_match(neighbour) or rank_of(neighbour) >= FLOOR
        refusal = learner.guards.check(text, neighbour.text) if is_looked_into else None
        if refusal is not None:
            return Decision(Verdict.REJECT, refusal.reason, similarity, guard=refusal.guard)
        place, is_own = learner.place(self.name, self.others)
        where = "this scope family" if is_own else "all other families together"
        decision: Decision = learner.decision(place, where, neighbour)
        decision.score = neighbour.score
        return decision


class Rated(InFamily):
    """Decides by a learned score, or beside one that is tested."""

    __slots__ = ()

    def rank(self, text: str, vector: Any, neighbours: Sequence[Neighbour]) -> list[Neighbour]:
        """Rate the neighbours; their order stays, so that all scores have one match."""
        rated: list[Neighbour] = self._learner.rate(text, vector, neighbours)
        return rated


def places_of(rates: Mapping[int, float]) -> dict[int, int]:
    """Return the places of the highest cuts that serve what has these rates, by the score's number."""
    found = {generation: place_of(rate) for generation, rate in rates.items()}
    return {generation: place for generation, place in found.items() if place is not None}
