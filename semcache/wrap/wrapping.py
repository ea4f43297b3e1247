"""What stands in a cached function's place, of the same kind as the function itself.

The wrapper is a plain function of the function's own kind (def, async def, generator, async generator), so whatever
inspects it sees what it saw before. Methods get a descriptor, which warns at the first bound access of an object that
has no `__semcache_key__`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from threading import Lock
from types import FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakSet

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.explain import Explanation
from semcache.model import Request
from semcache.plan import arun, run
from semcache.wrap.call import Call
from semcache.wrap.default import default_cache
from semcache.wrap.options import Options
from semcache.wrap.signature import Signature, register_returned, unwrap
from semcache.wrap.stream import areplaying, replaying
from semcache.wrap.version import name_of, version_of


class CacheInfo(NamedTuple):
    """The calls of one function so far, in this process."""

    hits: int
    misses: int
    bypasses: int


def decorate(cache: Cache | None, checked: Options, function: Any) -> Any:
    """Make what stands in a function's place; of a classmethod or staticmethod another one."""
    if isinstance(function, classmethod | staticmethod):
        return type(function)(decorate(cache, checked, function.__func__))
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
