"""DeviceIndex, on the CPU: FlatIndex's contract, with large scopes where a device would have them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from threading import Event

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from test_index import PLENTY, Rows, unit

import semcache
from semcache.errors import ConfigurationError, TierError
from semcache.semantic.arena import SLAB_ROWS
from semcache.semantic.device import DeviceIndex, make_index
from semcache.semantic.graphs import capture
from semcache.semantic.index import FlatIndex
from semcache.semantic.nearest import size_of
from semcache.semantic.rows import DeviceRows
from semcache.semantic.slots import DeviceSlab

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.semantic

DIMENSION = 4
SLOT_BYTES = SLAB_ROWS * DIMENSION * 4


class OnDevice(Rows):
    """The same rules, over an index that may have a bound, or be given a small one, on its device."""

    @initialize(
        max_rows=st.none() | st.integers(1, 2000), max_bytes=st.just(PLENTY),
        slots=st.none() | st.integers(0, 3), runs=st.sampled_from([0, 8]),
        crossover=st.sampled_from([0, 512, 1024, 1500, 2048]),
        devices=st.sampled_from(["cpu", "cpu,cpu", "cpu,cpu,cpu"]),
    )  # fmt: skip
    def make(self, max_rows, max_bytes, slots, runs, crossover, devices):
        self.crossover, self.devices = crossover, devices
        self.device_bytes = None if slots is None else slots * SLOT_BYTES
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("semcache.semantic.nearest._MOST_RUNS", runs)
        self.patch.setattr("semcache.semantic.rows._LARGEST_CHUNK", 4)
        self.patch.setattr("semcache.semantic.rows._FIRST_CHUNK", 1)
        self.begin(max_rows, max_bytes)

    def new(self, max_bytes, max_rows):
        return DeviceIndex(
            DIMENSION, max_bytes, max_rows,
            device=self.devices, max_device_bytes=self.device_bytes, crossover=self.crossover,
        )  # fmt: skip

    @invariant()
    def every_slab_of_a_device_is_of_the_index(self):
        if hasattr(self, "index"):
            on_devices = [slab for slab in self.index._arena.slabs if isinstance(slab, DeviceSlab)]
            assert {slab.number: slab for slab in on_devices} == self.index._slab_of
            assert sum(rows.used for rows in self.index._devices) == len(on_devices)

    def teardown(self):
        self.patch.undo()


TestOnDevice = OnDevice.TestCase
TestOnDevice.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def filled(rows, *, scope=b"scope", index=None, dimension=32, **settings):
    if index is None:
        index = DeviceIndex(dimension, PLENTY, **{"device": "cpu", "crossover": 512, **settings})
    vectors = np.random.default_rng(7).standard_normal((rows, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for number, vector in enumerate(vectors):
        index.add(b"%s-%d" % (scope, number), scope, vector, "a text", inf)
    return index, vectors


def lose(*_):
    """Say what CUDA says of its end."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


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
    assert not index._slab_of
    assert not any(hasattr(slab, "slot") for slab in index._arena.slabs)
    found = index.search([b"large"], vectors[505:506], 1, 0.0)[0]
    assert found[0].key == b"large-505"
    assert found[0].similarity == pytest.approx(1.0, abs=1e-3)


def there(index, scope=b"scope"):
    """How many of a scope's blocks lie on devices, and how many on the host."""
    return sum(len(shard.slabs) for shard in index._shards(scope)), len(list(index._blocks(scope)))


@pytest.mark.parametrize("crossover", [4000, 4096])
def test_scope_that_outgrows_the_crossover_comes_to_the_device_a_slab_at_a_time(crossover):
    """At every moment of it all rows are found once, no call brings more than two slabs, and sweeps end it."""
    index, vectors = filled(4000, crossover=crossover, dimension=8)
    assert there(index) == (0, 4)
    assert index.device_bytes == 0
    more = np.random.default_rng(8).standard_normal((1300, 8)).astype(np.float32)
    more /= np.linalg.norm(more, axis=1, keepdims=True)
    vectors = np.concatenate([vectors, more])
    steps = [(0, 4)]
    for number in range(4000, 5300):
        index.add(b"scope-%d" % number, b"scope", vectors[number], "a text", inf)
        if there(index) != steps[-1]:
            steps.append(there(index))
    for _ in range(6):
        index.sweep(0.0)
        if there(index) != steps[-1]:
            steps.append(there(index))
        queries = vectors[:5300:53]
        found = index.search([b"scope"] * 100, queries, 3, 0.0)
        assert [one[0].key for one in found] == [b"scope-%d" % number for number in range(0, 5300, 53)]
        assert all(len({one.key for one in some}) == 3 for some in found)
    assert steps == [(0, 4), (1, 4), (3, 3), (4, 2), (5, 1), (6, 0)]
    for number in range(5300, 1500, -1):
        index.remove(b"scope-%d" % (number - 1))
    assert there(index) == (2, 0)
    index.add_many([(b"%d" % number, b"scope", vectors[number], "", inf) for number in range(1000)])
    assert there(index) == (3, 0)  # what lies there stays there, and grows there


