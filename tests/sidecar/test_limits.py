"""What is too large, too slow or no HTTP is a 4xx, and the sidecar goes on."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest
from instruments import GUARD
from proxies import PATHS, told

from semcache.sidecar.serve import Sidecar
from semcache.sidecar.settings import Server, Settings


def raw(sidecar):
    host, port = sidecar.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=GUARD)
    connection.settimeout(GUARD)
    return connection


def received(connection):
    """Return all that comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def asked(text, **more):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def call(body, *fields, told=None):
    """Return a call as bytes; a chunked one where `told` is b"chunked"."""
    length = b"transfer-encoding: chunked" if told else b"content-length: %d" % len(body)
    head = (b"POST /v1/chat/completions HTTP/1.1", b"host: x", b"authorization: Bearer sk-1", length, *fields)
    sent = b"%x\r\n%s\r\n0\r\n" % (len(body), body) if told else body
    return b"\r\n".join(head) + b"\r\n\r\n" + sent


def until(connection, end):
    """Return what comes, until it has these bytes."""
    got = b""
    while end not in got:
        part = connection.recv(65_536)
        assert part, got
        got += part
    return got


@pytest.fixture
def narrow(serve):
    return serve(limit_body="10kB", timeout_headers="300ms", timeout_body="300ms", limit_requests=2)


def test_body_that_is_too_large_is_refused(narrow, models):
    """With its length told, and in pieces."""
    large = {"model": "m", "messages": [{"role": "user", "content": "x" * 20_000}]}
    refused = narrow.post(PATHS["openai"], large)
    assert refused.status_code == 413
    assert "limit.body" in refused.json()["error"]["message"]

    def pieces():
        for _ in range(20):
            yield b"x" * 1000

    assert narrow.http.post(PATHS["openai"], content=pieces()).status_code == 413
    assert narrow.http.post("/v1/files", content=b"x" * 20_000).status_code == 413
    assert models.calls == 0
    assert told(narrow.chat()) == "miss"


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/comp", b"POST / HTTP/1.1\r\nhost: x\r\nx-a: "])
def test_head_that_does_not_come_ends_the_connection(narrow, begun):
    """Slow-loris: a connection is not held by who says nothing."""
    with raw(narrow) as connection:
        connection.sendall(begun)
        answer = received(connection)
    assert answer == b"" or b" 408 " in answer
    assert told(narrow.chat()) == "miss"


def test_head_that_does_not_end_is_refused(narrow):
    """In a header's name, its value, and in their number."""
    for flood in (b"x" * 200_000, b"x-a: " + b"y" * 200_000, b"".join(b"x-%d: y\r\n" % one for one in range(20_000))):
        with raw(narrow) as connection:
            try:
                connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + flood)
            except (BrokenPipeError, ConnectionResetError):
                continue
            answer = received(connection)
            assert answer == b"" or b" 431 " in answer or b" 400 " in answer
    assert told(narrow.chat()) == "miss"


def test_body_that_does_not_come_is_refused(narrow, models):
    """408, in the words of the protocol."""
    with raw(narrow) as connection:
        head = f"POST {PATHS['openai']} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"model"')
        assert b" 408 " in received(connection)
    assert models.calls == 0


def test_more_calls_at_once_than_are_allowed_are_refused(narrow, models):
    """503, which clients try again; those that run go on."""
    held = [models.hold(after=1), models.hold(after=1)]
    with httpx.Client(base_url=narrow.url, timeout=GUARD, verify=False) as client:
        opened = []
        for number, one in enumerate(held):
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": str(number)}]}
            request = client.build_request("POST", PATHS["openai"], json=body)
            opened.append(client.send(request, stream=True))
            assert one.reached.wait(GUARD)
        refused = narrow.chat()
        assert refused.status_code == 503
        assert "limit.requests" in refused.json()["error"]["message"]
        for one in held:
            one.go.set()
        for response in opened:
            assert response.read().rstrip().endswith(b"[DONE]")
    assert told(narrow.chat()) == "miss"


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"nonsense nonsense nonsense\r\n\r\n"]
)
def test_what_is_no_http_is_refused(narrow, sent):
    """And harms nobody."""
    with raw(narrow) as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert answer == b"" or b" 400 " in answer or b" 408 " in answer
    assert told(narrow.chat()) == "miss"


def test_many_idle_connections_leave_room_for_calls(serve):
    """They cost little, and end by themselves."""
    sidecar = serve(timeout_headers="20s")
    connections = [raw(sidecar) for _ in range(500)]
    try:
        assert told(sidecar.chat()) == "miss"
        assert told(sidecar.chat()) == "hit"
    finally:
        for one in connections:
            one.close()


def test_fields_after_a_body_change_nothing(narrow, models):
    """They come when the call is already being answered: neither key nor caller is made of them."""
    trailers = b"openai-organization: evil\r\ncookie: s=1\r\nx-vendor: evil\r\n\r\n"
    with raw(narrow) as connection:
        connection.sendall(call(asked("Do you ship?"), b"connection: close", told=b"chunked") + trailers)
        assert b" 200 " in received(connection)
    assert not {"openai-organization", "cookie", "x-vendor"} & models.asked[-1].headers.keys()
    assert told(narrow.chat("Do you ship?")) == "hit"


@pytest.mark.parametrize(
    "flood", [b"x" * 200_000, b"x-a: " + b"y" * 200_000, b"".join(b"x-%d: y\r\n" % one for one in range(20_000))]
)
def test_fields_after_a_body_that_do_not_end_close_the_connection(serve, flood):
    """In a name, a value, and in their number; a slow body is not what ends it."""
    patient = serve(timeout_body="10m", timeout_headers="10m")
    with raw(patient) as connection:
        try:
            connection.sendall(call(asked("a"), told=b"chunked") + flood)
        except (BrokenPipeError, ConnectionResetError):
            return
        answer = received(connection)
    assert answer == b"" or b" 431 " in answer or b" 400 " in answer


