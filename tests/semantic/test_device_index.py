"""DeviceIndex, on the CPU: FlatIndex's contract, with large scopes where a device would have them."""

from math import inf

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from test_index import PLENTY, Rows, unit

from semcache.errors import TierError
from semcache.semantic.arena import SLAB_ROWS
from semcache.semantic.device import DeviceIndex
from semcache.semantic.index import FlatIndex
from semcache.semantic.rows import DeviceRows

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.semantic

DIMENSION = 4
SLOT_BYTES = SLAB_ROWS * DIMENSION * 4


class OnDevice(Rows):
    """The same rules, over an index that may have a bound, or be given a small one, on its device."""

    @initialize(
        max_rows=st.none() | st.integers(1, 2000), max_bytes=st.just(PLENTY),
        slots=st.none() | st.integers(0, 3), runs=st.sampled_from([0, 8]),
    )  # fmt: skip
    def make(self, max_rows, max_bytes, slots, runs):
        self.device_bytes = None if slots is None else slots * SLOT_BYTES
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("semcache.semantic.nearest._MOST_RUNS", runs)
        self.patch.setattr("semcache.semantic.rows._LARGEST_CHUNK", 4)
        self.patch.setattr("semcache.semantic.rows._FIRST_CHUNK", 1)
        self.begin(max_rows, max_bytes)

    def new(self, max_bytes, max_rows):
        return DeviceIndex(DIMENSION, max_bytes, max_rows, device="cpu", max_device_bytes=self.device_bytes)

    def teardown(self):
        self.patch.undo()


TestOnDevice = OnDevice.TestCase
TestOnDevice.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def filled(rows, *, scope=b"scope", index=None, dimension=32, **settings):
    index = index or DeviceIndex(dimension, PLENTY, device="cpu", **settings)
    vectors = np.stack([unit([7, number], dimension) for number in range(rows)])
    for number, vector in enumerate(vectors):
        index.add(b"%s-%d" % (scope, number), scope, vector, "a text", inf)
    return index, vectors


def test_search_in_half_precision_finds_the_nearest():
    """Recall@1 against float32 is whole to ties: what half precision confuses is told apart once more."""
    import torch

    index, vectors = filled(5000, dtype=torch.float16)
    queries = np.stack([unit([8, number], 32) for number in range(200)])
    found = index.search([b"scope"] * 200, queries, 4, 0.0)
    exact = queries @ vectors.T
    assert np.mean([one[0].key == b"scope-%d" % best for one, best in zip(found, exact.argmax(1), strict=True)]) > 0.99
    assert [one[0].similarity for one in found] == pytest.approx(exact.max(1).tolist(), abs=2e-3)


def test_small_scopes_stay_on_the_host_and_large_ones_come_back_as_they_shrink():
    """No scope of at most 512 rows takes memory of the device; one that shrinks gives it back and is found."""
    index, vectors = filled(512)
    assert index.device_bytes == 0
    filled(513, scope=b"large", index=index)
    assert index.device_bytes > 0
    for number in range(500):
        index.remove(b"large-%d" % number)
    assert not index._slab_of_slot
    assert not any(hasattr(slab, "slot") for slab in index._arena.slabs)
    found = index.search([b"large"], vectors[505:506], 1, 0.0)[0]
    assert found[0].key == b"large-505"
    assert found[0].similarity == pytest.approx(1.0, abs=1e-6)


def test_search_many_expired_rows_hide_no_living_one():
    """Where all that is nearest has expired, what lives is found all the same."""
    index = DeviceIndex(DIMENSION, PLENTY, device="cpu")
    near, far = np.eye(DIMENSION, dtype=np.float32)[:2]
    for number in range(1500):
        index.add(b"old-%d" % number, b"scope", near, "old", 10.0)
    for number in range(3):
        index.add(b"new-%d" % number, b"scope", far, "new", inf)
    queries = np.stack([near, far])
    assert [[one.text for one in found] for found in index.search([b"scope"] * 2, queries, 4, 20.0)] == [
        ["new"] * 3
    ] * 2
    assert [one.text for one in index.search([b"scope"], near[None], 4, 5.0)[0]] == ["old"] * 4


def test_out_of_memory_for_rows_keeps_them_on_the_host(monkeypatch):
    """Law 10: where the device has no room for more rows they are kept and found all the same, and it is told."""
    import torch

    index, _ = filled(600)
    zeros = torch.zeros

    def fails(*size, **settings):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory, says a test")

    monkeypatch.setattr("semcache.semantic.rows._FIRST_CHUNK", 1)
    index._device_rows._free.clear()
    monkeypatch.setattr(torch, "zeros", fails)
    _, vectors = filled(2500, scope=b"more", index=index)
    monkeypatch.setattr(torch, "zeros", zeros)
    found = index.search([b"more"] * 2500, vectors, 1, 0.0)
    assert [one[0].key for one in found] == [b"more-%d" % number for number in range(2500)]
    assert len(index.troubles) == 1


