"""`semcache invalidate`: drop answers everywhere and durably, or count what would be dropped."""

from __future__ import annotations

import argparse
import json
from typing import Any

from semcache.cli.store import add_store, opened, place_of
from semcache.errors import InvalidationError
from semcache.replay.words import count

_FACETS = {
    "tag": ("TAG", "the answers that were given this tag"),
    "tenant": ("NAME", "those of a tenant"),
    "function": ("MODULE.NAME", "those of a function, as events name it"),
    "model": ("NAME", "those of a model"),
    "version": ("VERSION", "those of a function's version"),
    "document": ("NAME", "those that a document went into"),
    "key": ("HEX", "one answer, by its key's hex digits"),
}


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "invalidate",
        help="drop answers of a store, everywhere and durably",
        description="Drop answers of a store. All processes of the namespace hear of it within some hundredths of a "
        "second, and answers whose load has begun before are not kept. Exit status 1: the store could not keep it.",
    )
    which = parser.add_argument_group("which, one of").add_mutually_exclusive_group(required=True)
    for facet, (metavar, told) in _FACETS.items():
        which.add_argument(f"--{facet}", metavar=metavar, help=told)
    which.add_argument("--everything", action="store_true", help="all answers of the namespace")
    add_store(parser)
    parser.add_argument("--dry-run", action="store_true", help="only count what would be dropped")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    place = place_of(options)
    facet, value = next(
        ((facet, getattr(options, facet)) for facet in _FACETS if getattr(options, facet) is not None),
        ("namespace", place.namespace),
    )
    meant: dict[str, Any] = {facet: value}
    with opened(place) as cache:
        try:
            entries = cache.invalidate(**meant, dry_run=options.dry_run)
        except InvalidationError as error:
            # What it says of the process is true of a service, not of this command; the store's own word is beneath.
            raise InvalidationError(str(error.__cause__ or error)) from error
    if options.json:
        told = {
            "namespace": place.namespace, "facet": facet, "value": value, "entries": entries,
            "is_dry_run": options.dry_run,
        }  # fmt: skip
        print(json.dumps(told))
        return 0
    did, whose = (
        "would drop" if options.dry_run else "dropped",
        f"{facet} {value!r} of " if facet != "namespace" else "",
    )
    print(f"{did} {count(entries, 'entry', 'entries')}: {whose}namespace {place.namespace!r} in {place.where}")
    return 0
