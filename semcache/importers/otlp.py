"""OpenTelemetry's spans of GenAI calls, in OTLP's JSON: an export a line, as the collector's file exporter writes them.

What was said stands in attributes (`gen_ai.input.messages`, `gen_ai.output.messages`), of the span, of an event of it,
or of a log record named `gen_ai.client.inference.operation.details`; older instrumentations write an event for each
message (`gen_ai.user.message`, `gen_ai.choice`), `gen_ai.content.prompt`, or numbered attributes
(`gen_ai.prompt.0.content`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from semcache.importers.found import UNTIMED, Found, Settings, Skipped, checked, json_lines, parsed
from semcache.traffic import Recorded

OTHER_SPANS = "spans and records of other things"
NO_CONTENT = "calls without what was said: the instrumentation did not capture it"
FAILED = "calls that failed"
_DETAILS = "gen_ai.client.inference.operation.details"
_CALLS = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
# A parameter of the request, by what its attribute is called behind gen_ai.request.
_PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "max_tokens", "seed": "seed",
    "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty", "stop_sequences": "stop",
    "choice.count": "n",
}  # fmt: skip
_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_ERROR = (2, "STATUS_CODE_ERROR")
_NANOSECONDS = 1e9


def read_otlp(lines: Iterable[bytes], settings: Settings) -> Iterator[Found]:
    """Read exports of spans and of log records."""
    for line, told in json_lines(lines):
        if not isinstance(told, dict) or not (told.keys() & {"resourceSpans", "resourceLogs"}):
            yield told if isinstance(told, Skipped) else Skipped(line, 'no "resourceSpans" and no "resourceLogs" in it')
            continue
        try:
            found = [*_inside(told, "resourceSpans", "scopeSpans", "spans")]
            records = [*_inside(told, "resourceLogs", "scopeLogs", "logRecords")]
            calls = [_span(line, span, settings) for span in found] + [_log(line, one, settings) for one in records]
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            yield Skipped(line, f"not as OTLP has it: {error!r}")
            continue
        yield from calls


def _inside(told: dict[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    held = told.get(names[0]) or []
    for one in held:
        if len(names) == 1:
            yield one
        else:
            yield from _inside(one, *names[1:])


def _span(line: int, span: dict[str, Any], settings: Settings) -> Found:
    attributes = _attributes(span)
    if not _is_call(attributes):
        return Skipped(line, OTHER_SPANS, is_bad=False)
    if (span.get("status") or {}).get("code") in _ERROR or "error.type" in attributes:
        return Skipped(line, FAILED, is_bad=False)
    messages: list[dict[str, Any]] = []
    choices: list[Any] = []
    for event in span.get("events") or []:
        name, told = event.get("name"), _attributes(event)
        if name in _ROLES:
            messages.append(_old_message(_ROLES[name], told))
        elif name == "gen_ai.choice":
            choices.append(parsed(told.get("message", _body_of(told))))
        else:  # the call's details, or content as attributes
            attributes = {**told, **attributes} if str(name).startswith("gen_ai.") else attributes
    began, ended = int(span.get("startTimeUnixNano") or 0), int(span.get("endTimeUnixNano") or 0)
    latency = (ended - began) / 1e6 if ended >= began > 0 else None
    return _call(line, attributes, messages, choices, (ended / _NANOSECONDS if ended else UNTIMED, latency), settings)


def _log(line: int, record: dict[str, Any], settings: Settings) -> Found:
    attributes = _attributes(record)
    name = record.get("eventName") or attributes.get("event.name")
    if name != _DETAILS or not _is_call(attributes):
        return Skipped(line, OTHER_SPANS, is_bad=False)
    if "error.type" in attributes:
        return Skipped(line, FAILED, is_bad=False)
    at = int(record.get("timeUnixNano") or record.get("observedTimeUnixNano") or 0)
    return _call(line, attributes, [], [], (at / _NANOSECONDS if at else UNTIMED, None), settings)


def _is_call(attributes: dict[str, Any]) -> bool:
    operation = attributes.get("gen_ai.operation.name")
    return operation in _CALLS or (operation is None and "gen_ai.request.model" in attributes)


def _call(
    line: int, attributes: dict[str, Any], messages: list[dict[str, Any]], choices: list[Any],
    timed: tuple[float, float | None], settings: Settings,
) -> Found:  # fmt: skip
    told = parsed(attributes.get("gen_ai.input.messages", attributes.get("gen_ai.prompt")))
    if isinstance(told, str):
        messages = [{"role": "user", "content": told}]
    elif isinstance(told, list):
        messages = [message for one in told for message in _messages(one)]
    messages = messages or _numbered(attributes, "gen_ai.prompt")
    if not messages:
        return Skipped(line, NO_CONTENT, is_bad=False)
    system = parsed(attributes.get("gen_ai.system_instructions"))
    if system:
        messages = [
            {"role": "system", "content": _content(system if isinstance(system, list) else [system])},
            *messages,
        ]
    model = attributes.get("gen_ai.request.model") or attributes.get("gen_ai.response.model") or settings.model
    is_embedding = attributes.get("gen_ai.operation.name") == "embeddings"
    request: dict[str, Any] = {"model": model}
    for name, parameter in _PARAMETERS.items():
        if f"gen_ai.request.{name}" in attributes:
            request[parameter] = attributes[f"gen_ai.request.{name}"]
    tools = parsed(attributes.get("gen_ai.tool.definitions"))
    if tools:
        request["tools"] = tools
    if attributes.get("gen_ai.output.type") == "json":
        request["response_format"] = {"type": "json_object"}
    if is_embedding:
        request["input"] = messages[-1].get("content")
    else:
        request["messages"] = messages
    ts, latency = timed
    one = Recorded(
        0.0, "embedding" if is_embedding else "llm", request, None if is_embedding else _answer(attributes, choices),
        _usage(attributes), latency, line=line,
    )  # fmt: skip
    return checked(one, ts)


def _answer(attributes: dict[str, Any], choices: list[Any]) -> str | None:
    told = parsed(attributes.get("gen_ai.output.messages", attributes.get("gen_ai.completion")))
    if isinstance(told, str):
        return told
    answers = [message for one in told for message in _messages(one)] if isinstance(told, list) else choices
    answers = answers or _numbered(attributes, "gen_ai.completion")
    if not answers:
        return None
    if len(answers) == 1:
        (answer,) = answers
        content = answer.get("content") if isinstance(answer, dict) else answer
        if isinstance(content, str) and not (isinstance(answer, dict) and answer.get("tool_calls")):
            return content
    return json.dumps(answers, ensure_ascii=False)


def _messages(told: Any) -> Iterator[dict[str, Any]]:
    """Yield the messages of a chat that one of the conventions' is: what tools gave is one each."""
    if not isinstance(told, dict) or not isinstance(told.get("parts"), list):
        yield told
        return
    role, parts = told.get("role"), told["parts"]
    given = [part for part in parts if part.get("type") == "tool_call_response"]
    called = [part for part in parts if part.get("type") == "tool_call"]
    rest = [part for part in parts if part not in given and part not in called]
    for part in given:
        result = part.get("response", part.get("result"))
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        yield {"role": "tool", "tool_call_id": part.get("id"), "content": content}
    if called or rest or not given:
        message = {"role": role, "content": _content(rest) if rest else None}
        if called:
            message["tool_calls"] = [_tool_call(part) for part in called]
        yield message


