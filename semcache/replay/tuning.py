"""What came of tuning, as figures for `--json` and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from semcache.policy.bounds import CONFIDENCE, Certified, Tally, labels_at_rate, labels_needed, upper_bound
from semcache.policy.status import Share
from semcache.replay.render import WIDEST, Line, wrapped
from semcache.replay.score import Rate
from semcache.replay.study import Cuts, Served
from semcache.replay.tune import LEARNED, PLAIN, Column, Outcome, Row, Way
from semcache.replay.words import clip, count, duration, interval, percent, plain

_SKIPPED_SHOWN = 3


def missing(outcome: Outcome) -> int | None:
    """Return how many labels are missing until a cut of all families together can be proved; 0 where one is.

    In the way that may be taken that lacks fewest. None: at the wrong shares that were seen no number is enough.
    """
    if outcome.row.cuts.others.cut is not None:
        return 0
    lacking = [_lacking(outcome, way) for way in _takeable(outcome)]
    return min((one for one in lacking if one is not None), default=None)


def _takeable(outcome: Outcome) -> list[Way]:
    """Return the ways that may be taken, the cosine's first: where guards are on, that without them is to compare."""
    return [way for way in outcome.ways if way.name != PLAIN or not outcome.tuning.guards]


def _lacking(outcome: Outcome, way: Way) -> int | None:
    """Return how many labels one way lacks, of those that it is proved on, which of a score are but some."""
    budget, cuts = outcome.tuning.budget, outcome.row.columns[way.name].cuts
    tally = cuts.others.failed
    if tally is None:
        return labels_needed(budget, cuts.confidence) - way.study.most_facts(cuts)
    needed = labels_at_rate(tally.wrong / tally.labels, budget, cuts.confidence)
    return None if needed is None else max(1, needed - tally.labels)


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return what came of tuning as plain data for JSON: rates are shares of 1, null where there is nothing."""
    recording, policy = outcome.recording, outcome.policy
    disagrees = outcome.disagrees
    return {
        "requests": len(recording.asked),
        "calibrating": outcome.calibrating,
        "skipped_lines": len(recording.skipped),
        "max_wrong": outcome.tuning.budget,
        "confidence": CONFIDENCE,
        "cuts": policy.cuts,
        "labels": outcome.facts,
        "labels_missing": missing(outcome),
        "policy": repr(policy),
        "embedder": policy.embedder,
        "guards": list(policy.guards),
        "score": _taught(outcome),
        "budgets": [_row(row) for row in outcome.rows],
        "exact_only": outcome.exact.share,
        "oracle": None if outcome.oracle is None else outcome.oracle.share,
        "origin_disagrees": {"count": disagrees.count, "of": disagrees.of},
        "comparisons_open": outcome.tuning.comparator.opened,
        "judge_troubles": dict(outcome.tuning.comparator.troubles),
        "wall_seconds": outcome.wall_seconds,
    }


def _taught(outcome: Outcome) -> dict[str, Any] | None:
    taught = outcome.taught
    if taught is None:
        return None
    return {
        "labels": taught.labels,
        "pairs": taught.score.labels,
        "requests": taught.begin,
        "is_better_than_cosine": taught.score.correction is not None,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "max_wrong": row.budget,
        "by": row.way.name,
        "confidence": row.cuts.confidence,
        "others": _certified(row.cuts.others),
        "families": {family.hex(): _certified(found) for family, found in row.cuts.families.items()},
        "served": _served(row.served),
        "cached_always": _served(row.always),
        "in_hindsight": _hindsight(row),
        "ways": {
            name: {"served": _served(column.served), "in_hindsight": _hindsight(column)}
            for name, column in row.columns.items()
        },
    }


def _hindsight(told: Row | Column) -> dict[str, Any] | None:
    return None if told.hindsight is None else {"cut": told.hindsight[0], **_served(told.hindsight[1])}


def _certified(found: Certified) -> dict[str, Any]:
    return {"cut": found.cut, "proof": _tally(found.tally), "failed": _tally(found.failed)}


def _tally(tally: Tally | None) -> dict[str, Any] | None:
    if tally is None:
        return None
    bound = upper_bound(tally.wrong, tally.labels, CONFIDENCE)
    return {"cut": tally.cut, "labels": tally.labels, "wrong": tally.wrong, "bound": bound}


def _served(served: Served) -> dict[str, Any]:
    return {
        "near": served.near.count,
        "of": served.near.of,
        "near_share": served.near.share,
        "near_share_ci95": served.near.interval,
        "answered": served.answered.share,
        "wrong": served.wrong.count,
        "judged": served.wrong.of,
        "wrong_per_hit": served.wrong.share,
        "wrong_per_hit_ci95": served.wrong.interval,
    }


def render(outcome: Outcome, name: str, target: str, width: int) -> list[Line]:
    """Return what came of tuning on the recording `name` as lines of at most about `width` columns."""
    width = min(width, WIDEST)
    lines: list[Line] = [[]]
    for section in (_head(outcome, name, width), _table(outcome), _ways(outcome), _notes(outcome, width)):
        lines += [*section, []]
    return [*lines, *_conclusion(outcome, target, width), []]


def _head(outcome: Outcome, name: str, width: int) -> Iterator[Line]:
    requests = len(outcome.recording.asked)
    yield [("Tuning on ", "title"), (clip(plain(name), width - 12), "title")]
    yield from wrapped(
        f"{count(requests, 'request')} over {duration(outcome.recording.span_seconds)}: the first "
        f"{outcome.calibrating:,} prove cuts, the other {requests - outcome.calibrating:,} show what they do",
        width,
    )
    yield from wrapped(f"embedder: {outcome.policy.embedder}", width)


def _table(outcome: Outcome) -> Iterator[Line]:
    heads = (f"{'at most wrong':<14}{'cut':>12}{'near hits':>11}{'of requests (95%)':>20}{'wrong per hit (95%)':>22}"
             f"{'in hindsight':>14}")  # fmt: skip
    yield [("  " + heads, "head")]
    yield [("  " + "─" * len(heads), "note")]
    for row in outcome.rows:
        near, wrong = row.served.near, row.served.wrong
        told = f"{percent(wrong.share)} {interval(wrong)}" if wrong.of else ""
        is_bad = wrong.interval is not None and wrong.interval[0] > row.budget
        hindsight = "" if row.hindsight is None else percent(row.hindsight[1].near.share)
        style = "title" if row is outcome.row else ""
        yield [
            (f"  {f'{100 * row.budget:.3g}%':<14}{_cut(row.cuts):>12}{near.count:>11,}", style),
            (f"{f'{percent(near.share)} {interval(near)}' if near.count else '':>20}", style),
            (f"{told:>22}", "bad" if is_bad else style),
            (f"{hindsight:>14}", "note"),
        ]
    yield [("  " + "─" * len(heads), "note")]
    yield [(f"  {'exact only':<26}{outcome.exact.count:>11,}{percent(outcome.exact.share):>9}", "")]
    if outcome.oracle is not None:
        yield [(f"  {'oracle, all hits':<26}{outcome.oracle.count:>11,}{percent(outcome.oracle.share):>9}", "")]


def _ways(outcome: Outcome) -> Iterator[Line]:
    """Tell beside each other what each way to decide serves: proved, and in hindsight."""
    heads = f"{'near hits, of requests (95%)':<30}" + "".join(
        f"{f'at most {100 * row.budget:.3g}%':>17}" for row in outcome.rows
    )
    yield [("  " + heads, "head")]
    yield [("  " + "─" * len(heads), "note")]
    for name in outcome.row.columns:
        columns = [row.columns[name] for row in outcome.rows]
        shares = [column.served.near for column in columns]
        told = [f"{percent(near.share)} {interval(near)}" if near.count else "-" for near in shares]
        yield [(f"  {name:<30}" + "".join(f"{one:>17}" for one in told), "title" if _is_taken(outcome, name) else "")]
        found = [column.hindsight for column in columns]
        if outcome.tuning.comparator.judge is None:
            told = ["-" if one is None else percent(one[1].near.share) for one in found]
            yield [(f"  {'  in hindsight':<30}" + "".join(f"{one:>17}" for one in told), "note")]
    if outcome.oracle is not None:
        near = outcome.oracle.count - outcome.exact.count
        share = near / outcome.oracle.of if outcome.oracle.of else 0.0
        yield [(f"  {'oracle':<30}" + f"{percent(share):>17}" * len(outcome.rows), "note")]


def _is_taken(outcome: Outcome, name: str) -> bool:
    return outcome.row.way.name == name


def _cut(cuts: Cuts) -> str:
    proved = [found.cut for found in (cuts.others, *cuts.families.values()) if found.cut is not None]
    if not proved:
        return "none"
    low, high = min(proved), max(proved)
    return f"{low:.3f}" if low == high else f"{low:.3f}-{high:.3f}"


def _notes(outcome: Outcome, width: int) -> Iterator[Line]:
    yield from wrapped(
        "in hindsight: what the best single cut would have served of these requests, had their labels been known.",
        width, "note",
    )  # fmt: skip
    told = f"tested by itself: {count(len(outcome.row.cuts.families), 'scope family', 'scope families')}"
    yield from wrapped(f"{told}, with labels enough for it; all others together.", width, "note")
    if outcome.taught is not None:
        yield from wrapped(_told_of(outcome), width, "note")
    comparator = outcome.tuning.comparator
    disagrees = outcome.disagrees
    if disagrees.of and not outcome.recording.has_answer_ids:
        told = f"the origin answered an identical request otherwise in {_of(disagrees)}"
        yield from wrapped(f"{told}; nothing near can be proved to be better than that.", width, "note")
    if comparator.opened and not outcome.recording.has_answer_ids:
        told = count(comparator.opened, "comparison was", "comparisons were")
        yield from wrapped(
            f"{told} left open, and counted as wrong: --judge MODULE:FUNCTION decides them.", width, "warn"
        )
    for trouble, times in comparator.troubles.most_common(_SKIPPED_SHOWN):
        yield from wrapped(f"the judge failed {count(times, 'time')}: {plain(trouble)}", width, "bad")
    if outcome.uncovered:
        text = "text that the embedder does not see whole is"
        told = count(outcome.uncovered, text, "texts that the embedder does not see whole are")
        yield from wrapped(f"{told} matched exactly only.", width, "note")
    skipped = outcome.recording.skipped
    if skipped:
        yield from wrapped(
            f"{count(len(skipped), 'line was', 'lines were')} not in the format, and skipped:", width, "bad"
        )
        for number, reason in skipped[:_SKIPPED_SHOWN]:
            yield from wrapped(f"line {number}: {plain(reason)}", width, "note")


def _told_of(outcome: Outcome) -> str:
    """Say what a score was learned from, and what was taken."""
    taught = outcome.taught
    assert taught is not None  # noqa: S101 - asked only then
    told = f"a score was learned from {count(taught.labels, 'label')}"
    if taught.begin:
        told += f" of the first {count(taught.begin, 'request')}, which prove nothing for it"
    if taught.score.correction is None:
        told += "; they bear out nothing beyond the cosine"
    taken = "score" if outcome.row.way.name == LEARNED else "cosine"
    return f"{told}. At {100 * outcome.tuning.budget:.3g}% the {taken} is taken; each was proved with 97.5% confidence."


def _of(rate: Rate) -> str:
    return f"{rate.count:,} of {rate.of:,} cases"


def _conclusion(outcome: Outcome, target: str, width: int) -> Iterator[Line]:
    row, share = outcome.row, f"{100 * outcome.tuning.budget:.3g}%"
    of = "" if outcome.policy.score is None else " of the learned score"
    if outcome.policy.cuts:
        told = (
            f"With 95% confidence at most {share} of the near matches served from {_cut(row.cuts)}{of} on are wrong; "
            f"on the rest of the recording these were {percent(row.served.near.share)} of the requests. {target} holds "
            f"the policy: try it with `semcache replay OTHER.jsonl --policy {target}`, use it with Cache(policy=...)."
        )
        yield from wrapped(told, width, "good")
        return
    yield from wrapped(f"No cut was proved at {share}: {target} serves nothing near. {_why(outcome)}", width, "warn")


def _why(outcome: Outcome) -> str:
    """Say what it would take, in each way that may be taken: while one may be proved, more labels are worth their time.

    The first is the cosine's; of the score it is said where that is all that is left to hope for.
    """
    cosine, *learned = _takeable(outcome)
    told = _why_of(outcome, cosine)
    if not learned or _lacking(outcome, cosine) is not None:
        return told
    return f"{told} The learned score is proved apart. {_why_of(outcome, learned[0])}"


def _why_of(outcome: Outcome, way: Way) -> str:
    cuts, lacking = outcome.row.columns[way.name].cuts, _lacking(outcome, way)
    is_learned, tally = way.name == LEARNED, cuts.others.failed
    if tally is not None:
        of = " of it" if is_learned else ""
        told = f"Of the {count(tally.labels, 'label')} from {tally.cut:.3f}{of} on, {tally.wrong:,} were wrong"
        if lacking is not None:
            return f"{told}: if that share stays as it is, about {count(lacking, 'label is', 'labels are')} missing."
        low, high = Share(tally.wrong, tally.labels).interval
        if low <= outcome.tuning.budget:
            return (
                f"{told}: more than that share, but so few labels leave open what it is, {percent(low)} to "
                f"{percent(high)}. More of them would tell."
            )
        others = " the similarity" if not is_learned and len(_takeable(outcome)) > 1 else ""
        return f"{told}: more than that share, so more labels of this kind will not help{others}."
    facts = way.study.most_facts(cuts)
    needed = labels_needed(outcome.tuning.budget, cuts.confidence)
    told = f"It takes {needed:,} labels, none wrong, and there are {facts:,}"
    told += f": {count(lacking or 0, 'label is', 'labels are')} missing"
    if not facts:
        return f"{told}. A near match has one where both requests have an answer_id, or a response to compare."
    times = (facts + (lacking or 0)) / facts
    span = duration(times * outcome.recording.span_seconds * outcome.tuning.split)
    return (
        f"{told}. At this traffic's rate {span} of requests to prove cuts with would do, {ceil(times)} times as many."
    )
