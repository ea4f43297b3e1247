"""What do 1,000,000 rows in 300,000 scopes cost, in memory and for the caller that adds or removes one?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROWS, SCOPES, LARGE, DIMENSION = 1_000_000, 300_000, 20, 384


def test_million_rows(pairs):
    """The bars: 450 bytes a row beyond vector and text; insert and remove under 50 us for the caller."""
    child = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    figures = json.loads(child.stdout)
    pairs.record(
        "1,000,000 rows in 300,000 scopes: bytes a row beyond vector and text (resident); below it, us a call",
        ratio=figures["extra_bytes"],
        bar=450.0,
        higher_is_better=False,
        medians={name: value for name, value in figures.items() if name not in ("extra_bytes", "rows")},
        unit="us",
    )
    assert figures["rows"] == ROWS
    pairs.once(lambda: None)


def _measure() -> dict[str, float]:
    """Fill an index in a process of its own, so that what grows is the index."""
    import gc
    import os
    import random
    from array import array
    from time import perf_counter

    import faiss
    import numpy as np

    from semcache.semantic.index import FlatIndex

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    generator = np.random.default_rng(0)
    pool = generator.standard_normal((4096, DIMENSION)).astype(np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    faiss.knn(pool[:2], pool, 4)
    order = list(range(ROWS))
    random.Random(0).shuffle(order)
    order = array("l", order)
    alone = SCOPES - LARGE  # so many scopes of one row; the other rows are shared out among the large ones
    index = FlatIndex(DIMENSION, 10**13)
    inserts, removes = array("d", bytes(8 * ROWS)), array("d", bytes(8 * ROWS // 2))
    gc.collect()
    before = resident_bytes()
    text_bytes = 0
    for number, row in enumerate(order):
        key = row.to_bytes(20, "little")
        scope = (row if row < alone else 2**40 + row % LARGE).to_bytes(20, "big")
        text = f"{number:>60}"
        text_bytes += sys.getsizeof(text)
        began = perf_counter()
        index.add(key, scope, pool[number & 4095], text, 1e9)
        inserts[number] = perf_counter() - began
    gc.collect()
    extra = resident_bytes() - before - text_bytes - 2 * DIMENSION * ROWS
    rows = len(index)
    for number in range(ROWS // 2):
        key = order[number].to_bytes(20, "little")
        began = perf_counter()
        index.remove(key)
        removes[number] = perf_counter() - began

    def percentile(times, share):
        return float(np.percentile(np.asarray(times), share)) * 1e6

    return {
        "extra_bytes": extra / ROWS,
        "rows": rows,
        "insert p50": percentile(inserts, 50),
        "insert p99.9": percentile(inserts, 99.9),
        "remove p50": percentile(removes, 50),
        "remove p99.9": percentile(removes, 99.9),
    }


if __name__ == "__main__":
    print(json.dumps(_measure()))
