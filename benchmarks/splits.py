"""What cuts prove and do where other requests prove them, and where the comparator errs: many splits of one tuning.

The replays of a tuning do not change with who proves, so its near matches are laid into arrays once, and a split is
some sums over them. `Arrays.counted` is what `Study` counts, by cut and scope family; tune_streams.py holds the two
side by side for the first split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semcache.policy.bounds import Tally, certify, labels_needed
from semcache.replay.labels import MOST_OF_AN_ENTRY, Labels
from semcache.replay.tune import LEARNED, PLAIN, Outcome, Way

Flags: TypeAlias = NDArray[np.bool_]
# By cut and family: how many.
Counts: TypeAlias = NDArray[np.int64]


class Served(NamedTuple):
    """What a budget's cuts serve of those reported on: near hits, of how many requests, wrong ones, of how many."""

    near: int
    of: int
    wrong: int
    judged: int


@dataclass(frozen=True, slots=True)
class Error:
    """A comparator that errs: on a `share` of pairs, drawn anew each time, where it would call them right, or wrong."""

    share: float
    of_right: bool
    of_wrong: bool

    def over(self, wrong: Flags, drawn: NDArray[np.float64]) -> Flags:
        """Return what it says of labels, the truth of which is `wrong`; `drawn` are the numbers of their pairs."""
        flips = (drawn < self.share) & np.where(wrong, self.of_wrong, self.of_right)
        said: Flags = wrong ^ flips
        return said


HONEST = Error(0.0, of_right=False, of_wrong=False)


@dataclass(slots=True)
class _Nears:
    """The near matches at one cut: whose, of which family, pair and entry; which have a label, which a wrong one."""

    position: NDArray[np.int64]
    family: NDArray[np.int64]
    pair: NDArray[np.int64]
    entry: NDArray[np.int64]
    known: Flags
    wrong: Flags

    def facts(self, chosen: Flags) -> Flags:
        """Say which may enter a bound as right: of those chosen each pair once, and of each entry the first few."""
        found = np.zeros(len(chosen), dtype=np.bool_)
        places = np.flatnonzero(chosen)
        first = places[np.unique(self.pair[places], return_index=True)[1]]
        first.sort()
        order = np.argsort(self.entry[first], kind="stable")
        entries = self.entry[first][order]
        begins = np.r_[True, entries[1:] != entries[:-1]] if len(entries) else np.zeros(0, dtype=np.bool_)
        nth = np.arange(len(entries)) - np.maximum.accumulate(np.where(begins, np.arange(len(entries)), 0))
        found[first[order[nth < MOST_OF_AN_ENTRY]]] = True
        return found


class Arrays:
    """The near matches of one way, by cut."""

    def __init__(self, way: Way, labels: Labels, outcome: Outcome) -> None:
        asked = outcome.recording.asked
        self.name = way.name
        self.confidence = way.study.confidence
        self.cuts = way.study.cuts
        families: dict[bytes, int] = {}
        pairs: dict[tuple[bytes, bytes], int] = {}
        entries: dict[bytes, int] = {}
        keys = [b"" if one.request is None else one.request.key for one in asked]
        named = [b"" if one.request is None else one.request.family for one in asked]
        self._nears = []
        for cut in self.cuts:
            nears = way.study.worlds[cut].near
            known = [labels.can_say(near) for near in nears]
            labels.ask(near for near, is_known in zip(nears, known, strict=True) if is_known)
            self._nears.append(_Nears(
                _whole(near.position for near in nears),
                _whole(families.setdefault(named[near.position], len(families)) for near in nears),
                _whole(pairs.setdefault((keys[near.position], keys[near.maker]), len(pairs)) for near in nears),
                _whole(entries.setdefault(keys[near.maker], len(entries)) for near in nears),
                np.array(known, dtype=np.bool_),
                np.array([bool(known and labels.is_wrong(near)) for near, known in zip(nears, known, strict=True)],
                         dtype=np.bool_),
            ))  # fmt: skip
        self.families = len(families)
        self.pairs = len(pairs)

    def _by_family(self, chosen: Callable[[_Nears], Flags]) -> Counts:
        counts = [np.bincount(nears.family[chosen(nears)], minlength=self.families) for nears in self._nears]
        return np.array(counts, dtype=np.int64).reshape(len(self.cuts), self.families)

    def counted(self, proves: Flags, reports: Flags, compared: Flags, errors: Sequence[Error], drawn: Any) -> Counted:
        """Count the labels of those who prove, as each comparator gives them, and what the others would be served."""
        facts = [nears.facts(proves[nears.position] & nears.known) for nears in self._nears]
        said = {}
        for error in errors:
            right, wrong = [], []
            for nears, fact in zip(self._nears, facts, strict=True):
                is_wrong = error.over(nears.wrong, drawn[nears.pair])
                labelled = proves[nears.position] & nears.known
                right.append(np.bincount(nears.family[fact & ~is_wrong], minlength=self.families))
                wrong.append(np.bincount(nears.family[labelled & is_wrong], minlength=self.families))
            said[error] = np.array(right), np.array(wrong)
        by_facts = [
            np.bincount(nears.family[fact], minlength=self.families)
            for nears, fact in zip(self._nears, facts, strict=True)
        ]
        return Counted(
            self,
            np.array(by_facts),
            said,
            self._by_family(lambda nears: compared[nears.position]),
            self._by_family(lambda nears: reports[nears.position]),
            self._by_family(lambda nears: reports[nears.position] & nears.known),
            self._by_family(lambda nears: reports[nears.position] & nears.wrong),
        )


