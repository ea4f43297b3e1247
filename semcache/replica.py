"""What one process does with what the shared log tells: drops, learns, switches, trusts less while it hears nothing.

Every method runs in the follower's thread. Laws: marks first, in memory and in flight (law 8); a process that hears
nothing serves what memory holds for `LOST_SECONDS` and no longer; the mode of all replicas only ever tightens ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from semcache.blocks import Block, Blocks
from semcache.log import LOST_SECONDS
from semcache.marks import Mark, Row
from semcache.model import Mode
from semcache.plan import run

if TYPE_CHECKING:
    from semcache.chain import Landing
    from semcache.flight import Flights
    from semcache.tiers.memcached import MemcachedTier
    from semcache.tiers.memory import MemoryTier
    from semcache.tiers.semantic import SemanticTier

OnFault = Callable[[str, BaseException], None]


class Replica:
    """The tiers and flights of one cache, as the log's listener; `switch` is given the mode of all replicas.

    `passed` is called now and then, and does what is due.
    """

    def __init__(
        self, memory: MemoryTier | None, memcached: MemcachedTier | None, indexes: Sequence[SemanticTier],
        flights: Flights[Landing], switch: Callable[[Mode | None], None], passed: Callable[[], None],
        on_fault: OnFault, blocks: Blocks,
    ) -> None:  # fmt: skip
        self._memory = memory
        self._memcached = memcached
        self._indexes = indexes
        self._flights = flights
        self._switch = switch
        self.passed = passed
        self._on_fault = on_fault
        self._blocks = blocks
        self._mode: Mode | None = None

    def marked(self, marks: list[Mark], *, is_old: bool) -> None:
        """Drop what was invalidated, and let nobody board its flights.

        From a memcached it is dropped by who invalidated it; here the marks that it asks at each hit are known already.
        """
        for facet, value, position in marks:
            if self._memory is not None:
                run(self._memory.remove(facet, value, position))
            for index in self._indexes if not is_old else ():
                run(index.remove(facet, value, position))
            self._flights.close(facet, value)

    def blocked(self, blocks: list[Block]) -> None:
        """Serve no more what was reported as wrong."""
        self._blocks.take(blocks)

    def added(self, rows: list[Row]) -> None:
        """Take the rows that others added."""
        for index in self._indexes:
            index.take(rows)

    def switched(self, mode: Mode | None) -> None:
        """Take over the mode of all replicas."""
        if mode != self._mode:
            self._mode = mode
            self._switch(mode)

    def lost(self, error: Exception) -> None:
        """Trust memory, and a memcached, for no longer than `LOST_SECONDS`."""
        for tier in (self._memory, self._memcached):
            if tier is not None:
                tier.lose(LOST_SECONDS)
        self._on_fault("unfollowed", error)

    def found(self, log: str) -> None:
        """Trust memory again, and what a memcached keeps beside this log: all its marks are known."""
        if self._memory is not None:
            self._memory.find()
        if self._memcached is not None:
            if log:
                self._memcached.find(log)
            else:  # a file that nobody has begun yet: it has no name that others could know
                self._memcached.lose(0.0)

    def rebuild(self, *, is_reset: bool) -> None:
        """Read the index anew; where the log is another one, memory is worth nothing either.

        Nor is a memcached: what it keeps stands under the other log's name, and `found` is told the new one.
        """
        if is_reset and self._memory is not None:
            self._memory.clear()
        for index in self._indexes:
            index.rebuild()
