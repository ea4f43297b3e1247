"""`semcache reindex`: the texts of a store embedded anew, by the embedder that its services are to have from now on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from semcache.cli.arguments import positive, positive_float
from semcache.cli.store import INDEX_TTL, add_store, join_known, place_of, unasked
from semcache.errors import ConfigurationError
from semcache.replay.progress import progress
from semcache.replay.words import count
from semcache.ttl import TTL


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reindex",
        help="embed the texts of a store anew, by another embedder",
        description="Embed the texts that stand in a store under other embedders' names, so that processes with the "
        "new one find them. Those that run take them over as they come. It may be stopped at any moment, and goes on "
        "where it was. Run it before the services change over, and once more behind the last of the old ones.",
    )
    parser.add_argument(
        "--embedder", metavar="MODEL",
        help="the new one: a model's name or path, or a server's URL (default: SEMCACHE_EMBEDDER)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help='"cpu", "cuda", "cuda:1" (default: auto)')
    add_store(parser)
    how = parser.add_argument_group("how")
    how.add_argument("--rate", type=positive_float, metavar="TEXTS", help="at most so many a second")
    how.add_argument("--batch", type=positive, default=64, metavar="TEXTS", help="so many at once (default: 64)")
    how.add_argument("--dry-run", action="store_true", help="only count them")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    place = place_of(options)
    embedder = options.embedder or os.environ.get("SEMCACHE_EMBEDDER")
    if not embedder:
        raise ConfigurationError("which embedder is the new one? give --embedder MODEL, or set SEMCACHE_EMBEDDER")
    with (
        unasked(place, embedder=embedder, device=options.device, ttl=TTL(semantic=INDEX_TTL)) as cache,
        progress(sys.stderr, is_quiet=options.quiet or options.dry_run) as shown,
    ):
        join_known(cache, place)
        if options.dry_run:
            cache.warm()  # an embedder that cannot be had is told of now, not when it matters
        told = cache.reindex(dry_run=options.dry_run, rate=options.rate, max_batch=options.batch, progress=shown)
        identity = cache.embedder_identity
    if options.json:
        figures = {"embedded": told.embedded, "uncovered": told.uncovered, "gone": told.gone}
        print(json.dumps({"embedder": identity, "found": told.found, **figures, "is_dry_run": options.dry_run}))
        return 0
    found = ", ".join(f"{number} of {name}" for name, number in told.found.items())
    whose = f" ({found})" if found else ""
    where = f"namespace {place.namespace!r} in {place.where}"
    if options.dry_run:
        print(f"would embed {count(sum(told.found.values()), 'text')}{whose} by {identity}: {where}")
        return 0
    left = [
        f"{number} {what}"
        for number, what in ((told.uncovered, "it does not see whole"), (told.gone, "were gone meanwhile"))
        if number
    ]
    rest = f"; {', '.join(left)}" if left else ""
    print(f"embedded {count(told.embedded, 'text')}{whose} by {identity}{rest}: {where}")
    return 0
