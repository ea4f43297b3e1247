"""What a stand-in model says, in the words of each protocol: whole answers, and the pieces of a stream.

Pure: a reply and a request's body in, plain JSON data out. What a vendor adds of its own can be added to a reply, so
that a test sees whether it arrives.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import shake_128
from math import sqrt
from struct import pack, unpack
from typing import Any

PIECE_CHARACTERS = 6


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a model; `finish` is "stop", "length", "refusal", "filter" or "tools".

    With `tool`, (name, arguments), the model calls it. `reasoning` is what it tells of its thinking, where the protocol
    has a place for that: chat completions have none. `extra` is put into the answer as a vendor's own fields.
    """

    text: str = ""
    finish: str = "stop"
    tool: tuple[str, Mapping[str, Any]] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    reasoning: str = ""


def vector_of(text: str | list[int], dimensions: int) -> list[float]:
    """Return the vector that the stand-in has for a text, or for its tokens: a unit vector, of a digest of it."""
    digest = shake_128(text.encode() if isinstance(text, str) else json.dumps(text).encode()).digest(2 * dimensions)
    numbers = [number - 32767.5 for number in unpack(f"<{dimensions}H", digest)]
    length = sqrt(sum(number * number for number in numbers))
    return list(unpack(f"<{dimensions}f", pack(f"<{dimensions}f", *(number / length for number in numbers))))


def why_not(sent: object, field: str, instead: tuple[str, ...] = ()) -> str | None:
    """Say why a body is no request of a protocol that asks for a model and `field`, or one of others `instead`.

    The field is a list; as input one text is enough.
    """
    if not isinstance(sent, dict):
        return "the body is no JSON object"
    model, told = sent.get("model"), sent.get(field)
    if not isinstance(model, str) or not model:
        return "model: it is required, and is a string"
    if (field == "input" and isinstance(told, str)) or (told is None and any(sent.get(name) for name in instead)):
        return None
    if not isinstance(told, list) or not told:
        return f"{field}: it is required, and is a list that is not empty"
    if field == "messages" and not all(isinstance(one, dict) for one in told):
        return "messages: each is an object"
    return None


def last_text(body: Mapping[str, Any]) -> str:
    """Return the text of a request's last message: of several parts, all that are text."""
    last = _messages(body)[-1]
    if not isinstance(last, str | Mapping):  # tokens, to be embedded
        return ""
    content = last if isinstance(last, str) else last.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") in ("text", "input_text"))


def words(body: Mapping[str, Any]) -> int:
    """Count what the prompt is billed for: the words of its messages."""
    return sum(len(json.dumps(message).split()) for message in _messages(body))


def _messages(body: Mapping[str, Any]) -> Sequence[Any]:
    """Return the messages of a request, under either name; one that is a text stands for itself."""
    told = body.get("messages") or body.get("input") or [""]
    return [told] if isinstance(told, str) else told


