"""The batcher, its one thread, and what can go wrong in it; the embedders are named callables, as users write them."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from hashlib import blake2b
from math import inf

import numpy as np
import pytest

from semcache.errors import TierError
from semcache.semantic.batcher import Batcher, Found
from semcache.semantic.embedder import CallableEmbedder
from semcache.semantic.index import FlatIndex
from semcache.semantic.worker import _GIVES_WAY

pytestmark = pytest.mark.semantic

DIMENSION = 16
SOON = 30
"""Seconds within which what must happen happens; a test that passes waits far less."""


def vector_of(text):
    seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
    vector = np.random.default_rng(seed).standard_normal(DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Embed:
    """A user's embedder that keeps what it was asked, fails where told, and stands still while `gate` is closed."""

    identity = "test"
    dimension = DIMENSION

    def __init__(self):
        self.batches = []
        self.fails = lambda texts: None
        self.load_error = None
        self.loads = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def load(self):
        self.loads += 1
        if self.load_error is not None:
            raise self.load_error

    def __call__(self, texts):
        self.batches.append(list(texts))
        self.entered.release()
        assert self.gate.wait(SOON)
        error = self.fails(texts)
        if error is not None:
            raise error
        return [vector_of(text) for text in texts]

    def hold(self):
        """Close the gate; calls that come wait inside until it is opened."""
        self.gate.clear()
        self.entered = threading.Semaphore(0)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Rig:
    """A batcher with all it needs, and the faults it told."""

    def __init__(self, **settings):
        self.embed = settings.pop("embed", None) or Embed()
        self.clock = Clock()
        self.faults = []
        settings.setdefault("on_fault", lambda reason, error: self.faults.append((reason, error)))
        settings.setdefault("make_index", lambda dimension: FlatIndex(dimension, 10**9))
        self.batcher = Batcher(CallableEmbedder(self.embed), clock=self.clock, **settings)

    def search(self, scope, text, k=4):
        return self.batcher.search(scope, text, k).result(SOON)

    def held(self, text="held"):
        """Let the worker stand inside the embedding of one text; return that text's future."""
        self.batcher.warm().result(SOON)
        self.embed.hold()
        future = self.batcher.embed(text)
        assert self.embed.entered.acquire(timeout=SOON)
        return future


@contextmanager
def rigs_of(kind):
    """Give what makes rigs of a kind; those that were made are let go and closed at the end."""
    rigs = []

    def make(**settings):
        rigs.append(kind(**settings))
        return rigs[-1]

    yield make
    for made in rigs:
        made.embed.gate.set()
        made.batcher.close(SOON)


@pytest.fixture
def rig():
    with rigs_of(Rig) as make:
        yield make


def keys(found):
    return [neighbour.key for neighbour in found.neighbours]


# Searching, adding, removing


def test_search_from_32_threads_each_finds_its_own_row(rig):
    """Whatever is batched together, each caller gets the vector of its text and the neighbours in its scope."""
    r = rig(max_batch=7)
    texts = [f"text {number}" for number in range(32)]
    for number, text in enumerate(texts):
        r.batcher.add(b"%d" % number, b"scope-%d" % (number % 5), text, None, inf)
    wrong = []

    def ask(number):
        for round_ in range(10):
            mine = (number + round_) % 32
            found = r.search(b"scope-%d" % (mine % 5), texts[mine])
            if keys(found)[0] != b"%d" % mine or found.neighbours[0].similarity < 0.999:
                wrong.append((mine, found))
            if not np.allclose(found.vector, vector_of(texts[mine])) or len(found.neighbours) != 4:
                wrong.append((mine, found))
            if any(int(key) % 5 != mine % 5 for key in keys(found)):
                wrong.append((mine, found))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert wrong == []
    assert r.faults == []


def test_search_batch_of_different_k_gives_each_its_own(rig):
    """Requests of one batch keep their own number of neighbours."""
    r = rig()
    for number in range(6):
        r.batcher.add(b"%d" % number, b"scope", f"text {number}", None, inf)
    r.held()
    futures = [r.batcher.search(b"scope", "text 1", k) for k in (1, 5, 3)]
    r.embed.gate.set()
    assert [len(future.result(SOON).neighbours) for future in futures] == [1, 5, 3]


def test_requests_behind_a_running_batch_gather_and_a_lone_one_does_not_wait(rig):
    """No timer: the first request runs alone at once; those that came meanwhile are the next batch."""
    r = rig()
    first = r.held("first")
    rest = [r.batcher.embed(f"text {number}") for number in range(10)]
    r.embed.gate.set()
    for future in [first, *rest]:
        future.result(SOON)
    assert r.embed.batches[-2:] == [["first"], [f"text {number}" for number in range(10)]]


