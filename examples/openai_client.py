"""OpenAI's client behind a cache, sync, async and streamed: `python examples/openai_client.py`.

The model is a stand-in on this machine. For a real one leave `base_url` and `api_key` out.
"""

import asyncio

import openai
from openai.types.chat import ChatCompletionMessageParam

import semcache
from semcache.testing import StandIn

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You answer for a shop."},
    {"role": "user", "content": "Do you ship to Austria?"},
]


def told() -> str:
    event = semcache.last()
    return "nothing" if event is None else f"{event.kind} {event.tier or ''}".strip()


async def ask_async(url: str, cache: semcache.Cache) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as bare:
        client = semcache.cached(bare, cache)
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)
        print(f"async: {answer.choices[0].message.content} ({told()})")


def main() -> None:
    with StandIn() as models, semcache.Cache() as cache:
        client = semcache.cached(openai.OpenAI(base_url=models.openai_url, api_key="none"), cache)
        for _ in range(2):
            answer = client.chat.completions.create(model="m", messages=MESSAGES)
            print(f"{answer.choices[0].message.content} ({told()})")

        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        print(f"streamed: {text} ({told()})")

        asyncio.run(ask_async(models.openai_url, cache))
        answers = semcache.gather(client, [{"model": "m", "messages": MESSAGES}] * 3)
        print(f"gathered: {len(answers)} answers ({told()})")
        print(f"the model was called {models.calls} time")
        for row in cache.usage():
            print(f"saved: {row.saved_prompt_tokens} + {row.saved_completion_tokens} tokens in {row.hits} hits")
        client.close()


if __name__ == "__main__":
    main()
