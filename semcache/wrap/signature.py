"""A function's signature as the cache sees it: positional and keyword spellings of a call are one, defaults filled in.

What cannot be keyed is refused at decoration, by the argument's name, where annotation or default tell (law 1).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Generator, Iterator
from typing import Any

from semcache.codec import register
from semcache.errors import ConfigurationError, UnkeyableError
from semcache.keys import canonical, is_pydantic, type_name

_SIMPLE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """The parameters of a function, in order, less those that are ignored."""

    def __init__(self, function: Callable[..., Any], ignore: frozenset[str], name: str) -> None:
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        self.names = tuple(parameter for parameter in parameters if parameter not in ignore)
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
        self.is_bare = self._is_simple and not ignore  # a call's positional arguments, if complete, are its values
        self._refuse_unkeyable(function, name)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the value of every kept parameter, in order. Raises TypeError as the call itself would."""
        if kwargs or len(args) != self.count or not self._is_simple:
            args = self._bind(args, kwargs)
        return args if self._kept is None else tuple([args[place] for place in self._kept])

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if not self._is_simple:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return tuple(bound.arguments.values())
        values = list(args)
        used = 0
        for name in self._positional[len(args) :]:
            if name in kwargs and name in self._keywords:
                values.append(kwargs[name])
                used += 1
            elif name in self._defaults:
                values.append(self._defaults[name])
            else:
                raise TypeError(name)
        if used != len(kwargs) or len(values) != self.count:
            raise TypeError
        return tuple(values)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return every parameter's value by its name, ignored ones too."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def require(self, name: str, option: str) -> None:
        """Refuse the name of a parameter that there is not."""
        if name not in self._signature.parameters:
            known = ", ".join(self._signature.parameters) or "none"
            raise ConfigurationError(f"{option}={name!r} names no argument of the function; it has {known}")

    def _refuse_unkeyable(self, function: Callable[..., Any], name: str) -> None:
        hints = _hints(function)
        for parameter in self.names:
            default = self._defaults.get(parameter)
            try:
                canonical(default, f"the default of argument {parameter!r} of {name}")
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
        if isinstance(hint, type) and (hasattr(hint, "__dataclass_fields__") or is_pydantic(hint)):
            if "__semcache_name__" not in vars(hint):
                register(hint)
            waiting += _hints(hint).values()


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a name that cannot be resolved tells nothing, and may raise anything
        return {}


_NEVER: tuple[type, ...] = (Iterator, Generator)


def _is_unkeyable(kind: type) -> bool:
    """Say whether no instance of an annotated class could be keyed; bases and protocols may have keyable kinds."""
    if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False) or kind is object:
        return issubclass(kind, _NEVER) if kind is not object else False
    if kind.__module__ in ("builtins", "datetime", "decimal", "uuid", "fractions", "collections", "types", "numpy"):
        return issubclass(kind, _NEVER) or kind.__name__ in ("function", "module", "generator", "coroutine")
    if hasattr(kind, "__semcache_key__") or hasattr(kind, "__dataclass_fields__") or is_pydantic(kind):
        return False
    return not any(
        base.__module__ in ("enum", "pathlib", "datetime", "numpy", "zoneinfo") for base in kind.__mro__
    ) and (not (issubclass(kind, tuple) and hasattr(kind, "_fields")))