@dataclass(slots=True)
class Counted:
    """The counts of one way in one split, each by cut and family; `said` are right and wrong labels, by comparator."""

    arrays: Arrays
    facts: Counts
    said: Mapping[Error, tuple[Counts, Counts]]
    compared: Counts
    near: Counts
    judged: Counts
    wrong: Counts

    def cuts(self, budget: float, error: Error) -> list[int | None]:
        """Prove cuts at a budget, as `Study.certify`; return the place of each family's."""
        needed = labels_needed(budget, self.arrays.confidence)
        alone = self.facts.max(axis=0, initial=0) >= needed
        others = ~alone if not alone.all() else np.ones_like(alone)
        shared = self._proved(others, budget, error)
        own = np.eye(len(alone), dtype=np.bool_)
        return [self._proved(own[one], budget, error) if alone[one] else shared for one in range(len(alone))]

    def _proved(self, families: Flags, budget: float, error: Error) -> int | None:
        right, wrong = self.said[error]
        tallies = (
            Tally(cut, int(self.facts[place, families].sum()), int(right[place, families].sum()),
                  int(wrong[place, families].sum()))
            for place, cut in enumerate(self.arrays.cuts)
        )  # fmt: skip
        cut = certify(tallies, budget, self.arrays.confidence).cut
        return None if cut is None else self.arrays.cuts.index(cut)

    def summed(self, counts: Counts, cuts: Sequence[int | None]) -> int:
        """Sum counts over families, each at its own cut."""
        return sum(int(counts[place, family]) for family, place in enumerate(cuts) if place is not None)


def arrays_of(outcome: Outcome) -> list[Arrays]:
    """Lay out the ways that may be taken."""
    labels = Labels(outcome.recording.asked, outcome.tuning.comparator)
    return [Arrays(way, labels, outcome) for way in outcome.ways if way.name != PLAIN]


def split(
    ways: Sequence[Arrays], outcome: Outcome, drawn: Flags, budgets: Iterable[float], errors: Sequence[Error],
    random: np.random.Generator,
) -> dict[tuple[float, Error], Served]:  # fmt: skip
    """Let those drawn prove that did not teach, and serve the others by the way that serves more, as tune does."""
    taught = outcome.taught
    later = np.arange(len(drawn)) >= (taught.begin if taught else 0)
    texts = taught.texts if taught else frozenset()
    own = drawn & later & np.array([one.text not in texts for one in outcome.recording.asked], dtype=np.bool_)
    reports = ~drawn & later
    counted = [
        way.counted(own if way.name == LEARNED else drawn & later, reports, own, errors, random.random(way.pairs))
        for way in ways
    ]
    found = {}
    for budget in budgets:
        for error in errors:
            proved = [(one, one.cuts(budget, error)) for one in counted]
            way, cuts = max(proved, key=lambda one: one[0].summed(one[0].compared, one[1]))
            found[budget, error] = Served(
                way.summed(way.near, cuts),
                int(reports.sum()),
                way.summed(way.wrong, cuts),
                way.summed(way.judged, cuts),
            )
    return found


def _whole(numbers: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(numbers, dtype=np.int64)