def test_rows_of_several_devices_take_each_others_places():
    """A row that goes leaves its place to the scope's last, on whichever device or on the host that lies."""
    index, vectors = filled(3500, device="cpu,cpu", dimension=8, max_device_bytes=SLAB_ROWS * 8 * 4)
    assert there(index) == (2, 2)
    generator = np.random.default_rng(5)
    left = generator.permutation(3500)
    for _ in range(3):
        gone, left = left[:600], left[600:]
        for number in gone:
            index.remove(b"scope-%d" % number)
        some = left[::9]
        found = index.search([b"scope"] * len(some), vectors[some], 1, 0.0)
        assert [one[0].key for one in found] == [b"scope-%d" % number for number in some]


def test_rows_that_came_together_are_not_found_when_their_life_is_over():
    """Of rows put in at once on a device those that have expired are left out of what is found."""
    index, vectors = filled(1024, dimension=8)
    lives = [10.0 if number % 2 else inf for number in range(600)]
    rows = [(b"%d" % number, b"scope", vectors[number], "", life) for number, life in enumerate(lives)]
    index.add_many(rows)
    assert there(index) == (2, 0)
    found = index.search([b"scope"] * 20, vectors[:20], 2, 20.0)
    for number, some in enumerate(found):
        assert (b"%d" % number in {one.key for one in some}) == (number % 2 == 0)


def test_rows_written_one_behind_another_go_to_their_chunks(monkeypatch):
    """Rows of adjacent slots that wait together are brought each to the chunk that its slot lies in."""
    monkeypatch.setattr("semcache.semantic.rows._FIRST_CHUNK", 1)
    monkeypatch.setattr("semcache.semantic.rows._LARGEST_CHUNK", 1)
    rows = DeviceRows(4, "cpu", torch.float32)
    slots = [rows.take() for _ in range(3)]
    vectors = np.random.default_rng(2).standard_normal((3 * SLAB_ROWS, 4)).astype(np.float32)
    for slot in slots:
        rows.write(slot * SLAB_ROWS, vectors[slot * SLAB_ROWS : (slot + 1) * SLAB_ROWS])
    assert len(rows._pending) == 3 * SLAB_ROWS
    assert np.array_equal(np.concatenate([rows.read(slot * SLAB_ROWS, SLAB_ROWS) for slot in slots]), vectors)


