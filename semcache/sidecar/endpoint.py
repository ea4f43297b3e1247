"""One proxied endpoint: its calls are looked up, and those that miss are sent to the server behind.

Laws: as those of cached clients: everything that was sent is in the key but what docs/sidecar.md lists (law 1); what
is not understood goes by, and the server behind says what is wrong with it; nothing of ours fails a call (law 10).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock
from time import perf_counter_ns
from typing import Any, NamedTuple

from semcache.cache import Cache
from semcache.chain import Origin
from semcache.codec import unpack
from semcache.commands import STRICTNESS
from semcache.context import context
from semcache.errors import UnkeyableError
from semcache.events import Event
from semcache.explain import explain
from semcache.finding import find, probe
from semcache.keys import canonical, digest
from semcache.lookup import finish, load, lookup
from semcache.model import Facets, Request
from semcache.plan import Outcome, Plan, arun
from semcache.sidecar.asked import Asked, Explained, Found, Pieces, parsed, tags_in
from semcache.sidecar.call import Head, Proxied, head_headers
from semcache.sidecar.events import bytes_of, text_of
from semcache.sidecar.headers import SHARED, Headers
from semcache.sidecar.refusals import BAD, RefusedError, not_cached
from semcache.sidecar.seen import Seen, last_text
from semcache.sidecar.settings import Server
from semcache.sidecar.upstream import Answer, AnsweredError, Opened, Upstream
from semcache.sidecar.wishes import NONE, Wishes
from semcache.tiers.memory import Kept
from semcache.wrap.clients.conversation import Meant, passed_by
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.noting import bypass_event, memory_event
from semcache.wrap.shared import AsyncGeneratorOrigin, End, Stream
from semcache.wrap.stream import Reading

_MOST_KNOWN = 8192
# So many answers, of so many bytes each, are kept as they go out: 32 MB at most.
_MOST_READY, _LARGEST_READY = 1024, 16 << 10
# So many blocks of a stream are read before somebody asks for them.
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a call that was made before in the same words: enough to answer it from memory."""

    key: bytes
    is_stream: bool
    with_usage: bool
    seen: Seen | None = None


class Ready(NamedTuple):
    """An answer in memory, as it goes to callers who ask in the words that it is known by."""

    kept: Kept
    head: Headers
    body: bytes


