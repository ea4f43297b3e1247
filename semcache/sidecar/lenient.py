"""How what programs send is read: their values as far as they can be, their messages within bounds.

Law: a value is its program's own, and is given as it came; what cannot be read of it is only not compared.
"""

from __future__ import annotations

from typing import Any

from semcache.codec import Codec
from semcache.errors import DecodeError

# Of a message over _SMALL bytes; a lookup has five lists and maps.
_SMALL, _MOST_PARTS = 1 << 16, 100_000


class Lenient(Codec):
    """Reads values where they can be read here; what they are is their programs' own."""

    @staticmethod
    def decode(data: bytes) -> Any:
        try:
            return Codec.decode(data)
        except DecodeError:
            return None


def counted(body: bytes) -> dict[str, Any]:
    """Return what counts the lists and maps of a large message, each of which takes many times its bytes."""
    if len(body) < _SMALL:
        return {}
    left = [_MOST_PARTS]

    def count(told: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"it has over {_MOST_PARTS} parts")
        return told

    return {"list_hook": count, "object_hook": count}
