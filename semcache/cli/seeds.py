"""Curated answers in a CSV file: its rows, each with the line it begins at, and the calls that they are answers to.

Law: a row that is not understood is told with its line, and then none of them is loaded.
"""

from __future__ import annotations

import csv
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from semcache.errors import ConfigurationError, TrafficError, UnkeyableError
from semcache.model import Request
from semcache.replay.words import count

ANSWER, QUESTION = "answer", "question"
QUESTION_PLACE = "{question}"
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# The module's own bound is 128 kB, less than an answer may have.
_LONGEST_CELL = 2**30
_TYPES = "int, float, bool and str"


class Row(NamedTuple):
    """A row of the file: the line that it begins at, and its cells by column."""

    line: int
    cells: dict[str, str]


class Seed(NamedTuple):
    """A call, and the answer to put for it."""

    line: int
    request: Request
    answer: Any


class Reader:
    """Reads rows as calls; `columns` says which columns there must be, and may be."""

    def __init__(
        self, request: Callable[[dict[str, str]], tuple[Request, Any]], needed: set[str], known: set[str]
    ) -> None:
        self._request = request
        self._needed = needed
        self._known = known

    def seeds(self, path: Path) -> tuple[list[Seed], list[str]]:
        """Return the seeds, and what is wrong, a line each. Raises OSError, ConfigurationError, TrafficError."""
        seeds: list[Seed] = []
        wrong: list[str] = []
        seen: dict[bytes, int] = {}
        for row in self._rows(path, wrong):
            try:
                request, answer = self._request(row.cells)
            except (ValueError, UnkeyableError) as error:
                wrong.append(f"line {row.line}: {error}")
                continue
            before = seen.setdefault(request.key, row.line)
            if before != row.line:
                wrong.append(f"line {row.line}: the same call as in line {before}")
            seeds.append(Seed(row.line, request, answer))
        if not seeds and not wrong:
            raise TrafficError("there is no row in it, only a header")
        return seeds, wrong

    def _rows(self, path: Path, wrong: list[str]) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST_CELL)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            try:
                header = self._header(next(lines, []))
                line = lines.line_num + 1
                for cells in lines:
                    began, line = line, lines.line_num + 1
                    if not any(cell.strip() for cell in cells):
                        continue
                    if len(cells) == len(header):
                        yield Row(began, dict(zip(header, map(str.strip, cells), strict=True)))
                    else:
                        wrong.append(
                            f"line {began}: {count(len(cells), 'cell')}, where the header has {len(header)} columns"
                        )
            except UnicodeDecodeError as error:
                raise TrafficError(f"it is not UTF-8 ({error.reason}): save it as CSV in UTF-8") from error
            except csv.Error as error:
                raise TrafficError(str(error), lines.line_num) from error

    def _header(self, cells: list[str]) -> list[str]:
        header = [cell.strip() for cell in cells]
        for column in sorted(self._needed - set(header)):
            raise ConfigurationError(
                f"there is no column {column!r}: the first line names the columns, with commas between; "
                f"it has {', '.join(map(repr, header)) or 'nothing'}"
            )
        for column in header:
            if column not in self._known:
                raise ConfigurationError(f"column {column!r} is none of {', '.join(sorted(self._known))}")
            if header.count(column) > 1:
                raise ConfigurationError(f"there are two columns {column!r}")
        return header


def questions(make: Callable[[str], Request]) -> Reader:
    """Read columns `question` and `answer`, as the text of a request and its answer."""

    def request(cells: dict[str, str]) -> tuple[Request, Any]:
        for column in (QUESTION, ANSWER):
            if not cells[column]:
                raise ValueError(f"the {column} is empty")
        return make(cells[QUESTION]), cells[ANSWER]

    return Reader(request, {QUESTION, ANSWER}, {QUESTION, ANSWER})


def with_question(told: Any, question: str) -> Any:
    """Return a call's body with a question in its place, wherever a text of it has that."""
    if isinstance(told, dict):
        return {name: with_question(item, question) for name, item in told.items()}
    if isinstance(told, list):
        return [with_question(item, question) for item in told]
    return told.replace(QUESTION_PLACE, question) if isinstance(told, str) else told


def calls(name: str, function: Any) -> Reader:
    """Read the calls of a decorated function: columns are its arguments, and `answer`. Raises ConfigurationError."""
    inner = inspect.unwrap(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigurationError(f"{name} is a generator: answers are loaded for functions that return them whole")
    signature = inspect.signature(inner)
    if ANSWER in signature.parameters:
        raise ConfigurationError(f"{name} has an argument 'answer', which is the column of the answers: rename it")
    try:
        types = get_type_hints(inner)
    except Exception as error:  # whatever evaluating somebody's annotations raises
        raise ConfigurationError(f"the annotations of {name} cannot be read: {error}") from error
    named = {
        argument: parameter for argument, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }  # fmt: skip

    def request(cells: dict[str, str]) -> tuple[Request, Any]:
        if not cells[ANSWER]:
            raise ValueError("the answer is empty")
        given: dict[str, Any] = {}
        for argument, parameter in named.items():
            cell = cells.get(argument, "")
            if cell:
                given[argument] = _converted(cell, types.get(argument, str), argument)
            elif parameter.default is parameter.empty:
                raise ValueError(f"{argument!r} is empty")
        bound = inspect.BoundArguments(signature, given)
        answer = _converted(cells[ANSWER], types.get("return", str), ANSWER)
        return function.request(*bound.args, **bound.kwargs), answer

    needed = {argument for argument, parameter in named.items() if parameter.default is parameter.empty}
    return _Typed(request, needed | {ANSWER}, named.keys() | {ANSWER}, name, types)


class _Typed(Reader):
    """Reads columns whose types are those of a function's annotations."""

    def __init__(
        self, request: Callable[[dict[str, str]], tuple[Request, Any]], needed: set[str], known: set[str], name: str,
        types: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(request, needed, known)
        self._name = name
        self._types = types

    def _header(self, cells: list[str]) -> list[str]:
        header = super()._header(cells)
        for column in header:
            kind = self._types.get("return" if column == ANSWER else column, str)
            if kind not in (int, float, bool, str):
                told = getattr(kind, "__name__", None) or str(kind)
                whose = "returns" if column == ANSWER else f"takes as {column!r}"
                raise ConfigurationError(
                    f"{self._name} {whose} {told}; a CSV file can say {_TYPES}: put the others with cache.put"
                )
        return header


def _converted(cell: str, kind: Any, column: str) -> Any:
    """Return a cell as a value. Raises ValueError."""
    try:
        if kind is bool:
            return _TRUTHS[cell.lower()]
        return kind(cell)
    except (ValueError, KeyError):
        raise ValueError(f"{column!r} is {kind.__name__}; got {cell!r}") from None


def function_of(told: str) -> Any:
    """Import the decorated function that "package.module:function" names. Raises ConfigurationError."""
    from semcache.wrap.wrapping import cache_of

    module_name, colon, name = told.partition(":")
    if not module_name or not colon or not name:
        raise ConfigurationError(f"--call is package.module:function; got {told!r}")
    if not sys.path or sys.path[0] not in ("", str(Path.cwd())):
        sys.path.insert(0, str(Path.cwd()))  # the folder that the command is run in, as python -m has it
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # whatever somebody's module raises as it is imported
        raise ConfigurationError(f"--call {told}: importing {module_name} failed: {error!r}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"--call {told}: there is no {part!r} in {getattr(found, '__name__', found)!r}")
        found = getattr(found, part)
    if cache_of(found) is None:
        raise ConfigurationError(f"--call {told}: it is no function that semcache.cached has decorated")
    return found
