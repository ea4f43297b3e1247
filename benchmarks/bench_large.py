"""What does an index of a million rows on the CPU cost: searching it, holding it, and adding and removing meanwhile?

    python benchmarks/bench_large.py --data FOLDER            all parts, as tables and out/large.json
    python benchmarks/bench_large.py --rows 100000 --only 1   fewer rows; of the parts 1, 100, many (scopes), crossover
    DATA=FOLDER ROWS=1000000 python benchmarks/run.py bench_large.py

FOLDER has recordings and labelled pairs (else the support desk's questions); `large_rows.py` says what rows are made of
them. Each part is a process of its own that reads them into one small buffer, so what grows is the index. In one scope
most of the last tenth comes in 1,500 rows a second, with 50 searches a second between them in the same thread, as
the worker does; beside them the same searches before, with nothing coming in.

A search is right if the row that it finds first is within 0.001 of the most similar one's similarity, by float32.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
from large_rows import DIMENSION, Rows, is_taken_out, prepare, scopes_of
from run import OUT, _line, machine

ROWS = int(os.environ.get("ROWS", "1000000"))
DATA = os.environ.get("DATA")
NEIGHBOURS, NEAR_ENOUGH = 4, 1e-3
BYTES_A_ROW = 1.3 * 2 * DIMENSION + 450
INSERTS_A_SECOND, SEARCHES_A_SECOND = 1500, 50
LOOKED_AT = 1000
SEARCH_SECONDS, ALONE_SECONDS, SETTLE_SECONDS = 20.0, 10.0, 1500.0
FOR_EVER = 1e18
SIZES, BATCHES = tuple(1024 << order for order in (0, 2, 3, 4, 5, 6, 7)), (1, 32)
SCOPED = "1", "100", "many"
ALWAYS = (
    "search", "recall", "search of what stays", "recall of what stays", "bytes", "insert", "remove", "at once", "built",
)  # fmt: skip
PACED = "paced", "over twice", "over twice alone"
CASES = [(part, name) for part in SCOPED for name in (*ALWAYS, *(PACED if part == "1" else ()))]
HEAD = "| what | figure | bar | | ours | beside | more |\n| --- | --: | --: | :-: | --: | --: | --- |"

Search = Callable[[Any], Any]
"""From float32[n, d] to the numbers of the rows that are found, int[n, k], nearest first."""


class Filled:
    """An index that is filled, and how long its caller's calls took, in seconds by row."""

    def __init__(self, rows: Rows, scopes: int) -> None:
        from semcache.semantic.device import make_index

        self.rows = rows
        self.scopes = scopes
        self.index = make_index(DIMENSION, 10**13, None, None)
        self.inserts = np.zeros(len(rows)) + 0.0
        self.removes = array("d")
        self.text_bytes = 0
        self.missed = self.stale = 0
        self._looking = 0.0
        for number, query in enumerate(rows.queries[:20]):  # what comes with the first calls is not the rows'
            self.index.add(b"warm %d" % number, b"warm", query, "", FOR_EVER)
            self.index.search([b"warm"], query[None], NEIGHBOURS, 0.0)
        self.index.clear()

    def scope(self, row: int) -> bytes:
        return (row % self.scopes).to_bytes(20, "big")

    def find(self, row: int, vector: Any) -> list[Any]:
        found: list[Any] = self.index.search([self.scope(row)], vector[None], NEIGHBOURS, 0.0)[0]
        return found

    def add(self, row: int, vector: Any) -> None:
        key, scope, text = self.rows.key(row), self.scope(row), self.rows.text(row)
        self.text_bytes += sys.getsizeof(text)
        began = perf_counter()
        self.index.add(key, scope, vector, text, FOR_EVER)
        self.inserts[row] = perf_counter() - began
        if row % LOOKED_AT == 0:
            began = perf_counter()
            self.missed += key not in [one.key for one in self.find(row, vector)]
            self._looking += perf_counter() - began

    def fill(self, start: int, stop: int) -> tuple[float, float]:
        """Add rows one upon the other; return the seconds until the last was in, and until nothing was left to do.

        Those in which rows were looked for are left out.
        """
        began, looked = perf_counter(), self._looking
        for row, vector in self.rows.read(start, stop):
            self.add(row, vector)
        took = perf_counter() - began - (self._looking - looked)
        return took, took + self.settle()

    def take_out(self) -> None:
        """Remove a tenth of each scope."""
        for row, vector in self.rows.read(0, len(self.rows)):
            if is_taken_out(row, self.scopes):
                key = self.rows.key(row)
                began = perf_counter()
                self.index.remove(key)
                self.removes.append(perf_counter() - began)
                if len(self.removes) % LOOKED_AT == 1:
                    self.stale += key in [one.key for one in self.find(row, vector)]

    def settle(self) -> float:
        """Wait until nothing is left to do in the background; return how long."""
        began = perf_counter()
        assert self.index.settle(SETTLE_SECONDS), f"the index is not done after {SETTLE_SECONDS:.0f} s"
        return perf_counter() - began

    def search(self, best: Any, seconds: float) -> dict[str, float]:
        """Search for as many real queries as there is time for, one at a time; say how long it took, and how well."""
        times, found, queries = array("d"), [], self.rows.queries
        for number in range(50):
            self.find(number, queries[number])
        end = perf_counter() + seconds
        for number, query in enumerate(queries):
            began = perf_counter()
            found.append(self.find(number, query))
            times.append(perf_counter() - began)
            if perf_counter() > end and number >= 100:
                break
        first = [self.rows.row(one[0].key) if one else None for one in found]
        true = np.array(
            [-1.0 if row is None else self.rows.vector(row) @ queries[place] for place, row in enumerate(first)]
        )
        told = np.array([one[0].similarity if one else -1.0 for one in found])
        right = (true >= best[: len(true)] - NEAR_ENOUGH).mean()
        off = abs(told - true).max()
        return {"queries": len(times), **_percentiles(times, 1e3), "recall@1": float(right), "off": float(off)}

    def paced(self, start: int, rows: int, seconds: float) -> dict[str, float]:
        """Add rows evenly over some seconds, and search in between; say how long searches took, and what rate it was.

        Where a search outlasts its turn, the rows that were due meanwhile come at once behind it.
        """
        times, queries, added = array("d"), self.rows.queries, 0
        coming = self.rows.read(start, start + rows)
        began = perf_counter()
        while added < rows or perf_counter() - began < seconds:
            due = min(rows, round((perf_counter() - began) / seconds * rows))
            for _ in range(due - added):
                self.add(*next(coming))
            added = due
            if perf_counter() - began >= len(times) / SEARCHES_A_SECOND:
                number = len(times) % len(queries)
                asked = perf_counter()
                self.find(number, queries[number])
                times.append(perf_counter() - asked)
            sleep(0.002)
        rate = rows / (perf_counter() - began)
        over = float(np.mean(np.asarray(times) > 2 * np.median(times)))
        return {"inserts_a_second": rate, "searches": len(times), **_percentiles(times, 1e3), "over_twice": over}