class Endpoint:
    """The calls of one dialect, in one cache."""

    def __init__(
        self, cache: Cache, dialect: Dialect, settings: ClientOptions, upstream: Upstream, longest: float, *,
        keeps_texts: bool = True,
    ) -> None:  # fmt: skip
        self.cache = cache
        self._upstream = upstream
        self.dialect = dialect
        self.keeps_tools = settings.tool_calls
        self.streams: dict[Any, Stream] = {}
        self.streams_lock = RLock()
        self._settings = settings
        self._longest = longest
        self._keeps_texts = keeps_texts
        self._prefix = cache.prefix(dialect.name, settings.version)
        self._known: dict[bytes, Known] = {}
        self._ready: dict[bytes, Ready] = {}

    # From memory

    def remembered(self, asked: Asked) -> Found | None:
        """Answer from memory, if the same words were asked before; recorded."""
        wishes, cache = asked.wishes, self.cache
        if not cache.is_read or (wishes.mode is not None and STRICTNESS[wishes.mode] > STRICTNESS["exact"]):
            return None
        began = perf_counter_ns()
        words = self._words(asked)
        known = self._known.get(words)
        kept = None if known is None else cache.probe(known.key)
        if known is None or kept is None or cache.now() - kept.since > wishes.oldest:
            return None
        recorder = cache.recorder
        keyed = perf_counter_ns()
        call = None
        ready = self._ready.get(words) if recorder.recording is None else None
        if ready is None or ready.kept is not kept:
            call = self._call(asked, known, kept)
            if call is None:
                return None
            ready = self._make_ready(words, kept, call)
            if ready is None:
                return None
        key_ns, memory_ns = keyed - began, perf_counter_ns() - keyed
        event = memory_event(cache, self.dialect.name, known.key, kept, key_ns, memory_ns, self.dialect.name)
        event.call = None if recorder.recording is None else call
        event.seen = known.seen
        recorder.lookup(event)
        return Found(event, ready.head, body=ready.body, is_ours=True)

    def _call(self, asked: Asked, known: Known, kept: Kept) -> Proxied | None:
        """Return a call with what memory has for it; None where it is of no use."""
        cache = self.cache
        body = json.loads(asked.body) if self.dialect.echoes or cache.recorder.recording is not None else {}
        call = Proxied(self, body, None, is_stream=known.is_stream, with_usage=known.with_usage)
        call.tenant = asked.whose
        try:
            value = unpack(kept.body) if kept.body is not None else cache.chain.codec.decode(kept.value)
        except Exception:  # noqa: BLE001 - the lookup meets it again, counts it and overwrites it
            return None
        return call if call.accepts(value) else None

    def _make_ready(self, words: bytes, kept: Kept, call: Proxied) -> Ready | None:
        """Make an answer as it goes to callers who ask in these words, and keep small ones so."""
        try:
            head, body = _whole(call)
        except UnicodeEncodeError:  # what no caller could be sent
            return None
        ready = Ready(kept, head, body)
        if len(body) <= _LARGEST_READY and len(kept.value) <= _LARGEST_READY:
            if len(self._ready) >= _MOST_READY:
                self._ready.clear()
            self._ready[words] = ready
        return ready

    def _words(self, asked: Asked) -> bytes:
        if not asked.words:  # a body may be long: it is digested once
            asked.words = digest(
                self._prefix, asked.where, asked.body, asked.tenant.encode(), asked.wishes.tenant.encode(),
                asked.wishes.namespace.encode(),
            )  # fmt: skip
        return asked.words

    # For who operates

    async def explain(self, asked: Asked) -> Explained:
        """Tell how a call would be answered now; nothing is loaded. Raises RefusedError."""
        body = parsed(asked.body)
        meant = self._meant(asked, body, self._upstream.of(body.get("model")))
        if isinstance(meant, str):
            return Explained(asked.whose, reason=meant)
        _, request = meant
        told = await arun(explain(self.cache.chain.tiers, self.cache.chain.codec.decode, self.cache.blocks, request))
        return Explained(asked.whose, request.key, request.mode, request.text, request.exact_only or "", [told])

    async def put(self, asked: Asked, text: str, *, is_pinned: bool) -> bytes:
        """Put a text as the answer to a call; returns its key. Raises RefusedError, and as `Cache.put` does."""
        from semcache.sidecar.curated import answer_of

        body = parsed(asked.body)
        meant = self._meant(asked, body, self._upstream.of(body.get("model")))
        if isinstance(meant, str):
            raise RefusedError(BAD, f"such a call goes by the cache: {meant}", "put it for one that is looked up")
        _, request = meant
        await self.cache.aput(request, value=answer_of(self.dialect.name, body, text), pinned=is_pinned)
        return request.key

    # By a lookup

    async def answer(self, asked: Asked) -> Found:
        """Answer a call which memory did not. Raises AnsweredError, and RefusedError."""
        try:
            body = parsed(asked.body)
        except (ValueError, RecursionError):
            return await self._past(asked, {}, "no JSON that is known")
        asked.seen = Seen(asked.whose, last_text(body) if self._keeps_texts else "")
        meant = self._meant(asked, body, self._upstream.of(body.get("model")))
        if isinstance(meant, str):
            return await self._past(asked, body, meant)
        call, request = meant
        is_stream, with_usage = call.is_stream, call.with_usage
        self._learn(asked, Known(request.key, is_stream, with_usage, asked.seen))
        event = self.cache.event(request)
        event.seen = asked.seen
        if call.copied is not None:
            event.call = call
        if request.mode == "off" and not asked.wishes.is_only_cached:
            reason = "no-store" if asked.wishes.is_unstored else self.cache.chain.why_off
            return await self._past(asked, body, reason, event)
        ways = self._found_only if asked.wishes.is_only_cached else self._streamed if is_stream else self._plain
        return await ways(call, request, event)

    def _meant(self, asked: Asked, body: Json, server: Server) -> tuple[Proxied, Request] | str:
        """Return a call and what it means to the cache, or why it goes by."""
        streams = body.get("stream")
        if not isinstance(streams, bool | None):  # some servers take it for one, some do not
            return "not understood: stream"
        is_stream = streams is True
        try:
            with_usage = is_stream and self.dialect.asks_usage(body)
            why_not = passed_by(self.dialect, self._settings, body)
            call = Proxied(self, body, partial(asked.send, server, None), is_stream=is_stream, with_usage=with_usage)
            return why_not or (call, self._request(asked, server, body, call))
        except Exception as error:  # noqa: BLE001 - of other types than those that are documented: the server says so
            is_ours = isinstance(error, UnkeyableError)
            return "unkeyable" if is_ours else f"not understood: {type(error).__name__}"

    def _learn(self, asked: Asked, known: Known) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[self._words(asked)] = known

    def _request(self, asked: Asked, server: Server, body: Json, call: Proxied) -> Request:
        cache, wishes = self.cache, asked.wishes
        # Sidecars with one store may have other servers behind them.
        where = asked.where + canonical([server.url, wishes.namespace])
        meant = Meant((where, frozenset()), {}, body, self.dialect, self._settings)
        tenant = asked.whose
        key = digest(self._prefix, meant.whole, cache.tenant_bytes(tenant))
        text, around, exact_only = meant.text()
        rest = around() if cache.has_near and text is not None else b""
        facets = Facets(
            cache.namespace, self.dialect.name, self._settings.version, model=meant.model, tags=tags_in(cache, asked)
        )
        with _options(wishes, cache, self._longest):
            request = cache.complete(
                key, self._prefix, rest, text, tenant, None, facets, exact_only, self.dialect.name
            )  # fmt: skip
        request.accepts, request.identify, request.says = call.accepts, call.identify, call.says
        request.least, request.oldest = wishes.least, wishes.oldest
        call.variant = call.with_usage, wishes.least, wishes.oldest
        call.tenant = tenant
        if request.family:
            request.family = meant.family()
        return request

    async def _plain(self, call: Proxied, request: Request, event: Event) -> Found:
        outcome = await arun(self._looked_up(call, request, event))
        value = _unwrapped(outcome, call)
        if call.answer is not None:
            answer = call.answer
            return Found(
                event, answer.headers, body=answer.body, is_ours=False, stored=_is_stored(event, self.cache),
                status=answer.status, is_forced=request.mode == "refresh",
            )  # fmt: skip
        head, body = call.plain(value)
        return Found(event, head, body=body, is_ours=True)

    def _looked_up(self, call: Proxied, request: Request, event: Event) -> Plan[Outcome[Any]]:
        chain = self.cache.chain
        found, value = probe(chain, request, event)
        if found:
            return Outcome(value)
        return (yield from lookup(chain, request, Origin(call.load, call.when, call.usage), event, blocks=False))

    async def _found_only(self, call: Proxied, request: Request, event: Event) -> Found:
        """Answer from the tiers alone. Raises RefusedError."""
        if request.mode in ("off", "refresh"):
            raise not_cached()
        found, value, _ = await arun(find(self.cache.chain, request, event))
        if found is None or found.entry.life <= 0:
            raise not_cached()  # which is no lookup that led anywhere: nothing is loaded, or goes by
        finish(self.cache.chain, event, Outcome(value))
        call.accepts(value)
        head, told = _whole(call)
        return Found(event, head, body=told, is_ours=True)

    async def _streamed(self, call: Proxied, request: Request, event: Event) -> Found:
        origin = partial(AsyncGeneratorOrigin, ahead=_AHEAD)
        reading = Reading(call, request, event, call.begin, origin, asyncio.get_running_loop())
        try:
            item = await arun(reading.step())
        except BaseException:
            await reading.aclose()
            raise
        if isinstance(item, End):  # what has no head has an error
            await reading.aclose()
            _unwrapped(item, call)
        blocks = Pieces(_blocks(reading), reading.aclose)
        if isinstance(item, Head):
            is_forced, status = request.mode == "refresh", item.response.status
            return Found(event, item.headers, blocks=blocks, is_ours=False, status=status, is_forced=is_forced)
        # Who reads along does not know yet how it ends: the event itself says so when it has.
        told = event if event.kind == "hit" else replace(event, kind="hit", tier="flight", shared=True)
        return Found(told, head_headers(item), blocks=blocks, is_ours=True)

    async def _past(self, asked: Asked, body: Json, reason: str, event: Event | None = None) -> Found:
        """Ask the server behind as the caller asked, and hand on what it says as it comes.

        Raises RefusedError where the caller wants nothing asked.
        """
        if asked.wishes.is_only_cached:
            raise not_cached()
        if event is None:
            event = bypass_event(self.cache, self.dialect.name, self.dialect.name, reason)
            event.model = str(body.get("model") or "")
        event.kind, event.reason = "bypass", reason
        event.seen = asked.seen or Seen(asked.whose, "")
        chain, server = self.cache.chain, self._upstream.of(body.get("model"))
        outcome = await arun(load(Origin(partial(asked.send, server, None)), None, event))
        event.failed = outcome.value is None or not outcome.value.is_success
        chain.recorder.lookup(event)
        response: Opened = outcome.unwrap()
        blocks = Pieces(_raw(response), partial(_closed, response))
        return Found(event, response.headers, blocks=blocks, is_ours=False, status=response.status, has_length=True)


