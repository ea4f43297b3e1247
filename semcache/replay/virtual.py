"""A replay in virtual time: the clocks of the cache tell the time of the recording, so ttl and eviction follow `ts`.

All else is the real cache: lookup, memory, disk, index, policy; only its vectors are made before, its searches ahead.
An origin takes no time on these clocks: who asks while an answer is being loaded finds it, as a follower would get it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

from semcache.cache import Cache
from semcache.policy import Shadow
from semcache.replay.lookahead import AHEAD, LookAhead, embed
from semcache.replay.player import Player, Witness
from semcache.replay.recording import Asked, Recording
from semcache.replay.rehearsal import Rehearsed, rehearsed
from semcache.replay.score import Outcome
from semcache.replay.settings import Progress, Replayed, Settings, load, make_cache
from semcache.semantic.index import FlatIndex
from semcache.tiers.semantic import NEIGHBOURS
from semcache.ttl import TTL, size_bytes

_EVERYTHING_BYTES = 1 << 50


class VirtualClock:
    """Both clocks of a cache, as the recording tells the time."""

    _EPOCH = 1_000_000_000.0

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._EPOCH + self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass, and wait for nothing."""
        self._now += seconds

    async def asleep(self, seconds: float) -> None:
        """Let time pass, and wait for nothing."""
        self._now += seconds

    def move_to(self, seconds: float) -> None:
        """Let it be so many seconds after the begin of the recording."""
        self._now = seconds


def run_virtual(lines: Iterable[bytes | str], settings: Settings, folder: Path, progress: Progress) -> Replayed:
    """Replay a recording to a cache whose time is the recording's."""
    clock = VirtualClock()
    budget = rehearsed(settings.policy)
    witness = Witness(settings.policy or Shadow()) if budget is None else budget.witness
    with make_cache(settings, folder, budget or witness, clock) as cache:
        recording = load(lines, settings, cache, progress)
        replayed = Replayed(recording, settings)
        ahead = _embed_ahead(replayed, cache, clock, progress)
        player = Player(cache, recording.asked, witness)
        if budget is not None:
            budget.take(recording.asked)
        replayed.outcomes = replayed.exact = _play(player, clock, settings.time_scale, ahead, progress, budget)
        replayed.stats = cache.stats()
        if budget is not None:
            replayed.learned = budget.learned
            replayed.learned.status = budget.status()
    return replayed


def _embed_ahead(replayed: Replayed, cache: Cache, clock: VirtualClock, progress: Progress) -> LookAhead | None:
    """Embed all that may match nearly, and give the near tier a batcher that knows it; None where nothing may."""
    texts = replayed.recording.texts()
    if cache.semantic is None or not texts:
        return None
    began = perf_counter()
    embedder = replayed.settings.embedder
    progress(f"loading {embedder.identity}", 0, 0)
    embedder.load()
    replayed.model_seconds = perf_counter() - began
    vectors = embed(embedder, texts, lambda done, of: progress("embedding texts", done, of))
    replayed.embed_seconds = vectors.seconds
    replayed.embedded, replayed.uncovered = len(vectors.rows), len(vectors.uncovered)
    index = FlatIndex(embedder.dimension, size_bytes(replayed.settings.semantic))
    ahead = LookAhead(index, vectors, clock.monotonic)
    cache.semantic.batcher = ahead  # type: ignore[assignment]  # it offers what the near tier uses
    return ahead


def _play(
    player: Player, clock: VirtualClock, time_scale: float, ahead: LookAhead | None, progress: Progress,
    budget: Rehearsed | None = None,
) -> list[Outcome]:  # fmt: skip
    """Let a player's cache answer all requests, in order, at their times."""
    asked = player.asked
    outcomes = []
    for start in range(0, len(asked), AHEAD):
        progress("replaying", start, len(asked))
        window = asked[start : start + AHEAD]
        clock.move_to(window[0].ts * time_scale)
        # The store's writer is a thread of its own; where it fell behind, it would refuse what it should keep.
        player.cache.flush()
        if ahead is not None:
            ahead.look_ahead([one.request for one in window if one.request is not None], NEIGHBOURS)
        for one in window:
            clock.move_to(one.ts * time_scale)
            if budget is not None:
                budget.begin(one)
            outcomes.append(_answer(player, one, ahead))
            if budget is not None:
                budget.settle(player.cache)
    progress("replaying", len(asked), len(asked))
    return outcomes


def _answer(player: Player, one: Asked, ahead: LookAhead | None) -> Outcome:
    """Let one request be answered, and book on it its share of what was done ahead."""
    before_ns = ahead.ahead_ns if ahead is not None else 0
    outcome = player.answer(one)
    if ahead is not None and outcome.nanoseconds is not None:
        outcome.nanoseconds += ahead.ahead_ns - before_ns
    return outcome


def run_exact(recording: Recording, settings: Settings) -> list[Outcome]:
    """Replay once more, through one exact tier with room for everything, where an answer lives as long as in any."""
    clock = VirtualClock()
    ttl = TTL(memory=settings.exact_seconds, jitter=settings.ttl.jitter)
    with Cache("replay", memory=_EVERYTHING_BYTES, ttl=ttl, clock=clock, seed=settings.seed) as cache:
        player = Player(cache, recording.asked, Witness(Shadow()))
        return _play(player, clock, settings.time_scale, None, lambda *_: None)
