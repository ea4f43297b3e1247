"""Faults around a sidecar: servers behind that are slow, stores that go, clocks that jump, bodies like bombs."""

from __future__ import annotations

import json

import httpx
import pytest
from instruments import GUARD, until
from proxies import PATHS, told
from test_limits import asked, call, raw, received

import semcache


def test_server_behind_that_says_nothing_is_a_504(serve, models):
    """In the words of the protocol, after `timeout.upstream`; the next call is asked anew."""
    sidecar = serve(timeout_upstream="200ms")
    models.latency = 60
    slow = sidecar.chat()
    assert slow.status_code == 504
    assert "took too long" in slow.json()["error"]["message"]
    models.latency = 0
    assert told(sidecar.chat()) == "miss"
    assert told(sidecar.chat()) == "hit"


@pytest.mark.parametrize("stream", [False, True])
def test_server_behind_that_limits_rates_is_handed_on(sidecar, models, stream):
    """429 with how long to wait, to each who asks; none of it is kept, and what stands is still served."""
    sidecar.chat("stands")
    models.fail(429, retry_after=11, times=2)
    for _ in range(2):
        limited = sidecar.chat("new", stream=stream)
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "11")
    assert told(sidecar.chat("stands")) == "hit"
    assert told(sidecar.chat("new", stream=stream)) == "miss"


def test_redis_that_dies_and_comes_back_costs_hits_alone(serve, own_redis, models):
    """Law 10: while it is away callers are given the server's answers, and after it the store is used by itself."""
    server = own_redis()
    sidecar = serve(cache={"redis": server.url, "memory": 0, "clock": None, "timeouts": semcache.Timeouts()})
    assert told(sidecar.chat()) == "miss"
    assert sidecar.cache.flush(GUARD)
    assert told(sidecar.chat()) == "hit"
    server.kill()
    for number in range(8):
        assert sidecar.chat(f"away {number}").status_code == 200
    assert any(fault.startswith("redis: ") for fault in sidecar.cache.stats().faults)
    server.start()
    number = 0

    def is_back():
        nonlocal number
        number += 1
        sidecar.chat(f"back {number}")
        sidecar.cache.flush(GUARD)
        return told(sidecar.chat(f"back {number}")) == "hit"

    until(is_back)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0 * 365])
def test_clock_that_jumps_ends_no_life_early_and_lengthens_none(serve, clock, jump):
    """Lives in memory are counted by a clock that nobody sets."""
    sidecar = serve(cache={"ttl": semcache.TTL(memory="1m", semantic="1m", jitter=0)}, ttl_memory="1m")
    sidecar.chat()
    clock.set_time(clock.time() + jump)
    assert told(sidecar.chat()) == "hit"
    clock.advance(61)
    assert told(sidecar.chat()) == "miss"


BOMBS = {
    "deep arrays": b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"model":"m","messages":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "a number of many digits": b'{"model":"m","seed":' + b"9" * 500_000 + b"}",
    "an exponent": b'{"model":"m","temperature":1e999999999}',
    "many names": json.dumps({f"name {number}": number for number in range(100_000)}).encode(),
    "names that stand twice": b"{" + b",".join([b'"a":1'] * 100_000) + b"}",
    "half signs": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "no UTF-8": b'{"model":"m","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "a mark of bytes' order": b"\xef\xbb\xbf{}",
    "zeros": bytes(100_000),
}


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/embeddings"])
def test_body_like_a_bomb_harms_nobody(serve, models, path):
    """Whatever it holds, it is answered, and so is the next call."""
    sidecar = serve()
    for name, bomb in BOMBS.items():
        answer = sidecar.post(path, bomb)
        assert answer.status_code in range(200, 500), name
    assert told(sidecar.chat()) == "miss"
    assert told(sidecar.chat()) == "hit"


def test_packed_body_is_the_servers_to_unpack(sidecar, models):
    """Nothing is blown up here: it is no JSON that is known, and goes by."""
    import gzip

    bomb = gzip.compress(bytes(20_000_000))
    answer = sidecar.post(PATHS["openai"], bomb, headers={"content-encoding": "gzip"})
    assert (answer.status_code, told(answer)) == (400, "bypass")


def test_chunks_and_lengths_that_lie_are_refused(serve, models):
    """Two lengths, one beside chunks, sizes that are none: no request is read out of another."""
    sidecar = serve(timeout_body="300ms", timeout_headers="300ms")
    body = asked("smuggled")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    hidden = call(asked("hidden"))
    for lie in (
        head + b"content-length: 5\r\ncontent-length: %d\r\n\r\n" % len(body) + body,
        head + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + hidden,
        head + b"transfer-encoding: chunked\r\n\r\n-5\r\n" + hidden,
        head + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + hidden,
        head + b"content-length: +5\r\n\r\n" + body,
        head + b"content-length: 99999999999999999999\r\n\r\n" + body,
    ):
        with raw(sidecar) as connection:
            connection.sendall(lie)
            answer = received(connection)
        assert answer == b"" or b" 400 " in answer or b" 408 " in answer or b" 413 " in answer, lie[:120]
        assert b" 200 " not in answer
    assert not any("hidden" in str(one.body) for one in models.asked)


def test_upload_that_breaks_off_leaves_its_place(serve, models):
    """Its caller has gone: nothing is asked, and the next has room."""
    sidecar = serve(limit_requests=1)
    whole = call(asked("gone"))
    for _ in range(3):
        with raw(sidecar) as connection:
            connection.sendall(whole[:-10])
    with httpx.Client(base_url=sidecar.url, timeout=GUARD) as client:
        until(lambda: client.get("/v1/models").status_code == 200)
    assert models.calls == 0
