"""The SDKs' clients in both colours, told what to ask in one way."""

from __future__ import annotations

import asyncio
import contextvars
from importlib.util import find_spec
from typing import Any

import anthropic
import openai

import semcache

ASKED = "Do you ship to Austria?"


class OneWay:
    """An embedder to which all texts are the same: only their scopes tell them apart."""

    identity = "one-way"
    dimension = 2

    def __call__(self, texts):
        import numpy as np

        return np.tile(np.array([1.0, 0.0], dtype=np.float32), (len(texts), 1))


async def _settled():
    """Let transports that were told to close do so: what is scheduled in a loop that is closed never runs."""
    for _ in range(20):
        await asyncio.sleep(0)


class Asking:
    """A protocol in a colour: makes clients, asks them, reads their streams; `event` tells how the latest was answered.

    `way` is one of WAYS. Async clients live in one loop, from the first call to `close`.
    """

    def __init__(self, way, is_async):
        self.way = way
        self.package = way.partition("-")[0]
        self.is_async = is_async
        self.event = None
        self._made = []
        self._runner = asyncio.Runner() if is_async else None

    def close(self):
        """Close the clients, and the loop."""
        for client in self._made:
            if self._runner is None:
                client.close()
            else:
                self._runner.run(client.close())
        if self._runner is not None:
            self._runner.run(_settled())
            self._runner.close()

    def run(self, coroutine):
        """Run something of a test's own in the loop, and note how its last call was answered."""

        async def noted():
            result = await coroutine
            self.event = semcache.last()
            return result

        return self._runner.run(noted(), context=contextvars.copy_context())

    def call(self, function, *args, **parameters):
        """Call what is of the clients' colour, and note how its last call was answered."""
        if self.is_async:

            async def awaited():
                return await function(*args, **parameters)

            return self.run(awaited())
        result = function(*args, **parameters)
        self.event = semcache.last()
        return result

    def client(self, models, **settings):
        """Make a client of the SDK's, uncached."""
        settings = {"api_key": "none", "max_retries": 0, "base_url": self.url(models)} | settings
        self._made.append(self.kind(**settings))
        return self._made[-1]

    def url(self, models):
        return models.openai_url if self.package == "openai" else models.anthropic_url

    def cached(self, models, cache, *, client_settings=None, **options):
        return semcache.cached(self.client(models, **(client_settings or {})), cache, **options)

    def create(self, client, asked: str | list[Any] = "Do you ship?", **parameters):
        """Call the client's own method; returns what that returns, an awaitable where it is async."""
        return self.calls(client).create(**self.parameters(asked, **parameters))

    def calls(self, client):
        """Return the resource that is asked."""
        if self.way == "openai":
            return client.chat.completions
        return client.responses if self.way == "openai-responses" else client.messages

    def parameters(self, asked, **parameters):
        """Return what is asked as the parameters of a call."""
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        if self.way == "openai-responses":
            return {"model": "m", "input": [_item(message) for message in messages]} | parameters
        limit = {"max_tokens": 100} if self.way == "anthropic" else {}
        return {"model": "m", "messages": messages, **limit} | parameters

    def ask(self, client, *args, **parameters):
        """Ask for a plain answer."""
        return self.call(self.create, client, *args, **parameters)

    def read(self, client, *args, limit=None, usage=False, **parameters):
        """Ask for a stream and return its chunks, or its first `limit`, then close it."""
        if usage and self.way == "openai":
            parameters["stream_options"] = {"include_usage": True}
        if self.is_async:
            return self.run(self._aread(client, limit, *args, **parameters))
        chunks = []
        with self.create(client, *args, stream=True, **parameters) as stream:
            while limit is None or len(chunks) < limit:
                chunk = next(stream, None)
                if chunk is None:
                    break
                chunks.append(chunk)
        self.event = semcache.last()
        return chunks

    async def _aread(self, client, limit, *args, **parameters):
        chunks = []
        async with await self.create(client, *args, stream=True, **parameters) as stream:
            while limit is None or len(chunks) < limit:
                chunk = await anext(stream._iterator, None)
                if chunk is None:
                    break
                chunks.append(chunk)
        return chunks

    def text(self, answer):
        """Return what a plain answer says."""
        if self.way == "openai-responses":
            return answer.output_text
        return answer.choices[0].message.content if self.way == "openai" else answer.content[0].text

    def texts(self, answers):
        return [self.text(answer) for answer in answers]

    def streamed(self, chunks):
        """Return what the chunks of a stream say."""
        if self.way == "openai":
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        if self.way == "openai-responses":
            return "".join(chunk.delta for chunk in chunks if chunk.type == "response.output_text.delta")
        return "".join(getattr(chunk.delta, "text", "") for chunk in chunks if chunk.type == "content_block_delta")

    def types(self):
        """Return what plain answers and chunks are."""
        if self.way == "openai":
            from openai.types.chat import ChatCompletion, ChatCompletionChunk

            return ChatCompletion, ChatCompletionChunk
        if self.way == "openai-responses":
            from openai.types.responses import Response

            return Response, object
        from anthropic.types import Message

        return Message, object

    @property
    def kind(self):
        """The SDK's class."""
        module = openai if self.package == "openai" else anthropic
        name = {"openai": "OpenAI", "anthropic": "Anthropic"}[self.package]
        return getattr(module, f"Async{name}" if self.is_async else name)

    @property
    def server_error(self):
        return openai.InternalServerError if self.package == "openai" else anthropic.InternalServerError

    @property
    def rate_limit(self):
        return openai.RateLimitError if self.package == "openai" else anthropic.RateLimitError


def calls_of(texts, **parameters):
    """Tell calls by their texts, as all who speak in messages take them."""
    more = {"model": "m", "max_tokens": 100} | parameters
    return [{"messages": [{"role": "user", "content": text}], **more} for text in texts]


def _item(message):
    """Return a message as an item of the responses API's input."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [{**part, "type": "input_text"} if part["type"] == "text" else part for part in content]
    return {**message, "content": parts}


# The first SDKs that are supported have no responses.
HAS_RESPONSES = find_spec("openai.types.responses") is not None
WAYS = ["openai", "anthropic", *(["openai-responses"] if HAS_RESPONSES else [])]
EVERY = [(way, is_async) for way in WAYS for is_async in (False, True)]
EVERY_WITH_MESSAGES = [(way, is_async) for way, is_async in EVERY if way != "openai-responses"]
EVERY_ID = [f"{way}-{'async' if is_async else 'sync'}" for way, is_async in EVERY]
