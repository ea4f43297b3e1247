"""What a trace says of its stages: a row for each, a table of them, and what could be spared; pure.

Laws: nothing is guessed: work was done twice where one key was loaded twice, and stages are independent where both
have said what they need, and all that they need has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from semcache.events import Event

# So many runs of one stage are compared with those of the others.
_MOST_COMPARED = 100
# Less is not worth a sentence: what is found in memory does not wait for anything, and so runs in turn.
_WORTH_SECONDS = 0.001
_MENDS = {
    "not kept: over max_value": "the answer is larger than max_value=: raise it on the cache",
    "mode: off": 'mode="off" looks nothing up',
    "closed": "the cache is closed: open one, or close it later",
}


class Span(NamedTuple):
    """One run of a stage: what it needs (None: it has not said), and nanoseconds of a clock that never goes back."""

    name: str
    needs: tuple[str, ...] | None
    began: int
    ended: int


@dataclass(slots=True)
class StageRow:
    """What became of a stage: `calls` runs in `seconds` of wall-clock time, and the lookups made in it.

    `seconds` counts runs at once once; `load_seconds`, the sum of the loads, does not. A stage that only lookups name,
    as a function does without a `stage=`, has no calls and no seconds. Tokens and money are those that were spent.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    loads: int = 0
    load_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0


def rows(lookups: Sequence[Event], spans: Sequence[Span]) -> list[StageRow]:
    """Return a row for each stage, in the order in which they began; those that only lookups name come last."""
    runs = _runs(spans)
    made = {name: StageRow(name, len(of), _wall(of)) for name, of in runs.items()}
    for event in lookups:
        name = event.stage or event.function
        row = made.get(name) or made.setdefault(name, StageRow(name))
        row.hits += event.kind == "hit"
        row.misses += event.kind == "miss"
        row.bypasses += event.kind == "bypass"
        if event.kind == "hit" or event.shared:
            continue
        row.loads += 1
        row.load_seconds += event.load_seconds or 0.0
        if event.usage is not None:
            row.prompt_tokens += event.usage.prompt_tokens
            row.completion_tokens += event.usage.completion_tokens
            row.money += event.usage.money
    return list(made.values())


def table(stages: Sequence[StageRow], left_out: int = 0) -> str:
    """Return rows as aligned text, times in seconds."""
    lines = [("stage", "calls", "wall s", "hits", "misses", "loads", "load s", "tokens")]
    for row in stages:
        tokens = row.prompt_tokens + row.completion_tokens
        wall = f"{row.seconds:.3f}" if row.calls else "-"
        counts = (str(row.hits), str(row.misses), str(row.loads), f"{row.load_seconds:.3f}", str(tokens))
        lines.append((row.name, str(row.calls or "-"), wall, *counts))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    told = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join([*told, *([f"({left_out} more were not kept)"] if left_out else [])])


def findings(lookups: Sequence[Event], spans: Sequence[Span]) -> list[str]:
    """Return what was done twice, then what could have been done at once, a sentence each."""
    return [*_done_twice(lookups), *_in_turn(_runs(spans))]


def _runs(spans: Iterable[Span]) -> dict[str, list[Span]]:
    runs: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.began):
        runs.setdefault(span.name, []).append(span)
    return runs


def _wall(spans: Sequence[Span]) -> float:
    """Return the seconds in which at least one of some spans, in the order of their beginnings, was under way."""
    nanoseconds, until = 0, 0
    for span in spans:
        nanoseconds += max(0, span.ended - max(span.began, until))
        until = max(until, span.ended)
    return nanoseconds / 1e9


def _done_twice(lookups: Sequence[Event]) -> list[str]:
    loads: dict[bytes, list[Event]] = {}
    for event in lookups:
        if event.key and event.kind in ("miss", "bypass") and not event.shared and not event.failed:
            loads.setdefault(event.key, []).append(event)
    groups: dict[tuple[str, str], list[list[Event]]] = {}
    for events in loads.values():
        if len(events) > 1:
            groups.setdefault((events[0].function or "a call", _mend(events)), []).append(events)
    told = []
    for (function, mend), group in groups.items():
        count = sum(map(len, group))
        stages = ", ".join(dict.fromkeys(event.stage for events in group for event in events if event.stage))
        where = f" in {stages}" if stages and stages != function else ""
        told.append(f"{function} was loaded {count} times{where} where {len(group)} would do: {mend}.")
    return told


def _mend(events: Sequence[Event]) -> str:
    """Say why a call was loaded again, and what helps, as far as its events tell."""
    for event in events:
        for place, _, message in event.faults:
            if place == "codec":
                return f"its answer cannot be stored ({message})"
        if event.reason in _MENDS:
            return _MENDS[event.reason]
        if (event.reason or "").startswith("not kept"):
            return f"its answer was {event.reason}"
    return (
        "its answer had expired, was invalidated or evicted in between, or was to be loaded anew: give it a longer "
        "ttl, or pass the first answer on"
    )


def _in_turn(runs: dict[str, list[Span]]) -> list[str]:
    """Name the pairs of stages that do not need each other, and of which no run of one met a run of the other."""
    needs = {name: _needs(name, runs) for name in runs}
    told = []
    for first, second in combinations(runs, 2):
        of_first, of_second = needs[first], needs[second]
        if of_first is None or of_second is None or second in of_first or first in of_second:
            continue
        ones, others = runs[first][:_MOST_COMPARED], runs[second][:_MOST_COMPARED]
        pairs = [(one, other) for one in ones for other in others]
        if any(one.began < other.ended and other.began < one.ended for one, other in pairs):
            continue
        spared = min(_wall(runs[first]), _wall(runs[second]))
        if spared < _WORTH_SECONDS:
            continue
        if any(_waited(other, one, runs) or _waited(one, other, runs) for one, other in pairs):
            told.append(
                f"{second} and {first} do not need each other, and ran one after the other: run them at once, as by "
                f"asyncio.gather, and save up to {spared:.3f} s."
            )
    return told


def _needs(name: str, runs: dict[str, list[Span]]) -> set[str] | None:
    """Return all stages that one needs, directly or not; None where one of them has not said, or did not run."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        spans = runs.get(waiting.pop(), [])
        declared = [span.needs for span in spans if span.needs is not None]
        if not declared:
            return None
        new = {need for needs in declared for need in needs} - found
        found |= new
        waiting += new
    return found


def _waited(later: Span, earlier: Span, runs: dict[str, list[Span]]) -> bool:
    """Say whether a run began behind another though all that it needs was there before that one ended."""
    if later.began < earlier.ended:
        return False
    needed = [span.ended for need in later.needs or () for span in runs.get(need, ()) if span.ended <= later.began]
    return max(needed, default=0) < earlier.ended
