"""Codec: what comes back is what went in; bytes that are not ours are a DecodeError and do nothing else."""

from __future__ import annotations

import enum
import json
import math
import os
import pickle
import random
import socket
import subprocess
import sys
import tracemalloc
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import InitVar, dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from unittest.mock import Mock
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pydantic
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semcache import extension
from semcache.codec import VERSION, Codec, pack, plain_body, register, unpack
from semcache.errors import ConfigurationError, DecodeError, EncodeError, MissingExtraError

PARIS = ZoneInfo("Europe/Paris")
T = TypeVar("T")

encode = Codec().encode
decode = Codec.decode


class Color(enum.Enum):
    RED = "red"
    BLUE = ("b", 1)
    AZURE = ("b", 1)  # noqa: PIE796 - an alias


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "one"


class Perm(enum.Flag):
    R = 1
    W = 2
    X = 4
    RW = 3


class Bits(enum.IntFlag, boundary=enum.KEEP):
    A = 1
    B = 2


class Open(enum.Enum):
    """An enum that takes any value."""

    A = "a"

    @classmethod
    def _missing_(cls, value):
        made = object.__new__(cls)
        made._name_, made._value_ = str(value), value
        return made


class Point(NamedTuple):
    x: Any
    y: Any = 0


Loose = namedtuple("Loose", "x y")  # noqa: PYI024 - the other way to make one


class Tagged(Loose):
    """A named tuple that has room for more."""


@dataclass
class Place:
    x: Any = 0
    y: Any = 0


@dataclass
class Deeper(Place):
    z: Any = 0


@dataclass(frozen=True)
class Frozen:
    x: Any


@dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = field(default=1, init=False)
    count: ClassVar[int] = 3


@dataclass(slots=True, frozen=True, kw_only=True)
class Strict:
    x: Any
    y: Any = 0


@dataclass
class Rich:
    x: int
    seed: InitVar[int] = 3
    shared: ClassVar[list[int]] = []
    made: int = field(init=False)
    fixed: int = field(default=5, init=False)
    unseen: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self, seed: int) -> None:
        self.made = self.x + seed

    @cached_property
    def twice(self) -> int:
        return 2 * self.x


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class Guarded:
    """A dataclass that would refuse what it once made."""

    x: int

    def __post_init__(self) -> None:
        if self.x > 0:
            raise ValueError(self.x)


class Model(pydantic.BaseModel):
    x: Any = 0
    y: Any = 0


class Checked(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, validate_assignment=True)
    number: int = pydantic.Field(default=0, alias="num")
    at: datetime | None = None
    place: Place | None = None
    inner: Checked | None = None


