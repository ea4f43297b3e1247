"""What the tests of clients share: a stand-in for the models' servers."""

from __future__ import annotations

import pytest

from semcache.testing import StandIn


@pytest.fixture
def models():
    with StandIn() as server:
        yield server
