"""A cache's life: warm, flush, close, and what becomes of it in a fork and when the interpreter ends.

Laws: what was put is kept when `flush` says so, and when `close` returns; a closed cache sends its callers to their
origins; a child of a fork begins anew, with locks, flights and threads of its own; nothing is registered at import.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from semcache.blocks import Blocks
from semcache.chain import Chain
from semcache.events import Recorder
from semcache.log import LOST_SECONDS, Log
from semcache.model import Mode
from semcache.plan import Plan, Wait, arun, run
from semcache.policy import Policy
from semcache.policy.learner import Learner
from semcache.stores.fork import forking
from semcache.tier import Breaker, Tier
from semcache.tiers.memory import MemoryTier

if TYPE_CHECKING:
    from semcache.tiers.semantic import SemanticTier

_EXIT_SECONDS = 10.0


class Living:
    """The part of a Cache that begins and ends it; the rest of it gives it what it needs."""

    chain: Chain
    log: Log
    recorder: Recorder
    policy: Policy
    blocks: Blocks
    memory: MemoryTier | None
    semantic: SemanticTier | None
    # The semantic tier, and a shadow embedder's.
    _indexes: list[SemanticTier]
    store: Any
    now: Callable[[], float]
    _closed: bool
    _own_mode: Mode
    _booking: RLock
    _let_go: weakref.finalize[Any, Any]
    _switch_to: Callable[[Mode | None], None]
    _book: Callable[[], None]

    @property
    def tiers(self) -> list[Tier]:
        """The tiers, nearest first."""
        return [tier for tier, _ in self.chain.tiers]

    def warm(self) -> None:
        """Load the model and the index now, rather than behind the first lookup. Raises what loading raises."""
        run(self._warm())

    async def awarm(self) -> None:
        """Load the model and the index without blocking the loop."""
        await arun(self._warm())

    def _warm(self) -> Plan[None]:
        self.log.start()
        if self.semantic is not None:
            yield Wait(self.semantic.batcher.warm())
            if self.semantic.second is not None:
                yield Wait(self.semantic.second.warm())

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every answer put so far is kept and can be found; False if `timeout` seconds passed first."""
        # What loads behind the callers first, then the index: what it embeds is written by the store.
        is_done = self.chain.crew.wait(timeout)
        if self.chain.labelling is not None:
            is_done = self.chain.labelling.flush(timeout) and is_done
        if self.chain.shadowing is not None:
            self.chain.shadowing.flush(timeout)  # whatever becomes of it: it keeps no answer
        self._book()
        tape = self.recorder.recording
        is_done = (tape is None or tape.flush(timeout)) and is_done
        return all([is_done, *[tier.flush(timeout) for tier in reversed(self.tiers)]])

    def close(self) -> None:
        """Flush, stop the threads and close the files; later calls go to their origins."""
        if not self._closed:
            self._closed = True
            if self.chain.shadowing is not None:  # nobody waits for what it has not looked at
                self.chain.shadowing.close()
            self.flush(_EXIT_SECONDS)
            self._let_go.detach()
            self._own_mode, self.chain.is_closed = "off", True
            self._switch_to(None)
            self.log.stop()
            if self.recorder.recording is not None:
                self.recorder.recording.stop()
            for tier in reversed(self.tiers):
                tier.close()

    async def aclose(self) -> None:
        """Close as `close` does, without blocking the loop."""
        import asyncio

        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def before_fork(self) -> None:
        """Let nothing be half done in the child."""
        for index in self._indexes:
            index.batcher.before_fork()
        if self.memory is not None:
            self.memory.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        for index in self._indexes:
            index.batcher.after_fork_in_parent()
        if self.memory is not None:
            self.memory.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Begin anew: locks, flights and threads are the parent's."""
        self._booking = RLock()
        self.chain.flights.forget()
        if self.chain.nearby is not None:
            self.chain.nearby.forget()
        self.chain.crew.after_fork()
        if self.chain.labelling is not None:
            self.chain.labelling.after_fork()
        elif isinstance(self.policy, Learner):  # it learns nothing without an embedder, and is asked all the same
            self.policy.after_fork()
        if self.chain.shadowing is not None:
            self.chain.shadowing.after_fork()
        self.chain.tiers = [(tier, Breaker(self.now)) for tier in self.tiers]
        self.recorder.after_fork()
        self.log.after_fork()
        self.blocks.after_fork()
        for index in self._indexes:
            index.batcher.after_fork_in_child()
        if self.memory is not None:
            self.memory.after_fork_in_child()
            if self.store is not None:  # nobody follows the log here until the first miss
                self.memory.lose(LOST_SECONDS)


_live: weakref.WeakSet[Living] = weakref.WeakSet()
_hooks: list[Callable[[], None]] = []


def watch(cache: Living) -> None:
    """Close the cache when the interpreter exits, and begin it anew in a forked child."""
    if not _hooks:  # at the first cache, not at import (law 13); a hook of the process, registered once
        _hooks.append(_close_all)
        atexit.register(_close_all)
    _live.add(cache)
    forking().add(cache)


def _close_all() -> None:
    for cache in list(_live):
        cache.close()
