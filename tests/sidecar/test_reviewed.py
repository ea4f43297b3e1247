"""What once was wrong in the proxy, each with the answer, the key or the secret that it gave away."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from instruments import GUARD
from proxies import PATHS, told
from test_credentials import token

from semcache.errors import ConfigurationError
from semcache.sidecar.credentials import Credentials
from semcache.sidecar.events import Blocks, chunks_of
from semcache.sidecar.events import told as told_as_blocks
from semcache.sidecar.settings import Server
from semcache.testing import StandIn


@pytest.mark.parametrize(
    "header", ["cf-aig-authorization", "x-forwarded-user", "cf-access-jwt-assertion", "cf-unknown", "x-forwarded-new"]
)
def test_header_that_may_say_who_asks_or_what_is_in_tenant_or_key(sidecar, header):
    """Only those are left out that are known to change nothing."""
    sidecar.chat(headers={header: "alice"})
    assert told(sidecar.chat(headers={header: "alice"})) == "hit"
    assert told(sidecar.chat(headers={header: "bob"})) == "miss"


def test_beside_a_key_no_cookie_goes_upstream(sidecar, models):
    """It could say otherwise who asks, and the key is the tenant."""
    sidecar.chat(headers={"cookie": "session=alice"})
    assert told(sidecar.chat(headers={"cookie": "session=bob"})) == "hit"
    assert "cookie" not in models.asked[0].headers


def test_all_cookies_make_the_tenant_where_there_is_no_key(sidecar):
    """Not the last header alone."""
    path, body = PATHS["openai"], {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    answers = []
    for name in ("alice", "bob", "alice"):
        headers = [("cookie", f"session={name}"), ("cookie", "lang=en"), ("content-type", "application/json")]
        answers.append(told(sidecar.http.post(path, content=json.dumps(body), headers=headers)))
    assert answers == ["miss", "miss", "hit"]


def test_who_waited_for_a_failed_call_is_not_given_its_callers_headers(serve, models):
    """Neither cookie nor request id."""
    sidecar = serve()
    models.fail(429, retry_after=3)
    models.latency = 0.3
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(sidecar.chat("one"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    failed = [answer for answer in answers if answer.status_code == 429]
    assert sum("x-request-id" in answer.headers for answer in answers) == models.calls
    assert all(answer.headers["retry-after"] == "3" for answer in failed)


def test_keys_go_to_their_own_provider_alone(serve, models):
    """With several servers: by model on every path, and never for want of a name."""
    with StandIn() as other:
        servers = (Server(models.url, ("gpt-*",)), Server(other.url, ("claude-*",)))
        sidecar = serve(upstream=servers)
        body = {"model": "claude-1", "messages": [{"role": "user", "content": "x"}]}
        assert told(sidecar.post(PATHS["openai"], body)) == "miss"
        sidecar.post("/v1/messages/count_tokens", body)
        assert (models.calls, models.others, other.calls, other.others) == (0, [], 1, ["/v1/messages/count_tokens"])
        for path, unclear in ((PATHS["openai"], b'{"model":"gpt-1","model":"claude-1"}'), ("/v1/files", b"\xff")):
            assert sidecar.post(path, unclear).status_code == 400
        assert (models.calls, models.others) == (0, [])


def test_key_of_a_token_is_for_one_server(serve, models, monkeypatch):
    """It says which, and reaches no other."""
    monkeypatch.setenv("TEST_KEY", "sk-real")
    servers = (Server(models.url, ("gpt-*",)), Server("http://127.0.0.1:1", ("claude-*",)))
    unsaid = serve(upstream=servers[:1], tokens=(token("v", "acme", upstream_key_env="TEST_KEY"),))
    assert unsaid.chat(key="v", model="gpt-1").status_code == 200
    own = token("v", "acme", upstream_key_env="TEST_KEY", upstream=models.url)
    sidecar = serve(upstream=servers, tokens=(own,))
    assert sidecar.chat(key="v", model="gpt-1").status_code == 200
    assert sidecar.chat(key="v", model="claude-1").status_code == 403
    unclear = Credentials([token("v", "acme", upstream_key_env="TEST_KEY")], "s")
    with pytest.raises(ConfigurationError, match="which server is the key in TEST_KEY for"):
        unclear.check([one.url for one in servers])


@pytest.mark.parametrize("streams", [1, "true", 0])
def test_stream_that_is_neither_true_nor_false_goes_by(sidecar, streams):
    """Some servers take it for one."""
    sidecar.chat()
    assert told(sidecar.chat(stream=streams)) == "bypass"


def test_half_a_sign_in_an_answer_breaks_no_stream(sidecar, models):
    """An emoji that a model was cut off in is JSON all the same."""
    models.reply = lambda _body: "cut \ud83d"
    for stream in (False, True, True):
        assert sidecar.chat(stream=stream).status_code == 200
    assert models.calls == 1


def test_chat_stream_without_the_mark_of_its_end_is_not_kept(sidecar, models):
    """Though its last chunk said why it ended: the usage was still to come."""
    usage = {"stream_options": {"include_usage": True}}
    models.reply = lambda _body: "abc"
    models.drop(after=3, quietly=True)
    assert told(sidecar.chat(stream=True, **usage)) == "miss"
    assert told(sidecar.chat(stream=True, **usage)) == "miss"
    assert told(sidecar.chat(stream=True, **usage)) == "hit"


def test_lines_of_events_end_where_the_standard_says():
    """And not at the other signs that are ends of lines to Python."""
    text = "a\u2028b\u0085c\x0b"
    (block,) = Blocks().feed(f"data: {json.dumps({'x': text}, ensure_ascii=False)}\r\n\r\n".encode())
    assert chunks_of([block]) == [{"x": text.replace("\x0b", "\x0b")}]
    assert chunks_of(told_as_blocks([{"x": "\ud83d"}])) == [{"x": "\ud83d"}]


def test_one_long_event_costs_no_square_of_its_length():
    """It comes in many pieces."""
    blocks, piece = Blocks(), b"x" * 1400
    assert [block for _ in range(3000) for block in blocks.feed(piece)] == []
    assert len(blocks.feed(b"\n\n")[0]) == 3000 * 1400 + 2


def test_callers_who_have_gone_leave_their_places(serve, models):
    """A stream that nobody reads ends, however silent its server is."""
    sidecar = serve(limit_requests=1)
    held = models.hold(after=0)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with httpx.Client(base_url=sidecar.url, timeout=0.3, verify=False) as client, pytest.raises(httpx.ReadTimeout):
        client.post(PATHS["openai"], json=body)
    # Were its place not free, this would go on until the test's own timeout.
    while sidecar.http.get("/v1/models").status_code == 503:
        pass
    held.go.set()


def test_call_that_is_forced_says_so(sidecar):
    """RFC 9211: the request asked for it."""
    sidecar.chat()
    assert "fwd=request" in sidecar.chat(headers={"cache-control": "no-cache"}).headers["cache-status"]
    assert 'detail="no-store"' in sidecar.chat(headers={"cache-control": "no-store"}).headers["cache-status"]


def test_call_that_is_to_be_kept_nowhere_is_not_recorded(serve, tmp_path):
    """In a recording either."""
    path = tmp_path / "traffic.jsonl"
    sidecar = serve(cache={"record": path})
    sidecar.chat("public")
    unstored = {"cache-control": "no-store"}
    sidecar.chat("private", headers=unstored)
    sidecar.post("/v1/embeddings", {"model": "m", "input": "private too"}, headers=unstored)
    sidecar.post("/v1/embeddings", {"model": "m", "input": "public too"})
    assert sidecar.cache.flush(GUARD)
    recorded = path.read_text()
    assert "public" in recorded
    assert "public too" in recorded
    assert "private" not in recorded


def test_server_that_is_away_is_logged_once(serve, models, caplog):
    """With its address and the cause, and without a password."""
    sidecar = serve()
    models.close()
    answers = [sidecar.chat(str(number)) for number in range(3)]
    lines = [record.getMessage() for record in caplog.records if record.name == "semcache.sidecar"]
    assert len(lines) == 1
    assert "could not be asked: Connection refused" in lines[0]
    assert "refused" in answers[0].json()["error"]["message"]


def test_answer_without_a_body_has_none(sidecar):
    """And our headers are ours alone."""
    assert sidecar.http.get("/v1/models").headers["x-semcache"] == "bypass"


def test_embeddings_that_all_miss_are_given_as_they_came(sidecar, models):
    """With the server's own headers."""
    answer = sidecar.post("/v1/embeddings", {"model": "m", "input": ["a"]})
    assert answer.headers["x-request-id"] == "req_1"
    assert "stored" in answer.headers["cache-status"]
