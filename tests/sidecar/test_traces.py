"""Traces of a sidecar: what a real collector is sent of each call, and what the server behind is told of its trace."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from collectors import Collector
from instruments import GUARD
from opentelemetry import context as contexts
from opentelemetry.sdk.trace import TracerProvider
from proxies import PATHS, told

import semcache
from semcache.errors import ConfigurationError, MissingExtraError
from semcache.sidecar.counts import Counts
from semcache.sidecar.serve import Sidecar
from semcache.sidecar.settings import Server, Settings, read
from semcache.sidecar.tracing import Calls
from semcache.sidecar.watched import Watched
from semcache.telemetry import conventions, otlp
from semcache.telemetry.logging import JsonFormatter, LoggingObserver, joined

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


@pytest.fixture
def collector():
    one = Collector()
    yield one
    one.close()


@pytest.fixture
def traced(serve, collector):
    return serve(otlp=collector.url)


def stages(collector, lookup):
    return [one.name.removeprefix("semcache.") for one in collector.below(lookup)]


def test_miss_is_a_tree_from_the_caller_to_the_server_behind(traced, collector, models):
    """The caller's span, the request's, the lookup's, the load's; and that one is the server's parent."""
    traced.chat(headers={"traceparent": SAMPLED, "tracestate": "vendor=1"})
    traced.close()
    (request,) = collector.named("POST /v1/chat/completions")
    assert (request.trace, request.parent, request.kind) == (TRACE, CALLER, "server")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/chat/completions"
    (lookup,) = collector.below(request)
    assert (lookup.name, lookup.attributes["semcache.kind"]) == ("semcache.lookup", "miss")
    assert stages(collector, lookup) == ["memory", "chat m", "put"]
    _, load, _ = collector.below(lookup)
    assert (load.kind, load.attributes["server.address"]) == ("client", "127.0.0.1")
    assert load.attributes["gen_ai.usage.input_tokens"] > 0
    assert load.attributes["gen_ai.usage.output_tokens"] > 0
    (asked,) = models.asked
    assert asked.headers["traceparent"] == f"00-{TRACE}-{load.id}-01"
    assert asked.headers["tracestate"] == "vendor=1"
    assert request.began <= lookup.began <= load.began <= load.ended <= lookup.ended <= request.ended
    assert all(first.ended <= second.began for first, second in pairwise(collector.below(lookup)))
    assert request.resource["service.name"] == "semcache"


def test_hit_tells_where_it_was_found_and_no_tokens(traced, collector):
    """They were counted when they were paid for."""
    for _ in range(2):
        traced.chat()
    traced.close()
    _, request = collector.named("POST /v1/chat/completions")
    (lookup,) = collector.below(request)
    assert (lookup.attributes["semcache.kind"], lookup.attributes["semcache.tier"]) == ("hit", "memory")
    assert lookup.attributes["gen_ai.request.model"] == "m"
    assert stages(collector, lookup) == ["key", "memory"]
    assert lookup.parent == request.id
    with_tokens = [one for one in collector.spans if any(name.startswith("gen_ai.usage") for name in one.attributes)]
    assert [one.name for one in with_tokens] == ["chat m"]


@pytest.mark.semantic
def test_near_hit_tells_its_similarity(serve, collector):
    """And its stages, the worker's among them."""
    from instruments import Compass

    sidecar = serve(
        cache={"embedder": Compass(), "policy": semcache.Threshold(0.5, guards=None)}, otlp=collector.url
    )  # fmt: skip
    sidecar.cache.warm()
    sidecar.chat("stored")
    sidecar.cache.flush()
    assert told(sidecar.chat("stored too")) == "hit"
    sidecar.close()
    _, lookup = collector.named("semcache.lookup")
    assert lookup.attributes["semcache.tier"] == "semantic"
    assert lookup.attributes["semcache.similarity"] >= 0.5
    assert [one for one in stages(collector, lookup) if one != "wait"] == ["memory", "embed", "search", "decide"]


def test_stream_is_one_request_until_its_end(traced, collector, models):
    """What loads it is its lookup's child, and the server's parent; the tokens are those that its end told."""
    held = models.hold(after=1)
    held.go.set()
    answer = traced.chat(stream=True, stream_options={"include_usage": True}, headers={"traceparent": SAMPLED})
    assert "[DONE]" in answer.text
    traced.close()
    (request,) = collector.named("POST /v1/chat/completions")
    (lookup,) = collector.below(request)
    (load,) = collector.named("chat m")
    assert load.parent == lookup.id
    assert models.asked[0].headers["traceparent"] == f"00-{TRACE}-{load.id}-01"
    assert load.attributes["gen_ai.usage.output_tokens"] > 0
    assert load.ended <= lookup.ended <= request.ended


