"""`semcache load`: curated answers from a CSV file, put where a service looks for its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from semcache.cache import Cache
from semcache.cli.explain import body_in
from semcache.cli.seeds import QUESTION_PLACE, Reader, Seed, calls, function_of, questions, with_question
from semcache.cli.sidecar import add_call, headers_of, sidecar_of
from semcache.cli.store import INDEX_TTL, add_store, opened, place_of, quiet
from semcache.context import context
from semcache.errors import CodecError, ConfigurationError, SemcacheError, TierError, TrafficError
from semcache.events import Event
from semcache.model import Request
from semcache.replay.words import count, plain
from semcache.ttl import TTL
from semcache.wrap.wrapping import cache_of

_SHOWN = 10
_PAGE = 500
_FLUSH_SECONDS = 300.0


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "load",
        help="put curated answers from a CSV file, pinned",
        description="Put curated answers from a CSV file (UTF-8, the first line names the columns). They are pinned: "
        "no ttl and no pressure ends them, and no load takes their place, until they are invalidated. Nothing is "
        "loaded if a row is wrong. Exit status 1: a row was wrong, or the store did not keep all.",
    )
    parser.add_argument("file", metavar="FAQ.csv", help="the answers, one row each")
    which = parser.add_argument_group("what the answers are to").add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--call", metavar="MODULE:FUNCTION",
        help="calls of a function that semcache.cached decorates, put into its own cache: columns are its arguments "
        "(an empty cell: the default) and answer; int, float, bool and str are converted as it is annotated",
    )  # fmt: skip
    which.add_argument(
        "--function",
        metavar="NAME",
        help="requests as cache.request(text=question, function=NAME, ...) makes them: columns question and answer",
    )
    which.add_argument(
        "--body", metavar="CALL.json",
        help="calls that a sidecar proxies: their body, with {question} where the question stands, posted to --path; "
        "columns question and answer",
    )  # fmt: skip
    add_call(parser.add_argument_group("with --body"))
    asked = parser.add_argument_group("with --function")
    for name in ("version", "tenant", "model"):
        also = "; with --body, whose calls they are" if name == "tenant" else ""
        asked.add_argument(f"--{name}", metavar=name.upper(), help=f"as {name}= of the request{also}")
    asked.add_argument(
        "--embedder", metavar="MODEL",
        help="the service's, so that other words find the answers too (default: SEMCACHE_EMBEDDER)",
    )  # fmt: skip
    add_store(parser, or_sidecar=True)
    how = parser.add_argument_group("how")
    how.add_argument("--tag", action="append", default=[], metavar="TAG", help="to invalidate them by; may be repeated")
    how.add_argument("--not-pinned", action="store_true", help="let them end with their ttl, as loaded answers do")
    how.add_argument("--ttl", metavar="TIME", help='with --not-pinned: how long they live, as in "7d"')
    how.add_argument("--dry-run", action="store_true", help="read the file, and put nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


class _Target(NamedTuple):
    cache: Cache
    reader: Reader
    where: str
    note: str


def _run(options: argparse.Namespace) -> int:
    if options.ttl is not None and not options.not_pinned:
        raise ConfigurationError("--ttl is for --not-pinned: what is pinned has no end")
    path = Path(options.file)
    if options.body is not None:
        return _ask(options, path)
    if options.sidecar is not None or options.path is not None or options.header:
        raise ConfigurationError("--sidecar, --path and --header are for --body CALL.json: answers of proxied calls")
    with _target(options) as target, context(ttl=options.ttl, tags=options.tag):
        try:
            seeds, wrong = target.reader.seeds(path)
        except (ConfigurationError, TrafficError) as error:
            raise type(error)(f"{path}: {error}") from error
        if wrong:
            _tell(path, wrong)
            return 1
        if not options.dry_run:
            _put(target.cache, seeds, path, is_pinned=not options.not_pinned)
    _say(options, len(seeds), f"{target.where}{target.note}")
    return 0


def _say(options: argparse.Namespace, answers: int, where: str) -> None:
    if options.json:
        told = {"answers": answers, "is_pinned": not options.not_pinned, "is_dry_run": options.dry_run}
        print(json.dumps(told))
        return
    did = "would put" if options.dry_run else "put"
    pinned = "" if options.not_pinned else ", pinned"
    print(f"{did} {count(answers, 'answer')}{pinned}: {where}")


def _ask(options: argparse.Namespace, path: Path) -> int:
    """Have a sidecar put answers of proxied calls."""
    told = [f"--{name}" for name in ("version", "model", "embedder") if getattr(options, name) is not None]
    if told or options.path is None:
        raise ConfigurationError(
            f"--body has all of a call in it: leave out {', '.join(told)}" if told else
            "where are the calls posted? give --path /v1/chat/completions"
        )  # fmt: skip
    template, headers = body_in(options.body), headers_of(options)
    if with_question(template, "") == template:
        raise ConfigurationError(f'{options.body}: say where the question stands: "{QUESTION_PLACE}"')
    sidecar = sidecar_of(options, is_needed=True)
    assert sidecar is not None  # noqa: S101 - it was needed
    try:
        seeds, wrong = questions(lambda text: Request(text.encode(), text=text)).seeds(path)
    except (ConfigurationError, TrafficError) as error:
        raise type(error)(f"{path}: {error}") from error
    if wrong:
        _tell(path, wrong)
        return 1
    more = {name: getattr(options, name) for name in ("tenant", "ttl") if getattr(options, name) is not None}
    more |= {"pinned": not options.not_pinned, "tags": options.tag}
    whose = ""
    for done, seed in enumerate(() if options.dry_run else seeds):
        call = {"path": options.path, "body": with_question(template, seed.request.text or ""), "answer": seed.answer}
        try:
            whose = sidecar.post("entries", {**call, **more}, headers)["tenant"]
        except SemcacheError as error:
            if not done:
                raise
            before = f"({done} of {len(seeds)} answers were put before it)"
            raise SemcacheError(f"{path}, line {seed.line}: {error} {before}") from error
    _say(options, len(seeds), f"{sidecar.url}{f', for tenant {plain(whose)}' if whose else ''}")
    return 0


@contextmanager
def _target(options: argparse.Namespace) -> Iterator[_Target]:
    """Open the cache that the answers are for. Raises ConfigurationError."""
    asked = {name: getattr(options, name) for name in ("version", "tenant", "model")}
    if options.call is not None:
        told = [
            name for name in (*asked, "embedder", "namespace", "redis", "disk") if getattr(options, name) is not None
        ]
        if told:
            raise ConfigurationError(f"--call brings its own cache and version: leave out --{', --'.join(told)}")
        function = function_of(options.call)
        cache = cache_of(function)
        assert cache is not None  # noqa: S101 - `function_of` has seen to it
        if cache.is_closed:
            raise ConfigurationError(
                f"importing the module of {options.call} closed its cache: let only definitions stand there, and what "
                'runs under `if __name__ == "__main__":`'
            )
        if cache.store is None:
            raise ConfigurationError(
                f"the cache of {options.call} keeps nothing beyond a process: give it disk= or redis=, or set "
                "SEMCACHE_NAMESPACE and SEMCACHE_DISK or SEMCACHE_REDIS"
            )
        with quiet():
            _learn_identity(cache)
            yield _Target(cache, calls(options.call, function), f"calls of {options.call}", "")
        return
    place = place_of(options)
    embedder = options.embedder or os.environ.get("SEMCACHE_EMBEDDER") or None
    made = {name: value for name, value in asked.items() if value is not None}
    with opened(place, embedder=embedder, ttl=TTL(semantic=INDEX_TTL)) as cache:
        _learn_identity(cache)
        reader = questions(lambda text: cache.request(text=text, function=options.function, **made))
        note = "" if embedder else "; in these words alone, as no --embedder was given"
        yield _Target(cache, reader, f"namespace {place.namespace!r} in {place.where}", note)


def _learn_identity(cache: Cache) -> None:
    """Let an embedder behind a URL be named before requests are made of it: else they would have no scope."""
    if cache.semantic is not None and not cache.embedder_identity:
        cache.warm()


def _tell(path: Path, wrong: list[str]) -> None:
    for one in wrong[:_SHOWN]:
        print(f"semcache: {path}, {plain(one)}", file=sys.stderr)
    more = len(wrong) - _SHOWN
    rest = f" ({count(more, 'more is', 'more are')} wrong)" if more > 0 else ""
    print(f"semcache: nothing was loaded{rest}", file=sys.stderr)


def _put(cache: Cache, seeds: list[Seed], path: Path, *, is_pinned: bool) -> None:
    """Put all, and wait until they are kept. Raises TierError, with how far it came."""
    faults: list[str] = []

    def hear(event: Event) -> None:
        faults.extend(message for _, _, message in event.faults)

    cache.recorder.add_observer(hear)
    if cache.semantic is not None:
        cache.warm()
    for done, seed in enumerate(seeds, 1):
        try:
            cache.put(seed.request, value=seed.answer, pinned=is_pinned)
        except (TierError, CodecError) as error:
            cache.flush(_FLUSH_SECONDS)
            told = f"{path}, line {seed.line}: {error} ({done - 1} of {len(seeds)} answers were put before it)"
            raise SemcacheError(told) from error
        if (done % _PAGE == 0 or done == len(seeds)) and not cache.flush(_FLUSH_SECONDS):
            why = faults[-1] if faults else "the store takes too long"
            raise TierError("lost", f"not all of the first {done} of {len(seeds)} answers were kept: {why}; load again")