class Extra(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: int = 0


class Secret(pydantic.BaseModel):
    x: int = 0
    _hidden: Any = pydantic.PrivateAttr(default=0)
    _unset: int = pydantic.PrivateAttr()

    @cached_property
    def twice(self) -> int:
        return 2 * self.x


class Row(pydantic.RootModel[list[int]]):
    pass


class Pair(pydantic.BaseModel, Generic[T]):
    item: T


@pydantic.dataclasses.dataclass
class Validated:
    x: int = 0


def secret(hidden):
    made = Secret(x=1)
    made._hidden = hidden
    return made


def marked(record, **attributes):
    record.__dict__.update(attributes)
    return record


def changed(record, **attributes):
    for name, value in attributes.items():
        object.__setattr__(record, name, value)
    return record


def without(record, name):
    delattr(record, name)
    return record


def exact(value: Any) -> Any:  # noqa: PLR0911 - one return a kind
    """Return all there is to a value, types and order included: equal only for values that are exactly equal."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return kind, [exact(item) for item in value]
    if isinstance(value, dict):
        return kind, [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return kind, sorted((exact(item) for item in value), key=repr)
    if isinstance(value, pydantic.BaseModel):
        held = (dict(value.__dict__), value.__pydantic_extra__, value.__pydantic_private__, value.model_fields_set)
        return kind, [exact(part) for part in held]
    if hasattr(kind, "__dataclass_fields__"):
        return kind, [(one.name, exact(getattr(value, one.name, "unset"))) for one in fields(kind)]
    if isinstance(value, float):
        return kind, value.hex(), math.copysign(1, value)
    if kind in (int, Fraction, range):  # too long for a repr
        return kind, value
    if isinstance(value, datetime | time):
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, repr(value.tzinfo), type(value.tzinfo)
    return kind, repr(value)


def exact_values() -> list[Any]:
    """Return values of every kind that can be stored, odd ones among them."""
    moment = datetime(2024, 10, 27, 2, 30, 0, 1)  # noqa: DTZ001 - naive on purpose; an hour that Paris has twice
    first, last = datetime.min, datetime.max  # noqa: DTZ901 - naive on purpose
    zulu = Checked.model_validate({"at": "2024-01-01T00:00:00Z"})
    east = Checked.model_validate({"at": "2024-01-01T00:00:00+05:30", "num": 3})
    return [
        # scalars
        None, True, False, 0, 1, -1, 127, 128, -32, -33, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000,
        0.0, -0.0, 0.1, 1.0, math.nan, math.inf, -math.inf, 5e-324, 1.7e308, 0j, complex(-0.0, 2), complex(math.nan, 1),
        "", "a", "é😀\x00", "\ud800", "\ud83d\ude00", "a" * 70_000, b"", b"\x00\xff", bytearray(),
        bytearray(b"ab"), ...,
        # containers
        [], (), {}, set(), frozenset(), [[]], ([],), [()], ((), ((),)), [None, [1, (2, {3}), {"a": (4,)}]],
        {"b": 1, "a": 2},
        {1: "a", 1.5: "b", None: "c", True and "t": "d", b"x": "e", (1, 2): "f", frozenset({1}): "g", Word.ONE: "h"},
        {date(2024, 1, 1): 1, Frozen(1): 2, Point(1, 2): 3, Path("a"): 4, -0.0: 5, 2**70: 6, "\ud800": 7},
        {math.nan: 1}, {(1, (2, frozenset({3}))): [1]}, OrderedDict(), OrderedDict([("b", 1), ("a", (2,))]),
        OrderedDict([((1, 2), [3])]), {1, "a", None, (1, 2), 2.5}, frozenset({frozenset({1}), b"a"}), [1] * 70_000,
        range(0), range(3), range(10, 0, -3), range(2**70),
        # numbers
        Decimal("1.10"), Decimal("-0"), Decimal("1E+1000000"), Decimal("NaN"), Decimal("sNaN1"), Decimal("-inf"),
        Decimal("1234567890123456789012345678901234567890.1"), Fraction(1, 3), Fraction(-5), Fraction(10**5000, 7),
        UUID(int=5),
        # moments
        moment, moment.replace(fold=1), moment.replace(tzinfo=UTC),
        moment.replace(tzinfo=timezone(timedelta(hours=-1))),
        moment.replace(tzinfo=timezone(timedelta(seconds=1, microseconds=1))),
        moment.replace(tzinfo=timezone(timedelta(hours=1), "CET")), moment.replace(tzinfo=timezone(timedelta(0),
        "GMT")),
        moment.replace(tzinfo=PARIS), moment.replace(tzinfo=PARIS, fold=1), first, last, date(1, 1, 1),
        date(2024, 2, 29), time(0), time(1, 2, 3, 4), time(1, fold=1), time(1, tzinfo=UTC), time(1, tzinfo=PARIS),
        timedelta(0), timedelta(days=-1, microseconds=1), timedelta.max, timedelta.min,
        # paths, enums, named tuples
        Path("a/b"), Path("/"), PurePosixPath("a\\b"), PureWindowsPath("c:/a"), Path("\udcff"), Color.RED, Color.BLUE,
        Color.AZURE, Number.ONE, Word.ONE, Perm.R, Perm.RW, Perm.R | Perm.X, Perm(0), Perm.R | Perm.W | Perm.X, Bits.A,
        Bits(0), Bits.A | Bits.B, Bits(16), Bits.A | Bits(16), Bits(-1), Point(1, 2), Point([1], Point(1)),
        Loose((1,), {}),
        Tagged(1, 2), msgpack.ExtType(1, b"\x90"),
        # dataclasses
        Place(), Place(1, [2]), Deeper(1, 2, Place()), Frozen({"a": Frozen(1)}), Slotted(1), changed(Slotted([1]),
        y=(2,)),
        Strict(x=1), Rich(1), Rich(1, seed=4), changed(Rich(1), made=[7], fixed=8, unseen={9}), Box(Box((1,))),
        changed(Guarded(0), x=5), without(Place(1, 2), "y"), without(Slotted(1), "y"), Validated(3),
        # models
        Model(), Model(x=0), Model(x=1, y=[Model(x=(2,))]), Checked(), Checked(num=3, place=Place(1),
        inner=Checked(num=4)),
        zulu, east, Extra(x=1), Extra(x=1, b=[2], a=(3,)), Secret(), secret([1]), Row([1, 2]), Pair[int](item=1),
        Model.model_construct(x=1), Model.model_construct(_fields_set={"x"}, x="not checked"),
        # numpy
        np.array([1, 2, 3]), np.array([[1.5], [2]], "<f4"), np.array([1, 2], ">i4"), np.array(5), np.array(1.5, ">f8"),
        np.zeros(0), np.zeros((0, 3), "<f2"), np.zeros((2, 0, 3), "?"), np.array([True, False]), np.array([1 + 2j],
        "<c8"),
        np.array(["a", "bcd", ""]), np.array([b"a", b"bc"]), np.array(["é"], ">U3"), np.zeros(2, "U0"),
        np.array([b"ab"], "V2"),
        np.array(["2024-01-01", "NaT"], "<M8[D]"), np.array([1, 2], "<m8[25s]"), np.array([1], "<M8[ns]"),
        np.arange(24).reshape(2, 3, 4)[:, ::2, 1:], np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6)[::-1],
        np.broadcast_to(np.arange(3), (2, 3)), np.array([math.nan, -0.0, math.inf]), np.array([1, 2], "<u8").T,
        np.float64(1.5), np.float32(0.1), np.float16(2), np.int64(-5), np.int8(1), np.uint64(2**64 - 1), np.bool_(True),
        np.complex64(1 + 2j), np.str_("a"), np.str_(""), np.str_("a\x00"), np.bytes_(b"a\x00"),
        np.datetime64("2024-01-01"),
        np.datetime64("NaT", "s"), np.timedelta64(5, "s"), np.void(b"abc"), np.float64(math.nan), [np.float32(1),
        {"a": np.zeros(2)}],
    ]  # fmt: skip


EXACT = exact_values()


@pytest.mark.parametrize("value", EXACT, ids=lambda value: type(value).__name__)
def test_value_of_every_kind_comes_back_exactly(value):
    """What is stored comes back with its type, and equals what went in."""
    before = exact(value)
    data = encode(value)
    assert exact(decode(data)) == before == exact(value)
    again = encode(decode(data))
    assert exact(decode(again)) == before
    assert len(again) == len(data)  # the items of a set may come in another order
    packed = Codec("zstd").encode(value)
    assert exact(decode(packed)) == before


def test_values_of_every_kind_together_come_back_exactly():
    """Values keep to their bounds beside and inside each other."""
    assert exact(decode(encode(EXACT))) == exact(EXACT)
    nested = [(value, {"a": Place(value, {"b": [value]})}) for value in EXACT]
    assert exact(decode(encode(nested))) == exact(nested)


def test_moment_in_a_zone_comes_back_in_the_same_zone():
    """A moment in an hour that a zone has twice equals itself again, which it does only in the very same zone."""
    moment = datetime(2024, 10, 27, 2, 30, tzinfo=PARIS)
    assert decode(encode(moment)).tzinfo is PARIS
    assert decode(encode(moment)) == moment
    assert decode(encode(moment.replace(tzinfo=UTC))).tzinfo is UTC


def test_member_of_an_enum_comes_back_as_the_very_member():
    """Enums are compared by identity."""
    for member in (*Color, *Number, *Word, *Perm, Perm.R | Perm.X):
        assert decode(encode(member)) is member
    unknown = Bits.A | Bits(16)  # of which some versions of Python make a new one each time
    back = decode(encode(unknown))
    assert (type(back), back) == (Bits, unknown)


def test_cached_property_worked_out_is_not_stored():
    """What an object has worked out from its fields is no part of its value."""
    for lazy, called in ((Rich(1), Rich(1)), (Secret(x=1), Secret(x=1))):
        assert called.twice == 2
        assert encode(called) == encode(lazy)
        assert "twice" not in vars(decode(encode(called)))
        assert decode(encode(called)).twice == 2


def test_record_comes_back_without_its_constructor():
    """A record that computes, validates or refuses in its constructor comes back as it was stored."""
    assert decode(encode(changed(Guarded(0), x=5))).x == 5
    assert decode(encode(changed(Rich(1), made=99))).made == 99
    assert Rich.shared == []


def test_model_comes_back_with_its_set_fields():
    """Which of its fields were set comes back: a dump without the unset ones is the same."""
    for model in (Model(), Model(x=0), Model(y=1), Extra(a=1), Checked(num=0)):
        back = decode(encode(model))
        assert back == model
        assert back.model_fields_set == model.model_fields_set
        assert back.model_dump(exclude_unset=True) == model.model_dump(exclude_unset=True)
    assert decode(encode(secret([1])))._hidden == [1]


def test_array_comes_back_writable():
    """An array that comes back is the caller's own, whatever it was made of."""
    for stored in (np.arange(3), np.broadcast_to(np.arange(3), (2, 3)), np.zeros((0, 2))):
        array = decode(encode(stored))
        array[...] = 7
        assert (array == 7).all()


# Nothing shared


def test_values_decoded_twice_share_nothing():
    """Law 9: who mutates a hit changes nobody else's, nor what is stored."""
    value = {"list": [1], "place": Place([1]), "model": Model(x=[1]), "array": np.zeros(2), "bytes": bytearray(b"a")}
    value |= {"set": {1}, "ordered": OrderedDict(a=[1]), "extra": Extra(a=[1]), "private": secret([1])}
    data = encode(value)
    before = exact(value)
    value["list"].append(2)
    value["array"][0] = 5
    one, other = decode(data), decode(data)
    one["list"].append(2)
    one["place"].x.append(2)
    one["model"].x.append(2)
    one["model"].model_fields_set.add("y")
    one["array"][0] = 5
    one["bytes"].append(2)
    one["set"].add(2)
    one["ordered"]["a"].append(2)
    one["extra"].a.append(2)
    one["private"]._hidden.append(2)
    assert exact(other) == before == exact(decode(data))


def test_values_decoded_from_a_body_share_nothing_with_it():
    """What is read from a view of stored bytes does not hold on to them."""
    data = bytearray(encode([b"abc", "def", np.frombuffer(b"ghi", "u1"), bytearray(b"jkl")]))
    body = plain_body(data)
    back = unpack(body)
    body.release()
    data[2:] = bytes(len(data) - 2)
    assert exact(back) == exact([b"abc", "def", np.frombuffer(b"ghi", "u1"), bytearray(b"jkl")])


# Properties

texts = st.text(st.characters(), max_size=5) | st.sampled_from(["\ud800", "a\x00"])
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=2)), timezone(timedelta(hours=2), "x"), PARIS])
moments = st.builds(lambda at, fold, zone: at.replace(fold=fold, tzinfo=zone), st.datetimes(), st.integers(0, 1), zones)
dtypes = st.sampled_from(["<i4", ">i2", "<u8", "<f4", ">f8", "?", "<U3", "<S2", "<M8[s]", "<c16"])
shapes = st.lists(st.integers(0, 3), max_size=3)
arrays = st.builds(
    lambda dtype, shape: np.arange(math.prod(shape)).astype("i8").astype(dtype).reshape(shape), dtypes, shapes
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.complex_numbers(), texts,
    st.binary(max_size=5), st.builds(bytearray, st.binary(max_size=3)), moments, st.dates(), st.times(),
    st.times().map(lambda at: at.replace(tzinfo=UTC)), st.timedeltas(), st.decimals(), st.fractions(), st.uuids(),
    st.builds(range, st.integers(-3, 3), st.integers(-3, 3), st.sampled_from([-2, -1, 1, 2])), arrays, st.just(...),
    st.sampled_from([*Color, *Number, *Word, *Perm, Perm.R | Perm.X, Bits(5), Path("a"), PureWindowsPath("a")]),
    arrays.filter(lambda array: array.size).map(lambda array: array.ravel()[0]),
)  # fmt: skip
hashable = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), texts, st.binary(max_size=3), st.dates()),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2) | st.builds(Frozen, inner),
    max_leaves=3,
)


