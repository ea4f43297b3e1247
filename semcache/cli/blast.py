"""`semcache blast KEY`: who else was given an answer that turned out wrong, as the ledger of near matches has it.

Law: it reads; texts come redacted from the store, and a tenant is told by a digest.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from semcache.cli.arguments import Once
from semcache.cli.sidecar import sidecar_of
from semcache.cli.store import add_store, opened, place_of
from semcache.commands import key_bytes
from semcache.ledger import Served
from semcache.replay.render import Line, show
from semcache.replay.words import clip, columns, count, plain

_WIDEST = 40
_GAP = "  "
_NONE = "-"


@dataclass(frozen=True)
class _Column:
    head: str
    cells: list[str]

    @property
    def width(self) -> int:
        return max(columns(cell) for cell in (self.head, *self.cells))


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "blast",
        help="who else was given an answer as a near match",
        description="Print to whom an answer was served as a near match in the last seven days: when, how near, both "
        "texts (redacted, cut short), the key of the call. Nothing is changed; `invalidate --key` drops the answer.",
    )
    parser.add_argument(
        "key",
        metavar="KEY",
        help="the answer's key in hex digits, as events show it, or that of a call it was given to",
    )
    parser.add_argument("--tenant", metavar="NAME", action=Once, help="only what this tenant was given")
    add_store(parser, or_sidecar=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    key, sidecar = key_bytes(options.key), sidecar_of(options)
    if sidecar is not None:
        tenant = {} if options.tenant is None else {"tenant": options.tenant}
        found = sidecar.post("blast", {"key": key.hex(), **tenant})
        namespace, where, rows = found["namespace"], sidecar.url, [_row(one) for one in found["rows"]]
    else:
        place = place_of(options)
        namespace, where = place.namespace, place.where
        with opened(place) as cache:
            rows = cache.blast(key, options.tenant)
    if options.json:
        told = {"namespace": namespace, "key": key.hex(), "rows": [_told(row) for row in rows]}
        print(json.dumps(told, ensure_ascii=False))
        return 0
    if not rows:
        who, rest = "nobody", ""
        if options.tenant is not None:
            who, rest = f"nobody of tenant {options.tenant!r}", "; without --tenant all who were are told"
        print(f"{who} was given it as a near match in the last seven days: key {key.hex()} in {where}{rest}")
        return 0
    askers = count(len({row.asked for row in rows}), "call")
    title = f"{count(len(rows), 'near match', 'near matches')} of {askers}, namespace {plain(namespace)}"
    show([[(title, "title")], [], *_table(rows)], sys.stdout)
    return 0


def _told(row: Served) -> dict[str, Any]:
    return {
        "at": _time(row.at), "similarity": round(row.similarity, 6), "text": row.text, "stored_text": row.neighbour,
        "asked": row.asked.hex(), "stored": row.stored.hex(), "tenant": row.tenant.hex() or None,
        "response_id": row.response_id or None,
    }  # fmt: skip


def _row(told: dict[str, Any]) -> Served:
    """Return a row as a sidecar tells it."""
    return Served(
        datetime.fromisoformat(told["at"]).timestamp(), bytes.fromhex(told["asked"]), bytes.fromhex(told["stored"]),
        told["similarity"], told["text"], told["stored_text"], b"", bytes.fromhex(told["tenant"] or ""),
        response_id=told["response_id"] or "",
    )  # fmt: skip


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _table(rows: list[Served]) -> list[Line]:
    """Return the rows, what belongs together below each other."""
    shown = [
        _Column("time (UTC)", [_time(row.at).removesuffix("+00:00").replace("T", " ") for row in rows]),
        _Column("cosine", [f"{row.similarity:.4f}" for row in rows]),
        _Column("asked", [clip(plain(row.text), _WIDEST) or _NONE for row in rows]),
        _Column("given the answer to", [clip(plain(row.neighbour), _WIDEST) or _NONE for row in rows]),
        _Column("tenant", [row.tenant.hex() or _NONE for row in rows]),
        _Column("key of the call", [row.asked.hex() for row in rows]),
    ]
    lines = [_line([column.head for column in shown], shown)]
    lines += [_line([column.cells[place] for column in shown], shown) for place in range(len(rows))]
    return [[(line, "" if place else "head")] for place, line in enumerate(lines)]


def _line(cells: list[str], shown: list[_Column]) -> str:
    padded = [cell + " " * (column.width - columns(cell)) for cell, column in zip(cells, shown, strict=True)]
    return _GAP.join(padded).rstrip()
