"""Events as records of the standard `logging`, one each, with their facts as fields beside the message.

Laws:
- no text is logged unless that is asked for, and then without the secrets in it (`redact`); the message of a fault and
  the end of a reason may quote one;
- an answer never is;
- what is logged of one request, or inside one trace, has the ids of both, so that logs and traces can be joined.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from semcache.events import Event

if TYPE_CHECKING:
    from semcache.redact import Redactor

PREFIX = "semcache_"

_QUOTE = re.compile(r""": ?['"].*""", re.DOTALL)
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_MOST_TEXT = 2000
# An id that others made is taken over as it is, if it can be nothing else.
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-")

# What every line has that is formatted in this context: the ids of the request that it is about.
joined: ContextVar[Mapping[str, str] | None] = ContextVar("semcache_joined", default=None)


class LoggingObserver:
    """An observer that logs every event it is told: `Cache(observers=[LoggingObserver()])`.

    Lookups and invalidations are logged at `level`, what met a fault at WARNING or above, to `logger` (by default
    "semcache.events"). A record carries what its event knows as attributes `semcache_kind`, `_function`, `_namespace`,
    `_tier`, `_key` and `_neighbour` (hex), `_similarity`, `_cut`, `_age_seconds`, `_load_seconds`, `_reason`,
    `_shared`, `_failed`, `_microseconds` (all stages), `_stages_us`, `_faults`; with `texts` also `_text` and
    `_near_text`, where they are known, and what may quote one, all redacted: keys, addresses, card numbers are marks.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO, *, texts: bool = False) -> None:
        self._logger = logger or logging.getLogger("semcache.events")
        self._level = level
        self._redactor = _redactor() if texts else None

    def __call__(self, event: Event) -> None:
        level = max(self._level, logging.WARNING) if event.faults else self._level
        if self._logger.isEnabledFor(level):
            facts = _facts(event, self._redactor)
            extra = {PREFIX + name: fact for name, fact in facts.items()}
            self._logger.log(level, "%s", _message(event, facts.get("reason")), extra=extra)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object a line: time (UTC), level, logger, message, and every extra field.

    Within a span of OpenTelemetry it has `trace_id` and `span_id`, and of a request to the sidecar `request_id`.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {**(joined.get() or {}), **_span_ids()}
        fields |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def names_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the ids of a request, as its headers tell them: `request_id`, made up where there is none, `trace_id`."""
    told: dict[str, str] = {}
    for name, value in headers:
        if name == b"x-request-id" and (found := _ID.fullmatch(value.decode("latin-1"))):
            told["request_id"] = found[0]
        elif name == b"traceparent" and (found := _TRACEPARENT.match(value.decode("latin-1"))):
            told["trace_id"] = found[1]
    return told if "request_id" in told else {"request_id": os.urandom(8).hex(), **told}


def _span_ids() -> dict[str, str]:
    """Return the ids of the span that is current, where somebody traces."""
    api = sys.modules.get("opentelemetry.trace")
    span = None if api is None else api.get_current_span().get_span_context()
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span and span.is_valid else {}


def _redactor() -> Redactor:
    from semcache.redact import Redactor

    return Redactor(os.urandom(32))  # nobody can tell from a mark what it stands for


def _facts(event: Event, redactor: Redactor | None) -> dict[str, Any]:
    """Return what an event knows, as values that JSON can hold."""
    decision, near = event.decision, event.near

    def shown(text: str | None) -> str | None:
        return None if text is None or redactor is None else redactor.text(text[:_MOST_TEXT])

    facts: dict[str, Any] = {
        "kind": event.kind,
        "function": event.function or None,
        "namespace": event.namespace or None,
        "tier": event.tier,
        "key": event.key.hex() or None,
        "similarity": decision.similarity if decision is not None and event.similarity is None else event.similarity,
        "cut": decision.cut if decision is not None else None,
        "neighbour": event.neighbour.hex() if event.neighbour else None,
        "age_seconds": event.age,
        "load_seconds": event.load_seconds,
        "reason": unquoted(event) if redactor is None else shown(event.reason),
        "text": shown(event.text if near is None else near.text),
        "near_text": None if near is None else shown(near.neighbour),
        "shared": event.shared or None,
        "failed": event.failed or None,
        "microseconds": sum(event.stages.values()) / 1000 if event.stages else None,
        "stages_us": {stage: nanoseconds / 1000 for stage, nanoseconds in event.stages.items()} or None,
        "faults": [
            {"tier": tier, "reason": reason} | ({"message": shown(message)} if redactor else {})
            for tier, reason, message in event.faults
        ]
        or None,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def unquoted(event: Event) -> str | None:
    """Return an event's reason without what it quotes at its end; a facet's value is no text."""
    if event.reason is None or event.kind == "invalidated":
        return event.reason
    if event.decision is not None and event.decision.guard and event.decision.reason == event.reason:
        return f"guard: {event.decision.guard}"  # whose reason quotes both texts
    return _QUOTE.sub("", event.reason)


def _message(event: Event, reason: str | None) -> str:
    """Tell an event in a line for people."""
    told: list[str] = [event.kind]
    if event.tier:
        told.append(f"in {event.tier}")
    if event.function:
        told.append(f"for {event.function}")
    if event.similarity is not None:
        told.append(f"at similarity {event.similarity:.4f}")
    line = " ".join(told)
    if reason:
        line += f": {reason}"
    faults = [f"{tier} {why}" for tier, why, _ in event.faults if (tier, why) != (event.tier, event.reason)]
    return "; ".join([line, *faults])
