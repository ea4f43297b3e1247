"""Codec: a value to bytes and back, exactly: what comes back has the same type and equals what went in.

Laws (law 9 of the design):
- msgpack (its specification, with extension types) and nothing else; no bytes can make us import or call anything:
  classes come from a registry that this process filled itself, and their constructors are not called;
- the first byte is the version of this format, the second says how the rest is packed; bytes that are not ours are a
  DecodeError, which the lookup takes for a miss;
- a value that would not come back as it was is an EncodeError, and is not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from enum import Enum, Flag
from functools import partial
from typing import Any, TypeVar

from msgpack import ExtType, Packer, packb, unpackb

from semcache.errors import ConfigurationError, DecodeError, EncodeError, MissingExtraError
from semcache.extension import ENUM, INTEGER, MODEL, NAMED_TUPLE, READ, RECORD, TELL, tell_numpy
from semcache.keys import in_words, is_pydantic, own_attributes, static_base
from semcache.naming import type_name

VERSION = 1
_PLAIN, _ZSTD = 0, 1
_HEADER = bytes((VERSION, _PLAIN))
_ZSTD_HEADER = bytes((VERSION, _ZSTD))
# How msgpack tells bytes, from 256 on and below 64 kB: by this, and their number in two bytes.
_BYTES, _BYTES_FROM = b"\xc5", 5
_COMPRESS_FROM_BYTES = 1024
_COMPRESS_TO_BYTES = 2**26  # a forged header can make us allocate this much, and no more
# Each extension type inside another takes 40 kB of stack while it is read; 200 of them would end the process.
_DEEPEST = 32

C = TypeVar("C", bound=type)
_registered: dict[str, type] = {}


def register(cls: C, name: str | None = None) -> C:
    """Let values of a dataclass, pydantic model, enum or named tuple be stored under a name (default: module.class).

    Stored bytes hold the name; a process that has not registered it takes them for a miss. Classes named in the
    return annotation of a cached function are registered by themselves. Usable as a decorator. A class made anew under
    its old name replaces the old one; a name that another class has is a ConfigurationError.
    """
    if not isinstance(cls, type) or _sort(cls) is None:
        named = type_name(cls) if isinstance(cls, type) else repr(cls)
        raise ConfigurationError(f"{named} is no dataclass, pydantic model, enum or named tuple; register one of those")
    name = name or type_name(cls)
    taken = _registered.get(name, cls)
    if type_name(taken) != type_name(cls):
        raise ConfigurationError(f"{type_name(taken)} is registered as {name!r}; give {type_name(cls)} another name")
    cls.__semcache_name__ = name  # type: ignore[attr-defined]
    _registered[name] = cls
    return cls


def _sort(kind: type) -> int | None:
    """Return the extension type that instances of a class of the user's are told by, if there is one."""
    if issubclass(kind, Enum):
        return ENUM
    if hasattr(kind, "__dataclass_fields__"):
        return RECORD
    if is_pydantic(kind):
        return MODEL
    return NAMED_TUPLE if issubclass(kind, tuple) and hasattr(kind, "_fields") else None


def _name(kind: type) -> str:
    """Return the name that a class is registered under, registering it: whoever stores a value has its class."""
    if "__semcache_name__" not in vars(kind) and type_name(kind) not in _registered:
        register(kind)
    name = str(vars(kind).get("__semcache_name__", type_name(kind)))
    if _registered.get(name) is not kind:
        raise EncodeError(f"another class is stored as {name!r}; semcache.register(...) this one under its own name")
    return name


def _class(name: str, sort: int) -> Any:
    kind = _registered.get(name)
    if kind is None:
        raise DecodeError(f"{name} is not registered in this process: semcache.register(...) its class")
    if _sort(kind) != sort:
        raise DecodeError(f"{name} is another sort of class than when it was stored")
    return kind


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
        if self._compresses and _COMPRESS_FROM_BYTES <= len(data) <= _COMPRESS_TO_BYTES:
            packed: bytes = _zstandard().ZstdCompressor(write_checksum=True).compress(data)
            if len(packed) < len(data):
                return _ZSTD_HEADER + packed
        return _HEADER + data

    def join(self, items: list[bytes]) -> bytes:
        """Return the bytes of the list whose items were packed one by one."""
        header: bytes = Packer().pack_array_header(len(items))
        return self._framed(header + b"".join(items))

    @staticmethod
    def decode(data: bytes) -> Any:
        """Return a new value from its bytes. Raises DecodeError, whatever the bytes are."""
        if data[:2] == _HEADER:
            if data[2:3] == _BYTES and len(data) == _BYTES_FROM + int.from_bytes(data[3:_BYTES_FROM]):
                return data[_BYTES_FROM:]  # as a vector is stored: no need to look into it
            return unpack(memoryview(data)[2:])
        if data[:2] == _ZSTD_HEADER:
            return unpack(_decompressed(data[2:]))
        raise DecodeError("not our bytes, or of another version")


