"""The engine of cached clients: every POST of the SDK comes by here, and those that a dialect claims are looked up.

Laws: a call that is not claimed, or asks for the raw response, goes through untouched; what a call sends is never
altered (law 1); the SDK's errors, retries and timeouts are the caller's, as they were; nothing of ours fails a call
(law 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from time import perf_counter_ns
from typing import Any, get_args

from semcache.cache import Cache
from semcache.chain import Origin
from semcache.context import current
from semcache.errors import UnkeyableError
from semcache.events import Event
from semcache.inherit import tell_found
from semcache.keys import digest
from semcache.lookup import finish, load, lookup, probe
from semcache.model import FOREVER, Facets, Request
from semcache.plan import Outcome, Plan, arun, run
from semcache.wrap.clients.asked import Asked
from semcache.wrap.clients.conversation import Meant, body_of, meaning_of
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.streams import astream, stream
from semcache.wrap.default import default_cache
from semcache.wrap.shared import Stream

# What the SDKs' `post` takes; with anything else, or with files, a call goes through.
_KNOWN = frozenset({"cast_to", "body", "options", "stream", "stream_cls", "files", "content"})
_RAW_HEADERS = frozenset({"x-stainless-raw-response", "____stainless_override_cast_to"})


class Engine:
    """One client, and its copies, in one cache."""

    def __init__(self, cache: Cache | None, dialect: Dialect, settings: ClientOptions) -> None:
        self._cache = cache
        self._dialect = dialect
        self._settings = settings
        self._stage = settings.stage or dialect.name
        self._streams: dict[Any, Stream] = {}
        self._streams_lock = RLock()  # the collector may close a half-read stream while this thread holds it

    @property
    def cache(self) -> Cache:
        """The cache; the default one is built here, at the first call."""
        return self._cache or default_cache()

    def post(self, client: Any, path: str, given: Mapping[str, Any], send: Callable[[], Any]) -> Any:
        """Answer a POST of a plain client."""
        if not self._is_ours(path, given):
            return send()
        asked, request, event = self._opened(client, given, send)
        if not given.get("stream"):
            return asked.taken(run(self._plan(asked, request, event, blocks=True)).unwrap())
        if request is None or request.mode == "off":
            return self._passed(event, send)
        return stream(asked, request, event, given["stream_cls"], path)

    async def apost(self, client: Any, path: str, given: Mapping[str, Any], send: Callable[[], Any]) -> Any:
        """Answer a POST of an async client."""
        if not self._is_ours(path, given):
            return await send()
        asked, request, event = self._opened(client, given, send)
        if not given.get("stream"):
            return asked.taken((await arun(self._plan(asked, request, event, blocks=False))).unwrap())
        if request is None or request.mode == "off":
            return await self._passed(event, send)
        return await astream(asked, request, event, given["stream_cls"], path)

    def _is_ours(self, path: str, given: Mapping[str, Any]) -> bool:
        """Say whether a POST is a call that the dialect knows, made in a way that the engine knows."""
        if not self._dialect.claims(path, getattr(given.get("cast_to"), "__name__", "")):
            return False
        options = given.get("options") or {}
        headers = {name.lower() for name in options.get("headers") or {}}
        if not isinstance(given.get("body"), Mapping) or given.get("files") or given.get("content"):
            return False
        is_known = not given.keys() - _KNOWN and "post_parser" not in options and not headers & _RAW_HEADERS
        return is_known and "stream" not in (options.get("extra_json") or {}) and bool(_chunk_type(given))

    def _opened(
        self, client: Any, given: Mapping[str, Any], send: Callable[[], Any]
    ) -> tuple[Asked, Request | None, Event]:
        """Return the call, its request, None if it has none, and its event."""
        began = perf_counter_ns()
        cache, dialect, settings = self.cache, self._dialect, self._settings
        body = body_of(given)
        is_stream = bool(given.get("stream"))
        asked = Asked(
            cache, dialect, settings, self._streams, self._streams_lock, client, send, given["cast_to"],
            _chunk_type(given) if is_stream else None, with_usage=is_stream and self._asks_usage(body),
        )  # fmt: skip
        try:
            sampled = None if settings.sampling == "any" else dialect.samples(body)
            if sampled is not None:
                return asked, None, self._sampled(sampled)
            request = self._request(meaning_of(client, given, body, dialect, settings))
        except Exception as error:  # noqa: BLE001 - also the user's own callables; the call goes on without us
            return asked, None, self._unkeyable(error)
        request.accepts = asked.accepts
        event = cache.event(request)
        event.took("key", perf_counter_ns() - began)
        return asked, request, event

    def _asks_usage(self, body: Json) -> bool:
        try:
            return self._dialect.asks_usage(body)
        except Exception:  # noqa: BLE001 - a parameter of another type than the SDK's: the origin will say so
            return False

    def _request(self, meant: Meant) -> Request:
        cache, settings = self.cache, self._settings
        prefix = cache.prefix(self._dialect.name, settings.version)
        key = digest(prefix, meant.whole, cache.tenant_bytes(cache.tenant_of(meant.tenant)))
        around = meant.around() if cache.semantic is not None and meant.text is not None else b""
        facets = Facets(
            cache.namespace, self._dialect.name, settings.version, model=meant.model, tags=settings.tags
        )  # fmt: skip
        return cache.complete(
            key, prefix, around, meant.text, meant.tenant, settings.lives or FOREVER, facets, meant.exact_only,
            self._stage,
        )  # fmt: skip

    def _plan(self, asked: Asked, request: Request | None, event: Event, *, blocks: bool) -> Plan[Outcome[Any]]:
        """Answer a plain call: from memory or the file at once, else by a lookup."""
        chain = self.cache.chain
        origin = Origin(asked.load, asked.when, asked.usage)
        if request is None:
            outcome = yield from load(origin, None, event)
            return finish(chain, event, outcome)
        if self._remembers(asked, request, event):
            return Outcome(asked.found)
        found, value = probe(chain, request, event)
        return Outcome(value) if found else (yield from lookup(chain, request, origin, event, blocks=blocks))

    def _remembers(self, asked: Asked, request: Request, event: Event) -> bool:
        """Look into memory, without plan or flight; True, recorded, where the answer is there."""
        cache = self.cache
        if request.mode in ("off", "refresh"):
            return False
        began = perf_counter_ns()
        kept = cache.probe(request.key)
        try:
            is_there = kept is not None and asked.accepts(cache.chain.codec.decode(kept.value))
        except Exception:  # noqa: BLE001 - the lookup meets it again, counts it and overwrites it
            is_there = False
        event.took("memory", perf_counter_ns() - began)
        if not is_there or kept is None:
            return False
        event.kind, event.tier, event.reason = "hit", "memory", None
        event.age, event.load_seconds, event.usage = cache.now() - kept.since, kept.load_seconds, kept.usage
        tell_found(cache.chain, request, kept.facets, kept.born)
        cache.recorder.lookup(event)
        return True

    def _passed(self, event: Event, send: Callable[[], Any]) -> Any:
        """Record a stream that goes by the cache; its chunks are the SDK's alone."""
        event.kind, event.reason = "bypass", event.reason if event.kind == "bypass" else "mode: off"
        self.cache.recorder.lookup(event)
        return send()

    def _bypass(self, reason: str) -> Event:
        told = current.get()
        stage = self._stage if told is None else told.stage or self._stage
        return Event("bypass", self._dialect.name, self.cache.namespace, reason=reason, stage=stage)

    def _sampled(self, parameter: str) -> Event:
        self.cache.recorder.warn_once(
            f"{self._dialect.name}: sampling",
            f"a call of {self._dialect.name} asks by {parameter}= for answers that differ, and is not cached; "
            'semcache.cached(client, cache, sampling="any") caches such calls too: all are then given one answer',
        )
        return self._bypass(f"sampling: {parameter}")

    def _unkeyable(self, error: Exception) -> Event:
        event = self._bypass("unkeyable" if isinstance(error, UnkeyableError) else "text or tenant failed")
        event.fault("key", error)
        name = self._dialect.name
        self.cache.recorder.warn_once(
            f"{name}: {type(error).__name__}", f"a call of {name} is not cached: {error!r}"
        )  # fmt: skip
        return event


def _chunk_type(given: Mapping[str, Any]) -> Any:
    """Return what the chunks of a stream are: the argument of the SDK's stream class."""
    return next(iter(get_args(given.get("stream_cls"))), None)
