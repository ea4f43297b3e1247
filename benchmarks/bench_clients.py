"""What does a cached client cost, beside the client itself, and beside the caches of others?

The transport is in this process, so what is measured is the SDK and us, and no network.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from itertools import count
from time import perf_counter

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

import semcache
from semcache.testing import StandIn

ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m",
    "choices": [{
        "index": 0, "logprobs": None, "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Yes, to all of Austria, within three days. " * 4, "refusal": None},
    }],
    "usage": {"prompt_tokens": 24, "completion_tokens": 40, "total_tokens": 64},
}  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "You answer for a shop that sells tea."},
    {"role": "user", "content": "Do you ship to Austria?"},
]
CHUNKS = 200


def _event(delta, finish=None):
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode()


EVENTS = [
    _event({"role": "assistant", "content": ""}),
    *(_event({"content": f"word{number} "}) for number in range(CHUNKS)),
    _event({}, "stop"),
    b"data: [DONE]\n\n",
]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A stream whose events are there at once."""

    def __iter__(self):
        yield from EVENTS

    async def __aiter__(self):
        for event in EVENTS:
            yield event


def answered(request):
    """Answer as the model's server does."""
    if json.loads(request.content).get("stream"):
        return httpx.Response(200, stream=Body(), headers={"content-type": "text/event-stream"})
    return httpx.Response(200, json=ANSWER, headers={"x-request-id": "req_1"})


@pytest.fixture
def bare():
    transport = httpx.MockTransport(answered)
    with openai.OpenAI(base_url="http://m/v1", api_key="k", http_client=httpx.Client(transport=transport)) as client:
        yield client


@pytest.fixture
def abare():
    transport = httpx.MockTransport(answered)
    return openai.AsyncOpenAI(base_url="http://m/v1", api_key="k", http_client=httpx.AsyncClient(transport=transport))


def ask(client):
    return client.chat.completions.create(model="m", messages=MESSAGES)


def test_hit_beside_the_sdk(pairs, bare):
    """The bar: 15 times faster than the SDK's own call over a transport in this process."""
    client = semcache.cached(bare, semcache.Cache())
    ask(client)
    pairs(
        "times faster: memory hit of the OpenAI client, than the SDK's own call over a mock transport",
        lambda: ask(client), lambda: ask(bare), bar=15, higher_is_better=True, number=100,
    )  # fmt: skip


def test_hit_over_validating(pairs, bare):
    """The bar: 40 us more than pydantic takes to make the SDK's type of the stored answer."""
    client = semcache.cached(bare, semcache.Cache())
    ask(client)
    ours, validating = _in_turn(
        lambda: ask(client), lambda: ChatCompletion.model_validate(ANSWER, strict=True), number=500
    )
    over_us = (statistics.median(ours) - statistics.median(validating)) * 1e6
    pairs.record(
        "memory hit of the OpenAI client, us over validating the stored answer", ratio=over_us, bar=40.0,
        medians={"ours": statistics.median(ours) * 1e6, "bare": statistics.median(validating) * 1e6}, unit="us",
    )  # fmt: skip
    pairs.once(lambda: ask(client))


def test_async_hit_beside_the_sdk(pairs, abare):
    """The bar: 15 times faster than the SDK's own call over a transport in this process."""
    client = semcache.cached(abare, semcache.Cache())
    with asyncio.Runner() as runner:
        runner.run(ask(client))

        async def repeat(one):
            for _ in range(50):
                await ask(one)

        pairs(
            "times faster: 50 memory hits of the AsyncOpenAI client, than the SDK's own calls over a mock transport",
            lambda: runner.run(repeat(client)), lambda: runner.run(repeat(abare)), bar=15, higher_is_better=True,
            number=2, unit="ms",
        )  # fmt: skip


