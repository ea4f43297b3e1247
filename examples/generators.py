"""Streams are stored when they ended well, and replayed item by item: `python examples/generators.py`."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import semcache

cache = semcache.Cache()


@semcache.cached(cache)
def words(question: str) -> Iterator[str]:
    print("  (the model begins)")
    yield from question.split()
    print("  (the model has ended)")


@semcache.cached(cache)
async def tokens(question: str) -> AsyncIterator[str]:
    print("  (the model begins)")
    for word in question.split():
        await asyncio.sleep(0)
        yield word


async def read(question: str) -> list[str]:
    return [token async for token in tokens(question)]


async def main() -> None:
    for word in words("we ship to Austria"):
        print(word)
        break  # a stream that was not read to its end is not kept
    print(list(words("we ship to Austria")))
    print(list(words("we ship to Austria")))
    print(words.cache_info())

    # Two readers at once share one stream.
    print(await asyncio.gather(read("we ship"), read("we ship")))
    print(tokens.cache_info())


if __name__ == "__main__":
    asyncio.run(main())
