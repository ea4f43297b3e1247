"""A thread aside, for work that nobody waits for: it gives way to those who do, and ends with its owner."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from semcache.plan import started

if TYPE_CHECKING:
    from collections.abc import Callable

_NICENESS = 5
"""Enough to give way; where all processors are busy it still gets a third of a usual thread's share."""


class Aside:
    """Does one thing after another; what is done tells of itself, and catches what goes wrong with it.

    Work that takes long looks at `is_closed` and stops.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = threading.Event()
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def is_closed(self) -> bool:
        """Say whether nobody wants the work any more."""
        return self._closed.is_set()

    def submit(self, work: Callable[[], None]) -> bool:
        """Have something done, after what was asked before; False once closed, or where no thread can be had."""
        if self._thread is None and not self.is_closed():
            # A daemon, for the interpreter's exit is not to wait for what may take seconds: it closes us first.
            self._thread = started(self._run, self._name)
        if self._thread is None or self.is_closed():
            return False
        self._queue.put(work)
        return True

    def close(self, timeout: float | None = 5.0) -> None:
        """Stop, and wait so many seconds for what is being done to notice."""
        self._closed.set()
        self._queue.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        if sys.platform == "linux":  # which counts niceness by thread
            with suppress(OSError):
                thread = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
        while True:
            work = self._queue.get()
            if work is None or self.is_closed():
                return
            work()
            del work  # what it holds may be large
