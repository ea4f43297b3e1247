"""What a recorded request's key is made of, part by part: for who asks which of them keeps requests apart.

Laws: every part of the key is one ingredient, so all of them together are equal where keys are; of a request nothing is
kept but hashes, and where in a text something may move.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from semcache.errors import UnkeyableError
from semcache.keys import canonical
from semcache.traffic import DELIVERY, Recorded, meaning
from semcache.wrap.clients.moving import sites

TEXT = "text"
TENANT = "tenant"
SYSTEM = "system prompt"
TURNS = "earlier turns"
_SYSTEM_ROLES = ("system", "developer")
# Objects among the parameters are taken apart so deep: a session's id may stand inside one.
_DEEPEST = 3
# So much of a text is searched for what moves, and so many places are noted.
_SEARCHED_CHARACTERS = 8000
_MOST_SITES = 8


class Site(NamedTuple):
    """What may move in a text: "a clock" or "an id", at which character, and a hash of what stands there."""

    what: str
    character: int
    value: int


@dataclass(slots=True)
class Ingredients:
    """The parts of one request, as hashes.

    `still` are hashes of those texts in which a sign stands for each clock and id, `sites` where these were; `folded`
    is the text without regard to case, spaces and marks. `total` is of all parts, less any of them by `without`.
    """

    parts: dict[str, int]
    still: dict[str, int] = field(default_factory=dict)
    sites: dict[str, list[Site]] = field(default_factory=dict)
    folded: int | None = None
    total: int = 0

    def without(self, *names: str) -> int:
        """Return what all parts but these come to."""
        return self.total - sum(hash((name, self.parts[name])) for name in set(names) if name in self.parts)

    def stilled(self, *names: str) -> int:
        """Return what all parts come to where in these nothing moves."""
        total = self.without(*names)
        return total + sum(
            hash((name, self.still.get(name, self.parts[name]))) for name in set(names) if name in self.parts
        )


def ingredients(recorded: Recorded) -> Ingredients | None:
    """Return what a request's key is made of; None where it has none."""
    found = Ingredients({})
    try:
        _add(found, "kind", recorded.kind)
        _add(found, TENANT, recorded.tenant)
        if recorded.kind == "llm":
            _add_chat(found, recorded)
        else:
            text = "query" if recorded.kind == "retrieval" else ""
            for name, value in recorded.request.items():
                if name != text and (recorded.kind == "retrieval" or name not in DELIVERY):
                    _add_parameter(found, _named(name), value)
            if text:
                _add_text(found, TEXT, recorded.request[text])
                found.folded = hash(_folded(recorded.request[text]))
    except (UnkeyableError, RecursionError):
        return None
    found.total = sum(hash(item) for item in found.parts.items())
    return found


def _add_chat(found: Ingredients, recorded: Recorded) -> None:
    request = recorded.request
    for name, value in request.items():
        if name != "messages" and name not in DELIVERY:
            _add_parameter(found, _named(name), value)
    *earlier, _ = request["messages"]
    frame = meaning(recorded)
    system = [one for one in earlier if one["role"] in _SYSTEM_ROLES]
    turns = [one for one in earlier if one["role"] not in _SYSTEM_ROLES]
    if system:
        _add_text(found, SYSTEM, "\n".join(map(_content, system)), system)
    if turns:
        _add_text(found, TURNS, "\n".join(f"{one['role']}: {_content(one)}" for one in turns), turns)
    order = [one["role"] in _SYSTEM_ROLES for one in earlier]
    if order != sorted(order, reverse=True):  # a system message among the turns: where it stands is in the key
        _add(found, "order of messages", order)
    _add(found, "last message", [frame.exact_only, frame.parts[1]["messages"][-1]])  # type: ignore[index]
    if frame.text is not None:
        _add_text(found, TEXT, frame.text)
        found.folded = hash(_folded(frame.text))


def _named(parameter: str) -> str:
    """Return a parameter's name among the parts, where none of ours is."""
    return "model" if parameter == "model" else f"parameter {parameter}"


def _add(found: Ingredients, name: str, value: object) -> None:
    found.parts[name] = hash(canonical(value))


def _add_parameter(found: Ingredients, name: str, value: Any, depth: int = 1) -> None:
    if isinstance(value, dict) and value and depth < _DEEPEST:
        for inner, one in value.items():
            _add_parameter(found, f"{name}.{inner}", one, depth + 1)
    elif isinstance(value, str):
        _add_text(found, name, value)
    else:
        _add(found, name, value)


def _add_text(found: Ingredients, name: str, text: str, whole: Any = None) -> None:
    """Add a text, or the `whole` that it is the words of."""
    _add(found, name, text if whole is None else whole)
    places = []
    pieces: list[str] = []
    end = 0
    for what, start, stop in sites(text[:_SEARCHED_CHARACTERS]):
        places.append(Site(what, start, hash(text[start:stop])))
        pieces += (text[end:start], "\0" + what)
        end = stop
    if places:
        found.sites[name] = places[:_MOST_SITES]
        found.still[name] = hash("".join([*pieces, text[end:]]))


def _content(message: dict[str, Any]) -> str:
    """Return a message's words; of one that is more than a text, all of it."""
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:  # noqa: PLR2004 - a role and its words
        return f"{content}"
    return json.dumps(message, ensure_ascii=False, sort_keys=True)


def _folded(text: str) -> str:
    """Return a text's words without regard to case, spaces and marks."""
    return " ".join(_words(text))


def _words(text: str) -> Iterator[str]:
    for word in text.casefold().split():
        bare = "".join(character for character in word if character.isalnum())
        if bare:
            yield bare
