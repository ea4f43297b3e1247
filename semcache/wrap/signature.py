"""A function's signature as the cache sees it: positional and keyword spellings of a call are one, defaults filled in.

What cannot be keyed is refused at decoration, by the argument's name, where annotation or default tell (law 1).
"""

from __future__ import annotations

import functools
import inspect
import typing
from abc import ABCMeta
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import CoroutineType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

from semcache.codec import register
from semcache.errors import ConfigurationError, UnkeyableError
from semcache.keys import canonical, is_pydantic
from semcache.naming import type_name

_SIMPLE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments that a function has before it is called."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.args or self.kwargs)

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call's arguments behind the given ones, as functools.partial does."""
        return self.args + args, {**self.kwargs, **kwargs}


def unwrap(function: Any) -> tuple[Any, Given]:
    """Return the function inside functools.partial or a bound method, and the arguments that it has already."""
    given = Given()
    while True:
        if isinstance(function, functools.partial):
            inside = Given(function.args, function.keywords)
            function = function.func
        elif isinstance(function, MethodType):
            inside = Given((function.__self__,))
            function = function.__func__
        else:
            return function, given
        given = Given(*inside.before(given.args, given.kwargs))


class MisfitError(TypeError):
    """A call that does not fit the function; the function itself says so better."""


class Signature:
    """The parameters of a function, in order, less those that are ignored.

    `given` are the arguments that functools.partial, or a bound method, has already: keyed like any others, at each
    call. `has_key` says that `key=` makes the key, so that the arguments need none.
    """

    def __init__(
        self, function: Callable[..., Any], given: Given, ignore: frozenset[str], name: str, *, has_key: bool
    ) -> None:
        try:
            self._signature = inspect.signature(function)
            bound = self._signature.bind_partial(*given.args, **given.kwargs).arguments
        except (TypeError, ValueError) as error:  # a builtin may have no signature
            raise ConfigurationError(f"{name} cannot be called as it is: {error}; wrap it in a function") from None
        parameters = self._signature.parameters
        self.names = tuple(parameter for parameter in parameters if parameter not in ignore)
        self._given = given
        self._is_simple = all(parameter.kind in _SIMPLE for parameter in parameters.values())
        self._positional = tuple(parameters)
        self._keywords = frozenset(
            name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
        )
        self._defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        self._kept = None if not ignore else [place for place, one in enumerate(parameters) if one not in ignore]
        self.count = len(parameters)
        # A call's positional arguments, if complete, are its values.
        self.is_bare = self._is_simple and not ignore and not given
        if not has_key:
            self._refuse_unkeyable(_hints(function), {**self._defaults, **bound}, name)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the value of every kept parameter, in order. Raises MisfitError where the call itself would raise."""
        if self._given:
            args, kwargs = self._given.before(args, kwargs)
        if kwargs or len(args) != self.count or not self._is_simple:
            args = self._placed(args, kwargs) or tuple(self._bound(args, kwargs).values())
        return args if self._kept is None else tuple([args[place] for place in self._kept])

    def _placed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Bind as `inspect` does, several times faster; None for what is left to it."""
        if not self._is_simple:
            return None
        values = list(args)
        used = 0
        for name in self._positional[len(args) :]:
            if name in kwargs and name in self._keywords:
                values.append(kwargs[name])
                used += 1
            elif name in self._defaults:
                values.append(self._defaults[name])
            else:
                return None
        return tuple(values) if used == len(kwargs) and len(values) == self.count else None

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise MisfitError(str(error)) from None
        bound.apply_defaults()
        return bound.arguments

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return every parameter's value by its name, ignored ones too."""
        return self._bound(*self._given.before(args, kwargs))

    def require(self, name: str, option: str) -> None:
        """Refuse the name of a parameter that there is not."""
        if name not in self._signature.parameters:
            known = ", ".join(self._signature.parameters) or "none"
            raise ConfigurationError(f"{option}={name!r} names no argument of the function; it has {known}")

    def _refuse_unkeyable(self, hints: dict[str, Any], known: dict[str, Any], name: str) -> None:
        for parameter in self.names:
            try:
                canonical(known.get(parameter), f"argument {parameter!r} of {name}, as it is given or by default")
            except UnkeyableError as error:
                raise ConfigurationError(str(error)) from None
            kind = hints.get(parameter)
            if isinstance(kind, type) and _is_unkeyable(kind):
                raise ConfigurationError(
                    f"argument {parameter!r} of {name}: a {type_name(kind)} cannot be keyed; name it in "
                    "ignore= if it cannot change the answer, give the class __semcache_key__(), or pass key="
                )


def register_returned(function: Callable[..., Any]) -> None:
    """Register the records in a function's return annotation, so that a new process can read what others stored."""
    waiting = [_hints(function).get("return")]
    seen: list[Any] = []
    while waiting:
        hint = waiting.pop()
        if any(hint is one for one in seen):
            continue
        seen.append(hint)
        waiting += typing.get_args(hint)
        if isinstance(hint, type) and _is_record(hint):
            if "__semcache_name__" not in vars(hint):
                register(hint)
            waiting += _hints(hint).values()


def _is_record(kind: type) -> bool:
    """Say whether the codec knows a class by its name, and so must know it before it reads one."""
    is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    is_enum = issubclass(kind, Enum) and bool(kind.__members__)
    return is_enum or is_named_tuple or hasattr(kind, "__dataclass_fields__") or is_pydantic(kind)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a name that cannot be resolved tells nothing, and may raise anything
        return {}


_NEVER: tuple[type, ...] = (Iterator, Generator)
_OPEN_MODULES = ("builtins", "collections", "datetime", "decimal", "fractions", "numpy", "types", "typing", "uuid")
_KEYED_MODULES = ("datetime", "enum", "numpy", "pathlib", "zoneinfo")


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]  # Python 3.13 makes a Path in pathlib._local


def _is_unkeyable(kind: type) -> bool:
    """Say whether no instance of an annotated class could be keyed; bases and protocols may have keyable kinds."""
    if isinstance(kind, ABCMeta) or kind is object or _package(kind) in _OPEN_MODULES:
        return issubclass(kind, _NEVER) or kind in (CoroutineType, FunctionType, GeneratorType, MethodType, ModuleType)
    if hasattr(kind, "__semcache_key__") or hasattr(kind, "__dataclass_fields__") or is_pydantic(kind):
        return False
    is_dict_at_run_time = hasattr(kind, "__required_keys__")  # a TypedDict
    is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    has_keyed_base = any(_package(base) in _KEYED_MODULES for base in kind.__mro__)
    return not (is_dict_at_run_time or is_named_tuple or has_keyed_base)
