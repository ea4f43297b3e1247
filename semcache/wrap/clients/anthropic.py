"""Messages, as Anthropic speaks them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from semcache.model import Usage
from semcache.wrap.clients.dialect import Cut, Json, told_as_json

# Which field of a block each kind of delta adds to.
_ADDS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_PROMPT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_TOLD_AT_THE_END = ("stop_reason", "stop_sequence", "stop_details", "container")
# What the model says by itself; any other block is a call of a tool, or what one gave, of the server's too.
_OWN_BLOCKS = frozenset({"text", "thinking", "redacted_thinking"})
_ENDED_WELL = ("end_turn", "stop_sequence", "tool_use")


class Messages:
    """POST /v1/messages."""

    name = "anthropic.messages"
    resource: tuple[str, ...] = ("messages",)
    turns = "messages"
    text_part = "text"
    echoes: frozenset[str] = frozenset()
    ignored = frozenset({"stream", "metadata", "service_tier"})

    def claims(self, path: str, answer_type: str) -> bool:
        """Take what messages.create and messages.stream post."""
        return path == "/v1/messages" and answer_type == "Message"

    def samples(self, body: Json) -> str | None:
        """Look at temperature."""
        return "temperature" if (body.get("temperature") or 0) > 0 else None

    def state(self, body: Json) -> str | None:
        """Look at a container that the server keeps, whose files may change."""
        container = body.get("container")
        named = container.get("id") if isinstance(container, dict) else container
        return "container" if named else None

    def asks_usage(self, body: Json) -> bool:  # noqa: ARG002 - it is always told
        """Streams tell it unasked."""
        return True

    def usage(self, answer: Json) -> Usage | None:
        """Return the tokens of prompt, cached or not, and completion."""
        told = answer.get("usage")
        if not told:
            return None
        plain, written, cached = (told.get(name) or 0 for name in _PROMPT)
        return Usage(
            plain + written + cached, told.get("output_tokens") or 0, cached_tokens=cached, cache_write_tokens=written
        )

    def unkept(self, answer: Json, *, tools: bool) -> str | None:
        """Keep what ended by itself and says something."""
        reason, blocks = answer["stop_reason"], answer["content"]
        if reason == "refusal":
            return "refusal"
        calls = [block for block in blocks if block["type"] not in _OWN_BLOCKS]
        if (calls or reason == "tool_use") and not tools:
            return "tool calls"
        if reason not in _ENDED_WELL:
            return f"stop_reason {reason}"
        for block in calls:
            told = block.get("content")
            if isinstance(told, dict) and str(told.get("type")).endswith("_error"):
                return f"{block['type']} failed"
        says = any(
            block.get("text") if block["type"] == "text" else block["type"] not in _OWN_BLOCKS for block in blocks
        )
        return None if says else "empty"

    def as_chat(self, body: Json) -> Json:
        """Put the system's word before the messages, whose blocks stay as they are."""
        rest = {name: item for name, item in body.items() if name not in ("system", "messages")}
        framed = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        return {"api": self.name, **rest, "messages": [*framed, *body["messages"]]}

    def text(self, answer: Json) -> str:
        """Return the texts of the blocks, or, where they are not all of it, the blocks."""
        blocks = answer["content"]
        if all(block["type"] == "text" for block in blocks):
            return "".join(block["text"] for block in blocks)
        return told_as_json(blocks)

    def said(self, answer: Json, text: str) -> Json:
        """Return the answer as it were if it had said this text and nothing else."""
        return {**answer, "content": [{"type": "text", "text": text}]}

    def assemble(self, chunks: Sequence[Json]) -> Json:
        """Add the events up, block by block."""
        answer: Json = {}
        blocks: dict[int, Json] = {}
        inputs: dict[int, str] = {}
        has_ended = False
        for chunk in chunks:
            kind = chunk["type"]
            if kind == "message_start":
                answer = dict(chunk["message"])
            elif kind == "content_block_start":
                blocks[chunk["index"]] = dict(chunk["content_block"])
            elif kind == "content_block_delta":
                _add(blocks[chunk["index"]], chunk["delta"], inputs, chunk["index"])
            elif kind == "message_delta":
                answer.update(chunk["delta"])
                told = {name: item for name, item in (chunk.get("usage") or {}).items() if item is not None}
                answer["usage"] = {**answer["usage"], **told}
            has_ended = has_ended or kind == "message_stop"
        if not has_ended:
            raise ValueError("the stream broke off")
        for index, text in inputs.items():
            blocks[index]["input"] = json.loads(text) if text else {}
        answer["content"] = [blocks[index] for index in sorted(blocks)]
        return answer

    def split(self, answer: Json, *, with_usage: bool, cut: Cut) -> list[Json]:  # noqa: ARG002 - it is always told
        """Tell who speaks, each block, and why it ended."""
        begun = {**answer, "content": [], "stop_reason": None, "stop_sequence": None}
        chunks: list[Json] = [{"type": "message_start", "message": begun}]
        for index, block in enumerate(answer["content"]):
            empty, deltas = _opened(block, cut)
            chunks.append({"type": "content_block_start", "index": index, "content_block": empty})
            chunks += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            chunks.append({"type": "content_block_stop", "index": index})
        ended = {name: answer[name] for name in _TOLD_AT_THE_END if name in answer}
        chunks.append({"type": "message_delta", "delta": ended, "usage": _counted(answer["usage"])})
        return [*chunks, {"type": "message_stop"}]

    def without_usage(self, chunks: Sequence[Json]) -> list[Json]:
        """Leave them as they are: nobody asks for it."""
        return list(chunks)


def _add(block: Json, delta: Json, inputs: dict[int, str], index: int) -> None:
    """Add a delta to its block. Raises ValueError for one of a kind that nobody here knows."""
    kind = delta["type"]
    if kind in _ADDS:
        block[_ADDS[kind]] = (block.get(_ADDS[kind]) or "") + delta[_ADDS[kind]]
    elif kind == "input_json_delta":
        inputs[index] = inputs.get(index, "") + delta["partial_json"]
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or []), delta["citation"]]
    else:
        raise ValueError(f"a delta of kind {kind} cannot be added up")


def _opened(block: Json, cut: Cut) -> tuple[Json, list[Json]]:
    """Return a block as a stream opens it, and the deltas that fill it."""
    kind = block["type"]
    if kind == "text":
        cited = [{"type": "citations_delta", "citation": one} for one in block.get("citations") or []]
        empty = {**block, "text": "", **({"citations": []} if cited else {})}
        return empty, [*cited, *({"type": "text_delta", "text": piece} for piece in cut(block["text"]))]
    if kind == "thinking":
        signed = {"type": "signature_delta", "signature": block["signature"]}
        thought = {"type": "thinking_delta", "thinking": block["thinking"]}
        return {**block, "thinking": "", "signature": ""}, [thought, signed]
    if isinstance(block.get("input"), dict):
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
    return block, []


def _counted(usage: Json) -> Json:
    """Return the part of a usage that the end of a stream tells."""
    names = (*_PROMPT, "output_tokens", "server_tool_use")
    return {name: usage[name] for name in names if usage.get(name) is not None}