def test_requests_more_than_max_batch_are_split(rig):
    """No batch is larger than max_batch."""
    r = rig(max_batch=4)
    first = r.held()
    rest = [r.batcher.embed(f"text {number}") for number in range(10)]
    r.embed.gate.set()
    for future in [first, *rest]:
        future.result(SOON)
    assert [len(batch) for batch in r.embed.batches[-3:]] == [4, 4, 2]


def test_who_asks_gives_way_while_many_wait(rig, monkeypatch):
    """A caller who hands over very many while a batch runs lets it have the interpreter; one of few has no pause."""
    r = rig()
    r.held()
    pauses = []
    monkeypatch.setattr("semcache.semantic.worker.sleep", pauses.append)
    futures = [r.batcher.embed(f"text {number}") for number in range(_GIVES_WAY)]
    assert pauses == []
    futures += [r.batcher.embed(f"text {number}") for number in range(3)]
    assert pauses == [0] * 3
    r.embed.gate.set()
    for future in futures:
        assert future.result(SOON) is not None


def test_calls_take_effect_in_their_order(rig):
    """A search sees every row added before it, and those added while it waits, but none dropped before it."""
    r = rig()
    r.held()
    b = r.batcher
    futures = [b.search(b"scope", "text", 4)]
    b.add(b"one", b"scope", "text", None, inf)
    futures.append(b.search(b"scope", "text", 4))
    b.add(b"two", b"scope", "other", vector_of("other"), inf)
    futures.append(b.search(b"scope", "text", 4))
    b.remove([b"one", b"nobody"])
    futures.append(b.search(b"scope", "text", 4))
    b.clear()
    futures.append(b.search(b"scope", "text", 4))
    r.embed.gate.set()
    found = [keys(future.result(SOON)) for future in futures]
    assert found == [*[[b"one", b"two"]] * 3, [b"two"], []]


def test_searches_between_rows_that_come_are_one_search(rig):
    """Many threads that miss ask and add in turn; what has gathered of them is searched for at once."""
    r = rig()
    r.held()
    futures = []
    for number in range(20):
        futures.append(r.batcher.search(b"scope", f"text {number}", 1))
        r.batcher.add(b"%d" % number, b"scope", f"text {number}", vector_of(f"text {number}"), inf)
    r.embed.gate.set()
    assert [keys(future.result(SOON)) for future in futures] == [[b"%d" % number] for number in range(20)]
    assert len({future.result().search_ns for future in futures}) == 1


def test_search_expired_row_is_not_found_by_the_batchers_clock(rig):
    """Lives are counted in the clock that was given."""
    r = rig()
    r.batcher.add(b"key", b"scope", "text", None, r.clock.now + 10)
    assert keys(r.search(b"scope", "text")) == [b"key"]
    r.clock.now += 10
    assert keys(r.search(b"scope", "text")) == []


def test_done_is_given_the_vector_only_where_it_was_computed_here(rig):
    """Who adds a row without its vector learns the vector; who had it is not called."""
    r = rig()
    learned = {}
    r.batcher.add(b"late", b"scope", "text", None, inf, learned.__setitem__)
    r.batcher.add(b"early", b"scope", "other", vector_of("other"), inf, learned.__setitem__)
    assert r.batcher.flush(SOON)
    assert list(learned) == [b"late"]
    assert np.allclose(learned[b"late"], vector_of("text"))


def test_has_scope_is_none_until_ready_and_counts_rows_on_their_way(rig):
    """Before the index is there nothing is claimed; a row that waits in the queue counts already."""
    r = rig()
    assert r.batcher.has_scope(b"scope") is None
    held = r.held()
    assert r.batcher.has_scope(b"scope") is False
    r.batcher.add(b"key", b"scope", "text", None, inf)
    assert r.batcher.has_scope(b"scope") is True
    r.embed.gate.set()
    held.result(SOON)
    assert r.batcher.flush(SOON)
    assert r.batcher.has_scope(b"scope") is True
    r.batcher.remove([b"key"])
    assert r.batcher.flush(SOON)
    assert r.batcher.has_scope(b"scope") is False


def test_has_scope_of_a_row_that_arrives_while_it_is_asked(rig):
    """A scope is seen on its way or in the index, also where its first row moves from one to the other in between."""
    r = None

    class Arriving(FlatIndex):
        def has_scope(self, scope):
            found = super().has_scope(scope)
            r.embed.gate.set()
            assert r.batcher.flush(SOON)
            return found

    r = rig(make_index=lambda dimension: Arriving(dimension, 10**9))
    r.held()
    r.batcher.add(b"key", b"scope", "text", None, inf)
    assert r.batcher.has_scope(b"scope") is True


