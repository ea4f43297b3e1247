"""`semcache serve` as a process: it listens at once, drains at a signal, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import tomllib

import httpx
import pytest
from instruments import GUARD
from processes import Process, asked, starting
from proxies import PATHS

from semcache.errors import ConfigurationError
from semcache.sidecar.serve import Sidecar
from semcache.sidecar.settings import Server, Settings


@pytest.fixture
def start(models):
    with starting(models.url) as start:
        yield start


def test_signal_lets_a_stream_end_and_the_store_has_what_was_answered(start, models, tmp_path):
    """SIGTERM: no new calls, the open one ends, exit status 0; the next start finds the answers."""
    secret = {"SEMCACHE_SECRET": "one"}
    disk = ("--disk", str(tmp_path / "cache.db"), "--namespace", "shop")
    sidecar = start(*disk, environment=secret)
    assert "semcache listens at http://127.0.0.1:" in sidecar.line
    sidecar.post(asked("kept"))
    held = models.hold(after=2)
    answers = []
    reader = threading.Thread(target=lambda: answers.append(sidecar.post({**asked(), "stream": True}).text))
    reader.start()
    assert held.reached.wait(GUARD)
    sidecar.process.send_signal(signal.SIGTERM)
    held.go.set()
    reader.join(GUARD)
    status, errors = sidecar.stop()
    assert (status, errors) == (0, "")
    assert answers[0].rstrip().endswith("[DONE]")
    again = start(*disk, environment=secret)
    assert again.post(asked("kept")).headers["x-semcache-tier"] == "disk"
    assert again.post({**asked(), "stream": True}).headers["x-semcache"] == "hit"


def test_killed_sidecar_leaves_what_it_stored_and_a_socket_that_the_next_replaces(start, tmp_path):
    """SIGKILL: entries that were written survive; the stale socket is no obstacle, a live one is."""
    path = tmp_path / "semcache.sock"
    disk = ("--disk", str(tmp_path / "cache.db"), "--namespace", "shop", "--unix", str(path))
    first = start(*disk, environment={"SEMCACHE_SECRET": "one"})
    first.post(asked())
    assert first.post(asked()).headers["x-semcache"] == "hit"
    second = Process("--upstream", first.url, "--unix", str(path))
    assert second.stop(None)[0] == 1
    assert "another process listens there" in second.line
    first.stop(signal.SIGKILL)
    assert path.is_socket()
    start(*disk, environment={"SEMCACHE_SECRET": "one"})
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://semcache") as client:
        assert client.get("/livez").json() == {"status": "ok"}
        answer = client.post(PATHS["openai"], json=asked(), headers={"authorization": "Bearer k"})
    assert answer.status_code == 200


def test_port_that_is_taken_is_said_in_a_line(start, models):
    """With the mend, and status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        sidecar = start("--port", port)
        status, _ = sidecar.stop(None)
    assert status == 1
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use; is another sidecar running?" in sidecar.line


def test_wrong_setting_is_said_in_a_line(start, tmp_path):
    """Status 2, nothing listens."""
    for arguments in (
        ("--host", "0.0.0.0"), ("--policy", "none"), ("--redis", "http://x"), ("--memory", "much"), ("--port", "70000"),
    ):  # fmt: skip
        sidecar = start(*arguments)
        status, errors = sidecar.stop(None)
        assert (status, errors) == (2, "")
        assert sidecar.line.startswith("semcache: ")
        assert "Traceback" not in sidecar.line


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("timeout_connect", "banana"), ("timeout_upstream", "banana"), ("timeout_headers", "banana"),
        ("timeout_body", "banana"), ("timeout_drain", "banana"), ("limit_body", "much"), ("tls_cert", "/none.pem"),
    ],
)  # fmt: skip
def test_wrong_setting_is_found_before_anything_listens(models, name, word):
    """Also those that no cache is made of."""
    settings = Settings(upstream=(Server(models.url),), port=0, **{name: word})
    with pytest.raises(ConfigurationError, match=name.replace("_", ".")):
        Sidecar(settings)


def test_drained_sidecar_leaves_its_successors_socket(serve, models, tmp_path):
    """Its own is removed as it begins to drain, so that the next can take its place."""
    path = tmp_path / "semcache.sock"
    first = serve(unix=str(path))
    held = models.hold(after=1)
    answers = []
    reader = threading.Thread(target=lambda: answers.append(first.chat(stream=True).text))
    reader.start()
    assert held.reached.wait(GUARD)
    first.end()
    for _ in range(1000):
        if not path.exists():
            break
        threading.Event().wait(0.005)
    assert not path.exists()
    second = serve(unix=str(path))
    held.go.set()
    reader.join(GUARD)
    first.close()
    assert answers[0].rstrip().endswith("[DONE]")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://semcache") as client:
        assert client.get("/livez").json() == {"status": "ok"}
    second.close()
    assert not path.exists()