H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAA")


@pytest.mark.parametrize("form", [None, b"chunked"])
def test_call_that_offers_another_protocol_is_answered_in_this_one(narrow, models, form):
    """As Java's client does by default: with its body whole, and the next call on the same connection."""
    end = b"\r\n" if form else b""
    whole = call(asked("up"), *H2C, told=form) + end
    with raw(narrow) as connection:
        connection.sendall(whole)
        assert b"x-semcache: miss" in until(connection, b"Answer to: up")
        cut = whole.index(b'"messages"')
        connection.sendall(whole[:cut])
        connection.sendall(whole[cut:])
        assert b"x-semcache: hit" in until(connection, b"Answer to: up")
        connection.sendall(whole * 2 + call(asked("up"), b"connection: close"))
        assert received(connection).count(b"x-semcache: hit") == 3
    assert models.calls == 1


def test_way_through_is_refused(narrow):
    """There is none: CONNECT is a 400 at once."""
    with raw(narrow) as connection:
        connection.sendall(b"CONNECT x.example:443 HTTP/1.1\r\nhost: x.example\r\n\r\n")
        assert b" 400 " in received(connection)


def test_connection_that_is_kept_by_empty_lines_alone_ends(narrow):
    """They are no request, though HTTP lets them come before one."""
    with raw(narrow) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        until(connection, b'"ok"}')
        connection.sendall(b"\r\n")
        assert received(connection) == b""


@pytest.mark.parametrize("late", [b"", b"nonsense nonsense\r\n\r\n"])
def test_nothing_is_written_into_an_answer_that_is_on_its_way(serve, models, late):
    """What comes behind a call and is late or wrong harms no byte of that call's answer."""
    sidecar = serve(timeout_headers="100ms", timeout_body="100ms")
    held = models.hold(after=1)
    with raw(sidecar) as connection:
        connection.sendall(call(asked("a", stream=True)))
        assert held.reached.wait(GUARD)
        begun = until(connection, b"data: ")
        connection.sendall(late or call(asked("b"))[:-5])
        connection.settimeout(0.4)
        try:
            begun += received(connection)
        except TimeoutError:
            held.go.set()
            connection.settimeout(GUARD)
            begun += received(connection)
    held.go.set()
    answer, _, behind = begun.partition(b"0\r\n\r\n")
    assert b" 408 " not in answer
    assert b" 400 " not in answer
    if not late:
        assert b"[DONE]" in answer
        assert b" 408 " in behind


def test_body_is_not_late_while_nothing_is_read_of_it(serve, models):
    """An upload that waits for the server behind is not its caller's fault."""
    sidecar = serve(timeout_body="200ms", limit_connections=1)
    held = models.hold(after=1)
    with httpx.Client(base_url=sidecar.url, timeout=GUARD) as client, raw(sidecar) as upload:
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "a"}]}
        opened = client.send(client.build_request("POST", PATHS["openai"], json=body), stream=True)
        assert held.reached.wait(GUARD)
        head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 400000\r\n\r\n"
        upload.sendall(head + b"x" * 100_000)
        upload.settimeout(0.6)
        with pytest.raises(TimeoutError):
            upload.recv(1)
        upload.settimeout(GUARD)
        held.go.set()
        opened.read()
        upload.sendall(b"x" * 300_000)
        assert b" 404 " in received(upload)


@pytest.mark.parametrize("path", ["/v1/../admin", "/v1/%2e%2e/admin", "/v1/x/../../admin"])
def test_path_does_not_lead_out_of_the_interface(narrow, models, path):
    """With a key of ours it could ask what no caller was given."""
    with raw(narrow) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert b" 400 " in received(connection)
    assert models.others == []


def test_path_arrives_as_it_was_written(narrow, models):
    """A part of it that was escaped stays so."""
    narrow.http.get("/v1/models/a%2Fb?c=%20d")
    assert models.others == ["/v1/models/a%2Fb?c=%20d"]


def test_reader_who_reads_no_more_gives_its_place_back(serve, models):
    """The connection is cut where nothing of what was sent is taken for a while; slow readers are left alone."""
    sidecar = serve(timeout_write="300ms", limit_requests=1)
    models.reply = lambda _body: f"{'x' * 100_000} " * 80
    with raw(sidecar) as connection:
        connection.sendall(call(asked("long", stream=True)))
        until(connection, b"data: ")
        # Were its place not free, this would go on until the test's own timeout.
        while sidecar.http.get("/v1/models").status_code == 503:
            pass
        assert b"[DONE]" not in received(connection)


def test_slow_reader_is_given_all_of_it(serve, models):
    """Whoever takes something now and then has time enough for the rest."""
    sidecar = serve(timeout_write="400ms")
    models.reply = lambda _body: "word " * 2_000_000
    with raw(sidecar) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.sendall(call(asked("long"), b"connection: close"))
        began, size = time.monotonic(), 0
        while time.monotonic() - began < 1.2:
            size += len(connection.recv(65_536))
            threading.Event().wait(0.02)
        size += len(received(connection))
    assert size > 10_000_000


@pytest.mark.parametrize(("told_seconds", "given"), [("200ms", 1), ("1s", 1), ("2.5s", 3)])
def test_drain_of_less_than_a_second_is_one(told_seconds, given):
    """And not none at all, which would cut every open answer."""
    settings = Settings(upstream=(Server("http://127.0.0.1:1"),), port=0, timeout_drain=told_seconds)
    sidecar = Sidecar(settings)
    assert sidecar._config.timeout_graceful_shutdown == given
    sidecar.cache.close()
