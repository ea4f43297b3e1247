"""The proxy as callers see it: the real SDKs with another base URL, and HTTP as curl speaks it."""

from __future__ import annotations

import json
import threading
from contextlib import closing

import httpx
import openai
import pytest
from dialects import EVERY, EVERY_ID, Asking
from instruments import GUARD
from proxies import PATHS, told

from semcache.testing import Reply


@pytest.fixture(params=EVERY, ids=EVERY_ID)
def asking(request):
    """Each protocol in each colour, uncached: the sidecar is between."""
    with closing(Asking(*request.param)) as made:
        yield made


def test_plain_answer_is_given_again_as_it_was(asking, sidecar, models):
    """The second call does not reach the server behind, and is given the very same answer."""
    client = asking.client(sidecar)
    first, second = asking.ask(client), asking.ask(client)
    assert second.to_dict() == first.to_dict()
    assert models.calls == 1


def test_stream_is_given_again_as_it_was(asking, sidecar, models):
    """Chunk by chunk."""
    client = asking.client(sidecar)
    first = asking.read(client, usage=True)
    assert [chunk.to_dict() for chunk in asking.read(client, usage=True)] == [chunk.to_dict() for chunk in first]
    assert models.calls == 1


def test_stream_answers_a_plain_call_and_a_plain_answer_a_stream(asking, sidecar, models):
    """The form it was loaded in is no part of the key."""
    client = asking.client(sidecar)
    asking.read(client, "streamed", usage=True)
    asking.ask(client, "plain")
    assert asking.ask(client, "streamed").to_dict()
    assert asking.read(client, "plain")
    assert models.calls == 2


def test_error_of_the_server_behind_arrives_as_it_was(asking, sidecar, models):
    """Its status, body and headers, and the next call asks again (law 7)."""
    client = asking.client(sidecar)
    models.fail(429, retry_after=7)
    errors = []
    with pytest.raises(Exception, match="429") as raised:
        asking.ask(client)
    errors.append(raised.value)
    assert errors[0].response.headers["retry-after"] == "7"
    assert errors[0].body is not None
    assert asking.ask(client).to_dict()
    assert models.calls == 2


def test_error_of_a_stream_arrives_before_it_begins(asking, sidecar, models):
    """As the SDK raises it without us."""
    client = asking.client(sidecar)
    models.fail(500)
    with pytest.raises(Exception, match="500"):
        asking.read(client)
    assert asking.read(client)


@pytest.mark.parametrize("protocol", PATHS)
def test_stream_that_breaks_off_is_not_kept(sidecar, models, protocol):
    """Law 7: its reader sees that it broke off, and who comes next is given a whole one."""
    models.drop(after=2)
    body = {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "a"}], "input": "a"}
    with pytest.raises(httpx.RemoteProtocolError):
        sidecar.post(PATHS[protocol], body)
    whole = sidecar.post(PATHS[protocol], body)
    assert told(whole) == "miss"
    assert sidecar.post(PATHS[protocol], body).content == whole.content
    assert models.calls == 2


def test_stream_that_ends_quietly_in_its_middle_is_not_kept(sidecar, models):
    """Some proxies end what broke off as if it had ended."""
    models.drop(after=2, quietly=True)
    assert sidecar.chat(stream=True).status_code == 200
    assert told(sidecar.chat(stream=True)) == "miss"


def test_headers_say_how_a_call_was_answered(sidecar):
    """`Cache-Status` as RFC 9211 has it, and our own words."""
    missed, hit = sidecar.chat(), sidecar.chat()
    key = missed.headers["x-semcache-key"]
    assert missed.headers["cache-status"] == f'semcache; fwd=uri-miss; fwd-status=200; stored; key="{key}"'
    assert told(missed) == "miss"
    name, is_hit, ttl, own = hit.headers["cache-status"].split("; ")
    assert (name, is_hit, own) == ("semcache", "hit", f'key="{key}"')
    assert 0 < int(ttl.removeprefix("ttl=")) <= 3600
    assert (told(hit), hit.headers["x-semcache-tier"], hit.headers["x-semcache-age"]) == ("hit", "memory", "0")


