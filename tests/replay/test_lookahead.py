"""Searching ahead finds what searching at the moment finds."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import chat, run

from semcache.errors import TierError
from semcache.model import Request
from semcache.policy import Threshold
from semcache.replay.lookahead import LookAhead, Vectors, embed

pytestmark = pytest.mark.semantic

TEXTS = [f"text {number}" for number in range(60)]
SCOPES = [b"s0", b"s1", b"s2"]


def make_vectors():
    import numpy as np

    matrix = np.random.default_rng(7).standard_normal((len(TEXTS), 6)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Vectors(matrix, {text: row for row, text in enumerate(TEXTS)})


class World:
    """A look-ahead beside a plain index to which the same is done, on one clock."""

    def __init__(self):
        from semcache.semantic.index import FlatIndex

        self.time = 0.0
        self.vectors = make_vectors()
        self.ahead = LookAhead(FlatIndex(6, 2**30), self.vectors, lambda: self.time)
        self.plain = FlatIndex(6, 2**30)

    def add(self, scope, text, life):
        key = scope + text.encode()
        self.ahead.add(key, scope, text, None, self.time + life)
        self.plain.add(key, scope, self.vectors.matrix[self.vectors.rows[text]], text, self.time + life)

    def remove(self, scope, text):
        key = scope + text.encode()
        self.ahead.remove([key])
        self.plain.remove(key)

    def look_ahead(self, pairs):
        self.ahead.look_ahead([Request(b"?" + scope + text.encode(), scope, text) for scope, text in pairs], 4)

    def compare(self, scope, text):
        vector = self.vectors.matrix[[self.vectors.rows[text]]]
        wanted = self.plain.search([scope], vector, 4, self.time)[0]
        found = self.ahead.search(scope, text, 4).result(0)
        assert [near.key for near in found.neighbours] == [near.key for near in wanted]
        assert [near.similarity for near in found.neighbours] == pytest.approx(
            [near.similarity for near in wanted], abs=1e-6
        )
        assert (found.vector == vector[0]).all()


pairs = st.tuples(st.sampled_from(SCOPES), st.sampled_from(TEXTS))
steps = st.one_of(
    st.tuples(st.just("add"), pairs, st.sampled_from([1, 10, 1000])),
    st.tuples(st.just("remove"), pairs, st.none()),
    st.tuples(st.just("search"), pairs, st.none()),
    st.tuples(st.just("wait"), st.none(), st.sampled_from([0.5, 5, 50])),
    st.tuples(st.just("look_ahead"), st.lists(pairs, max_size=20), st.none()),
)


@settings(deadline=None)
@given(st.lists(pairs, max_size=40), st.lists(steps, max_size=60))
def test_search_ahead_finds_what_a_search_now_finds(begin, done):
    """Rows added, overwritten, removed and expired since the look ahead are made good, in every order."""
    world = World()
    for scope, text in begin:
        world.add(scope, text, 20)
    world.look_ahead([(scope, text) for scope in SCOPES for text in TEXTS])
    for step, what, much in done:
        if step == "add":
            world.add(*what, much)
        elif step == "remove":
            world.remove(*what)
        elif step == "search":
            world.compare(*what)
        elif step == "wait":
            world.time += much
        else:
            world.look_ahead(what)
    for scope in SCOPES:
        for text in TEXTS[:10]:
            world.compare(scope, text)


def test_search_ahead_where_more_are_gone_than_were_spared_searches_again():
    """Where so many of what was found are gone that others come next, the index is asked."""
    world = World()
    for text in TEXTS:
        world.add(b"s0", text, 1000)
    world.look_ahead([(b"s0", "text 0")])
    wanted = world.plain.search([b"s0"], world.vectors.matrix[:1], 14, 0.0)[0]
    for near in wanted:
        world.remove(b"s0", near.text)
    world.compare(b"s0", "text 0")
    assert world.ahead.stats()["searched_singly"] == 1


def test_searches_of_a_window_are_made_ahead():
    """What was looked ahead for costs no search of its own; what was not, does."""
    world = World()
    for text in TEXTS[:30]:
        world.add(b"s0", text, 1000)
    world.look_ahead([(b"s0", text) for text in TEXTS[30:50]])
    for text in TEXTS[30:50]:
        world.compare(b"s0", text)
    assert world.ahead.stats()["searched_ahead"] == 20
    world.compare(b"s0", TEXTS[50])
    assert world.ahead.stats()["searched_singly"] == 1


def test_evicted_row_is_not_found():
    """A row that the bound of the index took away since is no neighbour."""
    from semcache.semantic.index import FlatIndex

    vectors = make_vectors()
    index = FlatIndex(6, 2**30, max_rows=3)
    ahead = LookAhead(index, vectors, lambda: 0.0)
    for text in TEXTS[:3]:
        ahead.add(text.encode(), b"s", text, None, 10.0)
    ahead.look_ahead([Request(b"k", b"s", TEXTS[0])], 4)
    for text in TEXTS[3:6]:
        ahead.add(text.encode(), b"s", text, None, 10.0)
    found = [near.text for near in ahead.search(b"s", TEXTS[0], 4).result(0).neighbours]
    assert sorted(found) == sorted(text for text in TEXTS[:6] if text.encode() in index)


def test_text_not_seen_whole_is_an_error_and_no_row():
    """Law 12: such a text is as with the real batcher: its search fails as uncovered, its row is not added."""
    from semcache.semantic.index import FlatIndex

    vectors = make_vectors()
    vectors.uncovered["long"] = "too long"
    ahead = LookAhead(FlatIndex(6, 2**30), vectors, lambda: 0.0)
    ahead.add(b"k", b"s", "long", None, 10.0)
    assert not ahead.has_scope(b"s")
    with pytest.raises(TierError, match="too long") as caught:
        ahead.search(b"s", "long", 4).result(0)
    assert caught.value.reason == "uncovered"


def test_embed_gives_every_text_its_own_vector(letters):
    """Texts are embedded in another order than they are given; each gets what it would get alone."""
    from semcache.semantic.embedder import as_embedder

    embedder = as_embedder(letters)
    embedder.load()
    texts = ["a" * size + "b" for size in range(1, 200)]
    told = []
    vectors = embed(embedder, texts, lambda *progress: told.append(progress))
    assert told[-1] == (199, 199)
    for text in texts:
        assert (vectors.matrix[vectors.rows[text]] == embedder([text])[0]).all()


@pytest.mark.parametrize("cut", [0.9, 0.97])
def test_replay_with_and_without_looking_ahead_is_the_same(letters, monkeypatch, cut):
    """A whole replay, over many windows, expiries and near hits, comes out as if each search were made by itself."""
    words = ["listen", "silent", "apple", "papal", "grape", "pager", "zebra", "braze", "stone", "notes", "kiwi", "wiki"]
    draw = Random(5)
    lines = [chat(" ".join(draw.sample(words, 3)), number * 40, system=str(number % 2)) for number in range(700)]
    ahead = run(lines, embedder=letters, policy=Threshold(cut, guards=None))
    monkeypatch.setattr(LookAhead, "look_ahead", lambda *_: None)
    singly = run(lines, embedder=letters, policy=Threshold(cut, guards=None))
    assert ahead.stats.tiers["semantic"]["searched_ahead"] >= 100
    assert singly.stats.tiers["semantic"]["searched_ahead"] == 0
    assert [(one.tier, one.maker) for one in ahead.outcomes] == [(one.tier, one.maker) for one in singly.outcomes]
    assert "semantic" in [one.tier for one in ahead.outcomes]
