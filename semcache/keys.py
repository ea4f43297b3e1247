"""Keys: one canonical byte string for every value, and its digest.

Laws:
- equal calls have equal bytes: the order of a dict's or a set's items does not matter, and nothing depends on the
  process, the hash seed, the Python version or an object's address;
- different values have different bytes: every value is tagged with its type and framed with its length, so 1, 1.0,
  True and "1" differ, as do [1] and (1,), or ["ab"] and ["a", "b"];
- what has no such form is an UnkeyableError that names the place, never a guess (law 1).

The bytes are part of the stored format: changing them changes every key, and the golden values in the tests.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any
from uuid import UUID

from semcache.errors import UnkeyableError

KEY_BYTES = 20
FORMAT = b"semcache:1"

_MEND = "give it __semcache_key__(), name it in ignore=, or pass key="

# Chunks are text, encoded once at the end: cheaper than encoding every string by itself.
Chunks = list[str]
_Writer = Callable[[Any, Chunks], None]


def digest(*parts: bytes) -> bytes:
    """Return the 20-byte BLAKE2b digest (RFC 7693) of canonical parts."""
    return blake2b(b"".join(parts), digest_size=KEY_BYTES).digest()


def canonical(value: object, where: str = "") -> bytes:
    """Return the canonical bytes of a value.

    Takes None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, datetime, date, time,
    timedelta, Decimal, Fraction, UUID, paths, enums, classes, numpy arrays and scalars, dataclasses, pydantic models,
    named tuples, and whatever has `__semcache_key__()`. Raises UnkeyableError for the rest; `where` names the value.
    """
    chunks: Chunks = []
    try:
        _write(value, chunks)
        return "".join(chunks).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise UnkeyableError("it is nested too deeply, or holds itself", where) from None
    except UnkeyableError as error:
        raise UnkeyableError(error.message, where + error.where) from None


def canonical_items(items: Sequence[Any]) -> bytes:
    """Return the canonical bytes of a tuple of values: the hot form, for a call's arguments."""
    if len(items) == 1 and items[0].__class__ is str:
        return f"u1:s{len(items[0])}:{items[0]}".encode("utf-8", "surrogatepass")
    chunks: Chunks = []
    try:
        _write_items("u", items, chunks)
    except RecursionError:
        raise UnkeyableError("it is nested too deeply, or holds itself") from None
    return "".join(chunks).encode("utf-8", "surrogatepass")


def _write(value: Any, chunks: Chunks) -> None:
    kind = value.__class__
    if kind is str:
        chunks.append(f"s{len(value)}:{value}")
    elif kind is dict:
        _write_dict(value, chunks)
    elif kind is list:
        _write_items("l", value, chunks)
    elif kind is int:
        chunks.append(f"i{value};")
    elif value is None:
        chunks.append("n")
    elif kind is bool:
        chunks.append("t" if value else "f")
    else:
        writer = _WRITERS.get(kind) or _writer_for(value, kind)
        if writer is None:
            raise UnkeyableError(f"a {type_name(kind)} cannot be keyed; {_MEND}")
        writer(value, chunks)


def _write_items(tag: str, items: Sequence[Any], chunks: Chunks) -> None:
    chunks.append(f"{tag}{len(items)}:")
    index = 0
    try:
        for item in items:
            _write(item, chunks)
            index += 1
    except UnkeyableError as error:
        error.where = f"[{index}]{error.where}"
        raise


def _write_dict(items: dict[Any, Any], chunks: Chunks) -> None:
    begin = len(chunks)
    chunks.append(f"m{len(items)}:")
    key: Any = None
    try:
        for key in sorted(items):
            if key.__class__ is not str:
                raise TypeError  # noqa: TRY301 - the same mend as for keys that have no order
            value = items[key]
            if value.__class__ is str:
                chunks.append(f"s{len(key)}:{key}s{len(value)}:{value}")
            else:
                chunks.append(f"s{len(key)}:{key}")
                _write(value, chunks)
    except UnkeyableError as error:
        error.where = f"[{key!r}]{error.where}"
        raise
    except TypeError:
        del chunks[begin:]
        _write_any_dict(items, chunks)


def _write_any_dict(items: Mapping[Any, Any], chunks: Chunks) -> None:
    """Write a dict whose keys are not all strings: the keys' own canonical form gives the order."""
    pairs = []
    for key, value in items.items():
        try:
            pairs.append((_text(key), _text(value)))
        except UnkeyableError as error:
            error.where = f"[{key!r}]{error.where}"
            raise
    chunks.append(f"m{len(pairs)}:")
    for pair in sorted(pairs):
        chunks += pair


def _text(value: Any) -> str:
    chunks: Chunks = []
    _write(value, chunks)
    return "".join(chunks)


def _write_set(tag: str) -> _Writer:
    def write(value: Any, chunks: Chunks) -> None:
        chunks.append(f"{tag}{len(value)}:")
        chunks += sorted(_text(item) for item in value)

    return write


def _tagged(tag: str, text: Callable[[Any], str]) -> _Writer:
    """Make a writer for a type whose text says all of its value."""

    def write(value: Any, chunks: Chunks) -> None:
        data = text(value)
        chunks.append(f"{tag}{len(data)}:{data}")

    return write