def test_socket_that_was_put_in_its_place_is_left(serve, tmp_path):
    """Whoever replaced the file has it."""
    path = tmp_path / "semcache.sock"
    sidecar = serve(unix=str(path))
    path.rename(tmp_path / "kept.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        sidecar.close()
        assert path.is_socket()


@pytest.mark.parametrize(
    ("kept", "longest"),
    [
        ({"redis": "redis://h", "memcached": "memcached://h"}, 600),
        ({"disk": "cache.db", "memcached": "memcached://h"}, 1200),
        ({"memcached": "memcached://h"}, 86_400),
        ({}, 300),
    ],
)
def test_life_that_a_caller_asks_for_is_at_most_the_exact_stores(serve, kept, longest):
    """Where there is none memcached's, then memory's; not the longest of all."""
    sidecar = serve(ttl_redis="10m", ttl_disk="20m", ttl_memcached="1d", ttl_memory="5m", **kept)
    sidecar.chat(headers={"x-semcache-ttl": "30d"})
    life = int(sidecar.chat().headers["cache-status"].split("ttl=")[1].split(";")[0])
    assert 0.8 * longest < life <= longest  # lives are spread a little, so that they do not end together


def test_store_shared_without_a_secret_is_warned_of(start, tmp_path):
    """What it holds is found no more after the next start."""
    sidecar = start("--disk", str(tmp_path / "cache.db"), "--namespace", "shop")
    assert "SEMCACHE_SECRET" in sidecar.before


def test_redis_that_is_down_at_the_start_stops_nothing(start):
    """It is a miss in time, and ready all the same (law 10)."""
    sidecar = start(
        "--redis", "redis://127.0.0.1:1/0", "--namespace", "shop", environment={"SEMCACHE_SECRET": "s"}
    )  # fmt: skip
    assert sidecar.post(asked()).status_code == 200
    assert sidecar.post(asked()).headers["x-semcache"] == "hit"
    assert httpx.get(f"{sidecar.url}/readyz", timeout=GUARD).status_code == 200


def test_health_port_serves_nothing_else(start, models):
    """Probes need no token, and reach no call."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start("--health-port", str(port))
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/livez", timeout=GUARD).json() == {"status": "ok"}
    assert httpx.post(f"{url}{PATHS['openai']}", json=asked(), timeout=GUARD).status_code == 404
    assert models.calls == 0


def test_json_logs_tell_events_and_no_text(start):
    """A line for each, with neither what was asked nor who asked."""
    sidecar = start("--log", "json")
    sidecar.post(asked("a secret question"))
    sidecar.post(asked("a secret question"))
    _, errors = sidecar.stop()
    events = [json.loads(line) for line in errors.splitlines()]
    assert [event["semcache_kind"] for event in events if "semcache_kind" in event] == ["miss", "hit"]
    assert "secret question" not in errors


def test_texts_are_in_the_lines_where_that_is_asked_for(start):
    """Without the secrets in them, and no answer; each line has its request's id."""
    sidecar = start("--log", "json", "--log-texts", "true")
    sidecar.post(asked("ask ann@example.com"), headers={"x-request-id": "req-1"})
    _, errors = sidecar.stop()
    (line,) = [one for one in map(json.loads, errors.splitlines()) if one.get("semcache_kind") == "miss"]
    assert line["semcache_text"].startswith("ask [email:")
    assert line["request_id"] == "req-1"
    assert "ann@" not in errors
    assert "Answer to" not in errors


def test_new_token_and_its_digest_belong_together(models, serve):
    """What is printed for the file takes what is printed for the caller."""
    from semcache.sidecar.credentials import Token

    told = subprocess.run(
        [sys.executable, "-m", "semcache", "serve", "--new-token"], capture_output=True, text=True, check=True
    ).stdout
    own = told.split("token): ")[1].split()[0]
    (table,) = tomllib.loads(told.partition("\n")[2])["token"]
    assert table["tenant"] == "NAME"
    sidecar = serve(tokens=(Token.read(table, "printed"),))
    assert sidecar.chat(headers={"x-semcache-token": own}).status_code == 200