def test_hit_beside_langchain(pairs, bare):
    """The bar: 5 times faster than a hit of LangChain's InMemoryCache."""
    caches = pytest.importorskip("langchain_core.caches")
    models = pytest.importorskip("langchain_core.language_models")
    client = semcache.cached(bare, semcache.Cache())
    model = models.FakeListChatModel(responses=["Yes."], cache=caches.InMemoryCache())
    turns = [("system", MESSAGES[0]["content"]), ("user", MESSAGES[1]["content"])]
    ask(client)
    model.invoke(turns)
    pairs(
        "times faster: memory hit of the OpenAI client, than of LangChain's InMemoryCache",
        lambda: ask(client), lambda: model.invoke(turns), bar=5, higher_is_better=True, number=100,
    )  # fmt: skip


def test_hit_beside_litellm(pairs, bare, monkeypatch):
    """The bar: 100 times faster than a local hit of LiteLLM's completion(caching=True)."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it is fetched when it is imported
    litellm = pytest.importorskip("litellm")
    from litellm.caching.caching import Cache

    litellm.cache = Cache(type="local")
    client = semcache.cached(bare, semcache.Cache())
    ask(client)
    with StandIn() as models:

        def theirs():
            return litellm.completion(
                model="openai/m", messages=MESSAGES, caching=True, api_base=models.openai_url, api_key="k"
            )

        theirs()
        pairs(
            "times faster: memory hit of the OpenAI client, than of LiteLLM's completion(caching=True), local",
            lambda: ask(client), theirs, bar=100, higher_is_better=True, number=20,
        )  # fmt: skip
        assert models.calls == 1


def test_streamed_miss(pairs, bare):
    """The bars: 5% more for each chunk, and 1 ms more until the first."""
    client = semcache.cached(bare, semcache.Cache())
    numbers = count()

    def read(one):
        asked = [{"role": "user", "content": f"question {next(numbers)}"}]
        began = perf_counter()
        chunks = iter(one.chat.completions.create(model="m", messages=asked, stream=True))
        next(chunks)
        first = perf_counter()
        for _ in chunks:
            pass
        return first - began, (perf_counter() - first) / CHUNKS

    _record_streams(pairs, "OpenAI", [(read(client), read(bare)) for _ in range(61)])
    pairs.once(lambda: read(client))


def test_async_streamed_miss(pairs, abare):
    """The bars: 5% more for each chunk, and 1 ms more until the first."""
    client = semcache.cached(abare, semcache.Cache())
    numbers = count()

    async def read(one):
        asked = [{"role": "user", "content": f"question {next(numbers)}"}]
        began = perf_counter()
        chunks = aiter(await one.chat.completions.create(model="m", messages=asked, stream=True))
        await anext(chunks)
        first = perf_counter()
        async for _ in chunks:
            pass
        return first - began, (perf_counter() - first) / CHUNKS

    with asyncio.Runner() as runner:
        _record_streams(
            pairs, "AsyncOpenAI", [(runner.run(read(client)), runner.run(read(abare))) for _ in range(61)]
        )  # fmt: skip
        pairs.once(lambda: runner.run(read(client)))


def _record_streams(pairs, client, read):
    """Write down what a chunk costs; how much later the first one comes stands beside it."""
    later_ms = statistics.median(ours[0] - theirs[0] for ours, theirs in read) * 1e3
    pairs.record(
        f"streamed miss of the {client} client, a chunk / the SDK's own (the first comes {later_ms:.2f} ms later)",
        ratio=statistics.median(ours[1] / theirs[1] for ours, theirs in read), bar=1.05,
        medians={
            "ours": statistics.median(ours[1] for ours, _ in read) * 1e6,
            "bare": statistics.median(theirs[1] for _, theirs in read) * 1e6,
        },
        unit="us",
    )  # fmt: skip


def _in_turn(ours, bare, *, number):
    """Time two jobs in turn."""
    times = ([], [])
    for _ in range(31):
        for job, noted in zip((ours, bare), times, strict=True):
            began = perf_counter()
            for _ in range(number):
                job()
            noted.append((perf_counter() - began) / number)
    return times
