"""What does a program's lookup in a sidecar cost, beside a bare round trip, and beside what embedding its text takes?

The sidecar and the bare endpoint are processes of their own, at Unix sockets; the program is this one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, sleep

import pytest
from msgpack import packb

import semcache
from semcache.stores.sidecar_address import addresses_of
from semcache.stores.sidecar_link import SidecarLink

HERE = Path(__file__).parent
ANSWER = {"answer": "We ship to Austria, within three days. " * 8, "sources": ["shipping.md"]}
QUESTION = "Do you ship parcels to Austria, and what does that cost?"
ROUNDS, TIMES = 15, 300


@pytest.fixture
def stack():
    with ExitStack() as made:
        yield made


def started(stack, *command, stream):
    process = subprocess.Popen(
        [sys.executable, *command], text=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        **{stream: subprocess.PIPE},
    )  # fmt: skip
    stack.enter_context(process)
    stack.callback(process.send_signal, signal.SIGKILL)
    told = getattr(process, stream)
    line = told.readline()
    while stream == "stderr" and "listens" not in line:  # a policy may have been warned of first
        line = told.readline()


def program(stack, path, **settings):
    cache = semcache.Cache(
        "bench", sidecar=f"unix://{path}", tenant="t", memory=0, timeouts=semcache.Timeouts(sidecar="60s"), **settings
    )  # fmt: skip
    stack.callback(cache.close)
    return cache


def seconds(work, times=TIMES):
    began = perf_counter()
    for _ in range(times):
        work()
    return (perf_counter() - began) / times


def never():
    raise AssertionError("it is to be a hit")


def test_native_memory_hit(pairs, stack, tmp_path):
    """A hit in the sidecar's memory, decoded; beside it the same client's round trip to a bare endpoint."""
    path, bare = tmp_path / "sidecar.sock", tmp_path / "bare.sock"
    started(
        stack, "-m", "semcache", "serve", "--port", "0", "--unix", str(path), "--upstream", "http://127.0.0.1:1",
        "--namespace", "bench", stream="stderr",
    )  # fmt: skip
    cache = program(stack, path)
    request = cache.request(QUESTION, function="bench")
    cache.get_or_load(request, lambda: ANSWER)
    assert cache.flush(30)
    link = SidecarLink(addresses_of(f"unix://{path}"))
    stack.callback(link.close)
    asked = []
    exchange = link.exchange
    cache.sidecar._link.exchange = lambda op, timeout: asked.append(op) or exchange(op, timeout)
    cache.get_or_load(request, never)
    found = exchange(asked[0], 60.0).values
    del cache.sidecar._link.exchange
    kept = tmp_path / "answer.msgpack"
    kept.write_bytes(packb([[True, found[0]]]))
    started(stack, str(HERE / "bare_asgi.py"), str(kept), str(bare), stream="stdout")
    other = SidecarLink(addresses_of(f"unix://{bare}"))
    stack.callback(other.close)
    times = {"ours": [], "bare": []}
    for _ in range(ROUNDS):
        times["ours"].append(seconds(lambda: cache.get_or_load(request, never)))
        times["bare"].append(seconds(lambda: other.exchange(asked[0], 60.0)))
    ratio = statistics.median(one / two for one, two in zip(times["ours"], times["bare"], strict=True))
    pairs.once(lambda: None)
    pairs.record(
        "native memory hit over a Unix socket: time / of a bare round trip of the same client",
        ratio=ratio, bar=2.0, higher_is_better=False,
        medians={name: statistics.median(one) * 1e6 for name, one in times.items()}, unit="us",
    )  # fmt: skip


@pytest.fixture
def near(stack, tmp_path):
    """A program at a sidecar with MiniLM, which has an answer to QUESTION and, to fill its scope, 300 more."""
    path = tmp_path / "near.sock"
    started(
        stack, "-m", "semcache", "serve", "--port", "0", "--unix", str(path), "--upstream", "http://127.0.0.1:1",
        "--namespace", "bench", "--embedder", "all-MiniLM-L6-v2", "--policy", "threshold:0.6", "--ttl-memory", "1h",
        "--timeout-semantic", "60s", stream="stderr",
    )  # fmt: skip
    cache = program(stack, path)
    texts = [QUESTION, *(f"What is known of article number {number} in the shop?" for number in range(300))]
    requests = [cache.request(text=text, function="bench") for text in texts]
    cache.get_or_load_many(requests, lambda places: [ANSWER] * len(places))
    assert cache.flush(300)
    last = cache.request(text="What is known of article number 299 in a shop?", function="bench")
    until = perf_counter() + 120
    while not (near := cache.explain(last).neighbours) or near[0].text != texts[-1]:
        assert perf_counter() < until
        sleep(0.2)  # the sidecar embeds behind
    return cache


WORDS = [
    "hello",
    "please",
    "kindly",
    "thanks",
    "again",
    "sorry",
    "perhaps",
    "also",
    "then",
    "maybe",
    "simply",
    "actually",
    "really",
    "well",
    "now",
    "quickly",
]


def reworded(number):
    """Return the question in other words, another for each number."""
    some = [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(3)]
    return f"{some[0]}, do you {some[1]} ship parcels to Austria, and what does that {some[2]} cost?"


@pytest.fixture(scope="module")
def embedder():
    from semcache.semantic.embedder import as_embedder

    made = as_embedder("all-MiniLM-L6-v2", "cpu")
    made(["warm"])
    return made


def asked(cache, number):
    return cache.request(text=reworded(number), function="bench")


def test_semantic_hit(pairs, near, embedder):
    """A near match, beside what embedding the same text takes here."""
    numbers = iter(range(10**6))
    times = {"ours": [], "bare": []}
    until = perf_counter() + 60
    while near.get_or_load(asked(near, next(numbers)), dict, when=lambda _: False) != ANSWER:
        assert perf_counter() < until
    for _ in range(120):
        text = reworded(next(numbers))
        request = near.request(text=text, function="bench")
        began = perf_counter()
        near.get_or_load(request, never)
        between = perf_counter()
        embedder([text])
        times["ours"].append(between - began)
        times["bare"].append(perf_counter() - between)
    ratio = statistics.median(times["ours"]) / statistics.median(times["bare"])
    pairs.once(lambda: None)
    pairs.record(
        "native semantic hit: time / of embedding its text alone", ratio=ratio, bar=1.15, higher_is_better=False,
        medians={name: statistics.median(one) * 1e3 for name, one in times.items()}, unit="ms",
    )  # fmt: skip


def test_concurrent_near_matches(pairs, near, embedder):
    """256 tasks at once, each another text, beside one batched encoding of the same; the longest wait in batches."""
    numbers = iter(range(len(WORDS) ** 3))

    async def all_of(texts):
        took = []

        async def one(text):
            began = perf_counter()
            found = await near.aget_or_load(near.request(text=text, function="bench"), never)
            took.append(perf_counter() - began)
            assert found == ANSWER

        began = perf_counter()
        await asyncio.gather(*map(one, texts))
        return perf_counter() - began, max(took)

    ratios, longest, medians = [], [], {"ours": [], "bare": []}
    for _ in range(7):
        texts = [reworded(next(numbers)) for _ in range(256)]
        whole, most = asyncio.run(all_of(texts))
        texts = [reworded(next(numbers)) for _ in range(256)]
        began = perf_counter()
        embedder(texts)
        bare = perf_counter() - began
        ratios.append(bare / whole)
        longest.append(most / bare)
        medians["ours"].append(256 / whole)
        medians["bare"].append(256 / bare)
    pairs.once(lambda: None)
    pairs.record(
        f"256 concurrent near matches: rate / of one batched encoding (the longest wait is "
        f"{statistics.median(longest):.1f} such batches, bar 3)",
        ratio=statistics.median(ratios), bar=0.85, higher_is_better=True,
        medians={name: statistics.median(one) for name, one in medians.items()}, unit="/s",
    )  # fmt: skip
