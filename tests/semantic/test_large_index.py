"""LargeIndex: FlatIndex's contract, with large scopes in graphs that are built aside."""

import threading
from math import inf

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from test_index import PLENTY, SCOPES, Rows, unit

from semcache.semantic import large as semantic_large
from semcache.semantic.arena import HOT, SLAB_ROWS
from semcache.semantic.hnsw import LINK_BYTES
from semcache.semantic.large import LargeIndex

pytestmark = pytest.mark.semantic

DIMENSION = 4
ALL = 1 << 18
"""An effort that finds every row of such small graphs."""


class Large(Rows):
    """The same rules, over graphs of few slabs, which are waited for now and then."""

    @initialize(
        max_rows=st.none() | st.integers(1, 4000), max_bytes=st.just(PLENTY) | st.integers(100_000, 2_000_000),
        segment=st.sampled_from([1, 2, 8]),
    )  # fmt: skip
    def make(self, max_rows, max_bytes, segment):
        self.segment_rows = segment * SLAB_ROWS
        self.begin(max_rows, max_bytes)

    def new(self, max_bytes, max_rows):
        return LargeIndex(
            DIMENSION, max_bytes, max_rows, crossover=SLAB_ROWS, segment_rows=self.segment_rows, effort=ALL
        )

    @rule()
    def settle(self):
        assert self.index.settle(60)

    @rule(scope=st.sampled_from(SCOPES), life=st.sampled_from([10.0, 1000.0]))
    def add_thousands(self, scope, life):
        for number in range(2500):
            self.put(b"more-%d-%d" % (self.serial, number), scope, life)

    @rule(scope=st.sampled_from(SCOPES), seed=st.integers(0, 99))
    def overwrite_some_with_the_same_vector(self, scope, seed):
        keys = [key for key, row in self.rows.items() if row[0] == scope and key in self.index]
        for place in np.random.default_rng(seed).permutation(len(keys))[:20]:
            key = keys[place]
            self.rows[key] = (scope, self.rows[key][1], "another text", self.now + 50.0)
            self.index.add(key, *self.rows[key])

    @invariant()
    def bounds_hold(self):
        if not hasattr(self, "index"):
            return
        assert len(self.index) <= self.most[0]
        # Rows that move from a segment with holes may fill a slab, whose links are made room for with the next row.
        assert self.index.nbytes <= self.most[1] + LINK_BYTES * SLAB_ROWS
        if not self.rows:  # what a build was under way with goes when that ends
            assert self.index.settle(60)
            assert (len(self.index), self.index.nbytes, len(self.index._arena)) == (0, 0, 0)

    def teardown(self):
        if hasattr(self, "index"):
            self.index.close()


TestLarge = Large.TestCase
TestLarge.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def filled(rows, *, scope=b"scope", dimension=16, **settings):
    index = LargeIndex(dimension, PLENTY, **{"crossover": SLAB_ROWS, "effort": ALL, **settings})
    vectors = np.stack([unit([7, number], dimension) for number in range(rows)])
    for number, vector in enumerate(vectors):
        index.add(b"%d" % number, scope, vector, f"text {number}", inf)
    return index, vectors


def keys_found(index, scope, queries, k=5, now=0.0):
    return [[neighbour.key for neighbour in row] for row in index.search([scope] * len(queries), queries, k, now)]


def exact(vectors, queries, k=5):
    order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
    return [[b"%d" % number for number in row] for row in order.tolist()]


def sealed_rows(index):
    return sum(len(segment) for sealed in index._sealed.values() for segment in sealed.segments)


def test_rows_are_found_before_while_and_after_they_are_built():
    """Nothing waits for a build: before it and behind it rows are scanned, and each search is whole."""
    index, vectors = filled(5 * SLAB_ROWS + 100)
    queries = np.stack([unit([8, number], 16) for number in range(20)])
    assert keys_found(index, b"scope", queries) == exact(vectors, queries)
    assert index.settle(60)
    assert sealed_rows(index) == 5 * SLAB_ROWS
    assert keys_found(index, b"scope", queries) == exact(vectors, queries)
    index.close()


def test_search_of_sealed_rows_removed_overwritten_and_moved_is_whole():
    """A removed row is not found again; one that was given another vector is found at the new place alone."""
    index, vectors = filled(4 * SLAB_ROWS)
    assert index.settle(60)
    for number in range(0, 400, 2):
        index.remove(b"%d" % number)
    for number in range(1, 400, 2):
        vectors[number] = unit([9, number], 16)
        index.add(b"%d" % number, b"scope", vectors[number], "new", inf)
    are_there = np.r_[1:400:2, 400 : 4 * SLAB_ROWS]
    assert len(index) == 4 * SLAB_ROWS - 200
    found = index.search([b"scope"] * 200, vectors[1:400:2], 1, 0.0)
    assert [(row[0].key, row[0].text) for row in found] == [(b"%d" % number, "new") for number in range(1, 400, 2)]
    queries = np.stack([unit([8, number], 16) for number in range(20)])
    expected = [[b"%d" % are_there[int(key)] for key in row] for row in exact(vectors[are_there], queries)]
    assert keys_found(index, b"scope", queries) == expected
    index.close()


