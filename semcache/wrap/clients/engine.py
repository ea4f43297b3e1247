"""The engine of cached clients: one for each endpoint, which answers the POSTs of the SDK that its dialect claims.

Laws: a call that is not claimed, or asks for the raw response, goes through untouched; what a call sends is not altered
here (law 1); the errors, retries and timeouts of the SDK are as they were; nothing of ours fails a call (law 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import Any, NamedTuple

from semcache.cache import Cache
from semcache.chain import Origin
from semcache.codec import unpack
from semcache.context import current
from semcache.errors import UnkeyableError
from semcache.events import FOLD_AT, Event, remember
from semcache.finding import probe
from semcache.inherit import tell_context
from semcache.keys import digest
from semcache.lookup import finish, load, lookup
from semcache.model import FOREVER, Facets, Request
from semcache.plan import Load, Outcome, Plan, arun, run
from semcache.tiers.memory import Kept
from semcache.trace import tracing
from semcache.wrap.clients.asked import Asked, Endpoint, chunk_type, id_of
from semcache.wrap.clients.conversation import SAMPLING, Meant, Where, body_of, passed_by
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.sdk import is_plain_post
from semcache.wrap.clients.streams import areplay, astream, replay, stream
from semcache.wrap.default import default_cache
from semcache.wrap.noting import bypass_event, memory_event

_UNREAD = ("off", "refresh")
# So many keys of calls made before are remembered, of 20 bytes each.
_MOST_KEYS = 4096


class Form(NamedTuple):
    """How the SDK posts the calls of an endpoint: to where, and for what types."""

    path: str
    cast_to: Any
    stream_cls: Any


# The request, None if a call has none, and its event.
Opened = tuple[Request | None, Event]


class Engine:
    """One endpoint of a client, and of its copies, in one cache."""

    def __init__(self, cache: Cache | None, dialect: Dialect, settings: ClientOptions) -> None:
        self.dialect = dialect
        self.form: Form | None = None
        self._cache = cache
        self._settings = settings
        self._endpoint = Endpoint(dialect, settings)
        self._where = Where(settings)
        self._prefix: tuple[Cache | None, bytes] = (None, b"")
        self._keys: dict[bytes, bytes] = {}
        # Of names of parameters: whether the SDK sends such calls as they are given.
        self.sent_as_they_are: dict[tuple[str, ...], bool] = {}

    @property
    def cache(self) -> Cache:
        """The cache; the default one is built here, at the first call."""
        return self._cache or default_cache()

    def takes(self, path: str, given: Mapping[str, Any]) -> bool:
        """Say whether a POST is a call that the dialect knows, made in a way that the engine knows."""
        if not self.dialect.claims(path, getattr(given.get("cast_to"), "__name__", "")):
            return False
        options = given.get("options") or {}
        if not is_plain_post(given) or "post_parser" in options or "stream" in (options.get("extra_json") or ()):
            return False
        if self.form is None and chunk_type(given):
            self.form = Form(path, given["cast_to"], given["stream_cls"])
        return self.form is not None and given.get("stream_cls") == self.form.stream_cls

    def post(
        self, client: Any, path: str, given: Mapping[str, Any], send: Callable[[], Any], packed: bytes = b""
    ) -> Any:
        """Answer a POST of a plain client; `packed` is its body as one byte string, where that is all of it."""
        asked, opened = self.open(client, given, send, packed)
        if opened is None:
            return asked.found if asked.chunk_type is None else replay(asked, given["stream_cls"], path)
        return run(self._answer(asked, opened, path, given, blocks=True)).unwrap()

    async def apost(
        self, client: Any, path: str, given: Mapping[str, Any], send: Callable[[], Any], packed: bytes = b""
    ) -> Any:
        """Answer a POST of an async client, as `post` does."""
        asked, opened = self.open(client, given, send, packed)
        if opened is None:
            return asked.found if asked.chunk_type is None else areplay(asked, given["stream_cls"], path)
        return (await arun(self._answer(asked, opened, path, given, blocks=False))).unwrap()

    def _answer(
        self, asked: Asked, opened: Opened, path: str, given: Mapping[str, Any], *, blocks: bool
    ) -> Plan[Outcome[Any]]:
        """Answer a call which memory did not."""
        if asked.chunk_type is None:
            outcome = yield from self.plan(asked, opened, blocks=blocks)
            return outcome if outcome.error is not None else Outcome(asked.taken(outcome.value))
        request, event = opened
        if request is None or request.mode == "off":
            self._passed(event)
            begin = asked.send
        else:
            begin = partial(stream if blocks else astream, asked, request, event, given["stream_cls"], path)
        begun: Outcome[Any] = yield Load(begin)
        return begun

    def request(self, client: Any, given: Mapping[str, Any]) -> Request:
        """Return what a call means to the cache. Raises UnkeyableError, and what the user's callables raise."""
        body = body_of(given)
        asked = self._asked(client, given, body, lambda: None)
        meant = Meant(self._where.of(client), given, body, self.dialect, self._settings)
        return self._request(self._key(self.cache, meant), meant, asked)

    def apart(self, client: Any, given: Mapping[str, Any]) -> bytes | None:
        """Return all that a call means but its text, and whose it is; None where it has no text.

        Raises UnkeyableError, and what the user's callables raise.
        """
        # What history= leaves out of a scope is said to the model all the same.
        settings = replace(self._settings, history=None)
        meant = Meant(self._where.of(client), given, body_of(given), self.dialect, settings)
        text, around, _ = meant.text()
        return None if text is None else around() + self.cache.tenant_bytes(self.cache.tenant_of(meant.tenant))

    def _asked(self, client: Any, given: Mapping[str, Any], body: Json, send: Callable[[], Any]) -> Asked:
        with_usage = bool(given.get("stream")) and self._asks_usage(body)
        return Asked(self._endpoint, self.cache, client, given, body, send, with_usage=with_usage)

    def open(
        self, client: Any, given: Mapping[str, Any], send: Callable[[], Any], packed: bytes = b""
    ) -> tuple[Asked, Opened | None]:
        """Look a call up in memory: return it, and None where it is answered, else what `plan` takes."""
        asked, opened = self._open(client, given, send, packed)
        if opened is not None and asked.copied is not None:
            opened[1].call = asked
        return asked, opened

    def _open(
        self, client: Any, given: Mapping[str, Any], send: Callable[[], Any], packed: bytes
    ) -> tuple[Asked, Opened | None]:
        began = perf_counter_ns()
        cache = self.cache
        body = given["body"] if packed else body_of(given)
        asked = self._asked(client, given, body, send)
        meant: Meant | None = None
        try:
            where = self._where.of(client)
            known = b"" if asked.copied is not None else self._known(cache, where[0], packed)
            key = self._keys.get(known)
            if key is None:
                why_not = self.why_not(body)
                if why_not is not None:
                    return asked, (None, self._bypassed(why_not))
                meant = Meant(where, given, body, self.dialect, self._settings)
                key = self._key(cache, meant)
                self._learn(known, key)
                if asked.copied is not None:
                    asked.tenant = cache.tenant_of(meant.tenant)
        except Exception as error:  # noqa: BLE001 - also the user's own callables; the call goes on without us
            return asked, (None, self._unkeyable(error))
        keyed = perf_counter_ns()
        if self._remembers(cache, asked, key, began, keyed):
            return asked, None
        try:
            if meant is None:
                meant = Meant(where, given, body, self.dialect, self._settings)
            request = self._request(key, meant, asked)
        except Exception as error:  # noqa: BLE001 - the user's own text callable
            return asked, (None, self._unkeyable(error))
        event = cache.event(request)
        event.took("key", keyed - began, keyed)
        event.took("memory", perf_counter_ns() - keyed)
        return asked, (request, event)

    def _known(self, cache: Cache, where: bytes, packed: bytes) -> bytes:
        """Return by what the key of a call is known that was made in the same words before; nothing, where it is not.

        To sort and tell a long conversation again takes ten times as long as to digest its bytes as they are.
        """
        if not packed or callable(self._settings.tenant):
            return b""
        options = current.get()
        owner = None if options is None else options.tenant
        return digest(self._prefix_of(cache), where, packed, cache.tenant_bytes(owner or cache.tenant))

    def _learn(self, known: bytes, key: bytes) -> None:
        if known:
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            self._keys[known] = key

    def _prefix_of(self, cache: Cache) -> bytes:
        made_for, prefix = self._prefix
        if made_for is not cache:
            prefix = cache.prefix(self.dialect.name, self._settings.version)
            self._prefix = cache, prefix
        return prefix

    def why_not(self, body: Json) -> str | None:
        """Say why a call goes by the cache, if it does."""
        return passed_by(self.dialect, self._settings, body)

    def _asks_usage(self, body: Json) -> bool:
        try:
            return self.dialect.asks_usage(body)
        except Exception:  # noqa: BLE001 - a parameter of another type than the SDK's: the origin will say so
            return False

    def _key(self, cache: Cache, meant: Meant) -> bytes:
        return digest(self._prefix_of(cache), meant.whole, cache.tenant_bytes(cache.tenant_of(meant.tenant)))

    def _request(self, key: bytes, meant: Meant, asked: Asked) -> Request:
        cache, settings = self.cache, self._settings
        text, around, exact_only = meant.text()
        rest = around() if cache.has_near and text is not None else b""
        facets = Facets(
            cache.namespace, self.dialect.name, settings.version, model=meant.model, tags=settings.tags
        )  # fmt: skip
        lives = settings.lives or FOREVER
        if lives.ttl_of is not None:
            lives = replace(lives, ttl_of=asked.of_answer(lives.ttl_of))
        request = cache.complete(
            key, self._prefix[1], rest, text, meant.tenant, lives, facets, exact_only, self._endpoint.stage
        )  # fmt: skip
        request.accepts, request.identify, request.says = asked.accepts, id_of, asked.says
        if request.family:
            request.family = meant.family()
        return request

    def plan(self, asked: Asked, opened: Opened, *, blocks: bool, joins: bool = True) -> Plan[Outcome[Any]]:
        """Answer a plain call which memory did not: from the file at once, else by a lookup."""
        request, event = opened
        chain = self.cache.chain
        origin = Origin(asked.load, asked.when, asked.usage)
        if request is None:
            tell_context(chain)
            outcome = yield from load(origin, None, event)
            return finish(chain, event, outcome)
        found, value = probe(chain, request, event)
        if found:
            return Outcome(value)
        return (yield from lookup(chain, request, origin, event, blocks=blocks, joins=joins))

    def _remembers(self, cache: Cache, asked: Asked, key: bytes, began: int, keyed: int) -> bool:
        """Look into memory, without plan or flight; True, recorded, where the answer is there."""
        options = current.get()
        if not cache.is_read or (options is not None and options.mode in _UNREAD):
            return False
        kept = cache.probe(key)
        if kept is None:
            return False
        try:
            value = unpack(kept.body) if kept.body is not None else cache.chain.codec.decode(kept.value)
        except Exception:  # noqa: BLE001 - the lookup meets it again, counts it and overwrites it
            return False
        if not asked.accepts(value):
            return False
        recorder = cache.recorder
        stage = self._endpoint.stage
        if options is not None:
            stage = options.stage or stage
            if options.sources is not None and kept.facets.documents:
                options.sources.add(cache.chain.birth, kept.facets.documents, kept.born)
        key_ns, memory_ns = keyed - began, perf_counter_ns() - keyed
        if recorder.observers or tracing():
            event = self.memory_hit(key, kept, key_ns, memory_ns, stage)
            event.call = asked
            recorder.lookup(event)
            return True
        if recorder.recording is not None:
            recorder.recording.note(asked, None, key, kept.usage, kept.load_seconds, self.dialect.name)
        age = cache.now() - kept.since
        recorder.quick.append((kept.facets, stage, key_ns, memory_ns, kept.load_seconds, kept.usage, age))
        if len(recorder.quick) > FOLD_AT:
            recorder.fold()
        remember((self, key, kept, key_ns, memory_ns, stage))
        return True

    def memory_hit(self, key: bytes, kept: Kept, key_ns: int, memory_ns: int, stage: str) -> Event:
        """Make the event of a memory hit."""
        return memory_event(self.cache, self.dialect.name, key, kept, key_ns, memory_ns, stage)

    def _passed(self, event: Event) -> None:
        """Record a stream that goes by the cache; its chunks are the SDK's alone."""
        event.kind, event.reason = "bypass", event.reason if event.kind == "bypass" else self.cache.chain.why_off
        tell_context(self.cache.chain)
        self.cache.recorder.lookup(event)

    def _bypassed(self, why_not: str) -> Event:
        if why_not.startswith(SAMPLING):
            self.cache.recorder.warn_once(
                f"{self.dialect.name}: sampling",
                f"a call of {self.dialect.name} asks by {why_not.removeprefix(SAMPLING)}= for answers that differ, "
                'and is not cached; semcache.cached(client, cache, sampling="any") caches such calls too: all are then '
                "given one answer",
            )
        return bypass_event(self.cache, self.dialect.name, self._endpoint.stage, why_not)

    def _unkeyable(self, error: Exception) -> Event:
        reason, name = "unkeyable" if isinstance(error, UnkeyableError) else "text or tenant failed", self.dialect.name
        event = bypass_event(self.cache, name, self._endpoint.stage, reason)
        event.fault("key", error)
        self.cache.recorder.warn_once(
            f"{name}: {type(error).__name__}", f"a call of {name} is not cached: {_told(error)}"
        )  # fmt: skip
        return event


def _told(error: Exception) -> str:
    if isinstance(error, UnkeyableError):
        return str(error)
    return f"text= or tenant= raised {error!r}"
