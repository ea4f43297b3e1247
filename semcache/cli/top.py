"""`semcache top`: what a sidecar does now, in a view that is live, or once, or as JSON for a pipe.

Law: it reads, and asks every few seconds; what it shows are sums of the sidecar that was asked, and of all replicas
what they saved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import timedelta
from typing import Any

from semcache.cli.sidecar import Sidecar, add_sidecar, sidecar_of
from semcache.cli.stats import rows_of, table
from semcache.errors import ConfigurationError, MissingExtraError
from semcache.replay.render import STYLES, Line, show
from semcache.replay.words import columns, percent, plain
from semcache.ttl import seconds

_LEAST_SECONDS = 0.2
_TIER_COLUMNS = ("tier", "hits", "entries", "MB", "evictions", "breaker")
_BYTES = 10**6


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "top",
        help="what a sidecar does now: hits, tiers, what was saved",
        description="Show what a sidecar does, every two seconds, until it is stopped: hit rate, lookups a second, its "
        "tiers, and what all replicas saved by stage and model. Where there are tokens it wants an operator's.",
    )
    add_sidecar(parser)
    parser.add_argument("--since", default="1d", metavar="TIME", help="of what was saved, the first day (default: 1d)")
    parser.add_argument("--interval", default="2s", metavar="TIME", help="how often it asks (default: 2s)")
    parser.add_argument("--once", action="store_true", help="show it once")
    parser.add_argument("--json", action="store_true", help="print JSON, a line each time")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    interval = seconds(options.interval, "--interval")
    if interval < _LEAST_SECONDS:
        raise ConfigurationError(f"--interval is at least {_LEAST_SECONDS} s; got {options.interval}")
    sidecar = sidecar_of(options, is_needed=True)
    assert sidecar is not None  # noqa: S101 - it was needed
    told = _asked(sidecar, options.since)
    if sys.stdout.isatty() and not options.json and not options.once:
        return _live(sidecar, options.since, told, interval)
    before = None
    while True:
        if options.json:
            print(json.dumps(told))
        else:
            show([*([[]] if before else []), *frame(told, before, sidecar.url)], sys.stdout)
        sys.stdout.flush()
        if options.once:
            return 0
        time.sleep(interval)
        before, told = told, _asked(sidecar, options.since)


def _live(sidecar: Sidecar, since: str, told: dict[str, Any], interval: float) -> int:
    """Show it anew each time until it is stopped, which is how it ends."""
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("a view that is live", "cli") from error

    def drawn(now: dict[str, Any], before: dict[str, Any] | None) -> Text:
        lines = frame(now, before, sidecar.url)
        return Text("\n").join(
            Text.assemble(*((text, STYLES[style]) for text, style in line)) for line in lines
        )  # fmt: skip

    with Live(drawn(told, None), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                before, told = told, _asked(sidecar, since)
                live.update(drawn(told, before), refresh=True)
        except KeyboardInterrupt:
            return 0


def _asked(sidecar: Sidecar, since: str) -> dict[str, Any]:
    return {"stats": sidecar.get("stats"), "usage": sidecar.get("usage", since=since, by="stage,model")}


def frame(told: dict[str, Any], before: dict[str, Any] | None, url: str) -> list[Line]:
    """Return the view of what was told; `before` is what was told the last time, of which rates are made."""
    about = told["stats"]
    stats = about["stats"]
    hits, bypasses = sum(stats["hits"].values()), sum(stats["bypasses"].values())
    uptime = timedelta(seconds=int(about["uptime"]))
    rate = _rate(about, before["stats"]) if before is not None else None
    counts = f"{hits:,} hits  {stats['misses']:,} misses  {bypasses:,} went by  {stats['loads']:,} loads"
    lines: list[Line] = [
        [(f"semcache {about['version']}  {plain(about['namespace']) or '(no namespace)'}", "title"),
         (f"  mode {about['mode']}", "" if about["mode"] == "live" else "warn"),
         (f"  up {uptime}  {plain(url)}", "note")],
        [],
        [(f"{percent(about['hit_rate'])} hits  ", "good"), (counts, ""),
         (f"  {stats['load_errors']:,} failed" if stats["load_errors"] else "", "bad"),
         (f"  {rate:,.1f} lookups a second" if rate is not None else "", "note")],
        [],
        *_tiers(about),
    ]  # fmt: skip
    if stats["faults"]:
        worst = sorted(stats["faults"].items(), key=lambda one: -one[1])[:3]
        lines += [[], [("faults: " + ", ".join(f"{plain(name)} {count:,}" for name, count in worst), "bad")]]
    if stats["policy"]:
        lines += [[], [(plain(stats["policy"]), "note")]]
    rows = rows_of(told["usage"]["rows"])
    if rows:
        title = f"all replicas since {told['usage']['since']} (UTC)"
        lines += [[], [(title, "head")], *table(rows, ("stage", "model"))]
    return lines


def _rate(now: dict[str, Any], before: dict[str, Any]) -> float:
    """Return lookups a second between two times that a sidecar told them; one that began anew tells none."""
    passed = now["uptime"] - before["uptime"]
    return max(0.0, (_lookups(now) - _lookups(before)) / passed) if passed > 0 else 0.0


def _lookups(about: dict[str, Any]) -> int:
    stats = about["stats"]
    return int(sum(stats["hits"].values()) + stats["misses"] + sum(stats["bypasses"].values()))


def _tiers(about: dict[str, Any]) -> list[Line]:
    """Return what each tier holds, figures below each other."""
    stats = about["stats"]
    cells = [list(_TIER_COLUMNS)]
    for name, counts in stats["tiers"].items():
        size = f"{counts['bytes'] / _BYTES:,.1f}" if "bytes" in counts else "-"
        entries = counts.get("entries", counts.get("rows"))
        cells.append([
            name, f"{stats['hits'].get(name, 0):,}", "-" if entries is None else f"{entries:,.0f}", size,
            f"{counts['evictions']:,.0f}" if "evictions" in counts else "-", about["breakers"].get(name, "-"),
        ])  # fmt: skip
    widths = [max(columns(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines: list[Line] = []
    for at, row in enumerate(cells):
        padded = [cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in
                  enumerate(zip(row, widths, strict=True))]  # fmt: skip
        style = "head" if not at else "bad" if row[-1] == "open" else ""
        lines.append([("  ".join(padded), style)])
    return lines
