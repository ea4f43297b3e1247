"""What a recording has of a call of a function: its text, and beside it the arguments that are in its key.

Laws: a call is told where it has a text and what else is in its key is plain data; of any other nobody could say, from
the recording, which calls were alike, so it is not recorded, and that is said. An argument that is ignored is not told.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from semcache.model import Request, Tenant
from semcache.recording import Told, UnrecordedError, owner_of, text_of
from semcache.wrap.cut import cut_out

if TYPE_CHECKING:
    from semcache.cache import Cache
    from semcache.events import Event
    from semcache.recording import Taken
    from semcache.wrap.call import Call


class _Untold:
    """A call that cannot be recorded."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def record(self, answer: Any) -> Taken:  # noqa: ARG002 - as calls do
        """Raise why."""
        raise UnrecordedError(self._why)


def told_of(
    call: Call, values: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any], tenant: Tenant | None
) -> Told | _Untold:
    """Return a call as it can be recorded, or what says why not."""
    options = call.options
    if options.text is None:
        return _Untold("no text= says what of it is the question")
    try:
        text, arguments = _apart(call, values, args, kwargs)
    except Exception as error:  # noqa: BLE001 - the user's own text callable
        return _Untold(f"its text failed: {error!r}")
    if not isinstance(text, str):
        return _Untold(f"its text is a {type(text).__name__}, not a str")
    owner = call.cache.tenant_of(tenant)
    named = owner_of(owner)
    if options.corpus is not None:
        request = {**arguments, "function": call.name, "corpus": options.corpus, "query": text}
        return Told("retrieval", request, named, _documents)
    messages = [{"role": "user", "content": text}]
    request = {
        "model": "", "messages": messages, "function": call.name, "version": call.version, "arguments": arguments,
    }  # fmt: skip
    is_stream = inspect.isgeneratorfunction(call.function) or inspect.isasyncgenfunction(call.function)
    return Told("llm", request, named, _joined if is_stream else text_of)


def _apart(
    call: Call, values: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a call's text, and the other arguments in its key."""
    options = call.options
    if callable(options.text):
        text, rest = cut_out(options.text(*args, **kwargs), values)
        return text, {"rest": values if rest is None else rest}
    if options.key is not None:
        return call.argument(str(options.text), args, kwargs), {"key": values[0]}
    arguments = dict(zip(call.argument_names, values, strict=True))
    return arguments.pop(str(options.text)), arguments


def _joined(stored: list[Any]) -> str | None:
    """Return the items of a generator as one text: pieces of one, or the JSON of all."""
    items = stored[:-1]
    return "".join(items) if all(isinstance(item, str) for item in items) else text_of(items)


def _documents(found: Any) -> str | None:
    """Return what was found, for whatever k, as JSON."""
    return text_of(getattr(found, "documents", found) if type(found).__name__ == "Ranked" else found)


def telling(
    cache: Cache, keys: Sequence[bytes], asked: Sequence[Any], around: dict[str, Any], tenant: Tenant | None
) -> Callable[[Request], Event]:
    """Return what begins the event of each of many inputs, with what a recording has of it."""
    if cache.recorder.recording is None:
        return cache.event
    places = dict(zip(keys, asked, strict=True))
    named = owner_of(tenant)

    def begin(request: Request) -> Event:
        event = cache.event(request)
        event.call = Told("embedding", {**around, "input": places[request.key]}, named)
        return event

    return begin
