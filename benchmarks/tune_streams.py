"""Tunes on recordings and writes the tables in RESULTS.md: coverage at four budgets, and how often a budget is broken.

    python benchmarks/tune_streams.py FOLDER [NAME ...]      every FOLDER/*.jsonl in the traffic format, or those named

Each text is embedded once, and kept in benchmarks/out. Rows of streams that are not named are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from run import OUT, machine
from streams import Remembering, put_between

from semcache.policy.bounds import at_most
from semcache.replay.score import Rate
from semcache.replay.settings import Settings
from semcache.replay.study import BUDGETS, Served
from semcache.replay.tune import LEARNED, PLAIN, Column, Outcome, Tuning, tune

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
    with path.open("rb") as lines:
        outcome = tune(lines, Tuning(Settings(embedder=embedder)), lambda *_: None, made="", name=path.name)
    budgets: dict[str, Any] = {}
    for row in outcome.rows:
        budgets[f"{row.budget:g}"] = {
            "by": row.way.name,
            "ways": {name: _column(column) for name, column in row.columns.items()},
            "opened": 0, "over": 0, "surely_over": 0, "split_near": 0.0,
        }  # fmt: skip
    random = Random(1)
    for _ in range(SPLITS):
        drawn = [random.random() < 0.5 for _ in outcome.recording.asked]
        for budget, served in _served(outcome, drawn).items():
            told = budgets[f"{budget:g}"]
            told["split_near"] += (served.near.share or 0) / SPLITS
            if served.wrong.of:
                told["opened"] += 1
                told["over"] += served.wrong.count > budget * served.wrong.of
                # So many wrong come with less than 5% where the true rate is the budget.
                told["surely_over"] += 1 - at_most(served.wrong.count - 1, served.wrong.of, budget) < 0.05
    near = None if outcome.oracle is None else (outcome.oracle.count - outcome.exact.count) / outcome.oracle.of
    return {
        "requests": len(outcome.recording.asked),
        "exact": outcome.exact.share,
        "oracle": near,
        "budgets": budgets,
    }


def _column(column: Column) -> dict[str, Any]:
    near, wrong = column.served.near, column.served.wrong
    hindsight = None if column.hindsight is None else column.hindsight[1].near.share
    return {"near": [near.count, near.of], "wrong": [wrong.count, wrong.of], "hindsight": hindsight}


def _served(outcome: Outcome, drawn: list[bool]) -> dict[float, Served]:
    """Let those drawn prove that did not teach, and serve the others by the way that serves more, as tune does."""
    begin = outcome.taught.begin if outcome.taught else 0
    proves = [is_drawn and position >= begin for position, is_drawn in enumerate(drawn)]
    reports = [not is_drawn and position >= begin for position, is_drawn in enumerate(drawn)]
    texts = outcome.taught.texts if outcome.taught else frozenset()
    own = [is_drawn and one.text not in texts for is_drawn, one in zip(proves, outcome.recording.asked, strict=True)]
    studies = [
        way.study.again(own if way.name == LEARNED else proves, reports) for way in outcome.ways if way.name != PLAIN
    ]
    found = {}
    for budget in BUDGETS:
        proved = [(study, study.certify(budget)) for study in studies]
        study, cuts = max(proved, key=lambda one: one[0].covers(one[1], own))
        found[budget] = study.serve(cuts)
    return found


def _write(rows: dict[str, Any]) -> None:
    heads = " | ".join(f"{100 * budget:g}%: near hits (hindsight) | wrong per hit" for budget in BUDGETS)
    lines = [
        BEGIN,
        f"Measured on {machine()}.",
        "",
        f"| stream | requests | exact only | way | {heads} |",
        "| --- | --: | --: | --- |" + " --: | --: |" * len(BUDGETS),
    ]
    for name, row in sorted(rows.items()):
        told = [row["budgets"][f"{budget:g}"] for budget in BUDGETS]
        head = f"{name} | {row['requests']:,} | {row['exact']:.1%}"
        for way in told[0]["ways"]:
            cells = [_cell(one["ways"][way], is_taken=one["by"] == way) for one in told]
            lines.append(f"| {head} | {way} | {' | '.join(cells)} |")
            head = " | | "
        oracle = "-" if row["oracle"] is None else f"{row['oracle']:.1%}"
        lines.append(f"| {head} | oracle |" + f" {oracle} | |" * len(BUDGETS))
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
    put_between("Tuning on recorded streams", [*lines, END])


def _cell(told: dict[str, Any], *, is_taken: bool) -> str:
    (near, of), (wrong, judged) = told["near"], told["wrong"]
    interval = Rate(near, of).interval
    share = f"{near / of:.1%}" + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if near and interval else "")
    share = f"**{share}**" if is_taken and near else share
    hindsight = "" if told["hindsight"] is None else f" ({told['hindsight']:.1%})"
    return f"{share}{hindsight} | " + (f"{wrong / judged:.1%} of {judged:,}" if judged else "-")


if __name__ == "__main__":
    main(sys.argv[1:])
