"""The structured logging observer: one record an event, its facts as fields, no texts."""

from __future__ import annotations

import io
import json
import logging

import pytest

import semcache
from semcache.events import Event
from semcache.model import Decision, Verdict
from semcache.telemetry.logging import JsonFormatter, LoggingObserver, joined, names_of


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def logger():
    """A logger of this test alone."""
    logger = logging.Logger("test", logging.DEBUG)  # noqa: LOG001 - not of the tree, so that no other test hears it
    logger.addHandler(Kept())
    return logger


def facts(record):
    return {name: value for name, value in vars(record).items() if name.startswith("semcache_")}


def test_each_lookup_is_one_record_with_its_facts(logger):
    """A miss and the hit that follows are two records, with key, tier and the time of each stage."""
    with semcache.Cache("shop", observers=[LoggingObserver(logger)]) as cache:
        request = cache.request("a", function="answer")
        cache.get_or_load(request, lambda: 1)
        cache.get_or_load(request, lambda: 1)
    miss, hit = (facts(record) for record in logger.handlers[0].records)
    assert (miss["semcache_kind"], hit["semcache_kind"], hit["semcache_tier"]) == ("miss", "hit", "memory")
    assert miss["semcache_key"] == hit["semcache_key"] == request.key.hex()
    assert (hit["semcache_function"], hit["semcache_namespace"]) == ("answer", "shop")
    assert miss["semcache_stages_us"].keys() >= {"load", "put"}
    assert miss["semcache_microseconds"] == pytest.approx(sum(miss["semcache_stages_us"].values()))
    assert hit["semcache_age_seconds"] >= 0
    assert "semcache_similarity" not in hit


def test_message_reads_as_a_sentence(logger):
    """The message says what happened, for people."""
    observer = LoggingObserver(logger)
    observer(Event("hit", "answer", tier="semantic", key=b"k", similarity=0.93214))
    observer(Event("miss", "answer", reason="below the cut"))
    observer(Event("fault", tier="disk", reason="busy", faults=[("disk", "busy", "locked")]))
    observer(Event("miss", faults=[("disk", "late", "no answer in time")]))
    assert [record.getMessage() for record in logger.handlers[0].records] == [
        "hit in semantic for answer at similarity 0.9321",
        "miss for answer: below the cut",
        "fault in disk: busy",
        "miss; disk late",
    ]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.DEBUG, [logging.DEBUG, logging.WARNING]),
        (logging.INFO, [logging.INFO, logging.WARNING]),
        (logging.ERROR, [logging.ERROR, logging.ERROR]),
    ],
)
def test_level_is_what_was_asked_for_and_faults_warn(logger, level, expected):
    """Lookups are logged at the level given; what met a fault at WARNING at least."""
    observer = LoggingObserver(logger, level)
    observer(Event("miss"))
    observer(Event("miss", faults=[("disk", "late", "")]))
    assert [record.levelno for record in logger.handlers[0].records] == expected


def test_level_that_is_not_enabled_logs_nothing(logger):
    """What nobody listens to is not even put together."""
    logger.setLevel(logging.INFO)
    LoggingObserver(logger, logging.DEBUG)(Event("miss"))
    assert logger.handlers[0].records == []


SECRET = [
    Event("miss", faults=[("codec", "EncodeError", "cannot encode 'my secret'")]),
    Event("miss", reason="exact only: the text has letters outside the embedder's languages: 'my secret'"),
    Event("bypass", reason='argument q: a Thing cannot be keyed: "my secret\nand more"'),
]


