"""Near matches, within one scope and one tenant: `python examples/semantic.py`.

A toy embedder that counts words stands in for a real one; `--model all-MiniLM-L6-v2` takes that.
"""

import argparse
import warnings
from typing import Any
from zlib import crc32

import numpy as np

import semcache


class WordCounts:
    """A callable embedder names itself, so that its vectors never meet another's."""

    identity = "word-counts-1"

    def __call__(self, texts: list[str]) -> Any:
        vectors = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().strip("?!.").split():
                vectors[row, crc32(word.encode()) % 512] += 1
        return vectors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a sentence-transformers model; the toy embedder without it")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # a threshold is a guess until `semcache replay` has measured it

    cache = semcache.Cache(
        embedder=arguments.model or WordCounts(),
        policy=semcache.Threshold(0.8),
        tenant=semcache.SHARED,  # all users may share answers
        timeouts=semcache.Timeouts(semantic="10s"),
    )
    cache.warm()

    @semcache.cached(cache, text="question")
    def answer(question: str, locale: str = "en") -> str:
        return f"an answer to: {question} [{locale}]"

    for question, locale in [
        ("How long does shipping to Austria take?", "en"),
        ("How long does the shipping to Austria take?", "en"),
        ("How long does the shipping to Austria take?", "de"),
        ("Where is my invoice?", "en"),
    ]:
        print(f"{question} [{locale}]")
        print(f"  {answer(question, locale)}")
        event = semcache.last()
        if event is not None:
            similarity = f" at {event.similarity:.2f}" if event.is_hit and event.similarity is not None else ""
            print(f"  {event.kind} {event.tier or ''}{similarity}".rstrip())
        cache.flush()  # so that the next line finds it; without it, it would in a moment


if __name__ == "__main__":
    main()
