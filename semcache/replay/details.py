"""What a report's page shows beside the figures: hits over time, cuts, wrong hits, near misses, stages; pure.

Laws: every list is bounded, and says of how many it is a part; what nobody judged is told as that, never as right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from semcache.replay.recording import Asked
from semcache.replay.score import NEAR, Hits, Outcome, Rate, is_wrong, percentile
from semcache.replay.words import bare, count

_REQUESTS_A_BIN = 20
_MOST_BINS = 48
_WORDS_TOLD = 6
_NEGATIONS = frozenset(
    re.findall(
        r"\S+",
        "not no never none without cannot can't don't doesn't didn't isn't aren't won't shouldn't "
        "nicht kein keine keinen nie ohne ne pas jamais sans nunca sin",
    )
)


@dataclass(slots=True)
class Bins:
    """Requests and hits in equal spans of time, `seconds` long each; `hits` by tier."""

    seconds: float
    requests: list[int] = field(default_factory=list)
    hits: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Cut:
    """What a threshold of `similarity` would find: near matches, how many could be judged, how many were wrong."""

    similarity: float
    near: Hits


@dataclass(slots=True)
class Pair:
    """Two requests that met, `times` in all: what was asked, and whose answer it was given, or could have been.

    `similarity` is None for an exact hit; `apart` says what told the two apart; `is_wrong` is None where nobody knows;
    `seconds` of waiting is what these requests took.
    """

    asked: Asked
    other: Asked
    similarity: float | None
    is_wrong: bool | None
    times: int = 0
    seconds: float = 0.0

    @property
    def apart(self) -> str:
        return told_apart(self.asked, self.other)


@dataclass(slots=True)
class Stage:
    """What one stage of a lookup took, in microseconds, over `of` lookups that came to it."""

    name: str
    of: int
    p50: float
    p90: float
    p99: float


def over_time(asked: Sequence[Asked], outcomes: Sequence[Outcome], tiers: Iterable[str]) -> Bins:
    """Count requests and hits in equal spans of time, of some requests each."""
    number = max(1, min(_MOST_BINS, len(asked) // _REQUESTS_A_BIN))
    first = asked[0].ts if asked else 0.0
    span = (asked[-1].ts - first) if asked else 0.0
    bins = Bins(span / number, [0] * number, {tier: [0] * number for tier in tiers})
    for one, outcome in zip(asked, outcomes, strict=True):
        place = min(number - 1, int((one.ts - first) / span * number)) if span else 0
        bins.requests[place] += 1
        if outcome.tier in bins.hits:
            bins.hits[outcome.tier][place] += 1
    return bins


def by_cut(asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[Cut]:
    """Return what each threshold would find, the highest first."""
    found = []
    for one, outcome in zip(asked, outcomes, strict=True):
        if outcome.nearest is not None:
            found.append((outcome.nearest[1], is_wrong(one, asked[outcome.nearest[0]])))
    found.sort(key=lambda near: -near[0])
    cuts: list[Cut] = []
    near = Hits()
    for place, (similarity, wrong) in enumerate(found):
        near = Hits(near.hits + 1, near.judged + (wrong is not None), near.wrong + bool(wrong))
        if place + 1 == len(found) or found[place + 1][0] < similarity:
            cuts.append(Cut(similarity, near))
    return cuts


def wrong_pairs(asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[Pair]:
    """Return the wrong hits, pair by pair, worst first: exact ones, then those that looked most alike."""
    found: dict[object, Pair] = {}
    for one, outcome in zip(asked, outcomes, strict=True):
        if outcome.tier is None or outcome.maker is None or not is_wrong(one, asked[outcome.maker]):
            continue
        other = asked[outcome.maker]
        similarity = outcome.nearest[1] if outcome.tier == NEAR and outcome.nearest is not None else None
        _add(found, Pair(one, other, similarity, is_wrong=True), (outcome.tier == NEAR, one.answer_id, other.answer_id))
    return sorted(
        found.values(), key=lambda pair: (-(2.0 if pair.similarity is None else pair.similarity), -pair.times)
    )


def near_misses(asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[Pair]:
    """Return the near matches that were not served and not wrong, pair by pair, nearest first."""
    found: dict[object, Pair] = {}
    for one, outcome in zip(asked, outcomes, strict=True):
        if outcome.tier is None and outcome.nearest is not None:
            other = asked[outcome.nearest[0]]
            wrong = is_wrong(one, other)
            if not wrong:
                _add(found, Pair(one, other, outcome.nearest[1], wrong), ())
    return sorted(found.values(), key=lambda pair: (-(pair.similarity or 0.0), -pair.times, -pair.seconds))


def _add(found: dict[object, Pair], pair: Pair, more: object) -> None:
    asked, other = pair.asked, pair.other
    texts = (asked.text, other.text) if asked.text else (asked.request and asked.request.key,)
    similarity = pair.similarity
    pair = found.setdefault((texts, more), pair)
    if similarity is not None and pair.similarity is not None:  # they may differ in their last bits
        pair.similarity = min(pair.similarity, similarity)
    pair.times += 1
    pair.seconds += asked.seconds


def below(cuts: Sequence[Cut], similarity: float) -> Rate:
    """Return the share of wrong among all near matches of at least that similarity."""
    near = next((cut.near for cut in reversed(cuts) if cut.similarity >= similarity), Hits())
    return near.wrong_per_hit


def stages(outcomes: Iterable[Outcome], names: Iterable[str]) -> list[Stage]:
    """Return what the cache's own stages took, in the order of `names`."""
    taken: dict[str, list[int]] = {}
    for outcome in outcomes:
        for name, nanoseconds in outcome.stages.items():
            taken.setdefault(name, []).append(nanoseconds)
    told = []
    for name in names:
        ordered = sorted(taken.get(name, ()))
        if ordered:
            p50, p90, p99 = (percentile(ordered, share) / 1000 for share in (0.5, 0.9, 0.99))
            told.append(Stage(name, len(ordered), p50, p90, p99))
    return told


def told_apart(asked: Asked, other: Asked) -> str:
    """Say in what two requests differ, as far as words can: numbers, a negation, other words."""
    if asked.around != other.around:
        return "what stands around the text"
    if asked.text == other.text:
        return "nothing: the recording gives the same request two answers"
    mine, theirs = (Counter(filter(None, map(bare, text.split()))) for text in (asked.text, other.text))
    left, right = list(mine - theirs), list(theirs - mine)
    if not left and not right:
        return "the order of the words, or their marks"
    told = []
    for label, is_such in (("numbers", _has_digit), ("negation", _NEGATIONS.__contains__)):
        sides = [[word for word in side if is_such(word)] for side in (left, right)]
        if any(sides):
            told.append(f"{label}: {_listed(sides[0])} / {_listed(sides[1])}")
            left, right = ([word for word in side if not is_such(word)] for side in (left, right))
    if left or right:
        told.append(f"words: {_listed(left)} / {_listed(right)}")
    return "; ".join(told)


def _has_digit(word: str) -> bool:
    return re.search(r"\d", word) is not None


def _listed(words: Sequence[str]) -> str:
    if not words:
        return "none"
    more = len(words) - _WORDS_TOLD
    return " ".join(words[:_WORDS_TOLD]) + (f" (and {count(more, 'more', 'more')})" if more > 0 else "")