def test_row_that_could_not_be_added_does_not_leave_its_scope_behind(rig):
    """A row that failed on its way is no longer on its way."""
    r = rig()
    r.batcher.warm().result(SOON)
    r.batcher.add(b"key", b"scope", "text", np.full(DIMENSION, np.nan, np.float32), inf)
    r.batcher.add(b"key", b"scope", "text", np.ones(3, np.float32), inf)
    r.batcher.add(b"key", b"scope", "", None, inf)
    assert r.batcher.flush(SOON)
    assert r.batcher.has_scope(b"scope") is False
    assert [reason for reason, _ in r.faults] == ["add", "add"]
    assert keys(r.search(b"scope", "text")) == []


# What is not computed twice


def test_same_text_in_a_batch_is_embedded_once(rig):
    """Requests that wait for the same text share its vector."""
    r = rig()
    r.held()
    futures = [r.batcher.search(b"scope-%d" % (number % 3), "same", 4) for number in range(9)]
    r.batcher.add(b"key", b"scope", "same", None, inf)
    r.embed.gate.set()
    for future in futures:
        future.result(SOON)
    assert r.embed.batches[-1] == ["same"]


def test_remembered_text_is_not_embedded_again_until_others_push_it_out(rig):
    """The latest texts keep their vectors; being asked for again renews them."""
    r = rig(remembered=2)
    for text in ("one", "two", "one", "three", "one", "two"):
        r.batcher.embed(text).result(SOON)
    assert [batch for [batch] in r.embed.batches] == ["one", "two", "three", "two"]
    assert r.batcher.stats()["remembered"] == 2


def test_remembered_none_embeds_every_time(rig):
    """Nothing need be remembered."""
    r = rig(remembered=0)
    for _ in range(3):
        r.batcher.embed("one").result(SOON)
    assert len(r.embed.batches) == 3


def test_vector_handed_out_cannot_be_changed_and_holds_no_batch(rig):
    """A vector is shared by all who asked for its text, so none can write to it; it keeps no other's memory."""
    r = rig()
    vector = r.batcher.embed("text").result(SOON)
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 0
    assert vector.base is None


# Faults


def test_embed_fails_all_of_the_batch_fail_and_the_thread_lives_on(rig):
    """A failed batch fails every one of its futures with the embedder's error; the next works."""
    r = rig()
    r.held()
    r.embed.fails = lambda texts: RuntimeError("no device")
    futures = [r.batcher.search(b"scope", f"text {number}", 4) for number in range(3)]
    r.embed.gate.set()
    for future in futures:
        with pytest.raises(RuntimeError, match="no device"):
            future.result(SOON)
    r.embed.fails = lambda texts: None
    assert isinstance(r.search(b"scope", "text 1"), Found)
    assert {reason for reason, _ in r.faults} == {"embed"}


def test_embed_poisonous_text_fails_alone_after_one_retry_each(rig):
    """Where one text fails its batch, the others are embedded alone, once, and are well."""
    r = rig()
    held = r.held()
    r.embed.fails = lambda texts: ValueError("poison") if "poison" in texts else None
    texts = ["good", "poison", "better"]
    futures = {text: r.batcher.embed(text) for text in texts}
    r.embed.gate.set()
    assert np.allclose(futures["good"].result(SOON), vector_of("good"))
    assert np.allclose(futures["better"].result(SOON), vector_of("better"))
    with pytest.raises(ValueError, match="poison"):
        futures["poison"].result(SOON)
    held.result(SOON)
    assert r.embed.batches[2:] == [texts, ["good"], ["poison"], ["better"]]
    assert [reason for reason, _ in r.faults] == ["embed"]


@pytest.mark.parametrize(
    ("answer", "what"),
    [([[float("nan")] * DIMENSION], "NaN"), ([[0.0] * DIMENSION], "zero"), ([[1] * DIMENSION], "int"), ([], "shape")],
)
def test_embed_answer_is_no_vector_is_a_value_error(rig, answer, what):
    """What is no unit vector never reaches the index or a caller."""

    class Bad(Embed):
        def __call__(self, texts):
            return answer

    r = rig(embed=Bad())
    r.batcher.add(b"key", b"scope", "row", None, inf)
    with pytest.raises(ValueError, match=what):
        r.search(b"scope", "text")
    assert r.batcher.stats()["rows"] == 0


