"""The bytes of an entry in a store that keeps plain strings: a header, its facets, and the encoded answer.

    version u8 | flags u8 | length of the facets u16 | crc32 u32 | expires f64 | written f64 | limit f64 | born u64
    | load_seconds f32 | grace f32 | slide f32 | facets and usage, msgpack | the answer

Little-endian; times are seconds since 1970 in the store's clock. The checksum covers the key and all that follows it,
so an answer that stands at another's key is nobody's.

Laws: bytes that are not ours, damaged or of another version are a DecodeError, which is a miss, and are overwritten
(law 9); an entry says itself when it expires, the server's ttl only collects garbage (law 5). Only a sliding entry's
end is the server's to say: each hit moves it, with the key's ttl rather than with a new write of its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from struct import Struct
from typing import Any
from zlib import crc32

from msgpack import packb, unpackb

from semcache.errors import DecodeError, EncodeError
from semcache.model import Entry, Facets, Usage

VERSION = 1
# A version byte of 0 is a tombstone's: it says only since when there is nothing.
TOMBSTONE = 0
_OWN_TTL, _PINNED, _TOLD = 1, 2, 4
_HEADER = Struct("<BBHIdddQfff")
_BODY = 8
# Clocks of one store's processes agree to this; what was written later than that comes from a clock that went back.
SKEW_SECONDS = 1.0
MAX_FACETS_BYTES = 0xFFFF
HEADER_BYTES = _HEADER.size


def write(key: bytes, entry: Entry, facets: Facets, life: float, now: float) -> bytes:
    """Return the bytes of an entry that lives so many seconds from now. Raises EncodeError for too many facets."""
    usage = entry.usage
    told = bool(facets.tags or facets.documents or usage is not None)
    about: list[Any] = [facets.function, facets.version, facets.tenant, facets.model, facets.tags, facets.documents]
    if usage is not None:
        about.append(usage.packed())
    packed: bytes = packb(about, unicode_errors="surrogatepass")
    if len(packed) > MAX_FACETS_BYTES:
        raise EncodeError(f"its tags and documents take {len(packed)} bytes, over {MAX_FACETS_BYTES}: name fewer")
    flags = (_OWN_TTL if entry.own_ttl else 0) | (_PINNED if entry.is_pinned else 0) | (_TOLD if told else 0)
    expires = inf if entry.slide else now + life
    body = _HEADER.pack(
        VERSION, flags, len(packed), 0, expires, now - entry.age, now + entry.limit, entry.born, entry.load_seconds,
        entry.grace, entry.slide,
    )[_BODY:] + packed + entry.value  # fmt: skip
    return _HEADER.pack(VERSION, flags, len(packed), crc32(body, crc32(key)), 0, 0, 0, 0, 0, 0, 0)[:_BODY] + body


def read(key: bytes, data: bytes, now: float, grace: float = 0.0) -> Entry | None:
    """Return the entry, None where its life is over by more than a grace that it has too. Raises DecodeError.

    Its facets and usage are filled in where it has tags, documents or a usage: the others its key implies.
    """
    if len(data) < HEADER_BYTES or data[0] != VERSION:
        raise DecodeError("not our bytes, or of another version")
    _, flags, length, checksum, expires, written, limit, born, load_seconds, own_grace, slide = _HEADER.unpack_from(
        data
    )
    if crc32(memoryview(data)[_BODY:], crc32(key)) != checksum:
        raise DecodeError("damaged, or another key's")
    if written > now + SKEW_SECONDS:
        return None
    ends = limit - now
    life = min(slide or expires - now, ends)
    if life <= 0 and (life <= -min(grace, own_grace) or ends <= 0):
        return None
    entry = Entry(
        data[HEADER_BYTES + length :], life, bool(flags & _OWN_TTL), born, max(0.0, now - written), load_seconds,
        own_grace, slide, ends, bool(flags & _PINNED),
    )  # fmt: skip
    if flags & _TOLD:
        entry.facets, entry.usage = _told(data[HEADER_BYTES : HEADER_BYTES + length])
    return entry


def read_plain(
    keys: Sequence[bytes], found: Sequence[Any], now: float, newest: int
) -> tuple[list[bytes | None], float]:
    """Return the answers of many entries, and the seconds that loading these took; None for what `read` is to look at.

    That is what is not there, is over, was born before the newest mark, slides, is pinned, has facets or a usage of its
    own, or is not ours.
    """
    answers: list[bytes | None] = []
    total, latest, unpack = 0.0, now + SKEW_SECONDS, _HEADER.unpack_from
    for key, data in zip(keys, found, strict=True):
        answer = None
        if data is not None and len(data) >= HEADER_BYTES and data[0] == VERSION:
            _, flags, length, checksum, expires, written, limit, born, seconds, _, slide = unpack(data)
            is_plain = flags <= _OWN_TTL and not slide and born >= newest
            is_fresh = written <= latest and now < expires and now < limit
            if is_plain and is_fresh and crc32(data[_BODY:], crc32(key)) == checksum:
                answer = data[HEADER_BYTES + length :]
                total += seconds
        answers.append(answer)
    return answers, total


def born_of(data: bytes) -> int | None:
    """Return when an entry was born, of its first bytes; None where they are not ours."""
    return _HEADER.unpack_from(data)[7] if len(data) >= HEADER_BYTES and data[0] == VERSION else None


def peek(data: bytes) -> tuple[int, float, Facets] | None:
    """Return when an entry was born and expires, and its facets, of its first bytes; None where they are not ours."""
    if len(data) < HEADER_BYTES or data[0] != VERSION:
        return None
    _, _, length, _, expires, _, limit, born, _, grace, _ = _HEADER.unpack_from(data)
    packed = data[HEADER_BYTES : HEADER_BYTES + length]
    if len(packed) < length:
        return None
    try:
        return born, min(expires + grace, limit), _told(packed)[0]
    except DecodeError:
        return None


def _told(packed: bytes) -> tuple[Facets, Usage | None]:
    try:
        function, version, tenant, model, tags, documents, *usage = unpackb(packed, unicode_errors="surrogatepass")
        facets = Facets("", function, version, tenant, model, tuple(tags), tuple(documents))
        return facets, Usage(*usage[0]) if usage else None
    except Exception as error:  # foreign bytes may break any constructor below us
        raise DecodeError(f"damaged: {error}") from error
