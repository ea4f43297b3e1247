"""What do embedding, search and the whole near lookup take on a GPU, beside what the device itself could do?

    python benchmarks/gpu.py --json FILE [--pairs PAIRS.jsonl]     a few minutes on one GPU
    python benchmarks/gpu.py --quick                               small sizes; runs on a CPU too

A floor is the time that the bytes (each read once) or the operations take at the ceilings measured in this very run,
whichever is longer. Times are medians, warm, of a call and the wait for it; "in a row": of many queued. Several copies
of small matrices are read in turn, lest the device's cache be measured. Tokenising is serial, as our embedder sets it,
unless TOKENIZERS_PARALLELISM=true. The model is the folder that SEMCACHE_TEST_MODEL names, else the default.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch  # before FAISS: who comes first brings the CUDA libraries
from run import machine

import semcache
from semcache.semantic.batcher import Batcher
from semcache.semantic.embedder import SentenceTransformerEmbedder
from semcache.semantic.index import FlatIndex

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MODEL = os.environ.get("SEMCACHE_TEST_MODEL") or "all-MiniLM-L6-v2"
TRAFFIC = Path(__file__).parent.parent / "examples" / "traffic" / "support.jsonl"
DIMENSION, NEIGHBOURS = 384, 4
FLOP_PER_TOKEN = 2 * 6 * 12 * DIMENSION**2
"""Of the six layers' matrices; attention comes to it by length."""
ROTATED_BYTES = 200_000_000
FULL: dict[str, Any] = {
    "seconds": 1.5, "copy": 2**31, "matmul": 8192, "batches": (1, 32, 256, 1024), "tokens": (16, 128),
    "rows": (10_000, 100_000, 1_000_000), "queries": (1, 64, 256), "asked": 300, "gathered": 4096, "callers": (32, 128),
}  # fmt: skip
QUICK: dict[str, Any] = {
    "seconds": 0.1, "copy": 2**24, "matmul": 512, "batches": (1, 32), "tokens": (16,), "rows": (1000, 10_000),
    "queries": (1, 64), "asked": 30, "gathered": 256, "callers": (8,),
}  # fmt: skip


@dataclass
class Bench:
    """What a run is given, and what it found."""

    sizes: dict[str, Any]
    pairs: Path | None
    json: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)

    def floor(self, n_bytes: float, flop: float, dtype: str) -> float | None:
        """Seconds that the device itself needs, if its ceilings were measured."""
        if dtype not in self.ceilings:
            return None
        return max(n_bytes / self.ceilings["copy"], flop / self.ceilings[dtype])

    def row(self, what: str, size: str, batch: int, seconds: float, **more: Any) -> None:
        """Note a figure: `seconds` of a call; beside it `floor_s`, `in_a_row_s`, and whatever else is told."""
        self.rows.append({"what": what, "size": size, "batch": batch, "seconds": seconds, **more})
        print(_line(self.rows[-1]), flush=True)

    def save(self, **more: Any) -> None:
        if self.json is not None:
            told = {"machine": _machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "ceilings": self.ceilings}
            self.json.write_text(json.dumps(told | {"rows": self.rows} | more, indent=1) + "\n")


def _machine() -> str:
    import faiss

    gpu = f"one {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, " if CUDA else "no GPU, "
    return f"{gpu}{machine()}, faiss {faiss.__version__}"


