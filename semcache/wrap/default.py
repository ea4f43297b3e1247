"""The default cache: built at its first use from `configure(...)`, or from the environment."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.policy import ErrorBudget, Policy, Threshold, Tuned
from semcache.policy.guards import GUARDS

_lock = Lock()
_built: list[Cache] = []
_settings: dict[str, Any] = {}

# Settings that are text in the environment as in Python.
_TEXT = (
    "namespace",
    "memory",
    "disk",
    "disk_size",
    "redis",
    "memcached",
    "sidecar",
    "embedder",
    "shadow_embedder",
    "semantic",
    "device",
    "gpu_memory",
    "mode",
    "max_value",
    "compress",
    "prices",
    "record",
)


def configure(**settings: Any) -> None:
    """Set what the default cache is built with; takes what `Cache` takes. Call it before the first cached call."""
    known = inspect.signature(Cache).parameters
    for name in settings:
        if name not in known:
            raise ConfigurationError(f"{name}= is no setting of a Cache; it has {', '.join(known)}")
    with _lock:
        if _built:
            raise ConfigurationError(
                "the default cache is in use already: call configure() before the first cached call, "
                "or make a Cache of your own and pass it to cached"
            )
        _settings.clear()
        _settings.update(settings)


def default_cache() -> Cache:
    """Return the default cache, building it at the first call; memory alone if nothing is set."""
    with _lock:
        if not _built:
            _built.append(Cache(**{**_environment(), **_settings}))
        return _built[0]


def reset() -> None:
    """Close the default cache and forget its settings: the next use builds it anew. For tests."""
    with _lock:
        _settings.clear()
        for cache in _built:
            cache.close()
        _built.clear()


def _environment() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _TEXT:
        value = os.environ.get(f"SEMCACHE_{name.upper()}")
        if value:
            settings[name] = value
    policy = os.environ.get("SEMCACHE_POLICY")
    if policy:
        settings["policy"] = policy_of(policy)
    return settings


def _budget_of(text: str, guards: Iterable[str] | None = GUARDS) -> ErrorBudget | None:
    """Return the policy that "budget:0.01" names; None for other text. Raises ConfigurationError."""
    kind, _, share = text.partition(":")
    if kind != "budget":
        return None
    try:
        return ErrorBudget(float(share), guards=guards)
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f'an error budget is a share, as in "budget:0.01"; got {text!r}') from error


def policy_of(text: str, guards: Iterable[str] | None = GUARDS) -> Policy | None:
    """Return the policy that "threshold:0.92", "budget:0.01", "shadow" or a tuned policy's file names.

    Raises ConfigurationError.
    """
    budget = _budget_of(text, guards)
    if budget is not None:
        return budget
    kind, _, cut = text.partition(":")
    if kind == "shadow" and not cut:
        return None
    try:
        if kind == "threshold":
            return Threshold(float(cut), guards=guards)
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
    if Path(text).is_file():
        return Tuned.read(text)
    raise ConfigurationError(
        f'a policy is "shadow", "threshold:0.92" or "budget:0.01", or the file that `semcache tune` wrote; got {text!r}'
    )
