"""What do embedding, search and the whole near lookup take on a GPU, beside what the device itself could do?

    python benchmarks/gpu.py --json FILE [--pairs PAIRS.jsonl]     some four minutes on one GPU
    python benchmarks/gpu.py --only embed step                     parts by name
    python benchmarks/gpu.py --quick                               small sizes; runs on a CPU too

Each figure is printed, and the JSON written, as soon as it is there.

A floor is the time that the bytes (each read once) or the operations take at the ceilings measured in this very run,
whichever is longer. Times are medians, warm, of a call and the wait for it; "in a row": of many queued. Several copies
of small matrices are read in turn, lest the device's cache be measured. Texts are new in every call, so that none is
remembered. `encode` tokenises serially, as our embedder sets it, unless TOKENIZERS_PARALLELISM=true. The model is the
folder that SEMCACHE_TEST_MODEL names, else the default.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
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
from semcache.semantic.device import DeviceIndex
from semcache.semantic.embedder import SentenceTransformerEmbedder
from semcache.semantic.index import FlatIndex
from semcache.semantic.rows import DeviceRows
from semcache.semantic.tokens import Tokens

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MODEL = os.environ.get("SEMCACHE_TEST_MODEL") or "all-MiniLM-L6-v2"
TRAFFIC = Path(__file__).parent.parent / "examples" / "traffic" / "support.jsonl"
DIMENSION, NEIGHBOURS = 384, 4
FLOP_PER_TOKEN = 2 * 6 * 12 * DIMENSION**2
"""Of the six layers' matrices; attention comes to it by length."""
ROTATED_BYTES = 200_000_000
FULL: dict[str, Any] = {
    "seconds": 1.0, "copy": 2**31, "matmul": 8192, "batches": (1, 32, 256, 1024, 4096), "tokens": (16, 128),
    "rows": (10_000, 100_000, 1_000_000), "queries": (1, 64, 256), "asked": 300, "gathered": 4096, "callers": (32, 128),
    "pairs": 2000, "large": 10_000_000, "split": 2048, "inserted": 1000, "layers": 24,
}  # fmt: skip
QUICK: dict[str, Any] = {
    "seconds": 0.1, "copy": 2**24, "matmul": 512, "batches": (1, 32), "tokens": (16,), "rows": (1000, 10_000),
    "queries": (1, 64), "asked": 30, "gathered": 256, "callers": (8,), "pairs": 50, "large": 20_000, "split": 256,
    "inserted": 100, "layers": 1,
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
        self.save()

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
    for dtype in ("bfloat16", "float16", "float32") if CUDA else ("float32",):
        left, right = (torch.randn(n, n, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
        took = _in_a_row(lambda left=left, right=right: left @ right, calls=10 if dtype != "float32" else 3)
        bench.ceilings[dtype] = 2 * n**3 / took
        bench.row(f"matrix product {dtype}, TFLOP/s", f"{n}³", 1, took, rate=bench.ceilings[dtype] / 1e12)


def parity(bench: Bench) -> None:
    """How far half precision by graphs is from float32 on the CPU, and how many decisions on pairs of texts differ."""
    flat = _questions()[:400]
    if bench.pairs is not None:
        lines = bench.pairs.read_text().splitlines()[: bench.sizes["pairs"]]
        flat = [pair[side] for pair in map(json.loads, lines) for side in ("a", "b")]
    reference = SentenceTransformerEmbedder(MODEL, device="cpu")(flat)
    here = (reference[::2] * reference[1::2]).sum(axis=1)
    for dtype in ("float16", "bfloat16") if CUDA else ("float32",):
        embedder = SentenceTransformerEmbedder(MODEL, device=DEVICE, dtype=dtype)
        embedder(flat)
        began = perf_counter()
        vectors = embedder(flat)
        took = perf_counter() - began
        there = (vectors[::2] * vectors[1::2]).sum(axis=1)
        error = float(np.linalg.norm(vectors - reference) / np.linalg.norm(reference))
        flips = {f"differ at {cut:.2f}": int(((here >= cut) != (there >= cut)).sum()) for cut in (0.85, 0.90, 0.95)}
        bench.row(
            f"ours {dtype}, {embedder.path}, beside the CPU's float32", f"{len(flat) // 2:,} pairs", len(flat), took,
            error=error, worst=float(np.abs(here - there).max()), **flips,
        )  # fmt: skip


def tokens(bench: Bench) -> None:
    """Texts split by the tokenizer, serially and in slices on threads, and word by word; `covers` needs no more."""
    embedder = SentenceTransformerEmbedder(MODEL, device="cpu")
    embedder.load()
    tokenizer = embedder._tokenizer
    for length in bench.sizes["tokens"]:
        texts = _texts(embedder, length, bench.sizes["split"])
        by_words, by_threads = Tokens(tokenizer), Tokens(tokenizer)
        by_threads._words = None

        def split(tokens: Tokens, texts: list[str] = texts) -> None:
            tokens._texts = {}
            tokens.prepare(texts)

        jobs = {
            "tokenizer, one by one": lambda texts=texts: [tokenizer.encode(text).ids for text in texts],
            "ours, in slices on threads": lambda split=split, tokens=by_threads: split(tokens),
            "ours, word by word": lambda split=split, tokens=by_words: split(tokens),
        }
        for name, took in _in_turn(jobs, bench.sizes["seconds"], least=3).items():
            bench.row(name, f"{length} tokens", len(texts), took, us_each=took / len(texts) * 1e6)


def embed(bench: Bench) -> None:
    """From Python strings to float32 vectors on the host: ours beside the model's own `encode`."""
    from sentence_transformers import SentenceTransformer

    dtype = "float16" if CUDA else "float32"
    ours = SentenceTransformerEmbedder(MODEL, device=DEVICE, dtype=dtype)
    ours.load()
    theirs = SentenceTransformer(str(ours._path), device=DEVICE).to(getattr(torch, dtype))
    print(f"ours: {ours.path}")
    for length in bench.sizes["tokens"]:
        for batch in bench.sizes["batches"]:
            sets = [_texts(ours, length, batch, seed) for seed in range(8)]
            real = statistics.mean(len(ours._tokenizer.encode(text).ids) for text in sets[0]) * batch
            turn = count()

            def mine(sets: Any = sets, turn: Any = turn) -> Any:
                ours._tokens._texts = {}
                return ours(sets[next(turn) % len(sets)])

            def plain(sets: Any = sets, turn: Any = turn) -> Any:
                return theirs.encode(
                    sets[next(turn) % len(sets)], batch_size=256, normalize_embeddings=True, show_progress_bar=False
                )

            for _ in sets:  # each captures what it needs
                mine()
            graphs = ours._passes.graphs if ours._passes else 0
            flop = real * (FLOP_PER_TOKEN + 4 * 6 * DIMENSION * real / batch)
            floor = bench.floor(FLOP_PER_TOKEN, flop, dtype)  # bytes of the weights, at two operations each
            took = _in_turn({"ours": mine, "encode": plain}, bench.sizes["seconds"], least=4)
            for name, one in took.items():
                more = {"times": took["encode"] / took["ours"], "graphs": graphs} if name == "ours" else {}
                bench.row(f"{name} {dtype}", f"{real / batch:.0f} tokens", batch, one, floor_s=floor, **more)
            if ours._passes and batch > 1:
                _parts_of(bench, ours, sets[0], f"{real / batch:.0f} tokens")


def _parts_of(bench: Bench, ours: Any, texts: list[str], size: str) -> None:
    """Where ours spends its time: tokens alone, passes alone, and how much of these is padding.

    That is what the passes compute beyond the texts' own tokens, in the slices that go to the device one after another;
    of a batch of at most 2,048 tokens it is free, and says nothing.
    """
    from semcache.semantic.passes import ahead, shapes

    ids = [ours._tokens(text) for text in texts]
    lengths = list(map(len, ids))
    slices = ahead(texts, ours.ahead)
    passes = [one for places in slices for one in shapes([lengths[place] for place in places])]
    padded = sum(rows * length for _, rows, length in passes) / sum(lengths) - 1

    def split() -> None:
        ours._tokens._texts = {}
        ours._tokens.prepare(texts)

    jobs = {
        "· tokens": split,
        "· passes": lambda: ours._passes(ids),
        "· passes, handed over": lambda: ours._passes.start(ids),
    }
    for name, took in _in_turn(jobs, bench.sizes["seconds"] / 2).items():
        bench.row(name, size, len(texts), took, padding=padded, passes=len(passes))


def _questions() -> list[str]:
    lines = [json.loads(line) for line in TRAFFIC.read_text(encoding="utf-8").splitlines()]
    questions = dict.fromkeys(line["request"]["messages"][-1]["content"] for line in lines)
    return [question for question in questions if question.isascii() and 0 < len(question) < 120]


def _texts(embedder: Any, tokens: int, n: int, seed: int = 0) -> list[str]:
    """Make texts of about so many tokens out of the desk's words."""
    words = np.array(" ".join(_questions()).split())
    generator = np.random.default_rng([tokens, seed])
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
    for dtype in ("float16",) if CUDA else ("float32",):
        _search(
            bench, f"PyTorch {dtype}", dtype,
            lambda matrix: lambda queries: (queries.to(matrix.dtype) @ matrix.T).topk(NEIGHBOURS),
        )  # fmt: skip


def search_ours(bench: Bench) -> None:
    """What stands on the device: one scope of all rows, from vectors on the host to keys on the host."""
    dtype = "float16" if CUDA else "float32"
    for rows in bench.sizes["rows"]:
        began = perf_counter()
        index = _filled(rows)
        index.search([b"scope"], _unit(1), NEIGHBOURS, 0.0)
        bench.row("DeviceIndex, filled", f"{rows:,} rows", rows, perf_counter() - began)
        floor_bytes = rows * DIMENSION * (2 if CUDA else 4)
        for batch in bench.sizes["queries"]:
            queries = _unit(batch)
            scopes = [b"scope"] * batch
            job = {"ours": lambda q=queries, s=scopes, i=index: i.search(s, q, NEIGHBOURS, 0.0)}
            for _ in range(70):  # few queries have a graph then
                job["ours"]()
            took = _in_turn(job, bench.sizes["seconds"] / 2)["ours"]
            floor = bench.floor(floor_bytes, 2 * rows * DIMENSION * batch, dtype)
            flat, where = [], list(index._device_rows._chunks)
            if batch == bench.sizes["queries"][-1]:
                exact = torch.cat([torch.from_numpy(queries).to(DEVICE) @ one.float().T for one in where], 1)
                flat = exact.argmax(1).cpu().tolist()
                found = [int.from_bytes(one[0].key, "little") for one in index.search(scopes, queries, NEIGHBOURS, 0.0)]
                flat = [sum(map(int.__eq__, flat, found)) / batch]
            bench.row(
                f"DeviceIndex {dtype}", f"{rows:,} rows", batch, took, floor_s=floor,
                graphs=len(index._device_rows._graphs), **({"recall@1": flat[0]} if flat else {}),
            )  # fmt: skip
        if index._device_rows.why:
            print("no graphs:", index._device_rows.why)
        _changes(bench, index, rows)


def _changes(bench: Bench, index: DeviceIndex, rows: int) -> None:
    """Rows put in and taken out of a full scope, each seen by the next search; and searches while rows come in."""
    n, serial = bench.sizes["inserted"], count()
    query = _unit(1)
    vectors = _unit(n)
    inserts, removes, beside = [], [], []
    for _ in range(10):
        keys = [f"new {next(serial)}".encode() for _ in range(n)]
        began = perf_counter()
        for key, vector in zip(keys, vectors, strict=True):
            index.add(key, b"scope", vector, "a text", math.inf)
        put = perf_counter()
        index.search([b"scope"], query, NEIGHBOURS, 0.0)
        done = perf_counter()
        inserts.append(put - began)
        beside.append(done - put)
        began = perf_counter()
        for key in keys:
            index.remove(key)
        removes.append(perf_counter() - began)
    bench.row("· inserted", f"{rows:,} rows", n, statistics.median(inserts), slowest_ms=max(inserts) * 1e3)
    bench.row("· the search behind it", f"{rows:,} rows", 1, statistics.median(beside), slowest_ms=max(beside) * 1e3)
    bench.row("· removed", f"{rows:,} rows", n, statistics.median(removes), slowest_ms=max(removes) * 1e3)


def crossover(bench: Bench) -> None:
    """From which size of a scope on the device is faster than the CPU."""
    for rows in (256, 512, 1024, 2048, 4096, 16384):
        flat, device = FlatIndex(DIMENSION, 10**10), DeviceIndex(DIMENSION, 10**10, device=DEVICE)
        for number, vector in enumerate(_unit(rows)):
            for index in (flat, device):
                index.add(number.to_bytes(8, "little"), b"scope", vector, "a text", math.inf)
        for batch in (1, 32):
            queries, scopes = _unit(batch), [b"scope"] * batch
            jobs = {"CPU": lambda q=queries, s=scopes, i=flat: i.search(s, q, NEIGHBOURS, 0.0)}
            jobs["device"] = lambda q=queries, s=scopes, i=device: i.search(s, q, NEIGHBOURS, 0.0)
            for _ in range(70):
                jobs["device"]()
            took = _in_turn(jobs, bench.sizes["seconds"] / 4)
            bench.row(
                "FlatIndex beside DeviceIndex", f"{rows:,} rows", batch, took["CPU"], device_ms=took["device"] * 1e3
            )


def large(bench: Bench) -> None:
    """Ten million rows: what the device does with them, without keys and texts."""
    dtype = torch.float16 if CUDA else torch.float32
    rows = DeviceRows(DIMENSION, DEVICE, dtype)
    slots = []
    while len(slots) << 10 < bench.sizes["large"]:
        slots.append(rows.take())
    whole = rows.together(slots)
    for chunk in rows._chunks:
        chunk.copy_(torch.nn.functional.normalize(torch.randn(chunk.shape, dtype=dtype, device=DEVICE), dim=1))
    for batch in (1, 64):
        queries = _unit(batch)
        for _ in range(70 if batch == 1 else 1):
            rows.search(whole, 1024, queries, 20)
        took = _in_turn({"ours": lambda q=queries: rows.search(whole, 1024, q, 20)}, bench.sizes["seconds"] / 2)["ours"]
        n = len(slots) << 10
        floor = bench.floor(n * DIMENSION * dtype.itemsize, 2 * n * DIMENSION * batch, "float16" if CUDA else "float32")
        bench.row("DeviceRows", f"{n:,} rows", batch, took, floor_s=floor, chunks=len(rows._chunks))


def _unit(n: int) -> Any:
    vectors = np.random.default_rng(n).standard_normal((n, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _filled(rows: int) -> DeviceIndex:
    index = DeviceIndex(DIMENSION, 10**11, device=DEVICE)
    for number, vector in enumerate(_unit(rows)):
        index.add(number.to_bytes(8, "little"), b"scope", vector, "a text", math.inf)
    return index


def step(bench: Bench) -> None:
    """The step through the Batcher: embedded on the device, searched on the device."""
    for rows in bench.sizes["rows"]:
        _step(bench, rows)


def step_small(bench: Bench) -> None:
    """The step at the fewest rows alone: what `spin` runs in other environments."""
    _step(bench, bench.sizes["rows"][0])


def _step(bench: Bench, rows: int) -> None:
    questions, fresh = _questions(), count()

    def asked() -> str:
        number = next(fresh)
        return f"{questions[number % len(questions)]} ({number})"

    def idle(what: str) -> None:
        times, founds = [], []
        for _ in range(bench.sizes["asked"]):
            text = asked()
            began = perf_counter()
            founds.append(batcher.search(b"scope", text, NEIGHBOURS).result(60))
            times.append(perf_counter() - began)
        slow = [founds[place] for place in np.argsort(times)[-max(3, len(times) // 50) :]]
        bench.row(
            what, f"{rows:,} rows", 1, statistics.median(times), p99_ms=float(np.percentile(times, 99)) * 1e3,
            embed_ms=statistics.median(found.embed_ns for found in founds) / 1e6,
            search_ms=statistics.median(found.search_ns for found in founds) / 1e6,
            slow_embed_ms=statistics.median(found.embed_ns for found in slow) / 1e6,
            slow_search_ms=statistics.median(found.search_ns for found in slow) / 1e6,
        )  # fmt: skip

    batcher = Batcher(
        SentenceTransformerEmbedder(MODEL, device=DEVICE), lambda _: _filled(rows), perf_counter,
        on_fault=lambda reason, error: print("fault:", reason, error), max_pending=10**6,
    )  # fmt: skip
    batcher.warm().result(300)
    for _ in range(80):  # the search's graph is made meanwhile
        batcher.search(b"scope", asked(), NEIGHBOURS).result(60)
    idle("Batcher, one request, idle")
    gc.collect()
    gc.freeze()
    idle("Batcher, one request, idle, what there was kept from the garbage collector")
    gc.unfreeze()

    def each(texts: list[str]) -> list[Any]:
        return [batcher.search(b"scope", text, NEIGHBOURS) for text in texts]

    def together(texts: list[str]) -> list[Any]:
        at_once = (texts[at : at + 1024] for at in range(0, len(texts), 1024))
        return [batcher.search_many([b"scope"] * len(some), some, NEIGHBOURS) for some in at_once]

    for what, hand_over in (("requests gathered", each), ("requests gathered, in calls of 1,024", together)):
        waves, handed = [], []
        for _ in range(4):
            texts = [asked() for _ in range(bench.sizes["gathered"])]
            before, began = batcher.stats(), perf_counter()
            futures = hand_over(texts)
            handed.append(perf_counter() - began)
            founds = [future.result(120) for future in futures]
            waves.append(perf_counter() - began)
            after = batcher.stats()
        founds = founds if hand_over is each else [found for some in founds for found in some]
        bench.row(
            f"Batcher, {what}", f"{rows:,} rows", bench.sizes["gathered"], statistics.median(waves[1:]),
            batches=after["batches"] - before["batches"], handed_over_ms=statistics.median(handed[1:]) * 1e3,
            embed_ms=sum({found.embed_ns for found in founds}) / 1e6,
            search_ms=sum({found.search_ns for found in founds}) / 1e6,
        )  # fmt: skip
    batcher.close()


def spin(bench: Bench) -> None:
    """The step and the threads in processes whose OpenMP threads do not spin, or are few."""
    for told in ("OMP_WAIT_POLICY=passive", "OMP_NUM_THREADS=4"):
        env = os.environ | dict([told.split("=")])
        command = [sys.executable, __file__, "--only", "step_small", "cached"]
        if bench.sizes["rows"] == QUICK["rows"]:
            command.append("--quick")
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
        kept = [line for line in done.stdout.splitlines() if line.startswith(("| Batcher", "| cached"))]
        print(f"{told}:", *kept[: len(kept) // 2], sep="\n", flush=True)


def layers(bench: Bench) -> None:
    """A model of 24 layers and 1,024 dimensions, random weights: how much of the matrix ceiling its passes reach."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    own = SentenceTransformerEmbedder(MODEL, device="cpu")
    own.load()
    width, n_layers = (1024, bench.sizes["layers"]) if CUDA else (64, 1)
    with tempfile.TemporaryDirectory() as folder:
        config = BertConfig(
            hidden_size=width, num_hidden_layers=n_layers, num_attention_heads=width // 64, intermediate_size=4 * width
        )
        BertModel(config).to(torch.bfloat16).save_pretrained(folder)
        own._model.tokenizer.save_pretrained(folder)
        made = Transformer(folder, max_seq_length=512)
        SentenceTransformer(modules=[made, Pooling(width)], device="cpu").save(f"{folder}/whole")
        embedder = SentenceTransformerEmbedder(f"{folder}/whole", device=DEVICE, dtype="bfloat16" if CUDA else None)
        embedder.load()
    print(f"ours: {embedder.path}")
    for length, batch in ((256, 256), (16, 1024)) if CUDA else ((16, 8),):
        texts = _texts(embedder, length, batch)
        real = sum(len(embedder._tokens(text)) for text in texts)
        embedder(texts)
        took = _in_turn({"ours": lambda texts=texts: embedder(texts)}, bench.sizes["seconds"], least=3)["ours"]
        flop = real * (24 * n_layers * width**2 + 4 * n_layers * width * real / batch)
        floor = bench.floor(0, flop, "bfloat16" if CUDA else "float32")
        bench.row(f"ours, {n_layers} layers of {width}", f"{real / batch:.0f} tokens", batch, took, floor_s=floor)


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

    letters = str.maketrans("0123456789", "abcdefghij")

    def near() -> str:
        number = next(fresh)
        return f"{questions[number % len(questions)]} {str(number).translate(letters)}"

    def other() -> str:  # another number is another question: the guards see to it
        number = next(fresh)
        return f"{questions[number % len(questions)]} ({number})"

    def ask(make: Any) -> float:
        text = make()
        began = perf_counter()
        answer(text)
        return perf_counter() - began

    for what, make in (("near hits", near), ("misses", other)):
        size = f"{cache.stats().tiers['semantic']['rows']:,} rows"
        hits = sum(cache.stats().hits.values())
        times = [ask(make) for _ in range(bench.sizes["asked"] + 10)][10:]
        p99 = float(np.percentile(times, 99)) * 1e3
        share = (sum(cache.stats().hits.values()) - hits) / (len(times) + 10)
        bench.row(f"cached function, {what}, idle", size, 1, statistics.median(times), p99_ms=p99, hits=share)
        for callers in bench.sizes["callers"]:
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(ask, [make] * callers))
                before, began = dict(cache.stats().tiers["semantic"]), perf_counter()
                list(pool.map(ask, [make] * (8 * callers)))
                took, after = perf_counter() - began, cache.stats().tiers["semantic"]
            mean = (after["batched"] - before["batched"]) / (after["batches"] - before["batches"])
            bench.row(f"cached function, {what}, {callers} threads", size, 8 * callers, took, mean_batch=mean)
    assert not cache.stats().faults, cache.stats().faults
    cache.close()


def plain(bench: Bench) -> None:
    """The same step made plainly: `encode` in half precision, FAISS's flat index on the device."""
    import faiss
    from sentence_transformers import SentenceTransformer

    dtype = torch.float16 if CUDA else torch.float32
    model = SentenceTransformer(str(SentenceTransformerEmbedder(MODEL)._path), device=DEVICE).to(dtype)
    questions, fresh = _questions(), count()
    resources = faiss.StandardGpuResources() if CUDA else None
    for rows in bench.sizes["rows"]:
        index = faiss.GpuIndexFlatIP(resources, DIMENSION) if CUDA else faiss.IndexFlatIP(DIMENSION)
        index.add(_unit(rows))
        for batch in bench.sizes["queries"]:

            def job(batch: int = batch, index: Any = index) -> Any:
                texts = [f"{questions[next(fresh) % len(questions)]} ({number})" for number in range(batch)]
                vectors = model.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
                return index.search(vectors.astype(np.float32), NEIGHBOURS)

            took = _in_turn({"plain": job}, bench.sizes["seconds"] / 2)["plain"]
            bench.row("encode and FAISS, plainly", f"{rows:,} rows", batch, took)


def search_faiss(bench: Bench) -> None:
    """FAISS's flat index on the device, on tensors there. It comes last: an error inside CUDA may end the process."""
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

    dtype = "float16" if CUDA else "float32"
    _search(bench, f"{'GpuIndexFlatIP' if CUDA else 'IndexFlatIP'} {dtype}", dtype, flat)


SECTIONS = (
    ceilings, tokens, embed, step, cached, search_ours, crossover, plain, large, spin, layers, parity, search_torch,
    search_faiss,
)  # fmt: skip
EXTRA = (step_small,)
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
    print(_machine(), flush=True)
    failed, began = [], perf_counter()
    known = {section.__name__: section for section in (*SECTIONS, *EXTRA)}
    if unknown := set(arguments.only) - known.keys():
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for section in [known[name] for name in arguments.only] or SECTIONS:
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
