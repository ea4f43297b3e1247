"""Many searches of one call: they go in slices, who is told in time is told, and the queue counts each text."""

import asyncio
import threading
from math import inf

import numpy as np
import pytest
from test_batcher import SOON, rigs_of

from semcache.errors import TierError
from semcache.plan import Exchange, arun, run
from semcache.semantic.asking import Asked, Searcher, found_of
from semcache.semantic.batcher import Batcher, Found
from semcache.semantic.embedder import CallableEmbedder
from semcache.semantic.index import FlatIndex
from semcache.tier import AlsoFailed
from semcache.together import together

pytestmark = pytest.mark.semantic


class Held:
    """An embedder that keeps the batches it was asked for; while `gate` is closed it answers none with a new text."""

    identity, dimension = "held", 2

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, texts):
        self.batches.append(list(texts))
        self.entered.set()
        assert self.gate.wait(SOON)
        return np.tile(np.array([1, 0], np.float32), (len(texts), 1))


class Rig:
    def __init__(self, **settings):
        self.embed = Held()
        self.faults = []
        self.batcher = Batcher(
            CallableEmbedder(self.embed), lambda dimension: FlatIndex(dimension, 10**9), lambda: 0.0,
            on_fault=lambda reason, error: self.faults.append((reason, error)), max_batch=4, **settings,
        )  # fmt: skip
        self.batcher.add(b"row", b"scope", "row", np.array([1, 0], np.float32), inf)
        self.batcher.warm().result(SOON)
        self.embed.batches.clear()

    def many(self, texts):
        return self.batcher.search_many([b"scope"] * len(texts), texts, 1)

    def hold(self):
        """Let the worker stand inside the embedding of a text."""
        self.embed.gate.clear()
        self.embed.entered.clear()
        held = self.batcher.embed("held")
        assert self.embed.entered.wait(SOON)
        return held


@pytest.fixture
def rig():
    with rigs_of(Rig) as make:
        yield make


def fresh(count):
    return [f"new {number}" for number in range(count)]


def test_call_is_served_in_slices_of_a_batch_each(rig):
    """No call makes the worker embed more than a batch in one step, and each text has its own answer, in its place."""
    r = rig()
    found = r.many(fresh(10)).result(SOON)
    assert [len(batch) for batch in r.embed.batches] == [4, 4, 2]
    assert [[near.key for near in one.neighbours] for one in found] == [[b"row"]] * 10


def test_remembered_texts_are_found_though_new_ones_of_their_call_are_late(rig):
    """Who is told in time is told: what is at hand goes first, whatever its place, and waits for nothing new."""
    r = rig()
    known = [f"known {number}" for number in range(6)]
    r.many(known).result(SOON)
    r.embed.gate.clear()
    texts = [text for pair in zip(fresh(6), known, strict=True) for text in pair]
    telling = r.many(texts).told(SOON)
    step = next(telling)
    for _ in range(2):  # the slices of what is remembered, four texts and two
        step = telling.send(step.run())
    assert not step.future.done()
    telling.throw(TimeoutError())  # the others are late, four texts and two
    with pytest.raises(StopIteration) as ended:
        telling.throw(TimeoutError())
    replies = ended.value.value
    assert all(isinstance(found, Found) for found in replies[1::2])
    assert all(isinstance(found, TimeoutError) for found in replies[::2])


@pytest.mark.parametrize("carry_out", [run, lambda plan: asyncio.run(arun(plan))], ids=["thread", "task"])
def test_late_call_is_one_failure(rig, carry_out):
    """Of the plans of a late call one has TimeoutError; the others have it marked as that of the same trip."""
    r = rig()
    r.embed.gate.clear()
    searcher = Searcher(r.batcher)

    def asks(text):
        return found_of((yield Exchange(searcher, [Asked(b"scope", text, 1, with_vectors=False)], 0)))

    outcomes = carry_out(together([asks(text) for text in fresh(10)]))
    assert [type(outcome.error) for outcome in outcomes] == [TimeoutError] + [AlsoFailed] * 9
    assert {type(outcome.error.error) for outcome in outcomes[1:]} == {TimeoutError}


def test_queue_counts_the_texts_of_a_call(rig):
    """A call has as much of the queue as its texts: what does not fit is refused, and the rest is served."""
    r = rig(max_pending=10)
    held = r.hold()
    many = r.many(fresh(20))
    assert r.batcher.stats()["queued"] == 12
    with pytest.raises(TierError) as refused:
        r.batcher.search(b"scope", "one too many", 1)
    assert refused.value.reason == "full"
    r.embed.gate.set()
    held.result(SOON)
    found = many.result(SOON)
    assert all(isinstance(one, Found) for one in found[:12])
    assert [one.reason for one in found[12:]] == ["full"] * 8
    assert r.batcher.stats()["queued"] == 0
    assert isinstance(r.batcher.search(b"scope", "now there is room", 1).result(SOON), Found)


def test_call_that_waits_at_the_close_leaves_nothing_queued(rig):
    """What is closed fails each text of a waiting call, and counts none as waiting any more."""
    r = rig()
    r.hold()
    many = r.many(fresh(10))
    r.batcher.close(0)
    assert {one.reason for one in many.result(SOON)} == {"closed"}
    assert r.batcher.stats()["queued"] <= 1  # what ends the thread
