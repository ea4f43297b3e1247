"""`semcache serve`: the sidecar, with its settings from flags, environment and a file."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from typing import Any

from semcache.errors import ConfigurationError, MissingExtraError

_NEEDED = ("aiohttp", "httptools", "prometheus_client", "uvicorn")


def add(commands: Any) -> None:
    """Add the command."""
    from semcache.sidecar.settings import add_settings

    parser = commands.add_parser(
        "serve",
        help="run the sidecar: a caching proxy that speaks OpenAI's and Anthropic's protocols",
        description="Run a caching proxy in front of a model's server: point a client's base URL at it, and change "
        "nothing else. Every setting is a flag, a variable of the environment (SEMCACHE_PORT) and a key of the file; "
        "the nearer goes before the other. SIGTERM lets open answers end first. Exit status 2: a setting is wrong; "
        "1: it cannot listen.",
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings (default: SEMCACHE_CONFIG)")
    parser.add_argument("--print-config", action="store_true", help="print the settings as a file, and end")
    parser.add_argument("--new-token", action="store_true", help="print a new token and its digest, and end")
    add_settings(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from semcache.sidecar.credentials import new_token
    from semcache.sidecar.settings import read

    if options.new_token:
        token, digest = new_token()
        print(
            f'token (shown this once, for x-semcache-token): {token}\n\n[[token]]\nsha256 = "{digest}"\n'
            'tenant = "NAME"  # whose it is; an operator\'s is "*", with rights = ["read", "admin"]'
        )
        return 0
    resolved = read(options)
    if options.print_config:
        print(resolved.told())
        return 0
    if any(find_spec(name) is None for name in _NEEDED):
        raise MissingExtraError("semcache serve", "sidecar")
    from semcache.sidecar.serve import serve

    # What the library warns of names no line of the user's here.
    logging.captureWarnings(capture=True)
    warnings.formatwarning = lambda message, *_where, **_line: str(message)
    say = partial(print, file=sys.stderr, flush=True)
    is_json = resolved.settings.log == "json"
    try:
        serve(
            resolved.settings, (lambda told: say(json.dumps({"message": told}))) if is_json else say,
            lambda: read(options).settings,
        )  # fmt: skip
    except MissingExtraError:
        raise
    except ConfigurationError as error:
        raise ConfigurationError(resolved.named(str(error))) from error
    return 0
