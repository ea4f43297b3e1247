"""An embedder behind a URL: asked in batches, named by its server, and believed about no more than it was tried on."""

from __future__ import annotations

import base64
import subprocess
import sys

import numpy as np
import pytest
from instruments import GUARD, until

import semcache
from semcache.errors import ConfigurationError, MissingExtraError, TierError
from semcache.semantic.embedder import as_embedder
from semcache.testing import ManualClock, Reply, StandIn
from semcache.testing.protocols import vector_of


class Model:
    """What a server has: a name, a dimension, a window in words, a tokenizer that knows rare characters or not."""

    def __init__(self, name="bge", *, dimension=16, window=None, knows_all=True, salt="", as_text=False):
        self.name = name
        self.dimension = dimension
        self.window = window
        self.knows_all = knows_all
        self.salt = salt
        self.as_text = as_text

    def __call__(self, body):
        rows = []
        for text in body["input"]:
            seen = " ".join(text.split()[: self.window])
            seen = seen if self.knows_all else "".join(one if ord(one) < 0x10000 else "?" for one in seen)
            row = vector_of(self.salt + seen, self.dimension)
            rows.append(base64.b64encode(np.array(row, "<f4")).decode() if self.as_text else row)
        data = [{"index": place, "embedding": row} for place, row in enumerate(rows)]
        return Reply(extra={"model": self.name, "data": data[::-1]})


@pytest.fixture
def models():
    with StandIn(Model()) as server:
        yield server


def texts_of(models):
    """What was asked since the embedder was loaded."""
    return [asked.body["input"] for asked in models.asked]


def loaded(models, **settings):
    made = semcache.EmbeddingServer(models.openai_url, **settings)
    made.load()
    models.asked.clear()
    return made


@pytest.mark.parametrize("as_text", [False, True], ids=["float", "base64"])
def test_vectors_are_the_servers_in_order_and_32_texts_a_request(models, as_text):
    """Float32 unit vectors, whatever the order of the answer and its encoding."""
    models.reply = Model(as_text=as_text)
    embedder = loaded(models)
    texts = [f"text {number}" for number in range(70)]
    expected = np.array([vector_of(text, 16) for text in texts], np.float32)
    found = embedder(texts)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)
    assert [len(asked) for asked in texts_of(models)] == [32, 32, 6]
    assert embedder([]).shape == (0, 16)


def test_the_only_model_is_found_and_another_is_named_in_the_url(models):
    """GET /models says what there is; `#name` says which to ask for, and then nothing is listed."""
    semcache.EmbeddingServer(models.openai_url).load()
    assert models.asked[0].body["model"] == "m"
    assert models.others == ["/v1/models"]
    models.asked.clear()
    semcache.EmbeddingServer(f"{models.url}#BAAI%2Fbge-m3").load()  # the path is /v1 unless it is told
    assert {asked.body["model"] for asked in models.asked} == {"BAAI/bge-m3"}
    assert models.others == ["/v1/models"]


@pytest.mark.parametrize(
    ("other", "settings"),
    [(Model("other"), {}), (Model(dimension=8), {}), (Model(salt="tuned"), {}), (Model(), {"revision": "2"})],
    ids=["name", "dimension", "weights", "revision"],
)
def test_identity_is_the_servers_and_another_model_has_another(models, other, settings):
    """Law 11: name, dimension and the signs of a known vector; the URL and the key are not in it."""
    made = semcache.EmbeddingServer(models.openai_url, key="secret")
    assert made.identity == ""
    made.load()
    assert "bge" in made.identity
    assert "127.0.0.1" not in made.identity
    assert "secret" not in made.identity
    with StandIn(Model()) as twin:
        assert loaded(twin).identity == made.identity
    models.reply = other
    assert loaded(models, **settings).identity != made.identity


@pytest.mark.parametrize("other", [Model("other"), Model(dimension=8)], ids=["name", "dimension"])
def test_server_that_answers_as_another_model_is_not_believed(models, other):
    """Law 11: its vectors are given to nobody; loading anew gives the new identity."""
    embedder = loaded(models)
    was, models.reply = embedder.identity, other
    with pytest.raises(TierError, match="no longer has"):
        embedder(["a"])
    assert embedder.identity == ""
    embedder.load()
    assert embedder.identity not in ("", was)
    assert models.others == ["/v1/models"] * 2  # it may have another name to be asked by
    assert embedder(["a"]).shape == (1, other.dimension)


