"""Pairs: two ways of doing the same job, timed in turn in one process, so that a noisy machine slows both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest

Timed = Callable[[], Any]


class Pairs:
    """Times jobs in turn and writes the medians and their ratios where `run.py` finds them."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def __call__(
        self, question: str, ours: Timed, bare: Timed, *, bar: float | None = None, higher_is_better: bool = False,
        peers: dict[str, Timed] | None = None, number: int = 1000, rounds: int = 31, unit: str = "us",
    ) -> None:  # fmt: skip
        """Time `ours` against `bare`, and peers beside them; the bar is on the median of the rounds' ratios."""
        jobs = {"ours": ours, "bare": bare, **(peers or {})}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for job in jobs.values():
            job()
        for _ in range(rounds):
            for name, job in jobs.items():
                times[name].append(_time(job, number))
        ratios = [ours_s / bare_s for ours_s, bare_s in zip(times["ours"], times["bare"], strict=True)]
        if higher_is_better:
            ratios = [1 / ratio for ratio in ratios]
        scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
        self.record(
            question,
            ratio=statistics.median(ratios),
            bar=bar,
            higher_is_better=higher_is_better,
            medians={name: statistics.median(one) * scale for name, one in times.items()},
            unit=unit,
        )
        self._benchmark.pedantic(ours, rounds=5, iterations=max(1, number // 5))

    def record(self, question: str, **figures: Any) -> None:
        """Write figures down as they are."""
        self._benchmark.extra_info.update(question=question, **figures)

    def once(self, job: Timed) -> Any:
        """Run a long job once, as pytest-benchmark wants each benchmark to."""
        return self._benchmark.pedantic(job, rounds=1, iterations=1)


def _time(job: Timed, number: int) -> float:
    began = perf_counter()
    for _ in range(number):
        job()
    return (perf_counter() - began) / number


@pytest.fixture
def pairs(benchmark):
    return Pairs(benchmark)