def deeper(inner):
    several = st.lists(inner, max_size=3)
    tables = st.dictionaries(hashable, inner, max_size=3)
    return st.one_of(
        several, several.map(tuple), tables, tables.map(OrderedDict), st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3), st.builds(Point, inner, inner), st.builds(Place, inner, inner),
        st.builds(Deeper, inner, inner, inner), st.builds(Slotted, inner), st.builds(Strict, x=inner),
        st.dictionaries(st.sampled_from("xy"), inner).map(lambda items: Model(**items)), inner.map(secret),
        st.dictionaries(st.sampled_from("ab"), inner).map(lambda items: Extra(**items)),
    )  # fmt: skip


values = st.recursive(leaves, deeper, max_leaves=10)


@given(values, st.sampled_from([Codec(), Codec("zstd")]))
@example([(), [], {}, set(), None, 0, False, 0.0, ""], Codec())
@settings(max_examples=400, deadline=None)
def test_any_value_comes_back_exactly(value, codec):
    """Exactly what went in comes out, for any value made of what can be stored."""
    assert exact(decode(codec.encode(value))) == exact(value)


@given(st.lists(values, max_size=5))
@settings(max_examples=100, deadline=None)
def test_items_packed_one_by_one_join_to_their_list(items):
    """A stream's items, packed as they come, make the bytes of their list."""
    for codec in (Codec(), Codec("zstd")):
        assert codec.join([pack(item) for item in items]) == codec.encode(items)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_items_of_any_number_join_to_their_list(count):
    """The list's header is msgpack's shortest."""
    assert Codec().join([pack(1)] * count) == encode([1] * count)


