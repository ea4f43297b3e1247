"""The breaker before each tier: who fails too often is left alone for a while, and tried again (law 10)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from semcache.tier import Breaker


class Now:
    """A clock that is moved by hand."""

    def __init__(self, seconds=1000.0):
        self.seconds = seconds

    def __call__(self):
        return self.seconds


def opened(clock, failures=5):
    breaker = Breaker(clock, failures)
    for _ in range(failures):
        breaker.failed()
    return breaker


def pauses(clock, breaker, count):
    """Fail each trial, and return how long it takes until the next one is allowed, in steps of 10 ms."""
    told = []
    for _ in range(count):
        steps = 0
        while not breaker.allows():
            clock.seconds += 0.01
            steps += 1
            assert steps < 10_000
        breaker.failed()
        told.append(steps * 0.01)
    return told


def test_breaker_that_never_failed_lets_all_through():
    """A tier that works is asked every time."""
    breaker = Breaker(Now())
    assert not breaker.is_open
    assert all(breaker.allows() for _ in range(100))


def test_breaker_opens_at_the_fifth_failure_in_a_row():
    """Four failures are bad luck, five are a broken tier."""
    breaker = Breaker(Now())
    for _ in range(4):
        breaker.failed()
        assert breaker.allows()
        assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    assert not breaker.allows()


def test_breaker_counts_failures_in_a_row_only():
    """An answer between them starts the count anew."""
    breaker = Breaker(Now())
    for _ in range(10):
        for _ in range(4):
            breaker.failed()
        breaker.succeeded()
    assert breaker.allows()
    assert not breaker.is_open


@pytest.mark.parametrize("failures", [1, 2, 7])
def test_breaker_opens_at_the_failures_it_was_given(failures):
    """The number of failures is a setting."""
    breaker = Breaker(Now(), failures)
    for _ in range(failures - 1):
        breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()


def test_open_breaker_lets_one_caller_a_pause_through():
    """While it is open, one caller tries the tier for all."""
    clock = Now()
    breaker = opened(clock)
    assert [breaker.allows() for _ in range(5)] == [False] * 5
    clock.seconds += 0.101
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]


def test_open_breaker_asked_by_many_threads_at_once_lets_one_through():
    """One caller a pause, of however many threads."""
    clock = Now()
    breaker = opened(clock)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            clock.seconds += 10
            assert sum(pool.map(lambda _: breaker.allows(), range(64))) == 1


def test_pauses_double_up_to_five_seconds():
    """A tier that stays broken is tried ever more rarely, at least every 5 s."""
    clock = Now()
    told = pauses(clock, opened(clock), 12)
    assert told == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5, 5, 5], abs=0.03)


def test_breaker_closes_at_a_success_and_forgets():
    """A trial that succeeds lets all through again, and the next opening starts with short pauses."""
    clock = Now()
    breaker = opened(clock)
    pauses(clock, breaker, 8)
    clock.seconds += 5.1
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.is_open
    assert all(breaker.allows() for _ in range(10))
    for _ in range(5):
        assert breaker.allows()
        breaker.failed()
    assert pauses(clock, breaker, 3) == pytest.approx([0.1, 0.2, 0.4], abs=0.03)


def test_trial_that_never_reports_does_not_keep_the_breaker_open():
    """A caller that was cancelled in its trial says neither; the next pause has a trial of its own."""
    clock = Now()
    breaker = opened(clock)
    for _ in range(5):
        clock.seconds += 5.1
        assert breaker.allows()
        assert not breaker.allows()


class Life(RuleBasedStateMachine):
    """A breaker in any order of events: never silent for more than 5 s, never more than one caller a pause."""

    def __init__(self):
        super().__init__()
        self.clock = Now()
        self.breaker = Breaker(self.clock)
        self.in_a_row = 0
        self.trials = []

    @rule()
    def fail(self):
        self.breaker.failed()
        self.in_a_row += 1

    @rule()
    def succeed(self):
        self.breaker.succeeded()
        self.in_a_row = 0
        self.trials = []

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.15, 1, 4.9, 5.1, 100]))
    def pass_time(self, seconds):
        self.clock.seconds += seconds

    @rule()
    def ask(self):
        is_allowed = self.breaker.allows()
        if self.in_a_row < 5:
            assert is_allowed
        elif is_allowed:
            self.trials.append(self.clock.seconds)

    @rule()
    def wait_for_a_trial(self):
        self.clock.seconds += 5.1
        assert self.breaker.allows()
        if self.in_a_row >= 5:
            self.trials.append(self.clock.seconds)

    @invariant()
    def is_open_after_five_failures(self):
        assert self.breaker.is_open is (self.in_a_row >= 5)

    @invariant()
    def trials_are_a_pause_apart(self):
        assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in zip(self.trials, self.trials[1:], strict=False))


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_breaker_in_any_order_of_events_keeps_its_promises = Life.TestCase