def test_failed_server_is_the_status_of_load_lookup_and_request(traced, collector, models):
    """With what it answered."""
    models.fail(503)
    assert traced.chat().status_code == 503
    traced.close()
    for name in ("POST /v1/chat/completions", "semcache.lookup", "chat m"):
        (span,) = collector.named(name)
        assert span.has_failed
        assert span.attributes["error.type"] == "503"


def test_what_goes_by_is_traced_too(traced, collector, models):
    """A call that is not cached by its lookup, one of no endpoint of ours by its request alone."""
    traced.chat(temperature=1, headers={"traceparent": SAMPLED})
    traced.http.get("/v1/models", headers={"traceparent": SAMPLED})
    traced.close()
    (lookup,) = collector.named("semcache.lookup")
    assert lookup.attributes["semcache.kind"] == "bypass"
    assert lookup.attributes["semcache.reason"].startswith("sampling")
    (load,) = collector.below(lookup)
    assert models.asked[0].headers["traceparent"] == f"00-{TRACE}-{load.id}-01"
    (request,) = collector.named("GET /v1/models")
    assert (request.parent, collector.below(request)) == (CALLER, [])


def test_embeddings_are_traced(traced, collector, models):
    """Each input is a lookup; what is missing is asked for once."""
    traced.post("/v1/embeddings", {"model": "m", "input": ["a", "b"]}, headers={"traceparent": SAMPLED})
    traced.close()
    (request,) = collector.named("POST /v1/embeddings")
    lookups = collector.below(request)
    assert [one.attributes["gen_ai.operation.name"] for one in lookups] == ["embeddings"] * 2
    loads = {one.id for one in collector.named("embeddings m")}
    assert models.asked[0].headers["traceparent"].split("-")[2] in loads


def test_what_the_caller_does_not_sample_is_handed_on_as_it_came(traced, collector, models):
    """Nothing of it is sent to the collector."""
    for _ in range(2):
        traced.chat(headers={"traceparent": UNSAMPLED})
    traced.close()
    assert collector.spans == []
    assert models.asked[0].headers["traceparent"] == UNSAMPLED


@pytest.mark.parametrize("wrong", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + SAMPLED[3:]])
def test_trace_that_cannot_be_read_is_begun_anew(traced, collector, models, wrong):
    """As the recommendation has it."""
    assert traced.chat(headers={"traceparent": wrong}).status_code == 200
    traced.close()
    (request,) = collector.named("POST /v1/chat/completions")
    assert (request.parent, len(request.trace)) == ("", 32)
    assert models.asked[0].headers["traceparent"].startswith(f"00-{request.trace}-")


def test_without_a_collector_the_trace_goes_through_untouched(sidecar, models):
    """And OpenTelemetry is not even imported."""
    sidecar.chat(headers={"traceparent": SAMPLED})
    assert models.asked[0].headers["traceparent"] == SAMPLED
    code = "import sys, semcache.sidecar.serve; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_of_what_was_asked_is_in_a_trace(traced, collector):
    """No text, no key, no caller."""
    traced.chat("a very secret text", key="sk-secret", headers={"x-semcache-tenant": "tenant-secret"})
    traced.chat("a very secret text", key="sk-secret")
    traced.close()
    sent = json.dumps([[one.name, one.attributes, one.resource] for one in collector.spans])
    assert "secret" not in sent
    assert not any(len(str(value)) == 40 for one in collector.spans for value in one.attributes.values())


@pytest.mark.parametrize("how", ["away", "refuses"])
def test_collector_that_is_away_or_refuses_harms_no_call(serve, how, monkeypatch):
    """What it does not take is lost, and counted where it said so."""
    monkeypatch.setattr("semcache.sidecar.serve._FLUSH_SECONDS", GUARD if how == "refuses" else 0.05)
    refusing = Collector(status=400)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        absent = f"http://127.0.0.1:{taken.getsockname()[1]}"
    sidecar = serve(otlp=refusing.url if how == "refuses" else absent)
    for _ in range(3):
        assert sidecar.chat().status_code == 200
    sidecar.close()
    refusing.close()
    counts = sidecar.counts.spans()
    assert counts["sent"] == 0
    assert counts["failed"] > 0 or how == "away"