def test_values_coded_in_many_threads_come_back_exactly():
    """Codecs are shared by all threads."""
    codec = Codec("zstd")
    text = "some text that repeats itself " * 100

    def there_and_back(number):
        value = [number, Place(number, (text, number)), {number: {number}}]
        return exact(decode(codec.encode(value))) == exact(value)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(2000)))


# What is refused


class Text(str):
    __slots__ = ()


class Table(dict):
    pass


class Items(list):
    pass


class Whole(int):
    pass


class Folder(PosixPath):
    pass


class OwnZone(ZoneInfo):
    pass


class Nameless(tzinfo):
    def utcoffset(self, moment):
        return timedelta(hours=1)

    def dst(self, moment):
        return None

    def tzname(self, moment):
        return None


class Plain:
    pass


class Failing:
    @property
    def __class__(self):
        raise OSError

    def __reduce__(self):
        raise OSError


class Strange(type):
    __hash__ = None

    def __eq__(cls, other):
        return False


class Odd(metaclass=Strange):
    pass


@dataclass
class Counted(dict):
    """A dataclass that holds more than its fields."""

    total: int = 0


@dataclass
class Based(Plain):
    x: int = 0


class SlotBase:
    __slots__ = ("hidden",)


@dataclass
class SlotChild(SlotBase):
    x: int = 0


@dataclass
class Hiding:
    """A dataclass whose field is a property over another attribute."""

    x: int

    def __post_init__(self):
        self._x = self.x


def cycles():
    items: list[Any] = []
    items.append(items)
    table: dict[str, Any] = {}
    table["a"] = table
    place = Place()
    place.x = place
    model = Model()
    model.x = [model]
    pair: list[Any] = []
    pair.append((pair,))
    return [items, table, place, model, pair]


def inexact_values() -> list[Any]:
    tagged = Tagged(1, 2)
    tagged.more = 1
    hidden = SlotChild(1)
    hidden.hidden = 2
    at = datetime(2024, 1, 1, tzinfo=UTC)
    uncached = ZoneInfo.no_cache("Europe/Paris")
    return [
        object(), Plain(), Odd(), lambda: None, print, iter([]), (item for item in ()), open, type, Place, Color,
        Model, sys, Mock(), Mock(spec=str), Exception("a"), memoryview(b"a"), NotImplemented, slice(1),
        types.SimpleNamespace(),
        types.MappingProxyType({}), deque(), defaultdict(list), msgpack.Timestamp(1), array_of_pointers(),
        Text("a"), Table(a=1), Items([1]), Whole(1), Folder("a"), [Text("a")], {"a": Table()}, {Text("a"): 1},
        {1: Whole(1)},
        Counted(1), tagged, hidden, marked(Place(), z=1), marked(Based(), z=1), Hiding(1), marked(Model(), z=1),
        Model(x=object()), Extra(a=object()), secret(object()), Place(object()), Point(object()), Open("b"), {object()},
        at.replace(tzinfo=Nameless()), at.replace(tzinfo=OwnZone("Europe/Paris")), at.replace(tzinfo=uncached),
        at.timetz().replace(tzinfo=Nameless()), PARIS, UTC,
        np.array([object()]), np.array([None, "a"]), np.zeros(1, "i4,f4"), np.zeros(1, "g"), np.longdouble(1),
        np.dtype("f4"),
        np.ma.array([1], mask=[1]), np.zeros(2).view(np.matrix), np.zeros(1, "f4,f4").view(np.recarray), np.add,
        np.random.default_rng(), np.zeros(1, "f4,f4")[0], np.zeros(1, np.longlong),
        {(math.nan, 1): "a", (float("nan"), 1): "b"}, *cycles(),
    ]  # fmt: skip


