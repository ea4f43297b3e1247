"""Traces: the lookups and stages of a piece of work, kept for who wants to look at it.

Context variables, so a trace takes what this thread or task does, and the tasks it starts, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from semcache.stages import Span, StageRow, findings, rows, table

if TYPE_CHECKING:
    from semcache.events import Event


class Watch(Protocol):
    """What follows one lookup while it goes on, for an observer that has `__semcache_watch__`; none of it may raise.

    Times are nanoseconds, and moments readings of `perf_counter_ns`.
    """

    def took(self, stage: str, nanoseconds: int, ended: int) -> None:
        """Hear that a stage took so long, until then."""
        ...

    def enter(self) -> Any:
        """Hear that the origin is about to be called, in this context; returns what `leave` takes."""
        ...

    def leave(self, entered: Any) -> None:
        """Leave the origin's call, in the context of `enter`."""
        ...

    def loaded(self, error: BaseException | None) -> None:
        """Hear that the origin has answered; an error that is no Exception ends the whole lookup."""
        ...


def followed(observers: Iterable[Any], event: Event) -> Watch | None:
    """Return what follows a lookup that begins while it goes on: the first observer that does so makes it."""
    for observer in observers:
        watch: Callable[[Event], Watch | None] | None = getattr(observer, "__semcache_watch__", None)
        if watch is not None:
            return watch(event)
    return None


class Trace:
    """The lookups made inside a `with semcache.trace()`, oldest first, and what can be said of them.

    `most` bounds how many lookups, and how many runs of stages, are kept; `left_out` counts the others.
    """

    def __init__(self, most: int | None = None) -> None:
        self.lookups: list[Event] = []
        self.left_out = 0
        self._spans: list[Span] = []
        self._most = most

    def take(self, event: Event) -> None:
        """Keep the event of a lookup."""
        if self._has_room(len(self.lookups)):
            self.lookups.append(event)

    def time(self, span: Span) -> None:
        """Keep the times of a stage that has ended."""
        if self._has_room(len(self._spans)):
            self._spans.append(span)

    def _has_room(self, count: int) -> bool:
        has_room = self._most is None or count < self._most
        self.left_out += not has_room
        return has_room

    @property
    def stages(self) -> list[StageRow]:
        """What each stage took and how its lookups were answered, in the order in which they began."""
        return rows(list(self.lookups), list(self._spans))

    @property
    def findings(self) -> list[str]:
        """What was done twice, and which independent stages ran one after another, a sentence each, with the mend."""
        return findings(list(self.lookups), list(self._spans))

    def table(self) -> str:
        """Return the stages as a plain text table; times are seconds."""
        return table(self.stages, self.left_out)


traces: ContextVar[tuple[Trace, ...]] = ContextVar("semcache_traces", default=())
tracing = traces.get


@contextmanager
def trace() -> Iterator[Trace]:
    """Collect the events of the lookups made inside, also those of the tasks started there."""
    collected = Trace()
    token = traces.set((*traces.get(), collected))
    try:
        yield collected
    finally:
        traces.reset(token)