class OpenAI:
    """POST /v1/chat/completions."""

    asks_for = "messages"
    instead = ()

    finishes = {  # noqa: RUF012 - a table, never changed
        "stop": "stop", "length": "length", "refusal": "stop", "filter": "content_filter", "tools": "tool_calls",
    }  # fmt: skip

    def answer(self, reply: Reply, body: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return a chat completion."""
        refused = reply.finish == "refusal"
        message: dict[str, Any] = {
            "role": "assistant", "content": None if refused or reply.tool else reply.text,
            "refusal": reply.text if refused else None,
        }  # fmt: skip
        if reply.tool is not None:
            message["tool_calls"] = [self._tool(reply.tool, number)]
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self.finishes[reply.finish]}
            for index in range(body.get("n") or 1)
        ]
        head = self._head(body, number, "chat.completion")
        return {**head, "choices": choices, "usage": self._usage(reply, body), **reply.extra}

    def pieces(self, reply: Reply, body: Mapping[str, Any], number: int) -> Iterator[str]:
        """Yield the server-sent events of a stream."""
        head = self._head(body, number, "chat.completion.chunk")
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if reply.tool is not None:
            deltas[0]["tool_calls"] = [{"index": 0, **self._tool(reply.tool, number)}]
        else:
            where = "refusal" if reply.finish == "refusal" else "content"
            deltas += [{where: piece} for piece in cut(reply.text)]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            yield _data({**head, "choices": [choice], **usage, **reply.extra})
        end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": self.finishes[reply.finish]}
        yield _data({**head, "choices": [end], **usage, **reply.extra})
        if with_usage:
            yield _data({**head, "choices": [], "usage": self._usage(reply, body), **reply.extra})
        yield "data: [DONE]\n\n"

    def error(self, status: int) -> dict[str, Any]:
        """Return the body of an error."""
        return {"error": {"message": f"the stand-in was told to fail with {status}", "type": "stand_in", "code": None}}

    def refusal(self, why: str) -> dict[str, Any]:
        """Return the body of a 400: the request is none."""
        return {"error": {"message": why, "type": "invalid_request_error", "param": None, "code": None}}

    def _head(self, body: Mapping[str, Any], number: int, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{number}", "object": kind, "created": 1_700_000_000, "model": body["model"]}

    def _usage(self, reply: Reply, body: Mapping[str, Any]) -> dict[str, int]:
        prompt, completion = words(body), len(reply.text.split()) + 1
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _tool(self, tool: tuple[str, Mapping[str, Any]], number: int) -> dict[str, Any]:
        called = {"name": tool[0], "arguments": json.dumps(tool[1])}
        return {"id": f"call_{number}", "type": "function", "function": called}


class Embeddings:
    """POST /v1/embeddings, as float or base64; it has no streams."""

    asks_for = "input"
    instead = ()

    dimensions = 16

    def answer(self, reply: Reply, body: Mapping[str, Any], number: int) -> dict[str, Any]:  # noqa: ARG002 - as the others
        """Return a list of embeddings: of a text or of tokens, or of several."""
        told = body["input"]
        inputs = told if isinstance(told, list) and not all(isinstance(one, int) for one in told) else [told]
        vectors = [vector_of(one, body.get("dimensions") or self.dimensions) for one in inputs]
        if body.get("encoding_format") == "base64":
            rows: list[Any] = [b64encode(pack(f"<{len(row)}f", *row)).decode() for row in vectors]
        else:
            rows = list(vectors)
        tokens = sum(len(one.split() if isinstance(one, str) else one) for one in inputs)
        return {
            "object": "list", "model": body["model"], "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            **reply.extra,
        }  # fmt: skip

    def pieces(self, reply: Reply, body: Mapping[str, Any], number: int) -> Iterator[str]:
        """Yield the whole answer, whoever asks for a stream."""
        yield _data(self.answer(reply, body, number))

    def error(self, status: int) -> dict[str, Any]:
        """Return the body of an error."""
        return OpenAI().error(status)

    def refusal(self, why: str) -> dict[str, Any]:
        """Return the body of a 400: the request is none."""
        return OpenAI().refusal(why)


class Anthropic:
    """POST /v1/messages."""

    asks_for = "messages"
    instead = ()

    finishes = {  # noqa: RUF012 - a table, never changed
        "stop": "end_turn", "length": "max_tokens", "refusal": "refusal", "filter": "refusal", "tools": "tool_use",
    }  # fmt: skip

    def answer(self, reply: Reply, body: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return a message."""
        content: list[dict[str, Any]] = []
        if reply.reasoning:
            content.append({"type": "thinking", "thinking": reply.reasoning, "signature": f"signed_{number}"})
        if reply.text:
            content.append({"type": "text", "text": reply.text})
        if reply.tool is not None:
            content.append({"type": "tool_use", "id": f"toolu_{number}", "name": reply.tool[0], "input": reply.tool[1]})
        return {
            **self._head(body, number), "content": content, "stop_reason": self.finishes[reply.finish],
            "stop_sequence": None, "usage": {"input_tokens": words(body), "output_tokens": self._tokens(reply)},
            **reply.extra,
        }  # fmt: skip

    def pieces(self, reply: Reply, body: Mapping[str, Any], number: int) -> Iterator[str]:
        """Yield the server-sent events of a stream."""
        usage = {"input_tokens": words(body), "output_tokens": 1}
        begun = {**self._head(body, number), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield event("message_start", message={**begun, **reply.extra})
        yield event("ping")
        place = 0
        if reply.reasoning:
            block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            yield event("content_block_start", index=place, content_block=block)
            for piece in cut(reply.reasoning):
                yield event("content_block_delta", index=place, delta={"type": "thinking_delta", "thinking": piece})
            signed = {"type": "signature_delta", "signature": f"signed_{number}"}
            yield event("content_block_delta", index=place, delta=signed)
            yield event("content_block_stop", index=place)
            place += 1
        if reply.text:
            yield event("content_block_start", index=place, content_block={"type": "text", "text": ""})
            for piece in cut(reply.text):
                yield event("content_block_delta", index=place, delta={"type": "text_delta", "text": piece})
            yield event("content_block_stop", index=place)
            place += 1
        if reply.tool is not None:
            block = {"type": "tool_use", "id": f"toolu_{number}", "name": reply.tool[0], "input": {}}
            yield event("content_block_start", index=place, content_block=block)
            for piece in cut(json.dumps(reply.tool[1])):
                delta = {"type": "input_json_delta", "partial_json": piece}
                yield event("content_block_delta", index=place, delta=delta)
            yield event("content_block_stop", index=place)
        ended = {"stop_reason": self.finishes[reply.finish], "stop_sequence": None}
        yield event("message_delta", delta=ended, usage={"output_tokens": self._tokens(reply)})
        yield event("message_stop")

    def error(self, status: int) -> dict[str, Any]:
        """Return the body of an error."""
        told = {"type": "api_error", "message": f"the stand-in was told to fail with {status}"}
        return {"type": "error", "error": told}

    def refusal(self, why: str) -> dict[str, Any]:
        """Return the body of a 400: the request is none."""
        return {"type": "error", "error": {"type": "invalid_request_error", "message": why}}

    def _head(self, body: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": body["model"]}

    def _tokens(self, reply: Reply) -> int:
        return len(reply.text.split()) + 1


def cut(text: str) -> list[str]:
    """Return the pieces in which a text is streamed."""
    return [text[place : place + PIECE_CHARACTERS] for place in range(0, len(text), PIECE_CHARACTERS)]


def _data(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def event(kind: str, **data: Any) -> str:
    """Return a server-sent event that has a name."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
