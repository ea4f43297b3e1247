"""Vectors of texts, each computed once: `python examples/embeddings.py`.

A toy model that counts letters stands in for a real one.
"""

import asyncio

import semcache

cache = semcache.Cache()


@semcache.cached_embedding(cache, model="letters-1", max_batch=2)
def embed(texts: list[str]) -> list[list[float]]:
    print(f"  (computing {texts})")
    return [[float(text.count(letter)) for letter in "abc"] for text in texts]


@semcache.cached_embedding(cache, model="letters-1")
async def aembed(texts: list[str]) -> list[list[float]]:
    print(f"  (computing {texts})")
    await asyncio.sleep(0)
    return [[float(text.count(letter)) for letter in "abc"] for text in texts]


class Encoder:
    """As a SentenceTransformer: an object with a method `encode`, that model= has to name."""

    def encode(self, sentences: list[str], *, scale: float = 1.0) -> list[list[float]]:
        print(f"  (computing {sentences})")
        return [[scale * len(sentence)] for sentence in sentences]


async def main() -> None:
    vectors = embed(["a cab", "abba", "a cab", "bccb"])
    print(vectors.shape, vectors.dtype)
    print(embed(["abba", "aaa"]).tolist())
    print(embed("aaa").tolist())
    print(embed.cache_info())

    # Two tasks at once: what both want is computed by one of them.
    await asyncio.gather(aembed(["a", "b"]), aembed(["b", "c"]))

    encode = semcache.cached_embedding(cache, model="lengths-1")(Encoder().encode)
    print(encode(["ab", "abc"], scale=2.0).tolist(), encode(["abc"], scale=2.0).tolist())


if __name__ == "__main__":
    asyncio.run(main())
