"""Codec: a value to bytes and back, exactly: what comes back has the same type and equals what went in.

Laws (law 9 of the design):
- msgpack (its specification, with extension types) and nothing else; no bytes can make us import or call anything:
  classes come from a registry that this process filled itself;
- the first byte is the version of this format, the second says how the rest is packed; bytes that are not ours are a
  DecodeError, which the lookup takes for a miss;
- a value that would not come back as it was is an EncodeError, and is not stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import EllipsisType
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from semcache.errors import ConfigurationError, DecodeError, EncodeError, MissingExtraError
from semcache.keys import is_pydantic, type_name

VERSION = 1
_PLAIN, _ZSTD = 0, 1
_HEADER = bytes((VERSION, _PLAIN))
_ZSTD_HEADER = bytes((VERSION, _ZSTD))
_COMPRESS_FROM_BYTES = 1024
_LARGEST_BYTES = 2**31

C = TypeVar("C", bound=type)
_registered: dict[str, type] = {}


def register(cls: C, name: str | None = None) -> C:
    """Let values of a dataclass, pydantic model, enum or named tuple be stored under a name (default: module.class).

    Stored bytes hold the name; a process that has not registered it takes them for a miss. Classes named in the
    return annotation of a cached function are registered by themselves. Usable as a decorator.
    """
    if not _is_record(cls):
        message = f"{type_name(cls)} is no dataclass, pydantic model, enum or named tuple; return one, or plain data"
        raise ConfigurationError(message)
    cls.__semcache_name__ = name or type_name(cls)  # type: ignore[attr-defined]
    _registered[cls.__semcache_name__] = cls  # type: ignore[attr-defined]
    return cls


def _is_record(kind: type) -> bool:
    return (
        hasattr(kind, "__dataclass_fields__")
        or is_pydantic(kind)
        or issubclass(kind, Enum)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def _registered_name(kind: type) -> str:
    """Return the name of a class, registering it: whoever stores a value has its class."""
    if "__semcache_name__" not in vars(kind):
        if not _is_record(kind):
            raise EncodeError(f"a {type_name(kind)} cannot be stored exactly; return plain data, or a dataclass")
        register(kind)
    return str(kind.__semcache_name__)  # type: ignore[attr-defined]


class Codec:
    """Encodes values; `compress="zstd"` packs those over 1 kB with Zstandard (RFC 8878), from the extra `compress`."""

    def __init__(self, compress: str | None = None) -> None:
        if compress not in (None, "zstd"):
            raise ConfigurationError(f'compress is None or "zstd"; got {compress!r}')
        if compress:
            _zstandard()
        self._compresses = compress is not None

    def encode(self, value: object) -> bytes:
        """Return the bytes of a value. Raises EncodeError."""
        return self._framed(pack(value))

    def _framed(self, data: bytes) -> bytes:
        if self._compresses and len(data) >= _COMPRESS_FROM_BYTES:
            packed: bytes = _zstandard().ZstdCompressor().compress(data)
            if len(packed) < len(data):
                return _ZSTD_HEADER + packed
        return _HEADER + data

    def join(self, items: list[bytes]) -> bytes:
        """Return the bytes of the list whose items were packed one by one."""
        header: bytes = msgpack.Packer(autoreset=True).pack_array_header(len(items))
        return self._framed(header + b"".join(items))

    @staticmethod
    def decode(data: bytes) -> Any:
        """Return a new value from its bytes. Raises DecodeError."""
        if data[:2] == _HEADER:
            return unpack(memoryview(data)[2:])
        if data[:2] == _ZSTD_HEADER:
            try:
                return unpack(_zstandard().ZstdDecompressor().decompress(data[2:], max_output_size=_LARGEST_BYTES))
            except MissingExtraError as error:
                raise DecodeError(str(error)) from None
            except _zstandard().ZstdError as error:
                raise DecodeError(f"damaged: {error}") from None
        raise DecodeError("not our bytes, or of another version")


def plain_body(data: bytes) -> memoryview | None:
    """Return the msgpack inside bytes that are ours and not compressed."""
    return memoryview(data)[2:] if data[:2] == _HEADER else None


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError('compress="zstd"', "compress") from None
    return zstandard


def pack(value: object) -> bytes:
    """Return msgpack bytes without our header. Raises EncodeError."""
    try:
        return bytes(msgpack.packb(value, default=_to_extension, strict_types=True, unicode_errors="surrogatepass"))
    except EncodeError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise EncodeError(f"cannot be stored exactly: {error}") from None


def unpack(data: bytes | memoryview) -> Any:
    """Return the value of msgpack bytes. Raises DecodeError, whatever the bytes are."""
    try:
        return msgpack.unpackb(data, ext_hook=_from_extension, strict_map_key=False, unicode_errors="surrogatepass")
    except DecodeError:
        raise
    except Exception as error:  # foreign bytes may break any constructor below us, in any way
        raise DecodeError(f"damaged: {error!r}") from error


# The number of an extension type is part of the stored format: never reuse one.
(
    _TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _COMPLEX, _INTEGER, _BYTEARRAY,
    _NDARRAY, _NUMPY_SCALAR, _RECORD, _MODEL, _ENUM, _NAMED_TUPLE, _ORDERED_DICT, _PATH, _FRACTION, _RANGE, _ELLIPSIS,
) = range(1, 24)  # fmt: skip


def _to_extension(value: Any) -> msgpack.ExtType:
    kind = value.__class__
    if kind in _TO:
        code, simplify = _TO[kind]
        return msgpack.ExtType(code, pack(simplify(value)))
    if kind.__module__.partition(".")[0] == "numpy":
        return _from_numpy(value)
    if isinstance(value, PurePath):
        return msgpack.ExtType(_PATH, pack([kind.__name__, str(value)]))
    return _from_record(value, kind)


def _zone(zone: Any) -> list[Any] | None:
    """Tell a time zone so that it comes back as the same kind of zone."""
    if zone is None:
        return None
    if isinstance(zone, timezone):
        offset = zone.utcoffset(None)
        return ["offset", offset.days, offset.seconds, offset.microseconds, zone.tzname(None)]
    if isinstance(zone, ZoneInfo) and zone.key:
        return ["zone", zone.key]
    raise EncodeError(f"a time zone of type {type_name(type(zone))} cannot be stored; use zoneinfo or timezone")


def _unzone(told: list[Any] | None) -> timezone | ZoneInfo | None:
    if told is None:
        return None
    if told[0] == "zone":
        return ZoneInfo(told[1])
    offset = timedelta(told[1], told[2], told[3])
    plain = UTC if not offset else timezone(offset)
    return plain if plain.tzname(None) == told[4] else timezone(offset, told[4])


def _from_datetime(value: datetime) -> list[Any]:
    naive = value.replace(tzinfo=None, fold=0)
    return [naive.isoformat(), value.fold, _zone(value.tzinfo)]


def _from_time(value: time) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(value.tzinfo)]


_TO: dict[type, tuple[int, Callable[[Any], Any]]] = {
    tuple: (_TUPLE, list),
    set: (_SET, list),
    frozenset: (_FROZENSET, list),
    datetime: (_DATETIME, _from_datetime),
    date: (_DATE, date.isoformat),
    time: (_TIME, _from_time),
    timedelta: (_TIMEDELTA, lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: (_DECIMAL, str),
    UUID: (_UUID, lambda value: value.bytes),
    complex: (_COMPLEX, lambda value: [value.real, value.imag]),
    int: (_INTEGER, hex),  # only integers past 64 bits come here
    bytearray: (_BYTEARRAY, bytes),
    OrderedDict: (_ORDERED_DICT, lambda value: list(value.items())),
    Fraction: (_FRACTION, lambda value: [value.numerator, value.denominator]),
    range: (_RANGE, lambda value: [value.start, value.stop, value.step]),
    EllipsisType: (_ELLIPSIS, lambda _: None),
}


def _from_numpy(value: Any) -> msgpack.ExtType:
    import numpy as np

    if value.__class__ not in (np.ndarray, *np.sctypeDict.values()):
        raise EncodeError(f"a {type_name(value.__class__)} cannot be stored exactly; return an ndarray")
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.names:
        raise EncodeError(f"an array of dtype {array.dtype} cannot be stored; return one of plain numbers or text")
    content = pack([array.dtype.str, list(array.shape), array.tobytes()])
    return msgpack.ExtType(_NDARRAY if isinstance(value, np.ndarray) else _NUMPY_SCALAR, content)


def _to_numpy(content: Any) -> Any:
    import numpy as np

    dtype, shape, data = content
    # A bytearray of our own makes the array writable, as the stored one was.
    return np.frombuffer(bytearray(data), dtype=np.dtype(dtype)).reshape(shape)


def _from_record(value: Any, kind: type) -> msgpack.ExtType:
    name = _registered_name(kind)
    if isinstance(value, Enum):
        if value.name is None:
            return msgpack.ExtType(_ENUM, pack([name, None, value.value]))
        return msgpack.ExtType(_ENUM, pack([name, value.name]))
    if isinstance(value, tuple):
        return msgpack.ExtType(_NAMED_TUPLE, pack([name, list(kind._fields), list(value)]))  # type: ignore[attr-defined]
    if is_pydantic(kind):
        content = [dict(value.__dict__), value.__pydantic_extra__, value.__pydantic_private__]
        return msgpack.ExtType(_MODEL, pack([name, *content, sorted(value.__pydantic_fields_set__)]))
    if vars(value).keys() - value.__dataclass_fields__ if hasattr(value, "__dict__") else False:
        raise EncodeError(f"a {type_name(kind)} with attributes that are no fields cannot be stored exactly")
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__ if hasattr(value, name)}
    return msgpack.ExtType(_RECORD, pack([name, fields]))


def _class(name: str) -> type:
    kind = _registered.get(name)
    if kind is None:
        raise DecodeError(f"{name} is not registered in this process: semcache.register(...) its class")
    return kind


def _to_record(content: Any) -> Any:
    name, fields = content
    kind = _class(name)
    if not fields.keys() <= kind.__dataclass_fields__.keys():  # type: ignore[attr-defined]
        raise DecodeError(f"{name} has other fields than when it was stored")
    for field in kind.__dataclass_fields__.keys() - fields.keys():  # type: ignore[attr-defined]
        if kind.__dataclass_fields__[field].init:  # type: ignore[attr-defined]
            raise DecodeError(f"{name} has the field {field!r}, which it had not when it was stored")
    record: Any = object.__new__(kind)
    for field, value in fields.items():  # not __init__: it may compute, validate, or refuse what it once made
        object.__setattr__(record, field, value)
    return record


def _to_model(content: Any) -> Any:
    name, fields, extra, private, fields_set = content
    kind = _class(name)
    if fields.keys() != kind.__pydantic_fields__.keys():  # type: ignore[attr-defined]
        raise DecodeError(f"{name} has other fields than when it was stored")
    model: Any = object.__new__(kind)
    object.__setattr__(model, "__dict__", fields)
    object.__setattr__(model, "__pydantic_extra__", extra)
    object.__setattr__(model, "__pydantic_private__", private)
    object.__setattr__(model, "__pydantic_fields_set__", set(fields_set))
    return model


def _to_enum(content: Any) -> Any:
    name, member, *number = content
    kind = _class(name)
    return kind(number[0]) if number else kind[member]  # type: ignore[index]


def _to_named_tuple(content: Any) -> Any:
    name, fields, values = content
    kind = _class(name)
    if list(kind._fields) != fields:  # type: ignore[attr-defined]
        raise DecodeError(f"{name} has other fields than when it was stored")
    return kind._make(values)  # type: ignore[attr-defined]


def _to_path(content: Any) -> PurePath:
    import pathlib

    name, text = content
    if name not in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        raise DecodeError(f"{name} is no path")
    path: PurePath = getattr(pathlib, name)(text)
    return path


_FROM: dict[int, Callable[[Any], Any]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _DATETIME: lambda told: datetime.fromisoformat(told[0]).replace(fold=told[1], tzinfo=_unzone(told[2])),
    _DATE: date.fromisoformat,
    _TIME: lambda told: time.fromisoformat(told[0]).replace(fold=told[1], tzinfo=_unzone(told[2])),
    _TIMEDELTA: lambda told: timedelta(*told),
    _DECIMAL: Decimal,
    _UUID: lambda told: UUID(bytes=told),
    _COMPLEX: lambda told: complex(*told),
    _INTEGER: lambda told: int(told, 16),
    _BYTEARRAY: bytearray,
    _NDARRAY: _to_numpy,
    _NUMPY_SCALAR: lambda told: _to_numpy(told)[()],
    _RECORD: _to_record,
    _MODEL: _to_model,
    _ENUM: _to_enum,
    _NAMED_TUPLE: _to_named_tuple,
    _ORDERED_DICT: OrderedDict,
    _PATH: _to_path,
    _FRACTION: lambda told: Fraction(*told),
    _RANGE: lambda told: range(*told),
    _ELLIPSIS: lambda _: ...,
}


def _from_extension(code: int, data: bytes) -> Any:
    read = _FROM.get(code)
    if read is None:
        raise DecodeError(f"extension type {code} is not ours")
    return read(unpack(data))
