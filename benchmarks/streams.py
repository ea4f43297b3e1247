"""Replays recordings at several thresholds, and with the guards off and on, and writes the tables in RESULTS.md.

    python benchmarks/streams.py FOLDER [NAME ...]      every FOLDER/*.jsonl in the traffic format, or those named

Each text is embedded once for all the replays of its stream. Rows of streams that are not named are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from run import OUT, RESULTS, machine

from semcache.cache import Cache
from semcache.policy import Threshold
from semcache.policy.guards import Guards
from semcache.replay.lookahead import embed
from semcache.replay.recording import Asked
from semcache.replay.run import replay
from semcache.replay.score import Hits, Rate, is_wrong, score
from semcache.replay.settings import Settings, load
from semcache.replay.worlds import Near, Refuse, Trace
from semcache.semantic.embedder import SentenceTransformerEmbedder

CUTS = (0.85, 0.90, 0.95)
BEGIN, END = "<!-- streams: written by streams.py -->", "<!-- end of streams -->"
GUARDS_BEGIN, GUARDS_END = "<!-- guards: written by streams.py -->", "<!-- end of guards -->"


class Remembering(SentenceTransformerEmbedder):
    """An embedder that embeds a text once, so that the replays after the first cost none."""

    def __init__(self) -> None:
        super().__init__("all-MiniLM-L6-v2")
        self._vectors: dict[str, Any] = {}

    def __call__(self, texts: list[str]) -> Any:
        import numpy as np

        missing = [text for text in texts if text not in self._vectors]
        if missing:
            self._vectors.update(zip(missing, super().__call__(missing), strict=True))
        return np.stack([self._vectors[text] for text in texts])


def main(arguments: list[str]) -> None:
    """Replay, and write the table."""
    OUT.mkdir(exist_ok=True)
    kept = OUT / "streams.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    folder, *names = arguments
    for path in sorted(Path(folder).glob("*.jsonl")):
        if (names and path.stem not in names) or '"request"' not in path.open(encoding="utf-8").readline():
            continue
        # A memory of its own for each: texts known from another stream would seem to cost nothing.
        rows[path.stem] = _figures(path, Remembering())
        kept.write_text(json.dumps(rows, indent=2) + "\n")
        print(path.stem, json.dumps(rows[path.stem]), flush=True)
    _write(rows)


def _figures(path: Path, embedder: Remembering) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    figures: dict[str, Any] = {"cuts": {}}
    for cut in CUTS:
        replayed = replay(lines, Settings(policy=Threshold(cut, guards=None), embedder=embedder), lambda *_: None)
        asked = replayed.recording.asked
        ours = score(asked, replayed.outcomes)
        near = ours.near.wrong_per_hit
        figures["cuts"][f"{cut:.2f}"] = [ours.hit_rate, ours.near.hits, near.count, near.of]
        if "requests" not in figures:
            figures.update(
                requests=ours.requests,
                exact=score(asked, replayed.exact).hit_rate,
                oracle=score(asked, replayed.oracle).hit_rate,
                embed_seconds=replayed.embed_seconds,
                texts=replayed.embedded,
                rest_seconds=replayed.wall_seconds - replayed.embed_seconds,
            )
    return figures | {"guards": guarded(lines, embedder)}


def guarded(lines: list[str], embedder: Any) -> dict[str, Any]:
    """Return, by cut, the near hits, right and wrong, guards off and on, and which of the first each guard refuses."""
    guards = Guards().unbounded()
    off, on = (trace_of(lines, embedder, min(CUTS), refuses) for refuses in (None, guards.refuses))
    return {
        f"{cut:.2f}": _guarded(off.asked, off.cached_on_miss(cut).near, on.cached_on_miss(cut).near, guards)
        for cut in CUTS
    }


def trace_of(lines: list[str], embedder: Any, floor: float, refuses: Refuse | None) -> Trace:
    """Search as `semcache tune` does, once for all cuts; each serves what a replay serves with a jitter of 0."""
    settings = Settings(embedder=embedder)
    with Cache("replay", memory=settings.memory, embedder=embedder) as cache:
        recording = load(lines, settings, cache, lambda *_: None)
    vectors = embed(embedder, recording.texts(), lambda *_: None)
    exact, near = settings.exact_seconds, settings.ttl.of("semantic")
    trace = Trace(recording.asked, vectors, exact_seconds=exact, near_seconds=near, floor=floor, refuses=refuses)
    trace.search(lambda *_: None)
    return trace


def _guarded(asked: list[Asked], off: list[Near], on: list[Near], guards: Guards) -> dict[str, Any]:
    sides = {}
    for name, near in (("off", off), ("on", on)):
        hits = Hits()
        for one in near:
            hits.add(is_wrong(asked[one.position], asked[one.maker]))
        sides[name] = [hits.judged - hits.wrong, hits.wrong]
    refused: dict[str, Hits] = {}
    for one in off:
        guard = guards.refuses(asked[one.position].text, asked[one.maker].text)
        if guard is not None:
            refused.setdefault(guard, Hits()).add(is_wrong(asked[one.position], asked[one.maker]))
    return sides | {"refused": {guard: [hits.judged - hits.wrong, hits.wrong] for guard, hits in refused.items()}}


def _write(rows: dict[str, Any]) -> None:
    heads = " | ".join(f"hits at {cut:.2f} | near, wrong [95%]" for cut in CUTS)
    lines = [
        BEGIN,
        f"all-MiniLM-L6-v2, default ttls and bounds, on {machine()}.",
        "",
        f"| stream | requests | exact only | oracle | {heads} | embed s | rest s |",
        "| --- | --: | --: | --: |" + " --: | --: |" * len(CUTS) + " --: | --: |",
    ]
    for name, row in sorted(rows.items()):
        cells = [_cut(*row["cuts"][f"{cut:.2f}"]) for cut in CUTS]
        lines.append(
            f"| {name} | {row['requests']:,} | {row['exact']:.1%} | {row['oracle']:.1%} | {' | '.join(cells)} "
            f"| {row['embed_seconds']:.0f} | {row['rest_seconds']:.0f} |"
        )
    put_between("Recorded streams", [*lines, END])
    write_guarded({name: row["guards"] for name, row in rows.items() if "guards" in row})


def write_guarded(rows: dict[str, Any]) -> None:
    """Write the table of what the guards cost and spare."""
    lines = [
        GUARDS_BEGIN,
        "all-MiniLM-L6-v2; near hits at three similarities, guards off and on; *refused* are hits of the first kind.",
        "",
        "| stream | at | wrong, off | wrong, on | change | right, off | right, on | change | refused: wrong + right |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for name, cuts in sorted(rows.items()):
        for cut, row in sorted(cuts.items()):
            (right, wrong), (right_on, wrong_on) = row["off"], row["on"]
            refused = sorted(row["refused"].items(), key=lambda one: -sum(one[1]))
            told = ", ".join(f"{guard} {bad} + {good}" for guard, (good, bad) in refused)
            cells = [
                name,
                cut,
                wrong,
                wrong_on,
                _change(wrong, wrong_on),
                right,
                right_on,
                _change(right, right_on),
                told,
            ]
            lines.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |")
    put_between("Guards", [*lines, GUARDS_END])


def _change(before: int, after: int) -> str:
    return f"{after / before - 1:+.1%}" if before else "-"


def put_between(title: str, lines: list[str]) -> None:
    """Put lines where the first and the last of them stand, or under a title of their own."""
    begin, end = lines[0], lines[-1]
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    if begin not in old:
        old += f"\n## {title}\n\n{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    RESULTS.write_text(before + "\n".join(lines) + rest.partition(end)[2], encoding="utf-8")


def _cut(hit_rate: float, near: int, wrong: int, judged: int) -> str:
    rate = Rate(wrong, judged)
    if rate.share is None or rate.interval is None:
        return f"{hit_rate:.1%} | {near:,}"
    low, high = rate.interval
    return f"{hit_rate:.1%} | {near:,}, {rate.share:.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    main(sys.argv[1:])