def test_hit_replays_no_request_id_cookie_or_limit(sidecar, models):
    """They are the first caller's."""
    missed, hit = sidecar.chat(), sidecar.chat()
    assert missed.headers["x-request-id"] == "req_1"
    assert "x-request-id" not in hit.headers
    assert hit.headers["content-type"] == missed.headers["content-type"]
    assert hit.content == missed.content
    assert models.calls == 1


def test_calls_that_come_together_are_one_load(sidecar, models):
    """Law 6, over HTTP: all wait for the one that went upstream."""
    held = models.hold(after=1)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(sidecar.chat("one", stream=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert held.reached.wait(GUARD)
    held.go.set()
    for thread in threads:
        thread.join(GUARD)
    assert models.calls == 1
    assert len({answer.content for answer in answers}) == 1
    assert max(map(told, answers)) == "miss"


def test_what_callers_send_beside_the_call_is_in_the_key(sidecar, models):
    """Law 1: an unknown header may change the answer, a known one of the caller's does not."""
    sidecar.chat()
    assert told(sidecar.chat(headers={"openai-organization": "other"})) == "miss"
    assert told(sidecar.chat(headers={"x-vendor-thing": "1"})) == "miss"
    same = {"user-agent": "curl", "traceparent": "00-1", "cookie": "a=b", "x-forwarded-for": "10.0.0.1"}
    same["origin"] = "http://localhost:3000"
    assert told(sidecar.chat(headers=same)) == "hit"
    assert told(sidecar.chat(temperature=0)) == "miss"
    assert told(sidecar.http.post(f"{PATHS['openai']}?api-version=2", content="{}")) == "miss"
    assert models.calls == 4


def test_call_that_samples_or_rests_on_the_server_goes_by(sidecar, models):
    """As with cached clients, and it says why."""
    for _ in range(2):
        answer = sidecar.chat(temperature=0.7)
        assert told(answer) == "bypass"
        assert 'detail="sampling: temperature"' in answer.headers["cache-status"]
        state = sidecar.post(PATHS["openai-responses"], {"model": "m", "input": "x", "previous_response_id": "r"})
        assert told(state) == "bypass"
    assert models.calls == 4


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[1]", b'{"model": NaN}', b'{"model":"m","model":"n"}', b"\xff\xfe", b"[" * 100_000]
)  # fmt: skip
def test_what_is_not_understood_is_the_servers_to_say(serve, models, body):
    """It is handed on as it came, and nothing of it is kept."""
    sidecar = serve()
    answer = sidecar.post(PATHS["openai"], body)
    assert (answer.status_code, told(answer)) == (400, "bypass")
    assert told(sidecar.chat()) == "miss"
    assert told(sidecar.chat()) == "hit"


def test_names_that_are_numbers_or_objects_are_no_fault_of_ours(sidecar, models):
    """Other types than those that are documented go by."""
    assert told(sidecar.post(PATHS["openai"], {"model": 3, "messages": [{"role": "user", "content": "x"}]})) == "miss"
    models.fail(400)
    answer = sidecar.post(PATHS["openai"], {"model": "m", "messages": [], "stream_options": 7, "stream": True})
    assert (answer.status_code, told(answer)) == (400, "bypass")


def test_the_rest_of_the_interface_passes_through(sidecar, models):
    """Unchanged, both ways; nothing else is offered."""
    assert sidecar.http.get("/v1/models").json()["data"][0]["id"] == "m"
    assert sidecar.http.get("/v1/unknown?a=1").status_code == 404
    assert models.others == ["/v1/models", "/v1/unknown?a=1"]
    assert sidecar.http.get("/elsewhere").status_code == 404
    assert len(models.others) == 2


def test_embeddings_are_kept_by_input(sidecar, models):
    """Only what is missing is sent, and vectors come back as they were."""
    client = openai.OpenAI(base_url=f"{sidecar.url}/v1", api_key="none", max_retries=0)
    first = client.embeddings.create(model="m", input=["a", "b"])
    more = client.embeddings.with_raw_response.create(model="m", input=["b", "c", "a"])
    vectors = [row.embedding for row in more.parse().data]
    assert [vectors[2], vectors[0]] == [row.embedding for row in first.data]
    assert [asked.body["input"] for asked in models.asked] == [["a", "b"], ["c"]]
    again = client.embeddings.with_raw_response.create(model="m", input=["c"])
    assert again.headers["x-semcache"] == "hit"
    client.close()


def test_embeddings_that_are_not_understood_go_by(sidecar, models):
    """The server says what is wrong."""
    answer = sidecar.post("/v1/embeddings", {"model": "m", "input": {"a": 1}})
    assert (answer.status_code, models.calls) == (400, 0)
    models.fail(400)
    assert sidecar.post("/v1/embeddings", {"model": "m", "input": "d"}).status_code == 400


def test_caller_who_leaves_a_stream_cuts_nobody_else(sidecar, models):
    """Section 9: who reads along is given all of it."""
    held = models.hold(after=3)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "a long way to go"}]}
    rest = []
    follower = threading.Thread(target=lambda: rest.append(sidecar.chat("a long way to go", stream=True)))
    headers = {"authorization": "Bearer sk-1"}
    with (
        httpx.Client(base_url=sidecar.url, timeout=GUARD, verify=False) as own,
        own.stream("POST", PATHS["openai"], content=json.dumps(body), headers=headers) as response,
    ):
        assert next(response.iter_bytes())
        assert held.reached.wait(GUARD)
        follower.start()
    held.go.set()
    follower.join(GUARD)
    assert rest[0].text.rstrip().endswith("[DONE]")


