"""A function's version: a digest of what it is made of, so that changed code does not serve the old code's answers.

It covers the function's own source, without its decorators, and its closure; never its globals. Law 1: free variables
are closure cells, read once, at decoration: immutable values, functions and modules enter the version, anything else
is refused with the mend.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

from semcache.errors import ConfigurationError, UnkeyableError
from semcache.keys import canonical, digest, module_name

_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None), range)


def version_of(function: Callable[..., Any], name: str, ignore: frozenset[str] = frozenset()) -> str:
    """Return a function's version, 16 hex digits. Raises ConfigurationError for what cannot be versioned."""
    return digest(*_parts(function, name, ignore, [])).hex()[:16]


def name_of(function: Callable[..., Any]) -> str:
    """Return module and qualified name of a function."""
    return f"{module_name(function.__module__)}.{function.__qualname__}"


def unwrap_partial(function: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the function inside functools.partial, with the arguments that it already has."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        args, kwargs = function.args + args, {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def _parts(function: Any, name: str, ignore: frozenset[str], seen: list[Any]) -> list[bytes]:
    function, args, kwargs = unwrap_partial(_inner(function))
    if not isinstance(function, FunctionType):
        raise ConfigurationError(f"{name} has no source or bytecode to make a version of; pass version=")
    if any(function is one for one in seen):
        return []
    seen.append(function)
    parts = [canonical([name_of(function), source_of(function)]), _keyed((args, kwargs), f"{name}'s partial arguments")]
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if variable not in ignore and variable != "__class__":
            parts.append(canonical(variable))
            parts += _closed_over(variable, cell, function, name, seen)
    return parts


def _inner(function: Any) -> Any:
    """Return what a cached function caches; other decorators are code of their own, and their closures count."""
    while hasattr(function, "__semcache_name__") and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _closed_over(variable: str, cell: Any, function: FunctionType, name: str, seen: list[Any]) -> list[bytes]:
    try:
        value = cell.cell_contents
    except ValueError:  # not set yet: the function itself, which is being decorated, or something defined later
        if variable == function.__name__:
            return []
        raise ConfigurationError(_refusal(name, variable, "is not set yet")) from None
    if isinstance(value, ModuleType):
        return [canonical(value.__name__)]
    if callable(value) and not isinstance(value, type):
        value, args, kwargs = unwrap_partial(_inner(value))
        if isinstance(value, FunctionType):
            own = _parts(value, name, frozenset(), seen)
            return [_keyed((args, kwargs), f"what {name} closes over as {variable!r}"), *own]
    if _is_immutable(value):
        return [canonical(value)]
    raise ConfigurationError(_refusal(name, variable, f"is a {type(value).__name__}, which may change unseen"))


def _refusal(name: str, variable: str, why: str) -> str:
    return (
        f"{name} closes over {variable!r}, which {why}: pass version= to say yourself when answers change, "
        f"or ignore={variable!r} if it cannot change them"
    )


def _is_immutable(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_is_immutable(item) for item in value)
    if value.__class__ in _IMMUTABLE:
        return True
    return value.__class__.__module__ in ("datetime", "decimal", "uuid", "fractions") or hasattr(
        value.__class__, "__members__"
    )


def _keyed(value: object, where: str) -> bytes:
    try:
        return canonical(value, where)
    except UnkeyableError as error:
        raise ConfigurationError(str(error)) from None


def source_of(function: FunctionType) -> object:
    """Return the text from `def` on; where there is none, or it holds several lambdas, what was compiled of it."""
    try:
        lines, _ = inspect.getsourcelines(function.__code__)  # the code's own, not what it wraps
    except (OSError, TypeError):
        return _compiled(function.__code__)
    if function.__name__ == "<lambda>":  # its line may hold another lambda
        return [textwrap.dedent("".join(lines)), _compiled(function.__code__)]
    after = [place for place, line in enumerate(lines) if line.lstrip().startswith(("def ", "async def "))]
    body = lines[after[0] :] if after else lines
    return "\n".join(line.rstrip() for line in textwrap.dedent("".join(body)).splitlines())


def _compiled(code: CodeType) -> list[object]:
    constants = [_compiled(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return [code.co_code, constants, code.co_names, code.co_varnames]