def test_what_finds_no_room_is_dropped_and_counted(monkeypatch):
    """A collector that never answers fills a bounded queue, and nobody waits for it."""
    monkeypatch.setattr(otlp, "_MOST_WAITING", 600)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        export = otlp.Export(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        assert isinstance(export.provider, TracerProvider)
        tracer = export.provider.get_tracer("t")
        for _ in range(1000):
            tracer.start_span("s").end()
        assert export.counts == {"sent": 0, "failed": 0, "dropped": 400}
        export.close(0.0)


def test_address_of_the_collector_is_checked():
    """Before anything listens; a password in it is not told."""
    with pytest.raises(
        ConfigurationError, match=r"otlp: a collector's address is as http://localhost:4318; got 'ftp://"
    ):
        read(None, {"SEMCACHE_UPSTREAM": "http://a", "SEMCACHE_OTLP": "ftp://me:word@a"})
    resolved = read(None, {"SEMCACHE_UPSTREAM": "http://a", "SEMCACHE_OTLP": "http://me:word@a:4318"})
    assert "word" not in resolved.told()


def test_concurrent_calls_are_traces_of_their_own(traced, collector):
    """Who waits for another's load has no load below it."""
    import httpx

    async def ask():
        async with httpx.AsyncClient(base_url=traced.url, timeout=60) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
            own = {"authorization": "Bearer k"}
            await asyncio.gather(*(client.post(PATHS["openai"], json=body, headers=own) for _ in range(8)))

    asyncio.run(ask())
    traced.close()
    requests = collector.named("POST /v1/chat/completions")
    assert len({one.trace for one in requests}) == 8
    assert [len(collector.below(one)) for one in requests] == [1] * 8
    assert len(collector.named("chat m")) == 1


def test_lines_of_a_call_have_the_ids_of_its_trace_and_request(serve, collector):
    """So that a slow trace leads to its lines, and back."""
    logger, lines = logging.Logger("t", logging.INFO), io.StringIO()  # noqa: LOG001 - not of the tree
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    sidecar = serve(cache={"observers": [LoggingObserver(logger)]}, otlp=collector.url, log="json")
    for number in range(2):
        sidecar.chat(headers={"traceparent": SAMPLED, "x-request-id": f"req-{number}"})
    sidecar.close()
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(one["semcache_kind"], one["request_id"]) for one in told] == [("miss", "req-0"), ("hit", "req-1")]
    assert {one["trace_id"] for one in told} == {TRACE}
    assert [one["span_id"] for one in told] == [one.id for one in collector.named("POST /v1/chat/completions")]


def test_version_of_the_conventions_is_documented():
    """The one that is pinned."""
    docs = (Path(__file__).parents[2] / "docs" / "sidecar.md").read_text(encoding="utf-8")
    assert f"version {conventions.VERSION}" in docs
    names = re.findall(r"`(gen_ai[a-z_.]+|http\.[a-z_.]+|server\.[a-z]+|error\.type)`", docs)
    assert set(names) <= {value for value in vars(conventions).values() if isinstance(value, str)}


def test_without_the_extra_it_says_which_it_is(models, open_cache, monkeypatch):
    """Before anything listens."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "semcache.telemetry.otlp")
    with pytest.raises(MissingExtraError, match=r"pip install 'tiered-semcache\[otel\]'"):
        Sidecar(Settings(upstream=(Server(models.url),), port=0, otlp="http://127.0.0.1:9"), open_cache())


def test_call_leaves_its_context_as_it_was_and_tells_one_trace_upstream():
    """Where a server answers two calls in one task, the second is no part of the first."""
    calls = Calls(TracerProvider(shutdown_on_exit=False))
    told = []

    async def application(scope, receive, send):
        headers = [(b"traceparent", SAMPLED.encode()), (b"tracestate", b"a=1"), (b"x-a", b"1")]
        told.append(calls.carried(headers, "http://a"))
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        pass

    async def ask():
        watched, before = Watched(application, Counts(), calls, names=True), contexts.get_current()
        scope = {"type": "http", "method": "GET", "path": "/v1/x", "scheme": "http", "headers": []}
        for _ in range(2):
            await watched(scope, None, send)
            assert contexts.get_current() == before
            assert joined.get() is None

    asyncio.run(ask())
    assert [[name for name, _ in one] for one in told] == [[b"x-a", b"traceparent"]] * 2
    first, second = (dict(one)[b"traceparent"].split(b"-")[1] for one in told)
    assert first != second
