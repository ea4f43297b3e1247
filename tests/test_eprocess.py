"""Evidence under peeking, the cuts it opens, and the detector of change: against integrals and simulations."""

from math import exp, isclose, log, log1p

import numpy as np
import pytest

from semcache.policy.eprocess import (
    ANCHORS,
    CUTS,
    Detector,
    evidence,
    labels_needed,
    lowest_open,
    place_of,
    spent,
)

RUNS, LABELS = 1000, 5000


def boundary(budget: float, level: float, labels: int) -> np.ndarray:
    """Return for each number of labels the most wrong ones with which a cut is open; -1 where none is few enough."""
    most, found = -1, np.empty(labels + 1, dtype=np.int32)
    for total in range(labels + 1):
        while most + 1 <= total and evidence(total - most - 1, most + 1, budget) >= 1 / level:
            most += 1
        found[total] = most
    return found


def opened(right: np.ndarray, budget: float, level: float) -> float:
    """Return the share of runs in which a cut is open after any of its labels; `right` is bool[runs, labels]."""
    most = boundary(budget, level, right.shape[1])[1:]
    return float(((~right).cumsum(axis=1, dtype=np.int32) <= most).any(axis=1).mean())


@pytest.mark.parametrize("case", [(100, 0, 0.05), (100, 3, 0.05), (10, 5, 0.1), (300, 0, 0.01), (50, 20, 0.2)])
def test_evidence_is_the_mixture_of_likelihood_ratios(case: tuple[int, int, float]) -> None:
    """The sum is the integral over wrong shares up to the budget, with no labels it is 1."""
    right, wrong, budget = case
    steps = 20_000
    shares = (budget * ((step + 0.5) / steps) ** 2 for step in range(steps))
    told = sum(exp(wrong * log(q / budget) + right * (log1p(-q) - log1p(-budget))) for q in shares) / steps
    assert isclose(evidence(right, wrong, budget), told, rel_tol=1e-5)
    assert isclose(evidence(0, 0, budget), 1.0)


def test_evidence_stays_finite_and_quick_where_labels_are_many() -> None:
    """A million labels are as well understood as ten."""
    assert evidence(1_000_000, 0, 0.01) > 1e9
    assert evidence(1_000_000, 10_100, 0.01) < 1
    assert 0 < evidence(0, 1_000_000, 0.01) < 1e-3


@pytest.mark.parametrize("budget", [0.01, 0.05])
def test_peeking_after_every_label_seldom_opens_at_the_budget_itself(budget: float) -> None:
    """At a true wrong share equal to the budget at most 5% of 1,000 runs ever open, at full alpha and with cuts."""
    random = np.random.default_rng(7)
    right = random.random((RUNS, LABELS), dtype=np.float32) >= budget
    assert opened(right, budget, 0.05) <= 0.05
    # The first test of a family: whichever anchor opens, it opens wrongly.
    scores = random.random((RUNS, LABELS), dtype=np.float32) * 0.3 + 0.7
    ever = np.zeros(RUNS, dtype=bool)
    most = boundary(budget, spent(0.05, 1) / len(ANCHORS), LABELS)
    for anchor in ANCHORS:
        at = scores >= anchor
        labels, wrong = at.cumsum(axis=1, dtype=np.int32), (at & ~right).cumsum(axis=1, dtype=np.int32)
        ever |= (wrong <= most[labels]).any(axis=1)
    assert ever.mean() <= 0.05


def test_exact_bounds_that_are_looked_at_again_and_again_are_no_bounds() -> None:
    """What the e-process is for: the bound of `tune`, looked at after every label, opens wrongly far too often."""
    from semcache.policy.bounds import at_most

    budget, random = 0.05, np.random.default_rng(7)
    most, found = -1, np.empty(LABELS + 1, dtype=np.int32)
    for total in range(LABELS + 1):
        while most + 1 <= total and at_most(most + 1, total, budget) <= 0.05:
            most += 1
        found[total] = most
    right = random.random((RUNS, LABELS), dtype=np.float32) >= budget
    assert ((~right).cumsum(axis=1, dtype=np.int32) <= found[1:]).any(axis=1).mean() > 0.2


def test_matches_that_are_right_open_about_as_soon_as_an_exact_bound_allows() -> None:
    """Clean labels: 299 at 1% for a bound that is looked at once; looking always costs some more."""
    assert labels_needed(0.01, 0.05 * len(ANCHORS)) == 377
    assert labels_needed(0.01, spent(0.05, 1)) == 586
    assert labels_needed(0.05, spent(0.05, 1)) == 115
    assert labels_needed(0.05, spent(0.05, 1), wrong_share=0.06) is None