def array_of_pointers():
    return np.array(["a"], np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else object()


@pytest.mark.parametrize("value", inexact_values(), ids=lambda value: type(value).__name__)
def test_value_that_would_not_come_back_exactly_is_refused(value):
    """What cannot be stored exactly is an EncodeError, and nothing else, wherever it stands."""
    for wrapped in (value, [value], {"a": (value,)}, Place(value)):
        with pytest.raises(EncodeError):
            encode(wrapped)
        with pytest.raises(EncodeError):
            pack(wrapped)


def test_open_socket_is_refused():
    """A resource is an EncodeError, and stays open."""
    with socket.socket() as held, pytest.raises(EncodeError, match=r"socket\.socket cannot be stored"):
        encode(held)


def test_object_that_lies_about_its_class_is_refused():
    """An object whose own code fails at every look is an EncodeError too."""
    with pytest.raises(EncodeError):
        encode([Failing()])


def test_generator_refused_is_not_consumed():
    """A refused generator still gives its items to the caller, who gets it."""
    items = (item for item in (1, 2))
    with pytest.raises(EncodeError):
        encode(items)
    assert list(items) == [1, 2]


@pytest.mark.parametrize(
    "deepen", [lambda value: (value,), Place, lambda value: [(value,)], lambda value: {1: {"a": (value,)}}]
)
@pytest.mark.parametrize("inmost", [1, 2**70, "a", np.zeros(2)])
def test_nested_value_comes_back_or_is_refused(deepen, inmost):
    """However deep a value is nested, it is either refused or comes back: the limits of both ways are one."""
    value, came_back = inmost, 0
    for _ in range(60):
        value = deepen(value)
        try:
            data = encode(value)
        except EncodeError:
            continue
        assert exact(decode(data)) == exact(value)
        came_back += 1
    assert 30 <= came_back < 60


@pytest.mark.parametrize("deepen", [lambda value: [value], lambda value: {"a": value}])
@pytest.mark.parametrize("depth", [300, 600, 100_000])
def test_value_of_plain_lists_comes_back_or_is_refused(deepen, depth):
    """Plain lists and dicts may be nested deeper, and end in an EncodeError too."""
    value: Any = 1
    for _ in range(depth):
        value = deepen(value)
    try:
        data = encode(value)
    except EncodeError:
        assert depth > 300
    else:
        assert depth < 100_000
        assert decode(data) == value


# Version, compression


def test_first_byte_is_the_version():
    """Law 9: a stored entry begins with a version byte; another version is a DecodeError."""
    data = encode("a")
    assert data[0] == VERSION == 1
    for version in range(256):
        if version != VERSION:
            with pytest.raises(DecodeError):
                decode(bytes([version]) + data[1:])
    for packing in range(2, 256):
        with pytest.raises(DecodeError):
            decode(bytes([VERSION, packing]) + data[2:])


def test_plain_body_is_what_stands_behind_the_header():
    """The memory tier reads plain bytes without looking at the header again."""
    assert unpack(plain_body(encode([1, 2]))) == [1, 2]
    assert plain_body(Codec("zstd").encode("a" * 5000)) is None
    assert plain_body(b"") is None
    assert plain_body(b"\x02\x00\x01") is None


def test_zstd_packs_what_it_makes_smaller():
    """Compression is worth its time from 1 kB on, and only where it shortens."""
    codec = Codec("zstd")
    assert len(codec.encode("a" * 5000)) < 100
    assert codec.encode("a" * 900) == encode("a" * 900)
    noise = random.Random(1).randbytes(5000)
    assert codec.encode(noise) == encode(noise)


def test_zstd_is_read_without_being_asked_for():
    """A process that does not compress reads what another one has compressed."""
    assert Codec().decode(Codec("zstd").encode(["a" * 5000])) == ["a" * 5000]


def test_zstd_without_its_extra_says_so(monkeypatch):
    """Without the extra, asking for it is a ConfigurationError with the command; stored bytes are a DecodeError."""
    data = Codec("zstd").encode("a" * 5000)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tiered-semcache\[compress\]'"):
        Codec("zstd")
    with pytest.raises(DecodeError, match=r"tiered-semcache\[compress\]"):
        decode(data)
    assert decode(encode("a" * 5000)) == "a" * 5000


@pytest.mark.parametrize("compress", ["gzip", "", True, 1])
def test_unknown_compression_is_refused(compress):
    """Wrong configuration is an error at construction, with the mend."""
    with pytest.raises(ConfigurationError, match='compress is None or "zstd"'):
        Codec(compress)


# Damage


def small(value):
    return len(encode(value)) < 3000


def test_truncated_bytes_are_a_decode_error():
    """Whatever is cut off, the rest is a miss."""
    for value in filter(small, EXACT):
        data = encode(value)
        for end in range(len(data)):
            with pytest.raises(DecodeError):
                decode(data[:end])
    packed = Codec("zstd").encode(["some text " * 50, 5] * 20)
    for end in range(len(packed)):
        with pytest.raises(DecodeError):
            decode(packed[:end])


def test_bytes_with_more_behind_are_a_decode_error():
    """Bytes that go on behind the value are not ours."""
    packed = Codec("zstd").encode("a" * 5000)
    for data in (*map(encode, filter(small, EXACT)), packed):
        for more in (b"\x00", b"\xc1", data, data[2:]):
            with pytest.raises(DecodeError):
                decode(data + more)


def decoded_or_refused(data):
    """Decode bytes that may be anything: only DecodeError may come of it, and what is read must be whole."""
    try:
        value = decode(data)
    except DecodeError:
        return None
    exact(value)
    return value


def test_flipped_bits_are_a_decode_error_or_another_value():
    """A flipped bit is never another exception."""
    for value in filter(small, EXACT):
        data = encode(value)
        for place in range(min(len(data), 300)):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[place] ^= 1 << bit
                with suppress(DecodeError):
                    decode(bytes(damaged))


def test_flipped_bits_in_compressed_bytes_are_noticed():
    """Compressed bytes carry a checksum: damage is a DecodeError, never another value."""
    value = [["some text " * 50, number] for number in range(5)]
    data = Codec("zstd").encode(value)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with suppress(DecodeError):
                assert decode(bytes(damaged)) == value


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x01\x00", b"\x01\x01", b"\x01\x01\x28\xb5\x2f\xfd"]))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_a_decode_error_or_a_value(data, header):
    """Any bytes at all: a value or a DecodeError."""
    decoded_or_refused(header + data)


@given(
    st.integers(0, 30),
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
    ),
)
@settings(max_examples=500, deadline=None)
def test_extension_of_any_content_is_a_decode_error_or_a_value(code, content):
    """Each reader takes any content without another exception."""
    decoded_or_refused(b"\x01\x00" + msgpack.packb(msgpack.ExtType(code, pack(content))))


