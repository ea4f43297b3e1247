"""What stands in a memcached, entries and tombstones, and how it is written there behind the callers.

Laws:
- of two entries the one born later stays, and none replaces a tombstone of a later position: what comes between a look
  and a write is told by its cas id (so the server must not run with `-C`, which takes these away);
- what is worth keeping for a time is given an end, never kept for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil, inf
from struct import Struct
from typing import NamedTuple

from semcache.errors import DecodeError, TierError
from semcache.marks import Pair
from semcache.plan import Exchange, Plan, run
from semcache.stores import header
from semcache.stores.memcached_link import PATIENT_SECONDS, MemcachedLink, trouble
from semcache.stores.outbox import Outbox, Sent, Write

# A late put can come as long after its key was invalidated as a load may take.
LONGEST_LOAD_SECONDS = 3600
_ROUNDS = 16
# To a server, more than 30 days is a time since 1970, and zero, which we never say, is for ever.
_LONGEST_RELATIVE = 30 * 86400
_LAST_TIME = 2**31 - 1

_TOMBSTONE = Struct("<BQ")


def tombstone(position: int) -> bytes:
    """Return the record that stands for a key invalidated at a position."""
    return _TOMBSTONE.pack(header.TOMBSTONE, position)


def buried_at(data: bytes) -> int | None:
    """Return the position of a tombstone; None where the record is none."""
    if len(data) != _TOMBSTONE.size or data[0] != header.TOMBSTONE:
        return None
    return int(_TOMBSTONE.unpack(data)[1])


def expiry(seconds: float) -> int:
    """Return how to tell a server that something is worth keeping for so long, in its whole seconds."""
    if seconds <= _LONGEST_RELATIVE:
        return max(1, ceil(seconds))
    return int(min(time.time() + seconds, _LAST_TIME))  # the server's own clock, whatever ours is in a test


def outranks(standing: bytes, key: bytes, born: int, now: float) -> bool:
    """Say whether what stands at a key keeps out an entry born at `born`."""
    position = buried_at(standing)
    if position is not None:
        return born < position
    try:
        entry = header.read(key, standing, now, inf)
    except DecodeError:  # not ours, or damaged (law 9)
        return False
    return entry is not None and entry.born > born


Judge = Callable[["bytes | None"], "tuple[bytes, int] | None"]


def settle(
    link: MemcachedLink, name: bytes, judge: Judge, *, looks: bool, timeout: float = PATIENT_SECONDS
) -> Plan[tuple[bool, bytes | None]]:
    """Put a record where another may stand, and whatever others do meanwhile: whether it was put, and what stood there.

    `judge` is given what stands, None for nothing, and says what to put there and until when, or None to let it be.
    Without `looks` it is taken for granted at first that nothing does. `timeout` is for each trip. Raises TierError.
    """
    standing, cas = None, None
    for turn in range(_ROUNDS):
        if looks or turn:
            found = yield Exchange(link, [("gets", name)], timeout)
            standing, cas = found.values[0]
        wanted = judge(standing)
        if wanted is None:
            return False, standing
        data, until = wanted
        command = ("add", name, data, until) if standing is None else ("cas", name, data, cas, until)
        stored = yield Exchange(link, [command], timeout)
        if stored.values[0]:
            return True, standing
    raise TierError("contended", f"{link.where}: {name.decode()} was changed by others {_ROUNDS} times in a row")


class Item(NamedTuple):
    """What is to stand at a name, and until when; with `cas` it stands already, and is written again to live on."""

    name: bytes
    data: bytes
    until: int
    cas: bytes | None = None


class Deliverer:
    """Puts items where nothing better stands, one at a time; `now` is the clock that entries expire by."""

    def __init__(self, link: MemcachedLink, now: Callable[[], float]) -> None:
        self._link = link
        self._now = now

    def __call__(self, batch: list[Write[Item]]) -> Sent:
        """Write them. Raises TierError."""
        return [self._deliver(write) for write in batch]

    def _deliver(self, write: Write[Item]) -> bool:
        item = write.what
        if item.cas is not None:
            # Not `touch`: that would also shorten the life of a tombstone that has come meanwhile.
            asked = ("cas", item.name, item.data, item.cas, item.until)
            return bool(self._link.exchange([asked], PATIENT_SECONDS).values[0])

        def judge(standing: bytes | None) -> tuple[bytes, int] | None:
            if standing is not None and outranks(standing, write.key, write.born, self._now()):
                return None
            return item.data, item.until

        is_written, _ = run(settle(self._link, item.name, judge, looks=False))
        return is_written


def open_outbox(
    link: MemcachedLink, covers: Callable[[Sequence[Pair], int], bool], now: Callable[[], float],
    on_fault: Callable[[str, BaseException], None],
) -> Outbox[Item]:  # fmt: skip
    """Make the queue of what is put; `covers` says that (pairs, born) was invalidated."""

    def tell(error: BaseException) -> None:
        told = error if isinstance(error, TierError) else trouble(error, link.where)
        on_fault(told.reason, told)

    return Outbox(
        "semcache-memcached", Deliverer(link, now), covers=covers, on_fault=tell, batch=1,
        passes=lambda error: _reason(error) == "unreachable",
        is_away=lambda error: _reason(error) in ("late", "unreachable"),
    )  # fmt: skip


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, TierError) else ""
