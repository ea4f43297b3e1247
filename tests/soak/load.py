"""Calls of all kinds at a sidecar for some seconds: its memory, files and threads must not grow once it is warm.

Beside plain and streamed calls, hits and misses, there are callers who leave in mid-stream, bodies that are none,
errors of the server behind, keys by the thousand, and an operator who looks, switches, drops and explains.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import time

import aiohttp
from process import sidecar

from semcache.testing import StandIn

_CALLERS = 24
# So many calls fill what is remembered of callers and calls, which is bounded.
_WARM = 12_000
_SAMPLE_SECONDS = 1.0
# What may be left of growth: an allocator's, by the sizes that happen to be asked for at the end.
_MOST_BYTES, _MOST_SHARE = 6 << 20, 0.05
_MOST_FILES, _MOST_THREADS = 8, 2
_CHAT = "/v1/chat/completions"


def asked(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


class Load:
    """What callers do until they are told to stop."""

    def __init__(self, running, models):
        self._running = running
        self._models = models
        self._random = random.Random(7)
        self.calls = 0
        self.wrong = []

    def _kinds(self):
        return (
            (30, self._hit), (30, self._miss), (8, self._stream), (4, self._leave), (4, self._nonsense),
            (4, self._embed), (4, self._wishes), (2, self._fail), (2, self._look), (1, self._explain),
            (1, self._drop), (1, self._refused),
        )  # fmt: skip

    async def caller(self, session, is_over):
        weights, kinds = zip(*self._kinds(), strict=True)
        while not is_over():
            (kind,) = self._random.choices(kinds, weights)
            try:
                await kind(session)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.wrong.append(f"{kind.__name__}: {error!r}")
            self.calls += 1
            if self.calls % 1000 == 0:
                self._models.asked.clear()

    async def _post(self, session, path, body, expected=200, headers=None):
        url = self._running.url + path
        async with session.post(url, json=body, headers={"authorization": "Bearer k"} | (headers or {})) as answer:
            said = await answer.read()
            was_told_to = answer.status == 500 and b"the stand-in was told to" in said
            if answer.status != expected and not was_told_to:
                self.wrong.append(f"{path}: {answer.status}, not {expected}: {said[:200]!r}")

    async def _hit(self, session):
        await self._post(session, _CHAT, asked(f"often {self._random.randrange(200)}"))

    async def _miss(self, session):
        text, key = f"once {self.calls} {self._random.random()}", f"Bearer {self._random.randrange(6000)}"
        await self._post(session, _CHAT, asked(text), headers={"authorization": key})

    async def _stream(self, session):
        often = self._random.randrange(400)
        await self._post(session, _CHAT, asked(f"streamed {often}", stream=True))

    async def _leave(self, session):
        body = asked(f"left {self._random.random()}", stream=True)
        async with session.post(self._running.url + _CHAT, json=body, headers={"authorization": "k"}) as answer:
            await answer.content.readany()
            answer.close()

    async def _nonsense(self, session):
        data = self._random.choice([b"", b"{", b"[" * 5000, b"\xff", b'{"model": NaN}', b"x" * 20_000])
        for path in (_CHAT, "/semcache/v1/mode"):
            kind = {"content-type": "application/json"}
            async with session.post(self._running.url + path, data=data, headers=kind) as answer:
                await answer.read()
                if answer.status >= 500:
                    self.wrong.append(f"{path}: {answer.status} for {data[:20]!r}")

    async def _embed(self, session):
        texts = [f"text {self._random.randrange(5000)}" for _ in range(4)]
        await self._post(session, "/v1/embeddings", {"model": "e", "input": texts})

    async def _wishes(self, session):
        headers = {
            "x-semcache-tenant": f"t{self._random.randrange(3000)}", "x-semcache-ttl": "10m",
            "x-semcache-tags": f"a{self._random.randrange(50)}", f"x-vendor-{self._random.randrange(2000)}": "1",
        }  # fmt: skip
        await self._post(session, _CHAT, asked(f"wished {self._random.randrange(50)}"), headers=headers)

    async def _fail(self, session):
        self._models.fail(500)
        await self._post(session, _CHAT, asked(f"failed {self._random.random()}"))

    async def _look(self, session):
        for path in ("stats", "usage", "policy", "mode"):
            async with session.get(f"{self._running.url}/semcache/v1/{path}") as answer:
                await answer.read()
        async with session.get(f"{self._running.url}/metrics") as answer:
            await answer.read()

    async def _explain(self, session):
        body = {"path": _CHAT, "body": asked(f"often {self._random.randrange(400)}")}
        await self._post(session, "/semcache/v1/explain", body)

    async def _drop(self, session):
        await self._post(session, "/semcache/v1/invalidate", {"tag": f"a{self._random.randrange(50)}"})

    async def _refused(self, session):
        await self._post(session, "/semcache/v1/invalidate", {}, 400)


async def loaded(running, models, seconds):
    """Run the callers; returns samples of (seconds, bytes, files, threads), and those before and behind them."""
    load = Load(running, models)
    samples = []
    timeout = aiohttp.ClientTimeout(total=60)
    before = running.files, running.threads
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def crew(is_over):
            await asyncio.gather(*(load.caller(session, is_over) for _ in range(_CALLERS)))

        await crew(lambda: load.calls >= _WARM)
        warm = load.calls
        print(f"warm after {warm} calls: {running.rss / 2**20:.1f} MB", flush=True)
        began = time.monotonic()
        end = began + seconds
        callers = asyncio.create_task(crew(lambda: time.monotonic() > end))
        while not callers.done():
            samples.append((time.monotonic() - began, running.rss, running.files, running.threads))
            await asyncio.wait([callers], timeout=_SAMPLE_SECONDS)
        await callers
    await asyncio.sleep(1)
    print(f"{load.calls - warm} calls, {(load.calls - warm) / seconds:.0f} a second")
    return load, samples, before, (running.files, running.threads)


def judged(load, samples, before, after):
    """Return what is wrong, in a line each."""
    wrong = sorted(set(load.wrong))[:20]
    fifth = max(1, len(samples) // 5)
    first = statistics.median(rss for _, rss, *_ in samples[:fifth])
    last = statistics.median(rss for _, rss, *_ in samples[-fifth:])
    print(f"memory {first / 2**20:.1f} MB at first, {last / 2**20:.1f} MB at last, "
          f"at most {max(rss for _, rss, *_ in samples) / 2**20:.1f} MB")  # fmt: skip
    if last - first > max(_MOST_BYTES, _MOST_SHARE * first):
        wrong.append(f"its memory grew by {(last - first) / 2**20:.1f} MB")
    files = after[0] - before[0]
    print(f"files {before[0]} before, {after[0]} behind it; threads {before[1]}, {after[1]}")
    idle = _CALLERS  # connections to the server behind are kept for the next call
    if files > idle + _MOST_FILES:
        wrong.append(f"{files} more files are open than before")
    most = [statistics.median(sample[3] for sample in part) for part in (samples[:fifth], samples[-fifth:])]
    if most[1] - most[0] > _MOST_THREADS:
        wrong.append(f"it has {most[1] - most[0]} threads more than at first")
    return wrong


def main(seconds):
    gc.collect()
    with StandIn() as models, sidecar(models.url, "--memory", "8MB") as running:
        wrong = judged(*asyncio.run(loaded(running, models, seconds)))
        told = [line for line in running.log().splitlines() if " listens at " not in line]
    wrong += [f"its log: {line}" for line in told[-20:]]
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
