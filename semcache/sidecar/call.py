"""A proxied call on its way: what is kept of its answer, and how one that was found is told to who asks now.

Of a plain answer its body is kept, of a stream its head and its blocks, each as it came. One kind answers both kinds of
call, where the usage it was recorded with allows it, as with cached clients.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from threading import RLock
from typing import Any, Protocol

from semcache.cache import Cache
from semcache.keep import Unkept
from semcache.model import Tenant, Usage
from semcache.recording import Taken, UnrecordedError, owner_of, packed
from semcache.sidecar.events import CONTENT_TYPE, Blocks, bytes_of, chunks_of, is_done, told
from semcache.sidecar.headers import KEPT, Headers
from semcache.sidecar.upstream import Answer, Opened
from semcache.wrap.clients.dialect import Dialect, Json, id_in, whole, with_own
from semcache.wrap.shared import Stream

# Whose streams end with a mark; the others' last event says that it is the last.
_ENDS_WITH_MARK = "openai.chat.completions"


class Place(Protocol):
    """What the calls of one endpoint share: `streams` are those being read, and `keeps_tools` says what is kept."""

    dialect: Dialect
    cache: Cache
    keeps_tools: bool
    streams: dict[Any, Stream]
    streams_lock: RLock


class Head:
    """The beginning of a stream: the response, before any block; `with_usage` says that its chunks tell their usage."""

    __slots__ = ("headers", "response", "with_usage")

    def __init__(self, response: Opened, *, with_usage: bool) -> None:
        self.response = response
        self.headers = response.headers
        self.with_usage = with_usage

    def told(self) -> Json:
        """Return what is kept of it."""
        return {"head": kept_headers(self.headers), "with_usage": self.with_usage}


class Proxied:
    """A call that was posted to an endpoint: `send` asks the server behind, and returns its open response."""

    __slots__ = (
        "_assembled", "_body", "_dialect", "_found", "answer", "cache", "copied", "is_stream", "place", "send",
        "tenant", "variant", "was_sent", "with_usage",
    )  # fmt: skip

    def __init__(
        self, place: Place, body: Json, send: Callable[[], Awaitable[Opened]] | None, *, is_stream: bool,
        with_usage: bool,
    ) -> None:  # fmt: skip
        self.place = place
        self.cache = place.cache
        self.send = send
        self.is_stream = is_stream
        # Readers of one stream want it in one form, and take what the others take.
        self.variant: Any = with_usage
        self.with_usage = with_usage
        self._body = body
        self._dialect = place.dialect
        self._found: tuple[Any, Any] = (None, None)
        self._assembled: tuple[Any, Json] = (None, {})
        self.was_sent = False
        self.answer: Answer | None = None  # what this very call has loaded
        self.copied = packed(body) if self.cache.recorder.recording is not None else None
        self.tenant: Tenant | None = None

    @property
    def streams(self) -> dict[Any, Stream]:
        """The streams of the endpoint that are being read."""
        return self.place.streams

    @property
    def streams_lock(self) -> RLock:
        """What guards them."""
        return self.place.streams_lock

    # Loading

    async def load(self) -> Any:
        """Ask the server behind for a plain answer; returns what is kept of it. Raises AnsweredError."""
        assert self.send is not None  # noqa: S101 - else it was made to be answered from memory
        self.was_sent = True
        self.answer = await (await self.send()).whole()
        body = self.answer.body
        try:
            return {"body": body.decode(), "head": kept_headers(self.answer.headers)}
        except UnicodeDecodeError:
            return body

    async def begin(self) -> AsyncGenerator[Any, None]:
        """Yield the head of a stream and its blocks. Raises AnsweredError."""
        assert self.send is not None  # noqa: S101 - as above
        self.was_sent = True
        response = await self.send()
        if not response.is_success:
            await response.whole()  # which raises
        blocks = Blocks()
        try:
            yield Head(response, with_usage=self.with_usage)
            async for data in response.pieces():
                for block in blocks.feed(data):
                    yield block
            rest = blocks.rest()
            if rest:
                yield rest
        finally:
            response.close()

    # What `Reading` asks of it

    @staticmethod
    def tell(item: Any) -> Any:
        """Return what is kept of a head; a block is kept as it is."""
        return item.told() if isinstance(item, Head) else item

    def replayed(self, value: Any) -> list[Any]:
        """Return head and blocks of a stored answer, and what a generator returned."""
        known, items = self._found
        return [*(items if value is known else self._blocks(value)), None]

    # What was found

    def accepts(self, value: Any) -> bool:
        """Say whether a stored answer serves this call; what is told of it is then in `found`."""
        with suppress(Exception):  # not our form, or another version's: a miss, which is loaded over
            self._found = (value, self._blocks(value) if self.is_stream else self._plain(value))
            return True
        return False

    @property
    def found(self) -> Any:
        """What was made of the answer that `accepts` took last: (head, body), or head and blocks."""
        return self._found[1]

    def plain(self, value: Any) -> tuple[Headers, bytes]:
        """Return headers and body of what a plain call was answered with, by whomever it was loaded."""
        known, made = self._found
        return made if value is known else self._plain(value)

    def _plain(self, value: Any) -> tuple[Headers, bytes]:
        echoes = self._dialect.echoes
        if isinstance(value, dict):
            body: str = value["body"]
            if echoes:
                body = _dumped(with_own(json.loads(body), self._body, echoes))
            return _headers(value["head"]), bytes_of(body)
        answer = self._answer_of(value)
        if self._dialect.usage(answer) is None:
            raise ValueError("its stream told no usage")
        head = {**value[0]["head"], "content-type": "application/json"}
        return _headers(head), bytes_of(_dumped(with_own(answer, self._body, echoes) if echoes else answer))

    def _blocks(self, value: Any) -> list[Any]:
        echoes, wanted = self._dialect.echoes, self.with_usage
        if isinstance(value, dict):
            answer = json.loads(value["body"])
            if wanted and self._dialect.usage(answer) is None:
                raise ValueError("it told no usage")
            head = {"head": {**value["head"], "content-type": CONTENT_TYPE}, "with_usage": wanted}
            chunks = self._dialect.split(answer, with_usage=wanted, cut=whole)
        else:
            head, *blocks = value if value[-1] is not None else value[:-1]
            if wanted and not head["with_usage"]:
                raise ValueError("its stream told no usage")
            leaves_out = head["with_usage"] and not wanted
            if not leaves_out and not echoes:
                return [head, *blocks]
            chunks = chunks_of(blocks)
            chunks = self._dialect.without_usage(chunks) if leaves_out else chunks
        return [head, *told(with_own(chunk, self._body, echoes) if echoes else chunk for chunk in chunks)]

    # What becomes of it

    def when(self, value: Any) -> bool | Unkept:
        """Say whether an answer, or a stream's head and blocks, is worth keeping, and why not."""
        try:
            answer = self._answer_of(value)
        except Exception:  # noqa: BLE001 - what makes no answer, in whatever way
            return Unkept("it is no answer that is known, or did not end well")
        if isinstance(value, list) and self._dialect.name == _ENDS_WITH_MARK and not _is_whole(value):
            return Unkept("it ended without the mark of its end")
        why_not = self._dialect.unkept(answer, tools=self.place.keeps_tools)
        return True if why_not is None else Unkept(why_not)

    def usage(self, value: Any) -> Usage | None:
        """Return what an answer used."""
        with suppress(Exception):  # a stream that broke off tells none
            return self._dialect.usage(self._answer_of(value))
        return None

    def says(self, value: Any) -> str | None:
        """Return the text of what is stored."""
        with suppress(Exception):  # an answer that nobody here knows, a stream that broke off
            return self._dialect.text(self._answer_of(value))
        return None

    def identify(self, value: Any) -> str | None:
        """Return the id that its provider gave an answer; of a stream its first event tells it."""
        with suppress(Exception):  # an answer that nobody here knows
            return id_in(json.loads(value["body"]) if isinstance(value, dict) else chunks_of(value[1:2])[0])
        return None

    def record(self, answer: Any) -> Taken:
        """Return what is to be recorded of the call, with what it was answered by."""
        if not isinstance(self.copied, bytes):
            raise self.copied or UnrecordedError("the cache began to record while it was asked")
        value = self._found[0] if answer is None else answer
        text = self.says(value)
        return Taken(
            "llm", self.copied, self._dialect.as_chat, lambda: text, owner_of(self.tenant),
            len(self.copied) + len(text or ""),
        )  # fmt: skip

    def _answer_of(self, value: Any) -> Json:
        """Return the answer in what is stored, read or added up once, however often one asks."""
        known, answer = self._assembled
        if known is not value or known is None:
            if isinstance(value, dict):
                answer = json.loads(value["body"])
            else:
                answer = self._dialect.assemble(chunks_of(one for one in value[1:] if isinstance(one, str)))
            self._assembled = value, answer
        return answer


def _is_whole(items: list[Any]) -> bool:
    blocks = [item for item in items[-3:] if isinstance(item, str)]
    return any(map(is_done, blocks))


def kept_headers(headers: Headers) -> dict[str, str]:
    """Return what is kept of an answer's headers."""
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in KEPT}


def _headers(kept: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1")) for name, value in kept.items()]


def head_headers(head: Json) -> Headers:
    """Return the headers of a stored stream's head."""
    return _headers(head["head"])


def _dumped(told: Json) -> str:
    return json.dumps(told, separators=(",", ":"))
