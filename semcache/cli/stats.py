"""`semcache stats`: what the lookups of all processes saved, and what their loads cost, as the store has it.

Law: it reads; a store that is not there is not begun, and nothing in one that is there is evicted.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from semcache.cli.sidecar import sidecar_of
from semcache.cli.store import add_store, place_of, unasked
from semcache.errors import SemcacheError
from semcache.meter import COLUMNS, MEASURES, UsageRow, columns_of, first_day, total_of
from semcache.replay.render import Line, show
from semcache.replay.words import clip, columns, count, money, plain, priced_at
from semcache.tier import SystemClock

_WIDEST = 40
_GAP = "  "
# The columns of the table: under which heading, which one, and its figure. CSV and JSON tell every measure by itself.
_FIGURES: tuple[tuple[str, str, Callable[[UsageRow], str]], ...] = (
    ("calls", "hits", lambda row: f"{row.hits:,}"),
    ("calls", "near", lambda row: f"{row.near_hits:,}"),
    ("calls", "loads", lambda row: f"{row.loads:,}"),
    ("calls", "errors", lambda row: f"{row.load_errors:,}"),
    ("saved", "tokens", lambda row: f"{row.saved_prompt_tokens + row.saved_completion_tokens:,}"),
    ("saved", "seconds", lambda row: f"{row.saved_seconds:,.1f}"),
    ("saved", "money", lambda row: money(row.saved_money)),
    ("spent", "tokens", lambda row: f"{row.spent_prompt_tokens + row.spent_completion_tokens:,}"),
    ("spent", "seconds", lambda row: f"{row.spent_seconds:,.1f}"),
    ("spent", "money", lambda row: money(row.spent_money)),
)  # fmt: skip


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "stats",
        help="what the cache saved, and what its loads cost, by day, stage, model or tenant",
        description="Print what the lookups of all processes of a namespace saved, and what their loads cost: calls, "
        "tokens, seconds (saved ones net of the lookups' own), and money, at the prices known when it was counted.",
    )
    add_store(parser, or_sidecar=True)
    asked = parser.add_argument_group("the figures")
    asked.add_argument(
        "--since", default="30d", metavar="TIME",
        help='the first day in UTC, "2026-11-27", or how long ago it was, "7d" (default: 30d)',
    )  # fmt: skip
    asked.add_argument(
        "--by", default="stage,model", metavar="COLUMNS",
        help=f"what the rows are told apart by: some of {', '.join(COLUMNS)} (default: stage,model)",
    )  # fmt: skip
    out = parser.add_mutually_exclusive_group()
    out.add_argument("--csv", action="store_true", help="every measure, as CSV with a line of headings")
    out.add_argument("--json", action="store_true", help="every measure, and the total, as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    by = columns_of([column.strip() for column in options.by.split(",") if column.strip()])
    since = first_day(options.since, SystemClock.time())
    sidecar = sidecar_of(options)
    if sidecar is not None:
        found = sidecar.get("usage", since=options.since, by=",".join(by))
        since, namespace = found["since"], found["namespace"]
        rows, unpriced = rows_of(found["rows"]), found["unpriced"]
    else:
        place = place_of(options)
        namespace = place.namespace
        with unasked(place) as cache:  # to follow the log of a namespace that is not there would begin it
            rows = cache.usage(since, by)
            unpriced = _unpriced(cache.usage(since, "model"))
    if not rows:
        raise SemcacheError(
            f"nothing was booked in namespace {namespace!r} since {since}: give an earlier --since or "
            "another --namespace; what a running process counts is booked within 10 seconds"
        )
    if options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(_told(UsageRow(), by))
        writer.writerows([*_told(row, by).values()] for row in rows)
    elif options.json:
        told = {
            "namespace": namespace, "since": since, "rows": [_told(row, by) for row in rows],
            "total": _told(total_of(rows), ()), "unpriced": unpriced,
        }  # fmt: skip
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        title = f"Usage of {plain(namespace)} since {since} (UTC)"
        show([[(title, "title")], [], *table(rows, by), *_notes(total_of(rows), unpriced)], sys.stdout)
    sys.stdout.flush()
    return 0


def rows_of(told: list[dict[str, Any]]) -> list[UsageRow]:
    """Return rows as a sidecar tells them."""
    return [UsageRow(**{**row, "prices": tuple(row["prices"])}) for row in told]


def _told(row: UsageRow, by: tuple[str, ...]) -> dict[str, Any]:
    told = asdict(row)
    return {name: told[name] for name in (*by, *MEASURES)} | {"prices": ", ".join(row.prices)}


def _unpriced(rows: list[UsageRow]) -> dict[str, int]:
    """Return the calls that are left out of the money, by model."""
    counted = {row.model or "": row.unpriced_hits + row.unpriced_loads for row in rows}
    return {model: calls for model, calls in counted.items() if calls}


def _notes(total: UsageRow, unpriced: dict[str, int]) -> list[Line]:
    """Return how the money was counted, and of which models none was."""
    told = [f"Money in {priced_at(total.prices)}."] if total.prices else []
    if unpriced:
        models = ", ".join(sorted(clip(plain(model), _WIDEST) or "-" for model in unpriced))
        calls = count(sum(unpriced.values()), "call")
        told.append(f"{calls} without a price, left out of the money: {models} (docs/costs.md tells how to give one)")
    return [[], *([(line, "note")] for line in told)] if told else []


def table(rows: list[UsageRow], by: tuple[str, ...]) -> list[Line]:
    """Return the rows and their total, figures below each other, units in the headings."""
    names = [[clip(plain(getattr(row, column)) or "-", _WIDEST) for column in by] for row in rows]
    names = [list(by), *names, ["total", *[""] * (len(by) - 1)]] if by else [["", ""]] * (len(rows) + 2)
    figures = [[name for _, name, _ in _FIGURES]]
    figures += [[figure(row) for _, _, figure in _FIGURES] for row in [*rows, total_of(rows)]]
    cells = [[*named, *told] for named, told in zip(names, figures, strict=True)]
    widths = [max(columns(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [_line(line, widths, len(names[0])) for line in cells]
    styles = ["head", *[""] * len(rows), "head"]
    return [
        [(_groups(widths, len(names[0])), "note")],
        *([(line, style)] for line, style in zip(lines, styles, strict=True)),
    ]


def _line(cells: list[str], widths: list[int], names: int) -> str:
    padded = []
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        blank = " " * (width - columns(cell))
        padded.append(cell + blank if place < names else blank + cell)
    return _GAP.join(padded)


def _groups(widths: list[int], names: int) -> str:
    """Return the line over the headings: what several columns are figures of, above the first of them."""
    line = ""
    latest = ""
    at = sum(width + len(_GAP) for width in widths[:names])
    for (group, _, _), width in zip(_FIGURES, widths[names:], strict=True):
        if group != latest:
            line = line.ljust(at) + group
            latest = group
        at += width + len(_GAP)
    return line
