"""What a learned score serves beside the cosine, and writes the table in RESULTS.md.

    python benchmarks/score_streams.py FOLDER [NAME ...]

Of streams: taught by the first half of the first 7,000 requests, measured on the second, in time order: the share of
its requests that the best cut, known in hindsight, serves nearly at 1, 2, 5 and 10% wrong per hit, where all answers
are kept, and what an oracle serves nearly, who knows the truth. Of `pairs`: taught by three quarters of the clusters of
texts that pairs connect, equal or not, measured on the pairs of the others, so that as many of either are right. Each
text is embedded once, and kept in benchmarks/out.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any
from zlib import crc32

from run import OUT, machine
from streams import put_between
from tune_streams import Kept

from semcache.cache import Cache
from semcache.policy.equivalent import Comparator
from semcache.policy.guards import Guards
from semcache.policy.label import Label, Source
from semcache.policy.score import fit
from semcache.policy.tuned import FLOOR
from semcache.replay.labels import Labels
from semcache.replay.lookahead import embed
from semcache.replay.score import oracle
from semcache.replay.settings import Settings, load
from semcache.replay.study import BUDGETS
from semcache.replay.teach import TEACHING, Pair, embed_pairs, read_pairs, teach
from semcache.replay.tune import SCORE_CUTS, make_trace
from semcache.semantic.embedder import as_embedder
from semcache.tiers.semantic import CANDIDATES

REQUESTS = 7000
BEGIN, END = "<!-- score: written by score_streams.py -->", "<!-- end of score -->"


def main(arguments: list[str]) -> None:
    """Measure, and write the table."""
    OUT.mkdir(exist_ok=True)
    kept = OUT / "score.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    folder, *names = arguments
    for path in sorted(Path(folder).glob("*.jsonl")):
        if names and path.stem not in names:
            continue
        embedder = Kept(path.stem)
        made = _pairs if '"request"' not in path.open(encoding="utf-8").readline() else _stream
        rows[path.stem] = made(path, as_embedder(embedder, "cpu"))
        embedder.keep()
        kept.write_text(json.dumps(rows, indent=2) + "\n")
        print(path.stem, json.dumps(rows[path.stem]), flush=True)
    _write(rows)


def _stream(path: Path, embedder: Any) -> dict[str, Any]:
    embedder.load()
    settings = replace(Settings(embedder=embedder), limit=REQUESTS)
    with Cache("replay", embedder=embedder) as cache, path.open("rb") as lines:
        recording = load(lines, settings, cache, lambda *_: None)
    vectors = embed(embedder, recording.texts(), lambda *_: None)
    trace = make_trace(recording, vectors, settings)
    trace.search(lambda *_: None)
    labels = Labels(recording.asked, Comparator())
    begin = len(recording.asked) // 2
    vectors_of = embed_pairs((), embedder, vectors, lambda *_: None)
    began = process_time()
    taught = teach(trace, labels, int(begin / TEACHING), vectors_of, embedder.identity)
    seconds = process_time() - began
    refuses = Guards().unbounded().refuses
    ways = {"cosine": (trace, FLOOR), "cosine + guards": (trace.ranked(refuses=refuses), FLOOR)}
    if taught is not None:
        ways["learned score"] = trace.ranked(score=taught.score), min(SCORE_CUTS)
        ways["learned score + guards"] = trace.ranked(refuses=refuses, score=taught.score), min(SCORE_CUTS)
    shares, of = {}, len(recording.asked) - begin
    for name, (ranked, lowest) in ways.items():
        world = ranked.cached_always(lowest)
        near = [one for one in world.near if one.position >= begin and labels.can_say(one)]
        labels.ask(near)
        shares[name] = coverage([(one.rating, bool(labels.is_wrong(one))) for one in near], of)
    known = sum(one.tier is not None for one in oracle(recording.asked, settings.exact_seconds)[begin:])
    exact = sum(position >= begin for position in world.exact)
    told = [near for near in trace.earlier(CANDIDATES, begin) if labels.can_say(near)]
    labels.ask(told)
    return {
        "shares": shares, "oracle": (known - exact) / of, "teaching_seconds": seconds, "labels": len(told),
        "right": sum(not labels.is_wrong(near) for near in told),
        "corrects": taught is not None and taught.score.correction is not None,
    }  # fmt: skip


def _pairs(path: Path, embedder: Any) -> dict[str, Any]:
    embedder.load()
    with path.open("rb") as lines:
        pairs = read_pairs(lines)
    clusters: dict[str, str] = {}

    def cluster(text: str) -> str:
        while (above := clusters.setdefault(text, text)) != text:
            clusters[text] = clusters[above]
            text = above
        return text

    for pair in pairs:
        clusters[cluster(pair.one)] = cluster(pair.two)
    vectors: Any = dict(zip(texts := list(dict.fromkeys(text for one in pairs for text in one[:2])),
                            embedder(texts), strict=True))  # fmt: skip
    is_test = [crc32(cluster(pair.one).encode()) % 4 == 0 for pair in pairs]
    known = [_label(pair, float(vectors[pair.one] @ vectors[pair.two])) for pair in pairs]
    taught = [one for one, test in zip(known, is_test, strict=True) if not test and one.similarity >= FLOOR]
    tested = [one for one, test in zip(known, is_test, strict=True) if test]
    began = process_time()
    score = fit(taught, vectors, embedder=embedder.identity)
    seconds = process_time() - began
    guards = Guards()
    names = "cosine", "cosine + guards", "learned score", "learned score + guards"
    ways: dict[str, list[tuple[float, bool]]] = {name: [] for name in names}
    for one in tested:
        near, is_refused = one.similarity, guards.check(one.text, one.neighbour) is not None
        rated = score.rate(one.text, vectors[one.text], [one.neighbour], vectors[one.neighbour][None], [near])[0]
        for name, told in ways.items():
            is_learned, is_guarded = name.startswith("learned"), name.endswith("guards")
            if not (is_guarded and is_refused) and not (is_learned and near < FLOOR):
                told.append((rated if is_learned else near, not one.is_right))
    return {
        "shares": {name: coverage(told, len(tested)) for name, told in ways.items()},
        "oracle": sum(bool(one.is_right) for one in tested) / len(tested), "teaching_seconds": seconds,
        "labels": len(taught), "right": sum(bool(one.is_right) for one in taught),
        "corrects": score.correction is not None,
    }  # fmt: skip


def _label(pair: Pair, near: float) -> Label:
    return Label(b"", b"", b"", pair.one, pair.two, near, near, pair.is_equal, Source.PAIR)


def coverage(told: list[tuple[float, bool]], of: int) -> list[float]:
    """Return the largest shares of `of` that a cut serves at each budget, of (rating, is wrong)."""
    best, wrong = [0] * len(BUDGETS), 0
    told = sorted(told, key=lambda one: -one[0])
    for served, ((rating, is_wrong), behind) in enumerate(zip(told, [*told[1:], (None, False)], strict=False), 1):
        wrong += is_wrong
        if rating != behind[0]:  # a cut parts no equal ratings
            best = [served if wrong <= budget * served else most for budget, most in zip(BUDGETS, best, strict=True)]
    return [most / of for most in best]


def _write(rows: dict[str, Any]) -> None:
    lines = [BEGIN, f"all-MiniLM-L6-v2, on {machine()}.", "",
             "| stream | way | " + " | ".join(f"at {100 * budget:g}% wrong per hit" for budget in BUDGETS)
             + " | taught by | processor s |", "| --- | --- |" + " --: |" * (len(BUDGETS) + 2)]  # fmt: skip
    for name, row in sorted(rows.items()):
        truth = f" {row['oracle']:.1%} |"
        by = f"{row['right']:,} right of {row['labels']:,}" + ("" if row["corrects"] else ": the cosine stands")
        for way, shares in row["shares"].items():
            told = f"{by} | {row['teaching_seconds']:.0f}" if way == "learned score" else " |"
            lines.append(f"| {name} | {way} | {' | '.join(f'{share:.1%}' for share in shares)} | {told} |")
        if "learned score" not in row["shares"]:
            lines.append(f"| {name} | learned score |{' - |' * len(BUDGETS)} {by} | |")
        lines.append(f"| {name} | oracle |{truth * len(BUDGETS)} | |")
    put_between("A learned score", [*lines, END])


if __name__ == "__main__":
    main(sys.argv[1:])