def _percentiles(times: Any, scale: float) -> dict[str, float]:
    shares = {"p50": 50, "p99": 99, "p99.9": 99.9, "max": 100}
    return {name: float(np.percentile(times, share)) * scale for name, share in shares.items()}


def resident_bytes(name: str = "VmRSS") -> int:
    """Return what this process has of the memory, or had at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def measure(path: Path, scopes: int) -> dict[str, Any]:
    """Measure an index of so many scopes; in a process of its own."""
    rows = Rows(path)
    filled = Filled(rows, scopes)
    gc.collect()
    before = resident_bytes()
    most = len(rows) if scopes > 1 else len(rows) * 9 // 10
    added, done = filled.fill(0, most)
    figures: dict[str, Any] = {"rows": len(rows), "scopes": scopes, "in_a_second": most / added}
    figures |= {"built_a_second": most / done, "idle_s": done - added}
    if scopes == 1:
        figures["alone"] = filled.paced(most, 0, ALONE_SECONDS)
        coming = len(rows) * 9 // 100
        figures["meanwhile"] = filled.paced(most, coming, coming / INSERTS_A_SECOND)
        figures["meanwhile"]["insert"] = _percentiles(filled.inserts[most : most + coming], 1e6)
        filled.fill(most + coming, len(rows))
    gc.collect()
    figures["insert"] = _percentiles(filled.inserts, 1e6)
    for name, of in (("bytes", "VmRSS"), ("bytes_at_peak", "VmHWM")):
        figures[name] = (resident_bytes(of) - before - filled.text_bytes) / len(rows)
    figures["text_bytes"] = filled.text_bytes / len(rows)
    figures["search"] = filled.search(rows.best[scopes], SEARCH_SECONDS)
    filled.take_out()
    figures["remove"] = _percentiles(filled.removes, 1e6)
    figures["removed_idle_s"] = filled.settle()
    figures["search of what stays"] = filled.search(rows.kept[scopes], SEARCH_SECONDS / 2)
    figures |= {"missed": filled.missed, "stale": filled.stale}
    filled.index.close()
    return figures


def crossover(
    make_flat: Callable[[Any], Search], make_sealed: Callable[[Any], Search], path: Path
) -> list[dict[str, float]]:
    """Search among growing numbers of rows in two ways, made of float32[n, d], in turn; milliseconds.

    Of each the tenth part that is fastest ends there: others on the machine only add to it. How often the second finds
    what is right is told beside what the first finds.
    """
    rows, found = Rows(path), []
    for size in [size for size in SIZES if size <= len(rows)]:
        vectors = rows.first(size)
        flat = make_flat(vectors)
        began = perf_counter()
        sealed = make_sealed(vectors)
        row = {"rows": size, "build_s": perf_counter() - began}
        queries = rows.queries[:1000]
        best, near = ((vectors[way(queries)[:, 0]] * queries).sum(axis=1) for way in (flat, sealed))
        row["recall@1"] = float((near >= best - NEAR_ENOUGH).mean())
        for batch in BATCHES:
            times: dict[str, list[float]] = {"flat": [], "sealed": []}
            end = perf_counter() + 1.5
            for number in range(0, len(queries) - batch, batch):
                for way, took in zip((flat, sealed), times.values(), strict=True):
                    began = perf_counter()
                    way(queries[number : number + batch])
                    took.append(perf_counter() - began)
                if perf_counter() > end and number >= 20 * batch:
                    break
            row |= {f"{name}, {batch}": float(np.percentile(took, 10)) * 1e3 for name, took in times.items()}
        found.append(row)
    return found


def flat(vectors: Any) -> Search:
    """All rows, compared one by one, as an index does."""
    from semcache.semantic.half import Scanner

    scanner = Scanner(DIMENSION)
    halves = vectors.astype(np.float16)
    parts = [(halves[first : first + 1024], None, first) for first in range(0, len(halves), 1024)]

    return lambda queries: scanner.nearest(queries, parts, NEIGHBOURS)[1]


def sealed(vectors: Any) -> Search:
    """A graph of the rows, with the effort that an index would search it with."""
    from semcache.semantic.hnsw import grown
    from semcache.semantic.large import EFFORT
    from semcache.semantic.segments import effort_for

    graph = grown(None, [vectors], len(vectors), DIMENSION, lambda: False)
    assert graph is not None
    return lambda queries: graph.search(queries, NEIGHBOURS, effort_for(EFFORT, len(vectors)))[1]


def table(part: str, figures: Any) -> dict[str, dict[str, Any]]:
    """Return what a part found as rows of the table in RESULTS.md, by name."""
    told: dict[str, dict[str, Any]] = {}

    def row(
        name: str, what: str, figure: float, bar: float | None, unit: str, *, is_least: bool = False, **medians: float
    ) -> None:
        told[name] = {
            "question": f"{of}{what}", "ratio": figure, "bar": bar, "higher_is_better": is_least, "medians": medians,
            "unit": unit,
        }  # fmt: skip

    def some(found: dict[str, float], *names: str) -> dict[str, float]:
        return {name: found[name] for name in names}

    if part == "crossover":
        of = "one query / by comparing all: "
        for one in figures:
            more = {f"32 queries, {way}": one[f"{way}, 32"] for way in ("sealed", "flat")}
            what = f"a graph of {one['rows']:,} rows (recall@1 {one['recall@1']:.1%}, built in {one['build_s']:.1f} s)"
            medians = {"ours": one["sealed, 1"], "bare": one["flat, 1"]} | more
            row(str(one["rows"]), what, one["sealed, 1"] / one["flat, 1"], None, "ms", **medians)
        return told
    of = f"{figures['rows']:,} rows in {figures['scopes']:,} scope{'s' * (figures['scopes'] > 1)}: "
    for name, how in (("", ""), (" of what stays", ", a tenth removed")):
        found = figures[f"search{name}"]
        what = f"milliseconds of one query{how} (median of {found['queries']:,})"
        row(f"search{name}", what, found["p50"], 5.0, "ms", **some(found, "p99", "max"))
        row(f"recall{name}", f"recall@1{how}, %", found["recall@1"] * 100, 99.0, "", is_least=True)
    what = f"resident bytes a row beyond its text (of {figures['text_bytes']:.0f} bytes)"
    row("bytes", what, figures["bytes"], BYTES_A_ROW, "bytes", **{"at the peak": figures["bytes_at_peak"]})
    for name in ("insert", "remove"):
        found = figures[name]
        row(name, f"{name}, us of its caller (median)", found["p50"], 50.0, "us", **some(found, "p99", "p99.9", "max"))
    wrong = {"missed": figures["missed"], "found": figures["stale"]}
    row("at once", "of each 1,000th, not found once in, or found once removed", sum(wrong.values()), 0, "", **wrong)
    what = f"rows a second, one upon the other, until all is built ({figures['idle_s']:.0f} s after the last)"
    more = {"until all are in": figures["in_a_second"]}
    row("built", what, figures["built_a_second"], None, "/s", **more)
    if "meanwhile" in figures:
        paced, alone = figures["meanwhile"], figures["alone"]
        more = {f"insert {share}": paced["insert"][share] for share in ("p50", "p99", "p99.9")}
        rate = paced["inserts_a_second"]
        row("paced", "rows a second, paced, searches between", rate, INSERTS_A_SECOND - 15, "us", is_least=True, **more)
        for name, found, bar in (("over twice", paced, 0.0), ("over twice alone", alone, None)):
            how = "meanwhile" if found is paced else "before, with nothing coming in"
            what = f"searches {how} over twice their median, % of {found['searches']:,}"
            row(name, what, found["over_twice"] * 100, bar, "ms", **some(found, "p50", "p99", "max"))
    return told


def run_part(part: str, rows: int, data: str | None) -> Any:
    """Do a part in a process of its own, and return what it found."""
    command = [sys.executable, __file__, "--rows", str(rows), "--child", part, *(["--data", data] if data else [])]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout)


def _child(part: str, rows: int, data: str | None) -> Any:
    from semcache.semantic.threads import limit_faiss_threads

    limit_faiss_threads()
    path = prepare(rows, data)
    if part == "prepare":
        return str(path)
    if part == "crossover":
        return crossover(flat, sealed, path)
    return measure(path, dict(zip(SCOPED, scopes_of(rows), strict=True))[part])


@cache
def figures_of(part: str) -> Any:
    run_part("prepare", ROWS, DATA)
    return run_part(part, ROWS, DATA)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("part", "name"), CASES)
def test_large(pairs, part, name):
    """The bars: a query in 5 ms at a recall of 0.99; 1.3 times float16 and 450 bytes a row; 50 us; 1,500 a second."""
    figures = figures_of(part)
    pairs.record(**table(part, figures)[name])
    pairs.once(lambda: None)
    assert not figures["missed"] + figures["stale"]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", [str(size) for size in SIZES if size <= ROWS])
def test_crossover(pairs, size):
    """No bar: from how many rows on a graph is faster."""
    pairs.record(**table("crossover", figures_of("crossover"))[size])
    pairs.once(lambda: None)


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = (*SCOPED, "crossover")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="recordings and labelled pairs")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts, help="parts")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_child(given.child, given.rows, given.data)))
        return
    run_part("prepare", given.rows, given.data)
    figures = {}
    for part in given.only:
        began = perf_counter()
        figures[part] = run_part(part, given.rows, given.data)
        (OUT / "large.json").write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n")
        print(f"\n{part}: {perf_counter() - began:.0f} s on {machine()}\n\n{HEAD}", flush=True)
        print(*map(_line, table(part, figures[part]).values()), sep="\n", flush=True)


if __name__ == "__main__":
    main()
