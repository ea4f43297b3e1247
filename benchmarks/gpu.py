"""What do embedding, search and the whole near lookup take on a GPU, beside what the device itself could do?

    python benchmarks/gpu.py --json FILE [--pairs PAIRS.jsonl]     under ten minutes on one GPU
    python benchmarks/gpu.py --only embed step                     parts by name
    python benchmarks/gpu.py --quick                               small sizes; runs on a CPU too

Each figure is printed, and the JSON written, as soon as it is there.

A floor is the time that the bytes (each read once) or the operations take at the ceilings measured in this very run,
whichever is longer. Times are medians, warm, of a call and the wait for it; "in a row": of many queued. Several copies
of small matrices are read in turn, lest the device's cache be measured. Texts are new in every call, so that none is
remembered. `encode` tokenises serially, as our embedder sets it, unless TOKENIZERS_PARALLELISM=true. The model is the
folder that SEMCACHE_TEST_MODEL names, else the default. `over_twice` is the share of times over twice the median. No
section is begun after nine minutes; which were left out is said. JSON has what each took.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from time import perf_counter

from gpu_bench import FULL, QUICK, Bench, line, told_machine
from gpu_embed import ceilings, embed, layers, padding, parity, tokens
from gpu_search import arriving, crossover, large, search_faiss, search_ours, search_torch, shards
from gpu_step import beside, cached, plain, spin, step, step_small

SECTIONS = (
    ceilings, tokens, padding, embed, step, cached, search_ours, arriving, shards, large, beside, crossover, plain,
    layers, parity, search_torch, spin, search_faiss,
)  # fmt: skip
EXTRA = (step_small,)
MOST_SECONDS = 540.0
HEAD = f"| what | of | batch | ms | in a row | per s | floor ms | floor / time | more |\n|---|---|{'--:|' * 6}---|"


def main() -> int:
    """Run every section, whatever becomes of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--pairs", type=Path, help="JSON lines with texts `a` and `b`, to compare decisions on")
    parser.add_argument("--only", nargs="*", default=[], help="sections, by name")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="SIZE=N,N", help="other sizes, as rows=1000000 batches=1,32"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sizes = dict(QUICK if arguments.quick else FULL)
    for name, _, told in (one.partition("=") for one in arguments.set):
        sizes[name] = tuple(map(int, told.split(","))) if isinstance(sizes[name], tuple) else type(sizes[name])(told)
    bench = Bench(sizes, arguments.pairs, arguments.json)
    print(told_machine(), flush=True)
    known = {section.__name__: section for section in (*SECTIONS, *EXTRA)}
    if unknown := set(arguments.only) - known.keys():
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    failed, left_out, began = [], [], perf_counter()
    for section in [known[name] for name in arguments.only] or SECTIONS:
        start = perf_counter()
        if start - began > MOST_SECONDS:
            left_out.append(section.__name__)
            continue
        print(f"-- {section.__name__}, after {start - began:.0f} s", flush=True)
        try:
            section(bench)
        except Exception:  # noqa: BLE001 - the others are still worth having
            failed.append(section.__name__)
            traceback.print_exc()
        bench.sections[section.__name__] = perf_counter() - start
        bench.save(failed=failed, left_out=left_out, seconds=perf_counter() - began)
    print(f"\n{told_machine()}; {perf_counter() - began:.0f} s\n\n{HEAD}")
    print(*map(line, bench.rows), sep="\n")
    print("took:", ", ".join(f"{name} {took:.0f} s" for name, took in bench.sections.items()))
    print(f"failed: {', '.join(failed) or 'nothing'}; left out: {', '.join(left_out) or 'nothing'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
