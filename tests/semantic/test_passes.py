"""Passes: few shapes, each text once, and the vectors that the model itself makes; run plainly on the CPU here."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.errors import TierError
from semcache.semantic.batcher import Batcher, Found
from semcache.semantic.device import DeviceIndex
from semcache.semantic.embedder import SentenceTransformerEmbedder
from semcache.semantic.failing import is_lost, is_short
from semcache.semantic.passes import _MOST_GRAPHS, SAMPLES, Passes, shapes
from semcache.semantic.transformer import _tail_of

pytestmark = [pytest.mark.semantic, pytest.mark.xdist_group("embedder")]

TEXTS = [f"{'word ' * (place * 7 % 11)}number {place}" for place in range(30)] + ["long " * 300, "a"]


@pytest.fixture(scope="module")
def embedder():
    embedder = SentenceTransformerEmbedder(device="cpu")
    embedder.load()
    return embedder


@pytest.fixture
def make_passes(embedder):
    def make(**changes):
        settings = {"window": embedder.window, "pad": 0, "tail": _tail_of(embedder._tokenizer), "use_graphs": False}
        return Passes(embedder._model, **(settings | changes))

    return make


def ids_of(embedder, texts):
    return [embedder._tokens(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60) | st.integers(1, 700), max_size=300),
    most=st.sampled_from([512, 4096, 16384]),
)
def test_shapes_hold_each_text_once_and_whole(lengths, most):
    """Every text is in one pass, which is long enough for it and has a row for it; no pass is over its tokens."""
    found = list(shapes(lengths, most))
    assert sorted(place for places, _, _ in found for place in places) == list(range(len(lengths)))
    for places, rows, length in found:
        assert len(places) <= rows
        assert max(lengths[place] for place in places) <= length
        assert rows == 1 or rows * length <= max(min(most, 2048), most)


# How many texts in a hundred have so many tokens: questions of a support desk, short and with a long tail.
QUESTIONS = {
    7: 3,
    8: 4,
    9: 7,
    10: 9,
    11: 11,
    12: 12,
    13: 11,
    14: 9,
    15: 7,
    16: 6,
    18: 6,
    21: 5,
    25: 4,
    30: 3,
    41: 2,
    60: 1,
}


def lengths_of(kind, n, draw=0):
    """Draw lengths in tokens of `n` texts; the same each time."""
    random = np.random.default_rng([n, len(kind), draw])
    if kind == "questions":
        drawn = random.choice(list(QUESTIONS), n, p=np.array(list(QUESTIONS.values())) / sum(QUESTIONS.values()))
    else:
        mean = int(kind.split()[1])
        drawn = random.normal(mean, mean / 8 if mean < 100 else 26, n).clip(8, 256)
    return drawn.astype(int).tolist()


@pytest.mark.parametrize(
    ("kind", "n", "most"),
    [
        *[("around 16", n, 0.1) for n in (256, 1024, 4096)],
        *[("around 128", n, 0.1) for n in (256, 1024, 4096)],
        *[("questions", n, 0.1) for n in (1024, 4096)],
        ("questions", 256, 0.25),
    ],
)
def test_shapes_of_many_texts_pad_little(kind, n, most):
    """Of some batches padding of rows and lengths together is less than a tenth, where a pass is not free all the same.

    They do not become many for it.
    """
    batches = [lengths_of(kind, n, draw) for draw in range(4)]
    passes = [one for lengths in batches for one in shapes(lengths)]
    tokens = sum(map(sum, batches))
    assert sum(rows * length for _, rows, length in passes) < (1 + most) * tokens
    assert len(passes) <= 4 * len(batches) + tokens / 1000


def test_shapes_of_many_batches_are_few():
    """Batches of all sizes need no more shapes than there may be graphs."""
    sizes = np.random.default_rng(1).integers(1, 1025, 120).tolist()
    batches = [lengths_of(kind, n) for n in sizes for kind in ("questions", "around 16", "around 128")]
    assert len({(rows, length) for lengths in batches for _, rows, length in shapes(lengths)}) <= _MOST_GRAPHS


def test_shapes_of_few_texts_are_one_pass():
    """A handful of short texts of any lengths share one pass: to launch another costs more than padding."""
    assert list(shapes([5, 30, 9])) == [([1, 2, 0], 4, 32)]


def test_prove_and_call_equal_the_models_own(make_passes, embedder):
    """What the passes make of texts of all lengths, one over the window among them, is what the embedder makes."""
    passes = make_passes()
    assert passes.prove(ids_of(embedder, SAMPLES), SAMPLES, "") == ""
    assert np.abs(passes(ids_of(embedder, TEXTS)) - embedder(TEXTS)).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "why"), [({"pad": 0, "tail": 0}, "pads or cuts"), ({"window": 128}, "pads or cuts")]
)
def test_prove_another_cut_is_said(make_passes, embedder, changes, why):
    """Where a text is not cut as the model cuts it, passes are not to be used, and say why."""
    assert why in make_passes(**changes).prove(ids_of(embedder, SAMPLES), SAMPLES, "")


def test_prove_other_vectors_are_said(make_passes, embedder, monkeypatch):
    """Where the model gives other vectors than by itself, passes are not to be used."""
    passes = make_passes()
    run = passes.run
    monkeypatch.setattr(passes, "run", lambda packed: run(packed).flip(1))
    assert "vectors differ" in passes.prove(ids_of(embedder, SAMPLES), SAMPLES, "")


def test_shrink_ends(make_passes, embedder):
    """Passes get smaller until they are of no use, and go on giving the same vectors."""
    passes, texts = make_passes(), TEXTS[-12:]
    passes.prove(ids_of(embedder, SAMPLES[:2]), SAMPLES[:2], "")
    before = passes(ids_of(embedder, texts))
    assert [passes.shrink() for _ in range(7)] == [True] * 5 + [False] * 2
    assert np.abs(passes(ids_of(embedder, texts)) - before).max() < 1e-5


# An embedder on a device that fails, with the device's errors raised where the device would raise them


@pytest.fixture
def on_device(make_passes, embedder):
    """An embedder that works by passes, as on a GPU."""
    made = SentenceTransformerEmbedder(device="cpu")
    made.load()
    made._passes = make_passes()
    assert made._passes.prove(ids_of(embedder, SAMPLES[:2]), SAMPLES[:2], "") == ""
    return made


def test_call_by_passes_in_slices_equals_the_cpus(on_device, embedder, monkeypatch):
    """More texts than go to the device at once come back in order."""
    monkeypatch.setattr("semcache.semantic.transformer._AHEAD", 10)
    assert np.abs(on_device(TEXTS) - embedder(TEXTS)).max() < 1e-5
    assert on_device.path == "plain passes (the device has no CUDA graphs)"


def test_batcher_searches_for_what_passes_make_where_it_is(on_device, embedder, monkeypatch):
    """From texts to rows in one step: the index is handed what the passes made, and the host has it checked, later."""
    import torch

    monkeypatch.setattr("semcache.semantic.transformer._AHEAD", 10)
    vectors, asked, faults = embedder(TEXTS), [], []

    class Watched(DeviceIndex):
        def search(self, scopes, vectors, k, now):
            asked.append(vectors)
            return super().search(scopes, np.asarray(vectors), k, now)

    index = Watched(embedder.dimension, 10**9, device="cpu")
    for place, vector in enumerate(vectors):
        index.add(b"%d" % place, b"scope", vector, TEXTS[place], inf)
    batcher = Batcher(on_device, lambda _: index, lambda: 0.0, on_fault=lambda *told: faults.append(told))
    try:
        texts = [text for text in TEXTS if on_device.covers(text) is None]
        found = batcher.search_many([b"scope"] * len(TEXTS), TEXTS, 1).result(30)
    finally:
        batcher.close()
    told = {text: one for text, one in zip(TEXTS, found, strict=True) if isinstance(one, Found)}
    assert list(told) == texts
    assert [one.neighbours[0].text for one in told.values()] == texts
    assert isinstance(asked[0], torch.Tensor)
    assert np.abs(np.stack([one.vector for one in told.values()]) - embedder(texts)).max() < 1e-5
    assert (len(asked), faults) == (1, [])


@pytest.mark.parametrize("failures", [2, 99])
@pytest.mark.parametrize("says", ["torch", "cuBLAS"])
def test_out_of_memory_takes_smaller_passes_and_at_last_the_cpu(on_device, embedder, monkeypatch, failures, says):
    """Law 10: without memory the vectors come all the same, in smaller passes or from the CPU, and it is told."""
    import torch

    start, left = on_device._passes.start, iter(range(failures))

    def fails(ids):
        if next(left, None) is not None:
            if says == "cuBLAS":
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, says a test")
        return start(ids)

    monkeypatch.setattr(on_device._passes, "start", fails)
    assert np.abs(on_device(TEXTS[:20]) - embedder(TEXTS[:20])).max() < 1e-5
    assert len(on_device.troubles) == min(failures, 6)
    assert on_device._passes.most_tokens == (4096 if failures == 2 else 512)


def test_lost_device_raises_lost_and_the_next_load_is_on_the_cpu(on_device, embedder, monkeypatch):
    """Law 10: after a device's end the call fails as "lost", and loading again makes an embedder that works."""

    def fails(ids):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(on_device._passes, "start", fails)
    with pytest.raises(TierError) as raised:
        on_device(TEXTS[:3])
    assert raised.value.reason == "lost"
    assert on_device.device is None
    assert np.abs(on_device(TEXTS[:3]) - embedder(TEXTS[:3])).max() < 1e-5
    assert on_device.device == "cpu"


def test_other_errors_are_not_the_devices_end(on_device, monkeypatch):
    """An error of the model's own goes to the caller as it is."""

    def fails(ids):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(on_device._passes, "start", fails)
    with pytest.raises(RuntimeError, match="do not fit"):
        on_device(TEXTS[:3])
    assert on_device.device == "cpu"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), False),
        (ValueError("CUDA error"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
    ],
)
def test_is_lost_tells_the_devices_errors_from_others(error, expected):
    """What CUDA says of itself means that it has ended; a spoilt capture and errors of a call do not."""
    assert is_lost(error) is expected


def test_memory_that_a_library_of_the_device_lacks_is_memory():
    """What cuBLAS and cuDNN say of memory is taken as what torch says of it, and no error of a call is."""
    import torch

    assert is_short(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_short(RuntimeError("CUDA error: out of memory"))
    assert is_short(torch.cuda.OutOfMemoryError("tried to allocate 2 GiB"))
    assert not is_short(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_short(ValueError("out of memory"))
