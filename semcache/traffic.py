"""The traffic format: recorded requests, one JSON object a line, and what each of them means to a cache.

Laws:
- a line is checked field by field; one that is not in the format is named by its number and reason, never guessed at;
- what is written can be read, and comes back as it was;
- a request's meaning leaves nothing out that can change the answer but its text and the closed lists below (law 1).

`docs/traffic.md` describes the format.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TextIO, get_args

from semcache.errors import TrafficError

Kind = Literal["llm", "embedding", "retrieval"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Whose words are the frame of a conversation, and no turn of it.
FRAME = frozenset({"system", "developer"})

# Parameters that are known not to change the answer: how it is delivered, billed, kept, routed or traced. Closed, and
# documented; whatever is not named here is part of the key and the scope.
DELIVERY = frozenset({
    "extra_headers", "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "stream",
    "stream_options", "timeout", "user",
})  # fmt: skip

# What names, in a call of OpenAI's responses, something that the server keeps and that may change.
_STATE = ("conversation", "previous_response_id", "background")

_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens")


@dataclass(slots=True)
class Recorded:
    """One recorded request, field by field as it stands in its line.

    `ts` is in seconds since the recording began; `composed` says that somebody laid the request out there, so that its
    time and how often it comes are invented; `line` is the number of its line, from 1, or 0 where it has none.
    """

    ts: float
    kind: Kind
    request: dict[str, Any]
    response: str | None = None
    usage: dict[str, int] | None = None
    latency_ms: float | None = None
    tenant: str | None = None
    answer_id: str | None = None
    line: int = 0
    composed: bool | None = None


@dataclass(slots=True)
class Meaning:
    """What a recorded request means to a cache: `parts` must all be equal before `text` may match nearly.

    `family` is the parts without earlier turns: what a tuned policy learns over. `exact_only` says why there is no
    text, `bypass` why a cache is not asked at all.
    """

    parts: tuple[object, ...]
    family: tuple[object, ...]
    text: str | None
    model: str
    exact_only: str | None = None
    bypass: str | None = None


def read(lines: Iterable[bytes | str], skipped: list[tuple[int, str]] | None = None) -> Iterator[Recorded]:
    """Yield the requests of a recording, a line at a time; empty lines are passed over.

    What is not in the format is skipped, its (line number, reason) added to `skipped`; without such a list it raises
    TrafficError.
    """
    latest = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            recorded = parse(line, number)
            if recorded.ts < latest:
                _refuse(f'"ts" never decreases, but {recorded.ts:g} comes after {latest:g}', number)
        except TrafficError as error:
            if skipped is None:
                raise
            skipped.append((number, str(error).removeprefix(f"line {number}: ")))
            continue
        latest = recorded.ts
        yield recorded


def parse(line: bytes | str, number: int = 0) -> Recorded:
    """Return the request of one line. Raises TrafficError, with the line's number where it is given."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
        fields = json.loads(text.removeprefix("\ufeff") if number == 1 else text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        _refuse(f"not UTF-8 at byte {error.start}", number)
    except RecursionError:
        _refuse("nested too deeply", number)
    except ValueError as error:
        _refuse(f"not JSON: {error}", number)
    return _checked(fields, number)


def write(recorded: Iterable[Recorded], file: TextIO) -> int:
    """Write requests, one a line, oldest first; how many. Raises TrafficError for what could not be read back."""
    latest = 0.0
    count = 0
    for one in recorded:
        count += 1
        line = _line(one)
        ts = parse(line, count).ts
        if ts < latest:
            _refuse(f'"ts" never decreases, but {ts:g} comes after {latest:g}', count)
        latest = ts
        file.write(line + "\n")
    return count


def line_of(recorded: Recorded) -> str:
    """Return the line of a request, without its end. Raises TrafficError for what could not be read back."""
    line = _line(recorded)
    parse(line)
    return line


def meaning(recorded: Recorded) -> Meaning:
    """Tell what may match nearly in a request, what must be equal around it, and what a cache must not answer.

    Of a chat completion the text is the last message, if it is the user's and nothing but a text; of a retrieval it is
    the query; an embedding has none, since its input decides the vector. All else is parts, with a hole where the text
    stood, without the parameters in `DELIVERY`.
    """
    request = recorded.request
    if recorded.kind == "retrieval":
        rest = {name: value for name, value in request.items() if name != "query"}
        parts = ("retrieval", rest)
        return Meaning(parts, parts, request["query"], "")
    body = {name: value for name, value in request.items() if name not in DELIVERY}
    if recorded.kind == "embedding":
        parts = ("embedding", body)
        return Meaning(parts, parts, None, request["model"], "an embedding is of its input exactly")
    text, last, exact_only = _split(request["messages"][-1])
    body["messages"] = [*request["messages"][:-1], last]
    family = chat_family(body, "messages")
    return Meaning(("llm", body), family, text, request["model"], exact_only, _bypass(request))


def chat_family(body: Mapping[str, Any], turns: str) -> tuple[object, ...]:
    """Return what a chat's body, whose conversation is `turns`, has in common with others: all but what was said."""
    said = body.get(turns)
    earlier = said[:-1] if isinstance(said, list) else []
    frame = [one for one in earlier if isinstance(one, Mapping) and one.get("role") in FRAME]
    return ("llm", {**body, turns: frame})


def _split(message: dict[str, Any]) -> tuple[str | None, dict[str, Any], str | None]:
    """Return a message's text and the message with a hole in its place; or None, the whole message, and why."""
    content = message.get("content")
    if message["role"] != "user":
        return None, message, "the last message is not the user's"
    if isinstance(content, str):
        return content, {**message, "content": None}, None
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return part["text"], {**message, "content": [{**part, "text": None}]}, None
    return None, message, "the last message is more than a text"


def _bypass(request: dict[str, Any]) -> str | None:
    """Say why no cache can answer: another answer is asked for each time, or it rests on what the server keeps."""
    for name in _STATE:
        if request.get(name):
            return f"state of the server: {name}"
    for name, most in (("temperature", 0), ("n", 1)):
        value = request.get(name)
        if isinstance(value, int | float) and value > most:
            return f"{name} > {most}"
    return None


def _checked(fields: Any, line: int) -> Recorded:
    """Make a record of a decoded line, or say what is wrong with it."""
    if not isinstance(fields, dict):
        _refuse(f"not an object but {_shown(fields)}", line)
    for name in ("ts", "kind", "request"):
        if name not in fields:
            _refuse(f'"{name}" is missing', line)
    kind = fields["kind"]
    if kind not in KINDS:
        _refuse(f'"kind" is one of {", ".join(KINDS)}; got {_shown(kind)}', line)
    return Recorded(
        ts=_number(fields, "ts", line),
        kind=kind,
        request=_request(kind, fields["request"], line),
        response=_text(fields, "response", line),
        usage=_usage(fields.get("usage"), line),
        latency_ms=None if fields.get("latency_ms") is None else _number(fields, "latency_ms", line),
        tenant=_text(fields, "tenant", line, may_be_empty=False),
        answer_id=_text(fields, "answer_id", line),
        line=line,
        composed=_flag(fields, "composed", line),
    )


def _request(kind: Kind, request: Any, line: int) -> dict[str, Any]:
    if not isinstance(request, dict):
        _refuse(f'"request" is an object; got {_shown(request)}', line)
    for name in ("corpus", "query") if kind == "retrieval" else ("model",):
        if not isinstance(request.get(name), str):
            _refuse(f'"request" of kind {kind} has a text "{name}"; got {_shown(request.get(name))}', line)
    if kind == "embedding" and "input" not in request:
        _refuse('"request" of kind embedding has an "input"', line)
    if kind == "llm":
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            _refuse(f'"request" of kind llm has a list of "messages", at least one; got {_shown(messages)}', line)
        for place, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                _refuse(f'"messages"[{place}] is an object with a "role"; got {_shown(message)}', line)
    checked: dict[str, Any] = request
    return checked


def _number(fields: dict[str, Any], name: str, line: int) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        _refuse(f'"{name}" is a number, at least 0; got {_shown(value)}', line)
    return float(value)


def _text(fields: dict[str, Any], name: str, line: int, *, may_be_empty: bool = True) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or not (value or may_be_empty)):
        _refuse(f'"{name}" is a text{"" if may_be_empty else " that is not empty"}; got {_shown(value)}', line)
    return value


