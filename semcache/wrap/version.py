"""A function's version: a digest of what it is made of, so that changed code does not serve the old code's answers.

It covers the function's own source, without its decorators, and its closure; never its globals. Law 1: free variables
are closure cells, read once, at decoration: immutable values, functions and modules enter the version, anything else
is refused with the mend.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from semcache.errors import ConfigurationError, UnkeyableError
from semcache.keys import canonical, digest
from semcache.naming import module_name
from semcache.wrap.signature import unwrap

_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None), range)
_IMMUTABLE_MODULES = ("datetime", "decimal", "fractions", "uuid")


class _Refused(Exception):  # noqa: N818 - becomes a ConfigurationError once all is told
    """A free variable that cannot enter a version, and why."""

    def __init__(self, variable: str, why: str) -> None:
        super().__init__(variable, why)
        self.variable = variable
        self.why = why


def version_of(function: Callable[..., Any], name: str, ignore: frozenset[str] = frozenset()) -> str:
    """Return a function's version, 16 hex digits. Raises ConfigurationError for what cannot be versioned."""
    try:
        parts = _parts(function, ignore, [])
    except _Refused as refused:
        raise ConfigurationError(
            f"{name} closes over {refused.variable!r}, which {refused.why}: pass version= to say yourself when "
            f"answers change, or ignore={refused.variable!r} if it cannot change them"
        ) from None
    except UnkeyableError as error:
        raise ConfigurationError(f"{name} closes over what has no key ({error}); pass version=") from None
    if parts is None:
        raise ConfigurationError(f"{name} has no source or bytecode to make a version of; pass version=")
    return digest(*parts).hex()[:16]


def name_of(function: Callable[..., Any]) -> str:
    """Return module and qualified name of a function."""
    return f"{module_name(function.__module__)}.{function.__qualname__}"


def is_cached(function: Any) -> bool:
    """Say whether `cached` made a function; one that wraps such a one has its attributes, but not its code."""
    made_in = getattr(function, "__globals__", {}).get("__name__", "")
    return made_in.startswith("semcache.wrap.") and hasattr(function, "__semcache_version__")


# What `exec` and `python -c` both call their code's file.
_UNNAMED = "<string>"


def _parts(function: Any, ignore: frozenset[str], seen: list[Any]) -> list[bytes] | None:
    """Tell all that a function is made of; None for what is no function."""
    if is_cached(function):
        return [canonical([function.__semcache_name__, function.__semcache_version__])]
    if isinstance(function, BuiltinFunctionType) and isinstance(function.__self__, ModuleType):
        return [canonical(name_of(function))]
    if not isinstance(function, FunctionType):
        return None
    if any(function is one for one in seen):
        return []
    seen.append(function)
    parts = [canonical([name_of(function), source_of(function)])]
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if variable not in ignore and variable != "__class__":
            parts += [canonical(variable), *_closed_over(variable, cell, function, seen)]
    return parts


def _closed_over(variable: str, cell: Any, function: FunctionType, seen: list[Any]) -> list[bytes]:
    try:
        value = cell.cell_contents
    except ValueError:  # not set yet: the function itself, which is being decorated, or something defined later
        if variable == function.__name__:
            return []
        raise _Refused(variable, "is not set yet") from None
    if isinstance(value, ModuleType):
        return [canonical(value.__name__)]
    if _is_immutable(value):
        return [canonical(value)]
    inner, given = unwrap(value)
    if not _is_immutable((given.args, *given.kwargs.items())):
        raise _Refused(variable, "has arguments that may change unseen")
    try:
        told = _parts(inner, frozenset(), seen)
    except _Refused as refused:
        raise _Refused(variable, f"closes over {refused.variable!r}, which {refused.why}") from None
    if told is None:
        raise _Refused(variable, f"is a {type(value).__name__}, which may change unseen")
    return [*told, canonical([given.args, given.kwargs])]


def _is_immutable(value: Any) -> bool:
    kind = value.__class__
    if kind in (tuple, frozenset) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return all(_is_immutable(item) for item in value)
    return kind in _IMMUTABLE or kind.__module__ in _IMMUTABLE_MODULES or isinstance(value, Enum)


def source_of(function: FunctionType) -> object:
    """Return the text from `def` on; where there is none, or it holds several lambdas, what was compiled of it."""
    if function.__code__.co_filename == _UNNAMED:  # Python 3.13 has the text of `python -c` under it, whosever it is
        return _compiled(function.__code__)
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