@given(values, st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_cut_and_pasted_are_a_decode_error_or_a_value(value, data):
    """Pieces of our own bytes in any order: a value or a DecodeError."""
    told = encode(value)
    begin, end = sorted(data.draw(st.tuples(st.integers(0, len(told)), st.integers(0, len(told)))))
    place = data.draw(st.integers(2, max(2, len(told))))
    decoded_or_refused(told[:place] + told[begin:end] + told[place:])
    decoded_or_refused(told[:begin] + told[end:])
    decoded_or_refused(told[:begin] + bytes(end - begin) + told[end:])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x01", b"\x01\x00", b"\x01\x01", b"\x00\x00\xc0", b"\x01\x00\xc1", b"\x80\x04",
        b"\x01\x01" + b"(\xb5/\xfd", pickle.dumps([1]), json.dumps([1]).encode(), b"\x01\x00" + pickle.dumps(Place()),
        b"\x01\x00" + b'{"a": 1}',
    ],
)  # fmt: skip
def test_foreign_bytes_are_a_decode_error(data):
    """Law 9: bytes that are not ours are a miss."""
    with pytest.raises(DecodeError):
        decode(data)


# Bombs


def ext(code, *content):
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb(*content)))


def nested_extensions(depth):
    data = b"\x90"
    for _ in range(depth):
        data = b"\xc9" + len(data).to_bytes(4, "big") + bytes([extension.TUPLE]) + data
    return data


