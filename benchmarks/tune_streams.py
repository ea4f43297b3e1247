"""Tunes on recordings and writes the tables in RESULTS.md: coverage at four budgets, and how often a budget is broken.

The last is counted over random splits, also with a comparator that errs on some of the labels that prove.

    python benchmarks/tune_streams.py FOLDER [NAME ...]      every FOLDER/*.jsonl in the traffic format, or those named

Each text is embedded once, and kept in benchmarks/out. Rows of streams that are not named are kept.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from run import OUT, machine
from splits import HONEST, Error, arrays_of, split
from streams import Remembering, put_between

from semcache.policy.bounds import CONFIDENCE, at_most
from semcache.replay.score import Rate
from semcache.replay.settings import Settings
from semcache.replay.study import BUDGETS
from semcache.replay.tune import LEARNED, PLAIN, Column, Outcome, Tuning, tune

SPLITS, SHARE = 50, 0.5
# Comparators that err on a share of the pairs: of those that are right, of those that are wrong, of all.
ERRS = {"right for wrong": (True, False), "wrong for right": (False, True), "both": (True, True)}
ERRORS = {
    (how, share): Error(share, of_right=of_right, of_wrong=of_wrong)
    for how, (of_right, of_wrong) in ERRS.items()
    for share in (0.05, 0.10, 0.20)
}
ERRING_BUDGETS = (0.02, 0.05, 0.10)
BEGIN, END = "<!-- tuning: written by tune_streams.py -->", "<!-- end of tuning -->"


class Kept(Remembering):
    """An embedder whose vectors of a stream are kept in a file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._file = OUT / f"vectors-{name}.npz"
        if self._file.exists():
            kept = np.load(self._file)
            self._vectors.update(zip(kept["texts"].tolist(), kept["vectors"], strict=True))

    def keep(self) -> None:
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
        }
    honest, erring = _splits(outcome)
    for budget, told in honest.items():
        budgets[budget] |= told
    near = None if outcome.oracle is None else (outcome.oracle.count - outcome.exact.count) / outcome.oracle.of
    return {
        "requests": len(outcome.recording.asked),
        "exact": outcome.exact.share,
        "oracle": near,
        "budgets": budgets,
        "erring": erring,
    }


def _splits(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split at random, many times, and sum what comes of it: by budget, and by error and budget."""
    ways, random = arrays_of(outcome), np.random.default_rng(1)
    counts: dict[tuple[float, Error], Counter[str]] = {}
    for number in range(SPLITS):
        drawn = random.random(len(outcome.recording.asked)) < SHARE
        found = split(ways, outcome, drawn, BUDGETS, (HONEST, *ERRORS.values()), random)
        if not number:
            _check(outcome, drawn, found)
        for at, served in found.items():
            told = counts.setdefault(at, Counter())
            told["near"] += served.near
            told["of"] += served.of
            if served.judged:
                told["opened"] += 1
                told["wrong"] += served.wrong
                told["judged"] += served.judged
                told["over"] += served.wrong > at[0] * served.judged
                # So many wrong come with less than 5% where the true rate is the budget.
                told["surely"] += 1 - at_most(served.wrong - 1, served.judged, at[0]) < 1 - CONFIDENCE
    honest = {f"{budget:g}": {"splits": dict(counts[budget, HONEST])} for budget in BUDGETS}
    erring = {
        how: {
            f"{share:g}": {f"{budget:g}": dict(counts[budget, ERRORS[how, share]]) for budget in ERRING_BUDGETS}
            for share in sorted({share for _, share in ERRORS})
        }
        for how in ERRS
    }
    return honest, erring


def _check(outcome: Outcome, drawn: Any, found: dict[tuple[float, Error], Any]) -> None:
    """See that a split is counted as tune would count it."""
    begin = outcome.taught.begin if outcome.taught else 0
    proves = [bool(is_drawn) and position >= begin for position, is_drawn in enumerate(drawn)]
    reports = [not is_drawn and position >= begin for position, is_drawn in enumerate(drawn)]
    texts = outcome.taught.texts if outcome.taught else frozenset()
    own = [is_drawn and one.text not in texts for is_drawn, one in zip(proves, outcome.recording.asked, strict=True)]
    studies = [
        way.study.again(own if way.name == LEARNED else proves, reports) for way in outcome.ways if way.name != PLAIN
    ]
    for budget in BUDGETS:
        proved = [(study, study.certify(budget)) for study in studies]
        study, cuts = max(proved, key=lambda one: one[0].covers(one[1], own))
        near, wrong = study.serve(cuts).near, study.serve(cuts).wrong
        assert found[budget, HONEST] == (near.count, near.of, wrong.count, wrong.of), budget


def _column(column: Column) -> dict[str, Any]:
    near, wrong = column.served.near, column.served.wrong
    hindsight = None if column.hindsight is None else column.hindsight[1].near.share
    return {"near": [near.count, near.of], "wrong": [wrong.count, wrong.of], "hindsight": hindsight}


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
        lines.append(f"| {name} | {' | '.join(_split_cell(one['splits'], 'over', 'surely') for one in told)} |")
    heads = " | ".join(f"{100 * budget:g}%: near hits | wrong per hit | opened | surely" for budget in ERRING_BUDGETS)
    lines += [
        "",
        f"| stream, {SPLITS} random splits | the comparator takes | of them | {heads} |",
        "| --- | --- | --: |" + " --: | --: | --: | --: |" * len(ERRING_BUDGETS),
    ]
    for name, row in sorted(rows.items()):
        if not any(
            told.get("opened") for shares in row["erring"].values() for one in shares.values() for told in one.values()
        ):
            continue
        for number, (how, share) in enumerate(ERRORS):
            told = row["erring"][how][f"{share:g}"]
            cells = " | ".join(
                _split_cell(told[f"{budget:g}"], "surely", shows_wrong=True) for budget in ERRING_BUDGETS
            )
            lines.append(f"| {'' if number else name} | {how} | {share:.0%} | {cells} |")
    put_between("Tuning on recorded streams", [*lines, END])


def _split_cell(told: dict[str, int], *names: str, shows_wrong: bool = False) -> str:
    cells = [f"{told['near'] / told['of']:.1%}"]
    if shows_wrong:
        cells.append(f"{told['wrong'] / told['judged']:.1%}" if told.get("judged") else "-")
    return " | ".join([*cells, *(str(told.get(name, 0)) for name in ("opened", *names))])


def _cell(told: dict[str, Any], *, is_taken: bool) -> str:
    (near, of), (wrong, judged) = told["near"], told["wrong"]
    interval = Rate(near, of).interval
    share = f"{near / of:.1%}" + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if near and interval else "")
    share = f"**{share}**" if is_taken and near else share
    hindsight = "" if told["hindsight"] is None else f" ({told['hindsight']:.1%})"
    return f"{share}{hindsight} | " + (f"{wrong / judged:.1%} of {judged:,}" if judged else "-")


if __name__ == "__main__":
    main(sys.argv[1:])
