"""What takes calls down behind their callers: a bounded queue, and the one thread that writes it.

Laws:
- a caller never waits, nor hears of what goes wrong: what finds the queue full is dropped and counted, a disk that
  fails costs the lines that it did not take, and a fault;
- what cannot be redacted is not written;
- after `flush` every call that was answered before is in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from queue import Empty, SimpleQueue
from threading import Event as Signal
from threading import RLock, Thread
from typing import Any, NamedTuple

from semcache.events import Event
from semcache.model import Usage
from semcache.plan import started
from semcache.recording.file import RecordFile
from semcache.recording.settings import Recording
from semcache.recording.taken import Call, Taken, UnrecordedError, unpacked
from semcache.redact import Redactor, redacted
from semcache.traffic import Recorded, line_of
from semcache.ttl import size_bytes

# So many calls wait at most, of so many bytes together.
MOST_CALLS = 10_000
MOST_BYTES = 32 << 20
# So long the thread lets calls gather once one is there: whoever asks is interrupted by it no more often.
GATHER_SECONDS = 0.1
_SHARES = 1 << 64
_TENANT = "tenant"
# What is none of the calls to be recorded: a pack that was sent in vain, what its caller wants kept nowhere.
_NO_CALLS = ("pack", "no-store")
_UNTIMED = '{"ts": 0.0, '


class _Waiting(NamedTuple):
    ts: float
    taken: Taken
    usage: Usage | None
    load_seconds: float | None


class Tape:
    """Records the calls of one cache; `time` is its clock, `on_fault` is told (reason, error) of what was lost."""

    def __init__(
        self, settings: Recording, time: Callable[[], float], on_fault: Callable[[str, BaseException], None],
        warn_once: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._time = time
        self._on_fault = on_fault
        self._warn_once = warn_once
        self._file = RecordFile(settings.path, size_bytes(settings.max_size, "max_size"), settings.keep)
        self._below = int(settings.sample * _SHARES)
        self._redactor: Redactor | None = None
        self._counts = Counter(written=0, dropped=0, lost=0, unrecorded=0, failed=0)
        self._begin()

    def _begin(self) -> None:
        self._lock = RLock()  # the collector may close a half-read stream, and record it, while this thread holds it
        self._queue: SimpleQueue[_Waiting | Signal | None] = SimpleQueue()
        self._hurry = Signal()
        self._thread: Thread | None = None
        self._calls = 0
        self._bytes = 0
        self._dropped = 0
        self._is_closed = False

    def take(self, event: Event, answer: Any) -> None:
        """Take the call of a finished lookup down, as far as it can be; nothing of it is raised, or waited for."""
        call, event.call = event.call, None
        if event.kind == "refresh" or event.reason in _NO_CALLS:
            return
        if event.failed:
            self._count("failed")
            return
        self.note(call, answer, event.key, event.usage, event.load_seconds, event.function)

    def note(
        self, call: Call | None, answer: Any, key: bytes, usage: Usage | None, load_seconds: float | None, name: str
    ) -> None:
        """Take down a call that was answered; `name` is the function's, for who is to hear that it cannot be."""
        try:
            taken = (call or _UNKNOWN).record(answer)
        except Exception as error:  # noqa: BLE001 - in whatever way it cannot be told, its caller has his answer
            self._count("unrecorded")
            name = name or "a lookup"
            self._warn_once(f"record: {name}", f"calls of {name} are not recorded: {error}")
            return
        if self._below < _SHARES and not self._is_sampled(key or taken.asked):
            return
        self._put(_Waiting(self._time(), taken, usage, load_seconds))

    def _is_sampled(self, key: bytes) -> bool:
        return int.from_bytes(blake2b(key, digest_size=8).digest()) < self._below

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _put(self, waiting: _Waiting) -> None:
        weight = waiting.taken.weight
        with self._lock:
            if self._is_closed or self._calls >= MOST_CALLS or self._bytes + weight > MOST_BYTES:
                self._counts["dropped"] += 1
                self._dropped += 1
                return
            self._calls += 1
            self._bytes += weight
            if self._thread is None:
                self._start()
        self._queue.put(waiting)

    def _start(self) -> None:
        self._thread = started(self._run, "semcache-recording")  # where there is none, the next call tries again

    def stats(self) -> dict[str, int]:
        """Return how many calls were written, dropped, lost, could not be recorded, or failed at their origin."""
        with self._lock:
            return {**self._counts, "waiting": self._calls, "rotations": self._file.rotations}

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was taken is written or lost; False if `timeout` seconds passed first."""
        with self._lock:
            if self._thread is None:
                return not self._calls
        done = Signal()
        self._queue.put(done)
        self._hurry.set()
        return done.wait(timeout)

    def stop(self) -> None:
        """Let the thread end when it has written what waits."""
        self._is_closed = True
        self._queue.put(None)
        self._hurry.set()

    def close(self, timeout: float | None = None) -> None:
        """Write what waits, and end."""
        self.flush(timeout)
        self.stop()

    def after_fork(self) -> None:
        """Begin anew in a child: what waits is the parent's to write."""
        self._begin()
        self._counts.clear()
        self._counts.update(written=0, dropped=0, lost=0, unrecorded=0, failed=0)

    # The thread

    def _run(self) -> None:
        queue, ended = self._queue, False
        while not ended:
            batch, flushed = [queue.get()], []
            if batch[0].__class__ is _Waiting:
                self._hurry.wait(GATHER_SECONDS)
            self._hurry.clear()
            try:
                while len(batch) < MOST_CALLS:
                    batch.append(queue.get_nowait())
            except Empty:
                pass
            waiting = [one for one in batch if isinstance(one, _Waiting)]
            flushed = [one for one in batch if isinstance(one, Signal)]
            ended = None in batch
            try:
                if waiting:
                    self._write(waiting)
                self._tell_dropped()
            finally:
                for signal in flushed:
                    signal.set()

    def _write(self, waiting: list[_Waiting]) -> None:
        lines, written, failure = [], 0, None
        for one in sorted(waiting, key=lambda one: one.ts):
            try:
                lines.append((one.ts, self._line(one)))
            except Exception as error:  # noqa: BLE001 - the user's own callable, or a disk without a key
                failure = failure or ("unredacted", error)
        try:
            if lines:
                self._file.append(lines)
            written = len(lines)
        except Exception as error:  # noqa: BLE001 - a disk may fail in any way; nobody waits for it
            failure = ("unwritten", error)
        with self._lock:
            self._calls -= len(waiting)
            self._bytes -= sum(one.taken.weight for one in waiting)
            self._counts["written"] += written
            self._counts["lost"] += len(waiting) - written
        if failure is not None:
            self._on_fault(*failure)

    def _tell_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._on_fault("full", RuntimeError(f"{dropped} calls were not recorded: too many waited to be written"))

    def _line(self, waiting: _Waiting) -> str:
        """Return the line of a call, without its time. Raises what says that it cannot be redacted, or is none."""
        taken, settings = waiting.taken, self._settings
        request = taken.request(unpacked(taken.asked))
        response = taken.response() if settings.responses else None
        tenant = taken.tenant
        if settings.redact is True:
            redactor = self._redactor
            if redactor is None:
                redactor = self._redactor = Redactor(self._file.key())
            request = redactor.data(request)
            response = None if response is None else redactor.text(response)
            tenant = redactor.mark(_TENANT, tenant) if tenant else None
        elif callable(settings.redact):
            request = redacted(request, settings.redact, is_named=False)
            response = None if response is None else settings.redact(response)
            tenant = settings.redact(tenant) if tenant else None
        seconds = waiting.load_seconds
        line = line_of(Recorded(
            ts=0.0, kind=taken.kind, request=request, response=response, usage=_told(waiting.usage),
            latency_ms=None if seconds is None else round(seconds * 1000, 3), tenant=tenant or None,
        ))  # fmt: skip
        return line.removeprefix(_UNTIMED)


class _Unknown:
    """A call of which nothing can be recorded."""

    def record(self, answer: Any) -> Taken:  # noqa: ARG002 - as calls do
        raise UnrecordedError(
            "only those of clients, retrievals, embeddings and functions with a text and a key can be"
        )


_UNKNOWN = _Unknown()


def _told(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    told = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    more = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens}
    return told | {name: count for name, count in more.items() if count}
