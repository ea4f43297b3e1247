"""What does recording cost the caller of a cached client, on a hit in memory?"""

from __future__ import annotations

import statistics
from time import perf_counter, thread_time

from bench_clients import ask, bare  # noqa: F401 - a fixture

import semcache


def _in_turn(*jobs, number):
    """Take the caller's own processor time of jobs in turn: the writer's is another thread's."""
    times = tuple([] for _ in jobs)
    for _ in range(31):
        for job, noted in zip(jobs, times, strict=True):
            began = thread_time()
            for _ in range(number):
                job()
            noted.append((thread_time() - began) / number)
    return times


def test_hit_recorded_over_a_hit(pairs, bare, tmp_path):  # noqa: F811
    """The bar: half of the hit itself, more."""
    plain = semcache.cached(bare, semcache.Cache())
    cache = semcache.Cache(record=tmp_path / "traffic.jsonl")
    recorded = semcache.cached(bare, cache)
    ask(plain)
    ask(recorded)
    ours, beside = _in_turn(lambda: ask(recorded), lambda: ask(plain), number=200)
    cache.flush()
    assert not cache.stats().recording["dropped"]
    medians = {"ours": statistics.median(ours) * 1e6, "bare": statistics.median(beside) * 1e6}
    pairs.record(
        "memory hit of the OpenAI client that is recorded / one that is not, processor time of the caller",
        ratio=medians["ours"] / medians["bare"], bar=1.5, medians=medians, unit="us",
    )  # fmt: skip
    pairs.once(lambda: ask(recorded))


def test_lines_a_second_of_the_writer(pairs, bare, tmp_path):  # noqa: F811
    """The bar: 2,000 lines a second, redacted and on the disk; what comes faster for long is dropped, and counted."""
    cache = semcache.Cache(record=tmp_path / "traffic.jsonl")
    recorded = semcache.cached(bare, cache)
    ask(recorded)
    rates = []
    for _ in range(5):
        with cache.recorder.recording._file._held():
            for _ in range(2000):
                ask(recorded)
        began = perf_counter()
        cache.flush()
        rates.append(2000 / (perf_counter() - began))
    pairs.record(
        "lines a second that are redacted and written, of calls of 60 words", ratio=statistics.median(rates),
        bar=2000.0, medians={"ours": statistics.median(rates), "bare": 0.0}, unit="lines/s", higher_is_better=True,
    )  # fmt: skip
    pairs.once(lambda: ask(recorded))
