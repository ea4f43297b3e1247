"""Sections of `gpu.py`: the whole near lookup, from a text to what is near it."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import gpu_beside
import numpy as np
import torch
from children import Child
from gpu_bench import (
    CUDA,
    DEVICE,
    DIMENSION,
    MODEL,
    NEIGHBOURS,
    QUICK,
    Bench,
    filled,
    in_turn,
    questions_of_the_desk,
    spread,
    units,
)

import semcache
from semcache.semantic.batcher import Batcher
from semcache.semantic.embedder import SentenceTransformerEmbedder


def step(bench: Bench) -> None:
    """The step through the Batcher: embedded on the device, searched on the device."""
    for rows in bench.sizes["rows"]:
        _step(bench, rows)


def step_small(bench: Bench) -> None:
    """The step at the fewest rows alone: what `spin` runs in other environments."""
    _step(bench, bench.sizes["rows"][0])


def _step(bench: Bench, rows: int) -> None:
    questions, fresh = questions_of_the_desk(), count()

    def asked() -> str:
        number = next(fresh)
        return f"{questions[number % len(questions)]} ({number})"

    def idle(what: str) -> float:
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
        return len(times) / sum(times)

    def half_load(rate: float) -> None:
        """Ask at random times, half as many as one caller got answers, and count from when each was due."""
        times: list[float] = []
        due = np.random.default_rng(7).exponential(2 / rate, bench.sizes["asked"]).cumsum()
        began, futures = perf_counter(), []
        for at in due.tolist():
            while (left := began + at - perf_counter()) > 0:
                sleep(left)
            future = batcher.search(b"scope", asked(), NEIGHBOURS)
            future.add_done_callback(lambda _, at=at: times.append(perf_counter() - began - at))
            futures.append(future)
        for future in futures:
            future.result(60)
        assert len(times) == len(due)
        bench.row(
            "Batcher, one request, half load", f"{rows:,} rows", 1, statistics.median(times), **spread(times),
            asked_a_second=len(due) / due[-1],
        )  # fmt: skip

    batcher = Batcher(
        SentenceTransformerEmbedder(MODEL, device=DEVICE), lambda _: filled(rows), perf_counter,
        on_fault=lambda reason, error: print("fault:", reason, error), max_pending=10**6,
    )  # fmt: skip
    batcher.warm().result(300)
    for _ in range(80):  # the search's graph is made meanwhile
        batcher.search(b"scope", asked(), NEIGHBOURS).result(60)
    half_load(idle("Batcher, one request, idle"))
    gc.collect()
    gc.freeze()
    idle("Batcher, one request, idle, what there was kept from the garbage collector")
    gc.unfreeze()
    _gathered(bench, batcher, asked, f"{rows:,} rows")
    batcher.close()


def _gathered(bench: Bench, batcher: Batcher, asked: Any, size: str) -> None:
    """Many requests at once, handed over one by one, and together where there is such a call."""
    n = bench.sizes["gathered"]

    def each(texts: list[str]) -> list[Any]:
        return [batcher.search(b"scope", text, NEIGHBOURS) for text in texts]

    def together(texts: list[str]) -> list[Any]:
        at_once = (texts[at : at + 1024] for at in range(0, n, 1024))
        return [batcher.search_many([b"scope"] * len(some), some, NEIGHBOURS) for some in at_once]

    for how, way in {"gathered": each, "gathered, in calls of 1,024": together}.items():
        waves, handed, founds = [], [], []
        for _ in range(4):
            texts = [asked() for _ in range(n)]
            before, began = batcher.stats(), perf_counter()
            futures = way(texts)
            handed.append(perf_counter() - began)
            founds = [future.result(120) for future in futures]
            waves.append(perf_counter() - began)
            after = batcher.stats()
        founds = founds if way is each else [found for some in founds for found in some]
        bench.row(
            f"Batcher, requests {how}", size, n, statistics.median(waves[1:]),
            batches=after["batches"] - before["batches"], handed_over_ms=statistics.median(handed[1:]) * 1e3,
            embed_ms=sum({found.embed_ns for found in founds}) / 1e6,
            search_ms=sum({found.search_ns for found in founds}) / 1e6,
        )  # fmt: skip


def spin(bench: Bench) -> None:
    """The step and the threads in processes whose OpenMP threads do not spin, or are few."""
    for told in ("OMP_WAIT_POLICY=passive", "OMP_NUM_THREADS=4"):
        env = os.environ | dict([told.split("=")])
        command = [sys.executable, str(Path(__file__).with_name("gpu.py")), "--only", "step_small", "cached"]
        if bench.sizes["rows"] == QUICK["rows"]:
            command.append("--quick")
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, check=False)
        kept = [line for line in done.stdout.splitlines() if line.startswith(("| Batcher", "| cached"))]
        print(f"{told}:", *kept[: len(kept) // 2], sep="\n", flush=True)


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
    questions, fresh = questions_of_the_desk(), count()
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
    questions, fresh = questions_of_the_desk(), count()
    resources = faiss.StandardGpuResources() if CUDA else None
    for rows in bench.sizes["rows"]:
        index = faiss.GpuIndexFlatIP(resources, DIMENSION) if CUDA else faiss.IndexFlatIP(DIMENSION)
        index.add(units(rows))
        for batch in bench.sizes["queries"]:

            def job(batch: int = batch, index: Any = index) -> Any:
                texts = [f"{questions[next(fresh) % len(questions)]} ({number})" for number in range(batch)]
                vectors = model.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
                return index.search(vectors.astype(np.float32), NEIGHBOURS)

            took = in_turn({"plain": job}, bench.sizes["seconds"] / 2)["plain"]
            bench.row("encode and FAISS, plainly", f"{rows:,} rows", batch, took)


def beside(bench: Bench) -> None:
    """Two processes on one device, each with a model and rows of its own: what each gets done, and if it is right."""
    rows, seconds = bench.sizes["rows"][1], bench.sizes["beside"]
    work = gpu_beside.Work(rows)
    found = {"one process alone": work.run(seconds)}
    with Child(gpu_beside.__file__, rows=rows) as child:
        child.tell("run", seconds)
        found["two processes, this one"] = work.run(seconds)
        found["two processes, the other"] = child.hear()
    found["one process, after the other's end"] = work.run(seconds)
    for what, one in found.items():
        bench.row(what, f"{rows:,} rows", gpu_beside.BATCH, gpu_beside.BATCH / one["rate"], right=one["right"])
    assert all(one["right"] == 1 for one in found.values()), found
