"""What the tests of the sidecar share: a stand-in for the servers behind, and sidecars in front of it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from proxies import Running

from semcache.sidecar.settings import Server, Settings
from semcache.testing import StandIn


@pytest.fixture
def models():
    with StandIn() as server:
        yield server


@pytest.fixture
def serve(open_cache, models):
    """Start sidecars in front of the stand-in; settings of the cache by `cache=`, all else is the sidecar's own."""
    with ExitStack() as stack:

        def start(cache=None, **settings):
            made = Settings(**({"upstream": (Server(models.url),), "port": 0} | settings))
            running = Running(made, open_cache(**({"ttl": None} | (cache or {}))))
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture
def sidecar(serve):
    return serve()
