"""Keys: one canonical byte string for every value, and its digest.

Laws:
- equal calls have equal bytes: the order of a dict's or a set's items does not matter, and nothing depends on the
  process, the hash seed, the Python version or an object's address;
- different values have different bytes: the form is msgpack, which tags every value with its type and frames it with
  its length, so 1, 1.0, True and "1" differ, as do ["ab"] and ["a", "b"]; what msgpack would confuse, such as [1] and
  (1,), is an extension type. Classes are known by their module and name;
- what has no such form is an UnkeyableError that names the place, never a guess (law 1).

The bytes are part of the stored format: changing them changes every key, and the golden values in the tests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import blake2b
from math import nan
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import EllipsisType, MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType, Packer

from semcache.errors import UnkeyableError
from semcache.naming import type_name

KEY_BYTES = 20
FORMAT = b"semcache:1"

_MEND = "give it __semcache_key__(), name it in ignore=, or pass key="
_TOO_DEEP = "it is nested too deeply, or holds itself"

_NOTHING: Mapping[Any, Any] = MappingProxyType({})

# What msgpack tells apart by itself; a dict too, where all its keys are text.
_NATIVE = frozenset({str, int, bool, bytes, type(None)})

# To make a packer costs more than to use it. One is taken out while it is used, so no two callers ever share one.
_idle_packers: list[Packer] = []
_LARGEST_KEPT_BYTES = 2**16  # a packer keeps the buffer of the largest value that it has seen

# The number of an extension type is part of every key: never reuse one.
(
    _TUPLE, _SET, _FROZENSET, _MAP, _ORDERED_MAP, _MAP_PROXY, _INTEGER, _COMPLEX, _BYTEARRAY, _RANGE, _ELLIPSIS,
    _DATETIME, _DATE, _TIME, _TIMEDELTA, _ZONE, _DECIMAL, _FRACTION, _UUID, _PATH,
    _CLASS, _OWN, _ENUM, _FLAG, _RECORD, _NAMED_TUPLE, _ARRAY, _SCALAR, _DTYPE,
) = range(1, 30)  # fmt: skip


def digest(*parts: bytes) -> bytes:
    """Return the 20-byte BLAKE2b digest (RFC 7693) of canonical parts."""
    return blake2b(b"".join(parts), digest_size=KEY_BYTES).digest()


@lru_cache(maxsize=64)
def _mask(embedder: str) -> int:
    return int.from_bytes(digest(b"embedder", canonical(embedder)))


def of_embedder(scope: bytes, embedder: str) -> bytes:
    """Return the scope of an embedder's texts, of a scope without one; and the other way round.

    The digest of the embedder's identity is laid over it, and can be taken off again: so a row can be given another
    embedder's scope by who knows only its own (law 11), as where texts are embedded anew.
    """
    return (int.from_bytes(scope) ^ _mask(embedder)).to_bytes(KEY_BYTES)


def canonical(value: object, where: str = "") -> bytes:
    """Return the canonical bytes of a value.

    Takes None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, OrderedDict, mapping proxies, set,
    frozenset, range, datetime, date, time, timedelta, time zones, Decimal, Fraction, UUID, paths, enums, classes, numpy
    arrays, scalars and dtypes, dataclasses, pydantic models, named tuples, and whatever has `__semcache_key__()`.
    Raises UnkeyableError, and nothing else, for the rest; `where` names the value.
    """
    try:
        return _pack(_plain(value))
    except Exception as error:  # noqa: BLE001 - the value's own code may raise anything
        raise _unkeyable(error, where) from None


def canonical_items(items: Sequence[Any]) -> bytes:
    """Return the canonical bytes of a list of values: the hot form, for a call's arguments."""
    plain: list[Any] = []
    try:
        for item in items:
            plain.append(item if type(item) is str else _plain(item))  # noqa: PERF401 - its length tells the place
        return _pack(plain)
    except Exception as error:  # noqa: BLE001 - the values' own code may raise anything
        raise _unkeyable(error, f"[{len(plain)}]" if len(plain) < len(items) else "") from None


