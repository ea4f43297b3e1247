"""What the caller says for the calls inside a `with`: whose they are, how long they live, in which mode.

Context variables, so it holds for this thread or task and the tasks it starts, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from semcache.errors import ConfigurationError
from semcache.model import MODES, Mode, Shared, Tenant
from semcache.sources import Sources
from semcache.ttl import Duration, seconds


@dataclass(frozen=True, slots=True)
class Options:
    """What a context says; None where it says nothing. `sources` are those of the pipeline that it is in."""

    tenant: Tenant | None = None
    ttl: float | None = None
    mode: Mode | None = None
    tags: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    stage: str | None = None
    sources: Sources | None = None


current: ContextVar[Options | None] = ContextVar("semcache_options", default=None)


def as_tenant(value: object) -> Tenant | None:
    """Take a tenant as a call gives it: text, a number, or SHARED; None and "" are nobody."""
    if value is None or isinstance(value, str | Shared):
        return value or None
    if isinstance(value, int):
        return str(value)
    raise ConfigurationError(f"a tenant is text, a number or semcache.SHARED; got {value!r}")


def named_tenant(value: object) -> Tenant:
    """Take a tenant as a setting gives it: "" is refused, or all who have no name would share their answers."""
    tenant = as_tenant(value)
    if tenant is None:
        raise ConfigurationError(f"a tenant has a name; leave tenant= out for nobody, got {value!r}")
    return tenant


def named_stage(value: object) -> str | None:
    """Take a stage as a setting gives it: text, or None. Raises ConfigurationError."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigurationError(f'stage= is text, as in stage="answer"; got {value!r}')
    return value


def names_of(given: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Take names as a setting gives them: one, or several. Raises ConfigurationError."""
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(f"{what}= is a name, or several; got {given!r}")
    return names


@contextmanager
def context(
    *, tenant: Tenant | None = None, ttl: Duration | None = None, mode: Mode | None = None,
    tags: str | Iterable[str] = (), documents: str | Iterable[str] = (), stage: str | None = None,
) -> Iterator[Options]:  # fmt: skip
    """Set tenant, ttl or mode for the cached calls inside; an inner context adds to the outer one.

    `tags` and `documents` are names that the answers loaded inside can be invalidated by, `stage` is what cost and time
    are booked on; they enter no key.
    """
    if mode is not None and mode not in MODES:
        raise ConfigurationError(f"mode is one of {', '.join(MODES)}; got {mode!r}")
    outer = current.get() or Options()
    options = Options(
        tenant=outer.tenant if tenant is None else named_tenant(tenant),
        ttl=outer.ttl if ttl is None else seconds(ttl, "ttl"),
        mode=outer.mode if mode is None else mode,
        tags=tuple(dict.fromkeys((*outer.tags, *names_of(tags, "tags")))),
        documents=tuple(dict.fromkeys((*outer.documents, *names_of(documents, "documents")))),
        stage=outer.stage if stage is None else named_stage(stage),
        sources=outer.sources,
    )
    token = current.set(options)
    try:
        yield options
    finally:
        current.reset(token)
