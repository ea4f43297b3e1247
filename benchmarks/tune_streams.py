"""Tunes on recordings and writes the tables in RESULTS.md: coverage at four budgets, and how often a budget is broken.

    python benchmarks/tune_streams.py FOLDER [NAME ...]      every FOLDER/*.jsonl in the traffic format, or those named

Each text is embedded once, and kept in benchmarks/out. Rows of streams that are not named are kept.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from run import OUT, RESULTS, machine
from streams import Remembering

from semcache.policy.bounds import at_most
from semcache.policy.equivalent import Comparator
from semcache.replay.labels import Labels
from semcache.replay.lookahead import embed
from semcache.replay.settings import Settings
from semcache.replay.tune import BUDGETS, Study, Tuning, make_trace, make_worlds, tune

SPLITS = 50
BEGIN, END = "<!-- tuning: written by tune_streams.py -->", "<!-- end of tuning -->"


class Kept(Remembering):
    """An embedder whose vectors of a stream are kept in a file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._file = OUT / f"vectors-{name}.npz"
        if self._file.exists():
            import numpy as np

            kept = np.load(self._file)
            self._vectors.update(zip(kept["texts"].tolist(), kept["vectors"], strict=True))

    def keep(self) -> None:
        import numpy as np

        texts = list(self._vectors)
        np.savez(self._file, texts=np.array(texts), vectors=np.stack([self._vectors[text] for text in texts]))


def main(arguments: list[str]) -> None:
    """Tune, and write the tables."""
    OUT.mkdir(exist_ok=True)
    kept = OUT / "tuning.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    folder, *names = arguments
    for path in sorted(Path(folder).glob("*.jsonl")):
        if (names and path.stem not in names) or '"request"' not in path.open(encoding="utf-8").readline():
            continue
        embedder = Kept(path.stem)
        rows[path.stem] = _figures(path, embedder)
        embedder.keep()
        kept.write_text(json.dumps(rows, indent=2) + "\n")
        print(path.stem, json.dumps(rows[path.stem]), flush=True)
    _write(rows)


def _figures(path: Path, embedder: Kept) -> dict[str, Any]:
    tuning = Tuning(Settings(embedder=embedder))
    with path.open("rb") as lines:
        outcome = tune(lines, tuning, lambda *_: None, made="", name=path.name)
    asked = outcome.recording.asked
    vectors = embed(embedder, outcome.recording.texts(), lambda *_: None)
    trace = make_trace(outcome.recording, vectors, tuning.settings)
    trace.search(lambda *_: None)
    worlds, _ = make_worlds(trace, lambda *_: None)
    labels = Labels(asked, Comparator())
    families = [b"" if one.request is None else one.request.family for one in asked]
    budgets: dict[str, Any] = {}
    for row in outcome.rows:
        budgets[f"{row.budget:g}"] = {
            "near": [row.served.near.count, row.served.near.of],
            "wrong": [row.served.wrong.count, row.served.wrong.of],
            "always": row.always.near.share,
            "hindsight": None if row.hindsight is None else row.hindsight[1].near.share,
            "opened": 0, "over": 0, "surely_over": 0, "split_near": 0.0,
        }  # fmt: skip
    random = Random(1)
    for _ in range(SPLITS):
        calibrates = [random.random() < 0.5 for _ in asked]
        study = Study(worlds, labels, families, calibrates)
        for budget in BUDGETS:
            served = study.serve(study.certify(budget))
            told = budgets[f"{budget:g}"]
            told["split_near"] += (served.near.share or 0) / SPLITS
            if served.wrong.of:
                told["opened"] += 1
                told["over"] += served.wrong.count > budget * served.wrong.of
                # So many wrong come with less than 5% where the true rate is the budget.
                told["surely_over"] += 1 - at_most(served.wrong.count - 1, served.wrong.of, budget) < 0.05
    return {
        "requests": len(asked),
        "exact": outcome.exact.share,
        "oracle": None if outcome.oracle is None else outcome.oracle.share,
        "budgets": budgets,
    }


def _write(rows: dict[str, Any]) -> None:
    heads = " | ".join(f"{100 * budget:g}%: near hits | wrong per hit" for budget in BUDGETS)
    lines = [
        BEGIN,
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine()}, beside other work.",
        "",
        f"| stream | requests | exact only | oracle | {heads} |",
        "| --- | --: | --: | --: |" + " --: | --: |" * len(BUDGETS),
    ]
    for name, row in sorted(rows.items()):
        cells = [_cell(row["budgets"][f"{budget:g}"]) for budget in BUDGETS]
        oracle = "-" if row["oracle"] is None else f"{row['oracle']:.1%}"
        lines.append(f"| {name} | {row['requests']:,} | {row['exact']:.1%} | {oracle} | {' | '.join(cells)} |")
    heads = " | ".join(f"{100 * budget:g}%: near hits | opened | over | surely" for budget in BUDGETS)
    lines += [
        "",
        f"| stream, {SPLITS} random splits | {heads} |",
        "| --- |" + " --: | --: | --: | --: |" * len(BUDGETS),
    ]
    for name, row in sorted(rows.items()):
        told = [row["budgets"][f"{budget:g}"] for budget in BUDGETS]
        cells = [f"{one['split_near']:.1%} | {one['opened']} | {one['over']} | {one['surely_over']}" for one in told]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(END)
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    if BEGIN not in old:
        old += f"\n## Tuning on recorded streams\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    RESULTS.write_text(before + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")


def _cell(told: dict[str, Any]) -> str:
    (near, of), (wrong, judged) = told["near"], told["wrong"]
    hindsight = "" if told["hindsight"] is None else f" (hindsight {told['hindsight']:.1%})"
    return f"{near / of:.1%}{hindsight} | " + (f"{wrong / judged:.1%} of {judged:,}" if judged else "-")


if __name__ == "__main__":
    main(sys.argv[1:])
