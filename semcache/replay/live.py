"""A replay in real time: several callers, as fast as they can, through the cache as it runs in a service."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from semcache.policy import Shadow
from semcache.replay.player import Player, Witness
from semcache.replay.recording import Asked
from semcache.replay.score import Outcome
from semcache.replay.settings import Progress, Replayed, Settings, load, make_cache

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from semcache.semantic.embedder import TextEmbedder

_TOLD_EVERY = 64
_LOOK_UP_SECONDS = 0.2


def run_live(lines: Iterable[bytes | str], settings: Settings, folder: Path, progress: Progress) -> Replayed:
    """Replay a recording with `settings.live_threads` callers; its times do not count, only its order."""
    witness = Witness(settings.policy or Shadow())
    with make_cache(settings, folder, witness) as cache:
        recording = load(lines, settings, cache, progress)
        replayed = Replayed(recording, settings)
        embedder: _Timed | None = None
        if cache.semantic is not None:
            batcher = cache.semantic.batcher
            embedder = _Timed(batcher.settings.embedder)
            batcher.settings = replace(batcher.settings, embedder=embedder)
            began = perf_counter()
            progress(f"loading {cache.embedder_identity}", 0, 0)
            cache.warm()
            replayed.model_seconds = perf_counter() - began
            embedder.seconds, embedder.texts = 0.0, 0
        is_over = threading.Event()
        # Not a sleep: who stops the replay does not wait for the origins.
        player = Player(
            cache, recording.asked, witness, lambda asked: is_over.wait(asked.seconds * settings.origin_scale)
        )
        replayed.outcomes = replayed.exact = _play(player, settings.live_threads, is_over, progress)
        cache.flush()
        replayed.stats = cache.stats()
        if embedder is not None:
            replayed.embedded, replayed.embed_seconds = embedder.texts, embedder.seconds
            replayed.uncovered = len(embedder.uncovered)
    return replayed


class _Timed:
    """An embedder with a watch on it; only the batcher's thread calls it."""

    def __init__(self, embedder: TextEmbedder) -> None:
        self._embedder = embedder
        self.identity = embedder.identity
        self.dimension = embedder.dimension
        self.seconds = 0.0
        self.texts = 0
        self.uncovered: set[str] = set()

    def load(self) -> None:
        self._embedder.load()
        self.dimension = self._embedder.dimension

    def __call__(self, texts: list[str], /) -> NDArray[float32]:
        began = perf_counter()
        vectors = self._embedder(texts)
        self.seconds += perf_counter() - began
        self.texts += len(texts)
        return vectors

    def covers(self, text: str) -> str | None:
        reason = self._embedder.covers(text)
        if reason is not None:
            self.uncovered.add(text)
        return reason


def _play(player: Player, threads: int, is_over: threading.Event, progress: Progress) -> list[Outcome]:
    """Let callers take one request after another until none is left; an error in one of them stops all."""
    outcomes = [Outcome()] * len(player.asked)
    waiting = iter(player.asked)
    lock = threading.Lock()

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

    pool = ThreadPoolExecutor(threads, "semcache-replay")
    try:
        callers = {pool.submit(call) for _ in range(threads)}
        while callers:
            # Not for ever: where the system gives Ctrl-C to another thread, this one must look up to hear of it.
            done, callers = wait(callers, _LOOK_UP_SECONDS, FIRST_EXCEPTION)
            for caller in done:
                caller.result()
    finally:
        is_over.set()
        pool.shutdown()
    progress("replaying", len(outcomes), len(outcomes))
    return outcomes
