"""What came of a report of a wrong answer: plain values, as they are told to who reported it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from semcache.errors import TierError


@dataclass(frozen=True, slots=True)
class Reported:
    """What a report found, and what was done; false where it found nothing, and then `reason` says why.

    `blocked` are the pairs (key asked, key of the entry) that are not served any more, `closed` the entries that answer
    their own texts alone from now on, `entries` the keys that were invalidated, of which `dropped` entries stood. The
    policy has learned from `learned` of the pairs. Where `is_durable` is False the store could not keep it, for the
    `reason`: then it holds in this process alone, until it is reported again.
    """

    blocked: tuple[tuple[bytes, bytes], ...] = ()
    closed: tuple[bytes, ...] = ()
    entries: tuple[bytes, ...] = ()
    dropped: int = 0
    learned: int = 0
    is_durable: bool = True
    reason: str = ""

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Reported:
        """Return what another process did, as it was sent. Raises TierError."""
        try:
            pairs = tuple((bytes(asked), bytes(stored)) for asked, stored in told["blocked"])
            return cls(
                pairs, tuple(told["closed"]), tuple(told["entries"]), told["dropped"], told["learned"],
                told["is_durable"], told["reason"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise TierError("reply", f"what was done about a report cannot be read: {error}") from error

    def __bool__(self) -> bool:
        return bool(self.blocked or self.entries)

    def __str__(self) -> str:
        told = [f"entry {stored.hex()} is not served to {asked.hex()} any more" for asked, stored in self.blocked]
        told += [f"entry {stored.hex()} answers its own text alone" for stored in self.closed]
        told += [f"entry {key.hex()} was dropped" for key in self.entries]
        return "; ".join([*(told or ["nothing was done"]), *([self.reason] if self.reason else [])])

    def told(self) -> dict[str, Any]:
        """Return it as another process is told of it."""
        return asdict(self)