def test_embedder_exits_callers_get_an_error_they_survive(rig):
    """An embedder's SystemExit ends neither the worker nor the caller."""
    r = rig()
    r.embed.fails = lambda texts: SystemExit(3)
    with pytest.raises(TierError, match="SystemExit"):
        r.search(b"scope", "text")
    r.embed.fails = lambda texts: None
    assert r.search(b"scope", "text").neighbours == []


def test_callbacks_raise_anything_the_thread_lives_on(rig):
    """Neither on_fault, nor done, nor a future's callback can break the worker."""

    def raises(*args):
        raise KeyboardInterrupt

    r = rig(on_fault=raises)
    r.batcher.add(b"key", b"scope", "text", None, inf, raises)
    r.batcher.add(b"bad", b"scope", "text", np.zeros(DIMENSION, np.float32), inf)
    r.held().add_done_callback(raises)
    r.embed.gate.set()
    assert keys(r.search(b"scope", "text")) == [b"key"]


def test_index_fails_searches_get_its_error_and_the_thread_lives_on(rig):
    """What the index raises is its searchers' error and a fault."""

    class Broken(FlatIndex):
        def search(self, scopes, vectors, k, now):
            raise MemoryError("no room")

    r = rig(make_index=lambda dimension: Broken(dimension, 10**9))
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            r.search(b"scope", "text")
    assert [reason for reason, _ in r.faults] == ["search", "search"]


@pytest.mark.parametrize("call", ["remove", "sweep"])
def test_index_fails_as_it_changes_all_begins_anew(rig, call):
    """What an index raises in a removal or a sweep does not end the thread: its rows are read anew."""

    def fail(*_):
        raise MemoryError("no room")

    made, failed = [], threading.Event()

    def make_index(dimension):
        made.append(FlatIndex(dimension, 10**9))
        if len(made) == 1:
            setattr(made[0], call, fail)
        return made[-1]

    r = rig(make_index=make_index, on_fault=lambda reason, _: reason == "load" and failed.set())
    r.batcher.remove([b"key"])
    assert failed.wait(SOON)
    r.clock.now += 1000
    assert r.search(b"scope", "text").neighbours == []
    assert len(made) == 2


def test_index_is_closed_with_its_worker(rig):
    """What an index does aside ends when nobody searches it any more: at the end, and before the next is loaded."""
    made = []

    class Closing(FlatIndex):
        is_closed = False

        def close(self):
            self.is_closed = True

        def search(self, scopes, vectors, k, now):
            raise TierError("lost", "the device has gone")

    def make_index(dimension):
        made.append(Closing(dimension, 10**9))
        return made[-1]

    failed = threading.Event()
    r = rig(make_index=make_index, on_fault=lambda reason, _: reason == "load" and failed.set())
    with pytest.raises(TierError, match="has gone"):
        r.search(b"scope", "text")
    assert failed.wait(SOON)
    assert [one.is_closed for one in made] == [True]
    r.clock.now += 1000
    r.batcher.warm().result(SOON)
    r.batcher.close()
    assert [one.is_closed for one in made] == [True, True]


def test_uncovered_text_is_neither_searched_nor_indexed(rig):
    """Law 12: a text that the embedder does not see whole raises "uncovered" with the reason, and is no row."""
    embed = Embed()
    embed.window, embed.count = 3, lambda text: len(text.split())
    r = rig(embed=embed)
    short, long = "one two three", "one two three four"
    learned = []
    r.batcher.add(b"long", b"scope", long, None, inf, lambda *args: learned.append(args))
    r.batcher.add(b"long with vector", b"scope", long, vector_of(long), inf)
    r.batcher.add(b"short", b"scope", short, vector_of(short), inf)
    assert keys(r.search(b"scope", short)) == [b"short"]
    with pytest.raises(TierError, match="4 tokens") as raised:
        r.search(b"scope", long)
    assert raised.value.reason == "uncovered"
    assert learned == []
    assert not any(long in batch for batch in r.embed.batches)
    assert r.batcher.stats()["uncovered"] == 3


def test_queue_full_searches_are_refused_and_rows_dropped(rig):
    """The queue is bounded: a search raises "full" at once, a row is dropped, told and counted."""
    r = rig(max_pending=3)
    held = r.held()
    waiting = [r.batcher.search(b"scope", f"text {number}", 4) for number in range(3)]
    with pytest.raises(TierError) as raised:
        r.batcher.search(b"scope", "one too many", 4)
    assert raised.value.reason == "full"
    r.batcher.add(b"key", b"scope", "text", None, inf)
    assert r.batcher.has_scope(b"scope") is False
    r.embed.gate.set()
    for future in [held, *waiting]:
        future.result(SOON)
    assert keys(r.search(b"scope", "text")) == []
    assert [reason for reason, _ in r.faults] == ["full"]
    assert r.batcher.stats()["dropped"] == 1


