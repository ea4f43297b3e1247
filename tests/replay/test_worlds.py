"""What a cut would have served, found in one search, is what the replay of that cut serves."""

from __future__ import annotations

from random import Random

import pytest
from recordings import Letters, chat, run

from semcache.policy import Threshold
from semcache.replay.lookahead import Vectors
from semcache.replay.recording import Asked
from semcache.replay.settings import Settings
from semcache.replay.tune import make_trace
from semcache.replay.worlds import NO_CUT, Trace
from semcache.semantic.embedder import as_embedder
from semcache.ttl import TTL

pytestmark = pytest.mark.semantic

WORDS = ["open", "shop", "when", "hours", "refund", "order", "late", "mail"]
LIVES = TTL(memory=100, disk=500, semantic=200, jitter=0.0)


def recording(seed, requests=120):
    """Return lines that repeat, resemble each other and come in two scopes and two tenants."""
    random = Random(seed)
    told = {}
    for ts in range(requests):
        text = " ".join(random.choices(WORDS, k=random.randint(1, 4)))
        told[ts] = chat(text, 10 * ts, str(len(text)), system=random.choice("ab"), tenant=random.choice(["x", "y"]))
    return list(told.values())


def trace_of(replayed, **settings):
    from semcache.replay.lookahead import embed

    embedder = as_embedder(Letters(), "cpu")
    embedder.load()
    vectors = embed(embedder, replayed.recording.texts(), lambda *_: None)
    trace = make_trace(replayed.recording, vectors, Settings(embedder=embedder, ttl=LIVES), **settings)
    trace.search(lambda *_: None)
    return trace


@pytest.mark.parametrize("cut", [0.72, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("seed", [1, 2])
def test_world_of_a_cut_is_what_its_replay_serves(cut, seed):
    """Near matches, exact hits and whose answers they are: request by request, with what expires and is loaded anew."""
    replayed = run(recording(seed), embedder=Letters(), policy=Threshold(cut, guards=None), ttl=LIVES)
    world = trace_of(replayed).cached_on_miss(cut)
    near = [(place, one.maker) for place, one in enumerate(replayed.outcomes) if one.tier == "semantic"]
    exact = [place for place, one in enumerate(replayed.outcomes) if one.tier in ("memory", "disk")]
    assert world.exact == exact
    assert [one.position for one in world.near] == [place for place, _ in near]
    assert near
    similarities = {one.position: one.similarity for one in world.near}
    for place, one in enumerate(replayed.outcomes):
        if one.tier == "semantic":
            assert similarities[place] == pytest.approx(one.nearest[1], abs=1e-5)


@pytest.mark.parametrize("seed", [5, 6])
def test_cuts_replayed_together_are_as_each_alone(seed):
    """What one column serves has no say in another's, be it refused by a guard or let expire."""
    replayed = run(recording(seed), embedder=Letters(), ttl=LIVES)
    cuts = (NO_CUT, 0.99, 0.9, 0.8, 0.72)
    odd = trace_of(replayed, refuses=lambda asked, stored: "odd" if (len(asked) + len(stored)) % 2 else None)
    for trace in (trace_of(replayed), odd):
        together = trace.worlds(cuts)
        assert together == [trace.cached_on_miss(cut) for cut in cuts]
        assert len({len(world.near) for world in together}) > 3


def test_world_where_all_is_cached_is_what_shadow_sees():
    """Where nothing near is served, the nearest rows are those that shadow finds."""
    replayed = run(recording(3), embedder=Letters(), ttl=LIVES)
    world = trace_of(replayed).cached_always(0.7)
    found = {
        place: one.nearest[1]
        for place, one in enumerate(replayed.outcomes)
        if one.tier is None and one.nearest is not None and one.nearest[1] >= 0.7
    }
    assert {one.position: one.similarity for one in world.near} == pytest.approx(found, abs=1e-5)


def test_no_cut_is_exact_matches_alone():
    """Where no cut is proved, nothing near is served."""
    replayed = run(recording(4), embedder=Letters(), policy=Threshold(1.0, guards=None), ttl=LIVES)
    assert trace_of(replayed).cached_on_miss(NO_CUT).near == []


def test_refused_neighbour_leaves_the_next(letters):
    """A guard that refuses the nearest leaves the next one, and at most four are tried."""
    lines = [chat("abc", 0, "1"), chat("abcd", 1, "2"), chat("abcc", 2, "1")]
    replayed = run(lines, embedder=letters, ttl=LIVES)
    every = trace_of(replayed).cached_always().near
    nearest = next(one for one in every if one.position == 2).maker
    text = replayed.recording.asked[nearest].text
    refused = trace_of(replayed, refuses=lambda asked, stored: "no" if stored == text else None).cached_always().near
    assert next(one for one in refused if one.position == 2).maker == 1 - nearest


@pytest.mark.parametrize("rows", [300, 600, 1500])
def test_more_neighbours_than_are_kept_are_looked_up_when_they_are_wanted(rows):
    """Where all that was kept of a row's neighbours is gone, the rest of its scope is looked at."""
    import numpy as np

    from semcache.model import Request

    # On a half circle, so that each is nearest to the one before it, and all are near.
    angles = np.linspace(0, 0.7, rows)
    matrix = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    asked = []
    for place in range(rows):
        request = Request(b"%d" % place, scope=b"s", text=str(place))
        # The first and the last are asked within the texts' life of each other, all others long before.
        ts = 0.0 if 0 < place < rows - 1 else 1000.0 + place / 1000
        asked.append(Asked(0, ts, request, None, None, None, b"", 0, 0, 0))
    asked.sort(key=lambda one: one.ts)
    for position, one in enumerate(asked):
        one.position = position
    vectors = Vectors(matrix, {str(place): place for place in range(rows)})
    trace = Trace(asked, vectors, exact_seconds=2000, near_seconds=100, floor=0.7)
    trace.search(lambda *_: None)
    last = trace.cached_always().near[-1]
    assert (asked[last.position].text, asked[last.maker].text) == (str(rows - 1), "0")
    assert last.similarity == pytest.approx(np.cos(0.7), abs=1e-5)
