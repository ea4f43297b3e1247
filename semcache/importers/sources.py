"""The logs that can be read, by name: OpenAI's batches and logged calls, LiteLLM's payloads, and CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from semcache.errors import ConfigurationError
from semcache.importers.found import (
    UNTIMED,
    Found,
    Settings,
    Skipped,
    body_in,
    calls_of,
    checked,
    failed,
    json_lines,
    parsed,
    seconds_of,
)
from semcache.importers.otlp import read_otlp
from semcache.traffic import Recorded

FAILED = "calls that failed"
_TIMES = ("timestamp", "time", "created_at", "created", "date")
_ANSWERS = ("response", "response_body", "completion", "answer", "output")
# What LiteLLM puts in the place of what it was told not to log.
_WITHHELD = "redacted-by-litellm"
_OTHER_CALLS = "calls that are neither of chat nor of embeddings"
_CHAT = frozenset({"completion", "text_completion", "responses", "anthropic_messages", "generate_content", "chat"})


# OpenAI


def read_openai(lines: Iterable[bytes], settings: Settings) -> Iterator[Found]:
    """Read batches' lines, logged calls with a body and a response, and bare bodies."""
    for line, told in json_lines(lines):
        if isinstance(told, Skipped) or not isinstance(told, dict):
            yield told if isinstance(told, Skipped) else Skipped(line, "not an object")
            continue
        body = body_in(told)
        if body is None:
            is_answer = "custom_id" in told and "response" in told
            hint = ": an answer of a batch; import its requests, with --answers" if is_answer else ""
            yield Skipped(line, f"no body of a call in it{hint}")
            continue
        answer = next((told[name] for name in _ANSWERS if told.get(name) is not None), None)
        if answer is None and settings.answers is not None:
            answer = settings.answers.of(told.get("custom_id"))
        if failed(answer) or told.get("error"):
            yield Skipped(line, FAILED, is_bad=False)
            continue
        if isinstance(answer, dict) and "body" in answer:
            answer = parsed(answer["body"])
        if body is told:
            body, answer = _bare(told, answer)
        times = [told.get(name) for name in _TIMES]
        if isinstance(answer, dict):
            times += [answer.get("created"), answer.get("created_at")]
        ts = next((at for at in map(seconds_of, times) if at == at), UNTIMED)  # noqa: PLR0124 - no time is not a number
        took = told.get("latency_ms", told.get("duration_ms"))
        tenant = told.get("tenant")
        yield from calls_of(
            line, body, answer, url=str(told.get("url") or ""), ts=ts, model=settings.model,
            latency_ms=took if isinstance(took, int | float) else None,
            tenant=tenant if isinstance(tenant, str) else None,
        )  # fmt: skip


def _bare(told: dict[str, Any], answer: Any) -> tuple[dict[str, Any], Any]:
    """Return a bare body without what was logged beside it; an answer at the end of its messages is its answer."""
    logged = (*_TIMES, *_ANSWERS, "latency_ms", "duration_ms", "tenant", "url", "id", "custom_id")
    body = {name: item for name, item in told.items() if name not in logged}
    messages = body.get("messages")
    if answer is None and isinstance(messages, list) and len(messages) > 1:
        last = messages[-1]
        if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
            return {**body, "messages": messages[:-1]}, last["content"]
    return body, answer