def test_scope_that_comes_at_once_lies_where_one_that_grew_would():
    """Many rows in one call past the crossover go to the device behind it, the others as time goes on."""
    for n, crossover in ((900, 512), (3000, 2048), (5000, 100)):
        index = DeviceIndex(DIMENSION, PLENTY, device="cpu", crossover=crossover)
        index.add_many([(b"%d" % number, b"scope", unit(number), "", inf) for number in range(n)])
        assert index.settle(60)
        assert there(index) == (-(-n // SLAB_ROWS), 0)
        [[found]] = index.search([b"scope"], unit(n // 2)[None], 1, 0.0)
        assert found.key == b"%d" % (n // 2)


def test_what_the_device_had_no_room_for_comes_there_once_it_has():
    """A scope that was refused is on the host, and moves when another gives its slots back."""
    index, _ = filled(2048, max_device_bytes=3 * SLAB_ROWS * 32 * 4)
    filled(3000, scope=b"other", index=index)
    assert (there(index), there(index, b"other")) == ((2, 0), (1, 2))
    for number in range(2048):
        index.remove(b"scope-%d" % number)
    for _ in range(4):
        index.sweep(0.0)
    assert there(index, b"other") == (3, 0)
    assert not index._waiting


def test_several_devices_have_equal_shares_and_find_together_what_one_finds():
    """Slabs go to the device with the fewest; what all of them find is merged, and is what one index finds."""
    one, vectors = filled(9000)
    several, _ = filled(9000, device="cpu,cpu,cpu")
    for index in (one, several):
        index.sweep(0.0)
    assert [rows.used for rows in several._devices] == [3, 3, 3]
    queries = vectors[::90]
    found = [index.search([b"scope"] * 100, queries, 5, 0.0) for index in (one, several)]
    assert found[0] == found[1]
    assert [there(index) for index in (one, several)] == [(9, 0), (9, 0)]


def test_scopes_that_grow_in_turn_have_equal_shares_each():
    """Each scope's slabs are shared equally, so that all devices search it: not only the slabs of all scopes."""
    index = DeviceIndex(8, PLENTY, device="cpu,cpu", crossover=512)
    rows = np.random.default_rng(1).standard_normal((SLAB_ROWS, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for part in range(6):
        for scope in (b"a", b"b"):
            index.add_many([(b"%s%d-%d" % (scope, part, at), scope, row, "", inf) for at, row in enumerate(rows)])
    assert index.settle(60)
    for scope in (b"a", b"b"):
        assert [len(shard.slabs) for shard in index._shards(scope)] == [3, 3]


def test_one_graph_is_captured_at_once(monkeypatch):
    """Two threads that capture at once, as an index's and an embedder's, do it one after the other."""
    began, go_on, under_way, most = Event(), Event(), [], []

    class Slow(PlainGraph):
        def __init__(self, *given):
            under_way.append(1)
            most.append(len(under_way))
            began.set()
            go_on.wait(5)
            under_way.pop()
            super().__init__(*given)

    monkeypatch.setattr("semcache.semantic.graphs.Graph", Slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(capture, abs, lambda: 1)
        assert began.wait(5)
        entered = Event()
        second = pool.submit(lambda: entered.set() or capture(abs, lambda: 2))
        assert entered.wait(5)
        with suppress(TimeoutError):
            second.result(0.05)  # it would have begun by now
        go_on.set()
        assert (first.result(5).given, second.result(5).given) == (1, 2)
    assert most == [1, 1]


def test_device_that_is_full_leaves_its_share_to_the_others(monkeypatch):
    """Law 10: of several devices one without memory is told once, and the rows lie on the others."""
    import torch

    index = DeviceIndex(32, PLENTY, device="cpu,cpu", crossover=512)
    monkeypatch.setattr("semcache.semantic.rows._FIRST_CHUNK", 1)
    full, zeros = index._devices[0], torch.zeros
    grow = full._grow

    def grows():
        def fails(*size, **settings):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, says a test")

        monkeypatch.setattr(torch, "zeros", fails)
        try:
            return grow()
        finally:
            monkeypatch.setattr(torch, "zeros", zeros)

    monkeypatch.setattr(full, "_grow", grows)
    _, vectors = filled(4000, index=index)
    assert [rows.used for rows in index._devices] == [0, 4]
    found = index.search([b"scope"] * 40, vectors[::100], 1, 0.0)
    assert [one[0].key for one in found] == [b"scope-%d" % number for number in range(0, 4000, 100)]
    assert [type(error) for error in index.troubles] == [torch.cuda.OutOfMemoryError]


def test_one_lost_device_of_several_is_said(monkeypatch):
    """Where one of several devices fails the search says so, for the worker to begin anew without it."""
    index, vectors = filled(4000, device="cpu,cpu")

    monkeypatch.setattr(index._devices[1], "_search", lose)
    with pytest.raises(TierError) as raised:
        index.search([b"scope"], vectors[:1], 1, 0.0)
    assert raised.value.reason == "lost"


def test_devices_that_are_not_there_are_named():
    """An index on GPUs that this process does not see is a ConfigurationError with the mend, on a machine without."""
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigurationError, match=r"cuda:0, cuda:1 cannot be used.*sees 0 CUDA devices.*nvidia-smi"):
        make_index(DIMENSION, PLENTY, "cuda:0", None, "cuda:0,cuda:1")
    for here in ("cpu", None):
        assert not isinstance(make_index(DIMENSION, PLENTY, here, None, "cuda:0,cuda:1"), DeviceIndex)


def test_devices_of_a_cache_reach_its_index(monkeypatch):
    """Where device= names several GPUs the index is made with all of them, beside what the embedder is on."""
    made = []

    def embed(texts):
        return np.tile(unit(1), (len(texts), 1))

    def watched(*given):
        made.append(given)
        return make_index(*given)

    embed.identity = "always the same"
    monkeypatch.setattr("semcache.semantic.device.make_index", watched)
    with semcache.Cache(embedder=embed, device="cuda:0,cuda:1", gpu_memory="8GB", semantic="1MB") as cache:
        cache.warm()
    assert made == [(DIMENSION, 10**6, None, 8 * 10**9, "cuda:0,cuda:1")]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_queries_on_a_device_find_what_those_on_the_host_find(monkeypatch, dtype):
    """A tensor of queries is searched where it lies: the host has it once for its own scopes, for the others never."""
    index, vectors = filled(1500, scope=b"large")
    filled(1200, scope=b"other", index=index)
    filled(50, scope=b"small", index=index)
    filled(40, scope=b"tiny", index=index)
    scopes = [[b"large", b"small", b"other", b"tiny", b"none"][number % 5] for number in range(60)]
    queries = torch.from_numpy(vectors[:60]).to(getattr(torch, dtype))
    asked, nearest = {}, index._nearest

    def watched(scope, mine, k):
        asked[scope] = type(mine)
        return nearest(scope, mine, k)

    monkeypatch.setattr(index, "_nearest", watched)
    expected = index.search(scopes, queries.float().numpy(), 4, 0.0)
    assert set(asked.values()) == {np.ndarray}
    assert index.search(scopes, queries, 4, 0.0) == expected
    assert asked == {b"large": torch.Tensor, b"other": torch.Tensor, b"small": np.ndarray, b"tiny": np.ndarray}
    alone = [index.search([b"large"] * 60, given, 4, 0.0) for given in (queries, queries.float().numpy())]
    assert alone[0] == alone[1]
    assert index.search([b"large"], queries[:1], 0, 0.0) == [[]]


@pytest.mark.parametrize("at", ["the check", "the choice", "the copy"])
def test_device_that_is_lost_while_queries_lie_there_is_said(monkeypatch, at):
    """What is done with a tensor of queries beside the search itself says the device's end as the search does."""
    index, vectors = filled(1500, scope=b"large")
    filled(50, scope=b"small", index=index)
    name = {"the check": "isfinite", "the choice": "__getitem__", "the copy": "float"}[at]

    class Lost(torch.Tensor):
        pass

    setattr(Lost, name, raising(RuntimeError("CUDA error: an illegal memory access was encountered")))
    queries = torch.from_numpy(vectors[:2]).as_subclass(Lost)
    with pytest.raises(TierError) as raised:
        index.search([b"small" if at == "the copy" else b"large", b"small"], queries, 1, 0.0)
    assert raised.value.reason == "lost"


@pytest.mark.parametrize("query", [torch.full((1, 32), torch.nan), torch.full((1, 32), torch.inf), torch.ones(1, 3)])
def test_queries_on_a_device_that_are_none_are_refused(query):
    """A tensor of another shape, or with NaN, is a ValueError as an array is."""
    index, _ = filled(1100)
    with pytest.raises(ValueError, match="queries"):
        index.search([b"scope"], query, 1, 0.0)


def test_search_many_expired_rows_hide_no_living_one():
    """Where all that is nearest has expired, what lives is found all the same."""
    index = DeviceIndex(DIMENSION, PLENTY, device="cpu", crossover=512)
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
    index._devices[0]._free.clear()
    monkeypatch.setattr(torch, "zeros", fails)
    _, vectors = filled(2500, scope=b"more", index=index)
    monkeypatch.setattr(torch, "zeros", zeros)
    found = index.search([b"more"] * 2500, vectors, 1, 0.0)
    assert [one[0].key for one in found] == [b"more-%d" % number for number in range(2500)]
    assert len(index.troubles) == 1


NO_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory, says a test"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("failures", [1, 99])
@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_in_a_search_takes_smaller_products_and_at_last_the_host(monkeypatch, failures, error):
    """Law 10: a search without memory for its product is done in parts, or on the host, and finds the same."""
    index, vectors = filled(3000)
    rows, left = index._devices[0], iter(range(failures))
    search = rows._search

    def fails(*given, on_host=False):
        if not on_host and next(left, None) is not None:
            raise error
        return search(*given, on_host=on_host)

    monkeypatch.setattr(rows, "_search", fails)
    found = index.search([b"scope"] * 50, vectors[::60], 4, 0.0)
    flat, _ = filled(3000, index=FlatIndex(32, PLENTY))
    expected = flat.search([b"scope"] * 50, vectors[::60], 4, 0.0)
    assert [[one.key for one in some] for some in found] == [[one.key for one in some] for some in expected]
    assert len(index.troubles) == min(failures, 5)


def raising(error):
    def fails(*given, **settings):
        raise error

    return fails


def test_search_on_the_host_takes_no_memory_of_the_device(monkeypatch):
    """Law 10: scopes that grew side by side lie scattered, and come to the host as they lie, not gathered."""
    monkeypatch.setattr("semcache.semantic.nearest._MOST_RUNS", 1)
    rows = DeviceRows(4, "cpu", torch.float32)
    mine = [rows.take() for _ in range(8)][::2]
    vectors = np.random.default_rng(2).standard_normal((4 * SLAB_ROWS, 4)).astype(np.float32)
    for number, slot in enumerate(mine):
        rows.write(slot * SLAB_ROWS, vectors[number * SLAB_ROWS : (number + 1) * SLAB_ROWS])
    together = rows.together(mine)
    assert together.is_scattered
    expected = rows.search(together, SLAB_ROWS, vectors[:3], 5)
    monkeypatch.setattr(rows, "_gather", raising(NO_MEMORY[0]))
    near, found = rows.search(together, SLAB_ROWS, vectors[:3], 5)
    assert np.array_equal(found, expected[1])
    assert np.allclose(near, expected[0])


def test_graphs_of_all_scopes_go_where_the_device_has_no_memory(monkeypatch):
    """Where a search had no memory there are no graphs any more, and none of another scope keeps its own."""
    monkeypatch.setattr("semcache.semantic.graphs.Graph", PlainGraph)
    monkeypatch.setattr("semcache.semantic.rows._GRAPH_AFTER", 1)
    index, vectors = filled(600)
    filled(600, scope=b"other", index=index)
    rows = index._devices[0]
    rows._use_graphs = True
    for scope in (b"scope", b"other"):
        index.search([scope], vectors[:1], 1, 0.0)
    assert len(rows._graphs) == 2
    left, search = iter([1]), rows._search

    def fails_once(*given, on_host=False):
        if next(left, None) is not None:
            raise NO_MEMORY[0]
        return search(*given, on_host=on_host)

    monkeypatch.setattr(rows, "_search", fails_once)
    [[found]] = index.search([b"other"], vectors[5:6], 1, 0.0)
    assert found.key == b"other-5"
    assert len(rows._graphs) == 0


@pytest.mark.parametrize("error", [*NO_MEMORY, RuntimeError("says a test")])
def test_rows_that_could_not_be_moved_are_never_found(monkeypatch, error):
    """Law 10: where what waits cannot be written, no row is believed any more until the index is made anew."""
    index, vectors = filled(2048)
    index.search([b"scope"], vectors[:1], 1, 0.0)
    index.remove(b"scope-5")  # the last row is to take its place
    with monkeypatch.context() as patch:
        patch.setattr(index._devices[0], "_gather", raising(error))
        with pytest.raises(TierError) as raised:
            index.search([b"scope"], vectors[:1], 1, 0.0)
        assert raised.value.reason == "lost"
    for ask in (
        lambda: index.search([b"scope"], vectors[5:6], 1, 0.0),
        lambda: index.within(vectors[5], 0.9, 0.0),
        lambda: index.vectors([b"scope-5", b"scope-6"]),
    ):
        with pytest.raises(TierError, match="could not be brought") as raised:
            ask()
        assert raised.value.reason == "lost"
    index.clear()
    filled(2048, index=index)
    assert index.search([b"scope"], vectors[5:6], 1, 0.0)[0][0].key == b"scope-5"


@pytest.mark.parametrize("error", [*NO_MEMORY, RuntimeError("says a test")])
@pytest.mark.parametrize("how", ["one", "many"])
def test_rows_that_cannot_be_read_are_a_lost_device(monkeypatch, error, how):
    """Law 10: whatever keeps rows from being read is told as "lost", for the worker to begin anew."""
    index, _ = filled(600)
    rows = index._devices[0]
    rows.flush()
    if how == "many":
        monkeypatch.setattr(rows, "_gather", raising(error))
    else:
        chunk = type("Chunk", (), {"__getitem__": raising(error)})()
        monkeypatch.setattr(rows, "_where", lambda row: (chunk, row))
    with pytest.raises(TierError) as raised:
        index.vectors([b"scope-7"]) if how == "many" else index.vector(b"scope-7")
    assert raised.value.reason == "lost"


def test_lost_device_is_said(monkeypatch):
    """What CUDA says of its end comes as TierError("lost"), for the worker to begin anew."""
    index, vectors = filled(600)

    monkeypatch.setattr(index._devices[0], "_search", lose)
    with pytest.raises(TierError) as raised:
        index.search([b"scope"], vectors[:1], 1, 0.0)
    assert raised.value.reason == "lost"


class PlainGraph:
    """What a CUDA graph does, without one."""

    def __init__(self, function, given, pool=None):
        self.given, self.function = given, function

    def replay(self):
        return self.function(self.given)


@pytest.mark.parametrize("n", [1, 5, 40, 200])
def test_graph_of_many_queries_in_tiles_finds_what_plain_searches_find(monkeypatch, n):
    """Up to 256 queries are a graph, for as many or somewhat more, with products of bounded size; more are none."""
    monkeypatch.setattr("semcache.semantic.graphs.Graph", PlainGraph)
    monkeypatch.setattr("semcache.semantic.rows._GRAPH_AFTER", 1)
    monkeypatch.setattr("semcache.semantic.rows._GRAPH_PRODUCTS", 200 * 2 * SLAB_ROWS)
    index, vectors = filled(5000, dimension=8)
    plain = [index.search([b"scope"] * n, vectors[first : first + n], 4, 0.0) for first in (0, 1000)]
    assert not index._shards(b"scope")[0].slots.graphs
    index._devices[0]._use_graphs = True
    for queries in (vectors[:n], torch.from_numpy(vectors[:n])):
        assert index.search([b"scope"] * n, queries, 4, 0.0) == plain[0]
    assert index.search([b"scope"] * n, vectors[1000 : 1000 + n], 4, 0.0) == plain[1]
    assert [size for size, _ in index._shards(b"scope")[0].slots.graphs] == [size_of(n)]
    index.search([b"scope"] * 257, vectors[:257], 4, 0.0)
    assert len(index._shards(b"scope")[0].slots.graphs) == 1


def test_scope_that_grows_all_the_time_is_not_made_a_graph_each_time(monkeypatch):
    """A graph costs as long as many searches: where a scope outgrew the last one soon, the next waits twice as long."""
    made = []

    class Counted(PlainGraph):
        def __init__(self, *given):
            made.append(len(index))
            super().__init__(*given)

    monkeypatch.setattr("semcache.semantic.graphs.Graph", Counted)
    monkeypatch.setattr("semcache.semantic.rows._GRAPH_AFTER", 2)
    index, vectors = filled(4000, dimension=8)
    index._devices[0]._use_graphs = True

    def grow_and_search(slabs, searches):
        for _ in range(slabs):
            first = len(index)
            index.add_many([(b"%d" % number, b"scope", vectors[0], "", inf) for number in range(first, first + 1024)])
            for _ in range(searches):
                index.search([b"scope"], vectors[:1], 1, 0.0)

    grow_and_search(8, 20)
    assert len(made) == 4  # after 2, 4, 8 and 16 searches of one slab's time, then never
    grow_and_search(1, 32)
    assert len(made) == 5
    for _ in range(300):
        index.search([b"scope"], vectors[:1], 1, 0.0)
    grow_and_search(1, 16)
    assert len(made) == 6  # that one had paid for itself
    for table in index._rows:
        for key in list(table):
            index.remove(key)
    assert not index._patience_of


def test_graphs_have_few_sizes_and_waste_little():
    """Between 1 and 256 queries there are 14 sizes; none is more than twice, past 8 half as large again, as asked."""
    sizes = {size_of(n) for n in range(1, 257)}
    assert sizes == {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256}
    assert all(n <= size_of(n) <= (2 * n if n <= 8 else 1.5 * n) for n in range(1, 257))


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
    assert np.allclose(index.vector(b"scope-7"), vectors[7], atol=1e-3)
    assert np.allclose(index.vector(b"alone"), vectors[5], atol=1e-3)
    assert index.vector(b"none") is None


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_vectors_of_many_rows_come_together(device):
    """Vectors of rows on devices, on the host and of none come in the order that they were asked for."""
    index, vectors = filled(2500, device=device)
    index.add(b"alone", b"small", vectors[5], "a text", inf)
    found = index.vectors([b"scope-2100", b"none", b"alone", b"scope-0", b"scope-2100"])
    assert found[1] is None
    assert np.allclose([one for one in found if one is not None], vectors[[2100, 5, 0, 2100]], atol=1e-3)
    assert index.vectors([]) == []
