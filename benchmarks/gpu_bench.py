"""What the sections of `gpu.py` share: figures and how they are told, timing, texts, vectors, indexes."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch  # before FAISS: who comes first brings the CUDA libraries
from run import machine

from semcache.semantic.device import DeviceIndex
from semcache.semantic.index import FlatIndex

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MODEL = os.environ.get("SEMCACHE_TEST_MODEL") or "all-MiniLM-L6-v2"
TRAFFIC = Path(__file__).parent.parent / "examples" / "traffic" / "support.jsonl"
DIMENSION, NEIGHBOURS = 384, 4
FLOP_PER_TOKEN = 2 * 6 * 12 * DIMENSION**2
"""Of the six layers' matrices; attention comes to it by length."""
ROTATED_BYTES = 200_000_000
_LONG = 1.0
FULL: dict[str, Any] = {
    "seconds": 1.0, "copy": 2**31, "upload": 2**28, "matmul": 8192, "batches": (1, 32, 256, 1024, 4096),
    "tokens": (8, 16, 64, 256), "rows": (10_000, 100_000, 1_000_000), "queries": (1, 32, 256, 1024), "asked": 300,
    "gathered": 4096, "callers": (32, 128), "pairs": 2000, "large": 10_000_000, "split": 2048, "inserted": 1000,
    "coming": 10_000, "meanwhile": 10.0, "beside": 5.0, "layers": 24,
}  # fmt: skip
QUICK: dict[str, Any] = {
    "seconds": 0.1, "copy": 2**24, "upload": 2**20, "matmul": 512, "batches": (1, 32), "tokens": (16,),
    "rows": (1000, 10_000), "queries": (1, 64), "asked": 30, "gathered": 256, "callers": (8,), "pairs": 50,
    "large": 20_000, "split": 256, "inserted": 100, "coming": 1000, "meanwhile": 1.0, "beside": 1.0, "layers": 1,
}  # fmt: skip


@dataclass
class Bench:
    """What a run is given, and what it found."""

    sizes: dict[str, Any]
    pairs: Path | None
    json: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    sections: dict[str, float] = field(default_factory=dict)
    """What each has taken, in seconds."""

    def floor(self, n_bytes: float, flop: float, dtype: str) -> float | None:
        """Seconds that the device itself needs, if its ceilings were measured."""
        if dtype not in self.ceilings:
            return None
        return max(n_bytes / self.ceilings["copy"], flop / self.ceilings[dtype])

    def uploaded(self, n_bytes: float) -> float | None:
        """Seconds until bytes of the host are on the device, if that was measured."""
        return n_bytes / self.ceilings["upload"] if "upload" in self.ceilings else None

    def row(self, what: str, size: str, batch: int, seconds: float, **more: Any) -> None:
        """Note a figure: `seconds` of a call; beside it `floor_s`, `in_a_row_s`, and whatever else is told."""
        self.rows.append({"what": what, "size": size, "batch": batch, "seconds": seconds, **more})
        print(line(self.rows[-1]), flush=True)
        self.save()

    def save(self, **more: Any) -> None:
        if self.json is not None:
            told = {"machine": told_machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "ceilings": self.ceilings}
            told |= {"rows": self.rows, "sections": self.sections}
            self.json.write_text(json.dumps(told | more, indent=1) + "\n")


def told_machine() -> str:
    """Name the machine that the figures are of."""
    import faiss

    gpu = f"one {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, " if CUDA else "no GPU, "
    return f"{gpu}{machine()}, faiss {faiss.__version__}"