def _whole(call: Proxied) -> tuple[Headers, bytes]:
    """Return what `accepts` took as headers and one body, of a stream too."""
    if not call.is_stream:
        head, body = call.found
        return head, body
    first, *blocks = call.found
    return head_headers(first), bytes_of("".join(blocks))


async def _blocks(reading: Reading) -> AsyncGenerator[str, None]:
    """Yield a stream's blocks as they come."""
    item = await reading.apull()
    while not isinstance(item, End):
        yield item
        rest = reading.alone()
        if rest is not None:
            for block in rest:
                yield block
            return
        item = await reading.apull()
    item.unwrap()


async def _raw(response: Opened) -> AsyncGenerator[str, None]:
    async for data in response.pieces():
        yield text_of(data)


async def _closed(response: Opened) -> None:
    response.close()


def _unwrapped(outcome: Outcome[Any], call: Proxied) -> Any:
    """Return an answer, or raise its error: who waited for another's call is not given what was that one's alone."""
    error = outcome.error
    if isinstance(error, AnsweredError) and not call.was_sent:
        answer = error.answer
        head = [one for one in answer.headers if one[0] in SHARED]
        raise AnsweredError(Answer(answer.status, head, answer.body), is_ours=error.is_ours)
    return outcome.unwrap()


def _options(wishes: Wishes, cache: Cache, longest: float) -> Any:
    """Return the context that a caller's wishes are: only narrower than what the cache was made with."""
    if wishes is NONE or (wishes.mode is None and wishes.ttl is None):
        return nullcontext()
    mode, ttl = wishes.within(cache.mode, longest)
    return context(mode=mode, ttl=ttl)


def _is_stored(event: Event, cache: Cache) -> bool:
    has_failed = any(tier == "codec" for tier, _, _ in event.faults)
    return (
        any(tier.exact for tier in cache.tiers) and not has_failed and not (event.reason or "").startswith("not kept")
    )
