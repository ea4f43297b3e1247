"""`semcache tune`: prove, on a recording, from which similarity on near matches may be served."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from semcache.cli.arguments import positive, target, tier_ttl
from semcache.errors import ConfigurationError
from semcache.policy.equivalent import Comparator, similar
from semcache.policy.guards import GUARDS
from semcache.replay.progress import progress
from semcache.replay.render import show
from semcache.replay.settings import DEFAULT_EMBEDDER, Settings
from semcache.replay.teach import Pair, read_pairs
from semcache.replay.tune import Tuning, tune
from semcache.replay.tuning import figures, render
from semcache.semantic.embedder import as_embedder
from semcache.ttl import TTL

_COLUMNS = 100
_PERCENT = 100


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "tune",
        help="prove on recorded requests from which similarity on near matches may be served; write a policy file",
        description="Prove, on recorded requests, from which similarity on at most a given share of the near matches "
        "served is wrong, and write a policy file that serves no others. Where nothing can be proved the file serves "
        "nothing near, what is missing is said, and the exit status is 0. docs/tune.md tells the method.",
    )
    parser.add_argument("traffic", metavar="TRAFFIC.jsonl", help="the recording, one request a line")
    parser.add_argument(
        "--max-wrong", type=_share, default=0.01, metavar="SHARE",
        help="the error budget, as 0.01 or 1%%: at most this share of the near matches served is wrong (default: 0.01)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE", help="the policy file to write")
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--judge", metavar="MODULE:FUNCTION",
        help="says of a cached and a fresh answer whether they say the same: True, False or None; may be async",
    )  # fmt: skip
    labels.add_argument(
        "--similar-answers", type=float, metavar="COSINE",
        help="take answers of at least this similarity, by the same embedder, for the same (default: off)",
    )  # fmt: skip
    labels.add_argument(
        "--label-share", type=_whole_share, default=1.0, metavar="SHARE",
        help="label only this share of the near matches, drawn by hash (default: 1, all)",
    )  # fmt: skip
    labels.add_argument(
        "--pairs", metavar="PAIRS.jsonl",
        help='labelled pairs that teach the score too, but prove nothing, as {"a": "", "b": "", "equal": true}',
    )  # fmt: skip
    near = parser.add_argument_group("near matches")
    near.add_argument(
        "--embedder", default=DEFAULT_EMBEDDER, metavar="MODEL",
        help=f"a model, by name, path or URL (default: {DEFAULT_EMBEDDER})",
    )  # fmt: skip
    near.add_argument("--device", default="auto", help='"cpu", "cuda", "cuda:1" (default: auto)')
    near.add_argument(
        "--ttl", action="append", default=[], type=tier_ttl, metavar="TIER=TIME",
        help="how long a tier keeps an answer; may be repeated (default: memory=5m disk=1d semantic=1h)",
    )  # fmt: skip
    near.add_argument(
        "--no-guards", dest="guards", action="store_const", const=(), default=GUARDS,
        help="serve also what differs in numbers, names, dates, negation ... (default: such near matches are refused)",
    )  # fmt: skip
    near.add_argument(
        "--no-score", dest="learns", action="store_false",
        help="prove cuts of the cosine alone, with all labels, instead of learning a score too",
    )  # fmt: skip
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--split", type=_share, default=0.5, metavar="SHARE",
        help="how much of the recording proves cuts; the rest shows what they do (default: 0.5)",
    )  # fmt: skip
    run.add_argument("--limit", type=positive, metavar="N", help="only the first N requests")
    run.add_argument("--seed", type=int, default=0, help="of the draw of labels (default: 0)")
    run.add_argument("--strict", action="store_true", help="stop at the first line that is not in the format")
    run.add_argument("--json", action="store_true", help="print the figures as JSON, instead of the report")
    run.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    written = target("--output", options.output)  # tuning takes minutes
    tuning = _tuning(options)
    path = Path(options.traffic)
    made = time.strftime("%Y-%m-%d", time.gmtime())
    with path.open("rb") as lines, progress(sys.stderr, is_quiet=options.quiet) as shown:
        outcome = tune(lines, tuning, shown, made=made, name=path.name)
    outcome.policy.write(written)
    if options.json:
        sys.stdout.write(json.dumps(figures(outcome), indent=2, allow_nan=False) + "\n")
    else:
        columns = shutil.get_terminal_size((_COLUMNS, 24)).columns
        show(render(outcome, path.name, options.output, columns), sys.stdout)
    sys.stdout.flush()
    return 0


def _tuning(options: argparse.Namespace) -> Tuning:
    """Make settings of options. Raises ConfigurationError."""
    embedder: Any = as_embedder(options.embedder, options.device)
    judge = None if options.judge is None else _judge(options.judge)
    links = () if options.similar_answers is None else (similar(embedder, options.similar_answers),)
    settings = Settings(
        embedder=embedder,
        device=options.device,
        ttl=replace(TTL(), **dict(options.ttl)),
        seed=options.seed,
        limit=options.limit,
        is_strict=options.strict,
    )
    pairs = () if options.pairs is None else _pairs(options.pairs)
    return Tuning(
        settings, options.max_wrong, options.split, options.label_share, Comparator(*links, judge=judge),
        options.guards, pairs, options.learns,
    )  # fmt: skip


def _pairs(name: str) -> list[Pair]:
    """Read labelled pairs. Raises ConfigurationError."""
    try:
        with Path(name).open("rb") as lines:
            return read_pairs(lines)
    except OSError as error:
        raise ConfigurationError(f"--pairs {name} cannot be read: {error.strerror or error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"--pairs {name}: {error}") from error


def _judge(name: str) -> Callable[[str, str], Any]:
    """Import a judge. Raises ConfigurationError."""
    module, colon, function = name.partition(":")
    if not module or not colon or not function:
        raise ConfigurationError(f"--judge takes MODULE:FUNCTION, as in shop.judges:same_answer; got {name!r}")
    folder = os.getcwd()  # noqa: PTH109 - as python -m does
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        judge = getattr(import_module(module), function)
    except Exception as error:
        raise ConfigurationError(f"--judge {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(judge):
        raise ConfigurationError(f"--judge {name} is no function, but {judge!r}")
    found: Callable[[str, str], Any] = judge
    return found


def _share(text: str) -> float:
    share = _whole_share(text)
    if share >= 1:
        mend = "for one percent 0.01 or 1%" if text == "1" else "as in 0.01 or 1%"
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, {mend}; got {text!r}")
    return share


def _whole_share(text: str) -> float:
    """Read a share, as 0.5 or 50%."""
    number, percent, rest = text.partition("%")
    try:
        share = float(number) / (_PERCENT if percent else 1)
    except ValueError:
        share = 0.0
    if rest or not 0 < share <= 1:
        mend = f"for {text} percent write {text}%" if _is_percentage(text) else "as in 0.5 or 50%"
        raise argparse.ArgumentTypeError(f"expected a share over 0, at most 1, {mend}; got {text!r}")
    return share


def _is_percentage(text: str) -> bool:
    """Say whether a number must have been meant as one of a hundred."""
    return text.replace(".", "", 1).isdecimal() and 1 < float(text) <= _PERCENT
