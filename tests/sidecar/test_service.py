"""The service below /semcache/: what is let in, how it is told what is wrong, and the document of it all."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import closing
from http.client import HTTPConnection

import httpx
import pytest
from instruments import GUARD
from proxies import PATHS, told
from test_credentials import token

STATS, MODE, INVALIDATE = "/semcache/v1/stats", "/semcache/v1/mode", "/semcache/v1/invalidate"
EXPLAIN = "/semcache/v1/explain"


def error_of(response):
    told = response.json()["error"]
    assert told["status"] == response.status_code
    assert "Traceback" not in response.text
    return told


def test_stats_tell_what_was_answered(sidecar):
    """Sums, mode, version and what the tiers hold; a HEAD tells the same without it."""
    sidecar.chat()
    sidecar.chat()
    told = sidecar.http.get(STATS).json()
    assert (told["mode"], told["stats"]["hits"], told["stats"]["misses"]) == ("live", {"memory": 1}, 1)
    assert told["stats"]["tiers"]["memory"]["entries"] == 1
    assert told["breakers"] == {"memory": "closed"}
    assert told["uptime"] >= 0
    head = sidecar.http.head(STATS)
    assert (head.status_code, head.content, head.headers["cache-control"]) == (200, b"", "no-store")


def test_usage_tells_what_was_saved_and_spent(sidecar):
    """By what is asked for; what cannot be meant is a 400 that says what there is."""
    sidecar.chat()
    sidecar.chat()
    told = sidecar.http.get("/semcache/v1/usage?since=7d&by=model").json()
    assert [(row["model"], row["hits"], row["loads"]) for row in told["rows"]] == [("m", 1, 1)]
    assert (told["total"]["hits"], told["by"]) == (1, ["model"])
    for query in ("by=nonsense", "since=never", "since=7d&since=8d", "x=1", "by=%ff", "by"):
        assert error_of(sidecar.http.get(f"/semcache/v1/usage?{query}"))["status"] == 400


@pytest.mark.semantic
@pytest.mark.parametrize("policy", ["shadow", "budget:0.01", "threshold:0.9"])
def test_policy_is_told_in_words_and_figures(serve, policy):
    """Each kind of policy."""
    from instruments import Compass

    from semcache.wrap.default import policy_of

    sidecar = serve(cache={"policy": policy_of(policy), "embedder": Compass()})
    told = sidecar.http.get("/semcache/v1/policy").json()
    assert told["told"]
    assert told["status"]
    assert told["shadow"] is None


def test_kill_switch_holds_for_all_replicas(serve, models, tmp_path):
    """One is told, the others hear of it by the store; live gives each its own mode back."""
    disk = {"cache": {"disk": tmp_path / "cache.db"}, "secret": "s"}
    first, second = serve(**disk), serve(**disk)
    first.chat()
    second.chat("other")
    assert first.http.post(MODE, json={"mode": "off"}).json() == {"mode": "off", "own": "live", "all": "off"}
    assert told(first.chat()) == "bypass"
    deadline = threading.Event()
    while second.http.get(MODE).json()["all"] != "off":
        assert not deadline.wait(0.01)
    assert told(second.chat("other")) == "bypass"
    assert second.http.post(MODE, json={"mode": "live"}).json()["mode"] == "live"


def test_switching_waits_for_no_calls(serve, models):
    """Where more calls are under way than may be, who switches is heard."""
    sidecar = serve(limit_requests=1)
    held = models.hold(after=1)
    caller = threading.Thread(target=lambda: sidecar.chat(stream=True))
    caller.start()
    assert held.reached.wait(GUARD)
    with httpx.Client(base_url=sidecar.url, timeout=GUARD) as client:
        assert client.post(PATHS["openai"], json={}).status_code == 503
        assert client.post(MODE, json={"mode": "off"}).status_code == 200
    held.go.set()
    caller.join(GUARD)


def test_invalidation_that_could_not_be_kept_is_a_503_with_the_mend(serve, own_redis):
    """It says so, and the caller can try again."""
    server = own_redis()
    sidecar = serve(cache={"redis": server.url})
    sidecar.chat()
    assert sidecar.cache.flush(GUARD)
    server.kill()
    refused = sidecar.http.post(INVALIDATE, json={"everything": True})
    assert refused.status_code == 503
    assert "try again" in error_of(refused)["message"]


@pytest.mark.parametrize(
    "path",
    ["/semcache/v1/none", "/semcache/", "/semcache/v1/stats/", "/semcache/../v1/models", "/semcache/static/../../x"],
)
def test_path_that_is_not_there_is_404(sidecar, path):
    """With where to look."""
    host, port = sidecar.url.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port), timeout=GUARD)
    with closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, "openapi.json" in json.load(answer)["error"]["mend"]) == (404, True)


def test_other_method_is_405(sidecar):
    """With what there is; a preflight of another site is answered so too."""
    refused = sidecar.http.post(STATS, json={})
    assert (refused.status_code, error_of(refused)["message"]) == (405, f"{STATS} takes GET, not POST")
    assert sidecar.http.options(STATS).status_code == 405


@pytest.mark.parametrize(
    "body",
    [
        b"", b"nonsense", b"[]", b"1", b'{"mode": NaN}', b'{"mode": "off", "mode": "live"}', b"[" * 60_000,
        b'{"a":' * 10_000, b"\xff\xfe", '{"mode": "off"}'.encode("utf-16"), b'{"mode": "\xff"}', b'{"mode": "\\ud800"}',
        b'{"mode": ' + b"9" * 5_000 + b"}", b'{"mode": null}', b'{"mode": "fast"}', b'{"mode": "off", "x": 1}', b"{}",
        b'{"mode": ["off"]}', b"\0", b'\xef\xbb\xbf{"mode": "off"}',
    ],
    ids=range(20),
)  # fmt: skip
def test_body_that_cannot_be_meant_is_a_400(sidecar, body):
    """Whatever it is, in words, and nothing is done."""
    refused = sidecar.http.post(MODE, content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert error_of(refused)["message"]
    assert sidecar.cache.mode == "live"


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
def test_body_of_a_form_is_a_415(sidecar, kind):
    """No page of another site can send JSON without asking first."""
    headers = {} if kind is None else {"content-type": kind}
    refused = sidecar.http.post(MODE, content=b'{"mode": "off"}', headers=headers)
    assert (refused.status_code, error_of(refused)["mend"]) == (415, "send content-type: application/json")
    with_charset = {"content-type": "Application/JSON; charset=utf-8"}
    assert sidecar.http.post(MODE, content=b'{"mode": "live"}', headers=with_charset).status_code == 200


@pytest.mark.parametrize("form", ["length", "chunks"])
def test_body_that_is_too_large_is_a_413(sidecar, form):
    """By what it says of itself, and by what comes; where a call belongs into it, it may be as long as a call."""
    body = json.dumps({"mode": "off", "x": "y" * 100_000}).encode()
    content = body if form == "length" else (body[at : at + 1000] for at in range(0, len(body), 1000))
    headers = {"content-type": "application/json"}
    assert error_of(sidecar.http.post(MODE, content=content, headers=headers))["status"] == 413
    call = {"model": "m", "messages": [{"role": "user", "content": "y" * 100_000}]}
    assert sidecar.http.post(EXPLAIN, json={"path": PATHS["openai"], "body": call}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {}, {"tag": "a", "model": "m"}, {"tag": ""}, {"key": "12"}, {"key": "z" * 40}, {"everything": False},
        {"everything": 1}, {"text": "a", "similarity": 2}, {"tag": "a", "similarity": 1}, {"text": "a", "model": "m"},
        {"tag": "a", "dry_run": "yes"}, {"tag": "x" * 2000},
    ],
    ids=str,
)  # fmt: skip
def test_invalidation_that_cannot_be_meant_drops_nothing(sidecar, body):
    """One of the ways, and of the right kind."""
    sidecar.chat()
    assert error_of(sidecar.http.post(INVALIDATE, json=body))["status"] == 400
    assert told(sidecar.chat()) == "hit"


def test_explanation_says_why_a_call_goes_by(sidecar):
    """Or why it cannot be told, and loads nothing."""
    for more, why in (({"temperature": 1}, "sampling: temperature"), ({"stream": "yes"}, "not understood: stream")):
        call = {"path": PATHS["openai"], "body": {"model": "m", "messages": [], **more}}
        assert sidecar.http.post(EXPLAIN, json=call).json()["goes_by"] == why
    assert error_of(sidecar.http.post(EXPLAIN, json={"path": "/v1/models", "body": {}}))["mend"]
    assert sidecar.http.post(EXPLAIN, json={"path": "/v1/models"}).status_code == 400


def test_explanation_is_of_the_very_call(sidecar, models):
    """With its headers, wishes and query, and of embeddings input by input."""
    headers = {"openai-organization": "o", "x-semcache-tenant": "t"}
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    answer = sidecar.post(f"{PATHS['openai']}?v=1", body, headers=headers)
    own = {"authorization": "Bearer sk-1", **headers}
    call = {"path": f"{PATHS['openai']}?v=1", "body": body}
    told = sidecar.http.post(EXPLAIN, json=call, headers=own).json()["answers"][0]
    assert (told["key"], told["tier"]) == (answer.headers["x-semcache-key"], "memory")
    other = sidecar.http.post(EXPLAIN, json=call, headers=own | {"openai-organization": "p"}).json()["answers"][0]
    assert other["tier"] is None
    sidecar.post("/v1/embeddings", {"model": "m", "input": "a"})
    call = {"path": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]}}
    vectors = sidecar.http.post(EXPLAIN, json=call, headers={"authorization": "Bearer sk-1"}).json()["answers"]
    assert [one["tier"] for one in vectors] == ["memory", None]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_curated_answer_is_given_in_the_words_of_its_protocol(sidecar, models, name, stream):
    """Plain and streamed, until it is invalidated."""
    bodies = {
        "openai": {"messages": [{"role": "user", "content": "q"}]}, "openai-responses": {"input": "q"},
        "anthropic": {"messages": [{"role": "user", "content": "q"}], "max_tokens": 9},
    }  # fmt: skip
    body = {"model": "m", **bodies[name]}
    put = {"path": PATHS[name], "body": body, "answer": "forty-two", "tags": ["faq"]}
    caller = {"authorization": "Bearer sk-1"}
    assert sidecar.http.post("/semcache/v1/entries", json=put, headers=caller).json()["pinned"]
    answer = sidecar.post(PATHS[name], {**body, "stream": stream})
    assert told(answer) == "hit"
    assert "forty-two" in answer.text
    assert models.calls == 0
    assert sidecar.http.post(INVALIDATE, json={"tag": "faq"}).json()["entries"] == 1
    assert told(sidecar.post(PATHS[name], {**body, "stream": stream})) == "miss"


def test_curated_answer_to_what_is_never_looked_up_is_refused(sidecar):
    """It would be found by nobody."""
    sampled = {"model": "m", "messages": [], "temperature": 1}
    for path, body in ((PATHS["openai"], sampled), ("/v1/embeddings", {"model": "m", "input": "a"})):
        put = {"path": path, "body": body, "answer": "a"}
        assert error_of(sidecar.http.post("/semcache/v1/entries", json=put))["mend"]


# Who comes by a browser

OWN = "http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("origin", "host", "service", "calls"),
    [
        (None, None, 200, 200), ("own", None, 200, 200), ("http://evil.example", None, 403, 403),
        ("null", None, 403, 403), ("", None, 403, 403), ("http://localhost:3000", None, 403, 200),
        ("http://evil.example", "evil.example", 403, 403), (None, "evil.example:8400", 403, 200),
        (None, "localhost", 200, 200), (None, "app.localhost:80", 200, 200), (None, "[::1]:8400", 200, 200),
        ("https://llm.example", "llm.example", 200, 200), ("https://llm.example", None, 200, 200),
        (None, "llm.example:443", 200, 200), ("http://127.0.0.1.evil.example", None, 403, 403),
        ("file://", None, 403, 403), ("http://a@127.0.0.1", None, 403, 403), ("http://[::1", None, 403, 403),
    ],
)  # fmt: skip
def test_foreign_page_uses_no_sidecar_without_tokens(serve, origin, host, service, calls):
    """By its origin, and by a name of its own that leads here; what a gateway in front passes on, the settings name."""
    sidecar = serve(hosts="llm.example")
    headers = {} if host is None else {"host": host}
    if origin is not None:
        headers["origin"] = sidecar.url if origin == "own" else origin
    assert sidecar.http.get(STATS, headers=headers).status_code == service
    assert sidecar.http.get("/metrics", headers=headers).status_code == service
    assert sidecar.chat(headers=headers).status_code == calls
    foreign_name = host is not None and "evil" in host
    assert (sidecar.http.get("/v1/models", headers=headers).status_code == 403) == (calls == 403 or foreign_name)


def test_page_with_a_token_is_no_stranger(serve):
    """Calls ask for the token alone; the service still for its own page."""
    sidecar = serve(tokens=(token("t", "acme"), token("o", "*", rights=["read"])))
    foreign = {"origin": "http://app.example", "host": "llm.example"}
    assert sidecar.chat(headers={**foreign, "x-semcache-token": "t"}).status_code == 200
    assert sidecar.http.get(STATS, headers={**foreign, "x-semcache-token": "o"}).status_code == 403
    named = {"host": "llm.example", "origin": "https://llm.example"}
    assert sidecar.http.get(STATS, headers={**named, "x-semcache-token": "o"}).status_code == 200


def test_socket_file_has_no_name(serve, tmp_path):
    """No browser comes there, so any name will do."""
    path = tmp_path / "semcache.sock"
    serve(unix=str(path))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://semcache") as client:
        assert client.get(STATS).status_code == 200


# The document


def test_document_is_openapi(sidecar):
    """As the standard's own schema has it, and it tells every endpoint."""
    from openapi_spec_validator import validate

    from semcache.sidecar.service import Table

    told = sidecar.http.get("/semcache/v1/openapi.json").json()
    validate(told)
    assert told["openapi"].startswith("3.1")
    named = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert named == {(row.method, row.path) for row in Table().rows if not row.path.endswith("*")}


def test_answers_are_as_the_document_says(sidecar):
    """Every endpoint that is asked without a body."""
    from jsonschema import Draft202012Validator

    told = sidecar.http.get("/semcache/v1/openapi.json").json()
    sidecar.chat()
    for path, methods in told["paths"].items():
        if "get" in methods:
            content = methods["get"]["responses"]["200"]["content"]
            if "application/json" in content:
                schema = {**content["application/json"]["schema"], "components": told["components"]}
                Draft202012Validator(schema).validate(sidecar.http.get(path).json())


def test_service_costs_nothing_until_it_is_asked():
    """What only it needs is not imported by a sidecar that begins."""
    code = "import semcache.sidecar.serve, sys; print([n for n in ('pydantic', 'semcache.sidecar.operating') if n in sys.modules])"  # noqa: E501
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD, check=True)
    assert told.stdout.strip() == "[]"