def test_weights_that_change_under_their_name_are_noticed_within_a_minute(models):
    """Once a minute a known text goes along, and is not counted among the answers."""
    clock = ManualClock()
    embedder = loaded(models, clock=clock.monotonic)
    clock.advance(61)
    assert embedder(["a"]).shape == (1, 16)
    assert embedder(["b"]).shape == (1, 16)
    assert [len(asked) for asked in texts_of(models)] == [2, 1]
    models.reply = Model(salt="tuned")
    clock.advance(61)
    with pytest.raises(TierError, match="no longer has"):
        embedder(["c"])


@pytest.mark.parametrize("status", [503, 429, 401])
def test_server_that_failed_is_left_alone_and_then_compared(models, status):
    """Law 10: the failure is told at once for a moment; who was away may come back as another."""
    clock = ManualClock()
    embedder = loaded(models, clock=clock.monotonic)
    models.fail(status)
    with pytest.raises(semcache.SemcacheError, match=str(status)):
        embedder(["a"])
    with pytest.raises(TierError, match="left alone"):
        embedder(["a"])
    assert models.calls == 1
    clock.advance(1)
    models.reply = Model(salt="tuned")
    with pytest.raises(TierError, match="no longer has"):
        embedder(["a"])


def test_server_that_is_slow_or_gone_is_told_in_time():
    """The request has a timeout of its own."""
    with StandIn(Model(), latency=GUARD) as models:
        with pytest.raises(TierError, match=r"0\.05 s") as late:
            semcache.EmbeddingServer(f"{models.openai_url}#m", timeout="50ms").load()
        assert late.value.reason == "late"
    with pytest.raises(TierError) as gone:
        semcache.EmbeddingServer(f"{models.openai_url}#m").load()
    assert gone.value.reason == "unreachable"


def test_text_that_the_server_refuses_is_no_failure_of_the_server(models):
    """A 400 is a ValueError, after which others are asked at once."""
    embedder = loaded(models)
    models.fail(400)
    with pytest.raises(ValueError, match="400"):
        embedder(["a"])
    assert embedder(["a"]).shape == (1, 16)


# Law 12


