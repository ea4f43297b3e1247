"""Sections of `gpu.py`: the index and the search alone, ours and others'."""

from __future__ import annotations

import math
import statistics
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gpu_bench import (
    CUDA,
    DEVICE,
    DIMENSION,
    NEIGHBOURS,
    ROTATED_BYTES,
    Bench,
    filled,
    in_a_row,
    in_turn,
    put,
    put_each,
    rows_on_devices,
    spread,
    units,
)

from semcache.semantic.device import DeviceIndex, make_index
from semcache.semantic.rows import DeviceRows


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

            took = in_turn({name: job}, bench.sizes["seconds"] / 2)[name]
            width = matrices[0].element_size()
            floor = bench.floor((rows + batch) * DIMENSION * width, 2 * rows * DIMENSION * batch, dtype)
            bench.row(
                name, f"{rows:,} rows", batch, took, floor_s=floor,
                in_a_row_s=in_a_row(job, calls=20 if took < 0.05 else 2), off=off,
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
        vectors = units(rows)
        began = perf_counter()
        index = filled(rows, vectors=vectors)
        index.search([b"scope"], units(1), NEIGHBOURS, 0.0)
        bench.row("DeviceIndex, filled", f"{rows:,} rows", rows, perf_counter() - began)
        floor_bytes = rows * DIMENSION * (2 if CUDA else 4)
        for batch in bench.sizes["queries"]:
            queries = units(batch)
            scopes = [b"scope"] * batch
            job = {"ours": lambda q=queries, s=scopes, i=index: i.search(s, q, NEIGHBOURS, 0.0)}
            for _ in range(70):  # few queries have a graph then
                job["ours"]()
            took = in_turn(job, bench.sizes["seconds"] / 2)["ours"]
            floor = bench.floor(floor_bytes, 2 * rows * DIMENSION * batch, dtype)
            found = [int.from_bytes(one[0].key, "little") for one in job["ours"]()]
            bench.row(
                f"DeviceIndex {dtype}", f"{rows:,} rows", batch, took, floor_s=floor,
                graphs=len(rows_on_devices(index)[0]._graphs), **{"recall@1": _recall(queries, vectors, found)},
            )  # fmt: skip
        if rows_on_devices(index)[0].why:
            print("no graphs:", rows_on_devices(index)[0].why)
        _changes(bench, index, rows)


def _recall(queries: Any, vectors: Any, found: list[int]) -> float:
    """Say which share of what was found first is, by float32, within 0.001 of the most similar there is."""
    asked = torch.from_numpy(queries).to(DEVICE)
    parts = (torch.from_numpy(vectors[at : at + 2**17]).to(DEVICE) for at in range(0, len(vectors), 2**17))
    best = torch.stack([(asked @ part.T).amax(1) for part in parts]).amax(0).cpu().numpy()
    return float(((queries * vectors[found]).sum(axis=1) >= best - 1e-3).mean())


def _changes(bench: Bench, index: DeviceIndex, rows: int) -> None:
    """Rows put in, at once and one by one, and taken out of a full scope, each seen by the next search."""
    n, serial = bench.sizes["inserted"], count()
    query, vectors = units(1), units(n)
    size, floor = f"{rows:,} rows", bench.uploaded(n * DIMENSION * index.dtype.itemsize)
    for how, way in {"one by one": put_each, "at once": put}.items():
        inserts, removes, behind = [], [], []
        for _ in range(10):
            coming = [(f"new {next(serial)}".encode(), vector) for vector in vectors]
            began = perf_counter()
            way(index, coming)
            inserts.append(perf_counter() - began)
            began = perf_counter()
            index.search([b"scope"], query, NEIGHBOURS, 0.0)
            behind.append(perf_counter() - began)
            sees = index.search([b"scope"], vectors[-1:], 1, 0.0)[0][0].key == coming[-1][0]
            assert sees, "the row that came last is not found"
            began = perf_counter()
            for key, _ in coming:
                index.remove(key)
            removes.append(perf_counter() - began)
        bench.row(
            f"· inserted, {how}", size, n, statistics.median(inserts), floor_s=floor, slowest_ms=max(inserts) * 1e3
        )
        bench.row("· the search behind it", size, 1, statistics.median(behind), slowest_ms=max(behind) * 1e3)
        bench.row("· removed", size, n, statistics.median(removes), slowest_ms=max(removes) * 1e3)


def arriving(bench: Bench) -> None:
    """One query after the other while rows come in, and the same with none: what waits longer than the median."""
    rows, coming, seconds = bench.sizes["rows"][-1], bench.sizes["coming"], bench.sizes["meanwhile"]
    index, queries = filled(rows), units(512)
    fresh = [(f"new {number}".encode(), vector) for number, vector in enumerate(units(int(coming * seconds)))]
    floor = bench.floor(rows * DIMENSION * index.dtype.itemsize, 2 * rows * DIMENSION, "float16" if CUDA else "float32")
    for _ in range(70):  # one query has a graph then
        index.search([b"scope"], queries[:1], NEIGHBOURS, 0.0)
    for rate, lasts in ((0, seconds / 4), (coming, seconds)):
        times: list[float] = []
        added, began = 0, perf_counter()
        while (now := perf_counter() - began) < lasts:
            due = int(now * rate)
            if due > added:
                put(index, fresh[added:due])
                added = due
            query = queries[len(times) % len(queries)][None]
            asked = perf_counter()
            index.search([b"scope"], query, NEIGHBOURS, 0.0)
            times.append(perf_counter() - asked)
        what = f"DeviceIndex, one query while {rate:,} rows a second come in"
        bench.row(
            what, f"{rows:,} rows", 1, statistics.median(times), floor_s=floor, **spread(times), came_in=added / lasts,
            searches=len(times),
        )  # fmt: skip
    assert index.search([b"scope"], fresh[added - 1][1][None], 1, 0.0)[0][0].key == fresh[added - 1][0]


def shards(bench: Bench) -> None:
    """An index over two logical devices, which are one here: it finds what one alone does; times of both."""
    rows, queries = bench.sizes["rows"][1], units(bench.sizes["queries"][-1])
    name = "cuda:0,cuda:0" if CUDA else "cpu,cpu"
    try:
        two = filled(rows, name)
    except (RuntimeError, ValueError) as error:
        print(f"no index over {name}: {error}")
        return
    one = filled(rows)
    for batch in bench.sizes["queries"]:
        scopes, some = [b"scope"] * batch, queries[:batch]
        jobs = {
            "one device": lambda s=scopes, q=some: one.search(s, q, NEIGHBOURS, 0.0),
            "two logical devices": lambda s=scopes, q=some: two.search(s, q, NEIGHBOURS, 0.0),
        }
        near = [np.array([[hit.similarity for hit in hits] for hits in job()]) for job in jobs.values()]
        off = float(abs(near[0] - near[1]).max())
        assert off < 1e-3, f"two logical devices find others than one does: {off}"
        for _ in range(70):
            for job in jobs.values():
                job()
        for how, took in in_turn(jobs, bench.sizes["seconds"] / 2).items():
            bench.row(f"DeviceIndex on {how}", f"{rows:,} rows", batch, took, off=off)


def crossover(bench: Bench) -> None:
    """From which size of a scope on the device is faster than the CPU, which has what a service has without a GPU."""
    for rows in (256, 512, 1024, 2048, 4096, 8192, 16384):
        here, there = make_index(DIMENSION, 10**10, None, None), filled(rows)
        put_each(here, [(number.to_bytes(8, "little"), vector) for number, vector in enumerate(units(rows))])
        for batch in (1, 32):
            queries, scopes = units(batch), [b"scope"] * batch
            jobs = {
                "CPU": lambda q=queries, s=scopes, i=here: i.search(s, q, NEIGHBOURS, 0.0),
                "device": lambda q=queries, s=scopes, i=there: i.search(s, q, NEIGHBOURS, 0.0),
            }
            for _ in range(70):
                jobs["device"]()
            took = in_turn(jobs, bench.sizes["seconds"] / 4)
            size = f"{rows:,} rows"
            bench.row("a scope on the CPU, on the device", size, batch, took["CPU"], device_ms=took["device"] * 1e3)


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
    for batch in bench.sizes["queries"]:
        queries = units(batch)
        for _ in range(70 if batch == 1 else 1):
            rows.search(whole, 1024, queries, 20)
        took = in_turn({"ours": lambda q=queries: rows.search(whole, 1024, q, 20)}, bench.sizes["seconds"] / 2)["ours"]
        n = len(slots) << 10
        floor = bench.floor(n * DIMENSION * dtype.itemsize, 2 * n * DIMENSION * batch, "float16" if CUDA else "float32")
        bench.row("DeviceRows", f"{n:,} rows", batch, took, floor_s=floor, chunks=len(rows._chunks))


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
