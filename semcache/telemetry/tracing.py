"""Lookups as spans of OpenTelemetry: one for each lookup, and below it one for each stage, with its true times.

Laws:
- what a trace's owner does not sample costs nothing but a glance at its parent;
- a span that was answered from the cache tells no tokens: they were counted when they were paid for;
- no text is told, no key and no tenant, unless that is asked for;
- nothing here fails a lookup (law 10).
"""

from __future__ import annotations

import logging
from time import perf_counter_ns, time_ns
from typing import Any

from semcache.errors import MissingExtraError
from semcache.events import Event
from semcache.telemetry import conventions as told
from semcache.telemetry.logging import unquoted

try:
    from opentelemetry import context as contexts
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        Span,
        SpanKind,
        Status,
        StatusCode,
        TracerProvider,
        get_current_span,
        get_tracer,
        set_span_in_context,
    )
except ImportError:
    raise MissingExtraError("semcache.telemetry.tracing", "otel") from None

logger = logging.getLogger("semcache")

_LOOKUPS = frozenset({"hit", "miss", "bypass", "refresh"})
_LOADED = frozenset({"miss", "bypass", "refresh"})


class Tracing:
    """An observer that makes spans: `Cache(observers=[Tracing()])`, of the first of its kind that a cache has.

    A lookup's span has the span as its parent that is current where the call is made; while an answer is loaded the
    span of its load is the current one, so what an instrumented client does there lies below it. `provider` is by
    default OpenTelemetry's own. `keys` tells answers' keys, `tenants` whose calls they are (of a cache that was made
    with `tenant_usage=True`), `texts` what reasons and faults quote. With `usage` the span of a load is a call of
    generative AI, with the tokens that it used: leave it where the client tells them in spans of its own, or they
    count twice.
    """

    def __init__(
        self, provider: TracerProvider | None = None, *, keys: bool = False, tenants: bool = False,
        texts: bool = False, usage: bool = False,
    ) -> None:  # fmt: skip
        self.tracer = get_tracer("semcache", tracer_provider=provider, schema_url=told.SCHEMA_URL)
        self._keys = keys
        self._tenants = tenants
        self._texts = texts
        self.tells_usage = usage
        self._has_failed = False

    def __semcache_watch__(self, event: Event) -> _Followed | None:
        """Follow a lookup that begins; nothing where its trace is not sampled."""
        return None if _is_unsampled() else _Followed(self, event)

    def __call__(self, event: Event) -> None:
        """Take the event of a lookup that has ended; a fault away from any is told to the span that is current."""
        if event.kind in _LOOKUPS:
            followed = event.watch
            if isinstance(followed, _Followed):
                followed.end(event)
                event.watch = None  # who keeps the event shall not keep its spans
            elif followed is None and not _is_unsampled():
                _Followed.at_once(self, event).end(event)
        elif event.kind == "fault" and (span := get_current_span()).is_recording():
            self.tell_faults(span, event)

    def attributes(self, event: Event) -> dict[str, Any]:
        """Return what a lookup's span tells of it."""
        decision, prefix = event.decision, told.PREFIX
        reason = event.reason if self._texts else unquoted(event)
        facts = {
            "kind": event.kind,
            "namespace": event.namespace or None,
            "function": event.function or None,
            "stage": event.stage or None,
            "tier": event.tier,
            "similarity": event.similarity,
            "cut": None if decision is None else decision.cut,
            "age": event.age if event.kind == "hit" else None,
            "reason": reason,
            "shared": event.shared or None,
            "stale": event.is_stale or None,
            "key": event.key.hex() or None if self._keys else None,
            "neighbour": event.neighbour.hex() if self._keys and event.neighbour else None,
            "tenant": event.tenant or None if self._tenants else None,
        }
        found = {prefix + name: fact for name, fact in facts.items() if fact is not None}
        return called(event) | found

    def tell_faults(self, span: Span, event: Event) -> None:
        """Add what went wrong on the way as events of a span."""
        for tier, reason, message in event.faults:
            facts = {told.PREFIX + "tier": tier, told.PREFIX + "reason": reason}
            span.add_event(told.PREFIX + "fault", facts | ({told.PREFIX + "message": message} if self._texts else {}))

    def failed(self, what: str, error: Exception) -> None:
        """Log that something of ours failed, once."""
        if not self._has_failed:
            self._has_failed = True
            logger.error("tracing: %s failed: %r; further failures are not logged", what, error)