def test_cancel_does_nothing(rig):
    """A future may have other waiters: it cannot be cancelled."""
    r = rig()
    future = r.held()
    assert future.cancel() is False
    r.embed.gate.set()
    assert np.allclose(future.result(SOON), vector_of("held"))


# Loading, restoring, ending


def test_load_fails_all_who_wait_get_the_error(rig):
    """A failed load fails what is queued and what comes during the pause, with its own error, and is told once."""
    r = rig()
    r.embed.load_error = OSError("no weights")
    for future in (r.batcher.warm(), r.batcher.search(b"scope", "text", 4), r.batcher.embed("text")):
        with pytest.raises(OSError, match="no weights"):
            future.result(SOON)
    r.batcher.add(b"key", b"scope", "text", None, inf)
    assert r.batcher.flush(SOON) is False
    assert (r.batcher.state, r.batcher.has_scope(b"scope"), r.embed.loads) == ("failed", None, 1)
    assert [reason for reason, _ in r.faults] == ["load"]


def test_load_failed_is_tried_again_after_pauses_that_double(rig):
    """After a failed load nothing is tried for 1 s, then 2, 4 ... 60; once it works, all works."""
    r = rig()
    r.embed.load_error = OSError("no weights")

    def loads():
        with pytest.raises(OSError, match="no weights"):
            r.batcher.embed("text").result(SOON)
        return r.embed.loads

    assert loads() == 1
    for times, pause in enumerate([1, 2, 4, 8, 16, 32, 60, 60], 1):
        r.clock.now += pause - 0.01
        assert loads() == times
        r.clock.now += 0.01
        assert loads() == times + 1
    r.embed.load_error = None
    r.clock.now += 60
    assert r.search(b"scope", "text").neighbours == []
    assert r.batcher.state == "ready"


def test_restore_rows_are_there_when_ready(rig):
    """Rows are restored before anything is served: with float16 vectors, without any, but not the dead or the blank."""
    rows = [
        (b"half", b"scope", "half", (0.995 * vector_of("half")).astype(np.float16), inf),
        (b"text", b"scope", "text", None, inf),
        (b"dead", b"scope", "dead", vector_of("dead"), 10.0),
        (b"dead too", b"scope", "dead too", None, 10.0),
        (b"blank", b"scope", " ", None, inf),
        (b"nan", b"scope", "nan", np.full(DIMENSION, np.nan, np.float16), inf),
        (b"none", b"other", "none", np.zeros(DIMENSION, np.float16), inf),
        *((b"%d" % number, b"many", f"text {number}", None, inf) for number in range(20)),
    ]
    r = rig(restore=lambda: iter(rows), max_batch=8)
    r.batcher.start()
    found = r.search(b"scope", "half")
    assert sorted(keys(found)) == [b"half", b"text"]
    assert found.neighbours[0].similarity == pytest.approx(1.0, abs=1e-4)
    assert keys(r.search(b"many", "text 13"))[0] == b"13"
    assert r.batcher.stats()["rows"] == 22
    assert not any("dead too" in batch for batch in r.embed.batches)
    assert max(map(len, r.embed.batches)) <= 8
    assert {reason for reason, _ in r.faults} == {"add"}


def test_taken_row_is_known_and_found_by_the_next_who_asks(rig):
    """A row that came from elsewhere need not have been added yet: its scope has rows, and a search finds it."""
    rig = rig()
    rig.batcher.warm().result(SOON)
    rig.batcher.take([(b"k", b"s", "parcel", vector_of("parcel"), inf)])
    assert rig.batcher.has_scope(b"s") is True
    assert [each.key for each in rig.search(b"s", "parcel").neighbours] == [b"k"]
    rig.batcher.remove([b"k"])
    assert rig.batcher.flush(SOON)
    assert rig.batcher.has_scope(b"s") is False


def test_taken_rows_are_added_unasked_when_they_are_many(rig):
    """What others learn is gathered, but not without end."""
    rig = rig()
    future = rig.held()
    rows = [(b"%d" % number, b"s", "", vector_of("parcel"), inf) for number in range(100)]
    for row in rows:
        rig.batcher.take([row])
    waiting = rig.batcher._worker()._queue.qsize()
    rig.embed.gate.set()
    future.result(SOON)
    assert waiting == 1, "one item for many rows"
    assert rig.batcher.flush(SOON)
    assert rig.batcher.stats()["rows"] == 100


