"""`semcache import`: the logs of others as recordings that `semcache replay` reads."""

from __future__ import annotations

import json

import pytest

from semcache import traffic
from semcache.importers import order

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "I am joe@x.com"}]}
ANSWER = {
    "object": "chat.completion", "created": 1_700_000_000, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
}  # fmt: skip
FRAMED = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]


@pytest.fixture
def imported(semcache_command, tmp_path):
    """Import lines, and return the status, the requests and what was said."""

    def run_one(lines, *options, name="log.jsonl"):
        log, output = tmp_path / name, tmp_path / "traffic.jsonl"
        told = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        log.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in told))
        status, _, err = semcache_command("import", log, "--output", output, *options)
        if not output.exists():
            return status, [], err
        with output.open("rb") as file:
            return status, list(traffic.read(file)), err

    return run_one


def litellm(**fields):
    payload = {
        "id": "1", "call_type": "acompletion", "status": "success", "startTime": 1_700_000_000.0,
        "endTime": 1_700_000_001.5, "model": "m", "messages": FRAMED, "response": ANSWER, "prompt_tokens": 5,
        "completion_tokens": 2, "model_parameters": {"max_tokens": 9}, "metadata": {"user_api_key_team_id": "team"},
    }  # fmt: skip
    return payload | fields


def attributes(**told):
    def value(item):
        if isinstance(item, bool):
            return {"boolValue": item}
        if isinstance(item, int):
            return {"intValue": str(item)}
        if isinstance(item, float):
            return {"doubleValue": item}
        if isinstance(item, list):
            return {"arrayValue": {"values": [value(one) for one in item]}}
        if isinstance(item, dict):
            return {"kvlistValue": {"values": [{"key": name, "value": value(one)} for name, one in item.items()]}}
        return {"stringValue": item}

    return [{"key": name.replace("__", "."), "value": value(item)} for name, item in told.items()]


def span(events=(), *, status=1, **told):
    known = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "m"}
    return {
        "name": "chat m", "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001500000000",
        "attributes": attributes(**known | told), "events": list(events), "status": {"code": status},
    }  # fmt: skip


def export(*spans):
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


SAID = {
    "gen_ai__input__messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "why?"}]}]),
    "gen_ai__output__messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "text", "content": "So."}], "finish_reason": "stop"}]
    ),
    "gen_ai__system_instructions": json.dumps([{"type": "text", "content": "be kind"}]),
}


# OpenAI


def test_logged_calls_become_requests_with_answer_usage_and_time(imported):
    """As seconds since the first; secrets are marks, and equal ones equal."""
    record = {"timestamp": "2026-01-01T00:00:00Z", "body": QUESTION, "response": ANSWER, "latency_ms": 12}
    status, told, err = imported([record, {**record, "timestamp": "2026-01-01T00:00:02.5Z"}])
    assert status == 0
    assert "2 requests of openai" in err
    first, second = told
    assert (first.ts, second.ts) == (0, 2.5)
    assert first.request == second.request
    assert "joe@x.com" not in json.dumps(first.request)
    assert (first.response, first.usage, first.latency_ms) == ("Hello.", ANSWER["usage"], 12)


def test_a_batch_is_read_with_the_answers_that_stand_in_another_file(imported, tmp_path):
    """By custom_id, in whatever order; what failed is passed over, what has no answer yet has none."""
    asked = [{"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": QUESTION} for name in "abc"]
    answers = tmp_path / "answers.jsonl"
    good = {"custom_id": "b", "response": {"status_code": 200, "body": ANSWER}, "error": None}
    bad = {"custom_id": "a", "response": {"status_code": 500, "body": {}}, "error": None}
    answers.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    status, told, err = imported(asked, "--answers", answers)
    assert status == 0
    assert [one.response for one in told] == ["Hello.", None]
    assert "passed over: 1 calls that failed" in err


def test_responses_and_embeddings_are_known_by_their_url(imported):
    """Each input of embeddings is a request, with its share of the tokens."""
    status, told, _ = imported(
        [
            {"url": "/v1/responses", "body": {"model": "m", "instructions": "be kind", "input": "why?"}},
            {
                "url": "/v1/embeddings",
                "body": {"model": "e", "input": ["ab", "cd"]},
                "response": {"object": "list", "usage": {"prompt_tokens": 10}},
            },
        ],
        "--rate",
        "10",
    )
    assert status == 0
    assert told[0].request["messages"] == FRAMED
    assert [(one.request["input"], one.usage) for one in told[1:]] == [
        ("ab", {"prompt_tokens": 5}),
        ("cd", {"prompt_tokens": 5}),
    ]
    assert [one.ts for one in told] == [0, 0.1, 0.2]


