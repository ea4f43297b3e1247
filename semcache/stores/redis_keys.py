"""What stands where in a Redis, and how positions and records are written: names and bytes, nothing that talks.

Under `semcache:NAMESPACE:` stand

    v:HEX       an entry (see `header`)                     until its life, and its grace, are over
    p:HEX       a pinned entry                              until it is invalidated; bounded in number and bytes
    pinned      a hash: key to record (see `redis_pins`)    the pinned entries, and their rows for the index
    keys        a sorted set: key by the time it ends       the entries there are, so that none need be searched for
    marks       a sorted set: facet value by position       what was invalidated when; a set, so that no mark goes back
    gone        a sorted set: key by position               the same of single keys, kept no longer than a load takes
    log         a stream of records                         added, pinned, marked, mode; trimmed by age and number
    mode        a sorted set: mode by position              the switch of all replicas is the latest; none is set back
    use:DAY     a hash: amount by name                      what all processes booked on a day, for 400 days;
                of a season's first day, with a letter behind it, the labels and counts of a policy that learns
    booked:HEX  a string                                    the number of the last sums that a process booked, for a day
    wrong       a sorted set: block by when it was made     near matches that were reported; bounded by who reports
    served      a stream of rows                            near matches that were served; trimmed by age and number
    id:HEX      a string: a key                             whose answer has this id, for seven days

A position is a stream id as one number: 12 bits of sequence below the milliseconds since 2020. It fits a sorted set's
score, which is exact up to 2**53, until 2089.
"""

from __future__ import annotations

from binascii import hexlify
from typing import Any
from urllib.parse import quote

from msgpack import packb, unpackb

from semcache.errors import DecodeError
from semcache.model import MODES

PREFIX = "semcache"
EPOCH_MS = 1_577_836_800_000
_SEQUENCE_BITS = 12
_MAX_SEQUENCE = (1 << _SEQUENCE_BITS) - 1


class Names:
    """The keys of one namespace; those of a `part` lie within it, for a trial with no more rights than it has."""

    def __init__(self, namespace: str, part: str = "") -> None:
        base = f"{PREFIX}:{quote(namespace, safe='')}:".encode()
        if part:
            base += f"{quote(part, safe='')}:".encode()
        self.value, self._pin = base + b"v:", base + b"p:"
        self.keys, self.marks, self.gone, self.log = base + b"keys", base + b"marks", base + b"gone", base + b"log"
        self.mode, self.pinned = base + b"mode", base + b"pinned"
        self.wrong, self.served, self._answer = base + b"wrong", base + b"served", base + b"id:"
        self._use, self._booked = base + b"use:", base + b"booked:"

    def of(self, key: bytes) -> bytes:
        """Return where an entry stands."""
        return self.value + hexlify(key)

    def of_pinned(self, key: bytes) -> bytes:
        """Return where a pinned entry stands."""
        return self._pin + key.hex().encode()

    def beside(self) -> list[bytes]:
        """Return every key there is beside the entries."""
        return [name for name in vars(self).values() if not name.endswith(b":")]

    def use(self, day: str) -> bytes:
        """Return where the counters of a day stand."""
        return self._use + day.encode()

    def booked(self, process: bytes) -> bytes:
        """Return where it stands what a process booked last."""
        return self._booked + process.hex().encode()

    def answer(self, response: bytes) -> bytes:
        """Return where the key of an answer stands, by the digest of its id."""
        return self._answer + response.hex().encode()


def position_of(stream_id: bytes) -> int:
    """Return a stream id, b"1700000000000-0", as a position."""
    milliseconds, _, sequence = stream_id.partition(b"-")
    return (int(milliseconds) - EPOCH_MS << _SEQUENCE_BITS) + min(int(sequence or 0), _MAX_SEQUENCE)


def id_of(position: int) -> bytes:
    """Return a position as a stream id."""
    milliseconds = (position >> _SEQUENCE_BITS) + EPOCH_MS
    return b"%d-%d" % (max(milliseconds, 0), position & _MAX_SEQUENCE if milliseconds > 0 else 0)


def position_at(seconds: float) -> int:
    """Return the position just before all ids that a server gives from this time of its clock on."""
    return (int(seconds * 1000) - EPOCH_MS << _SEQUENCE_BITS) - 1


def seconds_of(reply: Any) -> float:
    """Return the seconds since 1970 of a reply to TIME."""
    return int(reply[0]) + int(reply[1]) / 1e6


def member(facet: str, value: str | bytes) -> bytes:
    """Return a facet value as a member of `marks`."""
    return facet.encode() + b"\0" + (value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))


def pair_of(marked: bytes) -> tuple[str, str | bytes]:
    """Return the facet value of a member of `marks`."""
    facet, _, value = marked.partition(b"\0")
    name = facet.decode()
    return name, value if name == "key" else value.decode("utf-8", "surrogatepass")


def told_mode(newest: list[bytes]) -> tuple[int, str]:
    """Return a position and the mode that was set there, from the latest member of `mode`; (0, "") where none is."""
    name = newest[0].decode("ascii", "replace") if newest else ""
    return (int(float(newest[1])), name) if name in MODES else (0, "")


def pack(record: list[Any]) -> bytes:
    """Return a log record's bytes."""
    return bytes(packb(record, unicode_errors="surrogatepass"))


def unpack(data: bytes) -> list[Any]:
    """Return a log record. Raises DecodeError for what is none of ours."""
    try:
        record = unpackb(data, unicode_errors="surrogatepass")
        if isinstance(record, list) and record:
            return record
    except Exception as error:  # foreign bytes may break the parser in any way
        raise DecodeError(f"no record of ours: {error}") from error
    raise DecodeError("no record of ours")
