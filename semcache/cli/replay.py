"""`semcache replay`: run recorded requests through a cache, and print what came of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from semcache.cli.arguments import not_negative, positive, positive_float
from semcache.errors import ConfigurationError, MissingExtraError
from semcache.policy import Threshold
from semcache.policy.guards import GUARDS
from semcache.replay.progress import progress
from semcache.replay.render import render, show
from semcache.replay.report import Report, figures, make_report
from semcache.replay.run import replay
from semcache.replay.settings import DEFAULT_EMBEDDER, Settings
from semcache.ttl import TTL, size_bytes
from semcache.wrap.default import policy_of

_TTLS = ("memory", "disk", "semantic")
_COLUMNS = 96


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="run recorded requests through a cache; see what it would have saved, and got wrong",
        description="Run recorded requests through a cache, at the recording's own times, and print what it would have "
        "answered, saved and got wrong. docs/traffic.md describes the format of a recording.",
    )
    parser.add_argument("traffic", metavar="TRAFFIC.jsonl", help="the recording, one request a line")
    near = parser.add_argument_group("near matches")
    near.add_argument(
        "--policy", default="shadow", metavar="POLICY",
        help='which near matches are served: "threshold:0.9", or "shadow", none of them (the default)',
    )  # fmt: skip
    near.add_argument(
        "--embedder", metavar="MODEL",
        help=f"a sentence-transformers model, by name or path (default: {DEFAULT_EMBEDDER})",
    )  # fmt: skip
    near.add_argument("--device", default="auto", help='"cpu", "cuda", "cuda:1" (default: auto)')
    near.add_argument("--no-guards", action="store_true", help="let no guard refuse what the policy would serve")
    near.add_argument("--no-semantic", action="store_true", help="exact matches only")
    cache = parser.add_argument_group("the cache")
    cache.add_argument("--memory", default="64MB", metavar="SIZE", help="bound of the memory tier (default: 64MB)")
    cache.add_argument(
        "--ttl", action="append", default=[], type=_ttl, metavar="TIER=TIME",
        help="how long a tier keeps an answer; may be repeated (default: memory=5m disk=1d semantic=1h)",
    )  # fmt: skip
    cache.add_argument("--prices", metavar="FILE", help="a table of prices of your own, laid over ours (docs/costs.md)")
    cache.add_argument("--seed", type=int, default=0, help="of the jitter that shortens each ttl (default: 0)")
    run = parser.add_argument_group("the run")
    run.add_argument("--limit", type=positive, metavar="N", help="only the first N requests")
    run.add_argument(
        "--time-scale", type=positive_float, metavar="X",
        help="let X seconds pass for the cache in each of the recording's (default: 1)",
    )  # fmt: skip
    run.add_argument("--strict", action="store_true", help="stop at the first line that is not in the format")
    run.add_argument("--live", action="store_true", help="in real time, as fast as it goes, nothing done ahead")
    run.add_argument("--concurrency", type=positive, metavar="N", help="with --live: how many callers (default: 1)")
    run.add_argument(
        "--origin-scale", type=not_negative, metavar="X",
        help="with --live: an origin takes X times its recorded latency (default: 0)",
    )  # fmt: skip
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help='write the figures to FILE; "-": to stdout, instead of the report')
    out.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    target = _json_target(options.json)
    try:
        with Path(options.traffic).open("rb") as lines, progress(sys.stderr, is_quiet=options.quiet) as shown:
            report = make_report(replay(lines, settings, shown))
    except MissingExtraError as error:
        raise ConfigurationError(f"{error}; or replay exact matches only: --no-semantic") from error
    _write(report, Path(options.traffic).name, target, to_stdout=options.json == "-")
    sys.stdout.flush()
    return 0


def _write(report: Report, name: str, target: Path | None, *, to_stdout: bool) -> None:
    told = json.dumps(figures(report), indent=2, allow_nan=False) + "\n"
    if to_stdout:
        sys.stdout.write(told)
        return
    if target is not None:
        target.write_text(told, encoding="utf-8")
    show(render(report, name, shutil.get_terminal_size((_COLUMNS, 24)).columns), sys.stdout)


def _settings(options: argparse.Namespace) -> Settings:
    """Make settings of options. Raises ConfigurationError."""
    if not options.live and (options.concurrency is not None or options.origin_scale is not None):
        raise ConfigurationError("--concurrency and --origin-scale are for --live")
    if options.live and options.time_scale is not None:
        raise ConfigurationError("--time-scale is not for --live, which runs in real time")
    if options.no_semantic and (options.embedder or options.policy != "shadow"):
        raise ConfigurationError("--no-semantic leaves out near matches: it goes with neither --policy nor --embedder")
    size_bytes(options.memory, "--memory")
    policy: Threshold | None = policy_of(options.policy, None if options.no_guards else GUARDS)
    if options.no_guards and policy is None:
        raise ConfigurationError("--no-guards goes with a --policy that serves near matches, as threshold:0.9")
    return Settings(
        policy=policy,
        embedder=None if options.no_semantic else options.embedder or DEFAULT_EMBEDDER,
        device=options.device,
        memory=options.memory,
        ttl=replace(TTL(), **dict(options.ttl)),
        prices=options.prices,
        time_scale=options.time_scale or 1.0,
        seed=options.seed,
        limit=options.limit,
        is_strict=options.strict,
        live_threads=(options.concurrency or 1) if options.live else 0,
        origin_scale=options.origin_scale or 0.0,
    )


def _json_target(json_option: str | None) -> Path | None:
    """Return the file to write; a replay takes minutes, so what can be seen to be wrong with it is said before."""
    if json_option is None or json_option == "-":
        return None
    target = Path(json_option)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigurationError(f"--json {json_option}: there is no folder to write that file in")
    return target


def _ttl(text: str) -> tuple[str, str]:
    tier, equals, duration = text.partition("=")
    if tier not in _TTLS or not equals:
        raise argparse.ArgumentTypeError(f"expected TIER=TIME, as in memory=5m, of {', '.join(_TTLS)}; got {text!r}")
    return tier, duration
