"""One call of a client: how it is sent, in which form its answer is kept, and how the SDK's own types are made of it.

Laws: what is kept is plain JSON data: of a plain call {"answer", "request_id"}, of a stream the list of a head and its
chunks; each serves both sorts of call, where the usage it was recorded with allows it. The SDK makes its types of it,
as it makes them of what comes over the wire, so unknown fields stay. Who loaded an answer is given the SDK's object.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from inspect import isawaitable
from threading import RLock
from typing import Any

from semcache.cache import Cache
from semcache.keep import Unkept
from semcache.model import Usage
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.shared import Stream

# What of a response's headers is kept with an answer.
_KEPT_HEADERS = ("x-request-id", "request-id")


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


class Asked:
    """A call on its way: `send` asks the origin through the SDK, `chunk_type` is what a stream's chunks are."""

    def __init__(
        self, cache: Cache, dialect: Dialect, settings: ClientOptions, streams: dict[Any, Stream], streams_lock: RLock,
        client: Any, send: Callable[[], Any], answer_type: Any, chunk_type: Any, *, with_usage: bool,
    ) -> None:  # fmt: skip
        self.cache = cache
        self.streams = streams
        self.streams_lock = streams_lock
        self.variant = with_usage
        self.client = client
        self.send = send
        self._dialect = dialect
        self._settings = settings
        self._answer_type = answer_type
        self.chunk_type = chunk_type
        self._loaded: tuple[Any, Any] = (None, None)
        self._found: tuple[Any, Any] = (None, None)

    @property
    def found(self) -> Any:
        """The stored answer that `accepts` took last."""
        return self._found[0]

    # Plain calls

    def load(self) -> Any:
        """Ask the origin; returns what is kept of its answer, or an awaitable of it."""
        sent = self.send()
        return self._awaited(sent) if isawaitable(sent) else self._kept(sent)

    async def _awaited(self, sent: Any) -> Any:
        return self._kept(await sent)

    def _kept(self, answer: Any) -> Any:
        try:
            kept = {"answer": self.tell(answer), "request_id": getattr(answer, "_request_id", None)}
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
        answer._request_id = value["request_id"] if isinstance(value, dict) else _request_id(value[0]["head"])  # noqa: SLF001 - as the SDK sets it
        return answer

    # Streams

    @staticmethod
    def tell(item: Any) -> Any:
        """Return the plain data of a head, a chunk or an answer: what came over the wire."""
        if isinstance(item, dict):
            return item
        return item.told() if isinstance(item, Head) else item.to_dict(mode="json", warnings=False)

    def replayed(self, value: Any) -> list[Any]:
        """Return head and chunks of a stored answer, the chunks made already, and what a generator returned."""
        known, items = self._found
        return [*items, None] if value is known else [*self._items(_bare(value)), None]

    def chunk(self, item: Any) -> Any:
        """Return the SDK's chunk of one that another caller pulled; one's own is there already."""
        return self._made(item, self.chunk_type) if isinstance(item, dict) else item

    def _items(self, value: Any) -> list[Any]:
        wanted = self.variant
        if isinstance(value, dict):
            name = value["request_id"]
            head = {"head": {} if name is None else dict.fromkeys(_KEPT_HEADERS, name), "with_usage": wanted}
            chunks = self._dialect.split(value["answer"], with_usage=wanted)
        else:
            head, *chunks = value
            if head["with_usage"] and not wanted:
                chunks = self._dialect.without_usage(chunks)
        return [head, *(self._made(chunk, self.chunk_type) for chunk in chunks)]

    # Both

    def accepts(self, value: Any) -> bool:
        """Say whether a stored answer serves this call; what is made of it then is kept for `taken` or `replayed`."""
        with suppress(Exception):  # not our form, or another version's: a miss, which is loaded over
            bare = _bare(value)
            is_plain = self.chunk_type is None
            needs_usage = isinstance(value, list) if is_plain else self.variant
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
        with suppress(ValueError):  # a stream that broke off tells none
            answer = self._answer_of(value)
            if self._settings.usage is None:
                return self._dialect.usage(answer)
            return self._settings.usage(self._made(answer, self._answer_type))
        return None

    def _answer_of(self, value: Any) -> Json:
        answer: Json = value["answer"] if isinstance(value, dict) else self._dialect.assemble(value[1:])
        return answer

    def _made(self, data: Any, kind: Any) -> Any:
        """Have the SDK make a type of its own of plain data, as it does with what comes over the wire.

        What is as the SDK's types say, to the letter, is made by pydantic, which takes a thirtieth of the time.
        """
        validate = getattr(kind, "model_validate", None)
        if validate is not None:
            with suppress(ValueError):  # pydantic's ValidationError is one
                return validate(data, strict=True)
        make = self.client._process_response_data  # noqa: SLF001 - there is no public way
        return make(data=data, cast_to=kind, response=_no_response(str(self.client.base_url)))


def _bare(stored: Any) -> Any:
    """Return a stored stream without what its generator returned, which is nothing."""
    return stored[:-1] if isinstance(stored, list) else stored


def _request_id(headers: Json) -> str | None:
    return next((headers[name] for name in _KEPT_HEADERS if name in headers), None)


@lru_cache(maxsize=8)
def _no_response(url: str) -> Any:
    """Return the response that the SDK names in its error, if what was kept does not validate."""
    import httpx  # the client is there, so it is loaded

    return httpx.Response(200, request=httpx.Request("POST", url))
