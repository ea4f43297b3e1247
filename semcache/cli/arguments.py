"""Reading what was typed: a parser that says in one line what is wrong, and the numbers it takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from semcache.errors import ConfigurationError

_TIERS = ("memory", "disk", "semantic")


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Once(argparse.Action):
    """An option that is not to be repeated: the second would silently replace the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option} is given twice: it takes one, give the command once for each")
        setattr(namespace, self.dest, values)


def target(option: str, told: str) -> Path:
    """Return the file to write, before minutes of work are lost for want of one. Raises ConfigurationError."""
    path = Path(told)
    if path.is_dir():
        raise ConfigurationError(f"{option} {told}: that is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"{option} {told}: there is no folder to write that file in")
    return path


def positive(text: str) -> int:
    """Read a whole number, at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1; got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    return number if number < float("inf") else -1.0


def positive_float(text: str) -> float:
    """Read a number over 0."""
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number over 0; got {text!r}")
    return number


def not_negative(text: str) -> float:
    """Read a number, at least 0."""
    number = _number(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"expected a number, at least 0; got {text!r}")
    return number


def tier_ttl(text: str) -> tuple[str, str]:
    """Read how long a tier of a replay keeps an answer, as "memory=5m"."""
    tier, equals, duration = text.partition("=")
    if tier not in _TIERS or not equals:
        raise argparse.ArgumentTypeError(f"expected TIER=TIME, as in memory=5m, of {', '.join(_TIERS)}; got {text!r}")
    return tier, duration
