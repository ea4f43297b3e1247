"""Replays recordings through GPTCache and through ours, on the same vectors, and writes the table in RESULTS.md.

    python benchmarks/gptcache_streams.py ours FOLDER NAME ...     embeds, and replays through ours
    python -m venv VENV; VENV/bin/pip install gptcache==0.1.44 sqlalchemy faiss-cpu numpy
    VENV/bin/python benchmarks/gptcache_streams.py peer FOLDER NAME ...     replays through GPTCache: hours
    VENV/bin/python benchmarks/gptcache_streams.py check FOLDER NAME ...    the first 1,500 alone, beside its rule
    VENV/bin/python benchmarks/gptcache_streams.py rule FOLDER NAME ...     what its rule serves: seconds
    python benchmarks/gptcache_streams.py table     writes what both have measured

GPTCache has an environment of its own, and is given the vectors that our embedder made, so it needs no torch. It is
built as its `init_similar_cache` builds it: SQLite and FAISS, `SearchDistanceEvaluation`, the most similar answer. Its
threshold t is of (4 - squared distance) / 4, which of unit vectors is a cosine of 2t - 1: the default 0.8 is 0.6. It
keeps 1,000 answers unless told otherwise; each recording is replayed with that and with room for all. With room for
all its rule is: the nearest of all that were asked and not answered, if it is near enough. It has neither a
ttl nor exact tiers nor scopes, so only recordings of one scope are fair to it; an exact repeat has a similarity of 1.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

OUT = Path(__file__).parent / "out"
CUTS = (0.60, 0.80, 0.90, 0.95, 0.98, 0.99)
GRID = tuple(step / 200 for step in range(120, 201))
ROOMY = 10**6
CHECKED = 1_500
BUDGETS = (0.01, 0.02, 0.05, 0.10)
BEGIN, END = "<!-- gptcache: written by gptcache_streams.py -->", "<!-- end of gptcache -->"


def main(arguments: list[str]) -> None:
    """Do one of the steps; what was measured before is kept, so that a step that was stopped goes on."""
    step, *rest = arguments
    OUT.mkdir(exist_ok=True)
    if step == "table":
        write_table()
        return
    folder, *names = rest
    for name in names:
        measure = {"ours": measure_ours, "peer": measure_peer, "check": check_rule, "rule": measure_rule}[step]
        measure(Path(folder) / f"{name}.jsonl")


def measure_ours(path: Path) -> None:
    """Measure ours at each cut, without guards and with them, and keep the vectors."""
    from streams import trace_of
    from tune_streams import Kept

    from semcache.policy.guards import Guards
    from semcache.replay.score import is_wrong
    from semcache.semantic.embedder import as_embedder

    embedder, lines = Kept(path.stem), path.read_text(encoding="utf-8").splitlines()
    as_embedder(embedder, "auto").load()
    # GPTCache embeds also what ours leaves to exact matches, since the model does not see it whole.
    embedder(sorted({json.loads(line)["request"]["messages"][-1]["content"] for line in lines}, key=len))
    embedder.keep()
    for name, refuses in (("off", None), ("on", Guards().unbounded().refuses)):
        trace, measured = trace_of(lines, embedder, min(GRID), refuses), {}
        for cut in GRID:
            world, asked = trace.cached_on_miss(cut), trace.asked
            # An exact repeat is right: a text has one answer in these recordings.
            wrong = sum(bool(is_wrong(asked[near.position], asked[near.maker])) for near in world.near)
            measured[f"{name} {cut}"] = [len(asked), len(world.near) + len(world.exact), wrong]
        _keep(path.stem, measured)


def measure_peer(path: Path) -> None:
    """Measure GPTCache as it is by default, and at each cut with room for all."""
    questions, known = _asked(path)
    for name, cut, size in [("default", CUTS[0], 1_000), *((f"peer {cut}", cut, ROOMY) for cut in CUTS)]:
        if name not in _figures(path.stem):
            _keep(path.stem, {name: _peer(questions, known, cut, size)})


def check_rule(path: Path) -> None:
    """Say whether GPTCache itself answers the first requests as its rule does."""
    questions, known = _asked(path)
    for cut in CUTS[:-1]:
        sides = _peer(questions[:CHECKED], known, cut, ROOMY), _rule(questions[:CHECKED], known, [cut])[cut]
        print(path.stem, cut, *sides, "the same" if sides[0] == sides[1] else "NOT THE SAME", flush=True)


def measure_rule(path: Path) -> None:
    """Compute what GPTCache's rule serves at each cut, with room for all."""
    questions, known = _asked(path)
    _keep(path.stem, {f"rule {cut}": measured for cut, measured in _rule(questions, known, GRID).items()})


