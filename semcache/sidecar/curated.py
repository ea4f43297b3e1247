"""An answer that somebody wrote, as the protocol that is asked in says it, and as it is kept: whole, with its head."""

from __future__ import annotations

import json
from secrets import token_hex
from time import time
from typing import Any

_HEAD = {"content-type": "application/json"}
_ID_BYTES = 12


def answer_of(dialect: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    """Return what is kept for a call of a dialect whose answer is a text; it used nothing, as nobody was asked."""
    maker = {"openai.chat.completions": _chat, "openai.responses": _response, "anthropic.messages": _message}[dialect]
    told = maker(str(body.get("model") or ""), token_hex(_ID_BYTES), text)
    return {"body": json.dumps(told, separators=(",", ":")), "head": _HEAD}


def _chat(model: str, name: str, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": f"chatcmpl-{name}", "object": "chat.completion", "created": int(time()), "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }  # fmt: skip


def _message(model: str, name: str, text: str) -> dict[str, Any]:
    return {
        "id": f"msg_{name}", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }  # fmt: skip


def _response(model: str, name: str, text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    said = {"id": f"msg_{name}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": f"resp_{name}", "object": "response", "created_at": int(time()), "status": "completed", "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "model": model, "output": [said],
        "parallel_tool_calls": True, "temperature": None, "tool_choice": "auto", "tools": [], "top_p": None,
        "usage": {
            "input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0,
        },
    }  # fmt: skip
