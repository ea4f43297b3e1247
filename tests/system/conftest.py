"""What the tests of the whole share: a sidecar as its owners run it, in front of the stand-in, and folders of its own.

They need programs that nothing else does: a browser, Node, curl, Prometheus. Without one they fail, and never skip.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import starting

from semcache.testing import StandIn

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark all that is here."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture
def models():
    with StandIn() as server:
        yield server


@pytest.fixture
def start(models):
    """Start sidecars in front of the stand-in, with flags; they are killed with the test."""
    with starting(models.url) as start:
        yield start
