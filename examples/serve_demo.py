"""A sidecar with its dashboard, in front of a stand-in for a model, and a support desk's traffic: `make serve-demo`.

Nothing leaves this machine. The traffic of examples/traffic/support.jsonl is played over and over, by several callers
at once, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from semcache.sidecar.serve import Sidecar
from semcache.sidecar.settings import Server, Settings
from semcache.testing import Reply, StandIn

# The shares of calls that ask what many ask, that ask it in other words, and that want answers that differ.
POPULAR, IN_OTHER_WORDS, SAMPLED = 0.5, 0.5, 0.03
TRAFFIC = Path(__file__).parent / "traffic" / "support.jsonl"
# What the model would cost, a million tokens: the stand-in itself is free.
PRICES = """
[providers.stand-in]
as_of = 2026-11-01
models.assistant-1 = { input = 2.50, output = 10.00 }
"""


class Model:
    """Answers as the recording does, as fast as it did; now and then it fails."""

    def __init__(self, calls: list[Mapping[str, Any]]) -> None:
        self._answers = {_asked(call): call for call in calls}
        self._dice = random.Random(1)  # noqa: S311 - a demonstration
        self.ended = threading.Event()

    def _nearest(self, messages: list[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the call that was reworded: it has the same system prompt, and its words are in these."""
        said = str(messages[-1]["content"])
        whole = [(call, call["request"]["messages"]) for call in self._answers.values()]
        found = [
            call for call, own in whole if own[:-1] == messages[:-1] and str(own[-1]["content"]).rstrip("?!. ") in said
        ]
        found.sort(key=lambda call: len(str(call["request"]["messages"][-1]["content"])))
        return found[-1] if found else {}

    def __call__(self, body: Mapping[str, Any]) -> Reply:
        call = self._answers.get(_words(body["messages"])) or self._nearest(body["messages"])
        self.ended.wait(call.get("latency_ms", 400) / 1000 * self._dice.uniform(0.7, 1.3))
        return Reply(str(call.get("response") or "I do not know that one."))


# As people say the same again: what is reworded so means what it meant.
REWORDED = ("{}", "hi, {}", "hello! {}", "{} please", "{} thanks", "quick question: {}", "{} thank you", "hey {}")


def reworded(text: str, dice: random.Random) -> str:
    """Return a text in slightly other words."""
    return dice.choice(REWORDED).format(text.rstrip("?!. ") + dice.choice(("", "?", "??", " ?")))


def _words(messages: list[Mapping[str, Any]]) -> str:
    return json.dumps(messages, sort_keys=True)


def _asked(call: Mapping[str, Any]) -> str:
    return _words(call["request"]["messages"])


def played(calls: list[Mapping[str, Any]], dice: random.Random) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield whose call comes next, and its body: the recording again and again, popular questions more often."""
    popular = dice.sample(calls, 40)
    for number in range(sys.maxsize):
        call = dice.choice(popular) if dice.random() < POPULAR else calls[number % len(calls)]
        body = dict(call["request"])
        if dice.random() < IN_OTHER_WORDS:
            *before, last = body["messages"]
            body["messages"] = [*before, {**last, "content": reworded(str(last["content"]), dice)}]
        if dice.random() < SAMPLED:
            body["temperature"] = 0.8  # goes by
        yield str(call.get("tenant", "northwind-bikes")), body


async def play(url: str, calls: list[Mapping[str, Any]], rate: float, ended: asyncio.Event) -> None:
    """Ask the sidecar, some `rate` times a second, until it is over."""
    dice = random.Random(2)  # noqa: S311 - a demonstration
    asking: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession() as session:
        for tenant, body in played(calls, dice):
            if ended.is_set():
                break
            task = asyncio.create_task(_ask(session, url, tenant, body))
            asking.add(task)
            task.add_done_callback(asking.discard)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), dice.expovariate(rate))
        await asyncio.gather(*asking)


async def _ask(session: aiohttp.ClientSession, url: str, tenant: str, body: Mapping[str, Any]) -> None:
    headers = {"authorization": f"Bearer {tenant}"}
    with suppress(aiohttp.ClientError):  # the sidecar says itself what went wrong
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()


async def run(sidecar: Sidecar, calls: list[Mapping[str, Any]], rate: float, seconds: float | None) -> None:
    """Serve and play until a signal, or for some seconds."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    listening = asyncio.Event()
    serving = asyncio.create_task(sidecar.run(listening.set))
    await listening.wait()
    print(f"semcache: the dashboard is at {sidecar.url}/ (Ctrl-C ends it)", flush=True)
    playing = asyncio.create_task(play(sidecar.url, calls, rate, ended))
    with suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)
    ended.set()
    await playing
    sidecar.end()
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=8400, help="where the sidecar listens; 0 takes a free port")
    parser.add_argument("--rate", type=float, default=8.0, help="calls a second")
    parser.add_argument("--seconds", type=float, help="end after so many")
    parser.add_argument("--policy", default="budget:0.1", help="as of semcache serve")
    parser.add_argument("--no-embedder", action="store_true", help="no near matches: starts without the model")
    told = parser.parse_args()
    with TRAFFIC.open(encoding="utf-8") as file:
        calls = [call for call in map(json.loads, file) if call.get("kind") == "llm"]
    model = Model(calls)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread embeds a question at once, however busy the machine is
    warnings.simplefilter("ignore")  # a threshold that nobody measured is what this shows
    with tempfile.TemporaryDirectory() as folder, StandIn(model) as behind:
        prices = Path(folder) / "prices.toml"
        prices.write_text(PRICES, encoding="utf-8")
        settings = Settings(
            upstream=(Server(behind.url),), port=told.port, namespace="support-desk", disk=f"{folder}/cache.db",
            memory="200kB", ttl_memory="45s", ttl_disk="3m", ttl_semantic="3m", timeout_semantic="2s",
            secret="a demonstration", prices=str(prices),  # noqa: S106 - of callers who are none
            embedder="" if told.no_embedder else "all-MiniLM-L6-v2", policy=told.policy,
        )  # fmt: skip
        sidecar = Sidecar(settings)
        try:
            sidecar.listen()
            asyncio.run(run(sidecar, calls, told.rate, told.seconds))
        except OSError as error:
            sys.exit(f"semcache: {error}")
        finally:
            model.ended.set()
            sidecar.close()


if __name__ == "__main__":
    main()
