"""Sections of `gpu.py`: ceilings of the device, tokens, embedding, padding."""

from __future__ import annotations

import json
import statistics
import tempfile
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gpu_bench import (
    CUDA,
    DEVICE,
    DIMENSION,
    FLOP_PER_TOKEN,
    MODEL,
    Bench,
    in_a_row,
    in_turn,
    questions_of_the_desk,
    texts_of,
)

from semcache.semantic.embedder import SentenceTransformerEmbedder
from semcache.semantic.tokens import Tokens


def ceilings(bench: Bench) -> None:
    """What the device does at best: a large copy, large matrix products."""
    source = torch.randint(0, 255, (bench.sizes["copy"],), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    took = in_a_row(lambda: target.copy_(source))
    bench.ceilings["copy"] = 2 * source.nbytes / took
    bench.row("copy, TB/s", f"{source.nbytes:,} B", 1, took, rate=bench.ceilings["copy"] / 1e12)
    if CUDA:
        here = torch.empty(bench.sizes["upload"], dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(here, device=DEVICE)
        took = in_a_row(lambda: there.copy_(here, non_blocking=True))
        bench.ceilings["upload"] = here.nbytes / took
        bench.row("copy to the device, GB/s", f"{here.nbytes:,} B", 1, took, rate=bench.ceilings["upload"] / 1e9)
    n = bench.sizes["matmul"]
    for dtype in ("bfloat16", "float16", "float32") if CUDA else ("float32",):
        left, right = (torch.randn(n, n, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
        took = in_a_row(lambda left=left, right=right: left @ right, calls=10 if dtype != "float32" else 3)
        bench.ceilings[dtype] = 2 * n**3 / took
        bench.row(f"matrix product {dtype}, TFLOP/s", f"{n}³", 1, took, rate=bench.ceilings[dtype] / 1e12)


def _paired(bench: Bench) -> list[str]:
    """Return texts, two by two: the labelled pairs, else the desk's questions."""
    if bench.pairs is None:
        return questions_of_the_desk()[: min(400, 2 * bench.sizes["pairs"])]
    lines = bench.pairs.read_text(encoding="utf-8").splitlines()[: bench.sizes["pairs"]]
    return [pair[side] for pair in map(json.loads, lines) for side in ("a", "b")]


def parity(bench: Bench) -> None:
    """How far half precision by graphs is from float32 on the CPU, and how many decisions on pairs of texts differ."""
    flat = _paired(bench)
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
        texts = texts_of(embedder, length, bench.sizes["split"])
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
        for name, took in in_turn(jobs, bench.sizes["seconds"], least=3).items():
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
            sets = [texts_of(ours, length, batch, seed) for seed in range(8)]
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
            took = in_turn({"ours": mine, "encode": plain}, bench.sizes["seconds"], least=4)
            for name, one in took.items():
                more = {"times": took["encode"] / took["ours"], "graphs": graphs} if name == "ours" else {}
                bench.row(f"{name} {dtype}", f"{real / batch:.0f} tokens", batch, one, floor_s=floor, **more)
            if ours._passes and batch > 1:
                _parts_of(bench, ours, sets[0], f"{real / batch:.0f} tokens")


def _planned(texts: list[str], lengths: list[int]) -> list[tuple[list[int], int, int]]:
    """Return the passes that texts of so many tokens are embedded in, as they go to the device, some at once."""
    from semcache.semantic import transformer
    from semcache.semantic.passes import ahead, shapes

    slices = ahead(texts, transformer._AHEAD)
    return [one for places in slices for one in shapes([lengths[place] for place in places])]


def _padding(planned: list[tuple[list[int], int, int]], lengths: list[int]) -> float:
    """Say what passes compute beyond the texts' own tokens, as a share of these.

    Of up to 2,048 tokens that is free: a pass of so many takes as long as a small one.
    """
    return sum(rows * length for _, rows, length in planned) / sum(lengths) - 1


def _parts_of(bench: Bench, ours: Any, texts: list[str], size: str) -> None:
    """Where ours spends its time: tokens alone, passes alone, and how much of these is padding."""
    ids = [ours._tokens(text) for text in texts]
    planned = _planned(texts, list(map(len, ids)))
    padded = _padding(planned, list(map(len, ids)))

    def split() -> None:
        ours._tokens._texts = {}
        ours._tokens.prepare(texts)

    jobs = {
        "· tokens": split,
        "· passes": lambda: ours._passes(ids),
        "· passes, handed over": lambda: ours._passes.start(ids),
    }
    for name, took in in_turn(jobs, bench.sizes["seconds"] / 2).items():
        bench.row(name, size, len(texts), took, padding=padded, passes=len(planned))


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
        texts = texts_of(embedder, length, batch)
        real = sum(len(embedder._tokens(text)) for text in texts)
        embedder(texts)
        took = in_turn({"ours": lambda texts=texts: embedder(texts)}, bench.sizes["seconds"], least=3)["ours"]
        flop = real * (24 * n_layers * width**2 + 4 * n_layers * width * real / batch)
        floor = bench.floor(0, flop, "bfloat16" if CUDA else "float32")
        bench.row(f"ours, {n_layers} layers of {width}", f"{real / batch:.0f} tokens", batch, took, floor_s=floor)


def padding(bench: Bench) -> None:
    """How much of what passes compute is padding, of batches of texts as they are asked; ms are the planning alone."""
    embedder = SentenceTransformerEmbedder(MODEL, device="cpu")
    embedder.load()
    texts = np.array(_paired(bench))
    known = np.array([len(embedder._tokens(text)) for text in texts])
    told = f"{known.min()} to {known.max()} tokens, {known.mean():.0f} in the mean"
    random, draws = np.random.default_rng(6), 20
    for batch in bench.sizes["batches"]:
        took, paddings, passes = 0.0, [], []
        for drawn in random.integers(len(texts), size=(draws, batch)):
            some, lengths = texts[drawn].tolist(), known[drawn].tolist()
            began = perf_counter()
            planned = _planned(some, lengths)
            took += perf_counter() - began
            paddings.append(_padding(planned, lengths))
            passes.append(len(planned))
        more = {"padding": statistics.mean(paddings), "most": max(paddings), "passes": statistics.mean(passes)}
        bench.row("padding of real lengths", told, batch, took / draws, **more)
