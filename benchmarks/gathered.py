"""What does Python take of many near lookups at once, where embedding and products take nothing?

    python benchmarks/gathered.py                     1,024 at once, of 1,000 and 100,000 rows; half a minute
    python benchmarks/gathered.py --at-once 4096

The embedder is a table, and the device finds at once, rows by chance: what is left is what the worker and its callers
do themselves, on a GPU as here. Times are medians of waves, and the least of them, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from itertools import count
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch  # noqa: F401 - before FAISS: who comes first brings the libraries
from run import machine

from semcache.semantic.batcher import Batcher
from semcache.semantic.device import DeviceIndex
from semcache.semantic.rows import DeviceRows

DIMENSION, NEIGHBOURS, WAVES, TOGETHER = 384, 4, 12, 1024
TABLE = 4096


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


class InstantRows(DeviceRows):
    """Rows of which a search finds some by chance, at once."""

    def search(self, slots: Any, used: int, queries: Any, k: int, alive: Any = None) -> Any:
        rows = ((len(slots) - 1) << 10) + used
        near = np.linspace(0.9, 0.8, k, dtype=np.float32)[None].repeat(len(queries), 0)
        places = np.random.default_rng(used).integers(0, rows, near.shape)
        return near, slots.numbers[places >> 10] << 10 | places & 1023


def _index(rows: int, _: int) -> DeviceIndex:
    index = DeviceIndex(DIMENSION, 10**11, device="cpu")
    for number, vector in enumerate(_unit(rows)):
        index.add(number.to_bytes(20, "little"), b"scope", vector, f"a text {number}", math.inf)
    index._device_rows.__class__ = InstantRows
    return index


def _each(batcher: Batcher, texts: list[str]) -> list[Any]:
    return [batcher.search(b"scope", text, NEIGHBOURS) for text in texts]


def _together(batcher: Batcher, texts: list[str]) -> list[Any]:
    parts = (texts[at : at + TOGETHER] for at in range(0, len(texts), TOGETHER))
    return [batcher.search_many([b"scope"] * len(some), some, NEIGHBOURS) for some in parts]


def main() -> None:
    """Print a row for each way to ask, at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=1024, help="lookups of a wave")
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 100_000], help="sizes of the scope")
    arguments = parser.parse_args()
    print(machine())
    print("| rows | asked | a second | at best | us of CPU each, at best | embed ms | search ms |")
    print(f"|{'--:|' * 7}")
    fresh = count()
    for rows in arguments.rows:
        batcher = Batcher(Table(), partial(_index, rows), perf_counter, on_fault=print, max_pending=10**6)
        batcher.embed("warm").result(600)
        for what, ask in (("one by one", _each), (f"{TOGETHER:,} a call", _together)):
            took, cpu, parts = [], [], []
            for _ in range(WAVES):
                texts = [f"question {next(fresh)}" for _ in range(arguments.at_once)]
                began, began_cpu = perf_counter(), process_time()
                found = [future.result(120) for future in ask(batcher, texts)]
                took.append(perf_counter() - began)
                cpu.append(process_time() - began_cpu)
                flat = found if ask is _each else [one for some in found for one in some]
                parts.append([sum({getattr(one, part) for one in flat}) / 1e6 for part in ("embed_ns", "search_ns")])
            embed, search = np.median(parts, axis=0)
            n = arguments.at_once
            print(
                f"| {rows:,} | {what} | {n / statistics.median(took):,.0f} | {n / min(took):,.0f} "
                f"| {min(cpu) / n * 1e6:.1f} | {embed:.1f} | {search:.1f} |",
                flush=True,
            )
        batcher.close()


if __name__ == "__main__":
    main()
