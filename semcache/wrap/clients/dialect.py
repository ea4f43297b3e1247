"""A dialect: what one protocol's calls mean. All that is the same for all of them is the engine's.

Laws: a dialect is pure; it sees plain JSON data, never the SDK's classes; what it does not know it leaves in the key
(law 1), and an answer that it cannot account for it does not keep (law 7).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from semcache.model import Usage

Json = dict[str, Any]
Cut = Callable[[str], list[str]]
_WORD = re.compile(r"\S{1,12}\s*|\s+")


class Dialect(Protocol):
    """The calls of one endpoint.

    `name` is what its answers can be invalidated by, as a function's are; `ignored` are the parameters known not to
    change the answer (docs/clients.md lists them). `resource` leads from a client to what has `create`; `turns` is the
    parameter that holds the conversation, `text_part` the type of a message's part that is text. `echoes` are ignored
    parameters that an answer says again: what one caller sent is not shown to another.
    """

    name: str
    ignored: frozenset[str]
    resource: tuple[str, ...]
    turns: str
    text_part: str
    echoes: frozenset[str]

    def claims(self, path: str, answer_type: str) -> bool:
        """Say whether a POST to this path, for an answer of a type of this name, is a call of this dialect."""
        ...

    def samples(self, body: Json) -> str | None:
        """Say by which parameter the caller asked for answers that differ, if so."""
        ...

    def state(self, body: Json) -> str | None:
        """Say by which parameter the answer rests on what the server keeps, if so: no key can know that."""
        ...

    def asks_usage(self, body: Json) -> bool:
        """Say whether the chunks of a stream are to tell what it used."""
        ...

    def usage(self, answer: Json) -> Usage | None:
        """Return what an answer used, if it says so."""
        ...

    def unkept(self, answer: Json, *, tools: bool) -> str | None:
        """Say why an answer is not worth keeping, if so; `tools` says that calls of tools are."""
        ...

    def as_chat(self, body: Json) -> Json:
        """Return a call as a chat completion's body, for a recording: `messages`, and all else as it was sent."""
        ...

    def text(self, answer: Json) -> str:
        """Return what an answer says: its text, or JSON where that is not all of it."""
        ...

    def said(self, answer: Json, text: str) -> Json:
        """Return the answer as it were if it had said this text and nothing else."""
        ...

    def assemble(self, chunks: Sequence[Json]) -> Json:
        """Return the answer that a whole stream's chunks make. Raises where they make none, in any way."""
        ...

    def split(self, answer: Json, *, with_usage: bool, cut: Cut) -> list[Json]:
        """Return the chunks that make an answer, its text in the pieces that `cut` makes of it."""
        ...

    def without_usage(self, chunks: Sequence[Json]) -> list[Json]:
        """Return chunks that told their usage as they are for who does not ask for it."""
        ...


def whole(text: str) -> list[str]:
    """Return a text as one piece."""
    return [text]


def words(text: str) -> list[str]:
    """Return a text in pieces of about a word, as a model's chunks are."""
    return _WORD.findall(text) or [text]


def told_as_json(said: object) -> str:
    """Return what an answer says beside texts."""
    return json.dumps(said, ensure_ascii=False)


def id_in(told: Json) -> str | None:
    """Return the id that a provider gave an answer, be it whole or the first event of a stream."""
    for part in (told, told.get("message"), told.get("response")):
        if isinstance(part, dict) and isinstance(part.get("id"), str):
            return str(part["id"])
    return None


def with_own(told: Json, body: Json, echoes: frozenset[str]) -> Json:
    """Return an answer, or an event that holds one, that says what this caller has sent instead of what another did."""
    inner = told.get("response")
    if isinstance(inner, dict):
        return {**told, "response": with_own(inner, body, echoes)}
    own = {name: body.get(name, {} if told[name].__class__ is dict else None) for name in echoes if name in told}
    return {**told, **own}


def merged(parts: Mapping[str, Any], more: Mapping[str, Any], *, whole: frozenset[str]) -> Json:
    """Add a delta to what is there: text to text, lists to lists (by their items' `index`), the rest takes its place.

    `whole` names the text that is not told in pieces.
    """
    told = dict(parts)
    for name, item in more.items():
        old = told.get(name)
        if isinstance(old, str) and isinstance(item, str) and name not in whole:
            told[name] = old + item
        elif isinstance(old, dict) and isinstance(item, dict):
            told[name] = merged(old, item, whole=whole)
        elif isinstance(item, list) and (old is None or isinstance(old, list)):
            told[name] = _merged_items(old or [], item, whole)
        elif item is not None or name not in told:
            told[name] = item
    return told


def _merged_items(old: list[Any], more: list[Any], whole: frozenset[str]) -> list[Any]:
    items = list(old)
    for item in more:
        index = item.get("index") if isinstance(item, dict) else None
        places = [place for place, there in enumerate(items) if index is not None and there.get("index") == index]
        if places:
            items[places[0]] = merged(items[places[0]], item, whole=whole)
        else:
            items.append(item)
    return items
