"""What semcache raises, and when: only construction, decoration and `invalidate` ever do.

A lookup never raises an error of ours; what goes wrong on its way becomes an event (law 10). The tree:

    SemcacheError
    ├── ConfigurationError          wrong settings, at construction or decoration; the message holds the mend
    │   └── MissingExtraError       an optional dependency is not installed; the message holds the command
    ├── UnkeyableError              a value that no key can be made of; at a call it becomes a counted bypass
    ├── CodecError
    │   ├── EncodeError             a value that cannot be stored exactly; the caller still gets it
    │   └── DecodeError             bytes that are not ours, damaged, or of another version; a miss
    ├── TierError                   a tier could not answer in time or at all; a miss and an event
    ├── InvalidationError           an invalidation that could not be made durable (law 8)
    └── TrafficError                a line that is not in the traffic format
"""


class SemcacheError(Exception):
    """The root of all errors of this package."""


class ConfigurationError(SemcacheError, ValueError):
    """Wrong settings; raised at construction or decoration, with the mend in the message."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is needed and not installed; the message holds the command that installs it."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need} needs the extra '{extra}': pip install 'tiered-semcache[{extra}]'")
        self.extra = extra


class UnkeyableError(SemcacheError, TypeError):
    """A value that no key can be made of; `where` names the argument or the path inside it."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where


class CodecError(SemcacheError):
    """A value and its bytes do not go together."""


class EncodeError(CodecError):
    """A value that cannot be stored so that it comes back exactly as it was."""


class DecodeError(CodecError):
    """Bytes that are not ours, are damaged, or were written by another version."""


class TierError(SemcacheError):
    """A tier could not answer in time or at all; `reason` is one word for events and counters."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class InvalidationError(SemcacheError):
    """An invalidation could not be made durable: what it named may still be served. Try again."""


class TrafficError(SemcacheError):
    """A line that is not in the traffic format; `line` is its number, from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {message}" if line is not None else message)
        self.line = line
