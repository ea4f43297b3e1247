"""Scores: pure sums over outcomes, intervals, and the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import chat, run

from semcache.replay.recording import Asked
from semcache.replay.score import Outcome, Rate, is_wrong, oracle, origin_cost, percentile, score, within


def asked(position, answer_id="x", around=b"", ts=None, key=None):
    from semcache.model import Request

    request = Request(key or bytes([position]), text=f"text {position}")
    at = float(position if ts is None else ts)
    return Asked(position, at, request, None, "answer", answer_id, around, 2.0, 10, 5)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # From Wilson's formula as R's binom::binom.confint(method = "wilson") gives it.
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (3, 300, 0.0034, 0.029),
    ],
)
def test_interval_is_wilsons(count, of, low, high):
    """The interval of a rate is Wilson's at 95%, and stays within 0 and 1."""
    assert Rate(count, of).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500))
def test_interval_holds_its_share(count, of):
    """A rate lies in its own interval, and the interval in 0 to 1."""
    rate = Rate(min(count, of), of)
    low, high = rate.interval
    assert 0 <= low <= rate.share <= high <= 1


def test_rate_of_nothing_has_neither_share_nor_interval():
    """Nothing judged is not nothing wrong."""
    assert (Rate(0, 0).share, Rate(0, 0).interval) == (None, None)


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (asked(1), False),
        (asked(1, answer_id="y"), True),
        (asked(1, around=b"other"), True),
        (asked(1, answer_id=None), None),
    ],
)
def test_answer_is_wrong_where_truth_or_scope_differ(other, wrong):
    """Two requests may share an answer only if both their answer_id and what is around their texts are equal."""
    assert is_wrong(asked(0), other) is wrong
    assert is_wrong(other, asked(0)) is wrong


def test_score_sums_hits_misses_and_savings():
    """Each outcome is a hit of its tier or a miss; what is saved is what the origin took for the answered request."""
    requests = [asked(number) for number in range(4)]
    requests[3].request = None
    outcomes = [Outcome(nanoseconds=7), Outcome("memory", 0, nanoseconds=5), Outcome("disk", 0), Outcome()]
    total = score(requests, outcomes)
    assert (total.requests, total.misses, total.bypassed, total.hit_rate) == (4, 2, 1, 0.5)
    assert {name: hits.hits for name, hits in total.tiers.items()} == {"memory": 1, "disk": 1}
    assert (total.saved.seconds, total.saved.prompt_tokens, total.saved.completion_tokens) == (4.0, 20, 10)
    assert total.nanoseconds == {"miss": [7], "memory": [5]}
    assert origin_cost(requests).seconds == 8.0


def test_within_counts_what_no_exact_tier_answered():
    """A cut counts neighbours served or not, and those of another answer."""
    requests = [asked(0), asked(1), asked(2, "y"), asked(3)]
    outcomes = [Outcome(), Outcome("semantic", 0, (0, 0.96)), Outcome(nearest=(0, 0.91)), Outcome(nearest=(0, 0.5))]
    assert [(near.hits, near.wrong) for near in (within(requests, outcomes, cut) for cut in (0.95, 0.9, 0.4))] == [
        (1, 0), (2, 1), (3, 1),
    ]  # fmt: skip


def test_percentile_is_of_the_nearest_rank():
    """A percentile is one of the numbers."""
    ordered = list(range(1, 101))
    assert [percentile(ordered, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([3], 0.5) == 3


def test_oracle_answers_by_truth_and_scope_within_the_ttl():
    """The oracle serves exactly when truth and scope agree and what it loaded is alive."""
    requests = [
        asked(0, "x", b"s"), asked(1, "x", b"s"), asked(2, "y", b"s"), asked(3, "x", b"t"), asked(4, "x", b"s", ts=10),
        asked(5, "x", b"s", ts=19),
    ]  # fmt: skip
    assert [outcome.maker for outcome in oracle(requests, ttl=10)] == [None, 0, None, None, None, 4]


def test_oracle_answers_unlabelled_requests_by_their_repeats():
    """Without an answer_id, the truth is the request itself; what is bypassed is not answered."""
    requests = [asked(0, None, key=b"k"), asked(1, None, key=b"k"), asked(2, None), asked(3, "x"), asked(4, "x")]
    requests[3].request = None
    assert [outcome.maker for outcome in oracle(requests, ttl=10)] == [None, 0, None, None, None]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40000)), min_size=1, max_size=30))
def test_oracle_is_never_beaten_by_what_is_right(steps):
    """No cache that is right answers more than the oracle, whatever is asked at whatever times."""
    lines, ts = [], 0
    for text, wait in steps:
        ts += wait
        lines.append(chat(text, ts, answer_id=text))
    replayed = run(lines)
    total = score(replayed.recording.asked, replayed.outcomes)
    best = score(replayed.recording.asked, replayed.oracle)
    assert total.hits.wrong == best.hits.wrong == 0
    assert total.hits.hits <= best.hits.hits
