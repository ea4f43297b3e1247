"""The command `semcache`: one module for each of its commands, which adds its arguments and runs it.

Laws: what was asked for goes to stdout, all else to stderr; what is wrong is said in one line, with status 2 for a
wrong use and 1 for what could not be done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from semcache import __version__
from semcache.cli.arguments import Parser
from semcache.errors import ConfigurationError, SemcacheError

_STOPPED, _PIPE_BROKEN = 130, 141
# The commands, in the order of their help, and where each stands: who types one waits for no other's module.
_COMMANDS = {
    "replay": "replay", "tune": "tune", "import": "importing", "serve": "serve", "doctor": "doctor", "stats": "stats",
    "top": "top", "explain": "explain", "blast": "blast", "invalidate": "invalidate", "mode": "mode", "load": "load",
    "reindex": "reindex",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(arguments[0] if arguments else "")
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except ConfigurationError as error:
        return _fail(str(error), 2)
    except (SemcacheError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; what Python still wants to write at its exit goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _PIPE_BROKEN
        where = getattr(error, "filename", None) or getattr(options, "traffic", None)
        told = getattr(error, "strerror", None) or error
        return _fail(f"{where}: {told}" if where else str(told), 1)
    except KeyboardInterrupt:
        return _fail("stopped", _STOPPED)
    return status


def _parser(typed: str) -> argparse.ArgumentParser:
    """Return a parser of the command that was typed, or, for the list of them, of all."""
    about = "A tiered cache for calls to language models, embedding models and retrieval."
    parser = Parser(prog="semcache", description=about)
    parser.add_argument("--version", action="version", version=f"semcache {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name in [typed] if typed in _COMMANDS else _COMMANDS:
        import_module(f"semcache.cli.{_COMMANDS[name]}").add(commands)
    return parser


def _fail(message: str, status: int) -> int:
    print(f"semcache: {' '.join(message.split())}", file=sys.stderr)
    return status
