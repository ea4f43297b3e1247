"""What a recording is replayed with, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from semcache.cache import Cache
from semcache.errors import TrafficError
from semcache.policy import Policy
from semcache.prices import Source
from semcache.replay.recording import Recording, prepare
from semcache.replay.rehearsal import Learned
from semcache.replay.score import Outcome
from semcache.stats import Stats
from semcache.tier import Clock
from semcache.traffic import read
from semcache.ttl import TTL, Size, Timeouts, size_bytes

DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"

# Told what is being done, how much of it is, and of how much; 0 of 0 where that is not known.
Progress = Callable[[str, int, int], None]

_NEVER_LATE = Timeouts(disk="60s", semantic="10m", flight="10m")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a recording is replayed with; `policy` None is shadow, `embedder` None leaves near matches out.

    `time_scale` is how many seconds of the caches' time pass in one of the recording's. With `live_threads` the replay
    runs in real time, as fast as so many callers can, and the origin takes its recorded latency times `origin_scale`.
    With `keep_ingredients` the recording is kept part by part, for who asks why it does not hit.
    """

    policy: Policy | None = None
    embedder: Any = DEFAULT_EMBEDDER
    device: str = "auto"
    memory: Size = "64MB"
    semantic: Size = "512MB"
    ttl: TTL = field(default_factory=TTL)
    prices: Source | None = None
    time_scale: float = 1.0
    seed: int = 0
    limit: int | None = None
    is_strict: bool = False
    live_threads: int = 0
    origin_scale: float = 0.0
    keep_ingredients: bool = False

    @property
    def exact_seconds(self) -> float:
        """How long an answer is found by its key, in whichever tier."""
        has_memory = size_bytes(self.memory, "memory") > 0
        return max(self.ttl.of("disk"), self.ttl.of("memory") if has_memory else 0.0)


@dataclass(slots=True)
class Replayed:
    """What came of a replay: one outcome a request, for this cache, for exact tiers alone, and for an oracle.

    `learned` is what an error budget learned on the way. `wall_seconds` is from the first line read to the last
    outcome, without the `model_seconds` of loading the embedder.
    """

    recording: Recording
    settings: Settings
    outcomes: list[Outcome] = field(default_factory=list)
    exact: list[Outcome] = field(default_factory=list)
    oracle: list[Outcome] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    learned: Learned | None = None
    embedded: int = 0
    uncovered: int = 0
    embed_seconds: float = 0.0
    model_seconds: float = 0.0
    wall_seconds: float = 0.0


def load(lines: Iterable[bytes | str], settings: Settings, cache: Cache, progress: Progress) -> Recording:
    """Read a recording and make it ready for a cache."""
    progress("reading", 0, 0)
    skipped: list[tuple[int, str]] = []
    recorded = read(lines, None if settings.is_strict else skipped)
    recording = prepare(islice(recorded, settings.limit), cache, skipped, keep_ingredients=settings.keep_ingredients)
    if not recording.asked:
        raise TrafficError(f"no request in it; the first line: {skipped[0][1]}" if skipped else "no request in it")
    return recording


def make_cache(settings: Settings, folder: Path, policy: Policy, clock: Clock | None = None) -> Cache:
    """Make the cache that is replayed to: the defaults, a store kept for the run, and no lookup ever late."""
    return Cache(
        "replay",
        memory=settings.memory,
        disk=folder / "replay.db",
        embedder=settings.embedder,
        semantic=settings.semantic,
        device=settings.device,
        policy=None if settings.embedder is None else policy,  # without one there is nothing to decide on
        ttl=settings.ttl,
        prices=settings.prices,
        timeouts=_NEVER_LATE,
        clock=clock,
        seed=settings.seed,
    )