class Answers:
    """The answers of a batch, which stand in another order than its requests: where each is, by its `custom_id`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at: dict[str, int] = {}
        at = 0
        for line in file:
            told = parsed(line.decode("utf-8", "replace").strip())
            if isinstance(told, dict) and isinstance(told.get("custom_id"), str):
                self._at[told["custom_id"]] = at
            at += len(line)

    def of(self, name: Any) -> Any:
        """Return the answer to a request, or what failed of it; None where there is none."""
        at = self._at.get(name) if isinstance(name, str) else None
        if at is None:
            return None
        self._file.seek(at)
        told = parsed(self._file.readline().decode("utf-8", "replace").strip())
        return {"error": told["error"]} if told.get("error") else told.get("response")


# LiteLLM


def read_litellm(lines: Iterable[bytes], settings: Settings) -> Iterator[Found]:
    """Read StandardLoggingPayloads, by themselves or under `standard_logging_object`."""
    for line, told in json_lines(lines):
        payload = told.get("standard_logging_object", told) if isinstance(told, dict) else told
        if isinstance(payload, dict):
            yield from _litellm(line, payload, settings)
        else:
            yield payload if isinstance(payload, Skipped) else Skipped(line, "not an object")


def _litellm(line: int, payload: dict[str, Any], settings: Settings) -> Iterator[Found]:
    call = str(payload.get("call_type") or "completion")
    if payload.get("status") == "failure":
        yield Skipped(line, FAILED, is_bad=False)
        return
    kind = call.lstrip("_").removeprefix("a") if not call.startswith("anthropic") else call
    if kind not in _CHAT and kind != "embedding":
        yield Skipped(line, _OTHER_CALLS, is_bad=False)
        return
    asked = parsed(payload.get("messages"))
    if not asked or _WITHHELD in str(asked)[:200]:
        yield Skipped(line, 'no "messages": they were not logged')
        return
    parameters = parsed(payload.get("model_parameters"))
    body = {"model": payload.get("model"), **(parameters if isinstance(parameters, dict) else {})}
    url = ""
    if kind in ("embedding", "responses"):
        body["input"], url = asked, "/embeddings" if kind == "embedding" else "/responses"
    else:
        inner = asked.get("messages") if isinstance(asked, dict) else asked
        body["messages"] = [{"role": "user", "content": inner}] if isinstance(inner, str) else inner
    began, ended = seconds_of(payload.get("startTime")), seconds_of(payload.get("endTime"))
    metadata = parsed(payload.get("metadata"))
    tenant = metadata.get("user_api_key_team_id") if isinstance(metadata, dict) else None
    counted = {name: payload.get(name) for name in ("prompt_tokens", "completion_tokens")}
    usage = {name: count for name, count in counted.items() if type(count) is int and count >= 0}
    answer = parsed(payload.get("response"))
    yield from calls_of(
        line, body, answer or None, url=url, ts=ended if ended == ended else began, model=settings.model,  # noqa: PLR0124
        latency_ms=round((ended - began) * 1000, 3) if ended >= began else None,
        tenant=tenant if isinstance(tenant, str) and tenant else None,
        usage=None if isinstance(answer, dict) and answer.get("usage") else usage or None,
    )  # fmt: skip


# CSV

# What a column may hold, and how it is called where nobody says so.
COLUMNS = {
    "text": ("text", "question", "prompt", "query", "input"),
    "answer": ("answer", "response", "completion", "output"),
    "model": ("model",),
    "system": ("system", "system_prompt"),
    "tenant": ("tenant",),
    "time": ("ts", "time", "timestamp", "created_at"),
    "latency": ("latency_ms",),
    "answer_id": ("answer_id",),
}


def read_csv(lines: Iterable[bytes], settings: Settings) -> Iterator[Found]:
    """Read a CSV file, UTF-8, whose first line names the columns: a question to a model each row."""
    rows = csv.reader(io.TextIOWrapper(io.BufferedReader(_Lines(lines)), "utf-8-sig", newline=""))
    try:
        names = next(rows, [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"no CSV in UTF-8: {error}") from error
    places = _places(names, settings)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Skipped(rows.line_num, f"no row of CSV: {error}")
            continue
        except UnicodeDecodeError as error:
            yield Skipped(rows.line_num + 1, f"not UTF-8, and the end of what can be read: {error}")
            return
        if row is None:
            return
        if row:
            yield _row(rows.line_num, row, len(names), places, settings)


def _places(names: list[str], settings: Settings) -> dict[str, int]:
    """Return where the columns are. Raises ConfigurationError."""
    places = {}
    for what, usual in COLUMNS.items():
        asked = settings.columns.get(what)
        if asked is not None and asked not in names:
            raise ConfigurationError(f"there is no column {asked!r} for {what}; there are {', '.join(names)}")
        found = next((name for name in ([asked] if asked else usual) if name in names), None)
        if found is not None:
            places[what] = names.index(found)
    if "text" not in places:
        raise ConfigurationError(f"no column holds the question: name it by --text; there are {', '.join(names)}")
    return places


def _row(line: int, row: list[str], width: int, places: dict[str, int], settings: Settings) -> Found:
    if len(row) != width:
        return Skipped(line, f"{len(row)} cells, and the first line names {width}")
    cell = {what: row[place] or None for what, place in places.items()}
    model = cell.get("model") or settings.model
    if model is None:
        return Skipped(line, "no model: name its column by --model, or one for all by --default-model")
    framed = [{"role": "system", "content": cell["system"]}] if cell.get("system") else []
    request = {"model": model, "messages": [*framed, {"role": "user", "content": cell["text"] or ""}]}
    latency = None
    if cell.get("latency"):
        try:
            latency = float(cell["latency"] or 0)
        except ValueError:
            return Skipped(line, f"latency_ms is a number; got {cell['latency']!r}")
    ts = UNTIMED if cell.get("time") is None else seconds_of(cell["time"])
    if cell.get("time") is not None and ts != ts:  # noqa: PLR0124 - no time is not a number
        return Skipped(line, f"no time: {cell['time']!r}")
    one = Recorded(
        0.0, "llm", request, cell.get("answer"), None, latency, cell.get("tenant"), cell.get("answer_id"), line
    )  # fmt: skip
    return checked(one, ts)


class _Lines(io.RawIOBase):
    """Lines of bytes, as a file to be read."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._lines, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


SOURCES: dict[str, Callable[[Iterable[bytes], Settings], Iterator[Found]]] = {
    "openai": read_openai,
    "litellm": read_litellm,
    "otlp": read_otlp,
    "csv": read_csv,
}
