"""Bounds on a wrong rate from labels, and the cut that they allow: exact binomial statistics, without scipy.

Laws: pure; a bound is exact (Clopper and Pearson 1934), not an approximation; cuts are tested in one order that no
label has a say in, each at the full level, and the first that fails ends it (fixed-sequence testing: Maurer, Hothorn
and Lehmacher 1995), so that whatever opens holds with the confidence asked for. docs/tune.md tells the assumptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, exp, lgamma, log, log1p

CONFIDENCE = 0.95
_BISECTIONS = 60
_MOST_LABELS = 10**9
# What is left of a sum of shrinking terms below this share of it is beyond a float's digits.
_NOTHING = 1e-17


def at_most(wrong: int, labels: int, rate: float) -> float:
    """Return the probability of at most so many wrong among so many labels, where each is wrong at this rate."""
    if wrong >= labels or rate <= 0:
        return 1.0
    if wrong < 0 or rate >= 1:
        return 0.0
    if wrong <= labels * rate:
        return min(1.0, _tail(wrong, labels, rate))
    return max(0.0, 1.0 - _tail(labels - wrong - 1, labels, 1 - rate))


def _tail(most: int, labels: int, rate: float) -> float:
    """Sum the terms from 0 to `most`, which lies below the mean, from the largest down."""
    largest = (
        lgamma(labels + 1) - lgamma(most + 1) - lgamma(labels - most + 1)
        + most * log(rate) + (labels - most) * log1p(-rate)
    )  # fmt: skip
    odds = (1 - rate) / rate
    term = total = 1.0
    for count in range(most, 0, -1):
        term *= count / (labels - count + 1) * odds
        total += term
        if term < _NOTHING * total:
            break
    return exp(largest) * total


def upper_bound(wrong: int, labels: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper bound on the wrong rate, by Clopper and Pearson: 1 where there is no label."""
    if wrong >= labels:
        return 1.0
    low, high = wrong / labels, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if at_most(wrong, labels, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def labels_needed(budget: float, confidence: float = CONFIDENCE, wrong: int = 0) -> int:
    """Return the fewest labels with which so many wrong ones prove a budget: 59 at 5%, 299 at 1%, with none wrong."""
    if wrong == 0:
        found = ceil(log(1 - confidence) / log1p(-budget))
        return found if at_most(0, found, budget) <= 1 - confidence else found + 1
    low, high = wrong, 2 * wrong + 2
    while at_most(wrong, high, budget) > 1 - confidence:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(wrong, middle, budget) <= 1 - confidence else (middle, high)
    return high


def labels_at_rate(rate: float, budget: float, confidence: float = CONFIDENCE) -> int | None:
    """Return how many labels prove the budget where the share of wrong ones stays as it is; None: no number does."""
    if rate >= budget:
        return None
    high = labels_needed(budget, confidence)
    while at_most(ceil(rate * high), high, budget) > 1 - confidence:
        high += max(1, high // 20)
        if high > _MOST_LABELS:
            return None
    return high


@dataclass(frozen=True, slots=True)
class Tally:
    """The labels of the near matches that a cut serves.

    `facts` counts those that may enter a bound, whatever they say, so that where testing begins no label decides;
    `right` and `wrong` are what they say.
    """

    cut: float
    facts: int
    right: int
    wrong: int

    @property
    def labels(self) -> int:
        return self.right + self.wrong


@dataclass(frozen=True, slots=True)
class Certified:
    """What fixed-sequence testing found: the lowest cut that holds (None: none does), and the tally it ended at.

    `begun` is the first cut with labels enough, where testing began; None where none has enough.
    """

    tally: Tally | None
    begun: Tally | None
    failed: Tally | None

    @property
    def cut(self) -> float | None:
        return None if self.tally is None else self.tally.cut


def certify(tallies: Iterable[Tally], budget: float, confidence: float = CONFIDENCE) -> Certified:
    """Test cuts in the order given, highest first, from the first with labels enough, until one fails."""
    needed = labels_needed(budget, confidence)
    holds = begun = None
    for tally in tallies:
        if begun is None and tally.facts < needed:
            continue
        begun = begun or tally
        if at_most(tally.wrong, tally.labels, budget) > 1 - confidence:
            return Certified(holds, begun, tally)
        holds = tally
    return Certified(holds, begun, None)
