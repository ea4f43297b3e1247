"""Many tasks that ask the same at once are one load: `python examples/async_functions.py`."""

import asyncio

import semcache

cache = semcache.Cache()


@semcache.cached(cache)
async def answer(question: str) -> str:
    print(f"  (asking the model: {question})")
    await asyncio.sleep(0.01)
    return question.upper()


async def main() -> None:
    answers = await asyncio.gather(*(answer("do you ship to austria?") for _ in range(50)))
    print(len(answers), set(answers))
    stats = cache.stats()
    print(f"{stats.loads} load, {stats.shared} shared it")
    print(await answer("do you ship to austria?"))
    event = semcache.last()
    print(event.kind if event else None, event.tier if event else None)


if __name__ == "__main__":
    asyncio.run(main())