def test_the_lowest_cut_that_holds_is_open() -> None:
    """What a cut does not hold for stays closed, and what lies below it too."""
    below = CUTS.index(0.90)
    tallies = [(400 * (place + 1), 0) for place in range(below)]
    tallies += [(400 * (place + 1), 200) for place in range(below, len(CUTS))]
    assert lowest_open(tallies, 0.02, spent(0.05, 1)) == below - 1
    assert lowest_open([(0, 0)] * len(CUTS), 0.02, 0.05) is None
    assert lowest_open([(0, 50)] * len(CUTS), 0.02, 0.05) is None


def test_a_cut_without_labels_does_not_bar_those_below() -> None:
    """The second beginning opens where nothing lies at the first; cuts between them have what the first would give."""
    start = CUTS.index(0.91)
    tallies = [(0, 0)] * start + [(1000 + place, 0) for place in range(len(CUTS) - start)]
    assert lowest_open(tallies, 0.02, spent(0.05, 1)) == len(CUTS) - 1


def test_nothing_is_served_below_the_labels() -> None:
    """What lies lower than every label may be as good, but nothing of it was seen."""
    seen = CUTS.index(0.93)
    tallies = [(0, 0)] * seen + [(1000, 0)] * (len(CUTS) - seen)
    assert lowest_open(tallies, 0.02, spent(0.05, 1)) == CUTS.index(0.91)  # where its test began
    tallies = [(1000, 0)] * len(CUTS)
    assert lowest_open(tallies, 0.02, spent(0.05, 1)) == 0


def test_no_cut_over_the_budget_is_opened_in_a_sequence_that_is_looked_at_always() -> None:
    """High cuts good, low ones bad: of 60 runs at most 5% ever open one whose share is over the budget."""
    random, budget, wrongly = np.random.default_rng(3), 0.05, 0
    bad = CUTS.index(0.90)  # the first at or above which more than 5% is wrong
    for _ in range(60):
        scores = random.random(2000) * 0.3 + 0.7
        wrong = random.random(2000) < np.where(scores >= 0.91, 0.01, 0.45)
        places = np.array([place_of(score) for score in scores])
        lost = False
        for seen in range(100, 2001, 100):
            counts = np.zeros((len(CUTS), 2))
            np.add.at(counts, (places[:seen], wrong[:seen].astype(int)), 1)
            lowest = lowest_open(counts.cumsum(axis=0).tolist(), budget, spent(0.05, 1))
            lost |= lowest is not None and lowest >= bad
        wrongly += lost
    assert wrongly <= 60 * 0.05


def test_the_counts_of_two_processes_are_the_evidence_of_one() -> None:
    """Evidence is a function of sums: who counted what does not matter."""
    one, other = (120, 1), (80, 0)
    both = evidence(one[0] + other[0], one[1] + other[1], 0.05)
    assert both == evidence(200, 1, 0.05)


def test_alpha_is_spent_but_once() -> None:
    """All tests there will ever be have no more of it than there is."""
    assert 0.0499 < sum(spent(0.05, test) for test in range(1, 10_000)) < 0.05


def test_scores_have_the_place_of_the_highest_cut_that_serves_them() -> None:
    """At a cut a score is served by it, just below by the next, and below all by none."""
    assert [place_of(score) for score in (1.0, 0.98, 0.9799, 0.70, 0.6999)] == [0, 0, 1, len(CUTS) - 1, None]


@pytest.mark.parametrize("budget", [0.01, 0.02, 0.05])
def test_false_alarms_are_at_most_one_in_ten_thousand_labels(budget: float) -> None:
    """A wrong share that stays at the budget alarms at most 5 times in 50,000 labels."""
    random, detector, alarms = np.random.default_rng(11), Detector(budget), 0
    for wrong in (random.random(50_000) < budget).tolist():
        alarms += detector.add(not wrong, wrong)
    assert alarms <= 5


@pytest.mark.parametrize(("budget", "share"), [(0.01, 0.1), (0.02, 0.125), (0.05, 0.25)])
def test_a_topic_whose_answers_change_is_noticed_within_200_hits(budget: float, share: float) -> None:
    """A topic of a tenth to a quarter of the hits turns wrong: the alarm comes within 200, in 99 of 100 runs."""
    random, late = np.random.default_rng(5), 0
    for _ in range(100):
        detector = Detector(budget)
        for wrong in (random.random(500) < budget / 4).tolist():
            detector.add(not wrong, wrong)
        late += not any(detector.add(not wrong, wrong) for wrong in (random.random(200) < share).tolist())
    assert late <= 1


def test_labels_that_come_together_alarm_no_sooner_than_one_by_one() -> None:
    """A batch of which the order is not known is at most as alarming as its labels in any order."""
    random = np.random.default_rng(13)
    for _ in range(50):
        single, together = Detector(0.02), Detector(0.02)
        wrong = (random.random(40) < 0.05).tolist()
        alarmed = [single.add(not one, one) for one in wrong]
        assert not together.add(len(wrong) - sum(wrong), sum(wrong)) or any(alarmed)
