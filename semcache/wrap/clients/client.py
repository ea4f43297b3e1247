"""`cached(client, cache)`: a copy of an SDK's client whose calls are looked up; nothing is patched.

The copy's class is a subclass of the client's own that overrides `post`, the one method by which every resource asks;
so what the SDK makes of the copy (`with_options`, `with_raw_response`, `beta`) is cached or passes through like it.
A POST is answered by the first of the client's engines that takes it, one for each endpoint; one that none takes goes
through. What is sent is what was given; with `prompt_cache` it is told to the provider's cache on the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.explain import Explanation
from semcache.policy import Shadow
from semcache.wrap.clients.conversation import body_of
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.prompts import Prompts
from semcache.wrap.clients.sdk import sdk_of

_ENGINES = "_semcache_engines"
_PROMPTS = "_semcache_prompts"
_EMBEDDINGS = "_semcache_embeddings"


def cached_client(client: Any, cache: Cache | None, settings: ClientOptions) -> Any:
    """Return a cached copy of a client. Raises ConfigurationError for one that no dialect knows."""
    if cache is not None and not isinstance(cache, Cache):
        raise ConfigurationError(f"cached takes a client and a Cache; got {cache!r}")
    if hasattr(client, _ENGINES):
        raise ConfigurationError("this client is cached already: give cached() the client it was made of")
    if settings.history is not None and not isinstance(getattr(cache, "policy", None), Shadow):
        raise ConfigurationError(
            "history= leaves turns out of what must be equal, so it wants a cache that serves no near match: "
            'give cached() a Cache without policy=, or leave history="all"'
        )
    from semcache.wrap.clients.early import resources  # they import what the client has imported
    from semcache.wrap.clients.embeddings import Embeddings
    from semcache.wrap.clients.engine import Engine

    sdk, is_async = sdk_of(client)
    for dialect in sdk.dialects:
        said = {"model", dialect.turns} & settings.ignore
        if said:
            raise ConfigurationError(
                f"ignore={min(said)!r} would give one call's answers to another: it is what is asked"
            )
    kind = type(client)
    engines = tuple(Engine(cache, dialect, settings) for dialect in sdk.dialects)
    members = {
        _ENGINES: engines, _EMBEDDINGS: (Embeddings(cache, settings),) if sdk.embeds else (),
        _PROMPTS: None if settings.prompt_cache is None else Prompts(sdk.package),
        "post": _apost if is_async else _post, "explain": _explain,
        **resources(kind, engines, _sent, is_async=is_async),
        "__module__": kind.__module__, "__qualname__": kind.__qualname__,
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
    engine = _engine(self, path, given)
    if engine is None:
        return _original(self)(self, path, **given)
    return engine.post(self, path, given, partial(_sent, self, engine, path, **given))


async def _apost(self: Any, path: str, **given: Any) -> Any:
    engine = _engine(self, path, given)
    if engine is None:
        return await _original(self)(self, path, **given)
    return await engine.apost(self, path, given, partial(_sent, self, engine, path, **given))


def _engine(client: Any, path: str, given: dict[str, Any]) -> Any:
    engines = getattr(client, _ENGINES) + getattr(client, _EMBEDDINGS)
    return next((engine for engine in engines if engine.takes(path, given)), None)


def _sent(client: Any, engine: Any, path: str, **given: Any) -> Any:
    """Send a call: as it was given, or, with `prompt_cache`, with what helps the provider's cache."""
    send = partial(_original(client), client, path, **given)
    prompts: Prompts | None = getattr(client, _PROMPTS) if engine in getattr(client, _ENGINES) else None
    return send() if prompts is None else prompts.send(engine.cache.recorder, path, given, send)


def _original(client: Any) -> Any:
    """Return the `post` of the client's own class, behind that of ours."""
    kinds = type(client).__mro__
    place = next(place for place, kind in enumerate(kinds) if _ENGINES in vars(kind))
    return next(vars(kind)["post"] for kind in kinds[place + 1 :] if "post" in vars(kind))


def _explain(self: Any, **parameters: Any) -> Explanation:
    """Tell how a call would be answered now, and why; takes what the call takes. Raises UnkeyableError."""
    from semcache.wrap.clients.early import posted

    engine = engine_of(self, parameters)
    given = posted(self, engine, parameters)
    why_not = engine.why_not(body_of(given))
    if why_not is not None:
        return Explanation(said=[(tier.name, f"not asked: {why_not}") for tier in engine.cache.tiers])
    explanation: Explanation = engine.cache.explain(engine.request(self, given))
    return explanation


def is_cached(client: object) -> bool:
    """Say whether something is a cached client."""
    return hasattr(client, _ENGINES)


def call_of(
    client: Any, engine: Any, parameters: Mapping[str, Any], *, is_checked: bool = False
) -> tuple[str, dict[str, Any], Any]:
    """Return where a call of a cached client is posted, what, and what sends it past the cache.

    Raises what the SDK raises for the parameters: all of it, where the call `is_checked`.
    """
    from semcache.wrap.clients.early import told

    return told(client, engine, parameters, _sent, is_checked=is_checked)


def engine_of(client: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the engine that a call with these parameters is for. Raises TypeError."""
    engines = getattr(client, _ENGINES)
    for engine in engines:
        if engine.dialect.turns in parameters:
            return engine
    known = ", or ".join(f"{engine.dialect.turns}= as {engine.dialect.name}" for engine in engines)
    raise TypeError(f"tell the call as it would be made: with {known} takes it")
