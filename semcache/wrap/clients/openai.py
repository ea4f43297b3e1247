"""Chat completions, as OpenAI and all who are compatible with it speak them."""

from __future__ import annotations

from collections.abc import Sequence

from semcache.model import Usage
from semcache.wrap.clients.dialect import Cut, Json, merged, told_as_json

# In a delta these come at once; all other text comes in pieces.
_WHOLE = frozenset({"id", "type", "role"})
_PLAIN = frozenset({"index", "delta", "logprobs", "finish_reason"})
_OF_STREAMS = frozenset({"choices", "object", "usage"})


def _only_says(choice: Json) -> bool:
    """Say whether a choice in a chunk holds a piece of text and nothing else."""
    delta = choice["delta"]
    if len(delta) != 1 or not isinstance(delta.get("content"), str) or not choice.keys() <= _PLAIN:
        return False
    return choice.get("finish_reason") is None and choice.get("logprobs") is None


class ChatCompletions:
    """POST /chat/completions."""

    name = "openai.chat.completions"
    resource: tuple[str, ...] = ("chat", "completions")
    turns = "messages"
    text_part = "text"
    echoes: frozenset[str] = frozenset()
    ignored = frozenset({
        "stream", "stream_options", "user", "safety_identifier", "metadata", "service_tier", "store",
        "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    })  # fmt: skip

    def claims(self, path: str, answer_type: str) -> bool:
        """Take what chat.completions.create posts."""
        return path == "/chat/completions" and answer_type == "ChatCompletion"

    def samples(self, body: Json) -> str | None:
        """Look at temperature and n."""
        if (body.get("temperature") or 0) > 0:
            return "temperature"
        return "n" if (body.get("n") or 1) > 1 else None

    def state(self, body: Json) -> str | None:  # noqa: ARG002 - there is none
        """Answers rest on what is sent alone."""
        return None

    def asks_usage(self, body: Json) -> bool:
        """Look at stream_options."""
        return bool((body.get("stream_options") or {}).get("include_usage"))

    def usage(self, answer: Json) -> Usage | None:
        """Return the tokens of prompt, cached or not, and completion."""
        told = answer.get("usage")
        if not told:
            return None
        prompt = told.get("prompt_tokens") or 0
        cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        # Of those who are compatible some count what is cached beside the prompt.
        return Usage(prompt, told.get("completion_tokens") or 0, cached_tokens=min(cached, prompt))

    def unkept(self, answer: Json, *, tools: bool) -> str | None:
        """Keep what ended by itself and says something."""
        for choice in answer["choices"]:
            message, finish = choice["message"], choice["finish_reason"]
            if message.get("refusal"):
                return "refusal"
            calls = message.get("tool_calls") or message.get("function_call")
            if (calls or finish in ("tool_calls", "function_call")) and not tools:
                return "tool calls"
            if finish not in ("stop", "tool_calls", "function_call"):
                return f"finish_reason {finish}"
            if not message.get("content") and not calls and not message.get("audio"):
                return "empty"
        return None if answer["choices"] else "empty"

    def as_chat(self, body: Json) -> Json:
        """Leave it as it is."""
        return body

    def text(self, answer: Json) -> str:
        """Return the content of the message; of several, or with calls of tools in it, the messages."""
        messages = [choice["message"] for choice in answer["choices"]]
        if len(messages) != 1:
            return told_as_json(messages)
        (message,) = messages
        is_text = isinstance(message.get("content"), str) and not message.get("tool_calls")
        return message["content"] if is_text else told_as_json({name: item for name, item in message.items() if item})

    def said(self, answer: Json, text: str) -> Json:
        """Return the answer as it were if it had said this text and nothing else."""
        choice = answer["choices"][0]
        message = {"role": "assistant", "content": text, "refusal": choice["message"].get("refusal")}
        return {**answer, "choices": [{**choice, "index": 0, "message": message, "logprobs": None}]}

    def assemble(self, chunks: Sequence[Json]) -> Json:
        """Add the deltas up, choice by choice."""
        choices: dict[int, Json] = {}
        said: dict[int, list[str]] = {}  # what was said since the choice was merged last, as most chunks say no more
        answer: Json = {}
        for chunk in chunks:
            for name, item in chunk.items():
                if name not in _OF_STREAMS:
                    answer[name] = item
            if chunk.get("usage"):
                answer["usage"] = chunk["usage"]
            for choice in chunk["choices"]:
                index = choice["index"]
                if index in choices and _only_says(choice):
                    said.setdefault(index, []).append(choice["delta"]["content"])
                    continue
                told = choices.get(index, {"delta": {}, "logprobs": None})
                if index in said:
                    told = merged(told, {"delta": {"content": "".join(said.pop(index))}}, whole=_WHOLE)
                choices[index] = merged(told, choice, whole=_WHOLE | {"finish_reason"})
        if not choices or any(choice.get("finish_reason") is None for choice in choices.values()):
            raise ValueError("the stream broke off")
        answer["object"] = "chat.completion"
        answer["choices"] = [self._whole(choices[index]) for index in sorted(choices)]
        return answer

    def _whole(self, choice: Json) -> Json:
        """Return a choice of an answer, made of one of a stream's."""
        message = {"role": "assistant", "content": None, "refusal": None, **choice["delta"]}
        calls = message.get("tool_calls")
        if calls:
            message["tool_calls"] = [{name: item for name, item in call.items() if name != "index"} for call in calls]
            message["content"] = message["content"] or None
        if message["refusal"]:
            message["content"] = message["content"] or None
        rest = {name: item for name, item in choice.items() if name != "delta"}
        return {**rest, "message": message}

    def split(self, answer: Json, *, with_usage: bool, cut: Cut) -> list[Json]:
        """Tell who speaks, what is said, why it ended, and what was used if that is asked for."""
        head = {name: item for name, item in answer.items() if name not in _OF_STREAMS}
        head["object"] = "chat.completion.chunk"
        silent: Json = {"usage": None} if with_usage else {}
        chunks: list[Json] = []
        for choice in answer["choices"]:
            told = dict(choice["message"])
            if told.get("tool_calls"):
                told["tool_calls"] = [{"index": place, **call} for place, call in enumerate(told["tool_calls"])]
            rest = {name: item for name, item in choice.items() if name != "message"} | {"finish_reason": None}
            begun = {"role": told.pop("role", "assistant"), "content": ""}
            said = {name: item for name, item in told.items() if item is not None}
            ended = {"index": choice["index"], "delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}
            pieces = cut(said["content"]) if said.keys() == {"content"} and not rest.get("logprobs") else []
            deltas = [{"content": piece} for piece in pieces] or [said]
            told_in = [
                {**rest, "logprobs": None, "delta": begun}, *({**rest, "delta": delta} for delta in deltas), ended,
            ]  # fmt: skip
            chunks += [{**head, "choices": [one], **silent} for one in told_in]
        if with_usage:
            chunks.append({**head, "choices": [], "usage": answer.get("usage")})
        return chunks

    def without_usage(self, chunks: Sequence[Json]) -> list[Json]:
        """Leave the chunk out that has nothing else."""
        return [{name: item for name, item in chunk.items() if name != "usage"} for chunk in chunks if chunk["choices"]]
