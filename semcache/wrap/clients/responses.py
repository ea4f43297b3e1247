"""Responses, as OpenAI and all who are compatible with it speak them.

Laws: what rests on what the server keeps and changes goes by the cache (law 1): a conversation, an earlier response, a
prompt's latest version. `store` is in the key: the id of an answer that was loaded without it leads nowhere, and who
asked with it may go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from semcache.model import Usage
from semcache.wrap.clients.dialect import Cut, Json, told_as_json, whole

# The events that end a stream hold the whole response; the others tell its beginning, without what it said.
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# What the model says by itself; any other item is a call of a tool, or what one gave.
_OWN_ITEMS = frozenset({"message", "reasoning", "compaction"})
# What is not known yet when a response begins.
_TOLD_AT_THE_END = ("usage", "error", "incomplete_details", "completed_at")
# Which field of a call comes in pieces, and how its events are called.
_CALLS = {
    "function_call": ("arguments", "function_call_arguments"), "custom_tool_call": ("input", "custom_tool_call_input"),
    "mcp_call": ("arguments", "mcp_call_arguments"), "code_interpreter_call": ("code", "code_interpreter_call_code"),
}  # fmt: skip


class Responses:
    """POST /v1/responses."""

    name = "openai.responses"
    resource: tuple[str, ...] = ("responses",)
    turns = "input"
    text_part = "input_text"
    ignored = frozenset({
        "stream", "stream_options", "user", "safety_identifier", "metadata", "service_tier",
        "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    })  # fmt: skip

    echoes = ignored - {"stream", "stream_options", "service_tier"}

    def claims(self, path: str, answer_type: str) -> bool:
        """Take what responses.create and responses.stream post."""
        return path == "/responses" and answer_type == "Response"

    def samples(self, body: Json) -> str | None:
        """Look at temperature."""
        return "temperature" if (body.get("temperature") or 0) > 0 else None

    def state(self, body: Json) -> str | None:
        """Look at what names something kept at the server that can change, or go."""
        for name in ("conversation", "previous_response_id", "background"):
            if body.get(name):
                return name
        prompt = body.get("prompt")
        if prompt and not prompt.get("version"):
            return "prompt without version"
        turns = body.get("input")
        return "item_reference" if isinstance(turns, list) and any(map(_is_reference, turns)) else None

    def asks_usage(self, body: Json) -> bool:  # noqa: ARG002 - it is always told
        """Streams tell it unasked."""
        return True

    def usage(self, answer: Json) -> Usage | None:
        """Return the tokens of input, cached or not, and output."""
        told = answer.get("usage")
        if not told:
            return None
        prompt = told.get("input_tokens") or 0
        cached = (told.get("input_tokens_details") or {}).get("cached_tokens") or 0
        return Usage(prompt, told.get("output_tokens") or 0, cached_tokens=min(cached, prompt))

    def unkept(self, answer: Json, *, tools: bool) -> str | None:
        """Keep what was completed and says something."""
        items = answer["output"]
        parts = [part for item in items if item["type"] == "message" for part in item["content"]]
        if any(part["type"] == "refusal" for part in parts):
            return "refusal"
        if answer["status"] == "incomplete":
            return f"incomplete_details {(answer.get('incomplete_details') or {}).get('reason')}"
        if answer["status"] != "completed":
            return f"status {answer['status']}"
        calls = [item for item in items if item["type"] not in _OWN_ITEMS]
        if calls and not tools:
            return "tool calls"
        for item in items:
            if item.get("status") in ("incomplete", "failed"):
                return f"{item['type']} {item['status']}"
        says = any(part.get("text") for part in parts)
        return None if says or calls else "empty"

    def as_chat(self, body: Json) -> Json:
        """Make messages of instructions and input: an item that has no role is given one, and stays as it is."""
        rest = {name: item for name, item in body.items() if name not in ("instructions", "input")}
        told = body.get("input")
        items = [{"role": "user", "content": told}] if isinstance(told, str) else told or []
        instructions = body.get("instructions")
        framed = [{"role": "system", "content": instructions}] if instructions or not items else []
        return {"api": self.name, **rest, "messages": [*framed, *map(_as_message, items)]}

    def text(self, answer: Json) -> str:
        """Return the texts of the messages, or, where there is more than thought beside them, the items."""
        items = answer["output"]
        parts = [part for item in items if item["type"] == "message" for part in item["content"]]
        is_text = all(item["type"] in ("message", "reasoning") for item in items)
        if is_text and all(isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
        return told_as_json(items)

    def said(self, answer: Json, text: str) -> Json:
        """Return the answer as it were if it had said this text and nothing else."""
        message = next(item for item in answer["output"] if item["type"] == "message")
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {**answer, "output": [{**message, "content": [part]}]}

    def assemble(self, chunks: Sequence[Json]) -> Json:
        """Take the response that the last event holds."""
        ended: Json | None = None
        for chunk in chunks:
            if chunk["type"] in _ENDS:
                ended = chunk["response"]
        if ended is None:
            raise ValueError("the stream broke off")
        return ended

    def split(self, answer: Json, *, with_usage: bool, cut: Cut) -> list[Json]:  # noqa: ARG002 - it is always told
        """Tell that it began, each item, and the whole."""
        unknown = {name: None for name in _TOLD_AT_THE_END if name in answer}
        begun = {**answer, **unknown, "status": "in_progress", "output": []}
        chunks: list[Json] = [{"type": f"response.{what}", "response": begun} for what in ("created", "in_progress")]
        for place, item in enumerate(answer["output"]):
            empty, filling = _opened(item, cut)
            where = {"item_id": item.get("id") or item.get("call_id") or "", "output_index": place}
            chunks.append({"type": "response.output_item.added", "output_index": place, "item": empty})
            chunks += [{**where, **one, "type": f"response.{one['type']}"} for one in filling]
            chunks.append({"type": "response.output_item.done", "output_index": place, "item": item})
        chunks.append({"type": f"response.{answer['status']}", "response": answer})
        return [{**chunk, "sequence_number": place} for place, chunk in enumerate(chunks)]

    def without_usage(self, chunks: Sequence[Json]) -> list[Json]:
        """Leave them as they are: nobody asks for it."""
        return list(chunks)


def _as_message(item: Json) -> Json:
    """Return an item of the input as a message."""
    if "role" not in item:
        return {"role": "tool" if str(item.get("type")).endswith("_output") else "assistant", **item}
    message = {name: told for name, told in item.items() if (name, told) != ("type", "message")}
    if isinstance(message.get("content"), list):
        message["content"] = [
            {**part, "type": "text"} if part.get("type") in ("input_text", "output_text") else part
            for part in message["content"]
        ]
    return message


def _is_reference(item: object) -> bool:
    """Say whether an item of the input stands for one that the server keeps: its type may be left out."""
    if not isinstance(item, Mapping):
        return False
    return item.get("type") == "item_reference" or (item.get("type") is None and "role" not in item)


def _opened(item: Json, cut: Cut) -> tuple[Json, list[Json]]:
    """Return an item as a stream opens it, and the events that fill it."""
    kind = item["type"]
    begun = {**item, "status": "in_progress"} if "status" in item else item
    if kind == "message":
        parts = enumerate(item["content"])
        return {**begun, "content": []}, [event for place, part in parts for event in _part(place, part, cut)]
    if kind == "reasoning":
        summed, thought = enumerate(item.get("summary") or []), enumerate(item.get("content") or [])
        empty: Json = {name: [] for name in ("summary", "content") if item.get(name) is not None}
        events = [event for place, part in summed for event in _summary(place, part)]
        return {**begun, **empty}, [*events, *(event for place, part in thought for event in _part(place, part, whole))]
    if kind in _CALLS and isinstance(item.get(_CALLS[kind][0]), str):
        field, name = _CALLS[kind]
        done = {"type": f"{name}.done", field: item[field]}
        if kind == "function_call":
            done["name"] = item["name"]
        return {**begun, field: ""}, [{"type": f"{name}.delta", "delta": item[field]}, done]
    return begun, []


def _part(place: int, part: Json, cut: Cut) -> Iterator[Json]:
    """Yield the events of a part of a message, or of what was thought."""
    where, kind = {"content_index": place}, part["type"]
    if not isinstance(part.get("text"), str):
        yield {"type": "content_part.added", **where, "part": part}
    else:
        cited = part.get("annotations")
        empty = {**part, "text": "", **({"annotations": []} if cited else {})}
        likely = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
        yield {"type": "content_part.added", **where, "part": empty}
        for piece in [part["text"]] if part.get("logprobs") else cut(part["text"]):
            yield {"type": f"{kind}.delta", **where, "delta": piece, **likely}
        for index, one in enumerate(cited or []):
            yield {"type": f"{kind}.annotation.added", **where, "annotation_index": index, "annotation": one}
        yield {"type": f"{kind}.done", **where, "text": part["text"], **likely}
    yield {"type": "content_part.done", **where, "part": part}


def _summary(place: int, part: Json) -> Iterator[Json]:
    """Yield the events of a part of a summary of what was thought."""
    where = {"summary_index": place}
    yield {"type": "reasoning_summary_part.added", **where, "part": {**part, "text": ""}}
    yield {"type": "reasoning_summary_text.delta", **where, "delta": part["text"]}
    yield {"type": "reasoning_summary_text.done", **where, "text": part["text"]}
    yield {"type": "reasoning_summary_part.done", **where, "part": part}
