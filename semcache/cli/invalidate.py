"""`semcache invalidate`: drop answers everywhere and durably, or count what would be dropped."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from semcache.cli.arguments import Once
from semcache.cli.store import add_store, opened, place_of
from semcache.commands import NEAR
from semcache.errors import ConfigurationError, InvalidationError
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
        which.add_argument(f"--{facet}", metavar=metavar, help=told, action=Once)
    which.add_argument("--text", metavar="TEXT", action=Once, help="those whose text is near to this, in all scopes")
    which.add_argument("--everything", action="store_true", help="all answers of the namespace")
    near = parser.add_argument_group("with --text")
    near.add_argument(
        "--similarity", type=float, metavar="COSINE", help=f"how near, -1 to 1 (default: {NEAR})",
    )  # fmt: skip
    near.add_argument(
        "--embedder", metavar="MODEL",
        help="the service's model, by name or path (default: SEMCACHE_EMBEDDER)",
    )  # fmt: skip
    add_store(parser)
    parser.add_argument("--dry-run", action="store_true", help="only count what would be dropped")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _embedder(options: argparse.Namespace) -> str | None:
    """Return the model that finds what is near to a text. Raises ConfigurationError."""
    if options.text is None:
        if options.similarity is not None or options.embedder is not None:
            raise ConfigurationError("--similarity and --embedder are for --text")
        return None
    embedder: str | None = options.embedder or os.environ.get("SEMCACHE_EMBEDDER")
    if not embedder:
        raise ConfigurationError("--text looks into the index: name the service's model, --embedder MODEL")
    return embedder


def _run(options: argparse.Namespace) -> int:
    embedder = _embedder(options)
    place = place_of(options)
    facet, value = next(
        ((facet, getattr(options, facet)) for facet in (*_FACETS, "text") if getattr(options, facet) is not None),
        ("namespace", place.namespace),
    )
    meant: dict[str, Any] = {facet: value}
    if options.similarity is not None:
        meant["similarity"] = options.similarity
    with opened(place, embedder=embedder) as cache:
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
    hint = "" if entries else "; is it the right name?"  # a mistyped one drops nothing, in the moment that counts
    print(f"{did} {count(entries, 'entry', 'entries')}: {whose}namespace {place.namespace!r} in {place.where}{hint}")
    return 0
