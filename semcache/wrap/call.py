"""What a call of a cached function means: its key, its scope and its text.

`Call.open` is the hot path: one plain function from the arguments to an answer in memory, and only if there is none,
the plan of a lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from threading import RLock
from time import perf_counter_ns
from typing import Any

from semcache.cache import Cache
from semcache.chain import Origin
from semcache.codec import Codec, unpack
from semcache.context import as_tenant, current
from semcache.errors import DecodeError, UnkeyableError
from semcache.events import FOLD_AT, Event, remember
from semcache.finding import probe
from semcache.inherit import tell_context
from semcache.keys import KEY_BYTES, canonical, canonical_items
from semcache.lookup import finish, load_past, lookup
from semcache.model import Facets, Request, Tenant
from semcache.plan import Outcome, Plan
from semcache.tiers.memory import Kept
from semcache.trace import tracing
from semcache.wrap.cut import cut_out
from semcache.wrap.noting import bypass_event, memory_event
from semcache.wrap.options import Options
from semcache.wrap.shared import Stream
from semcache.wrap.signature import MisfitError, Signature
from semcache.wrap.told import told_of

_decode = Codec.decode
_options = current.get
_UNREAD = ("off", "refresh")


class Call:
    """One cached function in one cache: what its calls mean."""

    variant = None  # a generator's items have one form
    tell = None

    def __init__(
        self, cache: Cache, options: Options, signature: Signature, function: Callable[..., Any], name: str,
        version: str, *, is_method: bool,
    ) -> None:  # fmt: skip
        self.cache = cache
        self.function = function
        self.name = name
        self.version = version
        self.when = options.when
        self.stage = options.stage or name
        self.usage = options.usage
        self.documents = options.documents
        self.streams: dict[Any, Stream] = {}
        self.streams_lock = RLock()  # the collector may close a half-read stream while this thread holds it
        self._options = options
        self._is_method = is_method
        self._signature = signature
        self._prefix = cache.prefix(name, version)
        self._copy_base = blake2b(self._prefix, digest_size=KEY_BYTES).copy
        # Which answers in memory are for a call is asked in the lookup: the hot path is for those that all are.
        self._probe = cache.memory.probe if cache.memory is not None and options.suits is None else _nothing
        self._count = signature.count
        self._is_bare = signature.is_bare and not is_method and options.key is None
        self._text_place = -1
        if isinstance(options.text, str) and options.key is None:
            self._text_place = signature.names.index(options.text)
        # In the common case a key is a digest of the arguments and nothing else.
        self._is_plain = options.tenant is None and cache.tenant is None

    @property
    def options(self) -> Options:
        """What `cached` was told."""
        return self._options

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The arguments that are in the key, in order."""
        return self._signature.names

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return one argument of a call."""
        return self._signature.arguments(args, kwargs)[name]

    @staticmethod
    def replayed(value: list[Any]) -> list[Any]:
        """Return what is stored: items, and behind them what the generator returned."""
        return value

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return what the key is made of. Raises UnkeyableError, or TypeError for a call that does not fit."""
        values = self._signature.bind(args, kwargs)
        if self._options.key is not None:
            return (self._options.key(*args, **kwargs),)
        if self._is_method and not hasattr(type(values[0]), "__semcache_key__"):
            raise UnkeyableError(
                f"a method's object enters the key only by __semcache_key__(), which "
                f"{type(values[0]).__qualname__} has not",
                "argument 'self'",
            )
        return values

    def tenant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tenant | None:
        """Return whose call it is, as far as the function says."""
        tenant = self._options.tenant
        if isinstance(tenant, str):
            return as_tenant(self._signature.arguments(args, kwargs)[tenant])
        return as_tenant(tenant(*args, **kwargs)) if callable(tenant) else tenant

    def plan(
        self, opened: tuple[Request | None, Event], args: tuple[Any, ...], kwargs: dict[str, Any], *, blocks: bool
    ) -> Plan[Outcome[Any]]:
        """Return the plan that answers a call which memory did not."""
        request, event = opened
        origin = Origin(partial(self.function, *args, **kwargs), self.when, self.usage)
        if request is None:
            return self.bypass(event, origin)
        return lookup(self.cache.chain, request, origin, event, blocks=blocks)

    def open(  # noqa: C901, PLR0912, PLR0915 - the hot path, in one piece
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Request | None, Event] | None]:
        """Return the answer in memory and None; or None, and the request, None if it has no key, with its event.

        Written out in one piece, because each function it does not call is a twentieth of a hit.
        """
        began = perf_counter_ns()
        cache = self.cache
        options = _options()
        tenant: Tenant | None = None
        owner = b""
        try:
            is_bare = self._is_bare and not kwargs and len(args) == self._count
            values = args if is_bare else self.values(args, kwargs)
            if options is not None or not self._is_plain:
                tenant = self.tenant(args, kwargs)
                owner = cache.tenant_bytes(cache.tenant_of(tenant))
            hasher = self._copy_base()
            hasher.update(canonical_items(values))
            if owner:
                hasher.update(owner)
            key = hasher.digest()
        except Exception as error:  # noqa: BLE001 - also the user's own callables; the call goes on without us
            return None, (None, self._unkeyable(error))
        keyed = perf_counter_ns()
        if cache.is_read and (options is None or options.mode not in _UNREAD):
            kept = self._probe(key)
            if kept is not None:
                try:
                    value = unpack(kept.body) if kept.body is not None else _decode(kept.value)
                except DecodeError:
                    pass  # the lookup meets it again, counts it and overwrites it
                else:
                    recorder = cache.recorder
                    key_ns = keyed - began
                    memory_ns = perf_counter_ns() - keyed
                    stage = self.stage
                    if options is not None:
                        stage = options.stage or stage
                        if options.sources is not None and kept.facets.documents:
                            options.sources.add(cache.chain.birth, kept.facets.documents, kept.born)
                    recording = recorder.recording
                    told = None if recording is None else told_of(self, values, args, kwargs, tenant)
                    if recorder.observers or tracing():
                        event = self.memory_hit(key, kept, key_ns, memory_ns, stage)
                        event.call = told
                        recorder.lookup(event, value)
                    else:
                        if recording is not None:
                            recording.note(told, value, key, kept.usage, kept.load_seconds, self.name)
                        quick = recorder.quick
                        usage = kept.usage
                        age = 0.0 if usage is None else cache.now() - kept.since
                        quick.append((kept.facets, stage, key_ns, memory_ns, kept.load_seconds, usage, age))
                        if len(quick) > FOLD_AT:
                            recorder.fold()
                        remember((self, key, kept, key_ns, memory_ns, stage))
                    return value, None
        try:
            request = self.request(key, values, args, kwargs, tenant)
        except Exception as error:  # noqa: BLE001 - the user's own text callable
            return None, (None, self._unkeyable(error))
        event = cache.event(request)
        event.took("key", keyed - began, keyed)
        event.took("memory", perf_counter_ns() - keyed)
        if cache.recorder.recording is not None:
            event.call = told_of(self, values, args, kwargs, tenant)
        found, value = probe(cache.chain, request, event)
        return (value, None) if found else (None, (request, event))

    def memory_hit(self, key: bytes, kept: Kept, key_ns: int, memory_ns: int, stage: str) -> Event:
        """Make the event of a memory hit."""
        return memory_event(self.cache, self.name, key, kept, key_ns, memory_ns, stage)

    def bypass(self, event: Event, origin: Origin) -> Plan[Outcome[Any]]:
        """Call the origin alone, and record that it was."""
        told = _options()
        tell_context(self.cache.chain)
        request = Request(b"", documents_of=self.documents, sources=None if told is None else told.sources)
        outcome = yield from load_past(self.cache.chain, request, origin, event)
        return finish(self.cache.chain, event, outcome)

    def _unkeyable(self, error: Exception) -> Event:
        """Count a call that has no key, and say why, once."""
        event = bypass_event(self.cache, self.name, self.stage, "unkeyable")
        if isinstance(error, MisfitError):
            event.reason = "the arguments do not fit the function"
            return event
        if isinstance(error, UnkeyableError):
            about, inside = self._place(error)
            error = UnkeyableError(error.message, about + inside)
            why = str(error)
        else:
            event.reason = "key, text or tenant failed"
            about, why = type(error).__name__, f"key=, text= or tenant= raised {error!r}"
        event.fault("key", error)
        self.cache.recorder.warn_once(f"{self.name}: {about}", f"{self.name} is not cached for this call: {why}")
        return event

    def _place(self, error: UnkeyableError) -> tuple[str, str]:
        """Say which argument it is that has no key, and where inside it the reason lies."""
        place, _, inside = error.where.removeprefix("[").partition("]")
        if not place.isdigit():
            return error.where, ""
        return "key=" if self._options.key is not None else f"argument {self._signature.names[int(place)]!r}", inside

    def request(
        self, key: bytes, values: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any], tenant: Tenant | None
    ) -> Request:
        """Make the whole request of a call that memory did not answer."""
        text, rest, exact_only = self._text(values, args, kwargs)
        request = self.cache.complete(
            key, self._prefix, rest, text, tenant, self._options.lives,
            Facets(self.cache.namespace, self.name, self.version, tags=self._options.tags), exact_only, self.stage,
        )  # fmt: skip
        request.documents_of = self.documents
        if self._options.suits is not None:
            request.accepts = self._options.suits(args, kwargs)
        return request

    def _text(
        self, values: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str | None, bytes, str | None]:
        """Return the text, the canonical rest of the arguments, and why there is no near match, if so."""
        if self._options.text is None or not self.cache.has_near:
            return None, b"", None
        place = self._text_place
        if callable(self._options.text):
            text, rest = cut_out(self._options.text(*args, **kwargs), values)
        elif place < 0:  # key= alone makes the key, and so what must be equal beside the text
            text, rest = cut_out(self._signature.arguments(args, kwargs)[self._options.text], values)
        else:
            text, rest = values[place], (*values[:place], None, *values[place + 1 :])
        if not isinstance(text, str):
            return None, b"", f"the text is a {type(text).__name__}, not a str"
        if rest is None:
            return text, b"", "the text does not stand in the arguments as it is"
        return text, canonical(rest), None

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        """Return the request of a call. Raises UnkeyableError."""
        values = self.values(args, kwargs)
        tenant = self.tenant(args, kwargs)
        hasher = self._copy_base()
        hasher.update(canonical_items(values) + self.cache.tenant_bytes(self.cache.tenant_of(tenant)))
        key = hasher.digest()
        return self.request(key, values, args, kwargs, tenant)


def _nothing(key: bytes) -> Kept | None:  # noqa: ARG001 - the probe of a cache without memory
    return None
