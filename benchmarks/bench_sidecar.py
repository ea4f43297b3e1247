"""What does a proxied call cost, beside a bare endpoint on the same server, and beside the server behind?

The sidecar, the bare endpoint and the server behind are processes of their own; the load comes from this one, over
connections that are kept, and only answers with status 200 count.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import perf_counter

import pytest

from semcache.testing import StandIn

HERE = Path(__file__).parent
BODY = json.dumps({
    "model": "m",
    "messages": [
        {"role": "system", "content": "You answer for a shop that sells tea. " * 20},
        {"role": "user", "content": "Do you ship to Austria?"},
    ],
}).encode()  # fmt: skip
SECONDS, ROUNDS, CONNECTIONS = 1.0, 9, 8


def request(path="/v1/chat/completions", body=BODY):
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer sk-1\r\ncontent-type: application/json\r\n"
        f"accept: application/json\r\nuser-agent: OpenAI/Python 2.0.0\r\nx-stainless-lang: python\r\n"
        f"x-stainless-retry-count: 0\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """Connections that each ask again as soon as they are answered."""

    def __init__(self, port, connections=CONNECTIONS):
        self._request = request()
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        for one in self._sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, seconds=SECONDS):
        """Return answers a second, and the seconds that each took."""
        times, begun = [], {}
        selector = DefaultSelector()
        buffers = dict.fromkeys(self._sockets, b"")
        started = perf_counter()
        for one in self._sockets:
            selector.register(one, EVENT_READ)
            begun[one] = perf_counter()
            one.sendall(self._request)
        waiting = len(self._sockets)
        while waiting:
            for key, _ in selector.select():
                one = key.fileobj
                buffers[one] += one.recv(262_144)
                if not whole(buffers[one]):
                    continue
                assert buffers[one].startswith(b"HTTP/1.1 200"), buffers[one][:200]
                now = perf_counter()
                times.append(now - begun[one])
                buffers[one] = b""
                if now - started < seconds:
                    begun[one] = now
                    one.sendall(self._request)
                else:
                    waiting -= 1
        return len(times) / (perf_counter() - started), times

    def paced(self, rate, seconds):
        """Ask so many times a second, whether or not answers have come; return the seconds from when each was due.

        Who is due while all connections wait is asked as soon as one is free, and has waited.
        """
        selector = DefaultSelector()
        for one in self._sockets:
            selector.register(one, EVENT_READ)
        idle, due_of, buffers, times = list(self._sockets), {}, dict.fromkeys(self._sockets, b""), []
        started = perf_counter()
        number, most = 0, int(rate * seconds)
        while number < most or due_of:
            due = started + number / rate
            if number < most and idle and due <= perf_counter():
                one = idle.pop()
                due_of[one] = due
                one.sendall(self._request)
                number += 1
                continue
            wait = max(0.0, due - perf_counter()) if number < most and idle else None
            for key, _ in selector.select(wait):
                one = key.fileobj
                buffers[one] += one.recv(262_144)
                if whole(buffers[one]):
                    assert buffers[one].startswith(b"HTTP/1.1 200"), buffers[one][:200]
                    times.append(perf_counter() - due_of.pop(one))
                    buffers[one] = b""
                    idle.append(one)
        return times

    def close(self):
        for one in self._sockets:
            one.close()


def whole(data):
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    at = head.lower().find(b"content-length: ")
    return len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])


@pytest.fixture
def stack():
    with ExitStack() as made:
        yield made


def started(stack, *command, stream="stdout"):
    process = subprocess.Popen(
        [sys.executable, *command], text=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        **{stream: subprocess.PIPE},
    )  # fmt: skip
    stack.enter_context(process)
    stack.callback(process.send_signal, signal.SIGKILL)
    return process, getattr(process, stream).readline()


def first_byte(port, number):
    """Return the seconds until the first event of a stream that nobody asked for before."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": f"question {number}"}]}
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = perf_counter()
        one.sendall(request(body=json.dumps(body).encode()))
        answer = b""
        while b"data:" not in answer:
            answer += one.recv(65_536)
        took = perf_counter() - began
        while b"[DONE]" not in answer:
            answer += one.recv(65_536)
        return took


@pytest.fixture
def behind(stack):
    """A server behind, and a sidecar in front of it, which both have been asked already."""
    models = stack.enter_context(StandIn())
    process, line = started(stack, "-m", "semcache", "serve", "--port", "0", "--upstream", models.url, stream="stderr")
    ports = int(models.url.rpartition(":")[2]), int(line.split("127.0.0.1:")[1].split(",")[0])
    for port in ports:
        first_byte(port, -1)
    return process, *ports


def test_proxied_streaming_miss(pairs, behind):
    """The first byte, through the sidecar and without it, in turn."""
    _, bare, ours = behind
    times = {"ours": [], "bare": []}
    for number in range(200):
        times["bare"].append(first_byte(bare, f"{number} bare"))
        times["ours"].append(first_byte(ours, f"{number} ours"))
    medians = {name: statistics.median(one) * 1e3 for name, one in times.items()}
    pairs.once(lambda: None)
    pairs.record(
        "proxied streaming miss: milliseconds that the first byte comes later than from the server behind",
        ratio=medians["ours"] - medians["bare"], bar=2.0, higher_is_better=False, medians=medians, unit="ms",
    )  # fmt: skip


