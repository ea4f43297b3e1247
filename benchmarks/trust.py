"""The figures of docs/trust.md: what an error budget does with labels whose wrong share is known.

python benchmarks/trust.py
"""

from __future__ import annotations

import numpy as np

from semcache.policy.bounds import at_most
from semcache.policy.eprocess import ANCHORS, CUTS, Detector, evidence, labels_needed, lowest_open, place_of, spent

ALPHA = 0.05
RUNS, LABELS = 1000, 5000
BUDGETS = (0.01, 0.02, 0.05, 0.1)


def _most_wrong(holds, labels: int) -> np.ndarray:
    most, found = -1, np.empty(labels + 1, dtype=np.int32)
    for total in range(labels + 1):
        while most + 1 <= total and holds(total - most - 1, most + 1):
            most += 1
        found[total] = most
    return found


def _opened(wrong: np.ndarray, most: np.ndarray) -> float:
    return float((wrong.cumsum(axis=1, dtype=np.int32) <= most[1 : wrong.shape[1] + 1]).any(axis=1).mean())


def peeking(random: np.random.Generator) -> None:
    """Look after every label, at a true wrong share equal to the budget."""
    print(f"\nwrongly opened, of {RUNS} runs, after any of {LABELS} labels, at a wrong share equal to the budget")
    print("budget | Clopper-Pearson at 5% | e-process at 5% | all beginnings of a family's first test")
    for budget in BUDGETS:
        wrong = random.random((RUNS, LABELS), dtype=np.float32) < budget
        exact = _most_wrong(lambda right, bad, b=budget: at_most(bad, right + bad, b) <= ALPHA, LABELS)
        single = _most_wrong(lambda right, bad, b=budget: evidence(right, bad, b) >= 1 / ALPHA, LABELS)
        level = spent(ALPHA, 1) / len(ANCHORS)
        first = _most_wrong(lambda right, bad, b=budget, at=level: evidence(right, bad, b) >= 1 / at, LABELS)
        scores = random.random((RUNS, LABELS), dtype=np.float32) * 0.3 + 0.7
        ever = np.zeros(RUNS, dtype=bool)
        for anchor in ANCHORS:
            at = scores >= anchor
            count = at.cumsum(axis=1, dtype=np.int32)
            ever |= ((at & wrong).cumsum(axis=1, dtype=np.int32) <= first[count]).any(axis=1)
        print(f"{budget:6.0%} | {_opened(wrong, exact):21.1%} | {_opened(wrong, single):15.1%} | {ever.mean():.1%}")


def opening(random: np.random.Generator) -> None:
    """Count the labels until a family of good matches opens."""
    print("\nlabels until the first cut opens (200 runs: median, 90% of runs), where all scores are one")
    print("budget | clean, at least | wrong share a tenth of the budget | a quarter | half")
    for budget in BUDGETS:
        level = spent(ALPHA, 1) / len(ANCHORS)
        most = _most_wrong(lambda right, bad, b=budget, at=level: evidence(right, bad, b) >= 1 / at, 20_000)
        told = []
        for part in (0.1, 0.25, 0.5):
            wrong = (random.random((200, 20_000), dtype=np.float32) < budget * part).cumsum(axis=1, dtype=np.int32)
            is_open = wrong <= most[1:]
            first = np.where(is_open.any(axis=1), is_open.argmax(axis=1) + 1.0, np.inf)
            told.append(f"{np.median(first):.0f}, {np.quantile(first, 0.9, method='higher'):.0f}")
        print(f"{budget:6.0%} | {labels_needed(budget, spent(ALPHA, 1)):6d} | {' | '.join(told)}")


def sequence(random: np.random.Generator, runs: int = 300) -> None:
    """Good matches above 0.91, bad ones below; looked at every 25 labels."""
    print(
        f"\nall cuts, at every 25th of 3000 labels, {runs} runs: above 0.91 a fifth of the budget is wrong, below half"
    )
    print("budget | ever opened a cut over its budget | opened at the end")
    for budget in BUDGETS[1:]:
        wrongly = opened = 0
        for _ in range(runs):
            scores = random.random(3000) * 0.3 + 0.7
            wrong = random.random(3000) < np.where(scores >= 0.91, budget / 5, 0.5)
            places = np.array([place_of(score) for score in scores])
            counts, lost, lowest = np.zeros((len(CUTS), 2)), False, None
            for begin in range(0, 3000, 25):
                np.add.at(counts, (places[begin : begin + 25], wrong[begin : begin + 25].astype(int)), 1)
                lowest = lowest_open(counts.cumsum(axis=0).tolist(), budget, spent(ALPHA, 1))
                if lowest is not None:
                    cut = CUTS[lowest]
                    above, below = 1 - max(cut, 0.91), max(0.0, 0.91 - cut)
                    lost |= (above * budget / 5 + below * 0.5) / (above + below) > budget
            wrongly += lost
            opened += lowest is not None
        print(f"{budget:6.0%} | {wrongly / runs:.1%} | {opened / runs:.1%}")


def alarms(random: np.random.Generator) -> None:
    """Count false alarms at the budget itself, and hits until a change is noticed."""
    print("\nalarms: false ones in 1,000,000 labels at the budget; hits until a topic that turned wrong is noticed")
    print("budget | false | the topic's share 5% (median, 99% of 300 runs) | 10% | 25% | 50%")
    for budget in BUDGETS:
        detector = Detector(budget)
        false = sum(detector.add(not bad, bad) for bad in (random.random(1_000_000) < budget).tolist())
        told = []
        for share in (0.05, 0.1, 0.25, 0.5):
            if share <= budget:
                told.append("within budget")
                continue
            hits = []
            for _ in range(300):
                detector = Detector(budget)
                for bad in (random.random(300) < budget / 4).tolist():
                    detector.add(not bad, bad)
                turned = (random.random(3000) < share + (1 - share) * budget / 4).tolist()
                hits.append(next((at + 1 for at, bad in enumerate(turned) if detector.add(not bad, bad)), np.inf))
            told.append(f"{np.median(hits):.0f}, {np.quantile(hits, 0.99, method='higher'):.0f}")
        print(f"{budget:6.0%} | {false} | {' | '.join(told)}")


def main() -> None:
    """Print all tables, with fixed seeds."""
    for number, table in enumerate((peeking, opening, sequence, alarms)):
        table(np.random.default_rng(number))


if __name__ == "__main__":
    main()
