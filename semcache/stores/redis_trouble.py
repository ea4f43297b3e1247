"""One word, and a mend, for each kind of trouble that one can have with a Redis.

Law: no message of it names a password.
"""

from __future__ import annotations

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from semcache.errors import TierError

_REASONS: list[tuple[type[Exception], str]] = [
    (AuthenticationError, "rights"),
    (NoPermissionError, "rights"),
    (OutOfMemoryError, "space"),
    (ReadOnlyError, "readonly"),
    (BusyLoadingError, "loading"),
    (RedisTimeoutError, "late"),
    (TimeoutError, "late"),
    (RedisConnectionError, "unreachable"),
    (OSError, "unreachable"),
]
_MENDS = {
    "clients": "raise its maxclients, or give fewer connections: redis://...?max_connections=8",
    "rights": "docs/operations.md lists the rights a user needs",
    "space": "its memory is full: raise maxmemory, or let it evict",
    "readonly": "it is a replica: give the primary's address",
    "loading": "it reads its data from disk; this passes",
}


def trouble(error: BaseException, where: str) -> TierError:
    """Return what went wrong as the tier's own error, with one word for it and the mend where there is one."""
    if isinstance(error, TierError):
        return error
    text = str(error) or type(error).__name__
    reason = next((word for kind, word in _REASONS if isinstance(error, kind)), "reply")
    if "max number of clients" in text:
        reason = "clients"
    elif text.startswith(("NOAUTH", "NOPERM", "WRONGPASS")) or "invalid username-password" in text:
        reason = "rights"
    mend = _MENDS.get(reason)
    return TierError(reason, f"{where}: {text}" + (f" ({mend})" if mend else ""))
