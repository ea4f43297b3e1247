"""`semcache replay`: run recorded requests through a cache, and print what came of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from semcache.cli.arguments import not_negative, positive, positive_float, target, tier_ttl
from semcache.errors import ConfigurationError, MissingExtraError
from semcache.policy import ErrorBudget, Threshold
from semcache.policy.guards import GUARDS
from semcache.replay import charts
from semcache.replay.gates import Checked, check, gate, told_of
from semcache.replay.markdown import markdown
from semcache.replay.page import page
from semcache.replay.progress import progress
from semcache.replay.render import render, show
from semcache.replay.report import Report, figures, make_report
from semcache.replay.run import replay
from semcache.replay.settings import DEFAULT_EMBEDDER, Settings
from semcache.ttl import TTL, size_bytes
from semcache.wrap.default import policy_of

_COLUMNS = 96
_TARGETS = ("json", "report", "markdown")


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="run recorded requests through a cache; see what it would have saved, and got wrong",
        description="Run recorded requests through a cache, at the recording's own times, and print what it would have "
        "answered, saved and got wrong. docs/traffic.md describes the format of a recording. FILE may be -, for stdout "
        "instead of the printed report.",
    )
    parser.add_argument("traffic", metavar="TRAFFIC.jsonl", help="the recording, one request a line")
    near = parser.add_argument_group("near matches")
    near.add_argument(
        "--policy", default="shadow", metavar="POLICY",
        help='which near matches are served: "threshold:0.9", "budget:0.02", as an ErrorBudget would have learned '
        'to, a tuned policy\'s file, or "shadow", none (the default)',
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
        "--ttl", action="append", default=[], type=tier_ttl, metavar="TIER=TIME",
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
    out.add_argument(
        "--why-miss", action="store_true", help="say what keeps requests apart: each part of the key, left out in turn"
    )
    out.add_argument(
        "--report", metavar="FILE.html", help="write a page with charts, and both texts of each wrong hit, to FILE.html"
    )
    out.add_argument("--markdown", metavar="FILE", help="write a report for a pull request to FILE")
    out.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    out.add_argument(
        "--gate", action="append", default=[], metavar="BOUND",
        help='as "wrong_per_hit<=0.01"; may be repeated; exit status 1 where one does not hold',
    )  # fmt: skip
    out.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    gates = [gate(typed) for typed in options.gate]
    _check_targets(options)
    try:
        with Path(options.traffic).open("rb") as lines, progress(sys.stderr, is_quiet=options.quiet) as shown:
            report = make_report(replay(lines, settings, shown))
    except MissingExtraError as error:
        raise ConfigurationError(f"{error}; or replay exact matches only: --no-semantic") from error
    checked = [check(one, report) for one in gates]
    _write(report, checked, options)
    sys.stdout.flush()
    failed = [one for one in checked if not one.passed]
    for one in failed:
        print(f"semcache: {one.told()}", file=sys.stderr)
    return 1 if failed else 0


def _write(report: Report, checked: list[Checked], options: argparse.Namespace) -> None:
    """Write what was asked for; the printed report, unless something else goes to stdout."""
    name = Path(options.traffic).name
    written: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(_figures(report, checked), indent=2, allow_nan=False) + "\n",
        "report": lambda: page(report, name, checked),
        "markdown": lambda: markdown(report, name, checked, shows_why=options.why_miss),
    }
    is_taken = False
    for option, told in written.items():
        named = getattr(options, option)
        if named == "-":
            sys.stdout.write(told())
            is_taken = True
        elif named is not None:
            # Half a pair that stands for no character can be in a recording, and in no file.
            Path(named).write_text(told(), encoding="utf-8", errors="replace")
    if not is_taken:
        width = shutil.get_terminal_size((_COLUMNS, 24)).columns
        show(render(report, name, width, checked, shows_why=options.why_miss), sys.stdout)


def _figures(report: Report, checked: list[Checked]) -> dict[str, Any]:
    return figures(report) | ({"gates": told_of(checked)} if checked else {})


def _check_targets(options: argparse.Namespace) -> None:
    """Refuse what cannot be written: a replay takes minutes, so what can be seen to be wrong is said before."""
    targets = {name: getattr(options, name) for name in _TARGETS}
    if sum(told == "-" for told in targets.values()) > 1:
        raise ConfigurationError(f"only one of {', '.join(f'--{name}' for name in _TARGETS)} can go to stdout")
    for name, told in targets.items():
        if told is not None and told != "-":
            target(f"--{name}", told)
    if options.report is not None:
        charts.require()


def _settings(options: argparse.Namespace) -> Settings:
    """Make settings of options. Raises ConfigurationError."""
    if not options.live and (options.concurrency is not None or options.origin_scale is not None):
        raise ConfigurationError("--concurrency and --origin-scale are for --live")
    if options.live and options.time_scale is not None:
        raise ConfigurationError("--time-scale is not for --live, which runs in real time")
    if options.no_semantic and (options.embedder or options.policy != "shadow"):
        raise ConfigurationError("--no-semantic leaves out near matches: it goes with neither --policy nor --embedder")
    size_bytes(options.memory, "--memory")
    guards = None if options.no_guards else GUARDS
    policy = policy_of(options.policy, guards)
    if options.live and isinstance(policy, ErrorBudget):
        raise ConfigurationError("--policy budget:SHARE is not for --live: it learns at the recording's own times")
    if options.no_guards and not isinstance(policy, Threshold | ErrorBudget):
        raise ConfigurationError("--no-guards goes with a --policy that has guards, as threshold:0.9")
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
        keep_ingredients=options.why_miss or options.report is not None,
    )
