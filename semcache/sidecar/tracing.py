"""Calls as spans: one for each request, below who asked, and above what its lookup does and the server behind.

Laws: what a caller says of its trace (W3C trace context) is taken over, and told to the server behind with the span
that asks it as the parent; what the caller does not sample is handed on as it came; nothing here fails a call (law 10).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from semcache.sidecar.headers import Headers
from semcache.telemetry import conventions as told

logger = logging.getLogger("semcache.sidecar")

_TRACE_CONTEXT = (b"traceparent", b"tracestate")
_OURS_TO_MEND = 500
_PORTS = {"http": 80, "https": 443}


class Begun(NamedTuple):
    """A request under way: its span, None where it is not sampled, and what was current before."""

    span: Span | None
    token: Any


class Calls:
    """The spans of a sidecar's calls, and what the servers behind are told of them."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("semcache", schema_url=told.SCHEMA_URL)
        self._words = TraceContextTextMapPropagator()

    def begin(self, scope: MutableMapping[str, Any], route: str) -> Begun:
        """Begin a request's span, below its caller's, and make it the current one."""
        try:
            return self._begin(scope, route)
        except Exception as error:  # noqa: BLE001 - a sampler may be the owner's own (law 10)
            logger.warning("a call cannot be traced: %r", error)
            return Begun(None, None)

    def _begin(self, scope: MutableMapping[str, Any], route: str) -> Begun:
        carried = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_CONTEXT}
        above = self._words.extract(carried, Context())
        parent = get_current_span(above).get_span_context()
        if parent.is_valid and not parent.trace_flags.sampled:
            return Begun(None, contexts.attach(above))
        facts = {
            told.METHOD: scope["method"], told.ROUTE: route, told.URL_PATH: scope["path"],
            told.URL_SCHEME: scope["scheme"],
        }  # fmt: skip
        span = self._tracer.start_span(f"{scope['method']} {route}", above, SpanKind.SERVER, facts)
        return Begun(span, contexts.attach(set_span_in_context(span, above)))

    @staticmethod
    def end(begun: Begun, status: int, error: BaseException | None) -> None:
        """End a request's span; without a status its caller had gone before there was an answer."""
        if begun.token is not None:
            contexts.detach(begun.token)
        span = begun.span
        if span is None:
            return
        if status:
            span.set_attribute(told.STATUS, status)
        kind = str(status) if status >= _OURS_TO_MEND else type(error).__qualname__ if error is not None else ""
        if kind:
            span.set_attribute(told.ERROR_TYPE, kind)
            span.set_status(StatusCode.ERROR)
        span.end()

    def carried(self, headers: Headers, url: str) -> Headers:
        """Return headers as they go to a server behind: who asks it there is the span that is current here."""
        span = get_current_span()
        if not span.get_span_context().is_valid:
            return headers
        if getattr(span, "kind", None) is SpanKind.CLIENT:
            parts = urlsplit(url)
            span.set_attribute(told.SERVER_ADDRESS, parts.hostname or "")
            span.set_attribute(told.SERVER_PORT, parts.port or _PORTS.get(parts.scheme, 0))
        said: dict[str, str] = {}
        self._words.inject(said)
        return [one for one in headers if one[0] not in _TRACE_CONTEXT] + _encoded(said)


def _encoded(said: Mapping[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1")) for name, value in said.items()]
