"""What a provider is told so that it finds the beginning of a prompt in its own prefix cache: `prompt_cache="auto"`.

Pure: a call's body in, a body out; the caller's own objects are never changed.

Laws:
- only `cache_control` and `prompt_cache_key` are added, and a text that has no room for the first becomes the one block
  that it is short for; nothing is reordered, left out or worded anew;
- a call that says it itself is left as it is;
- no breakpoint before the least that a model caches: it would do nothing.

Lengths are estimates, of four bytes a token: the tokenizers are the providers' own. An estimate that is too high costs
a breakpoint that does nothing, one that is too low the saving of a prompt just above the least.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from semcache.keys import digest
from semcache.wrap.clients.dialect import Json

# What marks the end of a prefix, in Anthropic's words and in OpenAI's. Neither changes an answer.
MARKS = _ANTHROPIC, _OPENAI = "cache_control", "prompt_cache_breakpoint"
_MARK = {"type": "ephemeral"}
# Where they stand: on the items of these parameters, and on what those hold under these names. Anything else is the
# user's own, as a schema's property or a tool's argument of that name.
_PLACES = ("tools", "system", "messages", "input")
_HOLDERS = ("content", "source", "output")

BYTES_PER_TOKEN = 4
# A picture or a file is so many tokens, whatever its bytes: those of its base64 say nothing.
_TOKENS_OF_MEDIA = 1_000
_MEDIA = frozenset({"image", "document", "container_upload"})

LEAST_TOKENS = 1_024
# Of Anthropic's models these cache from another length on; the name is told without "claude-" and its date.
_LEAST_OF_MODEL = {
    "opus-4-5": 4_096, "opus-4-6": 4_096, "haiku-4-5": 4_096,
    "opus-4-7": 2_048, "3-haiku": 2_048, "3-5-haiku": 2_048,
    "opus-5": 512, "fable-5": 512, "mythos-5": 512,
}  # fmt: skip
# A history shorter than this is no more than the next turn adds.
_LONG_HISTORY = 1_024
# From a breakpoint the provider looks back over so many blocks, that of the breakpoint among them.
LOOK_BACK = 20
# Blocks that may carry a breakpoint: thinking never does.
_CARRIERS = frozenset({
    "text", "image", "document", "search_result", "tool_use", "tool_result", "server_tool_use",
    "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result", "container_upload",
})  # fmt: skip


def is_marked(body: Json) -> bool:
    """Say whether a call marks its prefixes itself. It is asked at every call: written out, it takes half the time."""
    if _ANTHROPIC in body or _OPENAI in body:
        return True
    for name in _PLACES:  # noqa: SIM110 - as above
        if name in body and _holds_mark(body[name]):
            return True
    return False


def _holds_mark(value: Any) -> bool:
    for item in value if type(value) is list else (value,):
        if type(item) is not dict:
            continue
        if _ANTHROPIC in item or _OPENAI in item:
            return True
        for name in _HOLDERS:
            if name in item:
                held = item[name]
                if type(held) is not str and _holds_mark(held):
                    return True
    return False


def unmarked(body: Json) -> Json:
    """Return a body without marks, which change no answer."""
    return {name: _unmarked(item) if name in _PLACES else item for name, item in body.items() if name not in MARKS}


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _unmarked(item) if name in _HOLDERS else item for name, item in value.items() if name not in MARKS}


def least_tokens(model: object) -> int:
    """Return from how many tokens on a model's prefixes are cached."""
    name = str(model).rpartition("/")[2].removeprefix("claude-")
    return next((least for known, least in _LEAST_OF_MODEL.items() if f"{name}-".startswith(f"{known}-")), LEAST_TOKENS)


def tokens(value: Any) -> int:
    """Estimate how many tokens of a prompt something is."""
    if isinstance(value, Mapping) and value.get("type") in _MEDIA:
        is_text = _get(value.get("source"), "type") in ("text", "content")
        if not is_text:
            return _TOKENS_OF_MEDIA
    if isinstance(value, Mapping) and isinstance(value.get("content"), list):  # the results of a tool, with pictures
        return sum(map(tokens, value["content"]))
    if isinstance(value, Mapping) and value.get("type") == "text":
        value = value.get("text")
    text = value if isinstance(value, str) else _told(value)
    return len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN


def _told(value: Any) -> str:
    """Tell as it is sent: a provider's prefix is of bytes, and another order of names another prefix."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


# Anthropic


class _Block(NamedTuple):
    """A block of the history: where it stands, and how long the prompt is with it."""

    message: int
    place: int
    block: Any
    tokens: int


def with_breakpoints(body: Json) -> Json:
    """Return a call of Anthropic's with at most four breakpoints, or itself where it has its own, or is too short.

    They stand behind the tools, the system prompt and the turns before the user's last one, where those are long, and
    there once more as far back as the provider looks from the last, so that it finds what an earlier call has written.
    """
    if is_marked(body):
        return body
    least = least_tokens(body.get("model"))
    marked = dict(body)
    tools = body.get("tools")
    length = 0
    if isinstance(tools, list):
        # A tool that is loaded later is in no prefix, and may carry none.
        places = [place for place, tool in enumerate(tools) if not _get(tool, "defer_loading")]
        length += sum(tokens(tools[place]) for place in places)
        if places and length >= least and isinstance(tools[places[-1]], dict):
            marked["tools"] = _marked(tools, places[-1])
    system = _blocks(body.get("system"))
    length += sum(map(tokens, system))
    place = next((place for place in reversed(range(len(system))) if _can_carry(system[place])), None)
    if place is not None and length >= least:
        marked["system"] = _marked(system, place)
    if isinstance(body.get("messages"), list):
        marked["messages"] = _with_history_marked(body["messages"], length, least)
    return marked


def _with_history_marked(messages: list[Any], before: int, least: int) -> list[Any]:
    history = list(_history(messages, before))
    if not history or history[-1].tokens - before < _LONG_HISTORY:
        return messages
    chosen: list[_Block] = []
    for end in (len(history), len(history) - LOOK_BACK):
        last = next((told for told in reversed(history[: max(end, 0)]) if _can_carry(told.block)), None)
        if last is not None and last.tokens >= least and last not in chosen:
            chosen.append(last)
    if not chosen:
        return messages
    marked = list(messages)
    for told in chosen:
        message = marked[told.message]
        marked[told.message] = {**message, "content": _marked(_blocks(message["content"]), told.place)}
    return marked


def _history(messages: list[Any], before: int) -> Iterator[_Block]:
    """Yield the blocks of all turns before the user's last one."""
    asked = [place for place, message in enumerate(messages) if _get(message, "role") == "user"]
    for number, message in enumerate(messages[: asked[-1] if asked else 0]):
        for place, block in enumerate(_blocks(_get(message, "content"))):
            before += tokens(block)
            yield _Block(number, place, block, before)


def _blocks(content: Any) -> list[Any]:
    """Return the blocks of a system prompt or a message; a text is short for one of them."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def _can_carry(block: Any) -> bool:
    kind = _get(block, "type")
    is_empty = kind == "text" and not str(block.get("text") or "").strip()
    return isinstance(block, dict) and kind in _CARRIERS and not is_empty


def _marked(items: list[Any], place: int) -> list[Any]:
    return [*items[:place], {**items[place], _ANTHROPIC: dict(_MARK)}, *items[place + 1 :]]


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


# OpenAI


def with_cache_key(body: Json) -> Json:
    """Return a call of OpenAI's with a `prompt_cache_key`, or itself where it has one, or its static part is too short.

    The key is a digest of the model and of the least that is cached of what stands before the first turn: format,
    tools, instructions. So calls that share a prefix meet, also where something changes at the instructions' end.
    """
    if "prompt_cache_key" in body:
        return body
    static = _static(body)
    if tokens(static) < LEAST_TOKENS:
        return body
    told = static.encode("utf-8", "surrogatepass")[: LEAST_TOKENS * BYTES_PER_TOKEN]
    key = digest(str(body.get("model")).encode("utf-8", "surrogatepass"), b"\0", told).hex()
    return {**body, "prompt_cache_key": f"semcache-{key}"}


def _static(body: Json) -> str:
    formats = [body.get("response_format"), _get(body.get("text"), "format")]
    parts = [*formats, body.get("tools"), body.get("functions"), body.get("instructions")]
    for message in _turns(body):
        if _get(message, "role") not in ("system", "developer"):
            break
        parts.append(message.get("content"))
    return "".join(part if isinstance(part, str) else _told(part) for part in parts if part)


def _turns(body: Json) -> list[Any]:
    turns = body.get("messages", body.get("input"))
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    return turns if isinstance(turns, list) else []


# Both


class Told(NamedTuple):
    """A text of a prompt, and in which words a person is told where it stands."""

    where: str
    text: str


def beginning(body: Json) -> Iterator[Told]:
    """Yield the texts that a prompt begins with, behind its tools, up to the first thing that is no text."""
    for name in ("system", "instructions"):
        yield from _texts("the system prompt", body.get(name) or "")
    is_first = True
    for message in _turns(body):
        content = _get(message, "content")
        if _get(message, "role") in ("system", "developer"):
            where = "the system prompt"
        else:
            where, is_first = "the first message" if is_first else "an early message", False
        texts = list(_texts(where, content))
        yield from texts
        if not texts or len(texts) < len(_blocks(content)) or _get(message, "tool_calls"):
            return


def _texts(where: str, content: Any) -> Iterator[Told]:
    for block in _blocks(content):
        if _get(block, "type") not in ("text", "input_text", "output_text") or not isinstance(_get(block, "text"), str):
            return
        yield Told(where, block["text"])
