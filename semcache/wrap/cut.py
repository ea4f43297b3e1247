"""Cutting a call's text out of the call, so that what is left can be compared."""

from __future__ import annotations

from typing import Any


def cut_out(told: Any, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Split what a text callable returned into the text and the rest of the call.

    It may return (text, rest) itself. Where it returns the text alone, the rest is the arguments with the text cut
    out wherever it stands in them: equal rests then differ in the text alone.
    """
    if isinstance(told, tuple):
        text, rest = told
        return text, rest
    if not isinstance(told, str) or not told:
        return told, values
    found = [False]
    rest = _without(told, values, found)
    return told, rest if found[0] else None


def _without(text: str, value: Any, found: list[bool]) -> Any:
    if value.__class__ is str:
        parts = value.split(text)
        found[0] = found[0] or len(parts) > 1
        return ("cut", *parts)
    if value.__class__ is dict:
        return {key: _without(text, item, found) for key, item in value.items()}
    if value.__class__ in (list, tuple):
        return [value.__class__.__name__, *(_without(text, item, found) for item in value)]
    return value
