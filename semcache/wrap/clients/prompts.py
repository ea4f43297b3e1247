"""`prompt_cache="auto"`: what is sent to the origin, and a warning where its prefix cache is defeated.

Laws: off unless the user said so; it begins where a call is on its way to the origin, so key, scope and text never
know of it; what goes wrong here is sent as it was (law 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from semcache.events import Recorder
from semcache.warning import ANTHROPIC, OPENAI
from semcache.wrap.clients.conversation import body_of
from semcache.wrap.clients.dialect import Json
from semcache.wrap.clients.moving import Watch
from semcache.wrap.clients.prefix import BYTES_PER_TOKEN, beginning, least_tokens, with_breakpoints, with_cache_key

# How each SDK's provider is told.
_TOLD: Mapping[str, Callable[[Json], Json]] = {ANTHROPIC: with_breakpoints, OPENAI: with_cache_key}


class Prompts:
    """What the calls of one client, and of its copies, send to its provider."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._told = _TOLD[package]
        self._watch = Watch()

    def send(self, recorder: Recorder, path: str, given: Mapping[str, Any], send: Callable[..., Any]) -> Any:
        """Send what a POST was given, and what helps the provider's cache; returns what the SDK returns."""
        changes: Json = {}
        try:
            body = body_of(given)
            self._look(recorder, path, body)
            changes = _changes(given, body, self._told(body))
        except Exception as error:  # noqa: BLE001 - a body unlike any that the SDK's types describe
            recorder.warn_once(
                f"{self._package} {path}: prompt_cache",
                f'prompt_cache="auto" left a call of {self._package} {path} as it was: {error!r}',
            )
        return send(**changes)

    def _look(self, recorder: Recorder, path: str, body: Json) -> None:
        moving = self._watch.saw(beginning(body), least_tokens(body.get("model")) * BYTES_PER_TOKEN)
        if moving is not None:
            calls = f"{self._package} {path}"
            recorder.warn_once(
                f"{calls}: {moving.what} in {moving.where}",
                f"{moving.what} near the start of {moving.where} (at its character {moving.character}) is another at "
                f"every call of {calls}: the provider's prefix cache keeps nothing behind it, and no two calls are "
                "equal to this cache; move it to the end, into the last message, or leave it out",
            )


def _changes(given: Mapping[str, Any], body: Json, told: Json) -> Json:
    """Return what is to be given to the SDK in place of what was: `extra_body` goes over the body there."""
    changed = {name: item for name, item in told.items() if name not in body or item is not body[name]}
    if not changed:
        return {}
    options = given.get("options") or {}
    extra = options.get("extra_json") or {}
    over = {name: item for name, item in changed.items() if name in extra}
    changes: Json = {"body": {**given["body"], **{name: item for name, item in changed.items() if name not in over}}}
    return {**changes, "options": {**options, "extra_json": {**extra, **over}}} if over else changes