def test_a_bare_body_that_ends_with_an_answer_is_both(imported):
    """As in files for fine-tuning, which name no model."""
    line = {"messages": [*FRAMED, {"role": "assistant", "content": "So."}]}
    status, told, err = imported([line, {**line, "messages": FRAMED}], "--default-model", "m")
    assert status == 0
    assert [(one.request["messages"], one.response) for one in told] == [(FRAMED, "So."), (FRAMED, None)]
    assert "without a time: 2" in err


def test_bad_lines_are_named_counted_and_the_status_says_so(imported):
    """The others are written all the same."""
    status, told, err = imported([{"body": QUESTION}, "{", {"body": {"messages": []}}, {"x": 1}, b"\xff", "[1]"])
    assert status == 1
    assert len(told) == 1
    assert [int(part.split(":")[0]) for part in err.split("log.jsonl: line ")[1:]] == [2, 3, 4, 5, 6]
    assert "could not be read: 5 lines" in err


# LiteLLM


def test_litellms_payloads_become_requests(imported):
    """With what was asked beside the messages, how long it took, and a mark for the team."""
    status, told, _ = imported([litellm(), {"standard_logging_object": litellm(response="So.")}])
    assert status == 0
    first, second = told
    assert first.request == {"model": "m", "max_tokens": 9, "messages": FRAMED}
    assert (first.response, first.latency_ms, first.usage) == ("Hello.", 1500, ANSWER["usage"])
    assert (second.response, second.usage) == ("So.", {"prompt_tokens": 5, "completion_tokens": 2})
    assert first.tenant == second.tenant
    assert first.tenant.startswith("[tenant:")


def test_litellms_other_calls_are_passed_over_and_withheld_ones_named(imported):
    """Failures, images; messages that it was told not to log."""
    status, told, err = imported(
        [
            litellm(status="failure"),
            litellm(call_type="image_generation"),
            litellm(messages=[{"role": "user", "content": "redacted-by-litellm"}]),
            litellm(call_type="aembedding", messages=["a", "b"], response={"object": "list"}),
        ]
    )
    assert status == 1
    assert [one.request["input"] for one in told] == ["a", "b"]
    assert 'line 3: no "messages"' in err
    assert "1 calls that failed" in err


# OpenTelemetry


