"""What `cached` was told about a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from semcache.context import named_stage, names_of
from semcache.errors import ConfigurationError
from semcache.model import Lives, Shared, Tenant, Usage


@dataclass(frozen=True, slots=True)
class Options:
    """The checked arguments of `cached`; `lives` is None where it was told nothing of them.

    `corpus` is what a retrieval searches. `suits` tells of a call's arguments which answers that stand are for it.
    """

    text: str | Callable[..., Any] | None = None
    key: Callable[..., Any] | None = None
    tenant: Tenant | Callable[..., Any] | None = None
    lives: Lives | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None
    ignore: frozenset[str] = frozenset()
    when: Callable[[Any], bool] | None = None
    stage: str | None = None
    usage: Callable[[Any], Usage | None] | None = None
    documents: Callable[[Any], Iterable[str]] | None = None
    corpus: str | None = None
    suits: Callable[[tuple[Any, ...], dict[str, Any]], Callable[[Any], bool]] | None = None


def options(
    *, text: object, key: object, tenant: object, lives: Lives | None, version: object, tags: str | Iterable[str],
    ignore: str | Iterable[str], when: object, stage: object, usage: object, documents: object = None,
) -> Options:  # fmt: skip
    """Check the arguments of `cached`. Raises ConfigurationError."""
    for name, value in (("key", key), ("when", when), ("usage", usage), ("documents", documents)):
        if value is not None and not callable(value):
            raise ConfigurationError(f"{name}= is a callable; got {value!r}")
    if text is not None and not isinstance(text, str) and not callable(text):
        raise ConfigurationError(f"text= is an argument's name or a callable; got {text!r}")
    if tenant is not None and not isinstance(tenant, str | Shared) and not callable(tenant):
        raise ConfigurationError(f"tenant= is an argument's name, a callable or semcache.SHARED; got {tenant!r}")
    if version is not None and not isinstance(version, str):
        raise ConfigurationError(f'version= is text, as in version="2"; got {version!r}')
    names = frozenset([ignore] if isinstance(ignore, str) else ignore)
    return Options(
        text,
        key,  # type: ignore[arg-type]
        tenant,
        lives,
        names_of(tags, "tags"),
        version,
        names,
        when,  # type: ignore[arg-type]
        named_stage(stage),
        usage,  # type: ignore[arg-type]
        documents,  # type: ignore[arg-type]
    )
