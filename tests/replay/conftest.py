"""What the tests of replays share."""

from __future__ import annotations

import pytest
from recordings import Letters


@pytest.fixture
def letters():
    return Letters()