def bombs() -> dict[str, bytes]:
    huge = 2**40
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    sized = bytearray(zstandard.ZstdCompressor().compress(bytes(2**20)))
    zstd_huge = b"\x28\xb5\x2f\xfd\xe0" + huge.to_bytes(8, "little") + bytes(sized[9:])
    return {
        "nested extensions": b"\x01\x00" + nested_extensions(3000),
        "nested extensions, 100 of them": b"\x01\x00" + nested_extensions(100),
        "nested lists": b"\x01\x00" + b"\x91" * 1_000_000 + b"\xc0",
        "nested dicts": b"\x01\x00" + b"\x81\x00" * 500_000 + b"\xc0",
        "nested dict keys": b"\x01\x00" + b"\x81" * 500_000 + b"\xc0",
        "long list": b"\x01\x00\xdd\xff\xff\xff\xff",
        "long lists in each other": b"\x01\x00" + b"\xdd\x00\x00\xff\xff" * 1000 + bytes(60_000),
        "long dict": b"\x01\x00\xdf\xff\xff\xff\xff",
        "long text": b"\x01\x00\xdb\xff\xff\xff\xff",
        "long bytes": b"\x01\x00\xc6\xff\xff\xff\xff",
        "long extension": b"\x01\x00\xc9\xff\xff\xff\xff\x01",
        "bytearray by size": b"\x01\x00" + ext(extension.BYTEARRAY, 2**33),
        "fraction by exponent": b"\x01\x00" + ext(extension.FRACTION, ["1e999999999"]),
        "fraction by two texts": b"\x01\x00" + ext(extension.FRACTION, ["1e99999999", 1]),
        "fraction by a float": b"\x01\x00" + ext(extension.FRACTION, [1.5, 1]),
        "array by size": b"\x01\x00" + ext(extension.NDARRAY, ["<f8", [2**30], 2**33]),
        "array of other bytes": b"\x01\x00" + ext(extension.NDARRAY, ["<i4", [1], bytes(8)]),
        "array of text": b"\x01\x00" + ext(extension.NDARRAY, ["<i4", [1], "abcd"]),
        "array by shape": b"\x01\x00" + ext(extension.NDARRAY, ["<f8", [huge], b""]),
        "array by empty shape": b"\x01\x00" + ext(extension.NDARRAY, ["<f8", [huge, huge, 0, huge], b"a"]),
        "array of objects": b"\x01\x00" + ext(extension.NDARRAY, ["|O8", [1], bytes(8)]),
        "array of many kinds": b"\x01\x00" + ext(extension.NDARRAY, [",".join(["i4"] * 10_000), [0], b""]),
        "array of wide items": b"\x01\x00" + ext(extension.NDARRAY, [f"|V{2**31 - 1}", [2], b""]),
        "scalar by shape": b"\x01\x00" + ext(extension.NUMPY_SCALAR, ["<f8", [huge], b""]),
        "scalar of text by size": b"\x01\x00" + ext(extension.NUMPY_SCALAR, ["bytes_", huge]),
        "tuple of a number": b"\x01\x00" + ext(extension.TUPLE, huge),
        "set of a number": b"\x01\x00" + ext(extension.SET, huge),
        "range of texts": b"\x01\x00" + ext(extension.RANGE, ["1", "2", "3"]),
        "uuid of a list": b"\x01\x00" + ext(extension.UUID_, [1] * 16),
        "integer of text": b"\x01\x00" + ext(extension.INTEGER, "0x" + "g" * 1000),
        "zone by path": b"\x01\x00" + ext(extension.DATETIME, ["2024-01-01", 0, ["zone", "../../../../etc/passwd"]]),
        "zone by absolute path": b"\x01\x00" + ext(extension.DATETIME, ["2024-01-01", 0, ["zone", "/etc/passwd"]]),
        "zone by module": b"\x01\x00" + ext(extension.DATETIME, ["2024-01-01", 0, ["zone", "this.that/x"]]),
        "zone without a name": b"\x01\x00" + ext(extension.TIME, ["00:00", 0, ["zone", ""]]),
        "path of another class": b"\x01\x00" + ext(extension.PATH, ["Path", "a"]),
        "path that opens": b"\x01\x00" + ext(extension.PATH, ["os.system", "true"]),
        "zstd of unknown size": b"\x01\x01" + unsized.compress(bytes(2**20)),
        "zstd of a huge size": b"\x01\x01" + zstd_huge,
        "zstd of more than is ours": b"\x01\x01" + zstandard.ZstdCompressor().compress(bytes(2**26 + 1)),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_a_decode_error_and_takes_little(name):
    """A few bytes cannot make us take much memory or time, or end the process."""
    data = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2**25 + 20 * len(data)
    finally:
        tracemalloc.stop()


def test_bomb_in_a_thread_is_a_decode_error():
    """The deepest nesting that is read fits into a thread's stack."""
    with ThreadPoolExecutor(1) as pool:
        for depth in (20, 32, 100, 3000):
            assert pool.submit(decoded_or_refused, b"\x01\x00" + nested_extensions(depth)).exception() is None


# Names (law 9)

CALLED: list[str] = []


class Watched:
    """A base that notes whatever is called."""

    def __new__(cls, *args, **kwargs):
        CALLED.append("new")
        return super().__new__(cls)

    def __setstate__(self, state):
        CALLED.append("setstate")

    def __init_subclass__(cls, **kwargs):
        pass


@dataclass
class WatchedRecord(Watched):
    x: Any = 0

    def __post_init__(self):
        CALLED.append("post_init")

    def __setattr__(self, name, value):
        CALLED.append("setattr")
        object.__setattr__(self, name, value)

    def __class_getitem__(cls, item):
        CALLED.append("getitem")

    @classmethod
    def _make(cls, items):
        CALLED.append("make")


class WatchedEnum(enum.Enum):
    A = 1

    @classmethod
    def _missing_(cls, value):
        CALLED.append("missing")


class WatchedTuple(NamedTuple("WatchedBase", [("x", Any)])):
    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        CALLED.append("new")
        return super().__new__(cls, *args, **kwargs)

    @classmethod
    def _make(cls, items):
        CALLED.append("make")
        return super()._make(items)


class WatchedModel(pydantic.BaseModel):
    x: Any = 0

    def __init__(self, **data):
        CALLED.append("init")
        super().__init__(**data)

    def __setstate__(self, state):
        CALLED.append("setstate")

    def model_post_init(self, context):
        CALLED.append("post_init")


CONTENTS = [
    [],
    [{}],
    [1],
    ["A"],
    [2, ["A"]],
    [2, []],
    [["x"], {"x": 1}],
    [["x"], [1]],
    [["x"], {"x": 1}, None, None, ["x"]],
    [[["x"], [], None], {"x": 1}, None, None, ["x"]],
    [["x", "y"], {"x": 1}],
    ["true"],
    [["true"], ["true"]],
]
RECORD_CODES = [extension.RECORD, extension.MODEL, extension.ENUM, extension.NAMED_TUPLE]


@pytest.mark.parametrize("code", RECORD_CODES)
@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "subprocess.Popen", "this.s", "antigravity.fly", "pathlib.Path"]
)
def test_name_that_is_not_registered_imports_and_calls_nothing(name, code, capfd):
    """Law 9: no stored bytes can make us import or call what they name."""
    for content in CONTENTS:
        with pytest.raises(DecodeError, match=r"is not registered in this process|damaged"):
            decode(b"\x01\x00" + ext(code, [name, *content]))
    assert "this" not in sys.modules
    assert "antigravity" not in sys.modules
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("code", RECORD_CODES)
@pytest.mark.parametrize("kind", [WatchedRecord, WatchedEnum, WatchedTuple, WatchedModel])
def test_name_that_is_registered_calls_no_constructor(kind, code):
    """Law 9: a registered class is put together, not called, whatever the bytes say it is."""
    register(kind)
    CALLED.clear()
    for content in CONTENTS:
        try:
            value = decode(b"\x01\x00" + ext(code, [kind.__semcache_name__, *content]))
        except DecodeError:
            continue
        assert type(value) is kind
    assert CALLED == []


class Planet(Place, enum.Enum):
    """An enum whose members are dataclasses too."""

    EARTH = 1, 2


def test_name_of_an_enum_makes_no_new_member():
    """Law 9: bytes that call an enum something else than it is cannot make a member that there is not."""
    assert decode(encode(Planet.EARTH)) is Planet.EARTH
    told = [Planet.__semcache_name__, ["x", "y"], {"x": 1, "y": 3}]
    with pytest.raises(DecodeError, match="another sort of class"):
        decode(b"\x01\x00" + ext(extension.RECORD, told))


@pytest.mark.parametrize("name", [None, 1, 1.5, True, b"os", [], {}, ["os"], ""])
@pytest.mark.parametrize("code", RECORD_CODES)
def test_name_that_is_no_text_is_a_decode_error(name, code):
    """A name may be anything in foreign bytes."""
    for content in CONTENTS:
        with pytest.raises(DecodeError):
            decode(b"\x01\x00" + ext(code, [name, *content]))


# Changed classes


@dataclass
class BeforeRecord:
    x: int = 1
    y: int = 2


@dataclass
class MoreFields:
    x: int = 1
    y: int = 2
    z: int = 3


@dataclass
class MoreLaterFields:
    x: int = 1
    y: int = 2
    z: int = field(default=3, init=False)


@dataclass
class FewerFields:
    x: int = 1


@dataclass
class OtherFields:
    x: int = 1
    z: int = 2


class BeforeModel(pydantic.BaseModel):
    x: int = 1
    y: int = 2


class MoreModel(BeforeModel):
    z: int = 3


