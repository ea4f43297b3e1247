"""The sidecar tier keeps the contract of every tier, and its link what it says of sidecars that fail."""

from __future__ import annotations

import pytest
from proxies import Running

from semcache import TTL, Cache
from semcache.codec import Codec
from semcache.marks import Marks
from semcache.plan import run
from semcache.sidecar.settings import Server, Settings
from semcache.testing import ManualClock
from semcache.testing.contract import TTL_SECONDS, TierContract, request
from semcache.tiers.sidecar import SidecarTier


class TestSidecar(TierContract):
    """As a program has it whose store is another process's memory."""

    @pytest.fixture(autouse=True)
    def _running(self, models):
        self.models = models
        self.running = []
        yield
        for running in self.running:
            running.close()

    def make(self, clock: ManualClock):
        held = Cache("contract", ttl=TTL(memory=TTL_SECONDS, jitter=0.0), clock=clock)
        running = Running(Settings(upstream=(Server(self.models.url),), port=0), held)
        self.running.append(running)
        self.faults = []
        return SidecarTier(
            running.url, namespace="contract", clock=clock, timeout=30.0, decode=Codec().decode,
            marks=Marks(clock.monotonic, 3600.0), on_fault=lambda reason, error: self.faults.append((reason, error)),
        )  # fmt: skip

    def born(self, tier):
        if not tier.position():
            run(tier.get(request("begin")))
        return tier.position()


class TestFollowedSidecar(TestSidecar):
    """As a cache has it: the control stream is followed."""

    def make(self, clock: ManualClock):
        tier = super().make(clock)
        tier.join()
        return tier
