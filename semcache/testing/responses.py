"""What a stand-in model says in OpenAI's responses API: responses, and the events of a stream.

Pure, as the other protocols. A stream is made of the whole response, so that what a test puts into it by `extra`, such
as items of built-in tools in `output` or a `status` of failure, comes in the events too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from semcache.testing.protocols import OpenAI, Reply, cut, event, words

_Json = dict[str, Any]
# What a response says again of its request, and what it says where that says nothing.
_ECHOED: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True,
    "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": True, "temperature": 1.0,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled",
    "user": None,
}  # fmt: skip
_CUT_BY = {"length": "max_output_tokens", "filter": "content_filter"}


class Responses:
    """POST /v1/responses."""

    asks_for = "input"
    instead = ("prompt", "previous_response_id", "conversation")

    def answer(self, reply: Reply, body: Mapping[str, Any], number: int) -> _Json:
        """Return a response."""
        why_cut = _CUT_BY.get(reply.finish)
        return {
            "id": f"resp_{number}", "object": "response", "created_at": 1_700_000_000,
            "status": "completed" if why_cut is None else "incomplete", "error": None,
            "incomplete_details": None if why_cut is None else {"reason": why_cut}, "model": body["model"],
            **{name: body.get(name, default) for name, default in _ECHOED.items()},
            "output": self._output(reply, number, "completed" if why_cut is None else "incomplete"),
            "usage": self._usage(reply, body), **reply.extra,
        }  # fmt: skip

    def pieces(self, reply: Reply, body: Mapping[str, Any], number: int) -> Iterator[str]:
        """Yield the server-sent events of a stream, numbered."""
        for place, (kind, data) in enumerate(self._events(self.answer(reply, body, number))):
            yield event(kind, **data, sequence_number=place)

    def error(self, status: int) -> _Json:
        """Return the body of an error."""
        return OpenAI().error(status)

    def refusal(self, why: str) -> _Json:
        """Return the body of a 400: the request is none."""
        return OpenAI().refusal(why)

    def _output(self, reply: Reply, number: int, status: str) -> list[_Json]:
        items: list[_Json] = []
        if reply.reasoning:
            summary = [{"type": "summary_text", "text": reply.reasoning}]
            items.append({"id": f"rs_{number}", "type": "reasoning", "summary": summary})
        if reply.text or reply.tool is None:
            part: _Json = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
            if reply.finish == "refusal":
                part = {"type": "refusal", "refusal": reply.text}
            message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": status}
            items.append({**message, "content": [part]})
        if reply.tool is not None:
            called = {"name": reply.tool[0], "arguments": json.dumps(reply.tool[1]), "call_id": f"call_{number}"}
            items.append({"id": f"fc_{number}", "type": "function_call", "status": status, **called})
        return items

    def _usage(self, reply: Reply, body: Mapping[str, Any]) -> _Json:
        thought = len(reply.reasoning.split())
        asked, said = words(body), len(reply.text.split()) + 1 + thought
        return {
            "input_tokens": asked, "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
            "output_tokens": said, "output_tokens_details": {"reasoning_tokens": thought}, "total_tokens": asked + said,
        }  # fmt: skip

    def _events(self, answer: _Json) -> Iterator[tuple[str, _Json]]:
        silent: _Json = {
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        begun = {"response": {**answer, **silent}}
        yield "response.created", begun
        yield "response.in_progress", begun
        for place, item in enumerate(answer["output"]):
            where: _Json = {"item_id": item.get("id") or item.get("call_id"), "output_index": place}
            yield "response.output_item.added", {"output_index": place, "item": _opened(item)}
            for kind, data in _filled(item):
                yield kind, {**where, **data}
            yield "response.output_item.done", {"output_index": place, "item": item}
        yield f"response.{answer['status']}", {"response": answer}


def _opened(item: _Json) -> _Json:
    """Return an item before anything is in it."""
    empty: _Json = {"message": {"content": []}, "reasoning": {"summary": []}, "function_call": {"arguments": ""}}
    status = {"status": "in_progress"} if "status" in item else {}
    return {**item, **status, **empty.get(item["type"], {})}


def _filled(item: _Json) -> Iterator[tuple[str, _Json]]:
    """Yield what comes between an item's beginning and its end."""
    if item["type"] == "message":
        for place, part in enumerate(item["content"]):
            field = "text" if part["type"] == "output_text" else "refusal"
            where: _Json = {"content_index": place}
            logprobs: _Json = {"logprobs": []} if field == "text" else {}
            yield "response.content_part.added", {**where, "part": {**part, field: ""}}
            for piece in cut(part[field]):
                yield f"response.{part['type']}.delta", {**where, "delta": piece, **logprobs}
            yield f"response.{part['type']}.done", {**where, field: part[field], **logprobs}
            yield "response.content_part.done", {**where, "part": part}
    elif item["type"] == "reasoning":
        for place, part in enumerate(item["summary"]):
            where = {"summary_index": place}
            yield "response.reasoning_summary_part.added", {**where, "part": {**part, "text": ""}}
            for piece in cut(part["text"]):
                yield "response.reasoning_summary_text.delta", {**where, "delta": piece}
            yield "response.reasoning_summary_text.done", {**where, "text": part["text"]}
            yield "response.reasoning_summary_part.done", {**where, "part": part}
    elif item["type"] == "function_call":
        for piece in cut(item["arguments"]):
            yield "response.function_call_arguments.delta", {"delta": piece}
        told = {name: item[name] for name in ("name", "arguments")}
        yield "response.function_call_arguments.done", told
