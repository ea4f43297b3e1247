"""Cached clients hold on to nothing: no thread, file, connection, task or half-read stream outlives its use."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest
from dialects import Asking

from semcache.wrap.shared import Stream

ASKED = "Do you ship to Austria?"


def held():
    """Count what a process holds: open files and sockets, threads, streams that are being read."""
    gc.collect()
    streams = sum(type(one) is Stream for one in gc.get_objects())
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), streams


def use(asking, models, cache, number):
    """Make a client and use it in every way in which a use can end."""
    client = asking.cached(models, cache)
    asking.ask(client, f"{ASKED} {number}")
    asking.read(client, f"{ASKED} {number}")
    asking.read(client, f"{ASKED} {number} streamed")
    asking.read(client, f"{ASKED} {number} closed", limit=2)
    models.fail(500)
    with pytest.raises(asking.server_error):
        asking.ask(client, f"{ASKED} {number} failed")
    models.drop(after=2)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each SDK has its own
        asking.read(client, f"{ASKED} {number} dropped")


@pytest.mark.parametrize("package", ["openai", "anthropic"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_clients_made_used_and_closed_leave_nothing(models, cache, package, is_async):
    """A client each, and for async ones a loop each, opened and closed many times."""
    for number in range(2):  # what is made once: imports, pools, the SDK's own caches
        asking = Asking(package, is_async=is_async)
        use(asking, models, cache, number)
        asking.close()
    before = held()
    for number in range(2, 12):
        asking = Asking(package, is_async=is_async)
        use(asking, models, cache, number)
        asking.close()
    settled(before)


def settled(before):
    """Hold no more than before, once the stand-in's threads have noticed that their callers are gone."""
    for _ in range(200):
        if all(now <= then for now, then in zip(held(), before, strict=True)):
            return
        threading.Event().wait(0.01)
    assert held() == before


def test_cancelled_tasks_leave_nothing(models, cache):
    """Tasks that are cancelled at the call, and in the middle of a stream, leave no task and no stream behind."""
    asking = Asking("openai", is_async=True)
    client = asking.cached(models, cache)

    async def cancelled(number, *, streams):
        asked, go_on = threading.Event(), threading.Event()
        held_back = models.hold(after=2) if streams else None

        def reply(body):
            asked.set()
            if not streams:
                go_on.wait(30)
            return "Yes, within three days."

        models.reply = reply

        async def call():
            answer = await asking.create(client, f"{ASKED} {number}", stream=streams)
            return [chunk async for chunk in answer] if streams else answer

        before = asyncio.all_tasks()
        task = asyncio.create_task(call())
        await asyncio.to_thread((asked if held_back is None else held_back.reached).wait, 30)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        go_on.set()
        if held_back is not None:
            held_back.go.set()
        assert asyncio.all_tasks() == before

    async def main():
        for number in range(8):
            await cancelled(number, streams=number % 2 == 1)

    _, _, before = held()
    asking.run(main())
    assert models.calls == 8
    asking.close()
    assert held()[2] <= before


def test_threads_share_a_client(models, cache):
    """Threads that use one client at once, plain and streamed, are each given their own answer."""
    asking = Asking("anthropic", is_async=False)
    client = asking.cached(models, cache)
    wrong = []

    def work(own):
        for number in range(10):
            asked = f"{ASKED} {(own + number) % 4}"
            plain = asking.create(client, asked)
            streamed = list(asking.create(client, asked, stream=True))
            if asking.text(plain) != f"Answer to: {asked}" or asking.streamed(streamed) != f"Answer to: {asked}":
                wrong.append((plain, streamed))

    threads = [threading.Thread(target=work, args=(own,)) for own in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asking.close()
    assert not wrong
    assert models.calls <= 8
