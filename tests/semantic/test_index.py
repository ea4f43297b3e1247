"""FlatIndex against brute force: whatever is added, overwritten, removed, expired or evicted, a search is exact."""

import sys
import tracemalloc
from math import inf

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from semcache.semantic.arena import SLAB_ROWS
from semcache.semantic.index import FlatIndex
from semcache.semantic.scoped import ROW_BYTES, SCOPE_BYTES

pytestmark = pytest.mark.semantic

DIMENSION = 4
PLENTY = 10**12
SCOPES = [b"one", b"few", b"many"]
KEYS = st.integers(0, 60).map(lambda number: b"key-%d" % number)
BAD = st.sampled_from([None] * 9 + [np.full(DIMENSION, np.nan), np.ones(DIMENSION), np.ones(DIMENSION + 1)])
"""What stands in a row's place of a vector: mostly nothing."""


def unit(seed, dimension=DIMENSION):
    """Return a vector of length one, as near as half precision can say: so that what is kept is what was given."""
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return (vector / np.linalg.norm(vector)).astype(np.float16).astype(np.float32)


def axis(place, dimension=DIMENSION):
    return np.eye(dimension, dtype=np.float32)[place]


def keys_found(index, scope, vector, k=10, now=0.0):
    return [neighbour.key for neighbour in index.search([scope], np.array([vector]), k, now)[0]]


