"""Tuning: from a recording to the cuts that its labels prove, and to what these do on the part that was not looked at.

Laws: cuts are chosen and proved on the first part of the recording, in time, and reported on the second, of which no
label is looked at before; a scope family with labels enough is tested by itself, all others together, and where all are
tested by themselves the others' cut is that of all together; what is not proved serves nothing. docs/tune.md tells the
method, and what it assumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter

from semcache.cache import Cache
from semcache.policy.bounds import Certified, Tally, certify, labels_needed
from semcache.policy.equivalent import Comparator
from semcache.policy.tuned import NOTHING, Proof, Tuned
from semcache.replay.labels import Labels
from semcache.replay.lookahead import Vectors, embed
from semcache.replay.recording import Recording
from semcache.replay.score import Rate, oracle
from semcache.replay.settings import Progress, Settings, load
from semcache.replay.worlds import NO_CUT, Near, Refuse, Trace, World
from semcache.semantic.embedder import as_embedder

BUDGETS = (0.01, 0.02, 0.05, 0.10)
FLOOR = 0.70
STEP = 0.005
CUTS = tuple(round(1 - STEP * step, 3) for step in range(round((1 - FLOOR) / STEP) + 1))
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is tuned for: at most `budget` of what is served near is wrong, proved on the first `split` of a recording.

    `share` of its near matches are labelled. `refuses` leaves out single neighbours, as a guard does.
    """

    settings: Settings
    budget: float = 0.01
    split: float = 0.5
    share: float = 1.0
    comparator: Comparator = field(default_factory=Comparator)
    refuses: Refuse | None = None


@dataclass(slots=True)
class Cuts:
    """What was proved at a budget: of each family that was tested by itself, and of all others."""

    budget: float
    others: Certified
    families: dict[bytes, Certified]

    def of(self, family: bytes) -> float | None:
        return self.families.get(family, self.others).cut


@dataclass(slots=True)
class Served:
    """What cuts do on the second part: near hits, all hits, and wrong ones; rates of requests, and of near hits."""

    near: Rate
    answered: Rate
    wrong: Rate


