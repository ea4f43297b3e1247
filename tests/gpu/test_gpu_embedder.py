"""On a CUDA device: the CPU's vectors in half precision, the same decisions, and a worker that outlives its errors.

The model is the folder that SEMCACHE_TEST_MODEL names, else the default one.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

import numpy as np
import pytest

import semcache
from semcache.semantic.batcher import Batcher
from semcache.semantic.device import DeviceIndex
from semcache.semantic.embedder import SentenceTransformerEmbedder
from semcache.semantic.index import FlatIndex

# In one process: there is one device.
pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("gpu")]

MODEL = os.environ.get("SEMCACHE_TEST_MODEL") or "all-MiniLM-L6-v2"
TRAFFIC = Path(__file__).parents[2] / "examples" / "traffic" / "support.jsonl"
SOON = 30
"""Seconds within which what must happen happens; a test that passes waits far less."""


@pytest.fixture(scope="module")
def on_cpu(torch):
    embedder = SentenceTransformerEmbedder(MODEL, device="cpu")
    embedder.load()
    return embedder


@pytest.fixture(scope="module")
def on_gpu(torch):
    embedder = SentenceTransformerEmbedder(MODEL, device="cuda")
    embedder.load()
    return embedder


@pytest.fixture(scope="module")
def texts(on_cpu):
    """The support desk's questions that the model sees whole."""
    requests = [json.loads(line)["request"] for line in TRAFFIC.read_text(encoding="utf-8").splitlines()]
    questions = dict.fromkeys(request["messages"][-1]["content"] for request in requests)
    return [question for question in questions if on_cpu.covers(question) is None]


def error_of(vectors, reference):
    """The length of the difference over the length of the reference; NaN is below no bound."""
    return np.linalg.norm(vectors - reference) / np.linalg.norm(reference)


def decisions(vectors, cut):
    """Of every two of these texts, whether one would answer the other."""
    return (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)] >= cut


# Vectors


@pytest.mark.parametrize(("dtype", "most"), [(None, 1e-2), ("float16", 5e-3), ("bfloat16", 2e-2), ("float32", 1e-4)])
def test_call_on_gpu_equals_cpu(dtype, most, on_cpu, texts):
    """Real texts of all lengths come out as on the CPU in float32: to 1e-2 unless another precision was asked for."""
    vectors = SentenceTransformerEmbedder(MODEL, device="cuda", dtype=dtype)(texts)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert error_of(vectors, on_cpu(texts)) < most


def test_load_on_gpu_computes_there_in_half_precision(on_gpu, torch):
    """Without `dtype` a GPU computes in float16, or in bfloat16 for a model that was made in it."""
    weights = list(on_gpu._model.parameters())
    assert {weight.device.type for weight in weights} == {"cuda"}
    assert {weight.dtype for weight in weights} <= {torch.float16, torch.bfloat16}
    assert SentenceTransformerEmbedder(MODEL).identity == on_gpu.identity


def test_call_on_gpu_batch_and_padding_hardly_count(on_gpu, texts):
    """A text's vector is the same alone and beside longer ones; padding is not seen, up to the window's last token."""
    together = on_gpu([*texts[:300], "word " * 254, "a"])
    alone = np.stack([on_gpu([text])[0] for text in [*texts[:40], "word " * 254, "a"]])
    assert error_of(np.concatenate([together[:40], together[-2:]]), alone) < 2e-2


def test_decisions_at_090_agree_with_cpu(on_cpu, on_gpu, texts):
    """Of all pairs of real texts at most 0.1% are decided otherwise than on the CPU, and only by a hair."""
    here, there = on_cpu(texts), on_gpu(texts)
    differ = decisions(here, 0.9) != decisions(there, 0.9)
    assert decisions(here, 0.9).sum() >= 10, "no near matches among these texts: nothing is tested"
    assert differ.mean() <= 1e-3
    similarities = (here @ here.T)[np.triu_indices(len(here), 1)]
    assert np.abs(similarities[differ] - 0.9).max(initial=0.0) < 0.01


# Passes by graphs


def test_load_on_gpu_runs_by_graphs(on_gpu, on_cpu, texts):
    """The default model's passes are captured, and graphs of all shapes that its texts need give the CPU's vectors."""
    assert on_gpu.path == "CUDA graphs"
    for n in (1, 3, 20, 200, len(texts)):
        assert error_of(on_gpu(texts[:n]), on_cpu(texts[:n])) < 1e-2
    assert on_gpu._passes.graphs > 8


def test_call_on_gpu_from_many_threads_gives_each_its_own(on_gpu, texts):
    """Graphs share memory; callers at once do not get each other's vectors."""
    expected = on_gpu(texts[:64])
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda place: on_gpu(texts[place : place + 8]), list(range(56)) * 4):
            near = (found @ expected.T).max(axis=1)
            assert near.min() > 0.999
        rows = list(pool.map(lambda place: on_gpu([texts[place]])[0], range(64)))
    assert error_of(np.stack(rows), expected) < 1e-2


