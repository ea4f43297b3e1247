"""`cached(client, cache)`: a copy of an SDK's client whose calls are looked up; nothing is patched.

The copy's class is a subclass of the client's own that overrides `post`, the one method by which every resource asks;
so what the SDK makes of the copy (`with_options`, `with_raw_response`, `beta`) is cached or passes through like it.
A POST is answered by the first of the client's engines that takes it, one for each endpoint; one that none takes goes
through. What is sent is what was given; with `prompt_cache` it is told to the provider's cache on the way out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.prompts import Prompts
from semcache.wrap.clients.sdk import sdk_of

_ENGINES = "_semcache_engines"
_PROMPTS = "_semcache_prompts"


def cached_client(client: Any, cache: Cache | None, settings: ClientOptions) -> Any:
    """Return a cached copy of a client. Raises ConfigurationError for one that no dialect knows."""
    if cache is not None and not isinstance(cache, Cache):
        raise ConfigurationError(f"cached takes a client and a Cache; got {cache!r}")
    if hasattr(client, _ENGINES):
        raise ConfigurationError("this client is cached already: give cached() the client it was made of")
    from semcache.wrap.clients.engine import Engine  # it imports what the client has imported

    sdk, is_async = sdk_of(client)
    kind = type(client)
    engines = tuple(Engine(cache, dialect, settings) for dialect in sdk.dialects)
    members = {
        _ENGINES: engines, _PROMPTS: None if settings.prompt_cache is None else Prompts(sdk.package),
        "post": _apost if is_async else _post, "__module__": kind.__module__, "__qualname__": kind.__qualname__,
    }  # fmt: skip
    copy: Any = object.__new__(type(kind.__name__, (kind,), members))
    # Resources made so far are bound to the client they were made of; the copy makes its own.
    made = {name for name in vars(client) if isinstance(getattr(kind, name, None), cached_property)}
    kept = {name: value for name, value in vars(client).items() if name not in made}
    copy.__dict__.update(kept)
    # Older SDKs make all resources with the client: there their own way to copy makes them anew.
    is_bound = any(getattr(value, "_client", None) is client for value in kept.values())
    return copy.copy() if is_bound else copy


def _post(self: Any, path: str, **given: Any) -> Any:
    send = partial(_original(self), self, path, **given)
    engine = _engine(self, path, given)
    return send() if engine is None else engine.post(self, path, given, _told(self, engine, send))


async def _apost(self: Any, path: str, **given: Any) -> Any:
    send = partial(_original(self), self, path, **given)
    engine = _engine(self, path, given)
    return await (send() if engine is None else engine.apost(self, path, given, _told(self, engine, send)))


def _engine(client: Any, path: str, given: dict[str, Any]) -> Any:
    return next((engine for engine in getattr(client, _ENGINES) if engine.takes(path, given)), None)


def _told(client: Any, engine: Any, send: partial[Any]) -> Callable[[], Any]:
    """Return how a call is sent: as it was given, or, with `prompt_cache`, with what helps the provider's cache."""
    prompts: Prompts | None = getattr(client, _PROMPTS)
    if prompts is None:
        return send
    return partial(prompts.send, engine.cache.recorder, send.args[1], send.keywords, send)


def _original(client: Any) -> Any:
    """Return the `post` of the client's own class, behind that of ours."""
    kinds = type(client).__mro__
    place = next(place for place, kind in enumerate(kinds) if _ENGINES in vars(kind))
    return next(vars(kind)["post"] for kind in kinds[place + 1 :] if "post" in vars(kind))
