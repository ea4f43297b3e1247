"""What a policy's counts say: which cut they open, and what its owner is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import RLock

from semcache.policy.eprocess import CUTS, labels_needed, lowest_open, spent
from semcache.policy.equivalent import Comparator
from semcache.policy.status import FamilyStatus, Offer, PolicyStatus, ScoreStatus, Share
from semcache.policy.tally import OTHERS, Family, Trial, kept, season_of

BUDGETS = (0.01, 0.02, 0.05, 0.1)
_DAY_SECONDS = 86_400.0


class Telling:
    """The part of a Learner that reads its counts; the rest of it gives it what it needs."""

    budget: float | None
    confidence: float
    generation: int
    challenger: int | None
    comparator: Comparator
    unlabelled: Counter[str]
    _lock: RLock
    _time: Callable[[], float]
    _since: float
    _families: dict[str, Family]
    _open: dict[str, int | None]
    _about: dict[str, str]
    _labels_here: Counter[str]
    # What keeps us from serving where we work, as our cache tells it.
    _surroundings: Callable[[], list[str]] = list
    _identity: Callable[[], str]
    shadow: Telling | None

    def surround(self, told: Callable[[], list[str]]) -> None:
        """Know what stands in the way where we work."""
        self._surroundings = told

    def _score_status(self) -> ScoreStatus | None:
        raise NotImplementedError

    def __str__(self) -> str:
        """Say in a few words what it has learned."""
        with self._lock:
            labels = sum(int(self._labels(family, "right", "wrong")) for family in list(self._families.values())
                         if not family.name.startswith(OTHERS))  # fmt: skip
            cuts = [CUTS[place] for place in list(self._open.values()) if place is not None]
        served = f"near matches from {min(cuts):g} on are served" if cuts else "nothing near is served"
        return f"{self!r}: {labels} labels, {served}"

    def status(self) -> PolicyStatus:
        """Return what is known: print it, or read its fields.

        What other processes have learned is read from the store first, where it never was.
        """
        obstacles = tuple(self._surroundings())
        with self._lock:
            season = season_of(self._time())
            told = [self._status_of(family, season) for _, family in kept(self._families)]
            score = self._score_status()
        others = [one for one in told if one.name.startswith(OTHERS)]
        return PolicyStatus(
            self.budget, self.confidence, others[0] if others else None,
            tuple(one for one in told if not one.name.startswith(OTHERS)), dict(self.unlabelled),
            dict(self.comparator.troubles), obstacles, self._identity(),
            None if self.shadow is None else self.shadow.status(), score,
        )  # fmt: skip

    def _status_of(self, family: Family, season: int) -> FamilyStatus:
        name, is_others = family.name, family.name.startswith(OTHERS)
        budgets = BUDGETS if self.budget is None else sorted({self.budget, *BUDGETS})
        offers = tuple(self._offer(family, budget, season) for budget in budgets)
        own = next((one for one in offers if one.budget == self.budget), None)
        place = self._open.get(name)
        state = "open" if place is not None else "alarm" if family.alarms else "closed"
        missing = None if own is None or own.needed is None else own.needed
        labels = int(self._labels(family, "right", "wrong"))
        informing = sum(
            sum(counts.by_cut[kind])
            for test, counts in family.tests.items()
            for kind in ("miss_right", "miss_wrong")
            if test.generation == self.generation
        )  # fmt: skip
        same, differs = family.alone("same", season), family.alone("differs", season)
        return FamilyStatus(
            name, "all other families together" if is_others else self._about.get(name, ""), state,  # type: ignore[arg-type]
            None if place is None else CUTS[place], labels, None if missing is None else labels + missing,
            None if own is None else own.days, self._wrong(family, -1 if place is None else place),
            Share(int(differs), int(same + differs)), int(informing),
            int(family.alone("asked", season, self.generation)), int(family.met(season, self.generation)[-1]),
            family.alarms, is_others or name in self._open, offers, self.budget,
        )  # fmt: skip

    def _wrong(self, family: Family, place: int) -> Share:
        trials = self._begun(family)
        if not trials:
            return Share(0, 0)
        wrong = family.summed(trials[0], "wrong")[place]
        return Share(int(wrong), int(wrong + family.summed(trials[0], "right")[place]))

    def _offer(self, family: Family, budget: float, season: int) -> Offer:
        """Say what a budget would serve here."""
        place = self._lowest(family, budget)
        asked = family.alone("asked", season, self.generation)
        served = 0.0 if place is None or not asked else family.met(season, self.generation)[place] / asked
        if place is not None:
            return Offer(budget, CUTS[place], served, self._wrong(family, place), 0, 0.0)
        trials = self._begun(family)
        alpha = spent(1 - self.confidence, family.number(trials[0]) if trials else 1)
        wrongs = [self._wrong(family, cut) for cut in range(len(CUTS))]
        best = min((one for one in wrongs if one.labels), key=lambda one: (one.share or 0.0, -one.labels), default=None)
        needed = labels_needed(budget, alpha, 0.0 if best is None else best.share or 0.0)
        missing = None if needed is None else max(1, needed - (best.labels if best else 0))
        days, here = None, self._labels_here[family.name]
        if missing is not None and here and self._time() > self._since:
            days = missing / here * (self._time() - self._since) / _DAY_SECONDS
        return Offer(budget, None, 0.0, wrongs[-1], missing, days)

    def _begun(self, family: Family, generation: int | None = None) -> list[Trial]:
        """Return the tests of a score, of the one in use unless told, which another may be tested beside."""
        of = generation or self.generation
        beside = self.challenger if of != self.challenger else None
        return family.begun(season_of(self._time()), of, beside)

    def _lowest(self, family: Family, budget: float, generation: int | None = None) -> int | None:
        """Return the place of the lowest cut that any of a family's tests of a score opens; all share one alpha."""
        lowest: int | None = None
        for trial in self._begun(family, generation):
            tallies = list(zip(family.summed(trial, "right"), family.summed(trial, "wrong"), strict=True))
            alpha = spent(1 - self.confidence, family.number(trial))
            found = lowest_open(tallies, budget, alpha)
            if found is not None:
                lowest = found if lowest is None else max(lowest, found)
        return lowest

    def _has_labels(self, family: Family, budget: float) -> bool:
        """Say whether a family has labels enough to be judged by them alone; what they say has no part in it."""
        needed = labels_needed(budget, spent(1 - self.confidence, 1))
        return needed is not None and self._labels(family, "right", "wrong", "again") >= needed

    def _labels(self, family: Family, *kinds: str) -> float:
        trials = self._begun(family)
        return sum(family.summed(trials[0], kind)[-1] for kind in kinds) if trials else 0.0