def _pack(plain: Any) -> bytes:
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = Packer(default=_wide)
    try:
        data: bytes = packer.pack(plain)
    except UnicodeEncodeError:  # lone surrogates: to ask for them from the start would slow all other text
        data = Packer(default=_wide, unicode_errors="surrogatepass").pack(plain)
    if len(data) < _LARGEST_KEPT_BYTES:
        _idle_packers.append(packer)
    return data


def _wide(value: int) -> ExtType:
    """Tell an integer of more than 64 bits."""
    return ExtType(_INTEGER, b"%x" % value)


def _plain(value: Any) -> Any:
    """Return a value as msgpack can tell it: sorted, and extension types for what it has no type for."""
    kind = type(value)
    if kind is dict:
        return _plain_dict(value)
    if kind is list:
        return _plain_items(value)
    if kind in _NATIVE:
        return value
    if kind is float:
        return _plain_float(value)
    told = _TOLD.get(kind) or _teller(kind)
    if told is None:
        raise UnkeyableError(f"a {type_name(kind)} cannot be keyed; {_MEND}")
    code, tell = told
    return ExtType(code, _pack(tell(value)))


def _plain_items(items: Iterable[Any]) -> list[Any]:
    plain: list[Any] = []
    try:
        for item in items:
            plain.append(item if type(item) is str else _plain(item))  # noqa: PERF401 - its length tells the place
    except UnkeyableError as error:
        error.where = f"[{len(plain)}]{error.where}"
        raise
    return plain


def _plain_dict(items: dict[Any, Any]) -> Any:
    plain: dict[str, Any] = {}
    try:
        names = sorted(items)
    except Exception:  # noqa: BLE001 - keys without an order, or with a strange one, are no text
        names = [None]
    name = None
    try:
        for name in names:
            if type(name) is not str:
                break
            item = items[name]
            plain[name] = item if type(item) is str else _plain(item)
        else:
            return plain
    except UnkeyableError as error:
        error.where = f"[{name!r}]{error.where}"
        raise
    # Not all keys are text: their own canonical form gives the order.
    return ExtType(_MAP, _pack(sorted(_pairs(items, plain))))


def _pairs(items: Mapping[Any, Any], done: Mapping[Any, Any] = _NOTHING) -> list[list[bytes]]:
    """Tell the keys and items of a dict; of those done already, what was told is taken."""
    pairs = []
    for key, item in items.items():
        try:
            pairs.append([_pack(_plain(key)), _pack(done[key] if key in done else _plain(item))])
        except UnkeyableError as error:
            error.where = f"[{key!r}]{error.where}"
            raise
    return pairs


def _plain_float(value: float) -> float:
    """Take one NaN for all: which of its bit patterns it has is no part of its value."""
    return value if value == value else nan  # noqa: PLR0124


def _members(items: Iterable[Any]) -> list[bytes]:
    return sorted([_pack(_plain(item)) for item in items])


def _zone(zone: tzinfo | None) -> list[Any] | None:
    """Tell a time zone: "Europe/Paris" and a bare "+01:00" answer different questions about tomorrow."""
    if zone is None:
        return None
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)  # of zoneinfo, of pytz
    if isinstance(name, str):
        return [type_name(type(zone)), name]
    offset = zone.utcoffset(None)
    if offset is None:
        raise UnkeyableError(f"a time zone of type {type_name(type(zone))} has no name; use zoneinfo, or {_MEND}")
    return [type_name(type(zone)), _timedelta(offset), zone.tzname(None)]


def _moment(value: datetime | time) -> list[Any]:
    return [value.isoformat(), value.fold, _zone(value.tzinfo)]


def _timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _path(value: PurePath) -> list[str]:
    """Tell a path; one of this machine's file system is the same on every machine."""
    flavour = "path" if isinstance(value, Path) else type(value).__name__
    return [flavour, value.as_posix()]


