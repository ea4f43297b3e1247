"""What a request's headers ask of the cache: they narrow and tighten what its owner set, and never widen it."""

from __future__ import annotations

import pytest
from instruments import GUARD
from proxies import PATHS, told

import semcache


def test_no_cache_loads_anew_and_keeps_what_came(sidecar, models):
    """RFC 9111, section 5.2.1.4."""
    models.reply = lambda _body: f"answer {models.calls}"
    sidecar.chat()
    anew = sidecar.chat(headers={"cache-control": "no-cache"})
    assert told(anew) == "miss"
    assert sidecar.chat().content == anew.content
    assert models.calls == 2


@pytest.mark.parametrize("word", ["no-store", "No-Store, max-age=5"])
def test_no_store_neither_reads_nor_keeps(sidecar, models, word):
    """RFC 9111, section 5.2.1.5."""
    for _ in range(2):
        assert told(sidecar.chat(headers={"cache-control": word})) == "bypass"
    assert told(sidecar.chat()) == "miss"


@pytest.mark.parametrize("stream", [False, True])
def test_only_if_cached_loads_nothing(sidecar, models, stream):
    """504 where it is not there, as RFC 9111 has it."""
    asked = {"headers": {"cache-control": "only-if-cached"}, "stream": stream}
    refused = sidecar.chat(**asked)
    assert refused.status_code == 504
    assert "only-if-cached" in refused.json()["error"]["message"]
    assert models.calls == 0
    sidecar.chat(stream=stream)
    assert told(sidecar.chat(**asked)) == "hit"


def test_only_if_cached_holds_for_embeddings(sidecar, models):
    """Each input has to be there."""
    only = {"cache-control": "only-if-cached"}
    sidecar.post("/v1/embeddings", {"model": "m", "input": ["a"]})
    assert sidecar.post("/v1/embeddings", {"model": "m", "input": ["a", "b"]}, headers=only).status_code == 504
    assert told(sidecar.post("/v1/embeddings", {"model": "m", "input": "a"}, headers=only)) == "hit"
    assert models.calls == 1


@pytest.mark.parametrize("memory", ["64MB", 0])
def test_max_age_takes_no_older_answer(serve, models, clock, tmp_path, memory):
    """From whatever tier."""
    sidecar = serve(cache={"memory": memory, "disk": tmp_path / "cache.db"})
    sidecar.chat()
    assert sidecar.cache.flush(GUARD)
    clock.advance(30)
    assert told(sidecar.chat(headers={"cache-control": "max-age=60"})) == "hit"
    assert told(sidecar.chat(headers={"cache-control": "max-age=20"})) == "miss"
    assert told(sidecar.chat(headers={"cache-control": "max-age=0"})) == "miss"
    assert models.calls == 3


def test_ttl_is_shortened_and_never_lengthened(serve, clock):
    """The owner's stands where the caller's is longer."""
    sidecar = serve(cache={"ttl": semcache.TTL(memory="1m", semantic="1m", jitter=0)}, ttl_memory="1m")
    sidecar.chat("short", headers={"x-semcache-ttl": "10s"})
    sidecar.chat("long", headers={"x-semcache-ttl": "1h"})
    clock.advance(11)
    assert told(sidecar.chat("short", headers={"cache-control": "only-if-cached"})) == "bypass"
    clock.advance(50)
    assert told(sidecar.chat("long", headers={"cache-control": "only-if-cached"})) == "bypass"


def test_mode_only_tightens(serve):
    """`off` and `refresh` of a caller hold; `live` of a caller opens nothing that its owner closed."""
    sidecar = serve(cache={"mode": "off"})
    sidecar.chat()
    assert told(sidecar.chat(headers={"x-semcache-mode": "live"})) == "bypass"
    open_one = serve()
    open_one.chat()
    assert told(open_one.chat(headers={"x-semcache-mode": "off"})) == "bypass"
    assert told(open_one.chat(headers={"x-semcache-mode": "refresh"})) == "miss"
    assert told(open_one.chat(headers={"x-semcache-mode": "exact"})) == "hit"


def test_tags_are_what_answers_can_be_invalidated_by(sidecar):
    """They enter no key."""
    sidecar.chat(headers={"x-semcache-tags": "faq, shipping"})
    assert told(sidecar.chat()) == "hit"
    assert sidecar.cache.invalidate(tag="shipping") == 1
    assert told(sidecar.chat()) == "miss"


@pytest.mark.parametrize("name", ["namespace", "tenant"])
def test_namespace_and_tenant_part_what_is_the_callers(sidecar, name):
    """One caller's parts do not meet, and none is another caller's."""
    header = f"x-semcache-{name}"
    sidecar.chat(headers={header: "a"})
    assert told(sidecar.chat(headers={header: "a"})) == "hit"
    assert told(sidecar.chat(headers={header: "b"})) == "miss"
    assert told(sidecar.chat()) == "miss"
    assert told(sidecar.chat(key="sk-2", headers={header: "a"})) == "miss"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("cache-control", "max-age=soon"), ("x-semcache-mode", "fast"), ("x-semcache-ttl", "-1"),
        ("x-semcache-threshold", "2"), ("x-semcache-threshold", "nan"), ("x-semcache-tenant", "a" * 300),
        ("x-semcache-nonsense", "1"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_clear_400(sidecar, models, header, value):
    """In the words of the protocol, naming what there is; nothing is sent."""
    for path in (PATHS["openai"], "/v1/embeddings"):
        refused = sidecar.post(path, {"model": "m", "messages": [], "input": "a"}, headers={header: value})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("semcache: ")
    assert models.calls == 0


def test_header_that_there_is_not_is_told_with_all_that_there_are(sidecar):
    """The token's too, which is read elsewhere."""
    refused = sidecar.chat(headers={"x-semcache-nonsense": "1"}).json()["error"]["message"]
    assert refused.endswith("x-semcache-namespace, -tenant, -ttl, -tags, -mode, -threshold, -token")


def test_our_own_headers_do_not_go_upstream(sidecar, models):
    """They are about the cache."""
    sidecar.chat(headers={"x-semcache-tags": "faq", "x-vendor": "v", "connection": "x-vendor"})
    (asked,) = models.asked
    assert not any(name.startswith("x-semcache") for name in asked.headers)
    assert "x-vendor" not in asked.headers
    assert asked.headers["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("stream", [False, True])
def test_only_if_cached_sends_nothing_that_goes_by_either(sidecar, models, stream):
    """What is never cached is not there."""
    refused = sidecar.chat(headers={"cache-control": "only-if-cached"}, temperature=1, stream=stream)
    assert refused.status_code == 504
    assert sidecar.post(PATHS["openai"], b"{", headers={"cache-control": "only-if-cached"}).status_code == 504
    assert models.calls == 0


@pytest.mark.semantic
def test_reader_who_wants_nearer_matches_reads_along_with_no_farther_one(serve, models):
    """A stream of a near match is one only for who takes it."""
    from instruments import Compass

    near = {"embedder": Compass({"a": 0, "b": 10}), "policy": semcache.Threshold(0.9, guards=None)}
    sidecar = serve(cache=near)
    sidecar.cache.warm()
    sidecar.chat("a", stream=True)
    assert sidecar.cache.flush(GUARD)
    strict = {"x-semcache-threshold": "0.999"}
    assert told(sidecar.chat("b", stream=True)) == "hit"
    assert told(sidecar.chat("b", stream=True, headers=strict)) == "miss"
    assert models.calls == 2
