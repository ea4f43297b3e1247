"""Replays: a recording run through the real cache, in virtual time or live, beside exact tiers alone and an oracle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from semcache.policy import Tuned
from semcache.replay.live import run_live
from semcache.replay.score import oracle
from semcache.replay.settings import Progress, Replayed, Settings
from semcache.replay.virtual import run_exact, run_virtual
from semcache.semantic.embedder import as_embedder


def replay(lines: Iterable[bytes | str], settings: Settings, progress: Progress) -> Replayed:
    """Replay a recording.

    Raises ConfigurationError, or TrafficError where nothing can be read or a strict read stops.
    """
    began = perf_counter()
    settings = replace(settings, embedder=as_embedder(settings.embedder, settings.device))
    if settings.embedder is not None and not settings.embedder.identity:
        settings.embedder.load()  # only its server knows whose vectors they are
    if settings.embedder is not None and isinstance(settings.policy, Tuned):
        settings.policy.check(settings.embedder.identity)
    with TemporaryDirectory(prefix="semcache-replay-", ignore_cleanup_errors=True) as folder:
        run = run_live if settings.live_threads else run_virtual
        replayed = run(lines, settings, Path(folder), progress)
    recording = replayed.recording
    if settings.embedder is not None:
        replayed.exact = run_exact(recording, settings)
    replayed.oracle = oracle(recording.asked, settings.exact_seconds / settings.time_scale)
    replayed.wall_seconds = perf_counter() - began - replayed.model_seconds
    return replayed