@pytest.mark.parametrize("failures", [1, 99])
def test_out_of_memory_in_a_search_takes_smaller_products_and_at_last_the_host(monkeypatch, failures):
    """Law 10: a search without memory for its product is done in parts, or on the host, and finds the same."""
    import torch

    index, vectors = filled(3000)
    rows, left = index._device_rows, iter(range(failures))
    search = rows._search

    def fails(*given, on_host=False):
        if not on_host and next(left, None) is not None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, says a test")
        return search(*given, on_host=on_host)

    monkeypatch.setattr(rows, "_search", fails)
    found = index.search([b"scope"] * 50, vectors[::60], 4, 0.0)
    flat, _ = filled(3000, index=FlatIndex(32, PLENTY))
    expected = flat.search([b"scope"] * 50, vectors[::60], 4, 0.0)
    assert [[one.key for one in some] for some in found] == [[one.key for one in some] for some in expected]
    assert len(index.troubles) == min(failures, 5)


def test_lost_device_is_said(monkeypatch):
    """What CUDA says of its end comes as TierError("lost"), for the worker to begin anew."""
    index, vectors = filled(600)

    def fails(*given):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(index._device_rows, "_search", fails)
    with pytest.raises(TierError) as raised:
        index.search([b"scope"], vectors[:1], 1, 0.0)
    assert raised.value.reason == "lost"


class PlainGraph:
    """What a CUDA graph does, without one."""

    def __init__(self, function, given, pool=None):
        self.given, self.function = given, function

    def replay(self):
        return self.function(self.given)


@pytest.mark.parametrize("products", [2**10, 2**18, 2**28])
@pytest.mark.parametrize("lie", ["in runs", "scattered"])
@pytest.mark.parametrize("graphs", [False, True])
def test_rows_of_many_slots_are_found_wherever_they_lie(monkeypatch, products, lie, graphs):
    """Over several chunks, in parts that are as small as memory asks, plainly or as a graph, k are the nearest k."""
    monkeypatch.setattr("semcache.semantic.graphs.Graph", PlainGraph)
    monkeypatch.setattr("semcache.semantic.rows._GRAPH_AFTER", 2)
    rows = DeviceRows(8, "cpu", torch.float32)
    rows._products, rows._use_graphs = products, graphs
    slots = [slot for slot in [rows.take() for _ in range(70)] if slot % (2 if lie == "scattered" else 23)]
    vectors = np.random.default_rng(3).standard_normal((70 * 1024, 8), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for chunk, start in zip(rows._chunks, rows._starts, strict=True):
        chunk[: (70 - start) * 1024] = torch.from_numpy(vectors[start * 1024 : (start + len(chunk) // 1024) * 1024])
    queries = vectors[:3] + np.float32(0.1)
    together = rows.together(slots)
    may = np.concatenate([np.arange(slot * 1024, (slot + 1) * 1024) for slot in slots])
    for used in (1, 700, 1024, 700):
        mine = may[: len(may) - 1024 + used]
        exact = queries @ vectors[mine].T
        order = np.argsort(-exact, axis=1)[:, :20]
        near, found = rows.search(together, used, queries, 20)
        assert np.allclose(near, np.take_along_axis(exact, order, 1), atol=1e-6)
        assert (found == mine[order]).mean() > 0.98
    assert bool(together.graphs) == (graphs and lie == "in runs")


def test_vector_of_a_row_comes_from_where_it_lies():
    """A policy that ranks is given vectors: of a large scope's rows, from the device, and of a small one's."""
    index, vectors = filled(2000)
    index.add(b"alone", b"small", vectors[5], "a text", inf)
    assert index.vector(b"scope-7").tolist() == vectors[7].tolist()
    assert index.vector(b"alone").tolist() == vectors[5].tolist()
    assert index.vector(b"none") is None


def test_vectors_of_many_rows_come_from_the_device_in_one_copy(monkeypatch):
    """Rows of several chunks, of a small scope and of none: each is what `vector` gives; the device is asked once."""
    monkeypatch.setattr("semcache.semantic.rows._FIRST_CHUNK", 1)
    monkeypatch.setattr("semcache.semantic.rows._LARGEST_CHUNK", 1)
    index, vectors = filled(3000)
    index.add(b"alone", b"small", vectors[5], "a text", inf)
    reads = []
    gather = index._device_rows._gather
    monkeypatch.setattr(index._device_rows, "_gather", lambda rows: reads.append(len(rows)) or gather(rows))
    numbers = [2999, 7, 1500, 7]
    found = index.vectors([*(b"scope-%d" % number for number in numbers), b"alone", b"none"])
    assert [one.tolist() for one in found[:5]] == [vectors[number].tolist() for number in (*numbers, 5)]
    assert found[5] is None
    assert reads == [4]
    assert index.vectors([]) == []
