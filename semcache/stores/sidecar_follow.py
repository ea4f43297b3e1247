"""The control stream of a sidecar: what it tells all caches that use it, as the log that a cache follows.

A frame is `{"position", "log", "marks", "mode", "is_lost"}`; the first one of a stream has all marks. A sidecar sends
one at once for each invalidation, and one now and then all the same: who hears nothing knows that it is cut off.

Laws:
- a sidecar that has lost its own store's log says so, and whoever follows it trusts its memory as if it had itself;
- positions of two logs are never compared: with another log the positions told here go on above all that were told
  before, and what memory holds is worth nothing (`is_reset`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from msgpack import Unpacker

from semcache.errors import DecodeError, TierError
from semcache.marks import Changes, Mark, Marks
from semcache.model import SWITCHED, Mode
from semcache.stores.sidecar_answer import Answer, GoneError
from semcache.stores.sidecar_link import Line, SidecarLink
from semcache.stores.wire import mark_of

# A sidecar says something at least every second.
SILENT_SECONDS = 3.0
_WAIT_SECONDS = 0.5
_CONNECT_SECONDS = 2.0
_MOST_BYTES = 64 * 2**20
_OK = 200


class Positions:
    """The positions of the log that is followed, as this process counts them."""

    def __init__(self) -> None:
        self.latest = 0
        # Name, offset, and where it began here; replaced as one, as the follower's thread does while others read.
        self._at = ("", 0, 0)

    @property
    def log(self) -> str:
        """The name of the log that is followed; empty before one is."""
        return self._at[0]

    def turn_to(self, log: str, position: int) -> bool:
        """Follow a log from now on; whether it is another than before. One without a name is none yet."""
        name = self._at[0]
        if log in (name, ""):
            return False
        # Above all that was told before: births and marks of the old log stay below those of the new.
        offset = max(0, self.latest + 1 - position) if name else 0
        self._at = (log, offset, position + offset if name else 0)
        return name != ""

    def births_of(self, log: str) -> Callable[[int], int] | None:
        """Return what makes a position of a log ours, whatever is followed meanwhile; None where it is another log."""
        name, offset, _ = self._at
        return (lambda position: max(position + offset, 0)) if log == name else None

    def here(self, position: int) -> int:
        """Return a position of the log as one of ours."""
        return max(position + self._at[1], 0)

    def hear(self, position: int) -> int:
        """Take note of the log's position."""
        self.latest = max(self.latest, self.here(position))
        return self.latest

    def there(self, position: int) -> tuple[str, int]:
        """Return the log, and a position of ours in it; 0 for one that was another's."""
        log, offset, since = self._at
        return log, 0 if position < since else max(position - offset, 0)


