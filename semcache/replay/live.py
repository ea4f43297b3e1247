"""A replay in real time: several callers, as fast as they can, through the cache as it runs in a service."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from semcache.policy import Shadow
from semcache.replay.player import Player, Witness
from semcache.replay.recording import Asked
from semcache.replay.score import Outcome
from semcache.replay.settings import Progress, Replayed, Settings, load, make_cache

_TOLD_EVERY = 64


def run_live(lines: Iterable[bytes | str], settings: Settings, folder: Path, progress: Progress) -> Replayed:
    """Replay a recording with `settings.live_threads` callers; its times do not count, only its order."""
    witness = Witness(settings.policy or Shadow())
    with make_cache(settings, folder, witness) as cache:
        recording = load(lines, settings, cache, progress)
        replayed = Replayed(recording, settings, [], [], [])
        if cache.semantic is not None:
            began = perf_counter()
            progress(f"loading {cache.embedder_identity}", 0, 0)
            cache.warm()
            replayed.model_seconds = perf_counter() - began
        player = Player(cache, recording.asked, witness, origin_scale=settings.origin_scale)
        replayed.outcomes = replayed.exact = _play(player, settings.live_threads, progress)
        cache.flush()
        replayed.stats = stats = cache.stats()
        replayed.embed_seconds = stats.stages.get("embed", 0.0)
        replayed.embedded = int(stats.tiers.get("semantic", {}).get("embedded", 0))
        replayed.uncovered = int(stats.tiers.get("semantic", {}).get("uncovered", 0))
    return replayed


def _play(player: Player, threads: int, progress: Progress) -> list[Outcome]:
    """Let callers take one request after another until none is left; an error in one of them stops all."""
    outcomes = [Outcome()] * len(player.asked)
    waiting = iter(player.asked)
    lock = threading.Lock()
    is_over = threading.Event()

    def take() -> Iterator[Asked]:
        while not is_over.is_set():
            with lock:
                one = next(waiting, None)
                if one is not None and one.position % _TOLD_EVERY == 0:
                    progress("replaying", one.position, len(outcomes))
            if one is None:
                return
            yield one

    def call() -> None:
        for one in take():
            outcomes[one.position] = player.answer(one)

    with ThreadPoolExecutor(threads, "semcache-replay") as pool:
        callers = [pool.submit(call) for _ in range(threads)]
        try:
            for caller in callers:
                caller.result()
        finally:
            is_over.set()
    progress("replaying", len(outcomes), len(outcomes))
    return outcomes
