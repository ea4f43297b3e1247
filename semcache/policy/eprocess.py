"""Evidence that may be looked at after every label: e-processes for cuts, and a detector of change. Pure statistics.

Laws: the state is counts of right and wrong labels, which add, so the evidence of two processes is that of their sums;
a wrong share over the budget is ever taken for one within it with a probability of at most alpha, however often one
looks (Ville's inequality); what is spent on one test is not there for the next. docs/trust.md has the proofs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, log, log1p, pi

from semcache.errors import ConfigurationError

CUTS = (0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.90, 0.88, 0.86, 0.84, 0.82, 0.80, 0.75, 0.70)
"""The cuts that are tested, in the order they are tested in."""
# Where testing begins, each with its share of alpha: one cannot know beforehand where there are labels.
ANCHORS = (0.98, 0.95, 0.91, 0.86)
_WEIGHTS = tuple(1 / len(ANCHORS) if cut in ANCHORS else 0.0 for cut in CUTS)
_ASCENDING = CUTS[::-1]
# Of the mixture: density q ** (_SHAPE - 1) on [0, budget]; most of it lies near 0, as good matches are mostly right.
_SHAPE = 0.5
# Evidence beyond this opens whatever can be opened; to sum on would take time.
_ENOUGH = 1e12
_NOTHING = 1e-12
_MOST_LABELS = 10_000_000

FALSE_ALARM_EVERY = 10_000


def check_budget(budget: object, confidence: object) -> tuple[float, float]:
    """Return a budget and a confidence as numbers. Raises ConfigurationError."""
    for told, name, example in ((budget, "max_wrong", "0.01"), (confidence, "confidence", "0.95")):
        if isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told < 1:
            raise ConfigurationError(f"{name} is a share between 0 and 1, as {example}; got {told!r}")
    return float(budget), float(confidence)  # type: ignore[arg-type]


def place_of(score: float) -> int | None:
    """Return the place in CUTS of the highest cut that serves a score; None where it is below all of them."""
    place = len(CUTS) - bisect_right(_ASCENDING, score)
    return place if place < len(CUTS) else None


def spent(alpha: float, test: int) -> float:
    """Return the share of alpha of the test of this number, from 1 on; over all tests they sum up to alpha."""
    return 6 * alpha / (pi * pi * test * test)


@lru_cache(4096)  # neighbouring cuts have the same labels, most of the time
def evidence(right: float, wrong: float, budget: float) -> float:
    """Return the e-value of these labels against "the wrong share is at least the budget"; at most about 1e12.

    It is the likelihood ratio of a wrong share q to the budget, averaged over q with density proportional to
    q ** -0.5 on [0, budget]; with no labels it is 1.
    """
    # The incomplete beta function's series, all of whose terms are positive; the powers of the budget cancel.
    total, term, top, bottom = 1.0, 1.0, wrong + _SHAPE + right + 1, wrong + _SHAPE + 1
    scale = _SHAPE * (1 - budget) / (wrong + _SHAPE)
    most = _ENOUGH / scale
    while total < most:
        ratio = top / bottom * budget
        term *= ratio
        total += term
        if ratio < 1 and term < _NOTHING * total * (1 - ratio):
            break
        top += 1
        bottom += 1
    return scale * total


def lowest_open(tallies: Sequence[tuple[float, float]], budget: float, alpha: float) -> int | None:
    """Return the place of the lowest cut to serve from; None where none is open.

    `tallies` are the labels at or above each of CUTS, (right, wrong). A cut is tested with its own share of alpha and
    what the cut before it hands on, which is all it had if it is open, and nothing if it is not (the fallback
    procedure: Wiens and Dmitrienko 2005). Of the open cuts the lowest is taken that has labels of its own: below them
    nothing was seen.
    """
    opened, level = [], 0.0
    for place, (right, wrong) in enumerate(tallies):
        level += alpha * _WEIGHTS[place]
        if level <= 0:
            continue
        if evidence(right, wrong, budget) >= 1 / level:
            opened.append(place)
        else:
            level = 0.0
    return next(
        (place for place in reversed(opened) if not place or tallies[place] != tallies[place - 1]),
        opened[0] if opened else None,
    )


@lru_cache(1024)
def labels_needed(budget: float, alpha: float, wrong_share: float = 0.0) -> int | None:
    """Return about how many labels at or above one of ANCHORS open it, at a share of wrong ones; None: no number."""
    if wrong_share >= budget:
        return None
    threshold = len(ANCHORS) / alpha
    low, high = 0, 16
    while evidence(high - ceil(wrong_share * high), ceil(wrong_share * high), budget) < threshold:
        low, high = high, high * 2
        if high > _MOST_LABELS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        wrong = ceil(wrong_share * middle)
        low, high = (low, middle) if evidence(middle - wrong, wrong, budget) >= threshold else (middle, high)
    return high


class Detector:
    """Says when the wrong share of what is served has gone over the budget: at worst one false alarm in 10,000 labels.

    One sum for each of some wrong shares over the budget, which begins anew wherever it falls below zero (CUSUM:
    Page 1954). Each term's exponential has a mean of at most 1 while the share is within the budget, so the sums are
    below an e-detector, whose time to a false alarm is at least what it is compared with (Shin, Ramdas and Rinaldo
    2024).
    """

    def __init__(self, budget: float, every: float = FALSE_ALARM_EVERY) -> None:
        shares = sorted({share for share in (2 * budget, 4 * budget, 8 * budget, 0.25, 0.5) if budget < share < 1})
        shares = shares or [(1 + budget) / 2]
        self._steps = [(log(share / budget), log1p(-share) - log1p(-budget)) for share in shares]
        self._limit = log(every * len(shares))
        self.sums = [0.0] * len(shares)

    def add(self, right: float, wrong: float) -> bool:
        """Take labels, of which the order is not known; True where it is an alarm, with which the sums begin anew."""
        self.sums = [
            max(0.0, one + wrong * up + right * down)
            for one, (up, down) in zip(self.sums, self._steps, strict=True)
        ]  # fmt: skip
        if max(self.sums) < self._limit:
            return False
        self.sums = [0.0] * len(self.sums)
        return True
