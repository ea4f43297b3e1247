"""Durations and sizes as people write them, and the ttl and timeout of each tier.

A duration is a number of seconds or "250ms", "5m", "1h", "1d"; a size is a number of bytes or "64MB", "512MiB"
(MB is 10**6 bytes, MiB is 2**20).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from semcache.errors import ConfigurationError
from semcache.model import FOREVER, Lives

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_LONGEST_SECONDS = 9e9  # 285 years: no thread can wait longer (threading.TIMEOUT_MAX)

MEMORY_SECONDS = 300.0

Duration = int | float | str
Size = int | str


def seconds(duration: Duration, what: str = "a duration") -> float:
    """Return a duration in seconds; it must be positive, and at most 9e9."""
    value: float | None = None
    if isinstance(duration, str):
        value = _amount(duration, _SECONDS, "s")
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        value = duration
    if value is None or not 0 < value <= _LONGEST_SECONDS:
        message = (
            f'{what} must be a positive number of seconds, or text like "250ms", "5m", "1h", "1d"; got {duration!r}'
        )
        raise ConfigurationError(message)
    return float(value)


def size_bytes(size: Size, what: str = "a size") -> int:
    """Return a size in bytes; 0 is allowed."""
    value: float | None = None
    if isinstance(size, str):
        value = _amount(size, _BYTES, "b")
    elif isinstance(size, int) and not isinstance(size, bool):
        value = size
    if value is None or not 0 <= value < inf:
        raise ConfigurationError(f'{what} must be a number of bytes, or text like "64MB", "1GiB"; got {size!r}')
    return int(value)


def _amount(text: str, units: Mapping[str, float], plain: str) -> float | None:
    """Return a number and its unit multiplied; None where the text is no such thing."""
    match = _AMOUNT.fullmatch(text)
    unit = units.get((match[2] or plain).lower()) if match else None
    return float(match[1]) * unit if match and unit else None


def lives_of(
    ttl: Duration | Callable[[Any], Duration | None] | None, max_age: Duration | None = None,
    stale_while_revalidate: Duration = 0, stale_if_error: Duration = 0, *, sliding: bool = False,
) -> Lives | None:  # fmt: skip
    """Check how long an answer may be served; None where nothing was said. Raises ConfigurationError."""
    if (ttl, max_age, stale_while_revalidate, stale_if_error, sliding) == (None, None, 0, 0, False):
        return None
    if sliding and ttl is None:
        raise ConfigurationError('sliding=True wants a ttl that each hit gives anew, as in ttl="1h"')
    if sliding and (stale_while_revalidate or stale_if_error):
        raise ConfigurationError("an answer slides or is served stale, not both: leave out sliding= or stale_...=")
    lives = Lives(
        None if ttl is None or callable(ttl) else seconds(ttl, "ttl"),
        sliding,
        inf if max_age is None else seconds(max_age, "max_age"),
        seconds(stale_while_revalidate, "stale_while_revalidate") if stale_while_revalidate != 0 else 0.0,
        seconds(stale_if_error, "stale_if_error") if stale_if_error != 0 else 0.0,
        ttl if callable(ttl) else None,
    )
    return None if lives == FOREVER else lives


@dataclass(frozen=True, slots=True)
class TTL:
    """How long each tier keeps an entry, in seconds or as text; `jitter` shortens each life by up to that share.

    `memory` is "5m" by default; where there is no disk or server and memory is the exact store, it is `semantic`'s, so
    that a near match finds its answer. Jitter keeps entries that were written together from expiring together.
    """

    memory: Duration | None = None
    disk: Duration = "1d"
    semantic: Duration = "1h"
    jitter: float = 0.1
    redis: Duration = "1d"
    memcached: Duration = "1d"

    def __post_init__(self) -> None:
        for tier in ("memory", "disk", "redis", "memcached", "semantic"):
            if tier != "memory" or self.memory is not None:
                object.__setattr__(self, tier, seconds(getattr(self, tier), f"ttl of {tier}"))
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float) or not 0 <= self.jitter < 1:
            raise ConfigurationError(f"jitter is a share of the ttl, at least 0 and below 1; got {self.jitter!r}")

    def of(self, tier: str, *, is_store: bool = False) -> float:
        """Return a tier's ttl in seconds."""
        if tier == "memory" and self.memory is None:
            return self.of("semantic") if is_store else MEMORY_SECONDS
        return float(getattr(self, tier))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a lookup waits for each tier before it goes on without it, and a follower for its leader."""

    disk: Duration = "25ms"
    semantic: Duration = "250ms"
    flight: Duration = "30s"
    redis: Duration = "25ms"
    memcached: Duration = "25ms"
    sidecar: Duration = "300ms"

    def __post_init__(self) -> None:
        for name in ("disk", "redis", "memcached", "sidecar", "semantic", "flight"):
            object.__setattr__(self, name, seconds(getattr(self, name), f"timeout of {name}"))

    def of(self, name: str) -> float:
        """Return a timeout in seconds."""
        return float(getattr(self, name))
