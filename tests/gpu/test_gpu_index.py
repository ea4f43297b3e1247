"""On a CUDA device: the index finds what brute force finds, whatever comes and goes, and lives with little memory."""

from math import inf

import numpy as np
import pytest

from semcache.semantic.device import DeviceIndex, make_index
from semcache.semantic.index import FlatIndex

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("gpu")]

DIMENSION = 384
PLENTY = 10**12


def units(n, seed):
    vectors = np.random.default_rng(seed).standard_normal((n, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def add(index, scope, vectors, first=0):
    for number, vector in enumerate(vectors, first):
        index.add(b"%s-%d" % (scope, number), scope, vector, "a text", inf)


def keys(found):
    return [[one.key for one in some] for some in found]


def test_search_on_gpu_finds_the_nearest():
    """Recall@1 against float32 brute force is at least 0.999 in half precision, of queries near and far."""
    index = DeviceIndex(DIMENSION, PLENTY, device="cuda")
    vectors = units(30_000, 1)
    add(index, b"scope", vectors)
    near = vectors[:1000] + 0.3 * units(1000, 2)
    queries = np.concatenate([near / np.linalg.norm(near, axis=1, keepdims=True), units(1000, 3)])
    found = index.search([b"scope"] * 2000, queries, 4, 0.0)
    exact = queries @ vectors.T
    assert (
        np.mean([one[0].key == b"scope-%d" % best for one, best in zip(found, exact.argmax(1), strict=True)]) >= 0.999
    )
    assert [one[0].similarity for one in found] == pytest.approx(exact.max(1).tolist(), abs=1e-3)
    assert index.device_bytes >= 30_000 * DIMENSION * 2
    assert not index.troubles


def test_changes_on_gpu_are_seen_by_the_next_search():
    """Over many rounds of rows added, overwritten and removed in several scopes, searches equal the CPU's index."""
    device, flat = DeviceIndex(DIMENSION, PLENTY, device="cuda"), FlatIndex(DIMENSION, PLENTY)
    generator = np.random.default_rng(4)
    scopes = [b"small", b"large", b"other"]
    for turn in range(12):
        for scope, n in zip(scopes, (60, 1500, 700), strict=True):
            vectors = units(n, [5, turn, n])
            for index in (device, flat):
                add(index, scope, vectors, first=int(turn * n * 0.7))
        for scope in scopes:
            for number in generator.integers(0, 12_000, 800).tolist():
                for index in (device, flat):
                    index.remove(b"%s-%d" % (scope, number))
        queries = units(30, [6, turn])
        asked = [scopes[place % 3] for place in range(30)]
        there, here = device.search(asked, queries, 4, 0.0), flat.search(asked, queries, 4, 0.0)
        assert len(device) == len(flat)
        assert np.mean([a[0] == b[0] for a, b in zip(keys(there), keys(here), strict=True)]) >= 0.96
        for a, b in zip(there, here, strict=True):
            assert [one.similarity for one in a] == pytest.approx([one.similarity for one in b], abs=1e-3)
    close = device.within(queries[0], 0.1, 0.0)
    assert {one.key for one in flat.within(queries[0], 0.101, 0.0)} <= {one.key for one in close}


def test_vectors_on_gpu_come_in_one_copy():
    """Of rows of several chunks each vector is the one that was put in, to half precision."""
    index = DeviceIndex(DIMENSION, PLENTY, device="cuda")
    vectors = units(70_000, 10)
    add(index, b"scope", vectors)
    numbers = [69_999, 0, 66_000, 5, 5]
    found = index.vectors([b"scope-%d" % number for number in numbers])
    assert np.abs(np.stack(found) - vectors[numbers]).max() < 1e-3


def test_index_on_gpu_keeps_to_its_bound():
    """With gpu_memory= for one slot the rows that find no room are on the host, and found."""
    index = make_index(DIMENSION, PLENTY, "cuda:0", 2 * 1024 * DIMENSION)
    vectors = units(4000, 7)
    add(index, b"scope", vectors)
    assert index.device_bytes <= 2 * 1024 * DIMENSION
    found = index.search([b"scope"] * 400, vectors[::10], 1, 0.0)
    assert [one[0].key for one in found] == [b"scope-%d" % number for number in range(0, 4000, 10)]


def test_search_on_gpu_short_of_memory_finds_all_the_same(torch, monkeypatch):
    """Law 10: a product that has no room on the device is made in parts, or on the host."""
    index = DeviceIndex(DIMENSION, PLENTY, device="cuda")
    vectors = units(3000, 8)
    add(index, b"scope", vectors)
    rows = index._device_rows
    search = rows._search

    def fails(*given, on_host=False):
        if not on_host:
            torch.empty(2**60, dtype=torch.uint8, device="cuda")
        return search(*given, on_host=on_host)

    monkeypatch.setattr(rows, "_search", fails)
    found = index.search([b"scope"] * 30, vectors[::100], 1, 0.0)
    assert [one[0].key for one in found] == [b"scope-%d" % number for number in range(0, 3000, 100)]
    assert len(index.troubles) == 5


@pytest.mark.parametrize("n", [1, 3])
def test_search_on_gpu_as_a_graph_finds_the_same(n, monkeypatch):
    """Few queries of a scope become a CUDA graph, which sees what is added later, and is made anew with its slots."""
    monkeypatch.setattr("semcache.semantic.rows._GRAPH_AFTER", 3)
    index = DeviceIndex(DIMENSION, PLENTY, device="cuda")
    vectors = units(70_000, 9)
    for stop in (66_900, 66_901, 67_500, 70_000):
        add(index, b"scope", vectors[len(index) : stop], first=len(index))
        for turn in range(6):
            queries = vectors[stop - 1 - turn * 7 : stop - 1 - turn * 7 + 1].repeat(n, 0)
            found = index.search([b"scope"] * n, queries, 4, 0.0)
            exact = queries[0] @ vectors[:stop].T
            assert {one[0].key for one in found} == {b"scope-%d" % exact.argmax()}
            assert [one.similarity for one in found[0]] == pytest.approx(np.sort(exact)[:-5:-1].tolist(), abs=1e-3)
    assert index._device_rows._graphs
    assert not index._device_rows.why
    assert not index.troubles