def _flag(fields: dict[str, Any], name: str, line: int) -> bool | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(f'"{name}" is true or false; got {_shown(value)}', line)
    return value


def _usage(usage: Any, line: int) -> dict[str, int] | None:
    if usage is None:
        return None
    if not isinstance(usage, dict):
        _refuse(f'"usage" is an object; got {_shown(usage)}', line)
    for name in _TOKENS:
        tokens = usage.get(name, 0)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            _refuse(f'"{name}" is a whole number, at least 0; got {_shown(tokens)}', line)
    if usage.get("cached_tokens", 0) + usage.get("cache_write_tokens", 0) > usage.get("prompt_tokens", 0):
        _refuse('"prompt_tokens" are all of the prompt, with "cached_tokens" and "cache_write_tokens"', line)
    return {name: usage[name] for name in _TOKENS if name in usage}


def _line(recorded: Recorded) -> str:
    fields = {name: getattr(recorded, name) for name in Recorded.__slots__ if name != "line"}
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
        return json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TrafficError(f"cannot be written as JSON: {error}") from error
    return line


def _shown(value: object) -> str:
    """Show what was found instead, briefly: a line may hold a whole conversation."""
    shown = json.dumps(value, ensure_ascii=True)
    return shown if len(shown) <= 60 else shown[:57] + "..."  # noqa: PLR2004 - half a terminal's line


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _refuse(message: str, line: int) -> NoReturn:
    raise TrafficError(message, line or None)
