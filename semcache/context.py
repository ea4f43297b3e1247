"""What the caller says for the calls inside a `with`: whose they are, how long they live, in which mode.

Context variables, so it holds for this thread or task and the tasks it starts, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from semcache.errors import ConfigurationError
from semcache.model import MODES, Mode
from semcache.ttl import Duration, seconds


@dataclass(frozen=True, slots=True)
class Options:
    """What a context says; None where it says nothing."""

    tenant: str | None = None
    ttl: float | None = None
    mode: Mode | None = None


current: ContextVar[Options | None] = ContextVar("semcache_options", default=None)


@contextmanager
def context(*, tenant: str | None = None, ttl: Duration | None = None, mode: Mode | None = None) -> Iterator[Options]:
    """Set tenant, ttl or mode for the cached calls inside; an inner context adds to the outer one."""
    if mode is not None and mode not in MODES:
        raise ConfigurationError(f"mode is one of {', '.join(MODES)}; got {mode!r}")
    outer = current.get() or Options()
    options = Options(
        tenant=outer.tenant if tenant is None else tenant,
        ttl=outer.ttl if ttl is None else seconds(ttl, "ttl"),
        mode=outer.mode if mode is None else mode,
    )
    token = current.set(options)
    try:
        yield options
    finally:
        current.reset(token)
