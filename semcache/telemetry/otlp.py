"""Spans on their way to a collector, by OTLP over HTTP, of a process that is ours.

Laws:
- a collector that is slow, wrong or away holds nobody up: spans wait in a bounded queue, are sent by a thread of their
  own, and where the queue is full they are dropped, and counted;
- what OpenTelemetry's own variables say holds: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
  OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE ...
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from semcache.errors import MissingExtraError

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
except ImportError:
    raise MissingExtraError("spans for a collector", "otel") from None

logger = logging.getLogger("semcache.otlp")

_PATH = "/v1/traces"
_MOST_WAITING = 8192
_AT_ONCE = 512
_EVERY_SECONDS = 2.0


class Export:
    """A provider of tracers whose spans go to a collector, as http://localhost:4318; `close` sends what waits."""

    def __init__(self, endpoint: str) -> None:
        path = urlsplit(endpoint).path
        url = endpoint if path.endswith(_PATH) else endpoint.rstrip("/") + _PATH
        ours = Resource.create({SERVICE_NAME: "semcache", SERVICE_VERSION: version("tiered-semcache")})
        self._sending = _Sending(OTLPSpanExporter(endpoint=url), urlsplit(url).netloc.rpartition("@")[2])
        self.provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self.provider.add_span_processor(self._sending)

    @property
    def counts(self) -> dict[str, int]:
        """How many spans were `sent`, how many the collector did not take (`failed`), how many were `dropped`."""
        return self._sending.counts()

    def close(self, seconds: float) -> None:
        """Send what waits, for at most so long; then it is lost."""
        closing = Thread(target=self.provider.shutdown, name="semcache-otlp", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._sending.give_up()


class _Sending(SpanProcessor):
    """The SDK's batches, behind a bound of ours, as theirs tells nobody what it drops."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._counts = Counter({"sent": 0, "failed": 0, "dropped": 0})
        self._lock = Lock()
        self._waiting = 0
        self._told = _Told(exporter, where, self._ended)
        self._batches: Any = BatchSpanProcessor(  # whose `shutdown` has no types
            self._told, max_queue_size=_MOST_WAITING, max_export_batch_size=_AT_ONCE,
            schedule_delay_millis=_EVERY_SECONDS * 1000,
        )  # fmt: skip

    def on_end(self, span: ReadableSpan) -> None:
        """Have a span wait to be sent, where there is room for it."""
        if not span.context.trace_flags.sampled:
            return
        with self._lock:
            has_room = self._waiting < _MOST_WAITING
            self._waiting += has_room
            self._counts["dropped"] += not has_room
        if has_room:
            self._batches.on_end(span)

    def _ended(self, count: int, outcome: str) -> None:
        with self._lock:
            self._waiting -= count
            self._counts[outcome] += count

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def shutdown(self) -> None:
        """Send what waits, and end."""
        self._batches.shutdown()

    def give_up(self) -> None:
        """Try no more to send what waits."""
        self._told.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return bool(self._batches.force_flush(timeout_millis))


class _Told(SpanExporter):
    """An exporter whose successes and failures are counted, and logged when one comes after the other."""

    def __init__(self, exporter: SpanExporter, where: str, ended: Callable[[int, str], None]) -> None:
        self._exporter: Any = exporter  # as above
        self._where = where
        self._ended = ended
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send some spans."""
        result: SpanExportResult = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            has_failed = result is not SpanExportResult.SUCCESS
            self._ended(len(spans), "failed" if has_failed else "sent")
            if has_failed != self._is_away:
                self._is_away = has_failed
                now = "cannot be sent: they are dropped, and counted" if has_failed else "are sent again"
                logger.warning("spans for the collector at %s %s", self._where, now)
        return result

    def shutdown(self) -> None:
        """Wait no more for a collector that is away."""
        self._exporter.shutdown()
