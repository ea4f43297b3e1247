"""What is answered by us with an error: by status, in a line that names the mend."""

from __future__ import annotations

BAD, UNKNOWN, FORBIDDEN, ABSENT, LARGE, BUSY, NOT_CACHED = 400, 401, 403, 404, 413, 503, 504


class RefusedError(Exception):
    """A request that goes no further: `message` says why, and `mend`, where there is one, what to do instead."""

    def __init__(self, status: int, message: str, mend: str = "") -> None:
        super().__init__(f"{message}: {mend}" if mend else message)
        self.status = status
        self.message = message
        self.mend = mend


def not_cached() -> RefusedError:
    """Return what is said where a call may be answered from the cache alone, and is not there (RFC 9111)."""
    return RefusedError(NOT_CACHED, "it is not in the cache, and only-if-cached was asked for")
