"""The change log as one process sees it: where it stands, what was invalidated when, and what others did (law 8).

An entry is born at the log's position when its load begins. An invalidation takes the next position and leaves a mark
on a facet value; an entry born before one of its marks is a miss, from every tier. With a store that keeps a log,
positions and marks are the store's, so they hold across processes and restarts; without one they are counted here, or
are readings of the clock where processes share a tier that keeps none.

Laws:
- one thread follows the store's log: it applies marks before all else, and nothing that listens can end it;
- a process that has lost the log, or never found it, says so once, and its memory tier believes its entries for
  `LOST_SECONDS` at most;
- a position known here never goes back: an older one is safe, it only makes more entries misses. So where a clock goes
  back births go with it, and marks do not; and a mark lies `SKEW_SECONDS` ahead, by which clocks may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Protocol

from semcache.blocks import Block
from semcache.marks import Changes, Mark, Marks, Pair, Row
from semcache.model import Mode
from semcache.plan import Plan

# How long the memory tier serves what it has, and what it gets, while nobody can tell it of invalidations.
LOST_SECONDS = 5.0
# Clocks of processes that share a tier without a log agree to this.
SKEW_SECONDS = 1.0
# What comes within this time is applied together.
COALESCE_SECONDS = 0.02
# Where a mark's position is taken before it is written, as in a Redis, it may be heard so long after later positions.
SETTLE_SECONDS = 5.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class Store(Protocol):
    """An exact store that keeps the log. What it raises means that the log is out of reach.

    Before it tells of marks, it has taken them into those of this process.
    """

    def position(self) -> int:
        """Return the log's position, or an older one that is known without asking."""
        ...

    def beyond(self, known: int) -> int:
        """Return a position for an invalidation that could not be kept: after all births so far, `known` the latest."""
        ...

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate durably; the position of the (latest) mark, and the number of entries dropped."""
        ...

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many entries an invalidation of these would drop."""
        ...

    def switch(self, mode: Mode) -> Plan[None]:
        """Set the mode of all replicas, durably."""
        ...

    def join(self) -> Changes:
        """Begin to follow: return the position, all marks and the mode, and no rows."""
        ...

    def follow(self, since: int) -> Changes:
        """Return what came after a position; may wait for it, half a second at most."""
        ...

    def rest(self) -> None:
        """Stop what waits in `follow`, from another thread."""
        ...


class Listener(Protocol):
    """Who is told what came, in the follower's thread."""

    def marked(self, marks: list[Mark], *, is_old: bool) -> None:
        """Drop what was invalidated; `is_old` says that it was before the log was followed, and so before all rows."""
        ...

    def blocked(self, blocks: list[Block]) -> None:
        """Serve no more what was reported as wrong."""
        ...

    def added(self, rows: list[Row]) -> None:
        """Take what others learned."""
        ...

    def switched(self, mode: Mode | None) -> None:
        """Take over the mode of all replicas."""
        ...

    def lost(self, error: Exception) -> None:
        """Trust nothing for long: invalidations cannot be heard of."""
        ...

    def found(self, log: str) -> None:
        """Go on: the log of this name is followed, and what was missed of it has been told."""
        ...

    def rebuild(self, *, is_reset: bool) -> None:
        """Read the index anew; with `is_reset`, also drop what memory holds."""
        ...

    def passed(self) -> None:
        """Do what is due: some time has passed, whether anything came or not."""
        ...


