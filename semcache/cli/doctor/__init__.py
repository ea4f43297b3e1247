"""`semcache doctor`: looks a service's cache over, piece by piece, and says what is wrong and how to mend it.

Laws: it ends, with a report, whatever state the store is in; it leaves nothing behind; no embedder is loaded unless one
was asked for. Exit status 1: something failed; a warning is none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from semcache.cli.doctor.finding import Finding, Mark
from semcache.cli.doctor.keying import examine_keys
from semcache.cli.doctor.package import examine_package
from semcache.cli.store import Place, add_store, place_of
from semcache.errors import MissingExtraError
from semcache.replay.render import Line, show
from semcache.replay.words import count, plain
from semcache.stores.address import address_of

_COLUMNS = 96
_WIDEST = 100
_STYLES = {"ok": "good", "skipped": "note", "warning": "warn", "failed": "bad"}


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="look over package, store, keys and near matches, and say what to mend",
        description="Look over what a service's cache stands on: the package that is installed, the store, its round "
        "trips and rights, keys, an answer kept, found and dropped in a namespace of its own, and near matches where "
        "an embedder is given. Nothing is left behind. Exit status 1: something failed.",
    )
    add_store(parser)
    near = parser.add_argument_group("near matches")
    near.add_argument(
        "--embedder", metavar="MODEL",
        help="a model, by name, path or URL, which is loaded or asked (default: SEMCACHE_EMBEDDER, or none)",
    )  # fmt: skip
    near.add_argument(
        "--policy",
        metavar="POLICY",
        help='the policy to look at: a tuned policy\'s file, "threshold:0.9", "budget:0.02" (default: SEMCACHE_POLICY)',
    )
    near.add_argument("--device", default="auto", help='"cpu", "cuda", "cuda:0,cuda:1" (default: auto)')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    place = place_of(options, is_needed=False)
    embedder = options.embedder or os.environ.get("SEMCACHE_EMBEDDER") or None
    findings: list[Finding] = []
    width = min(shutil.get_terminal_size((_COLUMNS, 24)).columns, _WIDEST)
    policy = options.policy or os.environ.get("SEMCACHE_POLICY") or None
    for finding in examine(place, embedder, options.device, policy):
        findings.append(finding)
        if not options.json:
            show(_lines(finding, width), sys.stdout)
            sys.stdout.flush()  # what takes its time is seen to
    marks = Counter(finding.mark for finding in findings)
    if options.json:
        print(
            json.dumps(
                {"is_well": not marks["failed"], "findings": [asdict(finding) for finding in findings]}, indent=2
            )
        )
    else:
        show([[], _conclusion(marks)], sys.stdout)
    return 1 if marks["failed"] else 0


def examine(place: Place, embedder: str | None, device: str, policy: str | None = None) -> Iterator[Finding]:
    """Look everything over, one finding at a time. Raises ConfigurationError for settings that are wrong."""
    from semcache.cli.doctor.near import examine_near, examine_policy
    from semcache.cli.doctor.trial import examine_life

    yield from examine_package()
    yield from examine_keys(place.namespace)
    is_usable = True
    for finding in _store(place):
        is_usable = is_usable and finding.mark != "failed"
        yield finding
    if is_usable:
        yield from examine_life(place)
    else:
        yield Finding("skipped", "trial", "not tried: the store cannot be used")
    if policy is not None:
        yield examine_policy(policy, embedder, device)
    yield from examine_near(place, embedder, device, is_usable=is_usable)


def _store(place: Place) -> Iterator[Finding]:
    if place.redis is not None:
        try:
            address_of(place.redis)
        except MissingExtraError as error:
            yield Finding("failed", "store", "the client of Redis is not installed", str(error).rpartition(": ")[2])
            return
        from semcache.cli.doctor.server import examine_server
        from semcache.cli.doctor.trial import trial_of

        yield from examine_server(place.redis, place.namespace, trial_of(place).part)
    elif place.disk is not None:
        from semcache.cli.doctor.file import examine_file

        yield from examine_file(place.disk)
    else:
        mend = "--redis URL or --disk FILE, with --namespace NAME, or SEMCACHE_REDIS, _DISK, _NAMESPACE"
        if place.namespace or os.environ.get("SEMCACHE_MEMCACHED"):
            yield Finding("warning", "store", "none was looked at: a memcached is not, and no other was given", mend)
        else:
            yield Finding("skipped", "store", f"none was given: {mend}")


def _lines(finding: Finding, width: int) -> list[Line]:
    """Return a finding as lines: its mark, what it is of, and the rest in a column of its own."""
    head: Line = [(f"{finding.mark:9}", _STYLES[finding.mark]), (f"{finding.what:13}", "")]
    indent = " " * sum(len(text) for text, _ in head)
    room = max(width - len(indent), 20)
    told = textwrap.wrap(plain(finding.told), room, break_on_hyphens=False)
    lines = [[*head, (told[0], "")], *([(indent, ""), (more, "")] for more in told[1:])]
    if finding.mend:
        mend = textwrap.wrap(f"-> {plain(finding.mend)}", room, subsequent_indent="   ", break_on_hyphens=False)
        lines += [[(indent, ""), (more, "note")] for more in mend]
    return lines


def _conclusion(marks: Counter[Mark]) -> Line:
    if not marks["failed"] and not marks["warning"]:
        return [("all is well", "good")]
    failed, warned = marks["failed"], marks["warning"]
    told = [count(number, word) for number, word in ((failed, "failure"), (warned, "warning")) if number]
    return [(", ".join(told), "bad" if failed else "warn")]