def test_call_on_gpu_short_of_memory_still_answers(on_cpu, texts, torch, monkeypatch):
    """Law 10: where the device has no memory left the vectors come all the same, in smaller passes or from the CPU."""
    embedder = SentenceTransformerEmbedder(MODEL, device="cuda")
    embedder.load()
    start, left = embedder._passes.start, iter(range(3))

    def fails(ids):
        if next(left, None) is not None:
            torch.empty(2**60, dtype=torch.uint8, device="cuda")  # raises what the device raises
        return start(ids)

    monkeypatch.setattr(embedder._passes, "start", fails)
    assert error_of(embedder(texts[:50]), on_cpu(texts[:50])) < 1e-2
    assert len(embedder.troubles) == 3
    assert embedder.path == "CUDA graphs"


def test_model_that_cannot_be_captured_runs_plainly(on_cpu, texts, monkeypatch):
    """A model whose forward pass asks the device for a number has no graph: it runs plainly, and says so."""
    embedder = SentenceTransformerEmbedder(MODEL, device="cuda")
    from semcache.semantic import passes

    run = passes.Passes.run

    def asks(self, packed):
        assert int(packed.sum()) > 0
        return run(self, packed)

    monkeypatch.setattr(passes.Passes, "run", asks)
    embedder.load()
    assert error_of(embedder(texts[:20]), on_cpu(texts[:20])) < 1e-2
    assert embedder.path.startswith("plain passes (no CUDA graph")


def test_call_on_gpu_in_passes_of_every_length(on_gpu, on_cpu):
    """Passes are as long as their texts, odd lengths too: each captured, and as on the CPU."""
    texts = [f"{'word ' * n}{number}" for n in range(1, 40) for number in range(24)]
    assert error_of(on_gpu(texts), on_cpu(texts)) < 1e-2
    assert on_gpu.path == "CUDA graphs"


# One step


def test_vectors_on_gpu_stay_there_for_the_search(on_gpu, texts, torch):
    """New texts are searched for by a CUDA tensor that nobody waited for; what is found and told is as on the host."""
    asked = []

    class Watched(DeviceIndex):
        def search(self, scopes, vectors, k, now):
            asked.append(vectors)
            return super().search(scopes, vectors, k, now)

    index = Watched(on_gpu.dimension, 10**9, device="cuda")
    batcher = Batcher(on_gpu, lambda dimension: index, lambda: 0.0, on_fault=lambda reason, error: pytest.fail(reason))
    few = texts[:600]
    for number, vector in enumerate(on_gpu(few)):
        index.add(number.to_bytes(20), b"scope", vector, few[number], inf)
    try:
        for some in (few, few[:1], [f"{few[3]} please", few[5]]):
            found = batcher.search_many([b"scope"] * len(some), some, 4, with_vectors=True).result(SOON)
            expected = index.search([b"scope"] * len(some), np.stack([one.vector for one in found]), 4, 0.0)
            for one, plain in zip(found, expected, strict=True):
                assert one.neighbours[0].key == plain[0].key
                assert one.neighbours[0].similarity == pytest.approx(plain[0].similarity, abs=1e-3)
                assert float(one.neighbours[0].vector @ one.vector) == pytest.approx(plain[0].similarity, abs=2e-3)
        assert isinstance(asked[0], torch.Tensor)
        assert asked[0].is_cuda
    finally:
        batcher.close()


# The cache


def test_cache_on_gpu_serves_a_near_match(open_cache, on_cpu):
    """A cache with device="cuda" answers a rewording from the question before it, and loads what is far."""
    cache = open_cache(
        embedder=MODEL, device="cuda", policy=semcache.Threshold(0.9, guards=None), tenant=semcache.SHARED
    )
    cache.warm()

    @semcache.cached(cache, text="question", version="1")
    def answer(question):
        return f"(asked the model) {question}"

    answer("How do I reset my password?")
    assert cache.flush(SOON)
    assert answer("how do i reset my password") == "(asked the model) How do I reset my password?"
    assert semcache.last().tier == "semantic"
    first, second = on_cpu(["How do I reset my password?", "how do i reset my password"])
    assert semcache.last().similarity == pytest.approx(float(first @ second), abs=0.01)
    assert answer("When does the shop open on Sundays?") == "(asked the model) When does the shop open on Sundays?"
    assert not cache.stats().faults


def test_batcher_failing_batch_on_gpu_leaves_the_worker_alive(torch, monkeypatch, texts):
    """What the device raises fails the text it is of; those beside it and those that come later are answered."""
    embedder = SentenceTransformerEmbedder(MODEL, device="cuda")
    faults = []
    batcher = Batcher(
        embedder, lambda dimension: FlatIndex(dimension, 10**8), lambda: 0.0,
        on_fault=lambda reason, error: faults.append((reason, type(error))),
    )  # fmt: skip
    start = embedder.start

    def fails_on_poison(asked):
        if "poison" in asked:
            raise ValueError("the device does not like it, says a test")
        return start(asked)

    try:
        batcher.warm().result(SOON)
        monkeypatch.setattr(embedder, "start", fails_on_poison)
        for number, text in enumerate(texts[:50]):
            batcher.add(number.to_bytes(20), b"scope", text, None, inf)
        asked = [batcher.search(b"scope", text, 4) for text in ["poison", *texts[:50]]]
        with pytest.raises(ValueError, match="does not like it"):
            asked[0].result(SOON)
        nearest = [future.result(SOON).neighbours[0] for future in asked[1:]]
        assert [neighbour.text for neighbour in nearest] == texts[:50]
        assert {error for _, error in faults} == {ValueError}
        assert batcher.search(b"scope", texts[60], 1).result(SOON).neighbours
        assert batcher.state == "ready"
    finally:
        batcher.close()
