"""What is too large, too slow or no HTTP is a 4xx, and the sidecar goes on."""

from __future__ import annotations

import socket

import httpx
import pytest
from instruments import GUARD
from proxies import PATHS, told


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

    for path in (PATHS["openai"], "/v1/files"):
        assert narrow.http.post(path, content=pieces()).status_code == 413
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