class Log:
    """Positions and marks of one cache; `store` is the tier that keeps them, if there is one.

    Without one, `clock` gives the seconds since 1970 that positions are readings of, in microseconds. `settle_seconds`
    after a position was heard all marks up to it are known.
    """

    def __init__(
        self, store: Store | None, marks: Marks, clock: Callable[[], float] | None = None, settle_seconds: float = 0.0
    ) -> None:
        self.marks = marks
        self.listener: Listener | None = None
        # Which log it is, for those who follow it through us; empty while that is not known.
        self.name = ""
        self._store = store
        self._clock = clock
        self._position = 1
        self._marked = 0
        self.settle_seconds = settle_seconds
        self._settled = 0  # the marks of the store up to here are known
        self._heard = 0, monotonic()  # and up to here they will be
        self._lock = Lock()
        self._thread: Thread | None = None
        self._stop = Event()

    @property
    def store(self) -> Store | None:
        return self._store

    def position(self) -> int:
        """Return the position now; where the store cannot say, the latest one known, which is older and so safe."""
        if self._store is None:
            return self._position if self._clock is None else self._read(self._clock)
        self.start()
        try:
            position = self._store.position()
        except Exception:  # noqa: BLE001 - a store that fails is never in the caller's way (law 10)
            return self._position
        return self._advance(position)

    def begin(self, name: str, position: int) -> None:
        """Name what is counted here, where no store counts, and go on from a position: others are to follow it."""
        if self._store is None:
            self.name = name
            self._advance(position)

    def beyond(self) -> int:
        """Return a position after all births in this process so far; those that follow are not before it."""
        known = self.position()
        return self._beyond(known) if self._store is None else self._advance(self._store.beyond(known))

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate; the position of the latest mark, and the number of entries that the store dropped."""
        if self._store is not None:
            position, dropped = yield from self._store.mark(pairs)
            return self._advance(position), dropped
        position = self._beyond(self.position())
        self.take([(facet, value, position) for facet, value in pairs])
        return position, 0

    def birth(self, born: int, made_of: Mapping[Pair, int]) -> int | None:
        """Return where an answer is born that is made of what was born earlier; None where some of that is invalid.

        `made_of` tells for each facet value since when it counts. Marks that are known are judged here, by each value's
        own birth; those that are not yet are left to the store, which knows one birth alone, so that is lowered to
        where all are known. The oldest birth would be safe too, but would keep what is made of old documents out after
        any invalidation of the answer itself, or of another document that was found anew.
        """
        if any(self.marks.cover([pair], since) for pair, since in made_of.items()):
            return None
        if self._store is None or not made_of or int(born) <= self._settled:
            return born
        return min(born, max(self._settled, min(made_of.values())))

    def _read(self, clock: Callable[[], float]) -> int:
        position = int(clock() * 1e6)
        self._advance(position)
        return position

    def _beyond(self, known: int) -> int:
        """Return a position after all births so far, for a mark where there is no store."""
        with self._lock:
            if self._clock is None:
                self._position = max(self._position, known) + 1
                return self._position
            self._marked = max(self._marked, self._position + int(SKEW_SECONDS * 1e6))
            return self._marked

    def take(self, marks: Iterable[Mark]) -> None:
        """Remember marks."""
        for mark in marks:
            self.marks.mark(*mark)

    def _advance(self, position: int) -> int:
        with self._lock:
            self._position = max(self._position, position)
            return self._position

    # Following

    def start(self) -> None:
        """See to it that the store's log is followed."""
        if self._thread is None and self._store is not None and self.listener is not None:
            with self._lock:
                if self._thread is None and not self._stop.is_set():
                    thread = Thread(target=self._run, args=(self._stop,), name="semcache-follower", daemon=True)
                    with suppress(RuntimeError):  # no more threads, or the interpreter ends: the next call tries again
                        thread.start()
                        self._thread = thread

    def stop(self, timeout: float | None = 1.0) -> None:
        """Follow no more; wait so long for the thread."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._store.rest()  # type: ignore[union-attr]
            if timeout is not None:
                thread.join(timeout)

    def _run(self, stop: Event) -> None:
        store, listener = self._store, self.listener
        assert store is not None  # noqa: S101 - `start` has seen to both
        assert listener is not None  # noqa: S101
        since, pause, log = -1, _FIRST_PAUSE, ""
        is_lost: bool | None = None  # not known yet: a store that is absent from the start is lost too
        while not stop.is_set():
            _tell(listener.passed)
            try:
                changes = store.join() if since < 0 else store.follow(since)
                self._apply(changes, listener, is_old=since < 0 or not changes.is_whole)
            except Exception as error:  # noqa: BLE001 - whatever it is, the log may be back in a moment
                if stop.is_set():
                    return
                if not is_lost:
                    is_lost = True
                    _tell(listener.lost, error)
                stop.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            since, pause = changes.position, _FIRST_PAUSE
            if is_lost is not False or changes.log != log:
                is_lost, log = False, changes.log
                self.name = log
                _tell(listener.found, log)
            stop.wait(COALESCE_SECONDS)

    def _apply(self, changes: Changes, listener: Listener, *, is_old: bool) -> None:
        """Take over what came: the marks first, so that nothing invalid is served a moment longer."""
        self._advance(changes.position)
        _tell(lambda: listener.marked(changes.marks, is_old=is_old))
        if changes.blocks:
            _tell(listener.blocked, changes.blocks)
        self._hear(changes.position)  # the store has taken the marks before it told of them
        if not changes.is_whole:
            _tell(lambda: listener.rebuild(is_reset=changes.is_reset))
        if changes.rows:
            _tell(listener.added, changes.rows)
        _tell(listener.switched, changes.mode)

    def _hear(self, position: int) -> None:
        heard, since = self._heard
        now = monotonic()
        if self.settle_seconds == 0:
            self._settled = position
        elif now - since >= self.settle_seconds:
            self._settled, self._heard = heard, (position, now)

    def after_fork(self) -> None:
        """Begin with a lock and, at the next call, a thread of our own: the old ones belong to the parent."""
        self._lock = Lock()
        self._thread = None
        self._stop = Event()
        self.marks.after_fork()


def _tell(listens: Callable[..., None], *what: Any) -> None:
    """Tell a listener, which cannot end the thread."""
    with suppress(Exception):
        listens(*what)