def line(row: dict[str, Any]) -> str:
    """Return a figure as a line of the table."""
    told, floor = dict(row), row.get("floor_s")
    seconds, row_s = told["seconds"], told.get("in_a_row_s")
    cells = [
        told["what"], told["size"], f"{told['batch']:,}", f"{seconds * 1e3:.3f}", f"{row_s * 1e3:.3f}" if row_s else "",
        f"{told['batch'] / seconds:,.0f}" if told["batch"] > 1 else "", f"{floor * 1e3:.4f}" if floor else "",
        f"{floor / (row_s or seconds):.1%}" if floor else "",
        ", ".join(f"{name} {value:.4g}" for name, value in list(told.items())[4:] if not name.endswith("_s")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def wait() -> None:
    """Let the device end what it was given."""
    if CUDA:
        torch.cuda.synchronize()


def in_turn(jobs: dict[str, Any], seconds: float, *, least: int = 5, most: int = 200) -> dict[str, float]:
    """Time jobs in turn, each with its wait for the device, for so long in all; return medians.

    Long ones are warmed once and timed twice.
    """
    began = perf_counter()
    for job in jobs.values():
        job()
    wait()
    if perf_counter() - began > _LONG:
        least = 2
    else:
        for job in [*jobs.values()] * 2:
            job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    end = perf_counter() + seconds
    for number in range(most):
        if number >= least and perf_counter() > end:
            break
        for name, job in jobs.items():
            wait()
            began = perf_counter()
            job()
            wait()
            times[name].append(perf_counter() - began)
    return {name: statistics.median(one) for name, one in times.items()}


def in_a_row(job: Any, calls: int = 20, rounds: int = 7) -> float:
    """Return what a call takes when many are queued and only the last is waited for."""
    times = []
    for _ in range(rounds):
        wait()
        began = perf_counter()
        for _ in range(calls):
            job()
        wait()
        times.append((perf_counter() - began) / calls)
    return statistics.median(times)


def questions_of_the_desk() -> list[str]:
    """Return short questions, each once."""
    lines = [json.loads(line) for line in TRAFFIC.read_text(encoding="utf-8").splitlines()]
    questions = dict.fromkeys(line["request"]["messages"][-1]["content"] for line in lines)
    return [question for question in questions if question.isascii() and 0 < len(question) < 120]


def texts_of(embedder: Any, tokens: int, n: int, seed: int = 0) -> list[str]:
    """Make texts of about so many tokens out of the desk's words."""
    words = np.array(" ".join(questions_of_the_desk()).split())
    generator = np.random.default_rng([tokens, seed])
    per_word = len(embedder._tokenizer.encode(" ".join(words)).ids) / len(words)
    return [" ".join(generator.choice(words, max(1, round((tokens - 2) / per_word)))) for _ in range(n)]


def units(n: int) -> Any:
    """Return random unit vectors, float32[n, d], the same for the same n."""
    vectors = np.random.default_rng(n).standard_normal((n, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(rows: int, device: str = DEVICE, vectors: Any = None) -> DeviceIndex:
    """Make an index of one scope, `b"scope"`, whole on its device; a row's key is its number."""
    index = DeviceIndex(DIMENSION, 10**11, device=device)
    index.crossover = 0
    vectors = units(rows) if vectors is None else vectors
    put(index, [(number.to_bytes(8, "little"), vector) for number, vector in enumerate(vectors)])
    for _ in range(rows >> 10):  # what came at once goes there by and by
        index.sweep(0.0)
    return index


def rows_on_devices(index: DeviceIndex) -> list[Any]:
    """Return what an index has on each of its devices."""
    return index._devices


def put(index: DeviceIndex, rows: list[tuple[bytes, Any]]) -> None:
    """Add rows, keys and vectors, to the one scope, all at once."""
    assert not index.add_many([(key, b"scope", vector, "a text", math.inf) for key, vector in rows])


def put_each(index: FlatIndex, rows: list[tuple[bytes, Any]]) -> None:
    """Add rows one by one."""
    for key, vector in rows:
        index.add(key, b"scope", vector, "a text", math.inf)


def spread(times: Any) -> dict[str, float]:
    """Say how far times, in seconds, lie from their median."""
    over = float(np.mean(np.asarray(times) > 2 * np.median(times)))
    return {"p99_ms": float(np.percentile(times, 99)) * 1e3, "max_ms": max(times) * 1e3, "over_twice": over}
