"""What labels prove of the cuts of one way to decide, and what these do on the part that is reported on.

Laws: only labels of requests that calibrate prove; a scope family with labels enough is tested by itself, all others
together, and where all are tested by themselves the others' cut is that of all together; what is not proved serves
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from semcache.policy.bounds import CONFIDENCE, Certified, Tally, certify, labels_needed
from semcache.replay.labels import Labels
from semcache.replay.score import Rate
from semcache.replay.worlds import NO_CUT, Near, World

BUDGETS = (0.01, 0.02, 0.05, 0.10)


@dataclass(slots=True)
class Cuts:
    """What was proved at a budget, with `confidence`: of each family that was tested by itself, and of all others."""

    budget: float
    others: Certified
    families: dict[bytes, Certified]
    confidence: float = CONFIDENCE

    def of(self, family: bytes) -> float | None:
        return self.families.get(family, self.others).cut


@dataclass(slots=True)
class Served:
    """What cuts do on the second part: near hits, all hits, and wrong ones; rates of requests, and of near hits."""

    near: Rate
    answered: Rate
    wrong: Rate


class Study:
    """The worlds of one protocol, by cut, and their labels; which requests calibrate, and which are reported on.

    The latter are the others, where nobody says. `confidence` is that of each test.
    """

    def __init__(
        self, worlds: Mapping[float, World], labels: Labels, families: Sequence[bytes], calibrates: Sequence[bool],
        reports: Sequence[bool] | None = None, confidence: float = CONFIDENCE,
    ) -> None:  # fmt: skip
        self.worlds = worlds
        self.cuts = sorted(worlds.keys() - {NO_CUT}, reverse=True)
        self.confidence = confidence
        self._labels = labels
        self._families = families
        self.calibrates = calibrates
        self._reports = [not calibrates for calibrates in calibrates] if reports is None else reports
        self._tallies: dict[tuple[frozenset[bytes], float], Tally] = {}
        self._reported: dict[float, Served] = {}

    def again(self, calibrates: Sequence[bool], reports: Sequence[bool]) -> Study:
        """Return the study of the same worlds where other requests calibrate and are reported on."""
        return Study(self.worlds, self._labels, self._families, calibrates, reports, self.confidence)

    @cached_property
    def families(self) -> frozenset[bytes]:
        """The families that have near matches at all."""
        return frozenset(self._families[near.position] for world in self.worlds.values() for near in world.near)

    def _near(self, cut: float, families: Iterable[bytes], chosen: Sequence[bool]) -> list[Near]:
        own = frozenset(families)
        return [
            near for near in self.worlds[cut].near if chosen[near.position] and self._families[near.position] in own
        ]

    def facts(self, family: bytes) -> int:
        """Return the most labels that a family has at any cut, whatever they say."""
        return max(self._tally(frozenset([family]), cut).facts for cut in self.cuts)

    def _tally(self, families: frozenset[bytes], cut: float, least: int | None = None) -> Tally:
        known = self._tallies.get((families, cut))
        # Counted without being asked, when only their number was wanted.
        if known is None or (not known.labels and least is not None and known.facts >= least):
            nears = self._near(cut, families, self.calibrates)
            known = self._labels.tally(cut, nears, len(nears) + 1 if least is None else least)
            self._tallies[families, cut] = known
        return known

    def certify(self, budget: float) -> Cuts:
        """Prove cuts at a budget, in each family with labels enough and in all others together."""
        needed = labels_needed(budget, self.confidence)
        alone = frozenset(family for family in self.families if self.facts(family) >= needed)
        others = (self.families - alone) or self.families
        return Cuts(
            budget,
            self._certified(others, budget),
            {family: self._certified(frozenset([family]), budget) for family in sorted(alone)},
            self.confidence,
        )

    def _certified(self, families: frozenset[bytes], budget: float) -> Certified:
        least = labels_needed(budget, self.confidence)
        return certify((self._tally(families, cut, least) for cut in self.cuts), budget, self.confidence)

    def most_facts(self, cuts: Cuts) -> int:
        """Return the most labels that the others have at any cut."""
        others = frozenset(self.families - cuts.families.keys()) or self.families
        return max((self._tally(others, cut).facts for cut in self.cuts), default=0)

    def serve(self, cuts: Cuts) -> Served:
        """Return what proved cuts do on the part that is reported on."""
        near: list[Near] = []
        exact = 0
        for cut, families in self._by_cut(cuts).items():
            near += self._near(cut, families, self._reports)
            exact += sum(
                self._reports[position] and self._families[position] in families for position in self.worlds[cut].exact
            )
        return self._served(near, exact)

    def covers(self, cuts: Cuts, chosen: Sequence[bool]) -> int:
        """Return how many of these requests proved cuts serve nearly, right or wrong."""
        return sum(len(self._near(cut, families, chosen)) for cut, families in self._by_cut(cuts).items())

    def _by_cut(self, cuts: Cuts) -> dict[float, set[bytes]]:
        by_cut: dict[float, set[bytes]] = {}
        for family in {*self._families, b""}:
            cut = cuts.of(family) if family in self.families else None
            by_cut.setdefault(NO_CUT if cut is None else cut, set()).add(family)
        return by_cut

    def _served(self, near: list[Near], exact: int) -> Served:
        of = sum(self._reports)
        return Served(Rate(len(near), of), Rate(len(near) + exact, of), self._labels.rate(near))

    def in_hindsight(self, budget: float) -> tuple[float, Served] | None:
        """Return what the one cut that serves most within the budget would do, had one known the second part's labels.

        No method knows them: it shows what is left to gain by more labels.
        """
        best = None
        for cut in self.cuts:
            served = self._reported.get(cut)
            if served is None:
                near = self._near(cut, self.families, self._reports)
                exact = sum(self._reports[position] for position in self.worlds[cut].exact)
                served = self._reported[cut] = self._served(near, exact)
            share = served.wrong.share
            if share is not None and share <= budget and (best is None or served.near.count > best[1].near.count):
                best = cut, served
        return best
