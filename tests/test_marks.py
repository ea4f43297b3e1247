"""Positions between those of the log, and the marks that stand there."""

from __future__ import annotations

import itertools

import pytest

from semcache.marks import Between, Marks

FIRST = Between(7)
SECOND = Between(FIRST)
ORDER = [6, 7, FIRST, SECOND, 8, Between(8), 9]


@pytest.mark.parametrize(("one", "other"), list(itertools.product(range(len(ORDER)), repeat=2)))
def test_position_between_two_lies_after_the_one_and_before_the_other(one, other):
    """All comparisons agree with the order in which positions were given, whichever side is which."""
    left, right = ORDER[one], ORDER[other]
    assert (left < right, left <= right, left == right) == (one < other, one <= other, one == other)
    assert (left > right, left >= right, left != right) == (one > other, one >= other, one != other)
    assert max(left, right) is ORDER[max(one, other)]


def test_position_between_two_is_the_older_one_to_others():
    """What leaves the process is the log's own position."""
    assert type(int(SECOND)) is int
    assert int(SECOND) == 7


def test_mark_between_covers_what_was_born_before_alone():
    """Law 8: births at the same position of the log are told apart by whether they follow the mark."""
    marks = Marks(lambda: 0.0, 10.0)
    assert marks.unkept == 0
    marks.mark("tag", "t", FIRST)
    assert marks.cover([("tag", "t")], 7)
    assert not marks.cover([("tag", "t")], FIRST)
    assert not marks.cover([("tag", "t")], 8)
    assert not marks.cover([("tag", "other")], 7)
    assert marks.unkept == FIRST
