"""What does `import semcache` cost a program that may never use it?"""

from __future__ import annotations

import statistics
import subprocess
import sys
from time import perf_counter


def _seconds(statement):
    began = perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return perf_counter() - began


def test_import(pairs):
    """The bar: at most 30 ms more than `import asyncio`."""
    ours, bare = [], []
    for _ in range(25):
        ours.append(_seconds("import semcache"))
        bare.append(_seconds("import asyncio"))
    more_ms = statistics.median(one - other for one, other in zip(ours, bare, strict=True)) * 1e3
    pairs.record(
        "import semcache, milliseconds more than import asyncio",
        ratio=more_ms,
        bar=30.0,
        higher_is_better=False,
        medians={"ours": statistics.median(ours) * 1e3, "bare": statistics.median(bare) * 1e3},
        unit="ms",
    )
    pairs.once(lambda: _seconds("import semcache"))