class Rows(RuleBasedStateMachine):
    """The index beside a dictionary of (scope, vector, text, expires)."""

    def new(self, max_bytes, max_rows):
        return FlatIndex(DIMENSION, max_bytes, max_rows)

    @initialize(max_rows=st.none() | st.integers(1, 40), max_bytes=st.just(PLENTY) | st.integers(2_000, 20_000))
    def make(self, max_rows, max_bytes):
        self.begin(max_rows, max_bytes)

    def begin(self, max_rows, max_bytes):
        self.index = self.new(max_bytes, max_rows)
        self.is_bounded = max_rows is not None or max_bytes != PLENTY
        self.most = (inf if max_rows is None else max_rows, max_bytes)
        self.rows = {}
        self.now = 0.0
        self.serial = 0

    def put(self, key, scope, life):
        self.serial += 1
        row = (scope, unit(self.serial), f"text {self.serial}", self.now + life)
        self.index.add(key, row[0], row[1], row[2], row[3])
        self.rows[key] = row

    @rule(key=KEYS, scope=st.sampled_from(SCOPES), life=st.sampled_from([1.0, 10.0, 1000.0]))
    def add(self, key, scope, life):
        self.put(key, scope, life)

    @rule(scope=st.sampled_from(SCOPES), count=st.sampled_from([3, 40, 1100]), life=st.sampled_from([10.0, 1000.0]))
    def add_many(self, scope, count, life):
        for number in range(count):
            self.put(b"bulk-%d-%d" % (self.serial, number), scope, life)

    @rule(
        some=st.lists(st.tuples(KEYS, st.sampled_from(SCOPES), st.sampled_from([10.0, 1000.0]), BAD), max_size=12),
        scope=st.sampled_from(SCOPES), count=st.sampled_from([0, 5, 300, 1500]),
    )  # fmt: skip
    def add_together(self, some, scope, count):
        self.serial += 1
        bulk = [(b"together-%d-%d" % (self.serial, number), scope, 1000.0, None) for number in range(count)]
        rows, wrong = [], 0
        for key, where, life, bad in [*bulk[: count // 2], *some, *bulk[count // 2 :]]:
            self.serial += 1
            row = (where, unit(self.serial), f"text {self.serial}", self.now + life)
            rows.append((key, where, row[1] if bad is None else bad, row[2], row[3]))
            wrong += bad is not None
            if bad is None:
                self.rows[key] = row
        assert [type(error) for error in self.index.add_many(rows)] == [ValueError] * wrong

    @rule(key=KEYS)
    def remove(self, key):
        was_there = key in self.index
        assert self.index.remove(key) == was_there
        assert was_there <= (key in self.rows)
        self.rows.pop(key, None)

    @rule(share=st.sampled_from([0.3, 0.9, 1.0]), scope=st.sampled_from(SCOPES), seed=st.integers(0, 99))
    def remove_many(self, share, scope, seed):
        keys = [key for key, row in self.rows.items() if row[0] == scope]
        for place in np.random.default_rng(seed).permutation(len(keys))[: int(share * len(keys))]:
            self.index.remove(keys[place])
            del self.rows[keys[place]]

    @rule(seconds=st.sampled_from([0.5, 5.0, 500.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        before = len(self.index)
        assert before - self.index.sweep(self.now) == len(self.index)

    @rule()
    def clear(self):
        self.index.clear()
        self.rows.clear()

    @rule(k=st.sampled_from([1, 4, 50]), seed=st.integers(0, 1000))
    def search(self, k, seed):
        queries = np.array([unit([seed, place]) for place in range(4)])
        scopes = [b"one", b"many", b"few", b"many"]
        found = self.index.search(scopes, queries, k, self.now)
        for scope, query, neighbours in zip(scopes, queries, found, strict=True):
            alive = {
                key: min(float(row[1] @ query), 1.0)
                for key, row in self.rows.items()
                if row[0] == scope and row[3] > self.now and key in self.index
            }
            assert [n.similarity for n in neighbours] == pytest.approx(sorted(alive.values())[::-1][:k], abs=1e-5)
            assert len({n.key for n in neighbours}) == len(neighbours)
            for neighbour in neighbours:
                assert neighbour.similarity == pytest.approx(alive[neighbour.key], abs=1e-5)
                assert neighbour.text == self.rows[neighbour.key][2]

    @rule(cut=st.sampled_from([-1.0, 0.0, 0.3, 1.0]), seed=st.integers(0, 1000))
    def within(self, cut, seed):
        keys = sorted(self.rows)
        query = self.rows[keys[seed % len(keys)]][1] if keys and seed % 2 else unit([seed, 9])
        found = {n.key: n for n in self.index.within(query, cut, self.now)}
        alive = {
            key: float(row[1] @ query) for key, row in self.rows.items() if row[3] > self.now and key in self.index
        }
        assert {key for key, near in alive.items() if near > cut + 1e-5} <= found.keys() <= alive.keys()
        assert all(alive[key] >= cut - 1e-5 and found[key].text == self.rows[key][2] for key in found)

    @invariant()
    def rows_and_scopes_are_those_that_are_there(self):
        if not hasattr(self, "index"):
            return
        there = [key for key in self.rows if key in self.index]
        assert len(self.index) == len(there)
        scopes = {self.rows[key][0] for key in there}
        assert self.index.scopes == len(scopes)
        assert [self.index.has_scope(scope) for scope in SCOPES] == [scope in scopes for scope in SCOPES]
        missing = [row for key, row in self.rows.items() if key not in self.index]
        assert self.is_bounded or all(row[3] <= self.now for row in missing)

    @invariant()
    def bounds_hold(self):
        if hasattr(self, "index"):
            assert len(self.index) <= self.most[0]
            assert 0 <= self.index.nbytes <= self.most[1]
            assert len(self.index) > 0 or self.index.nbytes == 0


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("bounds", [{}, {"max_rows": 700}, {"max_bytes": 150_000}], ids=["none", "rows", "bytes"])
@pytest.mark.parametrize("scopes", [1, 3, 400])
def test_add_many_does_what_add_does_one_after_another(bounds, scopes):
    """Rows put in at once, keys twice, in another scope and wrong vectors among them, leave what one by one leave."""
    generator = np.random.default_rng(scopes)
    together, singly = (FlatIndex(DIMENSION, **{"max_bytes": PLENTY, **bounds}) for _ in range(2))
    refused = 0
    for turn, n in enumerate((3, 200, 1100, 1, 900)):
        rows = [
            (
                b"%d" % (generator.integers(0, 6000) if number % 5 == 0 else 10_000 * turn + number),
                b"scope %d" % generator.integers(0, scopes),
                axis(0) * 2 if number % 301 == 7 else unit([turn, number]),
                "ü" * (number % 60) if number % 7 == 0 else "x" * (number % 90),
                float(generator.integers(10, 20)),
            )
            for number in range(n)
        ]
        errors = together.add_many(rows)
        expected = []
        for row in rows:
            try:
                singly.add(*row)
            except ValueError as error:
                expected.append(str(error))
        assert list(map(str, errors)) == expected
        refused += len(errors)
        assert (len(together), together.nbytes, together.scopes) == (len(singly), singly.nbytes, singly.scopes)
        assert together.evictions == singly.evictions
        queries = np.stack([unit([turn, number]) for number in range(3)])
        for scope in (b"scope 0", b"scope 2"):
            there = [
                [
                    {(one.key, one.similarity, one.text) for one in found}
                    for found in index.search([scope] * 3, queries, 6000, now)
                ]
                for index in (together, singly) for now in (0.0, 15.0)
            ]  # fmt: skip
            assert there[:2] == there[2:]
    assert refused > 5


def test_add_many_of_one_new_key_twice_keeps_the_later_row():
    """A key that comes twice in one call, new and in one scope, is one row, as the later one says."""
    index = FlatIndex(DIMENSION, PLENTY)
    rows = [(b"%d" % (number % 30), b"scope", unit(number), str(number), inf) for number in range(40)]
    assert index.add_many(rows) == []
    assert len(index) == 30
    found = index.search([b"scope"], np.array([unit(0)]), 40, 0.0)[0]
    assert {int(one.key): int(one.text) for one in found} == {n: n + 30 if n < 10 else n for n in range(30)}


@pytest.mark.parametrize("rows", [1, 2, 3, 255, 512, 513, 1024, 1025, 2048, 5000])
def test_add_many_of_one_scope_takes_no_more_memory_than_add(rows):
    """Blocks are as large as if the rows had come one by one, from nothing and behind some."""
    for before in (0, 1, 700):
        together, singly = FlatIndex(DIMENSION, PLENTY), FlatIndex(DIMENSION, PLENTY)
        new = [(b"%d" % number, b"scope", unit(number % 9), "", inf) for number in range(before + rows)]
        for index, first in ((together, before), (singly, before + rows)):
            for row in new[:first]:
                index.add(*row)
        assert together.add_many(new[before:]) == []
        assert len(together._arena) == len(singly._arena)
        blocks = [[(slab.block, used) for slab, _, used in index._blocks(b"scope")] for index in (together, singly)]
        assert blocks[0] == blocks[1]


def test_search_other_scope_holds_the_same_vector_is_not_found():
    """Law 2: the scope is part of the search; a nearer row of another scope neither appears nor takes a place."""
    index = FlatIndex(DIMENSION, PLENTY)
    for number in range(10):
        index.add(b"theirs-%d" % number, b"theirs", axis(0), "theirs", inf)
    index.add(b"ours", b"ours", axis(1), "ours", inf)
    assert keys_found(index, b"ours", axis(0), k=4) == [b"ours"]
    assert keys_found(index, b"nobody's", axis(0)) == []


def test_add_key_in_another_scope_moves_the_row():
    """Law 2: an overwritten row is found in its new scope only."""
    index = FlatIndex(DIMENSION, PLENTY)
    index.add(b"key", b"old", axis(0), "text", inf)
    index.add(b"key", b"new", axis(0), "text", inf)
    assert keys_found(index, b"old", axis(0)) == []
    assert keys_found(index, b"new", axis(0)) == [b"key"]
    assert (len(index), index.has_scope(b"old")) == (1, False)


def test_search_large_scope_equals_faiss_on_the_whole_matrix():
    """A scope of several blocks is searched exactly, as one matrix would be."""
    import faiss

    matrix = np.stack([unit(seed, 64) for seed in range(3000)])
    index = FlatIndex(64, PLENTY)
    for number, vector in enumerate(matrix):
        index.add(b"%d" % number, b"scope", vector, "", inf)
    queries = np.stack([unit(seed, 64) for seed in range(5000, 5030)])
    similarities, rows = faiss.knn(queries, matrix, 5, metric=faiss.METRIC_INNER_PRODUCT)
    found = index.search([b"scope"] * 30, queries, 5, 0.0)
    assert [[int(neighbour.key) for neighbour in row] for row in found] == rows.tolist()
    assert np.allclose([[neighbour.similarity for neighbour in row] for row in found], similarities, atol=1e-6)


def test_search_same_vector_similarity_is_at_most_one():
    """Similarity is a cosine: rounding does not carry it past 1 or -1."""
    index = FlatIndex(384, PLENTY)
    vectors = [unit(seed, 384) for seed in range(200)]
    for number, vector in enumerate(vectors):
        index.add(b"%d" % number, b"%d" % number, vector, "", inf)
    for sign in (1, -1):
        for number, vector in enumerate(vectors):
            [[neighbour]] = index.search([b"%d" % number], np.array([sign * vector]), 1, 0.0)
            assert neighbour.similarity == pytest.approx(sign, abs=2e-4)  # rows are kept in half precision
            assert -1.0 <= neighbour.similarity <= 1.0


@pytest.mark.parametrize(
    "vector",
    [
        np.full(DIMENSION, np.nan, np.float32),
        np.full(DIMENSION, np.inf, np.float32),
        np.zeros(DIMENSION, np.float32),
        np.ones(DIMENSION, np.float32),
        axis(0, DIMENSION + 1),
        np.array([axis(0)]),
    ],
    ids=["nan", "infinite", "zero", "not unit", "dimension", "matrix"],
)
def test_add_no_unit_vector_is_refused_and_changes_nothing(vector):
    """Vectors that are none are refused with ValueError; the row of that key stays as it was."""
    index = FlatIndex(DIMENSION, PLENTY)
    index.add(b"key", b"scope", axis(1), "text", inf)
    with pytest.raises(ValueError, match="unit vector"):
        index.add(b"key", b"scope", vector, "other", inf)
    [[neighbour]] = index.search([b"scope"], np.array([axis(1)]), 4, 0.0)
    assert (neighbour.key, neighbour.text) == (b"key", "text")


@pytest.mark.parametrize("query", [np.full((1, DIMENSION), np.nan), np.ones((1, 3)), np.ones((2, DIMENSION))])
def test_search_no_vector_is_refused(query):
    """A query of another shape, or with NaN, is a ValueError, not an arbitrary neighbour."""
    index = FlatIndex(DIMENSION, PLENTY)
    index.add(b"key", b"scope", axis(0), "text", inf)
    with pytest.raises(ValueError, match="queries"):
        index.search([b"scope"], query, 1, 0.0)


def test_search_row_at_its_expiry_is_not_found():
    """A row is found before its expiry and not from then on, though no sweep has come by."""
    index = FlatIndex(DIMENSION, PLENTY)
    index.add(b"short", b"scope", axis(0), "", 10.0)
    index.add(b"long", b"scope", axis(1), "", 20.0)
    assert keys_found(index, b"scope", axis(0), now=9.9) == [b"short", b"long"]
    assert keys_found(index, b"scope", axis(0), now=10.0) == [b"long"]
    assert keys_found(index, b"scope", axis(0), now=20.0) == []


def test_sweep_expired_rows_of_scopes_nobody_searches_go():
    """Rows whose life is over leave by sweeps alone; the living stay."""
    index = FlatIndex(DIMENSION, PLENTY)
    for number in range(3000):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", 10.0 if number % 3 else inf)
    swept = sum(index.sweep(10.0) for _ in range(200))
    assert (swept, len(index), index.scopes) == (2000, 1000, 1000)
    assert index.sweep(10.0) == 0


def test_evict_row_found_since_gets_a_second_chance():
    """At the bound a row that was the nearest of a search outlives rows added with it that were not."""
    index = FlatIndex(DIMENSION, PLENTY, max_rows=100)
    for number in range(100):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
    for number in range(0, 100, 10):
        assert keys_found(index, b"%d" % number, axis(0)) == [b"%d" % number]
    for number in range(100, 150):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
    assert (len(index), index.evictions) == (100, 50)
    assert all(b"%d" % number in index for number in range(0, 100, 10))


def test_evict_row_found_long_ago_has_one_second_chance_only():
    """Being found spares a row one round of the clock's hand, not all to come."""
    index = FlatIndex(DIMENSION, PLENTY, max_rows=100)
    for number in range(100):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
    found = [b"%d" % number for number in range(0, 100, 2)]
    for scope in found:
        keys_found(index, scope, axis(0))
    for number in range(100, 150):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
    assert all(key in index for key in found)
    for number in range(150, 250):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
    assert not any(key in index for key in found)


def test_evict_every_row_hot_still_makes_room():
    """When all rows were found lately, one of them goes all the same."""
    index = FlatIndex(DIMENSION, PLENTY, max_rows=50)
    for number in range(50):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
        keys_found(index, b"%d" % number, axis(0))
    index.add(b"new", b"new", axis(0), "", inf)
    assert (len(index), b"new" in index) == (50, True)


def test_evict_expired_rows_go_first():
    """Where rows near the clock's hand have expired, those make room, and no living row is evicted."""
    index = FlatIndex(DIMENSION, PLENTY, max_rows=100)
    for number in range(100):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", 10.0 if number >= 90 else inf)
    index.sweep(9.0)
    index.search([b"0"], np.array([axis(0)]), 1, 10.0)
    for number in range(100, 105):
        index.add(b"%d" % number, b"%d" % number, axis(0), "", inf)
    assert all(b"%d" % number in index for number in range(90))
    assert index.evictions == 0


def test_evict_bytes_of_long_texts_are_bounded():
    """Texts count: rows go when their texts are over the bound of bytes."""
    index = FlatIndex(DIMENSION, 100_000)
    for number in range(50):
        index.add(b"%d" % number, b"scope", axis(0), "x" * 10_000, inf)
        assert index.nbytes <= 100_000
    assert 8 <= len(index) <= 10
    assert b"49" in index


def test_add_overwriting_with_a_longer_text_keeps_the_bound():
    """A row that grows makes room for itself."""
    index = FlatIndex(DIMENSION, 20_000)
    for number in range(10):
        index.add(b"%d" % number, b"scope", axis(0), "x", inf)
    index.add(b"3", b"scope", axis(0), "x" * 19_000, inf)
    assert index.nbytes <= 20_000
    assert b"3" in index


def test_remove_row_lets_go_of_its_text_and_key():
    """What is removed is not held any longer, while another row of the scope stays."""
    index = FlatIndex(DIMENSION, PLENTY)
    texts = [f"text {number}" for number in range(8)]
    before = [sys.getrefcount(text) for text in texts]
    for number, text in enumerate(texts):
        index.add(b"%d" % number, b"scope", axis(0), text, inf)
    del text
    for number in (5, 6, 7):
        index.remove(b"%d" % number)
    assert [sys.getrefcount(text) for text in texts] == [before[0] + 1] * 5 + before[5:]


def test_add_row_over_the_bound_alone_is_not_kept_and_evicts_nothing_else():
    """A text larger than the whole bound does not empty the index."""
    index = FlatIndex(DIMENSION, 10_000)
    index.add(b"small", b"scope", axis(0), "text", inf)
    index.add(b"huge", b"scope", axis(0), "x" * 20_000, inf)
    assert (b"small" in index, b"huge" in index) == (True, False)


def test_remove_most_rows_gives_memory_back():
    """The arena does not fragment without bound: after any removals it holds little more than twice what is used."""
    index = FlatIndex(DIMENSION, PLENTY)
    rng = np.random.default_rng(1)
    for number in range(20_000):  # scopes of 1, 2, 3 ... rows, so that blocks of all sizes are in use
        index.add(b"%d" % number, b"%d" % int(number**0.6), axis(0), "", inf)
    keys = rng.permutation(20_000)
    for number in keys[:19_000]:
        index.remove(b"%d" % number)
    sizes = 11
    assert len(index._arena) <= 4 * 2 * len(index) + 2 * sizes * SLAB_ROWS
    assert len(index._arena) < 20_000
    for number in keys[19_000:]:
        index.remove(b"%d" % number)
    assert (len(index), len(index._arena), index.nbytes) == (0, 0, 0)


def test_remove_scattered_single_rows_are_moved_together():
    """Scopes of one row, of which one in fifty stays, do not keep a slab each."""
    index = FlatIndex(DIMENSION, PLENTY)
    for number in range(40 * SLAB_ROWS):
        index.add(b"%d" % number, b"%d" % number, unit(number), str(number), inf)
    for number in range(40 * SLAB_ROWS):
        if number % 50:
            index.remove(b"%d" % number)
    assert len(index._arena) <= 3 * SLAB_ROWS
    for number in range(0, 40 * SLAB_ROWS, 50 * 37):
        [[neighbour]] = index.search([b"%d" % number], np.array([unit(number)]), 4, 0.0)
        assert (neighbour.key, neighbour.text) == (b"%d" % number, str(number))


def test_nbytes_counted_is_near_what_python_allocates():
    """What is counted per row and scope, vectors apart, is within a quarter of what is allocated."""
    rows, singles = 60_000, 18_000

    def add(index):
        for number in range(rows):
            scope = number if number < singles else number % 3
            index.add(number.to_bytes(32, "big"), (scope + 2**40).to_bytes(32, "big"), vector, f"{number:>40}", inf)

    vector = axis(0)
    add(FlatIndex(DIMENSION, PLENTY))  # once before, so that imports and caches are not counted
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        index = FlatIndex(DIMENSION, PLENTY)
        add(index)
        allocated = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = index.nbytes - rows * 2 * DIMENSION
    assert counted == rows * (ROW_BYTES + 56 + 40) + singles * SCOPE_BYTES
    assert 0.8 < allocated / counted < 1.25


def test_clear_leaves_an_index_that_works():
    """After clear nothing is found, nothing is counted, and rows can be added."""
    index = FlatIndex(DIMENSION, PLENTY)
    for number in range(2000):
        index.add(b"%d" % number, b"scope", axis(0), "", inf)
    index.clear()
    assert (len(index), index.nbytes, index.has_scope(b"scope"), b"1" in index) == (0, 0, False, False)
    index.add(b"key", b"scope", axis(0), "", inf)
    assert keys_found(index, b"scope", axis(0)) == [b"key"]


def test_vector_of_a_row_is_a_copy():
    """A row's vector is given by its key, and stays what it was when the row changes; of no row there is none."""
    index = FlatIndex(DIMENSION, PLENTY)
    index.add(b"key", b"scope", axis(1), "text", 1.0)
    vector = index.vector(b"key")
    index.add(b"key", b"scope", axis(2), "text", 1.0)
    assert vector.tolist() == axis(1).tolist()
    assert index.vector(b"key").tolist() == axis(2).tolist()
    assert index.vector(b"none") is None