def _asked(path: Path) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return the questions with their answers, and the vectors."""
    known = dict(zip(*_read(_vectors(path.stem)), strict=True))
    asked = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    around = {json.dumps({**one["request"], "messages": one["request"]["messages"][:-1]}) for one in asked}
    if len(around) != 1:
        raise SystemExit(f"{path} has {len(around)} scopes, of which GPTCache knows nothing")
    return [(one["request"]["messages"][-1]["content"], one["answer_id"]) for one in asked], known


def _rule(questions: list[tuple[str, str]], known: dict[str, Any], cuts: Iterable[float]) -> dict[float, list[int]]:
    """Return how many were asked, answered, and answered wrongly, at each cut."""
    import numpy as np

    rows = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in questions))}
    vectors = np.stack([known[text] for text in rows])
    similarities = vectors @ vectors.T
    found = {}
    for cut in cuts:
        stored, answers = np.full(len(rows), -np.inf, dtype=np.float32), [""] * len(rows)
        hits = wrong = 0
        for text, answer in questions:
            row = rows[text]
            near = similarities[row] + stored
            best = int(near.argmax())
            if near[best] >= cut:
                hits += 1
                wrong += answers[best] != answer
            else:
                stored[row], answers[row] = 0.0, answer
        found[cut] = [len(questions), hits, wrong]
    return found


def _peer(questions: list[tuple[str, str]], known: dict[str, Any], cut: float, size: int) -> list[int]:
    """Return how many were asked, answered, and answered wrongly."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = mkdtemp()
    atexit.register(rmtree, folder)  # behind GPTCache, which still writes there when the process ends
    from gptcache import Cache, Config
    from gptcache.adapter.api import get, init_similar_cache, put
    from gptcache.manager import manager_factory

    class Known:
        """GPTCache's protocol of an embedder."""

        dimension = len(next(iter(known.values())))

        def to_embeddings(self, text: str, **_: Any) -> Any:
            return known[text]

    cache = Cache()
    manager = manager_factory(
        "sqlite,faiss", folder, vector_params={"dimension": Known.dimension}, eviction_params={"max_size": size}
    )
    # What it reports and writes in between changes no decision.
    config = Config(similarity_threshold=(1 + cut) / 2, auto_flush=ROOMY, disable_report=True)
    init_similar_cache(cache_obj=cache, embedding=Known(), data_manager=manager, config=config)
    hits = wrong = 0
    for question, answer in questions:
        found = get(question, cache_obj=cache)
        if found is None:
            put(question, answer, cache_obj=cache)
        else:
            hits += 1
            wrong += found != answer
    return [len(questions), hits, wrong]


def _figures(name: str) -> dict[str, list[int]]:
    path = OUT / f"gptcache-{name}.json"
    figures: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
    return figures


def _keep(name: str, measured: dict[str, list[int]]) -> None:
    print(name, measured, flush=True)
    (OUT / f"gptcache-{name}.json").write_text(json.dumps(_figures(name) | measured, indent=2) + "\n")


def write_table() -> None:
    """Write what was measured of both."""
    from run import machine
    from streams import put_between

    lines = [
        BEGIN,
        f"GPTCache 0.1.44 (sqlite, faiss) beside ours, vectors of all-MiniLM-L6-v2, on {machine()}.",
        "",
        "| stream | cosine | t | GPTCache: hits | wrong per hit | no guards: hits | wrong | ours: hits | wrong |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    found = []
    for path in sorted(OUT.glob("gptcache-*.json")):
        name = path.stem.removeprefix("gptcache-")
        figures = _figures(name)
        if "default" in figures:
            lines.append(f"| {name} | 0.60 | 0.8, 1,000 answers | {_shares(figures['default'])} |  |  |  |  |")
        for cut in CUTS:
            sides = " | ".join(_shares(figures.get(f"{side} {cut}")) for side in ("rule", "off", "on"))
            lines.append(f"| {name} | {cut:.2f} | {(1 + cut) / 2:.3f} | {sides} |")
        for budget in BUDGETS:
            best = [
                _best([figures[f"{side} {cut}"] for cut in GRID if f"{side} {cut}" in figures], budget)
                for side in ("rule", "off", "on")
            ]
            found.append(f"| {name} | {budget:.0%} | {' | '.join(best)} |")
    lines += [
        "",
        "| stream | wrong per hit at most | GPTCache: hits | no guards | ours |",
        "| --- | --: | --: | --: | --: |",
        *found,
        END,
    ]
    put_between("Beside GPTCache", lines)


def _shares(measured: list[int] | None) -> str:
    if measured is None:
        return "not measured |"
    requests, hits, wrong = measured
    return f"{hits / requests:.1%} | {wrong / hits:.1%}" if hits else "0.0% | -"


def _best(rows: Iterable[list[int]], budget: float) -> str:
    """Return the most hits that a cut has with so few wrong ones, known afterwards."""
    shares = [hits / requests for requests, hits, wrong in rows if hits and wrong / hits <= budget]
    return f"{max(shares):.1%}" if shares else "-"


def _vectors(name: str) -> Path:
    return OUT / f"vectors-{name}.npz"


def _read(path: Path) -> tuple[list[str], Any]:
    import numpy as np

    with np.load(path) as kept:
        return kept["texts"].tolist(), kept["vectors"]


if __name__ == "__main__":
    main(sys.argv[1:])
