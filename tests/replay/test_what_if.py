"""What other bounds would have answered, against a cache that is run at each bound."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import chat, run, tiers

from semcache.replay.whatif import arrivals, by_memory, by_ttl, fixed_hits, reuse_distances
from semcache.ttl import TTL


def lru_hits(keys, sizes, bound):
    """Count the hits of an LRU of so many bytes, as one would write it down."""
    kept, hits = OrderedDict(), 0
    for key in keys:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
            continue
        kept[key] = sizes[key]
        while sum(kept.values()) > bound:
            kept.popitem(last=False)
    return hits


def test_reuse_distance_is_the_bytes_asked_for_since():
    """By hand: a 10, b 20, c 5: the second a has seen a, b and c; the second b has seen b, c and a."""
    assert reuse_distances("abcabba", [10, 20, 5, 10, 20, 20, 10]) == [None, None, None, 35, 35, 20, 30]


def test_key_keeps_the_size_that_it_came_with():
    """An answer that is found is not loaded anew, so its size stays."""
    assert reuse_distances("aa", [10, 99]) == [None, 10]


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(1, 9), min_size=10, max_size=10), st.data())
def test_reuse_distances_are_the_hits_of_every_lru(keys, sizes, data):
    """One pass tells of each bound, from the largest entry on, what an LRU of that bound answers."""
    bound = data.draw(st.integers(max(sizes), 100))
    distances = reuse_distances(keys, [sizes[key] for key in keys])
    assert sum(distance is not None and distance <= bound for distance in distances) == lru_hits(keys, sizes, bound)


def test_memory_curve_is_what_the_memory_tier_answers():
    """Of the real tier at one bound after another, the hits are those that the curve tells."""
    order = [number * number % 23 for number in range(150)]
    lines = [chat(f"q{number}", ts, response="r" * 100 * number) for ts, number in enumerate(order)]
    curve = by_memory(run(lines).recording.asked)
    assert curve.of == 150
    assert max(curve.hits) == 150 - len(set(order))
    for place in range(0, len(curve.at), 20):
        replayed = run(lines, memory=int(curve.at[place]) + 1, ttl=TTL(memory="1h", jitter=0.0))
        assert tiers(replayed).count("memory") == curve.hits[place]
    assert curve.hits[0] < curve.hits[-1]


def test_ttl_curve_counts_lives_from_the_load_and_from_the_hit():
    """By hand: asked at 0, 6, 12 and 18 with ten seconds: from the load 6 and 18 are hits, sliding all three."""
    asked = run([chat("a", ts) for ts in (0, 6, 12, 18)]).recording.asked
    assert fixed_hits(arrivals(asked, 1.0), 10.0) == 2
    fixed, sliding = by_ttl(asked, 1.0, 3600.0)
    at = next(place for place, seconds in enumerate(fixed.at) if 6 < seconds < 12)
    assert (fixed.hits[at], sliding.hits[at]) == (2, 3)
    assert (fixed.hits[0], fixed.hits[-1], sliding.hits[-1]) == (0, 3, 3)
    assert fixed.at[-1] == 3600.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=25), st.integers(1, 90))
def test_ttl_curve_is_what_exact_tiers_answer(steps, ttl):
    """What is counted from the times alone is what a walk through them finds."""
    times, now = {}, 0
    loaded, hits = {}, 0
    for key, gap in steps:
        now += gap
        times.setdefault(key, []).append(float(now))
        if key in loaded and now < loaded[key] + ttl:
            hits += 1
        else:
            loaded[key] = now
    assert fixed_hits(times.values(), float(ttl)) == hits


def test_ttl_curve_meets_the_replay_at_its_own_ttl():
    """At the ttl of the replay, the curve says what the replay of exact matches found."""
    lines = [chat(f"q{number % 7}", number * 10) for number in range(60)]
    for disk in ("50s", "75s", "200s"):
        replayed = run(lines, memory=0, ttl=TTL(disk=disk, jitter=0.0))
        hits = fixed_hits(arrivals(replayed.recording.asked, 1.0), replayed.settings.exact_seconds)
        assert hits == sum(tier is not None for tier in tiers(replayed))


@pytest.mark.parametrize("lines", [[chat("a")], [chat("a"), chat("b", 1)], [chat("a", body={"temperature": 1})]])
def test_curves_of_nothing_to_reuse_are_empty(lines):
    """Where nothing comes twice there is no curve, and no error."""
    asked = run(lines).recording.asked
    assert by_memory(asked).at == by_ttl(asked, 1.0, 60.0)[0].at == []
