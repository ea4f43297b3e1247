"""Events as records of the standard `logging`, one each, with their facts as fields beside the message.

Law: neither texts nor answers are logged. The message of a fault or the end of a reason may quote some of one, and is
logged only where that is asked for.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from semcache.events import Event

PREFIX = "semcache_"

_QUOTE = re.compile(r""": ?['"].*""", re.DOTALL)
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LoggingObserver:
    """An observer that logs every event it is told: `Cache(observers=[LoggingObserver()])`.

    Lookups and invalidations are logged at `level`, what met a fault at WARNING or above, to `logger` (by default
    "semcache.events"). A record carries what its event knows as attributes `semcache_kind`, `_function`, `_namespace`,
    `_tier`, `_key` and `_neighbour` (hex), `_similarity`, `_cut`, `_age_seconds`, `_load_seconds`, `_reason`,
    `_shared`, `_failed`, `_microseconds` (all stages), `_stages_us`, `_faults`; with `texts`, what may quote one, too.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO, *, texts: bool = False) -> None:
        self._logger = logger or logging.getLogger("semcache.events")
        self._level = level
        self._texts = texts

    def __call__(self, event: Event) -> None:
        level = max(self._level, logging.WARNING) if event.faults else self._level
        if self._logger.isEnabledFor(level):
            facts = _facts(event, texts=self._texts)
            extra = {PREFIX + name: fact for name, fact in facts.items()}
            self._logger.log(level, "%s", _message(event, facts.get("reason")), extra=extra)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object a line: time (UTC), level, logger, message, and every extra field."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _facts(event: Event, *, texts: bool) -> dict[str, Any]:
    """Return what an event knows, as values that JSON can hold."""
    decision = event.decision
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
        "reason": event.reason if texts else unquoted(event),
        "shared": event.shared or None,
        "failed": event.failed or None,
        "microseconds": sum(event.stages.values()) / 1000 if event.stages else None,
        "stages_us": {stage: nanoseconds / 1000 for stage, nanoseconds in event.stages.items()} or None,
        "faults": [
            {"tier": tier, "reason": reason} | ({"message": message} if texts else {})
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