def _tool_call(part: dict[str, Any]) -> dict[str, Any]:
    told = part.get("arguments")
    arguments = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    return {"id": part.get("id"), "type": "function", "function": {"name": part.get("name"), "arguments": arguments}}


def _content(parts: list[Any]) -> Any:
    """Return parts as the content of a message: a text where that is all there is."""
    told = [
        {"type": "text", "text": part["content"]}
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("content"), str)
        else {"type": "text", "text": part} if isinstance(part, str) else part
        for part in parts
    ]  # fmt: skip
    return told[0]["text"] if len(told) == 1 and told[0].get("type") == "text" else told


def _old_message(role: str, told: dict[str, Any]) -> dict[str, Any]:
    body = _body_of(told)
    message = {"role": body.get("role") or role, "content": body.get("content")}
    calls = parsed(body.get("tool_calls"))
    if calls:
        message["tool_calls"] = calls
    if body.get("id") is not None and role == "tool":
        message["tool_call_id"] = body["id"]
    return message


def _body_of(told: dict[str, Any]) -> dict[str, Any]:
    """Return the body of an event: some exporters put it, as JSON, into one attribute."""
    for name in ("event_body", "gen_ai.event.content", "body"):
        held = parsed(told.get(name))
        if isinstance(held, dict):
            return held
    return told


def _numbered(attributes: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Return the messages that numbered attributes are."""
    messages: list[dict[str, Any]] = []
    while (content := attributes.get(f"{prefix}.{len(messages)}.content")) is not None:
        role = attributes.get(f"{prefix}.{len(messages)}.role")
        messages.append({"role": role or ("user" if prefix.endswith("prompt") else "assistant"), "content": content})
    return messages


def _usage(attributes: dict[str, Any]) -> dict[str, int] | None:
    names = {
        "prompt_tokens": ("input_tokens", "prompt_tokens"),
        "completion_tokens": ("output_tokens", "completion_tokens"),
        "cached_tokens": ("cache_read.input_tokens",),
        "cache_write_tokens": ("cache_creation.input_tokens", "cache_write.input_tokens"),
    }
    told = {}
    for name, usual in names.items():
        counts = [attributes.get(f"gen_ai.usage.{one}") for one in usual]
        count = next((count for count in counts if type(count) is int and count >= 0), None)
        if count is not None:
            told[name] = count
    if told.get("cached_tokens", 0) + told.get("cache_write_tokens", 0) > told.get("prompt_tokens", 0):
        told = {name: count for name, count in told.items() if not name.startswith("cache")}
    return told or None


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: _value(one.get("value") or {}) for one in holder.get("attributes") or []}


def _value(told: dict[str, Any]) -> Any:
    if "arrayValue" in told:
        return [_value(one) for one in (told["arrayValue"] or {}).get("values") or []]
    if "kvlistValue" in told:
        return {one["key"]: _value(one.get("value") or {}) for one in (told["kvlistValue"] or {}).get("values") or []}
    if "intValue" in told:
        return int(told["intValue"])
    return next(
        (told[name] for name in ("stringValue", "boolValue", "doubleValue", "bytesValue") if name in told), None
    )
