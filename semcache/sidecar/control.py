"""The control stream: what programs that use this sidecar must hear at once, and that it is still there.

Laws: every mark that this process hears of, its own or another's, goes to all who follow, in some milliseconds; who
cannot keep up is cut off, and begins anew with all marks; where our own store's log is lost, we say so, as nobody's
invalidations can be told then.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgpack import packb

from semcache.cache import Cache
from semcache.marks import Mark
from semcache.sidecar.reach import Reach

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

BEAT_SECONDS = 0.5
_MOST_WAITING = 4096
_MODES = ("shadow", "exact", "off")


class Control:
    """Spreads what a cache hears of to those who follow it here."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._loop: AbstractEventLoop | None = None
        self._queues: set[asyncio.Queue[Mark]] = set()
        # Of a store nobody knows before its log is followed.
        self.is_lost = cache.store is not None
        self.is_ending = False

    def begin(self) -> None:
        """Listen, from the running loop on."""
        cache = self._cache
        self._loop = asyncio.get_running_loop()
        cache.log.begin(os.urandom(8).hex(), int(cache.clock.time() * 1e6))
        cache.log.marks.watch = self._marked
        if cache.log.listener is not None:
            cache.log.listener = _Heard(cache.log.listener, self)
        cache.log.start()

    def end(self) -> None:
        """Let the streams end, with their next beat."""
        self.is_ending = True
        self._cache.log.marks.watch = None

    def _marked(self, mark: Mark) -> None:
        """Hear a mark, in any thread."""
        if self._queues and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._spread, mark)

    def _spread(self, mark: Mark) -> None:
        for queue in list(self._queues):
            try:
                queue.put_nowait(mark)
            except asyncio.QueueFull:
                self._queues.discard(queue)

    async def frames(self, reach: Reach) -> AsyncIterator[bytes]:
        """Yield frames for one who follows, all marks first, until it is too slow or the sidecar ends."""
        queue: asyncio.Queue[Mark] = asyncio.Queue(_MOST_WAITING)
        self._queues.add(queue)  # before the marks are read: none is missed between
        try:
            marks = self._all()
            while queue in self._queues and not self.is_ending:
                yield self._frame(reach, marks)
                marks = await self._next(queue)
        finally:
            self._queues.discard(queue)

    def _all(self) -> list[Mark]:
        """Return all marks, and in place of those that had to give way one of everything."""
        known = self._cache.log.marks
        marks = known.since(0)
        return [*marks, ("namespace", self._cache.namespace, known.floor)] if known.floor else marks

    async def _next(self, queue: asyncio.Queue[Mark]) -> list[Mark]:
        """Return what has come by the next beat; what came together is told together."""
        try:
            async with asyncio.timeout(BEAT_SECONDS):
                marks = [await queue.get()]
        except TimeoutError:
            return []
        while not queue.empty():
            marks.append(queue.get_nowait())
        return marks

    def _frame(self, reach: Reach, marks: list[Mark]) -> bytes:
        cache = self._cache
        told = [mark for mark in map(reach.mark, marks) if mark is not None]
        frame: dict[str, Any] = {
            "position": int(cache.log.position()),
            "log": cache.log.name,
            "marks": [(facet, value, int(position)) for facet, value, position in told],
            "mode": cache.mode if cache.mode in _MODES else None,
            "is_lost": self.is_lost,
        }
        packed: bytes = packb(frame, unicode_errors="surrogatepass")
        return packed


class _Heard:
    """The cache's own listener, through which we hear whether the store's log is followed."""

    def __init__(self, listener: Any, control: Control) -> None:
        self._listener = listener
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def lost(self, error: Exception) -> None:
        self._control.is_lost = True
        self._listener.lost(error)

    def found(self, log: str) -> None:
        self._listener.found(log)
        self._control.is_lost = False