def test_taken_rows_of_another_shape_cost_only_themselves(rig):
    """A row of another dimension, or of no length, is told as a fault; those beside it are added."""
    rig = rig()
    rig.batcher.warm().result(SOON)
    good = vector_of("parcel")
    rig.batcher.take([
        (b"long", b"s", "", np.ones(DIMENSION + 1, np.float32), inf), (b"good", b"s", "", 0.995 * good, inf),
        (b"nan", b"s", "", np.full(DIMENSION, np.nan, np.float32), inf),
    ])  # fmt: skip
    assert rig.batcher.flush(SOON)
    assert [each.key for each in rig.search(b"s", "parcel").neighbours] == [b"good"]
    assert [reason for reason, _ in rig.faults] == ["add", "add"]


def test_restore_poisonous_text_is_left_out(rig):
    """A text that cannot be embedded does not keep the other rows out."""
    r = rig(restore=lambda: [(text.encode(), b"scope", text, None, inf) for text in ("good", "poison", "better")])
    r.embed.fails = lambda texts: ValueError("poison") if "poison" in texts else None
    assert sorted(keys(r.search(b"scope", "good"))) == [b"better", b"good"]


def test_restored_vectors_that_are_none_are_told_one_by_one_and_cost_no_other_row(rig):
    """Of rows that come together those with a wrong vector are left out, each a fault of its own."""
    wrong = [np.full(DIMENSION, np.nan, np.float32), np.ones(DIMENSION + 1, np.float32)]
    vectors = [vector_of("0"), wrong[0], vector_of("2"), wrong[1], vector_of("4")]
    rows = [(b"%d" % number, b"scope", str(number), vector, inf) for number, vector in enumerate(vectors)]
    r = rig(restore=lambda: iter(rows))
    for text in ("0", "2", "4"):
        assert keys(r.search(b"scope", text))[0] == text.encode()
    assert [(reason, type(error)) for reason, error in r.faults] == [("add", ValueError)] * 2
    assert r.batcher.stats()["rows"] == 3


def test_restore_breaks_what_came_before_is_kept_and_new_rows_are_served(rig):
    """A store that fails in the middle is a fault, not the end."""

    def restore():
        for number in range(10):
            yield b"%d" % number, b"scope", f"text {number}", vector_of(f"text {number}"), inf
        raise OSError("disk")

    r = rig(restore=restore, max_batch=5)
    r.batcher.add(b"new", b"scope", "new", None, inf)
    assert keys(r.search(b"scope", "new"))[0] == b"new"
    assert keys(r.search(b"scope", "text 3"))[0] == b"3"
    assert [reason for reason, _ in r.faults] == ["restore"]


def test_row_added_while_restoring_is_newer_than_the_restored(rig):
    """What was asked during the load comes after the restored rows and wins."""
    r = rig(restore=lambda: [(b"key", b"scope", "old", None, inf)])
    r.embed.hold()
    r.batcher.start()
    assert r.embed.entered.acquire(timeout=SOON)
    assert (r.batcher.state, r.batcher.has_scope(b"scope")) == ("loading", None)
    r.batcher.add(b"key", b"scope", "new", None, inf)
    r.embed.gate.set()
    assert [neighbour.text for neighbour in r.search(b"scope", "old").neighbours] == ["new"]


def test_warm_is_ready_afterwards(rig):
    """Warming loads, restores and embeds once."""
    r = rig()
    assert r.batcher.state == "idle"
    assert r.batcher.warm().result(SOON) is None
    assert (r.batcher.state, r.embed.loads, len(r.embed.batches)) == ("ready", 1, 1)


