"""Extensions: how the codec tells values of the standard library and numpy in plain msgpack data, and reads them.

Laws:
- what is read back has the type it had and equals what was told; what would not is an EncodeError;
- each reader takes one type of content: the wrong one would have some constructors take hours, or all memory.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import EllipsisType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from semcache.errors import DecodeError, EncodeError
from semcache.keys import is_portable
from semcache.naming import type_name

# The number of an extension type is part of the stored format: never reuse one.
(
    TUPLE, SET, FROZENSET, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID_, COMPLEX, INTEGER, BYTEARRAY,
    NDARRAY, NUMPY_SCALAR, RECORD, MODEL, ENUM, NAMED_TUPLE, ORDERED_DICT, PATH, FRACTION, RANGE, ELLIPSIS,
) = range(1, 24)  # fmt: skip


def _zone(zone: Any) -> list[Any] | None:
    """Tell a time zone so that it comes back as the same kind of zone."""
    if zone is None:
        return None
    if type(zone) is timezone:
        return ["offset", _timedelta(zone.utcoffset(None)), zone.tzname(None)]
    if type(zone) is ZoneInfo and zone.key and ZoneInfo(zone.key) is zone:
        return ["zone", zone.key]
    pydantic_core: Any = sys.modules.get("pydantic_core")
    if pydantic_core is not None and type(zone) is pydantic_core.TzInfo:
        return ["pydantic", _timedelta(zone.utcoffset(None))]
    raise EncodeError(f"a time zone of type {type_name(type(zone))} cannot be stored; use zoneinfo or timezone")


def _unzone(told: list[Any] | None) -> tzinfo | None:
    if told is None:
        return None
    sort, detail, *name = told
    if sort == "zone":
        return ZoneInfo(detail)
    if sort == "pydantic":
        zone: tzinfo = sys.modules["pydantic_core"].TzInfo(timedelta(*detail).total_seconds())
        return zone
    if sort != "offset":
        raise DecodeError(f"no time zone: {told!r}")
    offset = timedelta(*detail)
    plain = timezone(offset) if offset else UTC
    return plain if [plain.tzname(None)] == name else timezone(offset, *name)


def _moment(value: datetime | time) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(value.tzinfo)]


def _to_datetime(told: list[Any]) -> datetime:
    text, fold, zone = told
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_unzone(zone))


def _to_time(told: list[Any]) -> time:
    text, fold, zone = told
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_unzone(zone))


def _timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _to_fraction(told: list[Any]) -> Fraction:
    numerator, denominator = told  # always both: of one alone, "1e999999999", it would take hours to make a fraction
    return Fraction(numerator, denominator)


_PATHS: dict[str, type[PurePath]] = {
    kind.__name__: kind for kind in (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath)
}


def _path(value: PurePath) -> list[str]:
    return [type(value).__name__, str(value)]


def _to_path(told: list[str]) -> PurePath:
    name, text = told
    return _PATHS[name](text)


# By type: the number, and what tells a value in simpler ones.
TELL: dict[type, tuple[int, Callable[[Any], Any]]] = {
    tuple: (TUPLE, list),
    set: (SET, list),
    frozenset: (FROZENSET, list),
    datetime: (DATETIME, _moment),
    date: (DATE, date.isoformat),
    time: (TIME, _moment),
    timedelta: (TIMEDELTA, _timedelta),
    Decimal: (DECIMAL, str),
    UUID: (UUID_, lambda value: value.bytes),
    complex: (COMPLEX, lambda value: [value.real, value.imag]),
    bytearray: (BYTEARRAY, bytes),
    OrderedDict: (ORDERED_DICT, lambda value: [list(pair) for pair in value.items()]),
    Fraction: (FRACTION, lambda value: [value.numerator, value.denominator]),
    range: (RANGE, lambda value: [value.start, value.stop, value.step]),
    EllipsisType: (ELLIPSIS, lambda _: None),
    **dict.fromkeys(_PATHS.values(), (PATH, _path)),
}


def tell_numpy(value: Any, kind: type) -> tuple[int, list[Any]]:
    """Tell an array or a scalar of numpy's. Raises EncodeError."""
    import numpy as np  # the value is numpy's, so it is loaded

    if kind in (np.str_, np.bytes_):  # an array would drop the zeros at their ends
        return NUMPY_SCALAR, [kind.__name__, bytes(value) if kind is np.bytes_ else str.__str__(value)]
    if kind is not np.ndarray and kind not in np.sctypeDict.values():
        raise EncodeError(f"a {type_name(kind)} cannot be stored exactly; return an ndarray")
    array = np.asarray(value)
    dtype = array.dtype
    if not is_portable(dtype) or dtype.names or np.dtype(dtype.str).num != dtype.num:
        raise EncodeError(f"an array of dtype {dtype} cannot be stored; return one of plain numbers or text")
    return NDARRAY if kind is np.ndarray else NUMPY_SCALAR, [dtype.str, list(array.shape), array.tobytes()]


_DTYPE = re.compile(r"[<>|][?bBiufcmMSUV]\d+(\[\w+\])?", re.ASCII)


def _to_array(told: list[Any]) -> Any:
    import numpy as np  # only where such a value was stored

    dtype, shape, data = told
    if not _DTYPE.fullmatch(dtype) or type(data) is not bytes:
        raise DecodeError(f"no array of {dtype!r}")
    # A bytearray of our own makes the array writable, as the stored one was.
    array = np.ndarray(shape, np.dtype(dtype), bytearray(data))
    if array.nbytes != len(data):
        raise DecodeError("more bytes than an array of this shape has")
    return array


def _to_scalar(told: list[Any]) -> Any:
    import numpy as np  # only where such a value was stored

    for name, kind, text in (("str_", np.str_, str), ("bytes_", np.bytes_, bytes)):
        if told[0] == name and type(told[1]) is text:
            return kind(told[1])
    return _to_array(told)[()]


# By number: the type of what was told, and what reads it.
READ: dict[int, tuple[type, Callable[[Any], Any]]] = {
    TUPLE: (list, tuple),
    SET: (list, set),
    FROZENSET: (list, frozenset),
    DATETIME: (list, _to_datetime),
    DATE: (str, date.fromisoformat),
    TIME: (list, _to_time),
    TIMEDELTA: (list, lambda told: timedelta(*told)),
    DECIMAL: (str, Decimal),
    UUID_: (bytes, lambda told: UUID(bytes=told)),
    COMPLEX: (list, lambda told: complex(*told)),
    INTEGER: (str, lambda told: int(told, 16)),
    BYTEARRAY: (bytes, bytearray),
    NDARRAY: (list, _to_array),
    NUMPY_SCALAR: (list, _to_scalar),
    ORDERED_DICT: (list, OrderedDict),
    PATH: (list, _to_path),
    FRACTION: (list, _to_fraction),
    RANGE: (list, lambda told: range(*told)),
    ELLIPSIS: (type(None), lambda _: ...),
}
