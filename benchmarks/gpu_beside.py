"""What each of two processes does on one device in `gpu.py`: embed questions, and search for them among its rows.

The other process is this file, and is told when to begin.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from time import perf_counter

import numpy as np
from children import obey
from gpu_bench import DEVICE, MODEL, filled, put, questions_of_the_desk

from semcache.semantic.embedder import SentenceTransformerEmbedder

BATCH = 64


class Work:
    """A model, and an index of random rows and of the questions."""

    def __init__(self, rows: int) -> None:
        self._embedder = SentenceTransformerEmbedder(MODEL, device=DEVICE)
        self._embedder.load()
        self._questions = questions_of_the_desk()
        self._vectors = self._embedder(self._questions)
        self._index = filled(rows)
        put(self._index, [(f"question {number}".encode(), vector) for number, vector in enumerate(self._vectors)])
        self._fresh = count()

    def run(self, seconds: float) -> dict[str, float]:
        """Embed and search for some seconds; return lookups a second, and which share found the nearest question."""
        right, began = [], perf_counter()
        while perf_counter() - began < seconds:
            asked = [next(self._fresh) for _ in range(BATCH)]
            questions = [self._questions[number % len(self._questions)] for number in asked]
            texts = [f"{question} ({number})" for question, number in zip(questions, asked, strict=True)]
            vectors = self._embedder(texts)
            found = self._index.search([b"scope"] * BATCH, vectors, 1, 0.0)
            nearest = (vectors @ self._vectors.T).max(axis=1)
            there = np.array([hits[0].similarity if hits else -1.0 for hits in found])
            are_questions = [bool(hits) and hits[0].key.startswith(b"question") for hits in found]
            right += ((abs(there - nearest) < 2e-3) & are_questions).tolist()  # half precision, on its way and there
        return {"rate": len(right) / (perf_counter() - began), "right": sum(right) / len(right)}


if __name__ == "__main__":
    obey({"run": Work(**json.loads(sys.argv[1])).run})
