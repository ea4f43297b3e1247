"""`semcache import`: requests that others have logged, as a recording that `semcache replay` reads."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from semcache.cli.arguments import positive_float, target
from semcache.errors import ConfigurationError
from semcache.importers import SOURCES, Imported, Settings, detect, write_ordered
from semcache.importers.sources import COLUMNS, Answers
from semcache.redact import Redactor
from semcache.replay.words import count
from semcache.traffic import Recorded

_SHOWN = 10


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "import",
        help="make a recording of requests that others have logged",
        description="Make a recording, for semcache replay, of requests that others have logged. Keys, e-mail "
        "addresses, card, account and telephone numbers are replaced by marks. Exit status 1: a line could not be "
        "read (the others are written), or there was no request. docs/traffic.md says what is read of each log.",
    )
    parser.add_argument("file", metavar="FILE", help='the log; "-": stdin')
    parser.add_argument("--from", dest="source", choices=sorted(SOURCES), help="whose log it is (default: as it looks)")
    parser.add_argument("--output", required=True, metavar="TRAFFIC.jsonl", help='the recording; "-": stdout')
    parser.add_argument("--default-model", metavar="NAME", help="the model of requests that name none")
    parser.add_argument("--answers", metavar="FILE", help="of an OpenAI batch: the file of its answers")
    parser.add_argument("--no-redact", action="store_true", help="leave texts as they are")
    parser.add_argument(
        "--rate", type=positive_float, default=1.0, metavar="N",
        help="requests without a time come so many in a second (default: 1)",
    )  # fmt: skip
    columns = parser.add_argument_group("columns of a CSV file (default: as they are usually called)")
    for what, usual in COLUMNS.items():
        columns.add_argument(f"--{what.replace('_', '-')}", metavar="COLUMN", help=f"{what}: {', '.join(usual)}")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    asked = {what: getattr(options, what) for what in COLUMNS}
    columns = {what: name for what, name in asked.items() if name is not None}
    with ExitStack() as stack:
        file: BinaryIO = sys.stdin.buffer if options.file == "-" else stack.enter_context(Path(options.file).open("rb"))
        source, lines = _source(options, file)
        if columns and source != "csv":
            raise ConfigurationError(f"--{', --'.join(columns)} name columns of a CSV file, and this is {source}")
        answers = None
        if options.answers is not None:
            if source != "openai":
                raise ConfigurationError(f"--answers is for a batch of OpenAI's, and this is {source}")
            answers = Answers(stack.enter_context(Path(options.answers).open("rb")))
        settings = Settings(options.default_model, columns, answers)
        output = stack.enter_context(_output(options.output))
        redact = None if options.no_redact else _redacting()
        told = write_ordered(SOURCES[source](lines, settings), output, rate=options.rate, redact=redact)
    _tell(told, source, options)
    return 0 if told.written and not told.bad_lines else 1


def _source(options: argparse.Namespace, file: BinaryIO) -> tuple[str, Iterator[bytes]]:
    """Return whose log it is, and its lines. Raises ConfigurationError where nobody can tell."""
    lines = iter(file)
    if options.source is not None:
        return options.source, lines
    if options.file.lower().endswith((".csv", ".tsv")):
        return "csv", lines
    begun = list(itertools.islice(lines, 1))
    found = detect(begun[0]) if begun else None
    if found is None:
        raise ConfigurationError(
            f"{options.file}: nobody can tell from its first line whose log it is: say --from {', '.join(SOURCES)}"
        )
    return found, itertools.chain(begun, lines)


@contextmanager
def _output(path: str) -> Iterator[TextIO]:
    """Write a file whole or not at all."""
    if path == "-":
        yield sys.stdout
        return
    written = target("--output", path)
    aside = written.with_name(f".{written.name}.{os.getpid()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            yield file
        aside.replace(written)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


def _redacting() -> Callable[[Recorded], Recorded]:
    """Return what takes secrets out of a request; the key of its marks is forgotten at the end."""
    redactor = Redactor(os.urandom(32))

    def redact(one: Recorded) -> Recorded:
        return replace(
            one,
            request=redactor.data(one.request),
            response=None if one.response is None else redactor.text(one.response),
            tenant=None if one.tenant is None else redactor.mark("tenant", one.tenant),
        )

    return redact


def _tell(told: Imported, source: str, options: argparse.Namespace) -> None:
    for line, reason in told.bad[:_SHOWN]:
        print(f"semcache: {options.file}: line {line}: {reason}", file=sys.stderr)
    if told.bad_lines > _SHOWN:
        print(f"semcache: and {count(told.bad_lines - min(_SHOWN, len(told.bad)), 'line')} more", file=sys.stderr)
    print(f"{count(told.written, 'request')} of {source}: {options.output}", file=sys.stderr)
    for reason, number in told.passed.items():
        print(f"  passed over: {number} {reason}", file=sys.stderr)
    if told.bad_lines:
        print(f"  could not be read: {count(told.bad_lines, 'line')}", file=sys.stderr)
    if told.untimed:
        print(f"  without a time: {told.untimed}, put {options.rate:g} a second", file=sys.stderr)
    if told.late:
        print(f"  out of order by too much: {told.late}, put at the time of the one before", file=sys.stderr)