class FewerModel(pydantic.BaseModel):
    x: int = 1


class PrivateModel(BeforeModel):
    _z: int = 1


class ExtraModel(BeforeModel):
    model_config = pydantic.ConfigDict(extra="allow")


class BeforeTuple(NamedTuple):
    x: int = 1
    y: int = 2


class MoreTuple(NamedTuple):
    x: int = 1
    y: int = 2
    z: int = 3


class TurnedTuple(NamedTuple):
    y: int = 1
    x: int = 2


class BeforeFlag(enum.Flag):
    A = 1
    B = 2
    C = 4


class TurnedFlag(enum.Flag):
    B = 1
    A = 2
    D = 4


class BeforeEnum(enum.Enum):
    A = 1
    B = 2


class FewerEnum(enum.Enum):
    A = 1


@pytest.mark.parametrize(
    ("value", "after"),
    [
        *((BeforeRecord(), after) for after in (MoreFields, MoreLaterFields, FewerFields, OtherFields)),
        *((BeforeModel(), after) for after in (MoreModel, FewerModel, PrivateModel, ExtraModel)),
        *((BeforeTuple(), after) for after in (MoreTuple, TurnedTuple)),
        *((BeforeFlag.A | BeforeFlag.C, after) for after in (TurnedFlag, FewerEnum)),
        (BeforeEnum.B, FewerEnum),
        *((BeforeRecord(), after) for after in (BeforeModel, BeforeTuple, BeforeEnum)),
        *((BeforeModel(), after) for after in (BeforeRecord, BeforeTuple, BeforeEnum)),
        *((BeforeTuple(), after) for after in (BeforeRecord, BeforeModel, BeforeEnum)),
        *((BeforeEnum.B, after) for after in (BeforeRecord, BeforeModel, BeforeTuple)),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_class_changed_since_is_a_decode_error(value, after):
    """A class that has other fields or members than when its value was stored is a miss, not half a value."""
    for kind in (after, type(value)):  # as if its module had been changed, and imported anew
        kind.__module__, kind.__qualname__ = "shop", "Order"
    register(type(value))
    data = encode([value])
    assert exact(decode(data)) == exact([value])
    register(after)
    with pytest.raises(DecodeError, match=r"than when it was stored|damaged"):
        decode(data)


def test_class_made_anew_under_its_name_replaces_the_old_one():
    """A notebook's cell may be run twice: what the old class has stored, the new one reads."""

    def made():
        @dataclass
        class Note:
            text: str

        return register(Note)

    first = made()
    data = encode(first("a"))
    second = made()
    assert type(decode(data)) is second
    assert type(decode(encode(second("b")))) is second
    with pytest.raises(EncodeError, match="another class is stored as"):
        encode(first("c"))


def test_two_classes_of_one_name_are_not_taken_for_each_other():
    """A value never comes back as an instance of another class that happens to have its name."""

    def made():
        @dataclass
        class Twin:
            text: str

        return Twin

    first, second = made(), made()
    assert type(decode(encode(first("a")))) is first
    with pytest.raises(EncodeError, match=r"semcache\.register\(\.\.\.\) this one under its own name"):
        encode(second("a"))
    register(second, "second twin")
    assert type(decode(encode(second("a")))) is second
    assert type(decode(encode(first("a")))) is first


def test_name_of_another_class_is_refused():
    """Two classes may not be registered under one name."""

    @dataclass
    class One:
        x: int = 0

    @dataclass
    class Two:
        x: int = 0

    register(One, "taken name")
    with pytest.raises(ConfigurationError, match="is registered as 'taken name'"):
        register(Two, "taken name")
    assert type(decode(encode(One()))) is One


def test_subclass_is_known_by_its_own_name():
    """A subclass is not stored under the name of its base."""
    register(Place)
    assert type(decode(encode(Deeper()))) is Deeper
    assert type(decode(encode(Place()))) is Place


def test_class_registered_under_another_name_reads_what_it_stored_before():
    """A class that is renamed keeps its old name for what was stored under it."""

    @dataclass
    class Renamed:
        x: int = 0

    register(Renamed, "old name")
    data = encode(Renamed(1))
    register(Renamed, "new name")
    assert b"new name" in encode(Renamed(1))
    assert decode(data) == Renamed(1)


@pytest.mark.parametrize("cls", [int, str, Plain, object, Place(), "Place", None, type])
def test_registering_what_is_no_record_is_refused(cls):
    """Only records are registered; the message names the mend."""
    with pytest.raises(ConfigurationError, match="is no dataclass, pydantic model, enum or named tuple"):
        register(cls)


def test_registering_returns_the_class():
    """`register` is a decorator."""

    @register
    @dataclass
    class Kept:
        x: int = 0

    assert decode(encode(Kept(1))) == Kept(1)


def test_value_of_another_process_is_read_once_its_class_is_registered(tmp_path):
    """Stored bytes hold a name: a process without its class has a miss, one with it has the value."""
    script = tmp_path / "orders.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from semcache.codec import Codec, register\n"
        "@dataclass\n"
        "class Order:\n"
        "    number: int\n"
        "if __name__ == '__main__':\n"
        "    sys.stdout.write(Codec().encode(Order(7)).hex())\n"
        "elif 'register' in sys.argv:\n"
        "    register(Order)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path[1:]])}

    def told(*arguments):
        done = subprocess.run(  # noqa: PLW1510 - the assertion shows what it printed
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    data = told(str(script))
    ask = f"""
import orders
from semcache.codec import Codec
from semcache.errors import DecodeError
try:
    print(Codec.decode(bytes.fromhex('{data}')))
except DecodeError as error:
    print(error)
"""
    assert told("-c", ask, "register") == "Order(number=7)"
    assert told("-c", ask).startswith("orders.Order is not registered in this process")