def test_truncated_answer_and_tool_call_are_not_kept(serve, models):
    """Law 7, and the setting for tools."""
    sidecar = serve()
    models.reply = lambda _body: Reply("half an", finish="length")
    assert "stored" not in sidecar.chat().headers["cache-status"]
    assert told(sidecar.chat()) == "miss"
    models.reply = lambda _body: Reply(finish="tools", tool=("look", {"at": 1}))
    for _ in range(2):
        assert told(sidecar.chat("tool")) == "miss"
    keeping = serve(tool_calls=True)
    assert [told(keeping.chat("tool")) for _ in range(2)] == ["miss", "hit"]


def test_server_behind_that_is_away_is_told_in_the_words_of_the_protocol(serve, models):
    """502, and an error that the SDKs read."""
    sidecar = serve()
    models.close()
    answer = sidecar.chat()
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "api_error"
    messages = sidecar.post(PATHS["anthropic"], {"model": "m", "max_tokens": 1, "messages": []})
    assert (messages.status_code, messages.json()["type"]) == (502, "error")


@pytest.mark.semantic
def test_near_match_is_served_within_a_callers_tenant_alone(serve, models, open_cache):
    """Law 2: whose key it is parts the scopes; the answer says how near it was, and who asks may ask for nearer."""
    from instruments import Compass

    import semcache

    near = {"embedder": Compass({"a": 0, "b": 10}), "policy": semcache.Threshold(0.9, guards=None)}
    sidecar = serve(cache=near)
    sidecar.cache.warm()
    sidecar.chat("a")
    assert sidecar.cache.flush(GUARD)
    assert told(sidecar.chat("b", key="sk-2")) == "miss"
    nearer = sidecar.chat("b", headers={"x-semcache-threshold": "0.999", "cache-control": "only-if-cached"})
    assert nearer.status_code == 504
    hit = sidecar.chat("b")
    assert (told(hit), hit.headers["x-semcache-tier"], hit.headers["x-semcache-similarity"]) == (
        "hit", "semantic", "0.9848"
    )  # fmt: skip
    assert hit.json()["choices"] == sidecar.chat("a").json()["choices"]
    assert told(sidecar.chat("b", headers={"x-semcache-mode": "exact"})) == "miss"


def test_file_that_is_handed_on_arrives_with_its_length(sidecar, models):
    """Some servers take no body in pieces: the stand-in is one, and would not answer the second call."""
    for _ in range(2):
        assert sidecar.http.post("/v1/files", content=b"x" * 200_000).status_code == 404
    assert models.others == ["/v1/files"] * 2
