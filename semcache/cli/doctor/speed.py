"""How fast near matches are here: what embeds a second, how and where scopes are searched, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from semcache.cli.doctor.finding import Finding, milliseconds

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_GPU_TEXTS, _CPU_TEXTS = 1024, 32
_GPU_QUERIES, _CPU_QUERIES = 256, 32
_GPU_BEFORE = 80
"""Searches before those that are timed: those of a service are CUDA graphs, which come after 64."""
_TRIED_SECONDS = 0.5
_SETTLED_SECONDS = 30.0
_MOST_TRIED = 10
_ROWS = 8192
_NEIGHBOURS = 4


def examine_embedding(made: Any) -> Finding:
    """Embed batches of fresh texts for a moment; the fastest counts."""
    batch, fresh = _GPU_TEXTS if _is_gpu(made.device) else _CPU_TEXTS, count()
    took = _least(lambda: made([f"How can I reset my password? ({next(fresh)})" for _ in range(batch)]))
    rate = round(batch / took)
    told = f"{rate:,} texts/s in batches of {batch:,} on {made.device}, {made.path}"
    figures: dict[str, float | int | str] = {"device": made.device, "path": made.path}
    return Finding("ok", "embedding", told, figures=figures | {"texts_per_second": rate, "batch": batch})


def examine_search(dimension: int, device: str, asked: str = "auto") -> Finding:
    """Search an index as a service has it, one query and many at once; the fastest counts.

    `device` is the embedder's, `asked` the setting, by which an index may have several. Raises ConfigurationError.
    The figure `crossover` is how many rows a scope has at most that is searched by comparing them all on the CPU;
    where every scope is, there is none.
    """
    from semcache.semantic.device import make_index

    index = make_index(dimension, 10**9, device, None, asked)
    for place, row in enumerate(_draws(_ROWS, dimension)):
        index.add(place.to_bytes(4, "big"), b"scope", row, "", inf)
    index.settle(_SETTLED_SECONDS)
    batch = _GPU_QUERIES if _is_gpu(device) else _CPU_QUERIES
    queries = _draws(batch, dimension)

    def search(some: int) -> float:
        def job() -> object:
            return index.search([b"scope"] * some, queries[:some], _NEIGHBOURS, 0.0)

        for _ in range(_GPU_BEFORE if _is_gpu(device) else 0):
            job()
        return _least(job)

    one, many = search(1), search(batch)
    used = asked if _is_gpu(device) and "," in asked else device
    how = f"{index.path} on {used if _is_gpu(device) else 'the CPU'}"
    if index.crossover is not None:
        how += f", scopes of up to {index.crossover:,} rows by FAISS, flat, on the CPU"
    index.close()
    rate = round(batch / many)
    told = f"{how}; of {_ROWS:,} rows one query takes {milliseconds(one)}, {rate:,} queries/s in batches of {batch}"
    figures: dict[str, float | int | str] = {"device": used, "path": index.path, "rows": _ROWS, "search_seconds": one}
    figures |= {"queries_per_second": rate, "batch": batch}
    if index.crossover is not None:
        figures["crossover"] = index.crossover
    return Finding("ok", "search", told, figures=figures)


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _least(job: Callable[[], object]) -> float:
    """Repeat a job for a moment; return the seconds of the fastest."""
    least, end = inf, time.perf_counter() + _TRIED_SECONDS
    for _ in range(_MOST_TRIED):
        began = time.perf_counter()
        job()
        least = min(least, time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    return least


def _draws(rows: int, dimension: int) -> NDArray[float32]:
    """Return random unit vectors, float32[rows, d], the same for the same numbers."""
    import numpy as np

    drawn = np.random.default_rng(rows).standard_normal((rows, dimension)).astype(np.float32)
    units: NDArray[float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return units