def test_idle_sidecar(pairs, stack, behind):
    """Megabytes that it holds when it has answered a call, and seconds until it listens, beside a bare Python."""
    resident = Path(f"/proc/{behind[0].pid}/status").read_text().split("VmRSS:")[1].split()[0]
    until = []
    for _ in range(5):
        began = perf_counter()
        started(stack, "-m", "semcache", "serve", "--port", "0", "--upstream", "http://127.0.0.1:1", stream="stderr")
        until.append(perf_counter() - began)
    pairs.once(lambda: None)
    pairs.record(
        f"idle sidecar: seconds until it listens; it holds {int(resident) / 1e3:.0f} MB (bar 80)",
        ratio=statistics.median(until), bar=0.7, higher_is_better=False,
        medians={"ours": statistics.median(until), "bare": 0.0}, unit="s",
    )  # fmt: skip


@pytest.fixture
def ports(stack, tmp_path):
    """A sidecar that has the answer in memory, and the bare endpoint that returns the same bytes."""
    models = stack.enter_context(StandIn())
    _, line = started(
        stack, "-m", "semcache", "serve", "--port", "0", "--upstream", models.url, "--ttl-memory", "1h", stream="stderr"
    )
    port = int(line.split("127.0.0.1:")[1].split(",")[0])
    with socket.create_connection(("127.0.0.1", port)) as one:
        for _ in range(2):
            one.sendall(request())
            answer = b""
            while not whole(answer):
                answer += one.recv(65_536)
    assert b"x-semcache: hit" in answer
    kept = tmp_path / "answer.json"
    kept.write_bytes(answer.partition(b"\r\n\r\n")[2])
    _, line = started(stack, str(HERE / "bare_asgi.py"), str(kept))
    return port, int(line)


def test_proxied_memory_hit(pairs, stack, ports):
    """Answers a second, eight connections."""
    ours, bare = (Load(port) for port in ports)
    stack.callback(ours.close)
    stack.callback(bare.close)
    rates = {"ours": [], "bare": []}
    for load in (ours, bare):
        load.run(0.5)
    for _ in range(ROUNDS):
        rates["ours"].append(ours.run()[0])
        rates["bare"].append(bare.run()[0])
    ratios = [one / other for one, other in zip(rates["ours"], rates["bare"], strict=True)]
    pairs.once(lambda: None)
    pairs.record(
        "proxied memory hit: answers a second / of a bare endpoint that parses the same body",
        ratio=statistics.median(ratios), bar=0.5, higher_is_better=True,
        medians={name: statistics.median(one) for name, one in rates.items()}, unit="/s",
    )  # fmt: skip


def test_proxied_memory_hit_at_half_load(pairs, stack, ports):
    """99 of 100 answers at half of what the sidecar can do, both asked as often."""
    ours, bare = (Load(port, 32) for port in ports)
    stack.callback(ours.close)
    stack.callback(bare.close)
    rate = statistics.median(ours.run(0.5)[0] for _ in range(3)) / 2
    bare.run(0.5)
    tails = {"ours": [], "bare": []}
    for _ in range(ROUNDS):
        for name, load in (("ours", ours), ("bare", bare)):
            times = sorted(load.paced(rate, 2.0))
            tails[name].append(times[int(len(times) * 0.99)])
    ratios = [one / other for one, other in zip(tails["ours"], tails["bare"], strict=True)]
    pairs.once(lambda: None)
    pairs.record(
        f"proxied memory hit at half load ({rate:.0f}/s): 99th percentile / of the bare endpoint's",
        ratio=statistics.median(ratios), bar=3.0, higher_is_better=False,
        medians={name: statistics.median(one) * 1e3 for name, one in tails.items()}, unit="ms",
    )  # fmt: skip


LITELLM = """\
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "{url}/v1", api_key: sk-1}}
litellm_settings: {{cache: true, cache_params: {{type: local}}, telemetry: false}}
"""


@pytest.fixture
def litellm(stack, tmp_path):
    """LiteLLM's proxy with the same answer in its own memory; its port."""
    command = Path(sys.executable).with_name("litellm")
    if not command.exists():
        pytest.skip("LiteLLM's proxy is not here: pip install 'litellm[proxy]'")
    models = stack.enter_context(StandIn())
    config = tmp_path / "litellm.yaml"
    config.write_text(LITELLM.format(url=models.url))
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    process = subprocess.Popen(
        [str(command), "--config", str(config), "--port", str(port), "--num_workers", "1"],
        env=os.environ | {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.enter_context(process)
    stack.callback(process.send_signal, signal.SIGKILL)
    until = perf_counter() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert perf_counter() < until
            assert process.poll() is None
        else:
            return port


def test_proxied_memory_hit_beside_litellm(pairs, stack, ports, litellm):
    """Answers a second, eight connections; LiteLLM's from its local cache."""
    ours, other = Load(ports[0]), Load(litellm)
    stack.callback(ours.close)
    stack.callback(other.close)
    rates = {"ours": [], "LiteLLM proxy": []}
    for load in (ours, other):
        load.run(1.0)
    for _ in range(5):
        rates["ours"].append(ours.run()[0])
        rates["LiteLLM proxy"].append(other.run(3.0)[0])
    ratios = [one / two for one, two in zip(*rates.values(), strict=True)]
    pairs.once(lambda: None)
    pairs.record(
        "proxied memory hit: answers a second / of LiteLLM's proxy with its local cache",
        ratio=statistics.median(ratios), bar=20.0, higher_is_better=True,
        medians={name: statistics.median(one) for name, one in rates.items()}, unit="/s",
    )  # fmt: skip