def test_a_spans_attributes_become_a_request(imported):
    """As the conventions have them now; usage, parameters and times too."""
    told = span(
        **SAID, gen_ai__request__temperature=0.0, gen_ai__request__stop_sequences=["x"],
        gen_ai__usage__input_tokens=9, gen_ai__usage__output_tokens=2, gen_ai__usage__cache_read__input_tokens=4,
    )  # fmt: skip
    other = span(gen_ai__operation__name="execute_tool")
    status, (one,), err = imported([export(told, other, span(status=2, **SAID), span())])
    assert status == 0
    assert one.request == {"model": "m", "temperature": 0.0, "stop": ["x"], "messages": FRAMED}
    assert (one.response, one.latency_ms) == ("So.", 1500)
    assert one.usage == {"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4}
    assert "1 calls that failed" in err
    assert "1 calls without what was said" in err
    assert "1 spans and records of other things" in err


def test_structured_attributes_and_calls_of_tools_are_read(imported):
    """Attributes may be JSON or values; what a tool gave is a message of its own."""
    turns = [
        {"role": "user", "parts": [{"type": "text", "content": "why?"}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "1", "name": "look", "arguments": json.dumps({"a": 1})}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": "rain"}]},
    ]
    _, (one,), _ = imported([export(span(gen_ai__input__messages=turns))])
    called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    assert one.request["messages"] == [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]


@pytest.mark.parametrize(
    "told",
    [
        span([{"name": "gen_ai.client.inference.operation.details", "attributes": attributes(**SAID)}]),
        span(
            [
                {"name": "gen_ai.system.message", "attributes": attributes(content="be kind")},
                {"name": "gen_ai.user.message", "attributes": attributes(event_body='{"content": "why?"}')},
                {"name": "gen_ai.choice", "attributes": attributes(message='{"role": "assistant", "content": "So."}')},
            ]
        ),
        span(
            [
                {"name": "gen_ai.content.prompt", "attributes": attributes(gen_ai__prompt=json.dumps(FRAMED))},
                {"name": "gen_ai.content.completion", "attributes": attributes(gen_ai__completion="So.")},
            ]
        ),
        span(
            gen_ai__prompt__0__role="system",
            gen_ai__prompt__0__content="be kind",
            gen_ai__prompt__1__role="user",
            gen_ai__prompt__1__content="why?",
            gen_ai__completion__0__content="So.",
        ),
    ],
    ids=["details", "messages", "content", "numbered"],
)
def test_events_and_older_forms_are_the_same_request(imported, told):
    """An event with the attributes; one for each message; prompt and completion; numbered attributes."""
    status, (one,), _ = imported([export(told)])
    assert status == 0
    assert (one.request, one.response) == ({"model": "m", "messages": FRAMED}, "So.")


def test_log_records_of_calls_and_documents_over_many_lines_are_read(imported):
    """The event as the logs signal exports it; a file that somebody has indented."""
    record = {
        "eventName": "gen_ai.client.inference.operation.details", "timeUnixNano": "1700000001500000000",
        "attributes": attributes(gen_ai__operation__name="chat", gen_ai__request__model="m", **SAID),
    }  # fmt: skip
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    status, told, _ = imported(json.dumps(logs, indent=1).splitlines(), "--from", "otlp")
    assert status == 0
    assert told[0].request["messages"] == FRAMED


# CSV


def test_a_csv_files_columns_are_named_or_known(imported):
    """Cells with line breaks too; a row that is not as the first line says is named by its line."""
    rows = ["q,answer,model,ts", '"why,\nindeed?",So.,m,5', "how?,,m,7.5", "only one", "when?,Now.,,8"]
    status, told, err = imported(rows, "--text", "q", name="faq.csv")
    assert status == 1
    assert [(one.ts, one.response) for one in told] == [(0, "So."), (2.5, None)]
    assert told[0].request["messages"] == [{"role": "user", "content": "why,\nindeed?"}]
    assert "line 5: 1 cells" in err
    assert "line 6: no model" in err


def test_a_csv_file_without_a_question_is_refused(imported):
    """Nothing is written."""
    status, told, err = imported(["a,b", "1,2"], name="faq.csv")
    assert (status, told) == (2, [])
    assert "name it by --text; there are a, b" in err


# All


def test_whose_log_it_is_must_be_said_where_nobody_can_tell(imported):
    """It is not guessed at."""
    status, told, err = imported([{"hello": 1}])
    assert (status, told) == (2, [])
    assert "say --from" in err


def test_options_of_another_source_are_refused(imported):
    """Columns are a CSV file's, answers a batch's."""
    assert imported([litellm()], "--text", "q")[0] == 2
    assert imported([litellm()], "--answers", "x")[0] == 2


def test_requests_are_put_in_order_within_a_window(imported, monkeypatch):
    """Beyond it they take the time of the one before, and are counted."""
    monkeypatch.setattr(order, "WINDOW", 3)
    times = [10, 12, 11, 14, 13, 15, 16, 17, 18, 10.5]
    status, told, err = imported([{"ts": 0, "timestamp": at, "body": QUESTION} for at in times])
    assert status == 0
    assert [one.ts for one in told] == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert "out of order by too much: 1" in err


def test_what_is_imported_can_be_left_as_it_is(imported):
    """For who may see it."""
    _, (one,), _ = imported([{"body": QUESTION}], "--no-redact")
    assert one.request == QUESTION


@pytest.mark.parametrize(
    "lines",
    [
        [{"body": QUESTION, "response": ANSWER}] * 3,
        [litellm()] * 3,
        [export(span(**SAID), span(**SAID), span(**SAID))],
    ],
    ids=["openai", "litellm", "otlp"],
)
def test_what_was_imported_is_replayed(imported, semcache_command, tmp_path, lines):
    """Three equal requests: one load, two hits."""
    assert imported(lines)[0] == 0
    status, out, _ = semcache_command("replay", tmp_path / "traffic.jsonl", "--no-semantic", "--json", "-", "--quiet")
    told = json.loads(out)
    assert status == 0
    assert (told["requests"], told["misses"], told["hits"]["memory"], told["skipped_lines"]) == (3, 1, 2, 0)
