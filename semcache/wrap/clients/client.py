"""`cached(client, cache)`: a copy of an SDK's client whose calls are looked up; nothing is patched.

The copy's class is a subclass of the client's own that overrides `post`, the one method by which every resource asks;
so what the SDK makes of the copy (`with_options`, `with_raw_response`, `beta`) is cached or passes through like it.
Which dialect a client speaks is read off its class and the classes it inherits from; no SDK is imported (law 13).
"""

from __future__ import annotations

import re
import sys
from functools import cached_property, partial
from typing import Any

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.dialect import Dialect
from semcache.wrap.clients.openai import ChatCompletions
from semcache.wrap.clients.options import ClientOptions

_DIALECTS: tuple[Dialect, ...] = (ChatCompletions(), Messages())
_ENGINE = "_semcache_engine"


def is_client(target: object) -> bool:
    """Say whether something is an object of an SDK's, as far as its class tells."""
    packages = {dialect.package for dialect in _DIALECTS}
    return not isinstance(target, type) and any(_package(kind) in packages for kind in type(target).__mro__)


def cached_client(client: Any, cache: Cache | None, settings: ClientOptions) -> Any:
    """Return a cached copy of a client. Raises ConfigurationError for one that no dialect knows."""
    if cache is not None and not isinstance(cache, Cache):
        raise ConfigurationError(f"cached takes a client and a Cache; got {cache!r}")
    if hasattr(client, _ENGINE):
        raise ConfigurationError("this client is cached already: give cached() the client it was made of")
    from semcache.wrap.clients.engine import Engine  # it imports what the client has imported

    dialect, is_async = _dialect_of(client)
    kind = type(client)
    engine = Engine(cache, dialect, settings)
    members = {_ENGINE: engine, "post": _apost if is_async else _post, "__module__": kind.__module__}
    copy: Any = object.__new__(type(kind.__name__, (kind,), {**members, "__qualname__": kind.__qualname__}))
    # Resources made so far are bound to the client they were made of; the copy makes its own.
    made = {name for name in vars(client) if isinstance(getattr(kind, name, None), cached_property)}
    kept = {name: value for name, value in vars(client).items() if name not in made}
    copy.__dict__.update(kept)
    # Older SDKs make all resources with the client: there their own way to copy makes them anew.
    is_bound = any(getattr(value, "_client", None) is client for value in kept.values())
    return copy.copy() if is_bound else copy


def _post(self: Any, path: str, **given: Any) -> Any:
    send = partial(_original(self), self, path, **given)
    return getattr(self, _ENGINE).post(self, path, given, send)


async def _apost(self: Any, path: str, **given: Any) -> Any:
    send = partial(_original(self), self, path, **given)
    return await getattr(self, _ENGINE).apost(self, path, given, send)


def _original(client: Any) -> Any:
    """Return the `post` of the client's own class, behind that of ours."""
    kinds = type(client).__mro__
    place = next(place for place, kind in enumerate(kinds) if _ENGINE in vars(kind))
    return next(vars(kind)["post"] for kind in kinds[place + 1 :] if "post" in vars(kind))


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _dialect_of(client: Any) -> tuple[Dialect, bool]:
    for kind in type(client).__mro__:
        for dialect in _DIALECTS:
            if _package(kind) == dialect.package and kind.__name__ in dialect.classes:
                _check_version(dialect)
                return dialect, kind.__name__.startswith("Async")
    known = ", ".join(name for dialect in _DIALECTS for name in sorted(dialect.classes))
    raise ConfigurationError(
        f"cached knows no client like {type(client).__qualname__}; it takes {known}, or a function"
    )


def _check_version(dialect: Dialect) -> None:
    told = str(getattr(sys.modules.get(dialect.package), "__version__", ""))
    numbers = tuple(map(int, re.findall(r"\d+", told)[:2]))
    if numbers and not dialect.oldest <= numbers < (dialect.before, 0):
        lowest = ".".join(map(str, dialect.oldest))
        raise ConfigurationError(
            f"{dialect.package} {told} is not supported: pip install '{dialect.package}>={lowest},<{dialect.before}'"
        )
