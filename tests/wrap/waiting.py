"""What several of these tests count and wait with: nothing here sleeps."""

from __future__ import annotations

import asyncio
from threading import Condition

from instruments import GUARD

# Nothing here takes this long; what hangs fails.
PATIENCE = GUARD


class Counter:
    """Counts, from any thread."""

    def __init__(self):
        self.count = 0
        self._changed = Condition()

    def __call__(self):
        with self._changed:
            self.count += 1
            self._changed.notify_all()
            return self.count

    def reach(self, count):
        """Block until so much has been counted."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, PATIENCE)


async def until(condition):
    """Give the loop to others until something holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to hold")