@pytest.mark.parametrize("event", SECRET, ids=["fault", "reason", "double quotes"])
def test_texts_are_logged_only_where_asked_for(logger, event):
    """What may quote a text, the message of a fault and the end of a reason, is left out unless it is asked for."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    LoggingObserver(logger)(event)
    assert "secret" not in handler.stream.getvalue()
    LoggingObserver(logger, texts=True)(event)
    assert "secret" in handler.stream.getvalue()


def test_reason_without_its_quotation_is_kept(logger):
    """The reason itself is told, whatever apostrophes it has."""
    LoggingObserver(logger)(SECRET[1])
    [record] = logger.handlers[0].records
    assert record.semcache_reason == "exact only: the text has letters outside the embedder's languages"


@pytest.mark.semantic
@pytest.mark.parametrize("texts", [False, True])
def test_answer_of_a_lookup_is_nowhere_in_its_records_and_its_text_only_where_asked_for(logger, texts):
    """Law of the observer: a lookup with near matches logs what was asked if that is wanted, and no answer ever."""

    class Embedder:
        identity = "one"

        def __call__(self, texts):
            import numpy as np

            return np.ones((len(texts), 4), dtype=np.float32)

    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    observers = [LoggingObserver(logger, texts=texts)]
    with semcache.Cache(embedder=Embedder(), tenant=semcache.SHARED, observers=observers) as cache:
        cache.warm()
        for text in ("secret one", "secret two"):
            cache.get_or_load(cache.request(text=text), lambda: "secret answer")
            cache.flush()
    first, second = (json.loads(line) for line in handler.stream.getvalue().splitlines())
    assert first["semcache_kind"] == "miss"
    assert second["semcache_similarity"] == pytest.approx(1.0)
    assert ("secret two" in handler.stream.getvalue()) == texts
    assert "secret answer" not in handler.stream.getvalue()


def test_decision_without_a_hit_tells_its_similarity_and_cut(logger):
    """A near match that was not served tells how near it was, and what it missed."""
    decision = Decision(Verdict.REJECT, "below the cut", 0.87, 0.9)
    LoggingObserver(logger)(Event("miss", decision=decision, reason="below the cut"))
    told = facts(logger.handlers[0].records[0])
    assert (told["semcache_similarity"], told["semcache_cut"]) == (0.87, 0.9)


def test_default_logger_is_semcaches_own(caplog):
    """Without a logger, events go to "semcache.events", where an application can turn them off."""
    with caplog.at_level(logging.INFO, "semcache.events"):
        LoggingObserver()(Event("miss"))
    assert [record.name for record in caplog.records] == ["semcache.events"]


def test_json_formatter_writes_every_field_on_one_line():
    """A line is one JSON object, whatever is in a record; what JSON cannot hold is told as text."""
    record = logging.makeLogRecord(
        {
            "name": "n",
            "levelname": "INFO",
            "msg": "two\n%s",
            "args": ("lines",),
            "created": 0.5,
            "semcache_x": {1: object},
        }
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("semcache_x")["1"].startswith("<class")
    assert told == {"time": "1970-01-01T00:00:00.500+00:00", "level": "INFO", "logger": "n", "message": "two\nlines"}


def test_json_formatter_tells_an_exception():
    """A traceback is a field of its own."""
    try:
        int("no")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "m", "exc_info": (type(error), error, error.__traceback__)})
    assert "ValueError: invalid literal" in json.loads(JsonFormatter().format(record))["exception"]


def test_texts_are_logged_without_the_secrets_in_them(logger):
    """Keys, addresses and card numbers are marks; a long text is cut."""
    event = Event(
        "miss", reason="exact only: 'ask ann@example.com'", text="my key is sk-abcdefghijklmnopqrst" + "x" * 9000
    )
    event.fault("disk", OSError("cannot write for ann@example.com"))
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    LoggingObserver(logger, texts=True)(event)
    line = handler.stream.getvalue()
    assert "my key is [key:" in line
    assert line.count("[email:") >= 2
    assert "ann@" not in line
    assert "sk-aaa" not in line
    assert len(line) < 4000


def formatted():
    return json.loads(JsonFormatter().format(logging.makeLogRecord({"msg": "m"})))


def test_lines_of_one_request_have_its_ids():
    """Its own id where it has one that is no more than that, else one that is made up; and that of its trace."""
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    token = joined.set(names_of([(b"x-request-id", b"req-1"), (b"traceparent", trace)]))
    try:
        told = formatted()
    finally:
        joined.reset(token)
    assert (told["request_id"], told["trace_id"]) == ("req-1", "a" * 32)
    assert "request_id" not in formatted()
    for wrong in ([], [(b"x-request-id", b"a b")], [(b"x-request-id", b"x" * 200)], [(b"x-request-id", b"\xff")]):
        made = names_of([*wrong, (b"traceparent", b"00-no")])
        assert made.keys() == {"request_id"}
        assert len(made["request_id"]) == 16


def test_line_inside_a_span_has_its_ids():
    """So logs and traces can be joined, in a program of one's own too."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("one") as span:
        told = formatted()
    context = span.get_span_context()
    assert (told["trace_id"], told["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert "trace_id" not in formatted()