def test_row_overwritten_with_its_own_vector_stays_where_it_is():
    """An answer that is put anew costs no hole: its text and life alone change."""
    index, vectors = filled(2 * SLAB_ROWS + 1)
    assert index.settle(60)
    for number, vector in enumerate(vectors):
        index.add(b"%d" % number, b"scope", vector, "again", 10.0)
    assert sealed_rows(index) == 2 * SLAB_ROWS
    assert sum(segment.living for segment in index._sealed[b"scope"].segments) == 2 * SLAB_ROWS
    assert [n.text for n in index.search([b"scope"], vectors[:1], 1, 0.0)[0]] == ["again"]
    assert index.search([b"scope"], vectors[:1], 1, 10.0) == [[]]
    index.close()


def test_segment_with_many_holes_is_moved_and_built_anew():
    """What removed rows leave behind does not stay: after a third the rest moves, and memory goes back."""
    index, vectors = filled(8 * SLAB_ROWS, segment_rows=4 * SLAB_ROWS)
    assert index.settle(60)
    for number in range(8 * SLAB_ROWS):
        if number % 4:
            index.remove(b"%d" % number)
    assert index.settle(60)
    assert len(index) == 2 * SLAB_ROWS
    assert sealed_rows(index) <= 1.5 * len(index) + SLAB_ROWS
    assert len(index._arena) <= 4 * SLAB_ROWS
    kept = vectors[::4]
    queries = np.stack([unit([8, number], 16) for number in range(20)])
    assert keys_found(index, b"scope", queries) == [
        [b"%d" % (4 * int(key)) for key in row] for row in exact(kept, queries)
    ]
    for number in range(0, 8 * SLAB_ROWS, 4):
        index.remove(b"%d" % number)
    assert index.settle(60)
    assert (len(index), index.scopes, index.nbytes, len(index._arena)) == (0, 0, 0, 0)
    index.close()


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_expired_rows_of_a_segment_hide_no_living_one(share):
    """However many lives are over, what is asked for is found among the others."""
    index, vectors = filled(4 * SLAB_ROWS, effort=64)
    lives = np.random.default_rng(3).random(len(vectors)) < share
    for number, lives_on in enumerate(lives):
        index.add(b"%d" % number, b"scope", vectors[number], "", 100.0 if lives_on else 1.0)
    assert index.settle(60)
    queries = np.stack([unit([8, number], 16) for number in range(20)])
    numbers = np.flatnonzero(lives)
    expected = [[b"%d" % numbers[int(key)] for key in row] for row in exact(vectors[lives], queries)]
    found = keys_found(index, b"scope", queries, now=5.0)
    assert np.mean([one == other for one, other in zip(found, expected, strict=True)]) >= 0.9
    assert all(len(row) == 5 for row in found)
    index.close()


def test_failed_build_is_told_and_its_rows_are_scanned(monkeypatch):
    """No memory for a graph: the rows stay as they are, whoever looks hears of it, and the next build takes them."""
    real = semantic_large.grown
    monkeypatch.setattr(semantic_large, "grown", raise_memory_error)
    index, vectors = filled(3 * SLAB_ROWS + 1)
    assert index.settle(60)
    assert [type(error) for error in index.troubles] == [MemoryError] * len(index.troubles)
    assert index.troubles
    queries = np.stack([unit([8, number], 16) for number in range(20)])
    assert keys_found(index, b"scope", queries) == exact(vectors, queries)
    monkeypatch.setattr(semantic_large, "grown", real)
    for number in range(SLAB_ROWS):
        index.add(b"more-%d" % number, b"scope", vectors[number], "", inf)
    assert index.settle(60)
    assert sealed_rows(index) == 4 * SLAB_ROWS
    index.close()


def raise_memory_error(*_):
    raise MemoryError("no room for a graph")


def test_clear_while_a_build_runs_leaves_nothing_of_it():
    """What comes of a build that was under way is of rows that are no more."""
    index, vectors = filled(3 * SLAB_ROWS)
    index.clear()
    index.add(b"new", b"scope", vectors[0], "new", inf)
    assert index.settle(60)
    index.sweep(0.0)
    assert keys_found(index, b"scope", vectors[:1]) == [[b"new"]]
    assert (len(index), sealed_rows(index)) == (1, 0)
    index.close()


def test_closed_index_answers_by_scans():
    """Closing ends what works aside, at once; rows are kept and found."""
    index, vectors = filled(3 * SLAB_ROWS)
    index.close()
    queries = np.stack([unit([8, number], 16) for number in range(20)])
    assert keys_found(index, b"scope", queries) == exact(vectors, queries)


