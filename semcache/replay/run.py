"""Replays: a recording run through the cache, in virtual time.

The cache is the real one: lookup, memory, a disk store in a file kept for the run, index and policy. Its clocks tell the
time of the recording, so ttl and eviction follow `ts`; its vectors are made before, in batches; its searches, ahead.
An origin takes no time on these clocks: who asks while an answer is being loaded finds it, as a follower would get it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from semcache.cache import Cache
from semcache.errors import TrafficError
from semcache.policy import Policy, Shadow
from semcache.replay.player import Player, Witness
from semcache.replay.recording import Asked, Recording, prepare
from semcache.replay.score import Outcome, oracle
from semcache.traffic import read
from semcache.ttl import TTL, Size, Timeouts

if TYPE_CHECKING:
    from semcache.replay.lookahead import LookAhead

DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"

# Told what is being done, how much of it is, and of how much; 0 of 0 where that is not known.
Progress = Callable[[str, int, int], None]

_NEVER_LATE = Timeouts(disk="60s", semantic="10m", flight="10m")
_EVERYTHING_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Settings:
    """What a recording is replayed with; `policy` None is shadow, `embedder` None leaves near matches out.

    `time_scale` is how many seconds of the caches' time pass in one of the recording's. With `live_threads` the replay
    runs in real time, as fast as so many callers can, and the origin takes its recorded latency times `origin_scale`.
    """

    policy: Policy | None = None
    embedder: Any = DEFAULT_EMBEDDER
    device: str = "auto"
    memory: Size = "64MB"
    semantic: Size = "512MB"
    ttl: TTL = field(default_factory=TTL)
    time_scale: float = 1.0
    seed: int = 0
    limit: int | None = None
    is_strict: bool = False
    live_threads: int = 0
    origin_scale: float = 0.0

    @property
    def exact_seconds(self) -> float:
        """How long an answer is found by its key, in whichever tier."""
        return max(self.ttl.of("memory"), self.ttl.of("disk"))


@dataclass(slots=True)
class Replayed:
    """What came of a replay: one outcome a request, for this cache, for exact tiers alone, and for an oracle.

    `wall_seconds` is from the first line read to the last outcome, without the `model_seconds` of loading the embedder.
    """

    recording: Recording
    settings: Settings
    outcomes: list[Outcome]
    exact: list[Outcome]
    oracle: list[Outcome]
    tiers: dict[str, dict[str, int | float]]
    embedded: int = 0
    uncovered: int = 0
    embed_seconds: float = 0.0
    model_seconds: float = 0.0
    wall_seconds: float = 0.0


class VirtualClock:
    """Both clocks of a cache, as the recording tells the time."""

    _EPOCH = 1_000_000_000.0

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._EPOCH + self._now

    def move_to(self, seconds: float) -> None:
        """Let it be so many seconds after the begin of the recording."""
        self._now = seconds


def replay(lines: Iterable[bytes | str], settings: Settings, progress: Progress) -> Replayed:
    """Replay a recording. Raises ConfigurationError, or TrafficError where nothing can be read or a strict read stops."""
    began = perf_counter()
    with TemporaryDirectory(prefix="semcache-replay-", ignore_cleanup_errors=True) as folder:
        if settings.live_threads:
            from semcache.replay.live import run_live

            replayed = run_live(lines, settings, Path(folder), progress)
        else:
            replayed = _run_virtual(lines, settings, Path(folder), progress)
    recording = replayed.recording
    if settings.embedder is not None:
        replayed.exact = _run_exact(recording, settings, progress)
    replayed.oracle = oracle(recording.asked, settings.exact_seconds / settings.time_scale)
    replayed.wall_seconds = perf_counter() - began - replayed.model_seconds
    return replayed


def load(lines: Iterable[bytes | str], settings: Settings, cache: Cache, progress: Progress) -> Recording:
    """Read a recording and make it ready for a cache."""
    progress("reading", 0, 0)
    skipped: list[tuple[int, str]] = []
    recorded = read(lines, None if settings.is_strict else skipped)
    recording = prepare(islice(recorded, settings.limit), cache, skipped)
    if not recording.asked:
        raise TrafficError(f"no request in it; the first line: {skipped[0][1]}" if skipped else "no request in it")
    return recording


def make_cache(settings: Settings, folder: Path, witness: Witness, clock: VirtualClock | None = None) -> Cache:
    """Make the cache that is replayed to: the defaults, a store kept for the run, and no lookup ever late."""
    return Cache(
        "replay",
        memory=settings.memory,
        disk=folder / "replay.db",
        embedder=settings.embedder,
        semantic=settings.semantic,
        device=settings.device,
        policy=witness,
        ttl=settings.ttl,
        timeouts=_NEVER_LATE,
        clock=clock,
        seed=settings.seed,
    )


def _run_virtual(lines: Iterable[bytes | str], settings: Settings, folder: Path, progress: Progress) -> Replayed:
    clock = VirtualClock()
    witness = Witness(settings.policy or Shadow())
    with make_cache(settings, folder, witness, clock) as cache:
        recording = load(lines, settings, cache, progress)
        replayed = Replayed(recording, settings, [], [], [], {})
        ahead = _embed_ahead(replayed, cache, clock, progress)
        player = Player(cache, recording.asked, witness)
        replayed.outcomes = replayed.exact = _play(player, clock, settings.time_scale, ahead, progress)
        replayed.tiers = cache.stats().tiers
    return replayed


def _embed_ahead(replayed: Replayed, cache: Cache, clock: VirtualClock, progress: Progress) -> LookAhead | None:
    """Embed all that may match nearly, and give the near tier a batcher that knows it; None where nothing may."""
    texts = replayed.recording.texts()
    if cache.semantic is None or not texts:
        return None
    from semcache.replay.lookahead import LookAhead, embed
    from semcache.semantic.embedder import as_embedder
    from semcache.semantic.index import FlatIndex
    from semcache.ttl import size_bytes

    settings = replayed.settings
    began = perf_counter()
    progress(f"loading {cache.embedder_identity}", 0, 0)
    embedder = as_embedder(settings.embedder, settings.device)
    embedder.load()
    replayed.model_seconds = perf_counter() - began
    vectors = embed(embedder, texts, lambda done, of: progress("embedding", done, of))
    replayed.embed_seconds = vectors.seconds
    replayed.embedded, replayed.uncovered = len(vectors.rows), len(vectors.uncovered)
    index = FlatIndex(embedder.dimension, size_bytes(settings.semantic))
    ahead = LookAhead(index, vectors, clock.monotonic)
    cache.semantic.batcher = ahead
    return ahead


def _play(
    player: Player, clock: VirtualClock, time_scale: float, ahead: LookAhead | None, progress: Progress
) -> list[Outcome]:
    """Let a player's cache answer all requests, in order, at their times."""
    asked = player.asked
    outcomes = []
    for start in range(0, len(asked), WINDOW):
        progress("replaying", start, len(asked))
        window = asked[start : start + WINDOW]
        clock.move_to(window[0].ts * time_scale)
        # The store's writer is a thread of its own; where it fell behind, it would refuse what it should keep.
        player.cache.flush()
        if ahead is not None:
            ahead.look_ahead([one.request for one in window if one.request is not None], NEIGHBOURS)
        for one in window:
            clock.move_to(one.ts * time_scale)
            outcomes.append(_answer(player, one, ahead))
    progress("replaying", len(asked), len(asked))
    return outcomes


def _answer(player: Player, one: Asked, ahead: LookAhead | None) -> Outcome:
    """Let one request be answered, and book on it its share of what was done ahead."""
    before_ns = ahead.ahead_ns if ahead is not None else 0
    outcome = player.answer(one)
    if ahead is not None and outcome.nanoseconds is not None:
        outcome.nanoseconds += ahead.ahead_ns - before_ns
    return outcome


def _run_exact(recording: Recording, settings: Settings, progress: Progress) -> list[Outcome]:
    """Replay once more, through one exact tier with room for everything, where an answer lives as long as in any."""
    clock = VirtualClock()
    ttl = TTL(memory=settings.exact_seconds, jitter=settings.ttl.jitter)
    with Cache("replay", memory=_EVERYTHING_BYTES, ttl=ttl, clock=clock, seed=settings.seed) as cache:
        player = Player(cache, recording.asked, Witness(Shadow()))
        return _play(player, clock, settings.time_scale, None, lambda *_: None)
