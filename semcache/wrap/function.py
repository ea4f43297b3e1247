"""`cached`: what it takes, and the type of what it returns. What it makes of a function is in `wrapping`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.explain import Explanation
from semcache.model import Request, Tenant, Usage
from semcache.ttl import Duration, lives_of
from semcache.wrap.clients.client import cached_client
from semcache.wrap.clients.options import PromptCache, Sampling, client_options
from semcache.wrap.clients.sdk import is_client
from semcache.wrap.options import options
from semcache.wrap.wrapping import CacheInfo, decorate

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F_co = TypeVar("F_co", covariant=True)


class _Wrapper(Protocol[F_co]):
    """What has a function inside: mypy looks at its first parameter here, and not in the parameters of `Cached`."""

    @property
    def __wrapped__(self) -> F_co: ...


class Cached(Protocol[P, R_co]):
    """What `cached` makes of a function."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload  # a classmethod
    def __get__(
        self: _Wrapper[Callable[Concatenate[type[S], Q], R_co]], instance: S | None, owner: type[S] | None = None, /
    ) -> Callable[Q, R_co]: ...
    @overload  # a function, on its class
    def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
    @overload  # a method, on its object
    def __get__(
        self: _Wrapper[Callable[Concatenate[S, Q], R_co]], instance: S, owner: type | None = None, /
    ) -> Callable[Q, R_co]: ...
    @overload  # a staticmethod, on an object
    def __get__(self, instance: object, owner: type | None = None, /) -> Self: ...

    def cache_info(self) -> CacheInfo:
        """Return the hits, misses and bypasses so far."""
        ...

    def cache_clear(self) -> int:
        """Invalidate every answer of this function, as `cache.invalidate(function=)` does."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Invalidate the answer of one call."""
        ...

    def request(self, *args: P.args, **kwargs: P.kwargs) -> Request:
        """Return what a call means to the cache, as `cache.put` takes it. Raises UnkeyableError."""
        ...

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Tell how a call would be answered now, and why."""
        ...


class _Client(Protocol):
    """A client of an SDK's, as `cached` takes it."""

    @property
    def base_url(self) -> Any: ...
    @property
    def with_options(self) -> Any: ...
    @property
    def max_retries(self) -> int: ...


C = TypeVar("C", bound=_Client)


class Decorator(Protocol):
    """What `cached` returns where it is given settings: it takes the function."""

    def __call__(self, function: Callable[P, R], /) -> Cached[P, R]: ...


