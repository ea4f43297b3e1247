"""The public names: what users may rely on. What importing them loads is law 13's (tests/laws/test_law_13.py)."""

from __future__ import annotations

import inspect

import semcache

NAMES = [
    "SHARED", "TTL", "Cache", "CacheInfo", "Cached", "CachedEmbedding", "CodecError", "ConfigurationError",
    "CrossEncoder", "Decision", "DecodeError", "EmbeddingServer", "EncodeError", "ErrorBudget", "Event", "Explanation",
    "Hit", "InvalidationError", "Miss", "MissingExtraError", "Neighbour", "Pipeline", "Policy", "PolicyStatus",
    "Recording", "Reindexed", "Reported", "Request", "SemcacheError", "SemcacheWarning", "Served", "Shadow", "Sidecar",
    "StageRow", "Stats", "Threshold", "TierError", "Timeouts", "Trace", "TrafficError", "Tuned", "UnkeyableError",
    "UnmeasuredThresholdWarning", "Usage", "UsageRow", "Verdict", "cached", "cached_embedding", "cached_retrieval",
    "check", "configure", "context", "gather", "last", "pipeline", "register", "stage", "trace",
]  # fmt: skip


def test_public_names_are_these():
    """A name appears or goes with its issue, and with this list."""
    assert semcache.__all__ == NAMES


def test_public_names_are_sorted_and_there():
    """Constants, then classes, then functions, each in order; every one of them exists."""
    assert sorted(NAMES, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == NAMES
    assert all(hasattr(semcache, name) for name in NAMES)


def test_public_names_are_documented():
    """Whatever users may call or catch says what it is."""
    undocumented = [
        name
        for name in NAMES
        if (inspect.isclass(getattr(semcache, name)) or inspect.isfunction(getattr(semcache, name)))
        and not (getattr(semcache, name).__doc__ or "").strip()
    ]
    assert undocumented == []


def test_every_error_is_a_semcache_error():
    """Who catches SemcacheError catches all of ours."""
    errors = [getattr(semcache, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, semcache.SemcacheError) for error in errors)
