"""What is answered by us with an error: by status, in a line that names the mend."""

from __future__ import annotations

BAD, UNKNOWN, FORBIDDEN, ABSENT, LARGE, BUSY, NOT_CACHED = 400, 401, 403, 404, 413, 503, 504


class RefusedError(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def not_cached() -> RefusedError:
    """Return what is said where a call may be answered from the cache alone, and is not there (RFC 9111)."""
    return RefusedError(NOT_CACHED, "it is not in the cache, and only-if-cached was asked for")