def plain_body(data: bytes) -> memoryview | None:
    """Return the msgpack inside bytes that are ours and not compressed."""
    return memoryview(data)[2:] if data[:2] == _HEADER else None


def _decompressed(data: bytes) -> bytes:
    try:
        zstandard = _zstandard()
        if 0 <= zstandard.frame_content_size(data) <= _COMPRESS_TO_BYTES:
            return bytes(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
    except Exception as error:
        raise DecodeError(f"cannot be decompressed: {in_words(error)}") from error
    raise DecodeError("damaged: compressed, and too large to be ours")


def _zstandard() -> Any:
    try:
        import zstandard  # an extra
    except ImportError:
        raise MissingExtraError('compress="zstd"', "compress") from None
    return zstandard


def pack(value: object) -> bytes:
    """Return msgpack bytes without our header. Raises EncodeError, whatever the value is."""
    try:
        return _packed(value, _DEEPEST)
    except EncodeError:
        raise
    except RecursionError:
        raise EncodeError("cannot be stored: it is nested too deeply, or holds itself") from None
    except Exception as error:
        raise EncodeError(f"cannot be stored exactly: {in_words(error)}") from error


def unpack(data: bytes | memoryview) -> Any:
    """Return the value of msgpack bytes. Raises DecodeError, whatever the bytes are."""
    try:
        return unpackb(data, ext_hook=_from_outermost, strict_map_key=False, unicode_errors="surrogatepass")
    except DecodeError:
        raise
    except Exception as error:  # foreign bytes may break any constructor below us, in any way
        raise DecodeError(f"damaged: {in_words(error)}") from error


# What msgpack gives back as it was. Its own hook for other types is not asked about some that it changes, such as
# bytearrays, so we look at every value before it does.
_NATIVE = frozenset({str, int, float, bool, bytes, type(None)})


def _packed(value: Any, depth: int) -> bytes:
    return bytes(packb(_plain(value, depth), default=_wide, unicode_errors="surrogatepass"))


def _wide(value: int) -> ExtType:
    """Tell an integer of more than 64 bits."""
    return ExtType(INTEGER, packb(hex(value)))


def _plain(value: Any, depth: int) -> Any:
    """Return a value as msgpack can tell it, with extension types, at most `depth` inside each other, for the rest."""
    kind = type(value)
    if kind in _NATIVE:
        return value
    if kind is list:
        return [item if type(item) in _NATIVE else _plain(item, depth) for item in value]
    if kind is dict:
        return _plain_dict(value, depth)
    if depth == 0:
        raise EncodeError(f"cannot be stored: there are more than {_DEEPEST} records or tuples inside each other")
    code, content = _told(value, kind)
    return ExtType(code, _packed(content, depth - 1))


def _plain_dict(items: dict[Any, Any], depth: int) -> dict[Any, Any]:
    plain = {
        key if type(key) in _NATIVE else _plain(key, depth): item if type(item) in _NATIVE else _plain(item, depth)
        for key, item in items.items()
    }
    if len(plain) != len(items):
        raise EncodeError("cannot be stored exactly: a dict with two keys that look the same")
    return plain


def _told(value: Any, kind: type) -> tuple[int, Any]:
    if kind in TELL:
        code, tell = TELL[kind]
        return code, tell(value)
    sort = _sort(kind)
    if sort is not None:
        return sort, _TELL_RECORD[sort](value, kind, _name(kind))
    if kind.__module__.partition(".")[0] == "numpy":
        return tell_numpy(value, kind)
    raise EncodeError(f"a {type_name(kind)} cannot be stored exactly; return plain data, or a dataclass")


def _tell_dataclass(value: Any, kind: Any, name: str) -> list[Any]:
    names, attributes = _field_names(kind), own_attributes(value)
    if static_base(kind) is not object or attributes.keys() - names:
        raise EncodeError(f"a {type_name(kind)} with attributes that are no fields cannot be stored exactly")
    return [name, names, attributes]


def _to_dataclass(told: list[Any]) -> Any:
    name, names, attributes = told
    kind = _class(name, RECORD)
    if _field_names(kind) != names or attributes.keys() - names:
        raise DecodeError(f"{name} has other fields than when it was stored")
    record = object.__new__(kind)
    for field, value in attributes.items():  # not __init__: it may compute, validate, or refuse what it once made
        object.__setattr__(record, field, value)
    return record


def _field_names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


_MODEL_SLOTS = ("__pydantic_extra__", "__pydantic_private__", "__pydantic_fields_set__")


def _tell_model(value: Any, kind: Any, name: str) -> list[Any]:
    attributes = own_attributes(value)
    extra, private, fields_set = (attributes.pop(slot, None) for slot in _MODEL_SLOTS)
    if static_base(kind) is not object or attributes.keys() - kind.model_fields:
        raise EncodeError(f"a {type_name(kind)} with attributes that are no fields cannot be stored exactly")
    return [name, _model_names(kind), attributes, extra, private, sorted(fields_set)]


def _to_model(told: list[Any]) -> Any:
    name, names, attributes, extra, private, fields_set = told
    kind = _class(name, MODEL)
    if _model_names(kind) != names or attributes.keys() - kind.model_fields:
        raise DecodeError(f"{name} has other fields than when it was stored")
    model = object.__new__(kind)
    object.__setattr__(model, "__dict__", attributes)
    for slot, value in zip(_MODEL_SLOTS, (extra, private, set(fields_set)), strict=True):
        if getattr(model, slot, _MODEL_SLOTS) is not value:  # a root model has no such slots, but None on its class
            object.__setattr__(model, slot, value)
    return model


def _model_names(kind: Any) -> list[Any]:
    return [list(kind.model_fields), list(kind.__private_attributes__), kind.model_config.get("extra")]


def _tell_enum(value: Enum, kind: Any, name: str) -> list[Any]:
    member = value._name_
    if member is not None and kind.__members__.get(member) is value:
        return [name, member]
    if isinstance(value, Flag):
        return [name, value._value_, [one._name_ for one in value]]
    raise EncodeError(f"{value!r} is no member of {type_name(kind)}")


def _to_enum(told: list[Any]) -> Any:
    name, member, *parts = told
    kind = _class(name, ENUM)
    if not parts:
        return kind.__members__[member]
    if issubclass(kind, Flag) and type(member) is int:
        flag = kind(member)
        if [one._name_ for one in flag] == parts[0]:
            return flag
    raise DecodeError(f"{name} has other members than when it was stored")


def _tell_named_tuple(value: Any, kind: Any, name: str) -> list[Any]:
    values = list(tuple.__iter__(value))
    if own_attributes(value) or len(values) != len(kind._fields):
        raise EncodeError(f"a {type_name(kind)} with more than its fields cannot be stored exactly")
    return [name, list(kind._fields), values]


def _to_named_tuple(told: list[Any]) -> Any:
    name, names, values = told
    kind = _class(name, NAMED_TUPLE)
    if list(kind._fields) != names or len(values) != len(names):
        raise DecodeError(f"{name} has other fields than when it was stored")
    return tuple.__new__(kind, values)


_TELL_RECORD: dict[int, Callable[[Any, Any, str], list[Any]]] = {
    ENUM: _tell_enum,
    RECORD: _tell_dataclass,
    MODEL: _tell_model,
    NAMED_TUPLE: _tell_named_tuple,
}
_READ: dict[int, tuple[type, Callable[[Any], Any]]] = {
    **READ,
    ENUM: (list, _to_enum),
    RECORD: (list, _to_dataclass),
    MODEL: (list, _to_model),
    NAMED_TUPLE: (list, _to_named_tuple),
}


def _from_extension(depth: int, code: int, data: bytes) -> Any:
    if code not in _READ:
        raise DecodeError(f"extension type {code} is not ours")
    if depth > _DEEPEST:
        raise DecodeError("there are more extension types inside each other than we ever write")
    holds, read = _READ[code]
    inner = partial(_from_extension, depth + 1)
    told = unpackb(data, ext_hook=inner, strict_map_key=False, unicode_errors="surrogatepass")
    if type(told) is not holds:
        raise DecodeError(f"extension type {code} holds a {type(told).__name__}")
    return read(told)


_from_outermost = partial(_from_extension, 0)
