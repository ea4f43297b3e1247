"""Tuning: from a recording to the cuts that its labels prove, and to what these do on the part that was not looked at.

Two ways to decide are tried: the cosine, and a learned score that the first part of the labels teaches; the error that
is allowed is shared among them, so the one that serves more may be taken. Laws: cuts are chosen and proved on the first
part of the recording, in time, and reported on the second, of which no label is looked at before; labels that teach do
not prove. docs/tune.md tells the method, and what it assumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from time import perf_counter
from typing import Any

from semcache.cache import Cache
from semcache.policy.bounds import CONFIDENCE, Certified, labels_needed
from semcache.policy.equivalent import Comparator
from semcache.policy.guards import GUARDS, Guards
from semcache.policy.score import Score
from semcache.policy.tuned import FLOOR, NOTHING, Proof, Tuned
from semcache.replay.labels import Labels
from semcache.replay.lookahead import Vectors, embed
from semcache.replay.recording import Recording
from semcache.replay.score import Rate, oracle
from semcache.replay.settings import Progress, Settings, load
from semcache.replay.study import BUDGETS, Cuts, Served, Study
from semcache.replay.teach import Pair, Taught, embed_pairs, teach
from semcache.replay.worlds import NO_CUT, Refuse, Trace, World
from semcache.semantic.embedder import as_embedder

LOWEST = 0.70
STEP = 0.005
CUTS = tuple(round(1 - STEP * step, 3) for step in range(round((1 - LOWEST) / STEP) + 1))
# Evenly by log odds: scores are told apart where they are nearly sure.
SCORE_CUTS = tuple(round(1 / (1 + exp(-(9 - 0.2 * step))), 6) for step in range(49))
PLAIN, GUARDED, LEARNED = "cosine", "cosine + guards", "learned score"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is tuned for: at most `budget` of what is served near is wrong, proved on the first `split` of a recording.

    `share` of its near matches are labelled. `guards` are on, `pairs` teach a score beside the recording, and where
    not `learns` there is no score.
    """

    settings: Settings
    budget: float = 0.01
    split: float = 0.5
    share: float = 1.0
    comparator: Comparator = field(default_factory=Comparator)
    guards: tuple[str, ...] = GUARDS
    pairs: Sequence[Pair] = ()
    learns: bool = True


@dataclass(slots=True)
class Way:
    """A way to decide, replayed at each of its cuts as a cache runs (`study`) and as if all were cached (`always`)."""

    name: str
    study: Study
    always: Study
    score: Score | None = None


@dataclass(slots=True)
class Column:
    """What one way does at a budget: proved and served, and in hindsight, where that costs nobody a judge."""

    cuts: Cuts
    served: Served
    hindsight: tuple[float, Served] | None


@dataclass(slots=True)
class Row:
    """What came of one budget, by the way that was taken; `columns` are all ways, by name."""

    budget: float
    way: Way
    cuts: Cuts
    served: Served
    always: Served
    hindsight: tuple[float, Served] | None
    columns: dict[str, Column]