_TOLD: dict[type, tuple[int, Callable[[Any], Any]]] = {
    tuple: (_TUPLE, _plain_items),
    set: (_SET, _members),
    frozenset: (_FROZENSET, _members),
    OrderedDict: (_ORDERED_MAP, _pairs),
    MappingProxyType: (_MAP_PROXY, lambda value: _plain(value.copy())),
    complex: (_COMPLEX, lambda value: [_plain_float(value.real), _plain_float(value.imag)]),
    bytearray: (_BYTEARRAY, bytes),
    range: (_RANGE, lambda value: [value.start, value.stop, value.step]),
    EllipsisType: (_ELLIPSIS, lambda _: None),
    datetime: (_DATETIME, _moment),
    date: (_DATE, date.isoformat),
    time: (_TIME, _moment),
    timedelta: (_TIMEDELTA, _timedelta),
    timezone: (_ZONE, _zone),
    ZoneInfo: (_ZONE, _zone),
    Decimal: (_DECIMAL, lambda value: str(value).upper()),  # the context decides whether it says 1E+2 or 1e+2
    Fraction: (_FRACTION, lambda value: [value.numerator, value.denominator]),
    UUID: (_UUID, lambda value: value.bytes),
    PosixPath: (_PATH, _path),
    WindowsPath: (_PATH, _path),
    PurePosixPath: (_PATH, _path),
    PureWindowsPath: (_PATH, _path),
}


def _teller(kind: type) -> tuple[int, Callable[[Any], Any]] | None:
    if issubclass(kind, type):
        return _CLASS, _tell_class
    if hasattr(kind, "__semcache_key__"):
        return _OWN, lambda value: [type_name(kind), _plain(value.__semcache_key__())]
    if issubclass(kind, Enum):
        return (_FLAG, _tell_flag) if issubclass(kind, Flag) else (_ENUM, _tell_enum)
    if hasattr(kind, "__dataclass_fields__") or is_pydantic(kind):
        return _RECORD, _tell_record
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _NAMED_TUPLE, _tell_named_tuple
    return _numpy_teller(kind) if kind.__module__.partition(".")[0] == "numpy" else None


def _tell_class(value: type) -> str:
    if "<locals>" in value.__qualname__:
        raise UnkeyableError("a class made inside a function has no name that another process could know")
    return type_name(value)


def _tell_enum(value: Enum) -> list[Any]:
    kind, name = type(value), value._name_
    known = kind.__members__.get(name) is value
    return [type_name(kind), name if known else [name, _plain(value._value_)]]


def _tell_flag(value: Flag) -> list[Any]:
    """Tell a member by its name, and a combination by its number too: Python's versions name these differently."""
    kind, name = type(value), value._name_
    known = name is not None and kind.__members__.get(name) is value
    return [type_name(kind), name if known else [value._value_, *(member._name_ for member in value)]]


def _tell_record(value: Any) -> list[Any]:
    """Tell a dataclass or pydantic model by all that it holds, even which fields were set: model_dump may ask."""
    kind = type(value)
    if static_base(kind) is not object:
        raise UnkeyableError(f"a {type_name(kind)} holds more than its fields; {_MEND}")
    attributes = own_attributes(value)
    for field in fields(kind) if hasattr(kind, "__dataclass_fields__") else ():
        if field.name not in attributes and hasattr(value, field.name):  # a default that stands on the class
            attributes[field.name] = getattr(value, field.name)
    return [type_name(kind), _plain_attributes(attributes)]


def _tell_named_tuple(value: Any) -> list[Any]:
    kind = type(value)
    names = zip(kind._fields, tuple.__iter__(value), strict=True)
    return [type_name(kind), _plain_attributes({**dict(names), **own_attributes(value)})]


