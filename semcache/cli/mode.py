"""`semcache mode`: the switch of all replicas, set or shown."""

from __future__ import annotations

import argparse
import json
from typing import Any

from semcache.cli.sidecar import Sidecar, sidecar_of
from semcache.cli.store import add_store, entries_in, opened, place_of
from semcache.errors import TierError
from semcache.replay.words import count

_MODES = ("live", "shadow", "exact", "off")


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "mode",
        help="show or set the mode of all processes of a namespace: the kill switch",
        description="Set the mode of all processes of a namespace, within a second: off bypasses the cache, exact "
        "looks for no near matches, shadow serves none, live gives each process its own mode back. It only tightens "
        "what each was made with. Without a mode it is shown. Exit status 1: the store could not be asked, or keep it.",
    )
    parser.add_argument("mode", nargs="?", choices=_MODES, metavar="live|shadow|exact|off", help="the mode to set")
    add_store(parser, or_sidecar=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    sidecar = sidecar_of(options)
    if sidecar is not None:
        return _ask(sidecar, options)
    place = place_of(options)
    with opened(place) as cache:
        assert cache.store is not None  # noqa: S101 - `place_of` has seen to it
        was = cache.store.join().mode
        if options.mode is not None:
            try:
                cache.set_mode(options.mode)
            except TierError as error:
                raise TierError(error.reason, f"the mode was not set: {error}") from error
        entries = entries_in(cache)
    mode = options.mode or was or "live"
    if options.json:
        told = {"namespace": place.namespace, "mode": mode, "was": was, "entries": entries}
        print(json.dumps(told))
        return 0
    before = "" if options.mode is None else f" (it was {was or 'live'})"
    # A mistyped name would leave the service as it is, unnoticed in the moment that counts.
    about = count(entries, "entry", "entries") if entries else "no entry: is it the right name?"
    print(f"{mode}{before}: namespace {place.namespace!r} in {place.where}, {about}")
    return 0


def _ask(sidecar: Sidecar, options: argparse.Namespace) -> int:
    """Have a sidecar show or set it."""
    was = sidecar.get("mode")
    told = was if options.mode is None else sidecar.post("mode", {"mode": options.mode})
    if options.json:
        print(json.dumps({"sidecar": sidecar.url, **told, "was": was["all"]}))
        return 0
    before = "" if options.mode is None else f" (it was {was['all']})"
    own = "" if told["own"] == "live" else f", and {told['own']} is this sidecar's own"
    print(f"{told['all']}{before}: all replicas of {sidecar.url}{own}")
    return 0
