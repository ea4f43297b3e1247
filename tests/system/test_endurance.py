"""What a sidecar of its own process outlives: full disks, an end without warning, thousands who say nothing."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest
from instruments import GUARD, until
from processes import CHAT, Process, asked

IDLE = 5000
SECRET = {"SEMCACHE_SECRET": "one"}


def client_of(url, retries=20):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=retries, timeout=GUARD)


def chat(client, text):
    return client.chat.completions.with_raw_response.create(**asked(text))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def test_disk_that_is_full_costs_hits_alone(start, models, tmp_path):
    """Answers go on, what stood is found, and with room again new ones are kept."""
    disk = ("--disk", str(tmp_path / "cache.db"), "--namespace", "shop", "--memory", "0")
    sidecar = start(*disk, environment=SECRET)
    models.reply = lambda body: f"{body['messages'][0]['content']} " + "x" * 4000
    assert sidecar.post(asked("stood")).status_code == 200
    until(lambda: sidecar.post(asked("stood")).headers["x-semcache"] == "hit")
    pid = sidecar.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10, hard))
    for number in range(25):
        assert sidecar.post(asked(f"full {number}")).status_code == 200
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert sidecar.post(asked("stood")).headers["x-semcache"] == "hit"
    number = 0

    def keeps_again():
        nonlocal number
        number += 1
        sidecar.post(asked(f"room {number}"))
        threading.Event().wait(0.05)
        return sidecar.post(asked(f"room {number}")).headers["x-semcache"] == "hit"

    until(keeps_again)


def test_clients_come_back_to_a_sidecar_that_was_killed(start, models, tmp_path):
    """SIGKILL: what it had stored is found by the next, and the SDK's own retries bridge the gap."""
    how = ("--disk", str(tmp_path / "cache.db"), "--namespace", "shop", "--port", free_port())
    first = start(*how, environment=SECRET)
    with closing(client_of(first.url)) as client:
        chat(client, "stored")
        until(lambda: chat(client, "stored").headers["x-semcache"] == "hit")
        # In memory at once, in the file some milliseconds later.
        threading.Event().wait(0.5)
        first.process.kill()
        first.process.wait(GUARD)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(chat(client, "stored")))
        asking.start()
        start(*how, environment=SECRET)
        asking.join(2 * GUARD)
        assert [answer.headers["x-semcache"] for answer in answers] == ["hit"]
    assert models.calls == 1


def test_stop_lets_every_open_stream_end(start, models):
    """SIGTERM with several streams open: all end whole, no new call is taken, status 0."""
    sidecar = start()
    held = [models.hold(after=1) for _ in range(4)]
    answers = []
    readers = [
        threading.Thread(target=lambda n=n: answers.append(sidecar.post({**asked(f"{n}"), "stream": True}).text))
        for n in range(4)
    ]
    for reader in readers:
        reader.start()
    for one in held:
        assert one.reached.wait(GUARD)
    sidecar.process.send_signal(signal.SIGTERM)

    def is_closed():
        try:
            httpx.get(f"{sidecar.url}/livez", timeout=GUARD)
        except httpx.TransportError:
            return True
        return False

    until(is_closed)
    for one in held:
        one.go.set()
    for reader in readers:
        reader.join(GUARD)
    assert sidecar.stop(None) == (0, "")
    assert len(answers) == 4
    assert all(answer.rstrip().endswith("[DONE]") for answer in answers)


def resident(pid):
    """Return how many bytes of a process are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_thousands_who_say_nothing_leave_room_for_calls(start):
    """They cost some kilobytes each, calls between them are answered, and they end by themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 200:
        pytest.fail(f"this user may have {hard} files open; the test needs {IDLE + 200}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 200), hard))
    idle = []
    try:
        sidecar = start("--timeout-headers", "10s")
        assert sidecar.post(asked()).status_code == 200
        before = resident(sidecar.process.pid)
        port = int(sidecar.url.rpartition(":")[2])
        idle += [socket.create_connection(("127.0.0.1", port), timeout=GUARD) for _ in range(IDLE)]
        assert [sidecar.post(asked()).headers["x-semcache"] for _ in range(5)] == ["hit"] * 5
        assert resident(sidecar.process.pid) - before < IDLE * 16_384
        assert all(one.recv(1) == b"" for one in idle)
        assert sidecar.post(asked()).headers["x-semcache"] == "hit"
    finally:
        for one in idle:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_port_that_is_free_again_is_taken_at_once(start, models):
    """A sidecar that ended leaves no address behind, though its callers' connections linger."""
    port = free_port()
    first = start("--port", port)
    with httpx.Client(base_url=first.url, timeout=GUARD) as client:
        client.post(CHAT, json=asked())
        first.stop()
        second = Process("--upstream", models.url, "--port", port)
        try:
            assert f":{port}" in second.line
            assert client.post(CHAT, json=asked()).status_code == 200
        finally:
            second.stop(signal.SIGKILL)
