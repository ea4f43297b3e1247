"""Texts in, candidates out: vectors that a device makes are searched for there, on torch's CPU device here."""

import asyncio
from contextlib import contextmanager
from math import inf

import numpy as np
import pytest

from semcache.errors import TierError
from semcache.plan import Exchange, arun, run
from semcache.semantic.asking import Asked, Searcher, found_of
from semcache.semantic.batcher import Batcher, Found
from semcache.semantic.device import DeviceIndex
from semcache.semantic.index import FlatIndex
from semcache.semantic.started import Embedding, Started
from semcache.together import together

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.semantic

DIMENSION = 16
ROWS = 600
SOON = 30
"""Seconds within which what must happen happens; a test that passes waits far less."""


def vector_of(text):
    vector = np.random.default_rng([ord(letter) for letter in text]).standard_normal(DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class DeviceEmbedder:
    """An embedder whose vectors are under way on torch's CPU device, the longest text first, as by passes."""

    identity, dimension, ahead, batch = "device", DIMENSION, 8, 64

    def __init__(self):
        self.slices = []
        self.alone = []
        self.waits = 0
        self.spoils = lambda text: False
        self.lost = False

    def load(self):
        self.lost = False

    def covers(self, text):
        return "not seen whole" if "uncovered" in text else None

    def __call__(self, texts):
        self.alone += texts
        return np.stack([vector_of(text) for text in texts])

    def start(self, texts):
        self.slices.append(list(texts))
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        made = np.stack([vector_of(texts[place]) for place in order])
        made[[place for place, at in enumerate(order) if self.spoils(texts[at])]] = np.nan
        return Embedding(Started(torch.from_numpy(made), order), self.watched, self.identity)

    @contextmanager
    def watched(self):
        self.waits += 1
        if self.lost:
            raise TierError("lost", "the device has failed, says a test")
        yield


class Watched(DeviceIndex):
    """An index that keeps what it was asked for, and how often the device had been waited for by then."""

    def __init__(self, embedder):
        super().__init__(DIMENSION, 10**9, device="cpu")
        self.embedder, self.asked, self.gathers = embedder, [], []

    def search(self, scopes, vectors, k, now):
        self.asked.append(vectors)
        return super().search(scopes, np.asarray(vectors), k, now)

    def vectors(self, keys):
        self.gathers.append(len(keys))
        return super().vectors(keys)


class Rig:
    def __init__(self, make_index=None):
        self.embedder = DeviceEmbedder()
        self.index = Watched(self.embedder) if make_index is None else make_index()
        for number in range(ROWS):
            text = f"row {number}"
            self.index.add(text.encode(), b"scope", vector_of(text), text, inf)
        self.faults = []
        self.batcher = Batcher(
            self.embedder, lambda _: self.index, lambda: 0.0,
            on_fault=lambda reason, error: self.faults.append((reason, error)),
        )  # fmt: skip

    def many(self, texts, k=2, **settings):
        return self.batcher.search_many([b"scope"] * len(texts), texts, k, **settings).result(SOON)


@pytest.fixture
def rig():
    rigs = []

    def make(*given):
        rigs.append(Rig(*given))
        return rigs[-1]

    yield make
    for one in rigs:
        one.batcher.close()


def keys(found):
    return [one.key for one in found.neighbours]


def test_vectors_stay_on_the_device_from_passes_to_search(rig):
    """An index on the embedder's device is handed a tensor there; what is found and handed out is as on the host."""
    r, plain = rig(), rig(lambda: FlatIndex(DIMENSION, 10**9))
    texts = [f"row {number} of {number % 7 * 'many '}" for number in range(20)] + ["row 5", "row 7"]
    there, here = r.many(texts), plain.many(texts)
    assert isinstance(r.index.asked[0], torch.Tensor)
    assert np.allclose(r.index.asked[0].numpy(), [vector_of(text) for text in texts])
    assert [keys(one) for one in there] == [keys(one) for one in here]
    assert keys(there[-2])[0] == b"row 5"
    for text, one in zip(texts, there, strict=True):
        assert isinstance(one.vector, np.ndarray)
        assert one.vector.tolist() == pytest.approx(vector_of(text).tolist(), abs=1e-6)
    assert r.embedder.alone == []


def test_texts_go_to_the_device_in_slices_of_like_length(rig):
    """The device is handed as many as it is best given, the longest first: those that share passes pad little."""
    r = rig()
    texts = [f"a text {number % 5 * 'and more '}{number}" for number in range(20)]
    r.many(texts)
    assert [len(some) for some in r.embedder.slices] == [8, 8, 4]
    lengths = [len(text) for some in r.embedder.slices for text in some]
    assert lengths == sorted(lengths, reverse=True)


def test_remembered_texts_go_to_the_device_beside_new_ones(rig):
    """Of a batch some are remembered on the host; all are searched for at once, on the device."""
    r = rig()
    r.many(["row 1", "row 2"])
    found = r.many(["row 2", "new", "row 1", "row 3", "row 2"])
    assert [keys(one)[0] for one in found if one.vector is not None][::2] == [b"row 2", b"row 1", b"row 2"]
    assert r.embedder.slices[1:] == [["new", "row 3"]]
    assert isinstance(r.index.asked[1], torch.Tensor)
    assert len(r.index.asked) == 2


def test_remembered_texts_alone_are_searched_for_from_the_host(rig):
    """Where nothing is under way on the device, nothing goes there by itself."""
    r = rig()
    for _ in range(2):
        assert keys(r.many(["row 1"])[0])[0] == b"row 1"
    assert isinstance(r.index.asked[1], np.ndarray)


def test_index_elsewhere_is_given_vectors_of_the_host(rig):
    """An index without a device is searched as ever."""
    r = rig(lambda: FlatIndex(DIMENSION, 10**9))
    assert [keys(one)[0] for one in r.many(["row 3", "row 4"])] == [b"row 3", b"row 4"]


def test_vectors_that_are_none_are_made_anew_and_searched_for_again(rig):
    """Where the device made NaN of a text, its batch is embedded text by text, and searched for again."""
    r = rig()
    r.embedder.spoils = lambda text: text == "row 4"
    found = r.many(["row 3", "row 4"])
    assert [keys(one)[0] for one in found] == [b"row 3", b"row 4"]
    assert sorted(r.embedder.alone) == ["row 3", "row 4"]
    assert [reason for reason, _ in r.faults] == ["embed"]


def test_search_without_memory_for_its_queries_is_made_from_the_host(rig, monkeypatch):
    """Law 10: where a device has no memory for queries that lie there, those on the host are searched for."""
    r = rig()
    search = r.index.search

    def fails(scopes, vectors, k, now):
        if isinstance(vectors, torch.Tensor):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, says a test")
        return search(scopes, vectors, k, now)

    monkeypatch.setattr(r.index, "search", fails)
    assert [keys(one)[0] for one in r.many(["row 3", "row 4"])] == [b"row 3", b"row 4"]
    assert [reason for reason, _ in r.faults] == ["memory"]
    assert r.embedder.alone == []


def test_device_lost_while_it_embeds_fails_who_waits(rig):
    """Law 10: a device whose end shows when it is waited for is an error for who waits, and all begins anew."""
    r = rig()
    r.many(["row 1"])
    r.embedder.lost = True
    found = r.many(["row 2", "row 3"])
    assert [type(one) for one in found] == [TierError] * 2
    assert {one.reason for one in found} == {"lost"}
    assert r.batcher.state in {"failed", "ready"}


def test_search_many_gives_each_its_own_error(rig):
    """Law 12: a text that is not seen whole has an error in its place, and the others what was found."""
    r = rig()
    found = r.many(["row 1", "uncovered", "row 2"])
    assert [isinstance(one, Found) for one in found] == [True, False, True]
    assert found[1].reason == "uncovered"
    assert r.many([]) == []


def test_search_many_equals_search_of_each(rig):
    """One call for many finds what many calls find, each in its scope, and embeds a text once."""
    r = rig()
    r.index.add(b"alone", b"other", vector_of("row 1"), "row 1", inf)
    texts = ["row 1", "row 2", "row 1"]
    many = r.batcher.search_many([b"scope", b"scope", b"other"], texts, 3).result(SOON)
    each = [
        r.batcher.search(scope, text, 3).result(SOON)
        for scope, text in zip([b"scope", b"scope", b"other"], texts, strict=True)
    ]
    assert [keys(one) for one in many] == [keys(one) for one in each]
    assert keys(many[2]) == [b"alone"]
    assert r.embedder.slices == [["row 1", "row 2"]]


def test_vectors_of_neighbours_are_gathered_in_one_step(rig):
    """A policy that ranks is given the neighbours' vectors, all of a batch at once; who asks without gets none."""
    r = rig()
    found = r.many([f"row {number}" for number in range(10)], k=3, with_vectors=True)
    assert r.index.gathers == [30]
    for one in found:
        for neighbour in one.neighbours:
            assert np.allclose(neighbour.vector, vector_of(neighbour.text), atol=1e-3)
    assert {neighbour.vector for one in r.many(["row 1"]) for neighbour in one.neighbours} == {None}


# Many plans


def asks(searcher, text, k, *, with_vectors=False):
    """A plan that searches once, as the semantic tier's does."""
    return found_of((yield Exchange(searcher, [Asked(b"scope", text, k, with_vectors)], SOON)))


def test_plans_together_are_one_search_and_each_is_told_its_own(rig):
    """Of many plans one asks the batcher: each has its own neighbours, as many as it asked for, or its own error."""
    r = rig()
    searcher = Searcher(r.batcher)
    asked = [("row 1", 1, False), ("uncovered", 4, False), ("row 2", 3, True), ("row 3", 2, False)]
    outcomes = run(together([asks(searcher, text, k, with_vectors=wants) for text, k, wants in asked]))
    assert len(r.index.asked) == 1
    assert [len(outcomes[place].value.neighbours) for place in (0, 2, 3)] == [1, 3, 2]
    assert [keys(outcomes[place].value)[0] for place in (0, 2, 3)] == [b"row 1", b"row 2", b"row 3"]
    assert all(neighbour.vector is not None for neighbour in outcomes[2].value.neighbours)
    assert outcomes[1].error.reason == "uncovered"


def test_plan_alone_asks_by_threads_and_tasks(rig):
    """A lone plan is told the same, whoever carries it out; its error is raised in it."""
    r = rig()
    searcher = Searcher(r.batcher)
    assert keys(run(asks(searcher, "row 1", 2))) == keys(asyncio.run(arun(asks(searcher, "row 1", 2))))
    for carry_out in (run, lambda plan: asyncio.run(arun(plan))):
        with pytest.raises(TierError, match="not seen whole"):
            carry_out(asks(searcher, "uncovered", 2))


def test_batch_of_many_is_counted_by_its_texts(rig):
    """No batch of several calls has more texts than max_batch by more than its last call's."""
    r = rig()
    r.batcher.embed("row 0").result(SOON)
    before = r.batcher.stats()
    futures = [
        r.batcher.search_many([b"scope"] * 40, [f"row {call * 40 + n}" for n in range(40)], 1) for call in range(16)
    ]
    for future in futures:
        assert all(isinstance(one, Found) for one in future.result(SOON))
    after = r.batcher.stats()
    assert after["batched"] - before["batched"] == 640
    assert after["batches"] - before["batches"] >= 3