@dataclass(slots=True)
class Outcome:
    """What came of tuning: the policy, a row for each budget, and what there is to compare them with.

    `exact` and `oracle` are what exact matches alone and a cache that knows the truth answer of the second part, which
    begins behind `calibrating` requests. `facts` are the labels of all families that were not tested by themselves, at
    the cut with most; `disagrees` tells how often the origin gave an identical request another answer. `ways` are those
    that were tried, and `taught` is the score, where one was learned.
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
    ways: list[Way]
    taught: Taught | None = None
    embedded: int = 0
    uncovered: int = 0
    wall_seconds: float = 0.0


def tune(lines: Iterable[bytes | str], tuning: Tuning, progress: Progress, *, made: str, name: str = "") -> Outcome:
    """Tune on the lines of a recording; `made` is the day, and `name` the recording's, as the policy will tell them.

    Raises ConfigurationError, or TrafficError where nothing can be read or a strict read stops.
    """
    began = perf_counter()
    settings = replace(tuning.settings, embedder=as_embedder(tuning.settings.embedder, tuning.settings.device))
    embedder = settings.embedder
    if not embedder.identity:
        _load(embedder, progress)  # only its server knows whose vectors they are
    with Cache("replay", memory=settings.memory, embedder=embedder, prices=settings.prices) as cache:
        recording = load(lines, settings, cache, progress)
    _load(embedder, progress)  # behind reading: a model takes seconds, and what is wrong with a file is said at once
    vectors = embed(embedder, recording.texts(), lambda done, of: progress("embedding texts", done, of))
    trace = make_trace(recording, vectors, settings)
    trace.search(lambda done, of: progress("searching", done, of))
    asked = recording.asked
    calibrating = int(len(asked) * tuning.split)
    labels = Labels(asked, tuning.comparator, share=tuning.share, seed=settings.seed)
    taught = _taught(trace, labels, calibrating, vectors, replace(tuning, settings=settings), progress)
    ways = make_ways(trace, labels, tuning, taught, calibrating, progress)
    rows = [make_row(ways, budget, taught, tuning, progress) for budget in sorted({*BUDGETS, tuning.budget})]
    row = next(row for row in rows if row.budget == tuning.budget)
    of = len(asked) - calibrating
    exact = sum(position >= calibrating for position in ways[0].study.worlds[NO_CUT].exact)
    truth = oracle(asked, settings.exact_seconds) if recording.has_answer_ids else []
    known = sum(outcome.tier is not None for outcome in truth[calibrating:])
    measured = {"made": made, "recording": name, **_measured(recording, calibrating, tuning, taught, row.served)}
    return Outcome(
        recording, replace(tuning, settings=settings), _policy(row, settings.embedder.identity, tuning, measured),
        rows, row, calibrating, row.way.study.most_facts(row.cuts), Rate(exact, of), Rate(known, of) if truth else None,
        labels.origin_disagrees(), ways, taught, len(vectors.rows), len(vectors.uncovered), perf_counter() - began,
    )  # fmt: skip


def _load(embedder: Any, progress: Progress) -> None:
    progress(f"loading {embedder.identity or embedder.url}", 0, 0)
    embedder.load()


def make_trace(recording: Recording, vectors: Vectors, settings: Settings, refuses: Refuse | None = None) -> Trace:
    """Make the trace of a recording, whose answers live as long as in a replay with these settings."""
    return Trace(
        recording.asked, vectors, exact_seconds=settings.exact_seconds / settings.time_scale,
        near_seconds=settings.ttl.of("semantic") / settings.time_scale, floor=FLOOR, refuses=refuses,
    )  # fmt: skip


def _taught(
    trace: Trace, labels: Labels, calibrating: int, vectors: Vectors, tuning: Tuning, progress: Progress
) -> Taught | None:
    """Learn a score, if there are labels enough."""
    if not tuning.learns:
        return None
    embedder = tuning.settings.embedder
    known = embed_pairs(tuning.pairs, embedder, vectors, lambda done, of: progress("embedding pairs", done, of))
    progress("learning a score", 0, 0)
    return teach(trace, labels, calibrating, known, embedder.identity, tuning.pairs, tuning.settings.seed)


def make_ways(
    trace: Trace, labels: Labels, tuning: Tuning, taught: Taught | None, calibrating: int, progress: Progress
) -> list[Way]:
    """Replay a trace in each way: by the cosine without guards, for comparison, with them, and by a learned score."""
    asked = trace.asked
    families = [b"" if one.request is None else one.request.family for one in asked]
    before = [position < calibrating for position in range(len(asked))]
    reports = [not one for one in before]
    refuses = Guards(tuning.guards).unbounded().refuses if tuning.guards else None
    confidence = CONFIDENCE if taught is None else 1 - (1 - CONFIDENCE) / 2
    settings: list[tuple[str, Trace, tuple[float, ...], list[bool], float, Score | None]] = []
    if refuses is not None:
        settings.append((PLAIN, trace, CUTS, before, CONFIDENCE, None))
    settings.append((_cosine(tuning), trace.ranked(refuses=refuses), CUTS, before, confidence, None))
    if taught is not None:
        ranked = trace.ranked(refuses=refuses, score=taught.score)
        settings.append((LEARNED, ranked, SCORE_CUTS, proving(trace, taught, calibrating), confidence, taught.score))
    ways = []
    for name, ranked, cuts, proves, sure, score in settings:
        on_miss, always = make_worlds(ranked, progress, cuts, name)
        study, other = (Study(worlds, labels, families, proves, reports, sure) for worlds in (on_miss, always))
        ways.append(Way(name, study, other, score))
    return ways


def proving(trace: Trace, taught: Taught, calibrating: int) -> list[bool]:
    """Say of each request whether it proves cuts of a score: asked after those that taught, of a text that did not."""
    return [
        taught.begin <= one.position < calibrating and one.text not in taught.texts for one in trace.asked
    ]  # fmt: skip


def _cosine(tuning: Tuning) -> str:
    """Name the way by the cosine that may be taken."""
    return GUARDED if tuning.guards else PLAIN


def make_worlds(
    trace: Trace, progress: Progress, cuts: Sequence[float] = CUTS, name: str = ""
) -> tuple[dict[float, World], dict[float, World]]:
    """Replay a trace at every cut, as a cache runs, and as if each answer were cached."""
    what = f"replaying at each cut {name}".rstrip()
    every = (NO_CUT, *cuts)
    on_miss = trace.worlds(every, lambda done, of: progress(what, done, of))
    everything = trace.cached_always(min(cuts))
    always = {cut: World([near for near in everything.near if near.rating >= cut], everything.exact) for cut in every}
    return dict(zip(every, on_miss, strict=True)), always


def make_row(ways: Sequence[Way], budget: float, taught: Taught | None, tuning: Tuning, progress: Progress) -> Row:
    """Prove cuts at a budget, and take the way that serves most of the requests that prove a score.

    Each way has its share of the error, so that either may be taken, for whatever reason, labels too.
    """
    progress(f"testing cuts at {budget:.3g} wrong", 0, 0)
    # Who pays for each comparison does not want it for cuts that nobody proposes.
    is_free = tuning.comparator.judge is None
    columns = {}
    for way in ways:
        if way.name not in (_cosine(tuning), LEARNED) and not is_free:
            continue
        cuts = way.study.certify(budget)
        columns[way.name] = Column(cuts, way.study.serve(cuts), way.study.in_hindsight(budget) if is_free else None)
    taken = next(way for way in ways if way.name == _cosine(tuning))
    learned = next((way for way in ways if way.name == LEARNED), None)
    if learned is not None and taught is not None:
        compared = learned.study.calibrates
        more, fewer = (way.study.covers(columns[way.name].cuts, compared) for way in (learned, taken))
        taken = learned if more > fewer else taken
    column = columns[taken.name]
    always = taken.always.serve(taken.always.certify(budget))
    return Row(budget, taken, column.cuts, column.served, always, column.hindsight, columns)


def _measured(
    recording: Recording, calibrating: int, tuning: Tuning, taught: Taught | None, served: Served
) -> dict[str, object]:
    """Tell what a policy was measured on, and what it did on the part that was not looked at."""
    return {
        "requests": len(recording.asked),
        "calibrating": calibrating,
        "proved_on": recording.digest(calibrating),
        "span_seconds": recording.span_seconds,
        "labelled_share": tuning.share,
        "teaching": None if taught is None else {"requests": taught.begin, "labels": taught.labels},
        "reported": {"near": served.near.count, "wrong": served.wrong.count, "judged": served.wrong.of},
    }


def _policy(row: Row, embedder: str, tuning: Tuning, measured: dict[str, object]) -> Tuned:
    cuts = row.cuts
    families = {family.hex(): _proof(found) for family, found in cuts.families.items()}
    others = _proof(cuts.others)
    if not others.labels:  # a family by itself always has enough of them
        others = replace(
            others, counted=row.way.study.most_facts(cuts), needed=labels_needed(cuts.budget, cuts.confidence)
        )
    return Tuned(
        cuts.budget, CONFIDENCE, embedder, others, families, measured, tuning.guards, row.way.score
    )  # fmt: skip


def _proof(found: Certified) -> Proof:
    """Return what was proved, or, where nothing was, the labels with which testing began."""
    tally = found.tally or found.begun
    return NOTHING if tally is None else Proof(found.cut, tally.labels, tally.wrong)