def test_recall_of_the_nearest_of_many_rows():
    """As it is set up, at least 99 of 100 nearest rows are found in a graph of 20,000."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((400, 64))
    rows = centres[rng.integers(0, 400, 20_000)] + 0.7 * rng.standard_normal((20_000, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index = LargeIndex(64, PLENTY)
    for number, row in enumerate(rows):
        index.add(b"%d" % number, b"scope", row, "", inf)
    assert index.settle(120)
    assert sealed_rows(index) >= 16_384
    queries = rows[:300] + 0.1 * rng.standard_normal((300, 64)).astype(np.float32)
    found = keys_found(index, b"scope", queries, k=1)
    assert np.mean([one == other for one, other in zip(found, exact(rows, queries, 1), strict=True)]) >= 0.99
    index.close()


def test_no_memory_for_the_next_slab_changes_nothing(monkeypatch):
    """A row that cannot be kept is refused; those that are there are found once, sealed once, and removed."""
    index, vectors = filled(SLAB_ROWS)
    make = index._arena._make_slab
    index._arena._make_slab = lambda *_: raise_memory_error()
    with pytest.raises(MemoryError):
        index.add(b"refused", b"scope", unit(1, 16), "", inf)
    index._arena._make_slab = make
    for number in range(SLAB_ROWS + 1):
        index.add(b"more-%d" % number, b"scope", unit([9, number], 16), "", inf)
    assert index.settle(60)
    assert sealed_rows(index) == 2 * SLAB_ROWS
    [found] = keys_found(index, b"scope", vectors[:1])
    assert (found[0], len(set(found))) == (b"0", 5)
    for number in range(SLAB_ROWS):
        index.remove(b"%d" % number)
        index.remove(b"more-%d" % number)
    index.remove(b"more-%d" % SLAB_ROWS)
    assert index.settle(60)
    assert (len(index), index.nbytes, len(index._arena)) == (0, 0, 0)
    index.close()


def test_no_thread_to_build_in_is_no_reason_against_a_row(monkeypatch):
    """Where no thread can be had rows are kept and scanned, and built once there is one."""
    monkeypatch.setattr("semcache.semantic.aside.started", lambda *_: None)
    index, vectors = filled(SLAB_ROWS + 1)
    assert keys_found(index, b"scope", vectors[:1], k=1) == [[b"0"]]
    monkeypatch.undo()
    for number in range(SLAB_ROWS):
        index.add(b"more-%d" % number, b"scope", unit([9, number], 16), "", inf)
    assert index.settle(60)
    assert sealed_rows(index) == 2 * SLAB_ROWS
    index.close()


def test_search_of_one_segment_gives_as_many_as_were_asked_for_and_the_nearest_a_second_chance():
    """Also where all of a scope is sealed and lives are over: the nearest that lives comes first, and is hot."""
    index, vectors = filled(SLAB_ROWS + 1)
    assert index.settle(60)
    index.remove(b"%d" % SLAB_ROWS)
    assert [len(row) for row in keys_found(index, b"scope", vectors[:3], k=1)] == [1, 1, 1]
    index.add(b"0", b"scope", vectors[0], "", 1.0)
    [found] = keys_found(index, b"scope", vectors[:1], k=3, now=5.0)
    near = np.argsort(-(vectors[1:SLAB_ROWS] @ vectors[0]))[:3] + 1
    assert found == [b"%d" % number for number in near]
    row = index._rows_of(found[0])[found[0]]
    assert index._arena.slab(row).state[row & (SLAB_ROWS - 1)] == HOT
    index.close()


@pytest.mark.parametrize("grown_before", [0, 2])
def test_build_that_fails_after_its_rows_have_gone_leaves_nothing(grown_before, monkeypatch):
    """Neither slabs nor bytes stay of a scope that was emptied while a build of it ran."""
    index, vectors = filled(grown_before * SLAB_ROWS + 1, crossover=2 * SLAB_ROWS)
    assert index.settle(60)
    gate = threading.Event()

    def fail(*_):
        gate.wait(10)
        raise_memory_error()

    monkeypatch.setattr(semantic_large, "grown", fail)
    for number in range(2 * SLAB_ROWS):
        index.add(b"more-%d" % number, b"scope", unit([9, number], 16), "", inf)
    for number in range(len(vectors)):
        index.remove(b"%d" % number)
    for number in range(2 * SLAB_ROWS):
        index.remove(b"more-%d" % number)
    gate.set()
    assert index.settle(60)
    assert (len(index), index.scopes, index.nbytes, len(index._arena)) == (0, 0, 0, 0)
    index.close()


def test_expired_rows_of_a_segment_that_drains_are_dropped():
    """What is moved out of a segment with holes, to be built anew, are its living rows alone."""
    index, _ = filled(4 * SLAB_ROWS + 1)
    assert index.settle(60)
    for number in range(2 * SLAB_ROWS):
        index.remove(b"%d" % number)
    for number in range(2 * SLAB_ROWS, 4 * SLAB_ROWS):
        index.add(b"%d" % number, b"scope", unit([7, number], 16), "", 1.0)
    for _ in range(200):
        index.sweep(5.0)
    assert index.settle(60)
    assert (len(index), sealed_rows(index)) == (1, 0)
    index.close()