def _line(row: dict[str, Any]) -> str:
    told, floor = dict(row), row.get("floor_s")
    seconds, row_s = told["seconds"], told.get("in_a_row_s")
    cells = [
        told["what"], told["size"], f"{told['batch']:,}", f"{seconds * 1e3:.3f}", f"{row_s * 1e3:.3f}" if row_s else "",
        f"{told['batch'] / seconds:,.0f}" if told["batch"] > 1 else "", f"{floor * 1e3:.4f}" if floor else "",
        f"{floor / (row_s or seconds):.1%}" if floor else "",
        ", ".join(f"{name} {value:.4g}" for name, value in list(told.items())[4:] if not name.endswith("_s")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _in_turn(jobs: dict[str, Any], seconds: float, *, least: int = 5, most: int = 200) -> dict[str, float]:
    """Time jobs in turn, each with its wait for the device, for so long in all; return medians."""
    for job in [*jobs.values()] * 3:
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    end = perf_counter() + seconds
    for number in range(most):
        if number >= least and perf_counter() > end:
            break
        for name, job in jobs.items():
            _wait()
            began = perf_counter()
            job()
            _wait()
            times[name].append(perf_counter() - began)
    return {name: statistics.median(one) for name, one in times.items()}


def _in_a_row(job: Any, calls: int = 20, rounds: int = 7) -> float:
    """Return what a call takes when many are queued and only the last is waited for."""
    times = []
    for _ in range(rounds):
        _wait()
        began = perf_counter()
        for _ in range(calls):
            job()
        _wait()
        times.append((perf_counter() - began) / calls)
    return statistics.median(times)


def ceilings(bench: Bench) -> None:
    """What the device does at best: a large copy, large matrix products."""
    source = torch.randint(0, 255, (bench.sizes["copy"],), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    took = _in_a_row(lambda: target.copy_(source))
    bench.ceilings["copy"] = 2 * source.nbytes / took
    bench.row("copy, TB/s", f"{source.nbytes:,} B", 1, took, rate=bench.ceilings["copy"] / 1e12)
    n = bench.sizes["matmul"]
    for dtype in ("bfloat16", "float16", "float32"):
        left, right = (torch.randn(n, n, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
        took = _in_a_row(lambda left=left, right=right: left @ right, calls=10 if dtype != "float32" else 3)
        bench.ceilings[dtype] = 2 * n**3 / took
        bench.row(f"matrix product {dtype}, TFLOP/s", f"{n}³", 1, took, rate=bench.ceilings[dtype] / 1e12)


def parity(bench: Bench) -> None:
    """How far the precisions are from float32 on the CPU, and how many decisions on pairs of texts differ."""
    flat = _questions()[:400]
    if bench.pairs is not None:
        flat = [pair[side] for pair in map(json.loads, bench.pairs.read_text().splitlines()) for side in ("a", "b")]
    reference = SentenceTransformerEmbedder(MODEL, device="cpu")(flat)
    here = (reference[::2] * reference[1::2]).sum(axis=1)
    for dtype in ("float32", "float16", "bfloat16") if CUDA else ("float32",):
        embedder = SentenceTransformerEmbedder(MODEL, device=DEVICE, dtype=dtype)
        embedder(flat)
        began = perf_counter()
        vectors = embedder(flat)
        took = perf_counter() - began
        there = (vectors[::2] * vectors[1::2]).sum(axis=1)
        error = float(np.linalg.norm(vectors - reference) / np.linalg.norm(reference))
        flips = {f"differ at {cut:.2f}": int(((here >= cut) != (there >= cut)).sum()) for cut in (0.85, 0.90, 0.95)}
        bench.row(
            f"ours {dtype} beside the CPU's float32", f"{len(flat) // 2:,} pairs", len(flat), took,
            error=error, worst=float(np.abs(here - there).max()), **flips,
        )  # fmt: skip


def embed(bench: Bench) -> None:
    """From Python strings to float32 vectors on the host: ours beside the model's own `encode`."""
    from sentence_transformers import SentenceTransformer

    dtypes = ("float16", "bfloat16", "float32") if CUDA else ("float32",)
    ours = {dtype: SentenceTransformerEmbedder(MODEL, device=DEVICE, dtype=dtype) for dtype in dtypes}
    for embedder in ours.values():
        embedder.load()
    folder = str(ours[dtypes[0]]._path)
    theirs = {dtype: SentenceTransformer(folder, device=DEVICE).to(getattr(torch, dtype)) for dtype in dtypes}
    for tokens in bench.sizes["tokens"]:
        for batch in bench.sizes["batches"]:
            texts = _texts(ours[dtypes[0]], tokens, batch)
            real = sum(len(ours[dtypes[0]]._tokenizer.encode(text).ids) for text in texts)
            jobs: dict[str, Any] = {}
            for dtype in dtypes:
                jobs[f"ours {dtype}"] = lambda dtype=dtype, texts=texts: ours[dtype](texts)
                jobs[f"encode {dtype}"] = lambda dtype=dtype, texts=texts: theirs[dtype].encode(
                    texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False
                )
            for name, took in _in_turn(jobs, bench.sizes["seconds"] * len(jobs) / 2).items():
                flop = real * (FLOP_PER_TOKEN + 4 * 6 * DIMENSION * real / batch)
                weights = FLOP_PER_TOKEN * (2 if name.endswith("32") else 1)  # bytes, at two operations a weight
                floor = bench.floor(weights, flop, name.split()[1])
                bench.row(name, f"{real / batch:.0f} tokens", batch, took, floor_s=floor)
            _parts_of(bench, ours[dtypes[0]], texts, f"{real / batch:.0f} tokens")


def _parts_of(bench: Bench, embedder: Any, texts: list[str], size: str) -> None:
    """Where ours spends its time: tokens, the device, and the count of tokens that the worker adds."""
    model, kept = embedder._model, texts[:256]  # as many as go to the device at once
    features = {name: value.to(DEVICE) for name, value in model.preprocess(kept).items() if hasattr(value, "to")}

    def forward() -> Any:
        with torch.inference_mode():
            return model(dict(features))["sentence_embedding"]

    jobs = {
        "· preprocess": lambda: model.preprocess(kept),
        "· forward": forward,
        "· covers, each text": lambda: [embedder.covers(text) for text in kept],
    }
    for name, took in _in_turn(jobs, bench.sizes["seconds"]).items():
        bench.row(name, size, len(kept), took)


def _questions() -> list[str]:
    lines = [json.loads(line) for line in TRAFFIC.read_text(encoding="utf-8").splitlines()]
    questions = dict.fromkeys(line["request"]["messages"][-1]["content"] for line in lines)
    return [question for question in questions if question.isascii() and 0 < len(question) < 120]


def _texts(embedder: Any, tokens: int, n: int) -> list[str]:
    """Make texts of about so many tokens out of the desk's words."""
    words = np.array(" ".join(_questions()).split())
    generator = np.random.default_rng(tokens)
    per_word = len(embedder._tokenizer.encode(" ".join(words)).ids) / len(words)
    return [" ".join(generator.choice(words, max(1, round((tokens - 2) / per_word)))) for _ in range(n)]


def _matrices(rows: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Make copies of random unit vectors, so many that they do not stay in the device's cache."""
    one = torch.nn.functional.normalize(torch.randn(rows, DIMENSION, device=DEVICE), dim=1).to(dtype)
    copies = math.ceil(ROTATED_BYTES / one.nbytes) if CUDA else 1
    return [one.clone() for _ in range(copies)]


def _search(bench: Bench, name: str, dtype: str, make: Any) -> None:
    """Time a search in all sizes; `make(matrix)` returns a function from queries to (similarities, places)."""
    for rows in bench.sizes["rows"]:
        matrices = _matrices(rows, getattr(torch, dtype))
        searches = [make(matrix) for matrix in matrices]
        for batch in bench.sizes["queries"]:
            queries = torch.nn.functional.normalize(torch.randn(batch, DIMENSION, device=DEVICE), dim=1)
            found = searches[0](queries)[0]
            exact = (queries @ matrices[0].T.float()).topk(NEIGHBOURS).values
            off = (found - exact).abs().amax().item()
            assert off < 5e-3, f"{name} is off by {off} at {rows} rows, batch {batch}"
            turn = count()

            def job(queries: Any = queries, turn: Any = turn, searches: Any = searches) -> Any:
                return searches[next(turn) % len(searches)](queries)

            took = _in_turn({name: job}, bench.sizes["seconds"] / 2)[name]
            width = matrices[0].element_size()
            floor = bench.floor((rows + batch) * DIMENSION * width, 2 * rows * DIMENSION * batch, dtype)
            bench.row(
                name, f"{rows:,} rows", batch, took, floor_s=floor,
                in_a_row_s=_in_a_row(job, calls=20 if took < 0.05 else 2), off=off,
            )  # fmt: skip
        del searches, matrices


def search_torch(bench: Bench) -> None:
    """The search in plain PyTorch: a matrix product, and the largest of each row."""
    for dtype in ("float16", "float32") if CUDA else ("float32",):
        _search(
            bench, f"PyTorch {dtype}", dtype,
            lambda matrix: lambda queries: (queries.to(matrix.dtype) @ matrix.T).topk(NEIGHBOURS),
        )  # fmt: skip


def search_ours(bench: Bench) -> None:
    """What stands: the flat index on the CPU, one scope of all rows. No floor: the device has no part in it."""
    for rows in bench.sizes["rows"]:
        index = _filled(rows)
        for batch in bench.sizes["queries"]:
            queries = _unit(batch)
            scopes = [b"scope"] * batch
            job = {"ours": lambda q=queries, s=scopes, i=index: i.search(s, q, NEIGHBOURS, 0.0)}
            took = _in_turn(job, bench.sizes["seconds"] / 2, least=3)["ours"]
            bench.row("FlatIndex on the CPU, float32", f"{rows:,} rows", batch, took)


def _unit(n: int) -> Any:
    vectors = np.random.default_rng(n).standard_normal((n, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _filled(rows: int) -> FlatIndex:
    index = FlatIndex(DIMENSION, 10**11)
    for number, vector in enumerate(_unit(rows)):
        index.add(number.to_bytes(8, "little"), b"scope", vector, "a text", math.inf)
    return index


def step(bench: Bench) -> None:
    """The step as it stands through the Batcher: embedded on the device, searched on the CPU."""
    questions, fresh = _questions(), count()

    def asked() -> str:
        number = next(fresh)
        return f"{questions[number % len(questions)]} ({number})"

    for rows in bench.sizes["rows"]:
        batcher = Batcher(
            SentenceTransformerEmbedder(MODEL, device=DEVICE), lambda _, rows=rows: _filled(rows), perf_counter,
            on_fault=lambda reason, error: print("fault:", reason, error), max_pending=10**6,
        )  # fmt: skip
        batcher.warm().result(300)
        for _ in range(10):
            batcher.search(b"scope", asked(), NEIGHBOURS).result(60)
        times, founds = [], []
        fewer = 8 if rows > 100_000 else 1
        for _ in range(bench.sizes["asked"] // fewer):
            text = asked()
            began = perf_counter()
            founds.append(batcher.search(b"scope", text, NEIGHBOURS).result(60))
            times.append(perf_counter() - began)
        bench.row(
            "Batcher, one request, idle", f"{rows:,} rows", 1, statistics.median(times),
            p99_ms=float(np.percentile(times, 99)) * 1e3,
            embed_ms=statistics.median(found.embed_ns for found in founds) / 1e6,
            search_ms=statistics.median(found.search_ns for found in founds) / 1e6,
        )  # fmt: skip
        waves, gathered = [], bench.sizes["gathered"] // fewer
        for _ in range(3):
            texts = [asked() for _ in range(gathered)]
            began = perf_counter()
            for future in [batcher.search(b"scope", text, NEIGHBOURS) for text in texts]:
                future.result(120)
            waves.append(perf_counter() - began)
        bench.row("Batcher, requests gathered", f"{rows:,} rows", gathered, statistics.median(waves))
        batcher.close()


def cached(bench: Bench) -> None:
    """Near hits of a decorated function, by one caller and by many threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", semcache.UnmeasuredThresholdWarning)
        cache = semcache.Cache(
            embedder=MODEL, device=DEVICE, policy=semcache.Threshold(0.5), tenant=semcache.SHARED,
            timeouts=semcache.Timeouts(semantic="60s"),
        )  # fmt: skip
    cache.warm()
    answer = semcache.cached(cache, text="question", version="1")(lambda question: f"An answer to: {question}")
    questions, fresh = _questions(), count()
    for question in questions:
        answer(question)
    assert cache.flush(120)

    def ask(_: int = 0) -> float:
        number = next(fresh)
        began = perf_counter()
        answer(f"{questions[number % len(questions)]} ({number})")
        return perf_counter() - began

    times = [ask() for _ in range(bench.sizes["asked"] + 10)][10:]
    size = f"{len(questions)} rows"
    p99 = float(np.percentile(times, 99)) * 1e3
    bench.row("cached function, near hit, idle", size, 1, statistics.median(times), p99_ms=p99)
    for callers in bench.sizes["callers"]:
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(ask, range(callers)))
            before, began = dict(cache.stats().tiers["semantic"]), perf_counter()
            list(pool.map(ask, range(8 * callers)))
            took, after = perf_counter() - began, cache.stats().tiers["semantic"]
        mean = (after["batched"] - before["batched"]) / (after["batches"] - before["batches"])
        bench.row(f"cached function, {callers} threads", size, 8 * callers, took, mean_batch=mean)
    assert not cache.stats().faults, cache.stats().faults
    cache.close()


def bare(bench: Bench) -> None:
    """The step as a GPU could do it: `encode` in half precision, a search in PyTorch, only the finds to the host."""
    from sentence_transformers import SentenceTransformer

    dtype = torch.float16 if CUDA else torch.float32
    model = SentenceTransformer(str(SentenceTransformerEmbedder(MODEL)._path), device=DEVICE).to(dtype)
    questions, fresh = _questions(), count()
    for rows in bench.sizes["rows"]:
        matrix = _matrices(rows, dtype)[0]
        for batch in bench.sizes["queries"]:

            def job(batch: int = batch, matrix: Any = matrix) -> Any:
                texts = [f"{questions[next(fresh) % len(questions)]} ({number})" for number in range(batch)]
                vectors = model.encode(texts, batch_size=256, convert_to_tensor=True, show_progress_bar=False)
                return [found.cpu() for found in (vectors @ matrix.T).topk(NEIGHBOURS)]

            took = _in_turn({"bare": job}, bench.sizes["seconds"])["bare"]
            bench.row("encode and search on the device, in half", f"{rows:,} rows", batch, took)


def search_knn(bench: Bench) -> None:
    """FAISS on tensors of the device, no index. It comes late: an error inside CUDA may end the process."""
    import faiss
    import faiss.contrib.torch_utils

    product = faiss.METRIC_INNER_PRODUCT
    if not CUDA:
        _search(bench, "faiss.knn", "float32", lambda m: lambda q: faiss.knn(q, m, NEIGHBOURS, metric=product))
        return
    resources = faiss.StandardGpuResources()
    for dtype in ("float16", "float32"):
        _search(
            bench, f"faiss.knn_gpu {dtype}", dtype,
            lambda m: lambda q: faiss.knn_gpu(resources, q.to(m.dtype), m, NEIGHBOURS, metric=product),
        )  # fmt: skip


def search_index(bench: Bench) -> None:
    """FAISS's flat index on the device."""
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources() if CUDA else None

    def flat(matrix: Any) -> Any:
        if CUDA:
            settings = faiss.GpuIndexFlatConfig()
            settings.useFloat16 = matrix.dtype == torch.float16
            index = faiss.GpuIndexFlatIP(resources, DIMENSION, settings)
        else:
            index = faiss.IndexFlatIP(DIMENSION)
        index.add(matrix.float())
        return lambda queries: index.search(queries, NEIGHBOURS)

    for dtype in ("float16", "float32") if CUDA else ("float32",):
        _search(bench, f"{'GpuIndexFlatIP' if CUDA else 'IndexFlatIP'} {dtype}", dtype, flat)


SECTIONS = (ceilings, parity, embed, step, cached, search_ours, search_torch, bare, search_knn, search_index)
HEAD = f"| what | of | batch | ms | in a row | per s | floor ms | floor / time | more |\n|---|---|{'--:|' * 6}---|"


def main() -> int:
    """Run every section, whatever becomes of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--pairs", type=Path, help="JSON lines with texts `a` and `b`, to compare decisions on")
    parser.add_argument("--only", nargs="*", default=[], help="sections, by name")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    bench = Bench(QUICK if arguments.quick else FULL, arguments.pairs, arguments.json)
    print(_machine(), flush=True)
    failed, began = [], perf_counter()
    for section in SECTIONS:
        if arguments.only and section.__name__ not in arguments.only:
            continue
        print(f"-- {section.__name__}, after {perf_counter() - began:.0f} s", flush=True)
        try:
            section(bench)
        except Exception:  # noqa: BLE001 - the others are still worth having
            failed.append(section.__name__)
            traceback.print_exc()
        bench.save(failed=failed, seconds=perf_counter() - began)
    print(f"\n{_machine()}; {perf_counter() - began:.0f} s\n\n{HEAD}")
    print(*map(_line, bench.rows), sep="\n")
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
