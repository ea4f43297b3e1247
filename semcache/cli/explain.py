"""`semcache explain`: how a sidecar would answer a call now, and why; or what stands there under a key."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from semcache.cli.arguments import Once
from semcache.cli.sidecar import Sidecar, add_call, add_sidecar, headers_of, sidecar_of
from semcache.errors import ConfigurationError
from semcache.replay.words import clip, plain

_WIDEST = 90


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explain",
        help="why a sidecar answers a call as it does, or what it has under a key",
        description="Print how a call would be answered now: by which tier, what the others say, the nearest texts "
        "and why they are not served. Nothing is loaded. With --key: what stands there, and what it can be dropped by.",
    )
    parser.add_argument(
        "file", nargs="?", metavar="CALL.json", help="the body of the call, as it is posted; - reads it from stdin"
    )
    add_call(parser)
    parser.add_argument("--tenant", metavar="NAME", action=Once, help="whose call it is, as --key tells it")
    parser.add_argument("--key", metavar="HEX", action=Once, help="a key, as x-semcache-key tells it")
    add_sidecar(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if (options.key is None) == (options.file is None):
        raise ConfigurationError("explain what? give a call's body, CALL.json or -, with --path; or --key HEX")
    if options.key is not None:
        given = [f"--{name}" for name in ("path", "tenant") if getattr(options, name) is not None]
        if given or options.header:
            raise ConfigurationError(f"--key is all of a call: leave out {', '.join(given or ['--header'])}")
        body: dict[str, Any] = {"key": options.key}
    else:
        if options.path is None:
            raise ConfigurationError("where is the call posted? give --path /v1/chat/completions")
        body = {"path": options.path, "body": body_in(options.file)}
        body |= {} if options.tenant is None else {"tenant": options.tenant}
    sidecar = sidecar_of(options, is_needed=True)
    assert sidecar is not None  # noqa: S101 - it was needed
    told = sidecar.post("explain", body, headers_of(options))
    if options.json:
        print(json.dumps(told, ensure_ascii=False))
        return 0
    lines = _stands(told["stands"]) if told.get("stands") else _call(told, sidecar, options.tenant)
    print("\n".join(lines))
    return 0


def body_in(name: str) -> dict[str, Any]:
    """Return the JSON object in a file, or in stdin for -. Raises ConfigurationError, OSError."""
    try:
        told = json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name}: it is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise ConfigurationError(f'{name}: a call\'s body is an object, as {{"model": ...}}')
    return told


def _call(told: dict[str, Any], sidecar: Sidecar, tenant: str | None) -> list[str]:
    whose = f"tenant {plain(told['tenant'])}, {sidecar.url}"
    if told["goes_by"]:
        return [f"it goes by the cache: {plain(told['goes_by'])} ({whose})"]
    lines = [plain(line) if not at else f"  {clip(plain(line.strip()), _WIDEST)}" for one in told["answers"]
             for at, line in enumerate(one["told"].splitlines())]  # fmt: skip
    hint = "" if tenant is not None else "; --tenant NAME explains another's"
    return [*lines, f"mode {told['mode']}, {whose}{hint}"]


def _stands(told: dict[str, Any]) -> list[str]:
    named = {name: told[name] for name in ("tenant", "function", "model", "version") if told[name]}
    lists = {name: ", ".join(told[name]) for name in ("tags", "documents") if told[name]}
    lines = [f"key {told['key']}: {'; '.join(f'{name} {plain(value)}' for name, value in (named | lists).items())}"]
    for one in told["tiers"]:
        left = "pinned" if one["is_pinned"] else "stale" if one["is_stale"] else _left(one["remaining"])
        lines.append(f"  {one['tier']}: {one['bytes']:,} bytes, stored {one['age']:.0f} s ago, {left}")
    return lines


def _left(remaining: float | None) -> str:
    return "without an end" if remaining is None else f"{remaining:.0f} s left"