@pytest.mark.parametrize(("window", "seen"), [(None, 1792), (600, 448), (256, 224), (254, 224), (100, 0)])
def test_what_the_server_cuts_off_is_exact_only(models, window, seen):
    """It is tried how many words are seen; a text of so many bytes has no more tokens."""
    models.reply = Model(window=window)
    embedder = loaded(models)
    assert embedder.covers("x" * seen) == (None if seen else "the text is empty")
    assert f"{seen} bytes" in embedder.covers("x" * (seen + 1))
    assert embedder.covers("\ufdfa" * max(1, seen // 10)) is not None  # one character, 33 bytes when it is taken apart


def test_long_trial_that_is_refused_is_tried_shorter(models):
    """A server that refuses what is too long cuts nothing off silently."""
    made = semcache.EmbeddingServer(f"{models.openai_url}#m")

    def first(body):
        models.fail(413)  # the next, which is the first trial
        models.reply = Model()
        return models.reply(body)

    models.reply = first
    made.load()
    assert made.seen_bytes == 448


def test_owner_says_what_the_server_sees(models):
    """With a window bytes are enough to be sure; with a count tokens decide; nothing is tried."""
    made = semcache.EmbeddingServer(f"{models.openai_url}#m", window=512)
    made.load()
    assert models.calls == 1
    assert made.covers("x" * 504) is None
    assert made.covers("x" * 505) is not None
    counted = loaded(models, window=512, count=lambda text: len(text.split()))
    assert counted.covers("word " * 512) is None
    assert "513 tokens" in counted.covers("word " * 513)


@pytest.mark.parametrize(
    ("knows_all", "languages", "seen", "unseen"),
    [
        (True, None, "Где? \U0001f98a", ""),
        (False, None, "Where? naïve", "Где?"),
        (False, None, "Where?", "Where? ☃"),
        (False, ["ru"], "Где?", "\U0001f98a"),
    ],
)
def test_characters_that_the_tokenizer_may_not_know_are_exact_only(models, knows_all, languages, seen, unseen):
    """A tokenizer that takes two rare characters for one is believed about Latin letters, or what its owner says."""
    models.reply = Model(knows_all=knows_all)
    embedder = loaded(models, languages=languages)
    assert embedder.covers(seen) is None
    assert embedder.covers(unseen) is not None


# Settings


@pytest.mark.parametrize(
    ("key", "env", "scheme", "sent"),
    [
        (None, {}, "http", None),
        (None, {"SEMCACHE_EMBEDDER_KEY": "ours", "OPENAI_API_KEY": "theirs"}, "http", "Bearer ours"),
        (None, {"OPENAI_API_KEY": "theirs"}, "http", None),
        ("given", {"SEMCACHE_EMBEDDER_KEY": "ours"}, "http", "Bearer given"),
    ],
)
def test_key_is_of_the_environment_and_openais_goes_over_https_alone(models, monkeypatch, key, env, scheme, sent):
    """A key that was not meant for this server is not sent to it in the clear."""
    for name in ("SEMCACHE_EMBEDDER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    semcache.EmbeddingServer(models.openai_url, key=key).load()
    assert models.asked[0].headers.get("authorization") == sent
    assert semcache.EmbeddingServer("https://host/v1")._key == next(iter(env.values()), None)


@pytest.mark.parametrize(
    ("url", "settings", "mend"),
    [
        ("ftp://host/v1", {}, "http://host/v1"),
        ("http:///v1", {}, "http://host/v1"),
        ("http://host/v1?x=1", {}, "http://host/v1"),
        ("http://host/v1", {"window": 0}, "positive"),
        ("http://host/v1", {"count": len}, "both"),
        ("http://host/v1", {"timeout": "soon"}, "timeout"),
        ("http://host/v1", {"languages": ["english"]}, "ISO 639-1"),
    ],
)
def test_wrong_settings_are_refused_with_the_mend(url, settings, mend):
    """Construction raises, and asks nobody."""
    with pytest.raises(ConfigurationError, match=mend):
        semcache.EmbeddingServer(url, **settings)


def test_without_httpx_the_extra_is_named(monkeypatch):
    """The mend is the command that installs it; a password in the URL is not shown."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tiered-semcache\[http\]'") as raised:
        semcache.EmbeddingServer("http://me:secret@host/v1")
    assert "secret" not in str(raised.value)


def test_load_says_what_to_mend(models):
    """Several models, none, a missing right: each names what to do."""
    models.fail(401)
    with pytest.raises(ConfigurationError, match="SEMCACHE_EMBEDDER_KEY"):
        semcache.EmbeddingServer(models.openai_url).load()
    with pytest.raises(TierError, match="404"):
        semcache.EmbeddingServer(f"{models.url}/elsewhere").load()
    models.reply = lambda body: Reply(extra={"data": "none"})
    with pytest.raises(ValueError, match="no embeddings"):
        semcache.EmbeddingServer(models.openai_url).load()


# In a cache


def worded(body):
    """Vectors by words, so that rewordings are near."""
    rows = []
    for text in body["input"]:
        words = [vector_of(word, 64) for word in text.lower().strip("?").split()]
        rows.append(list(np.sum(words, axis=0)))
    return Reply(extra={"model": "words", "data": [{"index": at, "embedding": row} for at, row in enumerate(rows)]})


def ask(cache, text, answer):
    found = cache.get_or_load(cache.request(text=text), lambda: answer)
    cache.flush(GUARD)
    return found


@pytest.mark.semantic
def test_rewording_is_found_by_a_process_without_a_model(models, open_near):
    """A near match, by vectors that were computed elsewhere."""
    models.reply = worded
    cache = open_near(embedder=models.openai_url, policy=semcache.Threshold(0.8, guards=None))
    assert cache.embedder_identity.startswith("server:words")
    assert ask(cache, "how do I reset my password", "here") == "here"
    assert ask(cache, "how do I reset the password", "elsewhere") == "here"
    assert semcache.last().tier == "semantic"
    assert ask(cache, "what do you charge for parcels", "money") == "money"


@pytest.mark.semantic
def test_process_with_an_embedder_behind_a_url_loads_no_torch(models):
    """Thin processes: what embeds is elsewhere."""
    code = """
import sys, semcache
with semcache.Cache(embedder=sys.argv[1]) as cache:
    cache.warm()
    cache.get_or_load(cache.request(text="a"), lambda: 1)
    assert cache.flush(30) and cache.stats().tiers["semantic"]["rows"] == 1
print({"torch", "sentence_transformers", "transformers"} & set(sys.modules))
"""
    told = subprocess.run([sys.executable, "-c", code, models.openai_url], capture_output=True, text=True, check=False)
    assert (told.stdout, told.stderr) == ("set()\n", "")


@pytest.mark.semantic
def test_before_the_server_has_said_who_it_is_calls_are_exact(models, open_cache):
    """Law 10: nobody waits; the first call makes it load."""
    models.reply = worded
    cache = open_cache(embedder=models.openai_url, policy=semcache.Threshold(0.8, guards=None), tenant=semcache.SHARED)
    request = cache.request(text="how do I reset my password")
    assert request.scope is None
    assert request.exact_only == "the embedder is loading"
    assert cache.get_or_load(request, lambda: "here") == "here"
    cache.warm()
    assert cache.request(text="how do I reset my password").scope is not None
    assert cache.request(text="how do I reset my password").key == request.key


@pytest.mark.semantic
def test_answers_of_a_model_that_was_replaced_are_met_no_more(models, open_near, tmp_path):
    """Law 11: what the old model indexed is not compared with the new one's vectors, in memory or from the store."""
    models.reply = worded
    cache = open_near(
        embedder=models.openai_url, policy=semcache.Threshold(-1.0, guards=None), disk=tmp_path / "cache.db"
    )
    ask(cache, "how do I reset my password", "here")
    old = cache.request(text="how do I reset the password")
    models.reply = Model("other", dimension=64)
    assert ask(cache, "how do I reset the password", "elsewhere") == "elsewhere"
    assert cache.embedder_identity == ""
    with open_near(
        embedder=models.openai_url, policy=semcache.Threshold(-1.0, guards=None), disk=tmp_path / "cache.db"
    ) as fresh:
        assert fresh.embedder_identity.startswith("server:other")
        assert ask(fresh, "how can I reset it", "new") == "new"
        assert ask(fresh, "how could I reset it", "newer") == "new"
        with_old_scope = fresh.get_or_load(old, lambda: "loaded")
        assert with_old_scope == "elsewhere"


@pytest.mark.semantic
def test_changed_server_is_used_again_under_its_new_name(models, open_near, clock):
    """The same cache goes on by itself: the change is a fault, then the index begins anew."""
    models.reply = worded
    cache = open_near(embedder=models.openai_url, policy=semcache.Threshold(-1.0, guards=None))
    ask(cache, "one text", "one")
    models.reply = Model("other", dimension=8)
    ask(cache, "two texts", "two")
    until(lambda: cache.stats().faults.get("semantic: load") == 1)  # told when the callers have their answers
    clock.advance(2)
    cache.request(text="three texts")
    cache.warm()
    assert cache.embedder_identity.startswith("server:other")
    assert ask(cache, "three texts", "three") == "three"
    assert ask(cache, "three texts more", "four") == "three"


@pytest.mark.semantic
def test_server_that_is_down_makes_misses_and_fails_a_batch_once(models, open_near):
    """Law 10: the callers get the origin's answers; a batch is not tried again text by text."""
    models.reply = worded
    cache = open_near(embedder=models.openai_url, policy=semcache.Threshold(0.8, guards=None))
    ask(cache, "how do I reset my password", "here")
    before = models.calls
    models.fail(500, times=100)
    assert [ask(cache, f"question number {number}", number) for number in range(8)] == list(range(8))
    assert models.calls <= before + 3
    assert any("semantic" in fault for fault in cache.stats().faults)


@pytest.mark.semantic
def test_setting_that_is_a_url_is_a_server():
    """A string with a scheme; an EmbeddingServer is taken as it is."""
    made = as_embedder("http://host:8080")
    assert isinstance(made, semcache.EmbeddingServer)
    assert as_embedder(made) is made
