"""`cached`: a function whose calls are answered from the cache, of the same kind and type as the function itself.

The wrapper is a plain function of the function's own kind (def, async def, generator, async generator), so whatever
inspects it sees what it saw before. Methods get a descriptor, which warns at the first bound access of an object that
has no `__semcache_key__`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from threading import Lock
from types import FunctionType, MethodType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, Self, TypeVar, overload
from weakref import WeakSet

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.explain import Explanation
from semcache.model import Request, Tenant, Usage
from semcache.plan import arun, run
from semcache.ttl import Duration, lives_of
from semcache.wrap.call import Call
from semcache.wrap.clients.client import cached_client
from semcache.wrap.clients.options import PromptCache, Sampling, client_options
from semcache.wrap.clients.sdk import is_client
from semcache.wrap.default import default_cache
from semcache.wrap.options import Options, options
from semcache.wrap.signature import Signature, register_returned, unwrap
from semcache.wrap.stream import areplaying, replaying
from semcache.wrap.version import name_of, version_of

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F_co = TypeVar("F_co", covariant=True)


class CacheInfo(NamedTuple):
    """The calls of one function so far, in this process."""

    hits: int
    misses: int
    bypasses: int


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
        return functools.partial(_decorate, target, checked)
    if not callable(target) and not isinstance(target, classmethod | staticmethod):
        raise ConfigurationError(f"cached takes a function, a client or a Cache; got {target!r}")
    return _decorate(None, checked, target)


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


def _decorate(cache: Cache | None, checked: Options, function: Any) -> Any:
    if isinstance(function, classmethod | staticmethod):
        return type(function)(_decorate(cache, checked, function.__func__))
    return bind(Wrapping(cache, checked, function))


def bind(wrapping: Wrapping) -> Any:
    """Make what stands in the function's place: its wrapper, or for a method of a class a descriptor."""
    wrapper = wrapping.wrapper()
    return _Method(wrapper, wrapping) if wrapping.is_method else wrapper