def test_start_from_many_threads_starts_one(rig):
    """However many start it, it is loaded once."""
    r = rig()
    threads = [threading.Thread(target=r.batcher.start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    r.batcher.warm().result(SOON)
    assert r.embed.loads == 1


def test_flush_waits_for_what_was_asked_and_says_if_it_could_not(rig):
    """True when all before is done, at once where nothing ever was; False when the time is up."""
    r = rig()
    assert r.batcher.flush(0) is True
    assert r.batcher.state == "idle"
    r.held()
    r.batcher.add(b"key", b"scope", "text", None, inf)
    assert r.batcher.flush(0) is False
    r.embed.gate.set()
    assert r.batcher.flush(SOON) is True
    assert r.batcher.stats()["rows"] == 1


def test_close_running_batch_ends_and_what_waits_is_told(rig):
    """Closing lets the running batch finish; the queued raise "closed", as does whatever is asked later."""
    r = rig()
    held = r.held()
    waiting = [r.batcher.search(b"scope", "text", 4), r.batcher.warm()]
    r.batcher.add(b"key", b"scope", "text", None, inf)
    r.batcher.close(0)
    for future in waiting:
        with pytest.raises(TierError, match="closed"):
            future.result(SOON)
    r.embed.gate.set()
    assert np.allclose(held.result(SOON), vector_of("held"))
    for call in (r.batcher.start, r.batcher.warm, lambda: r.batcher.search(b"scope", "text", 4)):
        with pytest.raises(TierError, match="closed"):
            call()
    r.batcher.close(SOON)
    assert (r.batcher.state, r.batcher.has_scope(b"scope"), r.batcher.flush(0)) == ("closed", None, True)


def test_close_while_loading_ends_the_thread(rig):
    """A batcher closed during its load or restore does not go on."""
    r = rig(restore=lambda: ((b"%d" % n, b"scope", f"text {n}", None, inf) for n in range(10**9)), max_batch=2)
    r.embed.hold()
    future = r.batcher.embed("text")
    assert r.embed.entered.acquire(timeout=SOON)
    r.batcher.close(0)
    with pytest.raises(TierError, match="closed"):
        future.result(SOON)
    r.embed.gate.set()
    [worker] = r.batcher._workers.values()
    worker._thread.join(SOON)
    assert not worker._thread.is_alive()
    assert len(r.embed.batches) == 1


def test_dropped_batcher_ends_its_thread_after_what_was_asked():
    """A Batcher that nobody holds is collected, though its tier is told of faults, and its thread ends."""

    class Tier:
        def __init__(self):
            embedder = CallableEmbedder(Embed())
            self.batcher = Batcher(embedder, lambda d: FlatIndex(d, 10**9), Clock(), on_fault=self.fault)

        def fault(self, reason, error):
            raise AssertionError(reason)

    tier = Tier()
    tier.batcher.warm().result(SOON)
    [worker] = tier.batcher._workers.values()
    thread = worker._thread
    future = tier.batcher.embed("last words")
    gone = weakref.ref(tier.batcher)
    del tier
    gc.collect()
    assert gone() is None
    assert np.allclose(future.result(SOON), vector_of("last words"))
    thread.join(SOON)
    assert not thread.is_alive()


def test_stats_count_what_was_done(rig):
    """Rows, scopes, embedded texts, batches, and what was spared are counted."""
    r = rig()
    assert set(r.batcher.stats().values()) == {0}
    r.batcher.add(b"one", b"scope", "one", None, inf)
    r.batcher.add(b"two", b"other", "two", vector_of("two"), inf)
    assert r.batcher.flush(SOON)
    r.search(b"scope", "one")
    stats = r.batcher.stats()
    expected = {"rows": 2, "scopes": 2, "evictions": 0, "embedded": 1, "batched": 2, "remembered": 1, "queued": 0}
    assert {name: stats[name] for name in expected} == expected
    assert stats["bytes"] > 2 * 4 * DIMENSION


# Processes

PRELUDE = """
import os, sys, threading, time
import numpy as np
from semcache.semantic import batcher as module
from semcache.semantic.batcher import Batcher
from semcache.semantic.embedder import CallableEmbedder
from semcache.semantic.index import FlatIndex

def embed(texts):
    return [[float(len(text)), 1.0] for text in texts]
embed.identity, embed.dimension = "lengths", 2
rows = [(b"restored", b"scope", "restored", None, float("inf"))]
batcher = Batcher(CallableEmbedder(embed), lambda d: FlatIndex(d, 10**9), time.monotonic,
                  restore=lambda: iter(rows), on_fault=lambda *fault: print("fault", *fault))
def keys():
    return [neighbour.key for neighbour in batcher.search(b"scope", "text", 4).result(30).neighbours]
"""


def script(body):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + body],  # 3.12 warns of fork with threads
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_child_begins_anew_and_parent_goes_on():
    """A child has neither thread nor index: it restores and serves by itself, even if a lock was held at the fork."""
    body = """
batcher.add(b"parents", b"scope", "parents", None, float("inf"))
assert sorted(keys()) == [b"parents", b"restored"]
[worker] = batcher._workers.values()
with worker._lock:
    child = os.fork()
if child == 0:
    print(batcher.state, batcher.has_scope(b"scope"), batcher.stats()["rows"], *keys(), batcher.state, flush=True)
    batcher.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(*sorted(keys()), flush=True)
batcher.close()
if os.fork() == 0:
    try: batcher.start()
    except module.TierError as error: print(error.reason, flush=True)
    os._exit(0)
os.wait()
"""
    assert script(body) == ["idle", "None", "0", "b'restored'", "ready", "b'parents'", "b'restored'", "closed"]


def test_exit_of_the_interpreter_is_clean_and_does_not_hang():
    """At exit an unclosed batcher is stopped: idle, at work, or standing still for good."""
    assert script("print(*keys())\n") == ["b'restored'"]
    assert script("futures = [batcher.embed(str(n)) for n in range(500)]\n") == []
    stuck = """
module._CLOSE_SECONDS = 0.01
entered = threading.Event()
def stand_still(texts):
    entered.set()
    threading.Event().wait()
stand_still.identity, stand_still.dimension = "stuck", 2
stuck = Batcher(CallableEmbedder(stand_still), lambda d: FlatIndex(d, 10**9), time.monotonic, on_fault=print)
future = stuck.embed("text")
entered.wait()
"""
    assert script(stuck) == []


# Devices that fail


def test_lost_device_fails_who_waits_and_all_begins_anew(rig):
    """Law 10: after a device's end its rows are restored where the embedder works again, and are found."""
    failed = threading.Event()
    faults = []

    def hear(reason, error):
        faults.append((reason, error))
        if reason == "load":
            failed.set()

    row = (b"key", b"scope", "stored", vector_of("stored"), inf)
    rig = rig(restore=lambda: [row], on_fault=hear)
    assert keys(rig.search(b"scope", "stored")) == [b"key"]
    rig.embed.fails = lambda texts: TierError("lost", "the device has failed")
    with pytest.raises(TierError, match="the device has failed"):
        rig.search(b"scope", "another")
    assert failed.wait(SOON)
    assert rig.batcher.state == "failed"
    rig.embed.fails = lambda texts: None
    rig.clock.now += 2
    assert keys(rig.search(b"scope", "stored")) == [b"key"]
    assert rig.embed.loads == 2
    assert [reason for reason, _ in faults] == ["embed", "load"]


def test_lost_device_of_the_index_begins_anew_too(rig):
    """Law 10: an index whose device is lost is made anew, with its rows."""
    failed = threading.Event()
    made = []

    class Fails(FlatIndex):
        def search(self, *asked):
            raise TierError("lost", "the device of the index has failed")

    def make_index(dimension):
        made.append((FlatIndex if made else Fails)(dimension, 10**9))
        return made[-1]

    rig = rig(
        restore=lambda: [(b"key", b"scope", "stored", vector_of("stored"), inf)],
        make_index=make_index,
        on_fault=lambda reason, error: reason == "load" and failed.set(),
    )
    with pytest.raises(TierError, match="of the index"):
        rig.search(b"scope", "stored")
    assert failed.wait(SOON)
    rig.clock.now += 2
    assert keys(rig.search(b"scope", "stored")) == [b"key"]


def test_what_a_device_was_short_of_is_told(rig):
    """What embedder and index mended themselves is a fault of "memory", told once."""
    from collections import deque

    rig = rig(make_index=lambda dimension: made)
    made = FlatIndex(DIMENSION, 10**9)
    rig.batcher.settings.embedder.troubles = deque([MemoryError("of the embedder")])
    made.troubles = deque([MemoryError("of the index")])
    for text in ("one", "two"):
        rig.batcher.add(text.encode(), b"scope", text, None, inf)
        assert rig.search(b"scope", text).neighbours
    assert [(reason, str(error)) for reason, error in rig.faults] == [
        ("memory", "of the embedder"),
        ("memory", "of the index"),
    ]


def test_texts_of_a_batch_are_prepared_together(rig):
    """An embedder that can count many texts at once is given those of a batch, without what is remembered."""
    rig = rig()
    prepared = []
    rig.batcher.settings.embedder.prepare = prepared.append
    held = rig.held("held")
    futures = [rig.batcher.embed(text) for text in ("one", "two", "held", "one", "three")]
    rig.embed.gate.set()
    for future in [held, *futures]:
        future.result(SOON)
    assert prepared == [["one", "two", "three"]]


def test_prepare_that_fails_costs_nothing_but_a_fault(rig):
    """What an embedder raises while it counts ahead is told, and the texts are embedded all the same."""
    rig = rig()

    def fails(texts):
        raise RuntimeError("no threads")

    held = rig.held("held")
    rig.batcher.settings.embedder.prepare = fails
    futures = [rig.batcher.embed(text) for text in ("one", "two")]
    rig.embed.gate.set()
    assert all(future.result(SOON) is not None for future in [held, *futures])
    assert [reason for reason, _ in rig.faults] == ["embed"]
