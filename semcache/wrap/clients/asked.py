"""One call of a client: how it is sent, in which form its answer is kept, and how the SDK's own types are made of it.

Laws: what is kept is plain data: of a plain call {"answer", "request_id"}, of a stream the list of a head and its
chunks, each the JSON text that came over the wire; each serves both sorts of call, where the usage it was recorded with
allows it. The SDK makes its types of it, as it makes them of what comes over the wire, so unknown fields stay. Who
loaded an answer is given the SDK's object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from inspect import isawaitable
from threading import RLock
from typing import Any, get_args

from semcache.cache import Cache
from semcache.keep import Unkept
from semcache.model import Tenant, Usage
from semcache.recording import Taken, UnrecordedError, owner_of, packed
from semcache.wrap.clients.dialect import Dialect, Json, id_in, whole, with_own, words
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.prefix import is_marked, unmarked
from semcache.wrap.clients.sdk import made_by_sdk
from semcache.wrap.shared import Stream

# What of a response's headers is kept with an answer.
_KEPT_HEADERS = ("x-request-id", "request-id")


class Endpoint:
    """One endpoint of a client and of its copies: what its calls have in common."""

    __slots__ = ("dialect", "settings", "stage", "streams", "streams_lock")

    def __init__(self, dialect: Dialect, settings: ClientOptions) -> None:
        self.dialect = dialect
        self.settings = settings
        self.stage = settings.stage or dialect.name
        self.streams: dict[Any, Stream] = {}
        self.streams_lock = RLock()  # the collector may close a half-read stream while this thread holds it


class Head:
    """The beginning of a stream: the response, before any chunk. `with_usage` says that its chunks tell their usage."""

    __slots__ = ("response", "with_usage")

    def __init__(self, response: Any, *, with_usage: bool) -> None:
        self.response = response
        self.with_usage = with_usage

    def told(self) -> Json:
        """Return what is kept of it."""
        headers = {name: self.response.headers[name] for name in _KEPT_HEADERS if name in self.response.headers}
        return {"head": headers, "with_usage": self.with_usage}


class Tap:
    """Stands before the decoder of a stream of the SDK's, and remembers the text of the event that it decoded last.

    None for a stream that decodes in another way. Nobody has begun to read the stream.
    """

    def __init__(self, stream: Any) -> None:
        self._decoder: Any = getattr(stream, "_decoder", None)
        self.text: str | None = None
        if self._decoder is not None:
            stream._decoder = self  # noqa: SLF001 - there is no public way

    def iter_bytes(self, chunks: Iterator[bytes]) -> Iterator[Any]:
        """Decode as the SDK does."""
        for event in self._decoder.iter_bytes(chunks):
            self.text = event.data
            yield event

    async def aiter_bytes(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Decode as the SDK does."""
        async for event in self._decoder.aiter_bytes(chunks):
            self.text = event.data
            yield event


