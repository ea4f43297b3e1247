"""What readers of logs share: lines of JSON, times, and bodies of calls as requests of the traffic format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from semcache.errors import TrafficError
from semcache.model import Usage
from semcache.traffic import Recorded, line_of
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.dialect import Dialect
from semcache.wrap.clients.openai import ChatCompletions
from semcache.wrap.clients.responses import Responses

# A document of JSON that is no JSON Lines is read whole, up to so many bytes.
WHOLE_MOST = 64 << 20
# Numbers over this are milliseconds, microseconds or nanoseconds since 1970, which seconds will be in 5138.
_SECONDS_MOST = 1e11
UNTIMED = math.nan
_FAILED = 400


@dataclass(frozen=True, slots=True)
class Settings:
    """How a log is read: `model` is that of requests which name none, `columns` those of a CSV file, by what they hold.

    `answers` are answers that stand in another file, by the `custom_id` of a batch's request.
    """

    model: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    answers: Any = None


@dataclass(slots=True)
class Skipped:
    """What became no request: `is_bad` where it should have."""

    line: int
    reason: str
    is_bad: bool = True


Found = Recorded | Skipped


def json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield (line number, object) of JSON Lines, or of one document that is a list or an object; or what is Skipped."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    is_first = True
    for number, line in numbered:
        try:
            told = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, RecursionError) as error:
            if is_first and line.strip() in (b"{", b"["):
                yield from _whole(number, line, numbered)
                return
            told = Skipped(number, f"not JSON: {error}")
        is_first = False
        for one in told if isinstance(told, list) else [told]:
            yield number, one


def _whole(number: int, line: bytes, rest: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Any]]:
    parts, size = [line], len(line)
    for _, more in rest:
        size += len(more)
        if size > WHOLE_MOST:
            yield number, Skipped(number, "one JSON document over 64 MB: write one object a line")
            return
        parts.append(more)
    try:
        told = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        yield number, Skipped(number, f"not JSON: {error}")
        return
    for one in told if isinstance(told, list) else [told]:
        yield number, one


def detect(line: bytes) -> str | None:
    """Say whose log begins with this line, where that is certain: "otlp", "litellm" or "openai"."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    if "resourceSpans" in told or "resourceLogs" in told:
        return "otlp"
    if "standard_logging_object" in told or {"call_type", "startTime"} <= told.keys():
        return "litellm"
    body = body_in(told)
    return "openai" if body is not None and ("messages" in body or "input" in body) else None


def body_in(told: dict[str, Any]) -> dict[str, Any] | None:
    """Return the body of a logged call: of a batch's line, of a logged request, or what is a body itself."""
    for name in ("body", "request", "params", "request_body"):
        held = parsed(told.get(name))
        if isinstance(held, dict):
            inner = parsed(held.get("body"))
            return inner if isinstance(inner, dict) else held
    return told if "messages" in told or "input" in told else None


def parsed(told: Any) -> Any:
    """Return what a text of JSON holds; what is none as it is."""
    if isinstance(told, str) and told[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return json.loads(told)
    return told


def seconds_of(told: Any) -> float:
    """Return a time in seconds since 1970 (a number, in whatever unit, or ISO 8601); UNTIMED where it is none."""
    if isinstance(told, str):
        with suppress(ValueError):
            told = float(told)
    if isinstance(told, str):
        with suppress(ValueError):
            at = datetime.fromisoformat(told)
            return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
        return UNTIMED
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told < math.inf:
        return UNTIMED
    seconds = float(told)
    while seconds > _SECONDS_MOST:
        seconds /= 1000
    return seconds


def tokens_of(usage: Usage | None) -> dict[str, int] | None:
    """Return a usage as the format has it."""
    if usage is None:
        return None
    told = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    more = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens}
    is_sound = sum(more.values()) <= usage.prompt_tokens
    return told | {name: count for name, count in more.items() if count and is_sound}


def calls_of(
    line: int, body: dict[str, Any], answer: Any, *, url: str = "", ts: float = UNTIMED,
    latency_ms: float | None = None, tenant: str | None = None, usage: dict[str, int] | None = None,
    model: str | None = None,
) -> Iterator[Found]:  # fmt: skip
    """Yield the requests that a call is: one; of embeddings one for each input."""
    if model is not None and not isinstance(body.get("model"), str):
        body = {**body, "model": model}
    answer = parsed(answer)
    known = ts, latency_ms, tenant
    if _is_embedding(url, body, answer):
        yield from _embeddings(line, body, answer, known, usage)
        return
    dialect = _dialect(url, body, answer)
    if dialect is None:
        yield Skipped(line, 'neither "messages" nor, by its url or its answer, a call of responses or embeddings')
        return
    text = answer if isinstance(answer, str) else None
    try:
        request = dialect.as_chat(body)
        if isinstance(answer, dict):
            text = dialect.text(answer)
            usage = tokens_of(dialect.usage(answer)) if usage is None else usage
    except Exception as error:  # noqa: BLE001 - a body or an answer of whatever form
        yield Skipped(line, f"no call of {dialect.name}, or no answer to one: {error!r}")
        return
    yield checked(Recorded(0.0, "llm", request, text, usage, latency_ms, tenant, line=line), ts)


def checked(recorded: Recorded, ts: float) -> Found:
    """Return a request at its time, or what says why it is none in the format."""
    try:
        line_of(recorded)
    except TrafficError as error:
        return Skipped(recorded.line, str(error))
    recorded.ts = ts
    return recorded


def failed(response: Any) -> bool:
    """Say whether a logged response is an error of the origin's."""
    if not isinstance(response, dict):
        return False
    status = response.get("status_code")
    return bool(response.get("error")) or (isinstance(status, int) and status >= _FAILED)


def _dialect(url: str, body: dict[str, Any], answer: Any) -> Dialect | None:
    kind = answer.get("object") if isinstance(answer, dict) else None
    if "messages" in body:
        is_anthropic = url.endswith("/messages") or (isinstance(answer, dict) and answer.get("type") == "message")
        return Messages() if is_anthropic else ChatCompletions()
    return Responses() if url.endswith("/responses") or kind == "response" else None


def _is_embedding(url: str, body: dict[str, Any], answer: Any) -> bool:
    if "input" not in body:
        return False
    kind = answer.get("object") if isinstance(answer, dict) else None
    return url.endswith("/embeddings") or kind == "list" or "embed" in str(body.get("model")).lower()


def _embeddings(
    line: int, body: dict[str, Any], answer: Any, known: tuple[float, float | None, str | None],
    usage: dict[str, int] | None,
) -> Iterator[Found]:  # fmt: skip
    """Yield a request for each input, with its share of the tokens."""
    ts, latency_ms, tenant = known
    told = body["input"]
    inputs = told if isinstance(told, list) and told and not isinstance(told[0], int) else [told]
    if usage is None and isinstance(answer, dict) and isinstance(answer.get("usage"), dict):
        usage = {"prompt_tokens": answer["usage"].get("prompt_tokens") or 0}
    tokens = (usage or {}).get("prompt_tokens")
    one = Recorded(0.0, "embedding", body, latency_ms=latency_ms, tenant=tenant, line=line)
    lengths = [len(each) if isinstance(each, str | list) else 1 for each in inputs]
    passed, whole = 0, sum(lengths) or 1
    for each, length in zip(inputs, lengths, strict=True):
        share = None
        if isinstance(tokens, int):
            share = {"prompt_tokens": tokens * (passed + length) // whole - tokens * passed // whole}
        passed += length
        yield checked(replace(one, request={**body, "input": each}, usage=share), ts)