def _plain_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name in sorted(attributes):
        try:
            plain[name] = _plain(attributes[name])
        except UnkeyableError as error:
            error.where = f".{name}{error.where}"
            raise
    return plain


def own_attributes(value: object) -> dict[str, Any]:
    """Return what an object itself holds, in its `__dict__` and slots, less what a cached_property has worked out."""
    state = object.__getstate__(value)
    held, slots = state if isinstance(state, tuple) else (state, None)
    kind = type(value)
    return {
        name: item
        for name, item in {**(held or {}), **(slots or {})}.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }


def static_base(kind: type) -> type:
    """Return the nearest base that is not written in Python: an instance holds whatever such a base holds."""
    heap_type = 1 << 9  # Py_TPFLAGS_HEAPTYPE
    return next(base for base in kind.__mro__ if not base.__flags__ & heap_type)


def is_pydantic(kind: type) -> bool:
    """Say whether a class is a pydantic (2) model, without importing pydantic."""
    return hasattr(kind, "__pydantic_fields__") or hasattr(kind, "__pydantic_validator__")


def _numpy_teller(kind: type) -> tuple[int, Callable[[Any], Any]] | None:
    import numpy as np  # the value is numpy's, so it is loaded

    if kind is np.ndarray:
        return _ARRAY, _tell_array
    if kind is np.str_:  # an array would drop the zeros at its end, and so would str()
        return _SCALAR, lambda value: ["U", str.__str__(value)]
    if kind is np.bytes_:
        return _SCALAR, lambda value: ["S", bytes(value)]
    if issubclass(kind, np.generic) and kind is not np.record:
        return _SCALAR, lambda value: _tell_array(np.asarray(value))
    return (_DTYPE, _tell_dtype) if issubclass(kind, np.dtype) else None


def _tell_array(array: Any) -> list[Any]:
    """Tell dtype, shape and a digest of the bytes in C order; both byte orders of one dtype have one form."""
    dtype = array.dtype
    if dtype.names:  # one by one: the bytes between the fields are no part of the value
        return [[[name, _tell_array(array[name])] for name in dtype.names], list(array.shape)]
    if dtype.char == "O":
        return ["O", list(array.shape), _plain_items(array.ravel().tolist())]
    if not is_portable(dtype):
        raise UnkeyableError(f"an array of dtype {dtype} cannot be keyed: its bytes do not tell its values; {_MEND}")
    little = array.astype(dtype.newbyteorder("<"), copy=False)
    return [little.dtype.str, list(array.shape), digest(little.tobytes())]


def is_portable(dtype: Any) -> bool:
    """Say whether a dtype's name and the bytes tell the values, on every machine: numbers, text, moments, raw bytes."""
    # 24 and up are other people's dtypes, and StringDType; g and G, the long doubles, have bytes that mean nothing.
    return dtype.num < 24 and dtype.char not in "gGO"  # noqa: PLR2004


def _tell_dtype(dtype: Any) -> Any:
    if dtype.subdtype:
        base, shape = dtype.subdtype
        return [_tell_dtype(base), list(shape)]
    if dtype.names:
        return _plain(dtype.descr)
    if dtype.num >= 24:  # noqa: PLR2004 - as above
        raise UnkeyableError(f"the dtype {dtype} cannot be keyed; {_MEND}")
    return dtype.str


def _unkeyable(error: Exception, where: str) -> UnkeyableError:
    """Tell whatever went wrong below as what it means: this value has no key."""
    if isinstance(error, UnkeyableError):
        return UnkeyableError(error.message, where + error.where)
    if isinstance(error, RecursionError) or (type(error) is ValueError and "recursion limit" in str(error)):
        return UnkeyableError(_TOO_DEEP, where)
    return UnkeyableError(f"it cannot be read: {in_words(error)}", where)


def in_words(error: Exception) -> str:
    """Tell an error in one line: its repr would tell all that it holds, and fail where that has none."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the user's own code
        text = ""
    return f"{type(error).__name__}: {text}"[:300]