class _Followed:
    """One lookup on its way to be spans; it is told when each stage has ended, and is there while its origin loads."""

    __slots__ = (
        "_began", "_context", "_error", "_event", "_is_over", "_load", "_loaded", "_offset", "_span", "_stages",
        "_tracing",
    )  # fmt: skip

    def __init__(self, tracing: Tracing, event: Event) -> None:
        self._tracing = tracing
        self._event = event
        self._context = contexts.get_current()  # of many lookups at once the last has ours when this one ends
        self._began = perf_counter_ns()
        self._offset = time_ns() - self._began
        self._stages: list[tuple[str, int, int]] = []
        self._span: Span | None = None
        self._load: Span | None = None
        self._loaded = 0
        self._error: BaseException | None = None
        self._is_over = False

    @classmethod
    def at_once(cls, tracing: Tracing, event: Event) -> _Followed:
        """Return a lookup that nobody followed: it has just ended, and its stages came one behind another."""
        followed = cls(tracing, event)
        ended = followed._began
        for stage, nanoseconds in reversed(event.stages.items()):
            followed._stages.insert(0, (stage, nanoseconds, ended))
            ended -= nanoseconds
        return followed

    def took(self, stage: str, nanoseconds: int, ended: int) -> None:
        """Hear that a stage took so long, until then."""
        if stage == "load" and self._load is not None:
            self._loaded = self._loaded or ended
        else:
            self._stages.append((stage, nanoseconds, ended))

    def enter(self) -> Any:
        """Begin the span of the load, and make it the current one."""
        try:
            model = self._event.model
            is_call = self._tracing.tells_usage and self._event.function in told.CALLS
            name = f"{told.CALLS[self._event.function][0]} {model}".strip() if is_call else told.PREFIX + "load"
            self._load = self._tracing.tracer.start_span(
                name, set_span_in_context(self._begun(), self._context),
                SpanKind.CLIENT if is_call else SpanKind.INTERNAL, called(self._event) if is_call else None,
                start_time=self._at(perf_counter_ns()),
            )  # fmt: skip
            return contexts.attach(set_span_in_context(self._load))
        except Exception as error:  # noqa: BLE001 - a sampler or a processor may be the user's own
            self._tracing.failed("the span of a load", error)
            return None

    @staticmethod
    def leave(entered: Any) -> None:
        """Make the span that was current before `enter` the current one again."""
        if entered is not None:
            contexts.detach(entered)

    def loaded(self, error: BaseException | None) -> None:
        """Hear that the origin has answered; an error that is no Exception ends the whole lookup."""
        self._loaded = self._loaded or perf_counter_ns()
        self._error = error
        if error is not None and not isinstance(error, Exception):
            self.end(self._event)

    def end(self, event: Event) -> None:
        """Make spans of what was told, and end them; once."""
        if self._is_over:
            return
        self._is_over = True
        try:
            span = self._begun()
            ended = max([perf_counter_ns() if event.stages else self._began, *(one[2] for one in self._stages)])
            if span.is_recording():
                self._tell_stages(span)
                self._tell(span, event)
            if self._load is not None:
                self._tell_load(self._load, event)
                self._load.end(self._at(self._loaded or ended))
            span.end(self._at(ended))
        except Exception as error:  # noqa: BLE001 - a sampler or a processor may be the user's own
            self._tracing.failed("the span of a lookup", error)

    def _begun(self) -> Span:
        """Return the lookup's span, begun when its first stage did."""
        if self._span is None:
            began = min([self._began, *(ended - took for _, took, ended in self._stages)])
            kind = "refresh" if self._event.kind == "refresh" else "lookup"
            self._span = self._tracing.tracer.start_span(
                told.PREFIX + kind, self._context, attributes=called(self._event), start_time=self._at(began)
            )  # fmt: skip
        return self._span

    def _at(self, moment: int) -> int:
        """Return a reading of `perf_counter_ns` as nanoseconds since 1970."""
        return moment + self._offset

    def _tell_stages(self, span: Span) -> None:
        below = set_span_in_context(span, Context())
        for stage, took, ended in self._stages:
            one = self._tracing.tracer.start_span(told.PREFIX + stage, below, start_time=self._at(ended - took))
            one.end(self._at(ended))

    def _tell(self, span: Span, event: Event) -> None:
        span.set_attributes(self._tracing.attributes(event))
        self._tracing.tell_faults(span, event)
        if event.failed or self._is_given_up:
            _fail(span, self._error)

    def _tell_load(self, load: Span, event: Event) -> None:
        if self._error is not None:
            _fail(load, self._error)
        elif self._tracing.tells_usage and event.kind in _LOADED and not event.shared and event.usage is not None:
            usage = event.usage
            load.set_attribute(told.INPUT_TOKENS, usage.prompt_tokens)
            load.set_attribute(told.OUTPUT_TOKENS, usage.completion_tokens)
            if event.response_id:
                load.set_attribute(told.RESPONSE_ID, event.response_id)

    @property
    def _is_given_up(self) -> bool:
        """Whether its caller was cancelled while the origin loaded."""
        return self._error is not None and not isinstance(self._error, Exception)


def called(event: Event) -> dict[str, Any]:
    """Return which call of generative AI a lookup is of, in the words of the conventions; nothing for any other."""
    operation, provider = told.CALLS.get(event.function, (None, None))
    facts = {told.OPERATION: operation, told.PROVIDER: provider, told.REQUEST_MODEL: event.model or None}
    return {name: fact for name, fact in facts.items() if fact is not None}


def _is_unsampled() -> bool:
    """Say whether the trace that is current here is one that nobody keeps."""
    parent = get_current_span().get_span_context()
    return parent.is_valid and not parent.trace_flags.sampled


def _fail(span: Span, error: BaseException | None) -> None:
    """Tell that a span failed, and at what: the kind of error alone, as its message may quote texts."""
    status = getattr(error, "status_code", None)
    kind = None if error is None else type(error).__qualname__
    span.set_status(Status(StatusCode.ERROR, kind))
    if isinstance(status, int):
        span.set_attribute(told.STATUS, status)
        kind = str(status)
    if kind is not None:
        span.set_attribute(told.ERROR_TYPE, kind)