class Wrapping:
    """One decorated function: what is known of it at decoration, and its Call, made at its first use."""

    def __init__(self, cache: Cache | None, checked: Options, function: Any) -> None:
        inner, given = unwrap(function)
        if isinstance(inner, type) or not hasattr(inner, "__qualname__"):
            raise ConfigurationError(f"cached takes a function; {inner!r} is none: wrap it in one")
        self.function = function
        self.loads = function  # what a load calls
        self.name = name_of(inner)
        self._inner = inner
        self._cache = cache
        self._lock = Lock()
        self.bound: Call | None = None
        self._signature = Signature(inner, given, checked.ignore, self.name, has_key=checked.key is not None)
        owner = inner.__qualname__.rpartition(".")[0]
        # A function of a class body whose first parameter is its object; classmethods come here unwrapped, with cls.
        is_method = bool(owner) and not owner.endswith("<locals>") and self._signature.names[:1] == ("self",)
        self.is_method = is_method and checked.key is None and not given
        closed_over = frozenset(getattr(getattr(inner, "__code__", None), "co_freevars", ()))
        for name in checked.ignore - closed_over:
            self._signature.require(name, "ignore")
        for option in ("text", "tenant"):
            if isinstance(getattr(checked, option), str):
                self._signature.require(getattr(checked, option), option)
        if isinstance(checked.text, str) and checked.text in checked.ignore:
            raise ConfigurationError(f"text={checked.text!r} is ignored too: the text must be in the key")
        version = checked.version
        if version is None:
            version = version_of(inner, self.name, checked.ignore)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            if checked.lives is not None and checked.lives.grace:
                raise ConfigurationError(
                    f"{self.name} is a generator: its items cannot be served stale; give it a ttl alone"
                )
            version += ":items"  # what is stored is a list of items, whatever version= says
        register_returned(inner)
        self._version = version
        self._options = checked

    @property
    def call(self) -> Call:
        """The function in its cache; the default cache is built here, at the first use."""
        with self._lock:
            if self.bound is None:
                self.bound = Call(
                    self._cache or default_cache(),
                    self._options,
                    self._signature,
                    self.loads,
                    self.name,
                    self._version,
                    is_method=self.is_method,
                )
            return self.bound

    def wrapper(self) -> Any:
        """Make the wrapper, of the function's own kind."""
        made: Any = self._made()
        functools.update_wrapper(made, self._inner)
        made.__wrapped__ = self.function
        made.__semcache_name__ = self.name
        made.__semcache_version__ = self._version
        made.cache_info = self.cache_info
        made.cache_clear = self.cache_clear
        made.invalidate = self.invalidate
        made.explain = self.explain
        made.request = self.request
        return made

    def _made(self) -> Callable[..., Any]:
        inner = self._inner
        if inspect.isasyncgenfunction(inner):
            return areplaying(lambda: self.call)
        if inspect.isgeneratorfunction(inner):
            return replaying(lambda: self.call)
        return _coroutine(self) if inspect.iscoroutinefunction(inner) else _function(self)

    def cache_info(self) -> CacheInfo:
        """Return the hits, misses and bypasses so far."""
        return CacheInfo(*self.call.cache.recorder.counts(self.name))

    def cache_clear(self) -> int:
        """Invalidate every answer of this function."""
        return self.call.cache.invalidate(function=self.name)

    def invalidate(self, *args: Any, **kwargs: Any) -> int:
        """Invalidate the answer of one call."""
        return self.call.cache.invalidate(key=self.call.of(args, kwargs).key)

    def request(self, *args: Any, **kwargs: Any) -> Request:
        """Return what a call means to the cache."""
        return self.call.of(args, kwargs)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Tell how a call would be answered now."""
        return self.call.cache.explain(self.call.of(args, kwargs))


def _function(wrapping: Wrapping) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = wrapping.bound or wrapping.call
        value, opened = call.open(args, kwargs)
        return value if opened is None else run(call.plan(opened, args, kwargs, blocks=True)).unwrap()

    return wrapper


def _coroutine(wrapping: Wrapping) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = wrapping.bound or wrapping.call
        value, opened = call.open(args, kwargs)
        return value if opened is None else (await arun(call.plan(opened, args, kwargs, blocks=False))).unwrap()

    return wrapper


class _Method:
    """A cached method: binds as functions do, and warns once where its object cannot be keyed.

    It passes for a function, because pydantic takes nothing else for a method.
    """

    def __init__(self, wrapper: Any, wrapping: Wrapping) -> None:
        functools.update_wrapper(self, wrapper)
        self.wrapper = wrapper
        self._wrapping = wrapping
        self._seen: WeakSet[type] = WeakSet()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return FunctionType

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["wrapper"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapper(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self.wrapper
        kind = type(instance)
        if kind not in self._seen:
            self._seen.add(kind)
            problem = _without_key(kind)
            if problem is not None:
                self._wrapping.call.cache.recorder.warn_once(
                    f"{self._wrapping.name}: argument 'self'", f"{self._wrapping.name} is not cached: {problem}"
                )
        return MethodType(self.wrapper, instance)


def _without_key(kind: type) -> str | None:
    if hasattr(kind, "__semcache_key__"):
        return None
    return (
        f"{kind.__qualname__} has no __semcache_key__(); let it return what its answers depend on, "
        "as in `def __semcache_key__(self): return (self.model, self.prompt)`"
    )


def cache_of(function: Any) -> Cache | None:
    """Return the cache of a decorated function; None for what is none."""
    wrapping = getattr(getattr(function, "request", None), "__self__", None)
    return wrapping.call.cache if isinstance(wrapping, Wrapping) else None


def check(cls: type) -> None:
    """Refuse a class with cached methods whose objects cannot be keyed: call it where the class is made.

    Raises ConfigurationError, which at run time would be a counted bypass and one warning.
    """
    methods = [name for base in cls.__mro__ for name, one in vars(base).items() if type(one) is _Method]
    problem = _without_key(cls) if methods else None
    if problem is not None:
        raise ConfigurationError(f"{', '.join(sorted(methods))}: {problem}")
