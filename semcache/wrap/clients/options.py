"""What `cached` was told about a client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from semcache.context import named_stage, names_of
from semcache.errors import ConfigurationError
from semcache.model import Lives, Shared, Tenant, Usage

Sampling = Literal["zero", "any"]
PromptCache = Literal["auto"]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The checked settings of a cached client.

    `small_ignore` is `ignore` in small letters, for headers; `history` are the turns that are part of a scope, None for
    all; `replay_rate` are chunks in a second, None for at once.
    """

    text: Callable[[str], Any] | None
    tenant: Tenant | Callable[..., Any] | None
    lives: Lives | None
    tags: tuple[str, ...]
    version: str
    ignore: frozenset[str]
    small_ignore: frozenset[str]
    when: Callable[[Any], bool] | None
    stage: str | None
    usage: Callable[[Any], Usage | None] | None
    sampling: Sampling
    tool_calls: bool
    history: int | None
    replay_rate: float | None
    prompt_cache: PromptCache | None


def client_options(
    *, text: Any, key: object, tenant: Any, lives: Lives | None, tags: str | Iterable[str], version: object,
    ignore: str | Iterable[str], when: Any, stage: object, usage: Any, sampling: object, tool_calls: bool,
    history: object, replay_rate: object, prompt_cache: object, documents: object,
) -> ClientOptions:  # fmt: skip
    """Check the settings of a cached client. Raises ConfigurationError."""
    for name, value in (("text", text), ("when", when), ("usage", usage)):
        if value is not None and not callable(value):
            raise ConfigurationError(f"{name}= of a client is a callable; got {value!r}")
    if key is not None:
        raise ConfigurationError("a client takes no key=: name what cannot change its answers in ignore=")
    if documents is not None:
        raise ConfigurationError(
            "a client takes no documents=: ask inside `with semcache.pipeline(name)`, or name them in a context"
        )
    if lives is not None and lives.grace:
        raise ConfigurationError("the answers of a client cannot be served stale; give it a ttl alone")
    if tenant == "" or (tenant is not None and not isinstance(tenant, str | Shared) and not callable(tenant)):
        raise ConfigurationError(f"tenant= is a parameter's name, a callable or semcache.SHARED; got {tenant!r}")
    if version is not None and not isinstance(version, str):
        raise ConfigurationError(f'version= is text, as in version="2"; got {version!r}')
    if sampling not in ("zero", "any"):
        raise ConfigurationError(f'sampling= is "zero" or "any"; got {sampling!r}')
    if prompt_cache not in (None, "auto"):
        raise ConfigurationError(f'prompt_cache= is "auto" or None; got {prompt_cache!r}')
    names = frozenset(names_of(ignore, "ignore"))
    return ClientOptions(
        text, tenant, lives, names_of(tags, "tags"), version or "1", names, frozenset(map(str.lower, names)), when,
        named_stage(stage), usage, "any" if sampling == "any" else "zero", tool_calls, _turns(history),
        _rate(replay_rate), None if prompt_cache is None else "auto",
    )  # fmt: skip


def _turns(history: object) -> int | None:
    """Take "all" or "last:N". Raises ConfigurationError."""
    if history == "all":
        return None
    head, _, number = history.partition(":") if isinstance(history, str) else ("", "", "")
    if head != "last" or not number.isdecimal():
        raise ConfigurationError(f'history= is "all", or "last:4" for the last four turns; got {history!r}')
    return int(number)


def _rate(replay_rate: object) -> float | None:
    """Take a rate in chunks a second. Raises ConfigurationError."""
    if replay_rate is None:
        return None
    if isinstance(replay_rate, bool) or not isinstance(replay_rate, int | float) or not 0 < replay_rate < inf:
        raise ConfigurationError(f"replay_rate= is chunks in a second, or None for at once; got {replay_rate!r}")
    return float(replay_rate)