class Asked:
    """A call on its way: `send` asks the origin through the SDK, `chunk_type` is what a stream's chunks are."""

    __slots__ = (
        "_answer_type", "_assembled", "_body", "_dialect", "_found", "_loaded", "_settings", "cache", "chunk_type",
        "client", "copied", "endpoint", "send", "tenant", "variant",
    )  # fmt: skip

    def __init__(
        self, endpoint: Endpoint, cache: Cache, client: Any, given: Mapping[str, Any], body: Json,
        send: Callable[[], Any], *, with_usage: bool,
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self.cache = cache
        self.variant = with_usage
        self.client = client
        self.send = send
        self.chunk_type = chunk_type(given) if given.get("stream") else None
        self._answer_type = given["cast_to"]
        self._body = body
        self._dialect = endpoint.dialect
        self._settings = endpoint.settings
        self._loaded: tuple[Any, Any] = (None, None)
        self._found: tuple[Any, Any] = (None, None)
        self._assembled: tuple[Any, Json] = (None, {})
        # What a recording takes: the caller may change what it has sent before it is answered.
        self.copied = packed(body) if cache.recorder.recording is not None else None
        self.tenant: Tenant | None = None

    @property
    def streams(self) -> dict[Any, Stream]:
        """The streams of the endpoint that are being read."""
        return self.endpoint.streams

    @property
    def streams_lock(self) -> RLock:
        """What guards them."""
        return self.endpoint.streams_lock

    @property
    def found(self) -> Any:
        """What was made of the stored answer that `accepts` took last: the answer, or head and chunks."""
        return self._found[1]

    # Plain calls

    def load(self) -> Any:
        """Ask the origin; returns what is kept of its answer, or an awaitable of it."""
        sent = self.send()
        return self._awaited(sent) if isawaitable(sent) else self._kept(sent)

    async def _awaited(self, sent: Any) -> Any:
        return self._kept(await sent)

    def _kept(self, answer: Any) -> Any:
        try:
            told = answer.to_dict(mode="json", warnings=False)
            kept = {"answer": told, "request_id": getattr(answer, "_request_id", None)}
        except Exception:  # noqa: BLE001 - what cannot be told is not stored, which the codec says; its caller has it
            return answer
        self._loaded = (kept, answer)
        return kept

    def taken(self, value: Any) -> Any:
        """Return the SDK's answer of what was loaded or found."""
        for known, answer in (self._loaded, self._found):
            if value is known:
                return answer
        return self._answer(_bare(value)) if isinstance(value, dict | list) else value

    def _answer(self, value: Any) -> Any:
        answer = self._made(self._answer_of(value), self._answer_type)
        own = value["request_id"] if isinstance(value, dict) else _request_id(value[0]["head"])
        object.__setattr__(answer, "_request_id", own)  # as the SDK sets it; pydantic would look for a field first
        return answer

    # Streams

    @staticmethod
    def tell(item: Any) -> Any:
        """Return what is kept of a head, or of a chunk with its text, or with what it was made of."""
        if not isinstance(item, tuple):
            return item.told() if isinstance(item, Head) else item
        chunk, text = item
        if text is None:
            text = chunk.to_dict(mode="json", warnings=False)
        return text if isinstance(text, str) else json.dumps(text)

    def replayed(self, value: Any) -> list[Any]:
        """Return head and chunks of a stored answer, the chunks made already, and what a generator returned."""
        known, items = self._found
        return [*items, None] if value is known else [*self._items(_bare(value)), None]

    def chunk(self, item: Any) -> Any:
        """Return the SDK's chunk of one that was pulled: one's own is there, of another caller's there is the text."""
        if isinstance(item, str):
            return self._made(item, self.chunk_type)
        return item[0] if isinstance(item, tuple) else item

    def _items(self, value: Any) -> list[Any]:
        wanted = self.variant
        if isinstance(value, dict):
            name = value["request_id"]
            head = {"head": {} if name is None else dict.fromkeys(_KEPT_HEADERS, name), "with_usage": wanted}
            chunks: list[Any] = self._dialect.split(
                value["answer"], with_usage=wanted, cut=whole if self._settings.replay_rate is None else words
            )
        else:
            head, *chunks = value
            if head["with_usage"] and not wanted:
                chunks = self._dialect.without_usage([json.loads(chunk) for chunk in chunks])
        return [head, *((self._made(chunk, self.chunk_type), chunk) for chunk in chunks)]

    # Both

    def says(self, value: Any) -> str | None:
        """Return the text of what is stored, an answer or chunks."""
        return said_in(self._dialect, value)

    def accepts(self, value: Any) -> bool:
        """Say whether a stored answer serves this call; what is made of it then is kept for `taken` or `replayed`."""
        with suppress(Exception):  # not our form, or another version's: a miss, which is loaded over
            bare = _bare(value)
            is_plain = self.chunk_type is None
            if not is_plain and isinstance(bare, list) and self.variant and not bare[0]["with_usage"]:
                return False
            needs_usage = isinstance(value, list) if is_plain else self.variant and isinstance(value, dict)
            if needs_usage and self._dialect.usage(self._answer_of(bare)) is None:
                return False
            self._found = (value, self._answer(bare) if is_plain else self._items(bare))
            return True
        return False

    def when(self, value: Any) -> bool | Unkept:
        """Say whether an answer, or a stream's head and chunks, is worth keeping, and why not."""
        try:
            answer = self._answer_of(value)
        except Exception:  # noqa: BLE001 - chunks that make no answer, in whatever way
            return Unkept("it did not end well")
        why_not = self._dialect.unkept(answer, tools=self._settings.tool_calls)
        if why_not is not None:
            return Unkept(why_not)
        return self._settings.when is None or self._settings.when(self._made(answer, self._answer_type))

    def usage(self, value: Any) -> Usage | None:
        """Return what an answer used."""
        if not isinstance(value, dict | list):
            return None
        with suppress(ValueError, KeyError):  # a stream that broke off tells none
            answer = self._answer_of(value)
            if self._settings.usage is None:
                return self._dialect.usage(answer)
            return self._settings.usage(self._made(answer, self._answer_type))
        return None

    def record(self, answer: Any) -> Taken:
        """Return what is to be recorded of the call, with what it was answered by."""
        if not isinstance(self.copied, bytes):
            raise self.copied or UnrecordedError("the cache began to record while it was asked")
        value = answer if answer is not None else self._found[0] if self._loaded[0] is None else self._loaded[0]
        chunks = [chunk for chunk in value if isinstance(chunk, str)] if isinstance(value, list) else []
        told = value.get("answer") if isinstance(value, dict) else None
        text = None if told is None else _text_of(self._dialect, told)
        return Taken(
            "llm", self.copied, partial(_as_chat, self._dialect),
            partial(_text_of, self._dialect, chunks) if chunks else lambda: text, owner_of(self.tenant),
            len(self.copied) + sum(map(len, chunks)) + len(text or ""),
        )  # fmt: skip

    def of_answer(self, told: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return what takes a stored answer as it takes the SDK's."""
        return lambda value: told(self._made(self._answer_of(_bare(value)), self._answer_type))

    def _answer_of(self, value: Any) -> Json:
        """Return the answer in what is stored; the chunks of a stream are added up once, however often one asks."""
        if isinstance(value, dict):
            answer: Json = value["answer"]
            return answer
        known, answer = self._assembled
        if known != value:
            answer = _assembled(self._dialect, value[1:])
            self._assembled = value, answer
        return answer

    def _made(self, data: Any, kind: Any) -> Any:
        """Have the SDK make a type of its own of plain data, as it does with what comes over the wire.

        What is as the SDK's types say, to the letter, is made by pydantic, which takes a thirtieth of the time.
        """
        if self._dialect.echoes:
            told = json.loads(data) if isinstance(data, str) else data
            data = with_own(told, self._body, self._dialect.echoes)
        is_text = isinstance(data, str)
        validate = _validators(kind)[is_text]
        if validate is not None:
            with suppress(ValueError):  # pydantic's ValidationError is one
                return validate(data, strict=True)
        return made_by_sdk(self.client, json.loads(data) if is_text else data, kind)


def said_in(dialect: Dialect, value: Any) -> str | None:
    """Return the text of what is stored, an answer or chunks."""
    is_answer = isinstance(value, dict)
    return _text_of(dialect, value["answer"] if is_answer else [one for one in value if isinstance(one, str)])


def _as_chat(dialect: Dialect, body: Json) -> Json:
    """Return a call as a recording has it: breakpoints of the provider's cache change no answer."""
    return dialect.as_chat(unmarked(body) if is_marked(body) else body)


def _text_of(dialect: Dialect, told: Json | list[str]) -> str | None:
    """Return what an answer says, or the chunks of a stream."""
    with suppress(Exception):  # an answer that nobody here knows, a stream that broke off
        return dialect.text(_assembled(dialect, told) if isinstance(told, list) else told)
    return None


def _assembled(dialect: Dialect, chunks: list[str]) -> Json:
    return dialect.assemble(json.loads(f"[{','.join(chunks)}]"))


def id_of(kept: Any) -> str | None:
    """Return the id that a provider gave an answer, as it is kept; of a stream its first event tells it."""
    with suppress(Exception):  # an answer that nobody here knows
        return id_in(kept["answer"] if isinstance(kept, dict) else json.loads(kept[1]))
    return None


def chunk_type(given: Mapping[str, Any]) -> Any:
    """Return what the chunks of a stream are: the argument of the SDK's stream class."""
    return next(iter(get_args(given.get("stream_cls"))), None)


def _bare(stored: Any) -> Any:
    """Return a stored stream without what its generator returned, which is nothing."""
    return stored[:-1] if isinstance(stored, list) else stored


def _request_id(headers: Json) -> str | None:
    return next((headers[name] for name in _KEPT_HEADERS if name in headers), None)


@lru_cache(maxsize=64)
def _validators(kind: Any) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """Return what makes a type of the SDK's of plain data, and of JSON text, as pydantic does; None for older ones."""
    if hasattr(kind, "model_validate_json"):
        return kind.model_validate, kind.model_validate_json
    import pydantic  # of the SDK's

    adapter = getattr(pydantic, "TypeAdapter", None)
    if adapter is None:
        return None, None
    made = adapter(kind)
    return made.validate_python, made.validate_json
