"""The contract of every tier, in both colours."""

from __future__ import annotations

import pytest

from semcache.marks import Marks
from semcache.plan import run
from semcache.testing import ManualClock
from semcache.testing.contract import TTL_SECONDS, TierContract, request
from semcache.tiers.disk import DiskTier
from semcache.tiers.memory import MemoryTier
from semcache.tiers.redis import RedisTier


class TestMemory(TierContract):
    def make(self, clock):
        return MemoryTier(1_000_000, TTL_SECONDS, clock=clock)


class TestDisk(TierContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.path = tmp_path / "store.db"

    def make(self, clock: ManualClock):
        self.faults = []
        return DiskTier(
            self.path, namespace="contract", ttl=TTL_SECONDS, clock=clock,
            on_fault=lambda reason, error: self.faults.append((reason, error)),
        )  # fmt: skip


class TestRedis(TierContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url):
        self.url = redis_url

    def make(self, clock: ManualClock):
        self.faults = []
        return RedisTier(
            self.url, namespace="contract", ttl=TTL_SECONDS, clock=clock, timeout=10.0,
            marks=Marks(clock.monotonic, 3600.0), on_fault=lambda reason, error: self.faults.append((reason, error)),
        )  # fmt: skip

    def born(self, tier):
        if not tier.position():
            run(tier.get(request("begin")))
        return tier.position()


class TestFollowedRedis(TestRedis):
    """As a cache has it, whose log is followed: marks are the process's own, and a hit is a GET alone."""

    def make(self, clock: ManualClock):
        tier = super().make(clock)
        tier.join()
        return tier


@pytest.mark.semantic
class TestSemantic(TierContract):
    """Over memory, with an embedder that gives each text a vector of its own."""

    def make(self, clock):
        from semcache.policy import Threshold
        from semcache.semantic.batcher import Batcher
        from semcache.semantic.embedder import as_embedder
        from semcache.semantic.index import FlatIndex
        from semcache.tiers.semantic import SemanticTier

        self.values = MemoryTier(1_000_000, TTL_SECONDS, clock=clock)
        self.batcher = Batcher(
            as_embedder(Letters(), "cpu"), lambda dimension: FlatIndex(dimension, 10_000_000), clock.monotonic,
            on_fault=lambda reason, error: None,
        )  # fmt: skip
        self.batcher.warm().result(30)
        return SemanticTier(
            self.batcher, Threshold(0.999, guards=None), [self.values], ttl=TTL_SECONDS, timeout=30.0, clock=clock,
            random=lambda: 0.0, warn=lambda about, message: None, embedder=lambda: "e",
        )  # fmt: skip

    def put(self, tier, drive, asked, put):
        """Law 4: the value goes to the exact tier, the index gets the key."""
        drive(self.values.put(asked, put, None))
        drive(tier.put(asked, put, None))

    def invalidate(self, tier, drive, facet, value, position):
        drive(self.values.remove(facet, value, position))
        drive(tier.remove(facet, value, position))


class Letters:
    """A named callable: one-hot by the text's last letter."""

    identity = "letters"

    def __call__(self, texts):
        import numpy as np

        vectors = np.zeros((len(texts), 32), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            row[ord(text[-1]) % 32] = 1
        return vectors
