"""What one process does with what the shared log tells: drops, learns, switches, trusts less while it hears nothing.

Every method runs in the follower's thread. Laws: marks first, in memory and in flight (law 8); a process that hears
nothing serves what memory holds for `LOST_SECONDS` and no longer; the mode of all replicas only ever tightens ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from semcache.log import LOST_SECONDS
from semcache.marks import Mark, Row
from semcache.model import Mode
from semcache.plan import run

if TYPE_CHECKING:
    from semcache.flight import Flights
    from semcache.lookup import Landing
    from semcache.tiers.memory import MemoryTier
    from semcache.tiers.semantic import SemanticTier

OnFault = Callable[[str, BaseException], None]


class Replica:
    """The tiers and flights of one cache, as the log's listener; `switch` is given the mode of all replicas.

    `passed` is called now and then, and does what is due.
    """

    def __init__(
        self, memory: MemoryTier | None, semantic: SemanticTier | None, flights: Flights[Landing],
        switch: Callable[[Mode | None], None], passed: Callable[[], None], on_fault: OnFault,
    ) -> None:  # fmt: skip
        self._memory = memory
        self._semantic = semantic
        self._flights = flights
        self._switch = switch
        self.passed = passed
        self._on_fault = on_fault
        self._mode: Mode | None = None

    def marked(self, marks: list[Mark]) -> None:
        """Drop what was invalidated, and let nobody board its flights."""
        for facet, value, position in marks:
            if self._memory is not None:
                run(self._memory.remove(facet, value, position))
            if self._semantic is not None:
                run(self._semantic.remove(facet, value, position))
            self._flights.close(facet, value)

    def added(self, rows: list[Row]) -> None:
        """Take the rows that others added."""
        if self._semantic is not None:
            self._semantic.take(rows)

    def switched(self, mode: Mode | None) -> None:
        """Take over the mode of all replicas."""
        if mode != self._mode:
            self._mode = mode
            self._switch(mode)

    def lost(self, error: Exception) -> None:
        """Trust memory for no longer than `LOST_SECONDS`."""
        if self._memory is not None:
            self._memory.lose(LOST_SECONDS)
        self._on_fault("unfollowed", error)

    def found(self) -> None:
        """Trust memory again: all marks are known."""
        if self._memory is not None:
            self._memory.find()

    def rebuild(self, *, is_reset: bool) -> None:
        """Read the index anew; where the log is another one, memory is worth nothing either."""
        if is_reset and self._memory is not None:
            self._memory.clear()
        if self._semantic is not None:
            self._semantic.rebuild()
