"""Anthropic's client behind a cache, plain and streamed: `python examples/anthropic_client.py`.

The model is a stand-in on this machine. For a real one leave `base_url` and `api_key` out.
"""

import anthropic

import semcache
from semcache.testing import StandIn


def told() -> str:
    event = semcache.last()
    return "nothing" if event is None else f"{event.kind} {event.tier or ''}".strip()


def main() -> None:
    with StandIn() as models, semcache.Cache() as cache:
        client = semcache.cached(anthropic.Anthropic(base_url=models.anthropic_url, api_key="none"), cache)
        with client.messages.stream(
            model="m", max_tokens=100, messages=[{"role": "user", "content": "Do you ship to Austria?"}]
        ) as stream:
            print("".join(stream.text_stream), f"({told()})")
        message = client.messages.create(
            model="m", max_tokens=100, messages=[{"role": "user", "content": "Do you ship to Austria?"}]
        )
        print(message.content[0].to_dict(), f"({told()})")
        # Every parameter is in the key; a temperature above 0 would go by the cache.
        with semcache.trace() as trace:
            for temperature in (0.0, 0.0):
                client.messages.create(
                    model="m", max_tokens=100, temperature=temperature,
                    messages=[{"role": "user", "content": "Do you ship to Austria?"}],
                )  # fmt: skip
        print([event.kind for event in trace.lookups])
        print(f"the model was called {models.calls} times")
        client.close()


if __name__ == "__main__":
    main()