@overload
def cached(function: Callable[P, R], /) -> Cached[P, R]: ...
@overload
def cached(
    cache: Cache | None = None,
    /,
    *,
    text: str | Callable[..., Any] | None = None,
    key: Callable[..., Any] | None = None,
    tenant: Tenant | Callable[..., Any] | None = None,
    ttl: Duration | Callable[[Any], Duration | None] | None = None,
    sliding: bool = False,
    max_age: Duration | None = None,
    stale_while_revalidate: Duration = 0,
    stale_if_error: Duration = 0,
    tags: str | Iterable[str] = (),
    version: str | None = None,
    ignore: str | Iterable[str] = (),
    when: Callable[[Any], bool] | None = None,
    stage: str | None = None,
    usage: Callable[[Any], Usage | None] | None = None,
    documents: Callable[[Any], Iterable[str]] | None = None,
) -> Decorator: ...
@overload
def cached(
    client: C,
    cache: Cache | None = None,
    /,
    *,
    text: Callable[[str], Any] | None = None,
    tenant: Tenant | Callable[..., Any] | None = None,
    ttl: Duration | Callable[[Any], Duration | None] | None = None,
    sliding: bool = False,
    max_age: Duration | None = None,
    tags: str | Iterable[str] = (),
    version: str | None = None,
    ignore: str | Iterable[str] = (),
    when: Callable[[Any], bool] | None = None,
    stage: str | None = None,
    usage: Callable[[Any], Usage | None] | None = None,
    sampling: Sampling = "zero",
    tool_calls: bool = False,
    history: str = "all",
    replay_rate: float | None = None,
    prompt_cache: PromptCache | None = None,
) -> C: ...
def cached(
    target: Any = None,
    cache: Any = None,
    /,
    *,
    text: str | Callable[..., Any] | None = None,
    key: Callable[..., Any] | None = None,
    tenant: Tenant | Callable[..., Any] | None = None,
    ttl: Duration | Callable[[Any], Duration | None] | None = None,
    sliding: bool = False,
    max_age: Duration | None = None,
    stale_while_revalidate: Duration = 0,
    stale_if_error: Duration = 0,
    tags: str | Iterable[str] = (),
    version: str | None = None,
    ignore: str | Iterable[str] = (),
    when: Callable[[Any], bool] | None = None,
    stage: str | None = None,
    usage: Callable[[Any], Usage | None] | None = None,
    documents: Callable[[Any], Iterable[str]] | None = None,
    sampling: Sampling = "zero",
    tool_calls: bool = False,
    history: str = "all",
    replay_rate: float | None = None,
    prompt_cache: PromptCache | None = None,
) -> Any:
    """Cache a function, `@cached`, in the default cache, or `@cached(cache, ...)`; a client by `cached(client, cache)`.

    `text` names the argument that may match nearly, or is a callable of the arguments that returns it (or returns
    `(text, rest)`). `key` is a callable that returns what alone makes the key. `tenant` names the argument whose value
    is the tenant, or is a callable of the arguments, or SHARED. `ttl` is the life of an answer, or a callable that
    tells it of the answer (None: the tiers' own; 0: not kept): with `sliding` each hit gives it that life anew, but
    never past `max_age`; for `stale_while_revalidate` more it is served while it is loaded anew, for `stale_if_error`
    more where that load fails. `tags` are names to invalidate by. `version` replaces the digest of source and closure.
    `ignore` names arguments or closed-over variables that cannot change the answer. `when` says of a result (of a
    generator: the list of its items) whether to keep it. `stage` is what cost and time are booked on (the function's
    name, unless you say so); `usage` takes a result (of a generator: as above), once when it was loaded, and returns
    the `semcache.Usage` of it. `documents` takes a result (as above) and returns the names of the documents in it, by
    which it can be invalidated. Raises ConfigurationError.

    Of a client (OpenAI, Anthropic, their async ones) a copy is returned, whose chat completions or messages are looked
    up. Its text is the last message, if that is the user's; `text` is a callable that takes the question out of it.
    `tenant` names a parameter of the call, or takes all of them; `ignore` names parameters and headers; `when` and
    `usage` take the SDK's answer. `sampling="any"` caches calls with a temperature above 0 or several answers too,
    `tool_calls` answers that call tools. `history="last:4"` lets conversations meet that agree in their last four
    turns, where no policy serves them; `replay_rate` are the chunks in a second that a stored stream comes at;
    `prompt_cache="auto"` tells the provider which beginning of a prompt its own cache is to keep. It has no `key` and
    is not served stale. docs/clients.md says the rest.
    """
    lives = lives_of(ttl, max_age, stale_while_revalidate, stale_if_error, sliding=sliding)
    _check_order(target, cache)
    if is_client(target):
        return cached_client(target, cache, client_options(
            text=text, key=key, tenant=tenant, lives=lives, tags=tags, version=version, ignore=ignore, when=when,
            stage=stage, usage=usage, sampling=sampling, tool_calls=tool_calls, history=history,
            replay_rate=replay_rate, prompt_cache=prompt_cache, documents=documents,
        ))  # fmt: skip
    alone = (sampling != "zero", tool_calls, history != "all", replay_rate is not None, prompt_cache is not None)
    if cache is not None or any(alone):
        raise ConfigurationError(
            "a second argument, sampling=, tool_calls=, history=, replay_rate= and prompt_cache= are for clients; "
            "a function has none"
        )
    checked = options(
        text=text, key=key, tenant=tenant, lives=lives, version=version, tags=tags, ignore=ignore, when=when,
        stage=stage, usage=usage, documents=documents,
    )  # fmt: skip
    if target is None or isinstance(target, Cache):
        return partial(decorate, target, checked)
    if not callable(target) and not isinstance(target, classmethod | staticmethod):
        raise ConfigurationError(f"cached takes a function, a client or a Cache; got {target!r}")
    return decorate(None, checked, target)


def _check_order(target: Any, cache: Any) -> None:
    """Say what is meant where a client's class or module is given, or the cache comes first."""
    if isinstance(target, Cache) and cache is not None:
        raise ConfigurationError("cached takes the client first: semcache.cached(client, cache)")
    if isinstance(target, type) and cache is not None:
        raise ConfigurationError(
            f"cached takes a client, and {target.__qualname__} is its class: make one, "
            f"semcache.cached({target.__qualname__}(), cache)"
        )
    if cache is not None and not callable(target) and not is_client(target):
        raise ConfigurationError(f"cached(client, cache) takes a client of an SDK's; got {target!r}")
