"""What `cached` was told about a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from semcache.errors import ConfigurationError
from semcache.model import Shared, Tenant
from semcache.ttl import Duration, seconds


@dataclass(frozen=True, slots=True)
class Options:
    """The checked arguments of `cached`; `ttl` is in seconds."""

    text: str | Callable[..., Any] | None = None
    key: Callable[..., Any] | None = None
    tenant: Tenant | Callable[..., Any] | None = None
    ttl: float | None = None
    version: str | None = None
    ignore: frozenset[str] = frozenset()
    when: Callable[[Any], bool] | None = None


def options(
    *, text: object, key: object, tenant: object, ttl: Duration | None, version: object,
    ignore: str | Iterable[str], when: object,
) -> Options:  # fmt: skip
    """Check the arguments of `cached`. Raises ConfigurationError."""
    for name, value in (("key", key), ("when", when)):
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
        None if ttl is None else seconds(ttl, "ttl"),
        version,
        names,
        when,  # type: ignore[arg-type]
    )
