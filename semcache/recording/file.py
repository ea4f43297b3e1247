"""The file of a recording: whole lines, in order, by however many processes, in files of a bounded size.

Laws:
- who writes holds the lock of the file beside it, `PATH.key`: so lines of several processes never mix, none is older
  than the one above it, and of those who find the file full one renames it;
- `PATH.key` holds the key of the redaction's marks too, and when the recording began: marks and times go on over
  renamed files, restarts and processes. Who has only the recording cannot try names until a mark fits;
- a batch that could not be written whole leaves nothing of itself; a line that a killed process left open is closed;
- nothing is kept open between two batches, so nothing is shared over a fork.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

KEY_BYTES = 32
_TIMES = struct.Struct("<dd")  # when the recording began, on the clock of all; the latest line's seconds since
_NO_TIMES = (float("nan"), 0.0)
# Who may read what callers asked: their own user alone.
_MODE = 0o600


class RecordFile:
    """Appends to one path; a full file is renamed, and so many as `keep` of such are kept."""

    def __init__(self, path: str | os.PathLike[str], max_bytes: int, keep: int) -> None:
        self.path = Path(path).absolute()
        self.rotations = 0
        self._beside = self.path.with_name(self.path.name + ".key")
        self._max_bytes = max_bytes
        self._keep = keep
        self._key = b""

    def key(self) -> bytes:
        """Return the key of the marks, of all who write here; it is made by the first."""
        if not self._key:
            with self._held():
                pass
        return self._key

    def append(self, lines: Sequence[tuple[float, str]]) -> None:
        """Write lines, each with its time on a clock and without its `ts`, which is seconds since the recording began.

        Raises OSError, with nothing of them written to a file that failed.
        """
        told = []
        with self._held() as beside:
            began, latest = _times(beside)
            if began != began:  # noqa: PLR0124 - not a number: nothing was written yet
                began = lines[0][0]
            for at, rest in lines:
                latest = max(latest, round(at - began, 6))
                told.append(f'{{"ts": {latest!r}, {rest}\n'.encode())
            self._write(told)
            os.pwrite(beside, self._key + _TIMES.pack(began, latest), 0)

    @contextmanager
    def _held(self) -> Iterator[int]:
        """Hold the lock, and know the key."""
        beside = os.open(self._beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(beside, fcntl.LOCK_EX)
            try:
                told = os.pread(beside, KEY_BYTES, 0)
                if len(told) < KEY_BYTES:
                    self._begin(beside)
                else:
                    self._key = told
                yield beside
            finally:
                fcntl.flock(beside, fcntl.LOCK_UN)  # a child of a fork in between may hold the same lock
        finally:
            os.close(beside)

    def _begin(self, beside: int) -> None:
        """Begin a recording; one that stands here already has times of another, and is put aside."""
        self._key = self._key or os.urandom(KEY_BYTES)
        os.pwrite(beside, self._key + _TIMES.pack(*_NO_TIMES), 0)
        if self.path.is_file() and self.path.stat().st_size:
            self._rotate()

    def _write(self, lines: Sequence[bytes]) -> None:
        """Write lines to as many files as they fill."""
        at = 0
        while at < len(lines):
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                size = os.fstat(file).st_size
                begun = at
                length = size
                while at < len(lines) and (not length or length + len(lines[at]) <= self._max_bytes):
                    length += len(lines[at])
                    at += 1
                _append(file, size, b"".join(lines[begun:at]))
            finally:
                os.close(file)
            if at < len(lines):
                self._rotate()

    def _rotate(self) -> None:
        """Rename the file, and those that were renamed before; the oldest goes."""
        self.rotations += 1
        if not self._keep:
            self.path.unlink()
            return
        for number in range(self._keep - 1, 0, -1):
            with suppress(FileNotFoundError):
                self._named(number).replace(self._named(number + 1))
        self.path.replace(self._named(1))

    def _named(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _times(beside: int) -> tuple[float, float]:
    told = os.pread(beside, _TIMES.size, KEY_BYTES)
    if len(told) < _TIMES.size:
        return _NO_TIMES
    began, latest = _TIMES.unpack(told)
    return began, latest


def _append(file: int, size: int, data: bytes) -> None:
    """Write at the end, all or nothing."""
    if size and data and os.pread(file, 1, size - 1) != b"\n":
        data = b"\n" + data
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(file, left) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise
