"""Answers made of found passages, each stage cached at its own ttl: `python examples/rag.py`.

The model is a stand-in on this machine, the documents stand in a dictionary, and vectors are of hashed words.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING
from zlib import crc32

import semcache
from semcache.testing import StandIn

if TYPE_CHECKING:
    import openai

QUESTIONS = ["What does shipping cost?", "When are you open?", "How do I return a parcel?"]


@dataclass
class Passage:
    """A piece of a page; its `id` is the page's, which is what an answer is dropped by."""

    id: str
    text: str


@dataclass
class Handbook:
    """The documents, and the passages that the searches look through."""

    pages: dict[str, str]
    passages: list[Passage]


handbook = Handbook(
    {
        "prices": "Shipping does cost 3 euro. Express shipping does cost 9 euro.",
        "hours": "We are open from 9 to 5. On Sundays nobody is there.",
        "returns": "A parcel goes back for free. To return it print a label.",
    },
    [],
)
cache = semcache.Cache()
workers: list[Executor] = []


def split(text: str) -> list[str]:
    """Stand in for what takes a processor its time: parsing, cleaning, splitting."""
    return [sentence.strip() for sentence in text.split(".") if sentence.strip()]


@semcache.cached(cache, ttl="30d", version="1")
async def preprocess(text: str) -> list[str]:
    return await asyncio.get_running_loop().run_in_executor(workers[0], split, text)


def words(text: str) -> set[str]:
    return set(text.lower().rstrip("?").split())


@semcache.cached_embedding(cache, model="hashed-words-64", ttl="7d")
def embed(texts: list[str]) -> list[list[float]]:
    return [[float(sum(crc32(word.encode()) % 64 == at for word in words(text))) for at in range(64)] for text in texts]


@semcache.cached_retrieval(cache, corpus="handbook@v1", ttl="1h")
async def by_words(query: str) -> list[Passage]:
    await asyncio.sleep(0.02)  # the way to a server of the full text
    return sorted(handbook.passages, key=lambda passage: -len(words(query) & words(passage.text)))[:1]


@semcache.cached_retrieval(cache, corpus="handbook@v1", ttl="1h")
async def by_meaning(query: str) -> list[Passage]:
    with semcache.stage("embed"):
        vectors = embed([query, *(passage.text for passage in handbook.passages)])
    await asyncio.sleep(0.02)  # the way to a vector database
    nearness = vectors[1:] @ vectors[0]
    return [handbook.passages[int(nearness.argmax())]]


async def prepare() -> None:
    with semcache.stage("preprocess", needs=()):
        split_pages = await asyncio.gather(*map(preprocess, handbook.pages.values()))
    handbook.passages = [
        Passage(name, text) for name, texts in zip(handbook.pages, split_pages, strict=True) for text in texts
    ]


async def search_words(question: str) -> list[Passage]:
    with semcache.stage("by words", needs="preprocess"):
        return await by_words(question)


async def search_meaning(question: str) -> list[Passage]:
    with semcache.stage("by meaning", needs="preprocess"):
        return await by_meaning(question)


async def one_after_another(question: str) -> list[Passage]:
    return [*await search_words(question), *await search_meaning(question)]


async def at_once(question: str) -> list[Passage]:
    of_words, of_meaning = await asyncio.gather(search_words(question), search_meaning(question))
    return [*of_words, *of_meaning]


async def ask(
    client: "openai.AsyncOpenAI", question: str, search: Callable[[str], Awaitable[list[Passage]]]
) -> str | None:
    """Answer one question. The pipeline lets the model's answer inherit the pages of the passages found for it."""
    with semcache.pipeline("support"):
        await prepare()
        found = await search(question)
        with semcache.stage("prompt", needs=["by words", "by meaning"]):
            known = "\n".join(dict.fromkeys(passage.text for passage in found))
        with semcache.stage("generate", needs="prompt"):
            answer = await client.chat.completions.create(
                model="m",
                messages=[{"role": "system", "content": known}, {"role": "user", "content": question}],
            )
    return answer.choices[0].message.content


async def compare(models: StandIn) -> None:
    import openai  # here, since each process of the pool imports this file

    async with openai.AsyncOpenAI(base_url=models.openai_url, api_key="none") as bare:
        client = semcache.cached(bare, cache, ttl="10m")
        # The SDK is loaded, and connected, at its first call.
        await bare.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello?"}])

        print("Without the cache, one stage after another:")
        with semcache.trace() as before, semcache.context(mode="off"):
            for question in QUESTIONS:
                await ask(client, question, one_after_another)
        print(before.table())
        print(*(f"- {finding}" for finding in before.findings), sep="\n")

        print("\nWith the cache, what is independent at once, the first time:")
        with semcache.trace() as first:
            for question in QUESTIONS:
                await ask(client, question, at_once)
        print(first.table())

        print("\nAnd from then on:")
        with semcache.trace() as after:
            for question in QUESTIONS:
                await ask(client, question, at_once)
        print(after.table())

        handbook.pages["prices"] = "Shipping does cost 4 euro. Express shipping does cost 9 euro."
        dropped = await cache.ainvalidate(document="prices")
        print(f"\nThe prices have changed: {dropped} dropped, the searches and the answer made of them")
        for question in QUESTIONS:
            await ask(client, question, at_once)
            event = semcache.last()
            print(f"{question} {event.kind if event else ''}")


def main() -> None:
    with (
        StandIn(latency=0.05) as models,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes,
        cache,
    ):
        list(processes.map(split, ["", ""]))  # they start here, and not in the first stage's time
        workers.append(processes)
        asyncio.run(compare(models))


if __name__ == "__main__":
    main()