class Study:
    """The worlds of one protocol, by cut, their labels, and which requests calibrate; the others are reported on."""

    def __init__(
        self, worlds: dict[float, World], labels: Labels, families: Sequence[bytes], calibrates: Sequence[bool]
    ) -> None:
        self.worlds = worlds
        self._labels = labels
        self._families = families
        self._calibrates = calibrates
        self._tallies: dict[tuple[frozenset[bytes], float], Tally] = {}

    @cached_property
    def families(self) -> frozenset[bytes]:
        """The families that have near matches at all."""
        return frozenset(self._families[near.position] for world in self.worlds.values() for near in world.near)

    def _near(self, cut: float, families: Iterable[bytes], *, calibrates: bool) -> list[Near]:
        chosen = frozenset(families)
        return [
            near
            for near in self.worlds[cut].near
            if self._calibrates[near.position] is calibrates and self._families[near.position] in chosen
        ]

    def facts(self, family: bytes) -> int:
        """Return the most labels that a family has at any cut, whatever they say."""
        return max(self._tally(frozenset([family]), cut).facts for cut in CUTS)

    def _tally(self, families: frozenset[bytes], cut: float, least: int | None = None) -> Tally:
        known = self._tallies.get((families, cut))
        # Counted without being asked, when only their number was wanted.
        if known is None or (not known.labels and least is not None and known.facts >= least):
            nears = self._near(cut, families, calibrates=True)
            known = self._labels.tally(cut, nears, len(nears) + 1 if least is None else least)
            self._tallies[families, cut] = known
        return known

    def certify(self, budget: float) -> Cuts:
        """Prove cuts at a budget, in each family with labels enough and in all others together."""
        needed = labels_needed(budget, CONFIDENCE)
        alone = frozenset(family for family in self.families if self.facts(family) >= needed)
        others = (self.families - alone) or self.families
        return Cuts(
            budget,
            self._certified(others, budget),
            {family: self._certified(frozenset([family]), budget) for family in sorted(alone)},
        )

    def _certified(self, families: frozenset[bytes], budget: float) -> Certified:
        least = labels_needed(budget, CONFIDENCE)
        return certify((self._tally(families, cut, least) for cut in CUTS), budget, CONFIDENCE)

    def most_facts(self, cuts: Cuts) -> int:
        """Return the most labels that the others have at any cut."""
        others = frozenset(self.families - cuts.families.keys()) or self.families
        return max((self._tally(others, cut).facts for cut in CUTS), default=0)

    def serve(self, cuts: Cuts) -> Served:
        """Return what proved cuts do on the part that is reported on."""
        by_cut: dict[float, set[bytes]] = {}
        for family in {*self._families, b""}:
            cut = cuts.of(family) if family in self.families else None
            by_cut.setdefault(NO_CUT if cut is None else cut, set()).add(family)
        near: list[Near] = []
        exact = 0
        for cut, families in by_cut.items():
            near += self._near(cut, families, calibrates=False)
            exact += sum(
                not self._calibrates[position] and self._families[position] in families
                for position in self.worlds[cut].exact
            )
        return self._served(near, exact)

    def _served(self, near: list[Near], exact: int) -> Served:
        of = sum(not calibrates for calibrates in self._calibrates)
        return Served(Rate(len(near), of), Rate(len(near) + exact, of), self._labels.rate(near))

    def in_hindsight(self, budget: float) -> tuple[float, Served] | None:
        """Return what the one cut that serves most within the budget would do, had one known the second part's labels.

        No method knows them: it shows what is left to gain by more labels.
        """
        best = None
        for cut in CUTS:
            near = self._near(cut, self.families, calibrates=False)
            exact = sum(not self._calibrates[position] for position in self.worlds[cut].exact)
            served = self._served(near, exact)
            share = served.wrong.share
            if share is not None and share <= budget and (best is None or served.near.count > best[1].near.count):
                best = cut, served
        return best


@dataclass(slots=True)
class Row:
    """What came of one budget: proved and served, as the cache runs and as if all were cached, and in hindsight."""

    budget: float
    cuts: Cuts
    served: Served
    always: Served
    hindsight: tuple[float, Served] | None


@dataclass(slots=True)
class Outcome:
    """What came of tuning: the policy, a row for each budget, and what there is to compare them with.

    `exact` and `oracle` are what exact matches alone and a cache that knows the truth answer of the second part, which
    begins behind `calibrating` requests. `facts` are the labels of all families that were not tested by themselves, at
    the cut with most; `disagrees` tells how often the origin gave an identical request another answer.
    """

    recording: Recording
    tuning: Tuning
    policy: Tuned
    rows: list[Row]
    row: Row
    calibrating: int
    facts: int
    exact: Rate
    oracle: Rate | None
    disagrees: Rate
    embedded: int = 0
    uncovered: int = 0
    wall_seconds: float = 0.0


