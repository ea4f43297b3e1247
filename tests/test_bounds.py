"""Bounds on a wrong rate, against exact sums of fractions, and the order in which cuts are tested."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.policy.bounds import Tally, at_most, certify, labels_at_rate, labels_needed, upper_bound


def summed(wrong, labels, rate):
    """Return the binomial's distribution function as a fraction, term by term."""
    return sum(
        (comb(labels, count) * rate**count * (1 - rate) ** (labels - count) for count in range(wrong + 1)),
        Fraction(0),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_probability_is_the_exact_sum(data):
    """The distribution function agrees with the sum of fractions, in both tails."""
    labels = data.draw(st.integers(1, 100))
    wrong = data.draw(st.integers(0, labels))
    rate = data.draw(st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000))
    assert at_most(wrong, labels, float(rate)) == pytest.approx(float(summed(wrong, labels, rate)), rel=1e-9, abs=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 80), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_upper_bound_is_where_so_few_wrong_become_unlikely(labels, data, confidence):
    """Just below the bound the labels are more likely than 1 - confidence, just above it less."""
    wrong = data.draw(st.integers(0, labels - 1))
    bound = upper_bound(wrong, labels, confidence)
    below, above = Fraction(bound * (1 - 1e-7)), Fraction(min(1.0, bound * (1 + 1e-7)))
    assert float(summed(wrong, labels, below)) >= 1 - confidence - 1e-9
    assert float(summed(wrong, labels, above)) <= 1 - confidence + 1e-9


def test_known_bounds():
    """Published values (R's binom.test, one-sided) and the ends."""
    assert upper_bound(0, 299) == pytest.approx(0.009969, abs=1e-6)
    assert upper_bound(1, 10) == pytest.approx(0.394163, abs=1e-6)
    assert upper_bound(10, 10) == upper_bound(0, 0) == 1.0
    assert at_most(3, 10**7, 1e-6) == pytest.approx(0.010336, abs=1e-5)


@pytest.mark.parametrize(("budget", "needed"), [(0.01, 299), (0.02, 149), (0.05, 59), (0.10, 29)])
def test_fewest_labels(budget, needed):
    """So many clean labels prove a budget, and one fewer do not."""
    assert labels_needed(budget) == needed
    assert upper_bound(0, needed) <= budget < upper_bound(0, needed - 1)


@pytest.mark.parametrize("wrong", [1, 3, 20])
def test_fewest_labels_with_wrong_ones(wrong):
    """With wrong ones among them it takes more."""
    needed = labels_needed(0.01, wrong=wrong)
    assert upper_bound(wrong, needed) <= 0.01 < upper_bound(wrong, needed - 1)


def test_labels_at_a_rate():
    """A rate below the budget is proved in the end, one at the budget never."""
    needed = labels_at_rate(0.005, 0.01)
    assert upper_bound(round(0.005 * needed), needed) <= 0.011
    assert labels_at_rate(0.01, 0.01) is None


def test_testing_begins_where_labels_are_enough_and_ends_at_the_first_failure():
    """A cut with too few labels is passed over, one that would hold behind a failure is not reached."""
    tallies = [Tally(0.99, 10, 10, 0), Tally(0.95, 400, 400, 0), Tally(0.9, 900, 880, 20), Tally(0.8, 9000, 9000, 0)]
    found = certify(tallies, 0.01)
    assert (found.cut, found.begun.cut, found.failed.cut) == (0.95, 0.95, 0.9)


def test_first_cut_that_fails_leaves_nothing():
    """What fails where testing begins opens nothing below."""
    found = certify([Tally(0.95, 400, 380, 20), Tally(0.9, 4000, 4000, 0)], 0.01)
    assert (found.cut, found.begun.cut, found.failed.cut) == (None, 0.95, 0.95)


def test_no_labels_no_cut():
    """Nothing is tested where there is nothing to test with."""
    found = certify([Tally(0.95, 3, 3, 0)], 0.01)
    assert (found.cut, found.begun, found.failed) == (None, None, None)
    assert certify([], 0.01).cut is None


@pytest.mark.parametrize("steepness", [0.0, 0.02, 0.2])
def test_what_opens_holds_the_budget(steepness):
    """Of 600 draws at most 5% (and what chance adds to it) open a cut whose true wrong rate is over the budget.

    With a steepness of 0 each cut's true rate lies a hair above the budget: the worst there is.
    """
    random, budget, draws, steps = Random(7), 0.05, 600, 8
    # Each step down serves 120 more near matches, of this true wrong rate.
    added = [budget * (1.001 if not steepness else 0.3) + steepness * step / steps for step in range(steps)]
    true = [sum(added[: step + 1]) / (step + 1) for step in range(steps)]
    broken = opened = 0
    for _ in range(draws):
        tallies, right, wrong = [], 0, 0
        for step, rate in enumerate(added):
            bad = sum(random.random() < rate for _ in range(120))
            right, wrong = right + 120 - bad, wrong + bad
            tallies.append(Tally(1 - step / 100, right + wrong, right, wrong))
        cut = certify(tallies, budget).cut
        if cut is not None:
            opened += 1
            broken += true[round((1 - cut) * 100)] > budget
    # More than 43 of 600 come with a probability of 1% where the rate of breaking is just 5%.
    assert broken <= 43
    assert opened > (0 if not steepness else draws // 3)
