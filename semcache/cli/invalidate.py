"""`semcache invalidate`: drop answers everywhere and durably, or count what would be dropped."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from semcache.cache import Cache
from semcache.cli.arguments import Once
from semcache.cli.sidecar import Sidecar, sidecar_of
from semcache.cli.store import add_store, opened, place_of
from semcache.commands import NEAR
from semcache.errors import ConfigurationError, InvalidationError
from semcache.plan import Plan, run
from semcache.replay.words import count

_FACETS = {
    "tag": ("TAG", "the answers that were given this tag"),
    "tenant": ("NAME", "those of a tenant; with --text, of what is near theirs alone"),
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
    group = parser.add_argument_group("which, one of")
    which = group.add_mutually_exclusive_group()
    for facet, (metavar, told) in _FACETS.items():
        holder = group if facet == "tenant" else which  # which narrows --text too
        holder.add_argument(f"--{facet}", metavar=metavar, help=told, action=Once)
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
    add_store(parser, or_sidecar=True)
    parser.add_argument("--dry-run", action="store_true", help="only count what would be dropped")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _meant(options: argparse.Namespace, namespace: str) -> dict[str, Any]:
    """Return what is to go, as `Cache.invalidate` takes it. Raises ConfigurationError."""
    given = {name: getattr(options, name) for name in (*_FACETS, "text") if getattr(options, name) is not None}
    if options.everything:
        given["namespace"] = namespace
    if not given:
        names = " ".join(f"--{name}" for name in (*_FACETS, "text", "everything"))
        raise ConfigurationError(f"one of the arguments {names} is required")
    others = given.keys() - {"text", "tenant"}
    if "tenant" in given and others:
        raise ConfigurationError(
            "--tenant means all answers of one, or with --text those near to it: not allowed with argument "
            f"{', '.join(f'--{name}' if name != 'namespace' else '--everything' for name in sorted(others))}"
        )
    if options.similarity is not None:
        given["similarity"] = options.similarity
    return given


def _tenanted(cache: Cache, meant: dict[str, Any]) -> int:
    """Return how many of the entries near to a text are some tenant's, where none was named."""
    if "text" not in meant or "tenant" in meant or cache.semantic is None or cache.store is None:
        return 0
    rows = run(cache.semantic.within(meant["text"], meant.get("similarity", NEAR)))
    return len(run(_lacking(cache.store, [row.key for row in rows])))


def _lacking(store: Any, keys: list[bytes]) -> Plan[list[bytes]]:
    found: list[bytes] = yield from store.lacking(keys, ("tenant", ""))
    return found


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
    sidecar = sidecar_of(options)
    if sidecar is not None:
        return _ask(sidecar, options)
    embedder = _embedder(options)
    place = place_of(options)
    meant = _meant(options, place.namespace)
    facet = "text" if "text" in meant else next(iter(meant))
    value, narrowed = meant[facet], {"tenant": options.tenant} if facet == "text" and options.tenant else {}
    with opened(place, embedder=embedder) as cache:
        tenanted = _tenanted(cache, meant)
        try:
            entries = cache.invalidate(**meant, dry_run=options.dry_run)
        except InvalidationError as error:
            # What it says of the process is true of a service, not of this command; the store's own word is beneath.
            raise InvalidationError(str(error.__cause__ or error)) from error
    if options.json:
        told = {
            "namespace": place.namespace, "facet": facet, "value": value, "entries": entries,
            "is_dry_run": options.dry_run, **narrowed,
        }  # fmt: skip
        print(json.dumps(told))
        return 0
    did, whose = (
        "would drop" if options.dry_run else "dropped",
        f"{facet} {value!r} of " if facet != "namespace" else "",
    )
    whose += "".join(f"tenant {tenant!r} in " for tenant in narrowed.values())
    # A mistyped name drops nothing, and a text all tenants' answers, in the moment that counts.
    hint = f"; {tenanted} of them are of tenants: --tenant NAME means one's alone" if tenanted else ""
    hint = hint if entries else "; is it the right name?"
    print(f"{did} {count(entries, 'entry', 'entries')}: {whose}namespace {place.namespace!r} in {place.where}{hint}")
    return 0


def _ask(sidecar: Sidecar, options: argparse.Namespace) -> int:
    """Have a sidecar drop or count them."""
    if options.embedder is not None or (options.similarity is not None and options.text is None):
        raise ConfigurationError("--similarity is for --text, and a sidecar has an embedder of its own")
    meant = _meant(options, "")
    body = {"everything": True} if "namespace" in meant else meant
    told = sidecar.post("invalidate", {**body, "dry_run": options.dry_run})
    facet, entries = told["facet"], told["entries"]
    narrowed = {"tenant": options.tenant} if facet == "text" and options.tenant else {}
    if options.json:
        value = {} if facet == "everything" else {"value": body[facet]}
        print(json.dumps({"sidecar": sidecar.url, "facet": facet, **value, "entries": entries,
                          "is_dry_run": options.dry_run, **narrowed}))  # fmt: skip
        return 0
    did = "would drop" if options.dry_run else "dropped"
    whose = f"{facet} {body[facet]!r}" if facet != "everything" else "everything"
    whose += "".join(f" of tenant {tenant!r}" for tenant in narrowed.values())
    hint = "" if entries else "; is it the right name?"
    print(f"{did} {count(entries, 'entry', 'entries')}: {whose} in {sidecar.url}{hint}")
    return 0
