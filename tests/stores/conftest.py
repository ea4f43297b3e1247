"""Tiers of one store, as its processes have them."""

import pytest

from semcache.marks import Marks
from semcache.testing import ManualClock
from semcache.tiers.disk import DiskTier
from semcache.tiers.redis import RedisTier


@pytest.fixture(params=["disk", "redis"])
def open_tier(request, tmp_path):
    """Make tiers of one store, each as a process of its own has it."""
    opened = []
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    def open_one(namespace="ns"):
        clock = ManualClock()
        common = {"namespace": namespace, "ttl": 60.0, "clock": clock, "timeout": 10.0, "on_fault": print}
        if request.param == "disk":
            made = DiskTier(tmp_path / "cache.db", **common)
        else:
            made = RedisTier(url, marks=Marks(clock.monotonic, 3600.0), **common)
        opened.append(made)
        return made

    yield open_one
    for tier in opened:
        tier.close()