class Following:
    """Follows the control stream of the first sidecar that is well; used by one thread, but for `rest`."""

    def __init__(self, link: SidecarLink, marks: Marks, positions: Positions) -> None:
        self._link = link
        self._marks = marks
        self._positions = positions
        self._mode: Mode | None = None
        self._line: Line | None = None
        self._is_resting = False
        # Whether memory has not been told of all that came, and of another log: it was lost then.
        self._is_behind = self._is_other = False

    @property
    def is_on(self) -> bool:
        """Whether a stream is open."""
        return self._line is not None

    def join(self) -> Changes:
        """Begin to follow. Raises TierError."""
        self._hang_up()
        return self._begin()

    def follow(self) -> Changes:
        """Return what came; waits for it, half a second at most. Raises TierError."""
        if self._line is None:
            return self._begin()
        frame = self._next(_WAIT_SECONDS)
        if frame is None:
            return self._changes([])
        return self._taken(frame)

    def rest(self) -> None:
        """Let who waits here, in another thread, wait no longer."""
        self._is_resting = True
        self._hang_up()

    def _begin(self) -> Changes:
        for address in self._link.candidates():
            try:
                self._line = self._link.control(address, _CONNECT_SECONDS)
            except OSError as error:
                self._link.failed(address)
                trouble = TierError("unreachable", f"{address.where}: {error}")
                continue
            self._answer = Answer(self._feed)
            self._unpacker = Unpacker(
                strict_map_key=False, max_buffer_size=_MOST_BYTES, unicode_errors="surrogatepass"
            )  # fmt: skip
            self._heard = time.monotonic()
            if self._is_resting:
                self._hang_up()
            try:
                frame = self._next(_CONNECT_SECONDS)
            except TierError as error:  # a gateway that answers for one that is gone, or no sidecar at all
                self._link.failed(address)
                trouble = error
                continue
            if frame is None:
                self._hang_up()
                self._link.failed(address)
                trouble = TierError("late", f"{address.where}: its control stream does not begin")
                continue
            self._link.succeeded(address)
            return self._taken(frame, is_first=True)
        raise trouble

    def _feed(self, data: bytes) -> None:
        if self._answer.status == _OK:
            self._unpacker.feed(data)

    def _next(self, seconds: float) -> Any:
        """Return the next frame; None where none came in time. Raises TierError."""
        line, deadline = self._line, time.monotonic() + seconds
        assert line is not None  # noqa: S101 - whoever calls has opened it
        try:
            while True:
                for frame in self._unpacker:
                    self._heard = time.monotonic()
                    return frame
                if self._answer.is_whole:
                    raise GoneError(self._why_over())
                try:
                    line.read(self._answer, deadline)
                except TimeoutError:
                    if time.monotonic() - self._heard >= SILENT_SECONDS:
                        raise
                    return None
        except OSError as error:
            self._hang_up()
            raise TierError("unreachable", f"{line.address.where}: its control stream broke off: {error}") from error
        except (ValueError, TypeError) as error:
            self._hang_up()
            raise TierError("reply", f"{line.address.where}: its control stream is none: {error}") from error
        except TierError:
            self._hang_up()
            raise

    def _why_over(self) -> str:
        status = self._answer.status
        return "its control stream has ended" if status == _OK else f"it gives no control stream: status {status}"

    def _taken(self, frame: Any, *, is_first: bool = False) -> Changes:
        """Take over what a frame says. Raises TierError."""
        try:
            log, position, mode = str(frame["log"]), int(frame["position"]), frame["mode"]
            told = [mark_of(mark) for mark in frame["marks"]]
            is_lost = bool(frame["is_lost"])
        except (KeyError, TypeError, ValueError, OverflowError, DecodeError) as error:
            self._hang_up()
            raise TierError("reply", f"{self._link.where}: its control stream is none: {error}") from error
        if not log:  # it has only begun: what its positions are of is not known, and all is told anew when it is
            self._hang_up()
            raise TierError("lost", f"{self._link.where}: it has not found its store yet")
        positions = self._positions
        self._is_other = positions.turn_to(log, position) or self._is_other
        marks: list[Mark] = [(facet, value, positions.here(at)) for facet, value, at in told]
        for mark in marks:
            self._marks.mark(*mark)
        positions.hear(max([position, *(at for *_, at in told)]))
        self._mode = mode if mode in SWITCHED else None
        if is_lost:
            self._is_behind = True
            raise TierError("lost", f"{self._link.where}: it has lost its store, and cannot tell what was invalidated")
        is_whole, is_reset = not (is_first or self._is_behind or self._is_other), self._is_other
        if self._is_behind:  # memory is to be trusted again
            marks = self._marks.since(0)
        self._is_behind = self._is_other = False
        return self._changes(marks, is_whole=is_whole, is_reset=is_reset)

    def _changes(self, marks: list[Mark], *, is_whole: bool = True, is_reset: bool = False) -> Changes:
        positions = self._positions
        return Changes(positions.latest, marks, [], self._mode, is_whole, is_reset, positions.log)

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with suppress(OSError):
                line.close()

    def after_fork(self) -> None:
        """Begin anew; the parent's connection is left to it."""
        self._inherited, self._line = self._line, None
        self._is_resting = False