def _float(value: float) -> str:
    """Tell a float exactly; one NaN for all, since which of its bit patterns it has is no part of its value."""
    return float.hex(value) if value == value else "nan"  # noqa: PLR0124


def _zoned(value: datetime | time) -> str:
    """Tell a moment and its zone: "Europe/Paris" and a bare "+01:00" answer different questions about tomorrow."""
    zone = value.tzinfo
    if zone is None:
        name = ""
    elif isinstance(zone, timezone):
        name = str(zone.utcoffset(None))
    else:
        name = getattr(zone, "key", None) or str(zone)
    return f"{value.isoformat()}|{value.fold}|{name}"


def _path(value: PurePath) -> str:
    return f"{'path' if isinstance(value, Path) else 'pure'}|{value.as_posix()}"


_WRITERS: dict[type, _Writer] = {
    tuple: lambda value, chunks: _write_items("u", value, chunks),
    float: _tagged("d", _float),
    bytes: _tagged("b", lambda value: value.decode("latin-1")),
    bytearray: _tagged("B", lambda value: value.decode("latin-1")),
    set: _write_set("S"),
    frozenset: _write_set("Z"),
    complex: _tagged("c", lambda value: f"{_float(value.real)},{_float(value.imag)}"),
    range: _tagged("r", lambda value: f"{value.start},{value.stop},{value.step}"),
    datetime: _tagged("D", _zoned),
    date: _tagged("a", date.isoformat),
    time: _tagged("h", _zoned),
    timedelta: _tagged("e", lambda value: f"{value.days},{value.seconds},{value.microseconds}"),
    Decimal: _tagged("x", str),
    Fraction: _tagged("q", str),
    UUID: _tagged("g", str),
    type(Ellipsis): _tagged(".", lambda _: ""),
    MappingProxyType: lambda value, chunks: _write_any_dict(value, chunks),
    OrderedDict: lambda value, chunks: _write_named("O", OrderedDict, list(value.items()), chunks),
}


def _writer_for(value: Any, kind: type) -> _Writer | None:  # noqa: PLR0911 - one return a kind of type
    if isinstance(value, type):
        return _write_class
    if hasattr(kind, "__semcache_key__"):
        return _write_own
    if isinstance(value, Enum):
        return _write_enum
    if hasattr(kind, "__dataclass_fields__"):
        return _write_dataclass
    if is_pydantic(kind):
        return _write_pydantic
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return lambda value, chunks: _write_named("N", kind, value._asdict(), chunks)
    if isinstance(value, PurePath):
        return _tagged("p", _path)
    if kind.__module__.partition(".")[0] == "numpy":
        return _write_numpy
    return None


def is_pydantic(kind: type) -> bool:
    """Say whether a class is a pydantic (2) model, without importing pydantic."""
    return hasattr(kind, "__pydantic_fields__") or hasattr(kind, "__pydantic_validator__")


def type_name(kind: type) -> str:
    """Name a class for keys and messages."""
    return f"{module_name(kind.__module__)}.{kind.__qualname__}"


def module_name(module: str) -> str:
    """Name a module; `__main__` by its file's stem, so that a script and its import agree."""
    if module != "__main__":
        return module
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:  # python -m package.module
        return str(spec.name.removesuffix(".__main__"))
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _write_named(tag: str, kind: type, content: object, chunks: Chunks) -> None:
    name = type_name(kind)
    chunks.append(f"{tag}{len(name)}:{name}")
    _write(content, chunks)


def _write_own(value: Any, chunks: Chunks) -> None:
    _write_named("k", value.__class__, value.__semcache_key__(), chunks)


def _write_class(value: type, chunks: Chunks) -> None:
    if "<locals>" in value.__qualname__:
        raise UnkeyableError("a class made inside a function has no name that another process could know")
    _write_named("T", value, None, chunks)


def _write_enum(value: Enum, chunks: Chunks) -> None:
    # A combination of flags may have no name; its number says it all.
    _write_named("E", value.__class__, value.name if value.name is not None else value.value, chunks)


def _write_dataclass(value: Any, chunks: Chunks) -> None:
    content = {name: getattr(value, name) for name in value.__dataclass_fields__ if hasattr(value, name)}
    _write_named("C", value.__class__, content, chunks)


def _write_pydantic(value: Any, chunks: Chunks) -> None:
    content = [value.__dict__, value.__pydantic_extra__, value.__pydantic_private__]
    _write_named("P", value.__class__, content, chunks)


def _write_numpy(value: Any, chunks: Chunks) -> None:
    """Write dtype, shape and a digest of the bytes in C order; both byte orders of one dtype have one form."""
    import numpy as np

    if isinstance(value, np.dtype):
        chunks.append("y")
        _write(value.descr if value.names else value.str, chunks)
        return
    if not isinstance(value, np.ndarray | np.generic):
        raise UnkeyableError(f"a {type_name(value.__class__)} cannot be keyed; {_MEND}")
    array = np.asarray(value)
    chunks.append("A" if isinstance(value, np.ndarray) else "G")
    if array.dtype.hasobject:
        _write(["object", array.shape, array.tolist()], chunks)
        return
    if array.dtype.names is None:
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    described = array.dtype.descr if array.dtype.names else array.dtype.str
    _write([described, array.shape, digest(np.ascontiguousarray(array).tobytes())], chunks)