def tune(lines: Iterable[bytes | str], tuning: Tuning, progress: Progress, *, made: str, name: str = "") -> Outcome:
    """Tune on the lines of a recording; `made` is the day, and `name` the recording's, as the policy will tell them.

    Raises ConfigurationError, or TrafficError where nothing can be read or a strict read stops.
    """
    began = perf_counter()
    settings = replace(tuning.settings, embedder=as_embedder(tuning.settings.embedder, tuning.settings.device))
    progress(f"loading {settings.embedder.identity or settings.embedder.url}", 0, 0)
    settings.embedder.load()
    with Cache("replay", memory=settings.memory, embedder=settings.embedder, prices=settings.prices) as cache:
        recording = load(lines, settings, cache, progress)
    vectors = embed(settings.embedder, recording.texts(), lambda done, of: progress("embedding texts", done, of))
    trace = make_trace(recording, vectors, settings, tuning.refuses)
    trace.search(lambda done, of: progress("searching", done, of))
    on_miss, always = make_worlds(trace, progress)
    asked = recording.asked
    calibrating = int(len(asked) * tuning.split)
    calibrates = [position < calibrating for position in range(len(asked))]
    families = [b"" if one.request is None else one.request.family for one in asked]
    labels = Labels(asked, tuning.comparator, share=tuning.share, seed=settings.seed)
    study = Study(on_miss, labels, families, calibrates)
    other = Study(always, labels, families, calibrates)
    rows = []
    for budget in sorted({*BUDGETS, tuning.budget}):
        progress(f"testing cuts at {budget:.3g} wrong", 0, 0)
        cuts = study.certify(budget)
        # Who pays for each comparison does not want it for cuts that nobody proposes.
        hindsight = study.in_hindsight(budget) if tuning.comparator.judge is None else None
        rows.append(Row(budget, cuts, study.serve(cuts), other.serve(other.certify(budget)), hindsight))
    row = next(row for row in rows if row.budget == tuning.budget)
    of = len(asked) - calibrating
    exact = sum(position >= calibrating for position in on_miss[NO_CUT].exact)
    truth = oracle(asked, settings.exact_seconds) if recording.has_answer_ids else []
    known = sum(outcome.tier is not None for outcome in truth[calibrating:])
    measured = {"made": made, "recording": name, **_measured(recording, calibrating, tuning, row.served)}
    return Outcome(
        recording, replace(tuning, settings=settings), _policy(row.cuts, settings.embedder.identity, measured),
        rows, row, calibrating, study.most_facts(row.cuts), Rate(exact, of), Rate(known, of) if truth else None,
        labels.origin_disagrees(), len(vectors.rows), len(vectors.uncovered), perf_counter() - began,
    )  # fmt: skip


def make_trace(recording: Recording, vectors: Vectors, settings: Settings, refuses: Refuse | None = None) -> Trace:
    """Make the trace of a recording, whose answers live as long as in a replay with these settings."""
    return Trace(
        recording.asked, vectors, exact_seconds=settings.exact_seconds / settings.time_scale,
        near_seconds=settings.ttl.of("semantic") / settings.time_scale, floor=FLOOR, refuses=refuses,
    )  # fmt: skip


def make_worlds(trace: Trace, progress: Progress) -> tuple[dict[float, World], dict[float, World]]:
    """Replay a trace at every cut, as a cache runs, and as if each answer were cached."""
    on_miss = {NO_CUT: trace.cached_on_miss(NO_CUT)}
    for done, cut in enumerate(CUTS):
        progress("replaying at each cut", done, len(CUTS))
        on_miss[cut] = trace.cached_on_miss(cut)
    everything = trace.cached_always()
    always = {
        cut: World([near for near in everything.near if near.similarity >= cut], everything.exact)
        for cut in (NO_CUT, *CUTS)
    }
    return on_miss, always


def _measured(recording: Recording, calibrating: int, tuning: Tuning, served: Served) -> dict[str, object]:
    """Tell what a policy was measured on, and what it did on the part that was not looked at."""
    return {
        "requests": len(recording.asked),
        "calibrating": calibrating,
        "span_seconds": recording.span_seconds,
        "labelled_share": tuning.share,
        "reported": {"near": served.near.count, "wrong": served.wrong.count, "judged": served.wrong.of},
    }


def _policy(cuts: Cuts, embedder: str, measured: dict[str, object]) -> Tuned:
    families = {family.hex(): _proof(found) for family, found in cuts.families.items()}
    return Tuned(cuts.budget, CONFIDENCE, embedder, _proof(cuts.others), families, measured)


def _proof(found: Certified) -> Proof:
    """Return what was proved, or, where nothing was, the labels with which testing began."""
    tally = found.tally or found.begun
    return NOTHING if tally is None else Proof(found.cut, tally.labels, tally.wrong)
