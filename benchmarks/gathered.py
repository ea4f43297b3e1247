"""What do the worker and its callers take of many near lookups at once, beside embedding and searching?

    python benchmarks/gathered.py                     1,024 and 4,096 at once; some seconds

The embedder is a table, and the index finds rows by chance: what is left is Python of our own, on a GPU as here. Times
are medians of waves, and the least of them, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from itertools import count
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from run import machine

from semcache.model import Neighbour
from semcache.semantic.batcher import Batcher
from semcache.semantic.index import FlatIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

DIMENSION, NEIGHBOURS, WAVES, TOGETHER = 384, 4, 12, 1024
TABLE, ROWS = 4096, 100_000
KEYS, TEXTS = [number.to_bytes(20, "little") for number in range(ROWS)], [f"a text {number}" for number in range(ROWS)]


def _unit(n: int) -> Any:
    vectors = np.random.default_rng(n).standard_normal((n, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Table:
    """An embedder whose vectors are there already; `batch` as of a model on a GPU."""

    identity, dimension, batch = "table", DIMENSION, 1024

    def __init__(self) -> None:
        self._vectors = _unit(TABLE)

    def load(self) -> None:
        """Do nothing."""

    def covers(self, text: str) -> None:
        return None

    def __call__(self, texts: list[str]) -> Any:
        return self._vectors[np.fromiter((hash(text) % TABLE for text in texts), np.int64, len(texts))]


class Instant(FlatIndex):
    """An index that finds rows by chance, at once."""

    def search(self, scopes: Sequence[bytes], vectors: Any, k: int, now: float) -> list[list[Neighbour]]:
        rows = np.random.default_rng(len(vectors)).integers(0, ROWS, (len(scopes), k)).tolist()
        return [[Neighbour(KEYS[row], 0.9, TEXTS[row]) for row in some] for some in rows]


def _each(batcher: Batcher, texts: list[str]) -> list[Any]:
    return [batcher.search(b"scope", text, NEIGHBOURS) for text in texts]


def _together(batcher: Batcher, texts: list[str]) -> list[Any]:
    parts = (texts[at : at + TOGETHER] for at in range(0, len(texts), TOGETHER))
    return [batcher.search_many([b"scope"] * len(some), some, NEIGHBOURS) for some in parts]


def main() -> None:
    """Print a row for each way to ask, at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1024, 4096], help="lookups of a wave")
    arguments = parser.parse_args()
    print(machine())
    print("| lookups | asked | a second | at best | us of CPU each, at best | embed ms | search ms |")
    print(f"|{'--:|' * 7}")
    fresh = count()
    batcher = Batcher(Table(), partial(Instant, max_bytes=1), perf_counter, on_fault=print, max_pending=10**6)
    batcher.embed("warm").result(600)
    for n in arguments.at_once:
        for what, ask in (("one by one", _each), (f"{TOGETHER:,} a call", _together)):
            took, cpu, parts = [], [], []
            for _ in range(WAVES):
                texts = [f"question {next(fresh)}" for _ in range(n)]
                began, began_cpu = perf_counter(), process_time()
                found = [future.result(120) for future in ask(batcher, texts)]
                took.append(perf_counter() - began)
                cpu.append(process_time() - began_cpu)
                flat = found if ask is _each else [one for some in found for one in some]
                parts.append([sum({getattr(one, part) for one in flat}) / 1e6 for part in ("embed_ns", "search_ns")])
            embed, search = np.median(parts, axis=0)
            print(
                f"| {n:,} | {what} | {n / statistics.median(took):,.0f} | {n / min(took):,.0f} "
                f"| {min(cpu) / n * 1e6:.1f} | {embed:.1f} | {search:.1f} |",
                flush=True,
            )
    batcher.close()


if __name__ == "__main__":
    main()
