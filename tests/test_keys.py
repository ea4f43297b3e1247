"""Keys: equal values have equal canonical bytes, different ones different bytes, whatever runs them.

`write_golden()` writes tests/golden/keys.json anew. To run it is to change every key that anyone has stored.
"""

from __future__ import annotations

import enum
import json
import math
import os
import random
import subprocess
import sys
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from unittest.mock import Mock
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semcache.errors import UnkeyableError
from semcache.keys import KEY_BYTES, canonical, canonical_items, digest, type_name

GOLDEN = Path(__file__).parent / "golden" / "keys.json"
PARIS = ZoneInfo("Europe/Paris")

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"
    AZURE = "blue"  # noqa: PIE796 - an alias


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


class Point(NamedTuple):
    x: Any
    y: Any


class Pixel(NamedTuple):
    x: Any
    y: Any


Loose = namedtuple("Loose", "x y")  # noqa: PYI024 - the other way to make one


class Tagged(Loose):
    """A named tuple that has room for more."""


@dataclass
class Place:
    x: Any = 0
    y: Any = 0


@dataclass
class Spot:
    x: Any = 0
    y: Any = 0


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any


@dataclass
class Rich:
    x: int
    shared: ClassVar[Any] = object()
    seed: InitVar[int] = 3
    made: int = field(default=5, init=False)

    def __post_init__(self, seed: int) -> None:
        self.made = self.x + seed

    @cached_property
    def twice(self) -> int:
        return 2 * self.x


@dataclass
class Defaulted:
    x: int = 0
    fixed: int = field(default=5, init=False)


@dataclass
class Box(Generic[T]):
    item: T


class Model(pydantic.BaseModel):
    x: Any = 0
    y: Any = 0


class Twin(pydantic.BaseModel):
    x: Any = 0
    y: Any = 0


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: int = 0


class Secret(pydantic.BaseModel):
    x: int = 0
    _hidden: Any = pydantic.PrivateAttr(default=0)

    @cached_property
    def twice(self) -> int:
        return 2 * self.x


class Row(pydantic.RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class Checked:
    x: int = 0


class Owner:
    def __init__(self, told: Any) -> None:
        self.told = told

    def __semcache_key__(self) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


class Other(Owner):
    pass


class Nameless(tzinfo):
    """A zone that says nothing about itself."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else timedelta(hours=1)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None


class Shifting(tzinfo):
    """A zone as pytz makes them: one name, an object for each of its offsets."""

    zone = "Europe/Paris"

    def __init__(self, hours: int) -> None:
        self.hours = hours

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return timedelta(hours=self.hours)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None


def array(items, dtype=None, shape=None):
    made = np.array(items, dtype=dtype)
    return made if shape is None else made.reshape(shape)


def objects(*items, shape=None):
    made = np.empty(len(items), dtype=object)
    made[:] = items
    return made if shape is None else made.reshape(shape)


def unset(model, *names):
    for name in names:
        delattr(model, name)
    return model


def tagged(*values, **attributes):
    made = Tagged(*values)
    made.__dict__.update(attributes)
    return made


def marked(record, **attributes):
    record.__dict__.update(attributes)
    return record


def secret(hidden):
    made = Secret()
    made._hidden = hidden
    return made


# Golden values


def golden_values() -> dict[str, Any]:
    """Return values of every keyable kind, by name."""
    return {
        "none": None,
        "true": True,
        "false": False,
        "zero": 0,
        "minus one": -1,
        "64 bits": 2**64 - 1,
        "65 bits": 2**64,
        "minus 64 bits": -(2**63),
        "minus 65 bits": -(2**63) - 1,
        "float": 0.1,
        "float one": 1.0,
        "float zero": 0.0,
        "float minus zero": -0.0,
        "float smallest": 5e-324,
        "infinity": math.inf,
        "minus infinity": -math.inf,
        "nan": math.nan,
        "complex": 1.5 - 2j,
        "empty text": "",
        "text": "naïve 😀 \x00",
        "lone surrogate": "\ud800",
        "long text": "ab" * 40_000,
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"\x00\xff"),
        "list": [1, "a", None, [2.0]],
        "tuple": (1, "a", None, (2.0,)),
        "empty list": [],
        "empty tuple": (),
        "empty dict": {},
        "dict": {"b": 1, "a": [True], "é": None},
        "dict of numbers": {2: "b", 10: "j", 1: "a"},
        "dict of several kinds": {"a": 1, 1: "a", None: 0, (1, 2): 3, Word.ONE: 4},
        "ordered dict": OrderedDict([("b", 1), ("a", 2)]),
        "mapping proxy": types.MappingProxyType({"b": 1, "a": 2}),
        "set": {3, 1, "a", 2.5},
        "frozenset": frozenset({"x", frozenset({1})}),
        "range": range(0, 10, 3),
        "ellipsis": ...,
        "naive": datetime(2024, 2, 29, 12, 30, 45, 123456),  # noqa: DTZ001 - naive on purpose
        "utc": datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
        "fixed offset": datetime(2024, 2, 29, 12, 30, tzinfo=timezone(timedelta(hours=1))),
        "named offset": datetime(2024, 2, 29, 12, 30, tzinfo=timezone(timedelta(hours=1), "CET")),
        "zone": datetime(2024, 2, 29, 12, 30, tzinfo=PARIS),
        "fold": datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=PARIS),
        "date": date(2024, 2, 29),
        "time": time(12, 30, 45),
        "time with zone": time(12, 30, tzinfo=PARIS),
        "timedelta": timedelta(days=-1, seconds=5, microseconds=7),
        "time zone": PARIS,
        "decimal": Decimal("1.10"),
        "decimal exponent": Decimal("1E+30"),
        "decimal nan": Decimal("NaN"),
        "fraction": Fraction(1, 3),
        "uuid": UUID("12345678-1234-5678-1234-567812345678"),
        "path": Path("a/b"),
        "pure path": PurePosixPath("a/b"),
        "windows path": PureWindowsPath("a/b"),
        "class": Place,
        "own key": Owner({"a": 1}),
        "enum": Color.RED,
        "int enum": Number.ONE,
        "str enum": Word.ONE,
        "flag": Perm.R,
        "flag alias": Perm.RW,
        "flags": Perm.R | Perm.X,
        "no flags": Perm(0),
        "flags kept": Bits.A | Bits(16),
        "named tuple": Point(1, "a"),
        "dataclass": Place(1, ["a"]),
        "slotted dataclass": Slotted(1),
        "rich dataclass": Rich(1),
        "model": Model(x=1),
        "model with extras": Open(x=1, b=2, a=3),
        "model with private": secret(1),
        "root model": Row([1, 2]),
        "checked dataclass": Checked(x=1),
        "array": array([[1, 2], [3, 4]], "<i4"),
        "big-endian array": array([1.5, 2.5], ">f8"),
        "empty array": np.zeros((0, 3), "<f4"),
        "scalar array": array(5, "<i2"),
        "bool array": array([True, False]),
        "text array": array(["a", "bc"], "<U2"),
        "date array": array(["2024-01-01", "NaT"], "<M8[D]"),
        "record array": array([(1, 2.5)], [("a", "<i4"), ("b", "<f8")]),
        "object array": objects("a", None, {"b": 1}),
        "numpy float": np.float32(1.5),
        "numpy int": np.int64(5),
        "numpy bool": np.bool_(True),
        "numpy text": np.str_("a"),
        "numpy date": np.datetime64("2024-01-01T00:00:00", "s"),
        "dtype": np.dtype("<f4"),
        "record dtype": np.dtype([("a", "<i4"), ("b", "<f8")]),
    }


def golden_keys() -> dict[str, str]:
    """Return the digest of each golden value, and the bytes themselves of the short ones."""
    told = {name: canonical(value) for name, value in golden_values().items()}
    return {name: data.hex() if len(data) <= 64 else f"digest {digest(data).hex()}" for name, data in told.items()}


def write_golden() -> None:
    """Write tests/golden/keys.json: by hand, and only together with a new FORMAT."""
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden_keys(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def test_golden_values_now_as_written():
    """Keys are stable over releases, machines and Python versions."""
    assert golden_keys() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_digest_of_parts_is_blake2b_of_20_bytes():
    """A digest is BLAKE2b (RFC 7693) of the joined parts, 20 bytes long."""
    assert digest(b"ab", b"c").hex() == "384264f676f39536840523f284921cdc68b6846b"
    assert digest(b"a", b"bc") == digest(b"abc")
    assert len(digest()) == KEY_BYTES == 20


# Different values


def different_values() -> list[Any]:
    """Return values no two of which may share a key: each stands beside what it is easily taken for."""
    moment = datetime(2024, 10, 27, 2, 30)  # noqa: DTZ001 - naive on purpose; an hour that Paris has twice
    hour = timedelta(hours=1)
    return [
        # scalars
        None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 0j, 1 + 0j, complex(0, -0.0),
        complex(-0.0, 0), complex(math.nan, 0), complex(0, math.nan), "", "0", "1", "1.0", "True", "None", "nan",
        2**63, 2**64, 2**64 + 1, float(2**64), -(2**64), 10**5000, 10**5000 + 1, ..., "...",
        # text and bytes
        "a", b"a", bytearray(b"a"), "\x00", b"\x00", "\ud800", "\udc00", "\ud83d\ude00", "😀", "\ud83d", "é", "e\u0301",
        "\xc3\xa9", b"\xc3\xa9", b"", bytearray(),
        # containers
        [], (), {}, set(), frozenset(), OrderedDict(), types.MappingProxyType({}),
        types.MappingProxyType(OrderedDict()), objects(), [[]], ([],), [()], ((),),
        {"": []}, [None], [[], []], [[[]]], [1, [2]], [[1], 2], [1, 2], (1, 2),
        {1, 2}, frozenset({1, 2}), [12], ["12"], ["1", "2"], ["1,2"], ["ab"], ["a", "b"], ["a", "b", ""], ["", "ab"],
        [["a"], "b"], [["a", "b"]], ["ba"], ["b", "a"], {1: 2}, {2: 1}, {"1": 2}, {1.0: 2}, {True: 2}, {b"1": 2},
        [[1, 2]], [(1, 2)], {(1, 2): None}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": 1.0}, [["a", 1]], [("a", 1)],
        ["a", 1], {"a": None}, {"a": {}}, {"a": []}, {"a": {"b": 1}}, {"a": {}, "b": 1}, {"a": 1, "b": {}},
        {"a": "b"}, {"b": "a"}, {"ab": ""}, {"": "ab"}, {None: 1}, {"None": 1}, {Word.ONE: 1}, {"one": 1},
        {"a": 1, 2: 3}, {"a": 1, "2": 3}, {frozenset({1}): 1}, {frozenset({1, 2}): 1},
        OrderedDict(a=1), types.MappingProxyType({"a": 1}), types.MappingProxyType(OrderedDict(a=1)), {"a"}, ["a"],
        OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), {"a": 1, "b": 2}, {frozenset({"a"})}, frozenset({"a"}),
        {frozenset()}, {""}, {1}, {1.0}, {True}, {"1"}, {(1,)},
        # numbers of other kinds
        range(1), range(2), range(0), range(1, 1), range(0, 3, 2), range(0, 4, 2), [0],
        Decimal(1), Decimal("1.0"), Decimal("1.00"), Decimal("-0"), Decimal(0), Decimal("NaN"), Decimal("sNaN"),
        Decimal("NaN1"), Decimal("-NaN"), Decimal("Infinity"), Decimal("1E+2"), Decimal(100), Fraction(1),
        Fraction(1, 2), Fraction(10**5000, 3), UUID(int=1), UUID(int=2),
        # moments
        moment, moment.replace(fold=1), moment.replace(tzinfo=UTC), moment.replace(tzinfo=timezone(hour)),
        moment.replace(tzinfo=timezone(2 * hour)), moment.replace(tzinfo=timezone(hour, "CET")),
        moment.replace(tzinfo=timezone(hour, "Europe/Paris")), moment.replace(tzinfo=PARIS),
        moment.replace(tzinfo=PARIS, fold=1), moment.replace(tzinfo=ZoneInfo("Europe/Berlin")),
        moment.replace(tzinfo=Shifting(1)), moment.replace(tzinfo=Shifting(2)),
        moment.replace(tzinfo=timezone(timedelta(0), "GMT")), moment.date(), moment.time(),
        moment.time().replace(fold=1), moment.time().replace(tzinfo=UTC), moment.time().replace(tzinfo=PARIS),
        moment.isoformat(), hour, -hour, timedelta(0), timedelta(microseconds=1), timedelta(1),
        PARIS, UTC, timezone(hour),
        # paths
        Path("a"), PurePosixPath("a"), PureWindowsPath("a"), PurePosixPath("A"), Path("a/b"), Path("/a"), Path("a\\b"),
        # enums, classes, records
        Color.RED, Color.BLUE, Number.ONE, Word.ONE, Perm.R, Perm.W, Perm.RW, Perm(0), Perm.R | Perm.X, Perm.W | Perm.X,
        Perm.R | Perm.W | Perm.X, Bits.A, Bits(0), Bits.A | Bits(16), Bits(16), Bits(32), "one", "RED", "Color.RED",
        Place, Spot, int, str, Color, type, Model, type_name(Place), Point(1, 2), Pixel(1, 2), Loose(1, 2),
        tagged(1, 2), tagged(1, 2, z=3), tagged(1, 2, z=4), Point(2, 1), Point((1, 2), ()), Place(1, 2), Spot(1, 2),
        Place(2, 1), Place(1, [2]), Place(1), Place(Place(1), 2), Place(1, Place(2)),
        marked(Place(1, 2), z=1), marked(Place(1, 2), z=2), Slotted(1), Slotted(True), Rich(1), Rich(1, seed=4), Box(1),
        Box(Box(1)), Model(x=1), Model(x=1, y=0), Model(y=0), Model(x=1, y=2), Twin(x=1, y=2), Open(x=1),
        Open(x=1, a=1), Open(x=1, a=2), Open(x=1, b=1), secret(0), secret(1), Secret(x=1), Row([1]), Row([1, 2]),
        Checked(1),
        {"x": 1, "y": 2}, ["Place", {"x": 1, "y": 2}], Owner(1), Other(1), Owner([1]),
        Owner(Owner(1)), Owner("Owner"),
        # numpy
        array([1, 2], "<i4"), array([1, 2], "<i8"), array([1, 2], "<u4"), array([1, 2], "<f4"), array([1, 2], "<f8"),
        array([[1, 2]], "<i4"), array([[1], [2]], "<i4"), array([2, 1], "<i4"), array([1, 0, 2, 0], "<i2"),
        np.zeros(0), np.zeros((0, 1)), np.zeros((1, 0)), np.zeros(0, "<i4"), array(1.0), np.float64(1.0),
        np.float32(1.0), np.float16(1.0), array([1.0]), array([0.0]), array([-0.0]), np.int64(1), np.int32(1),
        np.uint8(1), np.int8(1),
        np.bool_(True), array([True]), np.str_("a"), np.bytes_(b"a"), np.str_(""), np.str_("\0"), np.str_("a\0"),
        np.bytes_(b""), np.bytes_(b"\0"), np.complex64(1), array(["a"]), array(["a"], "<U2"), array([b"a"]),
        array(["2024-01-01"], "<M8[D]"), array(["2024-01-01"], "<M8[s]"), array([1], "<m8[s]"), array([1], "<m8[25s]"),
        np.datetime64("2024-01-01"), np.datetime64("NaT", "s"), np.timedelta64("NaT", "s"), np.void(b"a"),
        array([b"a"], "V1"),
        array([(1, 2)], "i4,i4"), array([(1, 2)], "i4,i8"), array([(1, 2)], [("a", "i4"), ("b", "i4")]),
        array([(1, 2)], [("b", "i4"), ("a", "i4")]), array([(2, 1)], [("a", "i4"), ("b", "i4")]),
        array([(1, "a")], [("a", "i4"), ("b", "O")]), array([(1, "a")], [("a", "i8"), ("b", "O")]), objects((1, "a")),
        objects(1, 2), objects(1, 2, shape=(2, 1)), objects(1, True), objects(1.0, 2), objects([1], [2]), objects(None),
        objects(np.int64(1)), np.dtype("f4"), np.dtype("f8"), np.dtype(">f4"), np.dtype("i4"), np.dtype("V8"),
        np.dtype(("i4", (2,))), np.dtype("i4,i4"), np.dtype("O"), np.dtype("M8[s]"), np.dtype("M8[D]"), np.float64,
    ]  # fmt: skip


def test_different_values_all_keyed_differently():
    """Law 1: what may change the answer changes the key: no value is taken for a similar one."""
    taken: dict[bytes, Any] = {}
    for value in different_values():
        key = canonical(value)
        assert key not in taken, f"{value!r} and {taken[key]!r} have one key"
        taken[key] = value


def test_different_values_wrapped_and_joined_keyed_differently():
    """Framing holds inside containers: no two neighbours can be read as two others."""
    taken: dict[bytes, Any] = {}
    drawn = random.Random(2)
    values = drawn.sample(different_values(), 60)
    for value in [[a, b] for a in values for b in values]:
        key = canonical(value)
        assert key not in taken, f"{value!r} and {taken[key]!r} have one key"
        taken[key] = value


# Equal values


def equal_values() -> dict[str, tuple[Any, Any]]:
    """Return pairs that are one value, told in two ways."""
    lazy, called = Rich(1), Rich(1)
    secretive, asked = Secret(x=1), Secret(x=1)
    big = array([1, 2, 3], ">i4")
    padded = np.zeros(2, np.dtype([("a", "u1"), ("b", "<i8")], align=True))
    filled = np.full(2, 255, "V16").view(padded.dtype)
    filled["a"], filled["b"] = 0, 0
    assert called.twice == asked.twice == 2
    return {
        "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        "order of a nested dict": ([{"a": {"x": 1, "y": 2}}], [{"a": {"y": 2, "x": 1}}]),
        "order of a dict of kinds": ({"a": 1, 2: 3, None: 4}, {None: 4, 2: 3, "a": 1}),
        "order of a dict of frozensets": (
            {frozenset({1}): 1, frozenset({2}): 2},
            {frozenset({2}): 2, frozenset({1}): 1},
        ),
        "order of a proxied dict": (
            types.MappingProxyType({"aa": 1, "b": 2}),
            types.MappingProxyType({"b": 2, "aa": 1}),
        ),
        "order of a set": ({8, 0}, {0, 8}),
        "order of extras": (Open(a=1, b=2), Open(b=2, a=1)),
        "order of attributes": (Place(1, 2), marked(unset(Place(0, 2), "x"), x=1)),
        "nan": (math.nan, -(math.inf - math.inf)),
        "nan in a list": ([math.nan], [float("-nan")]),
        "alias of an enum": (Color.BLUE, Color.AZURE),
        "a flag made in two ways": (Perm.RW, Perm.R | Perm.W),
        "a fixed offset of nothing": (
            datetime(2024, 1, 1, tzinfo=UTC),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(0))),
        ),
        "a zone read twice": (
            datetime(2024, 1, 1, tzinfo=PARIS),
            datetime(2024, 1, 1, tzinfo=ZoneInfo.no_cache("Europe/Paris")),
        ),
        "a default that stands on the class": (Defaulted(1), marked(Defaulted(1), fixed=5)),
        "a cached property worked out": (lazy, called),
        "a model's cached property worked out": (secretive, asked),
        "byte order of an array": (big, big.astype("<i4")),
        "layout of an array": (array([[1, 2], [3, 4]]), np.asfortranarray(array([[1, 2], [3, 4]]))),
        "a view of an array": (array([0, 2, 4]), np.arange(5)[::2]),
        "bytes between fields": (padded, filled),
        "a path's spelling": (Path("a//b/"), Path("a/b")),
        "a decimal in another context": (Decimal("1E+30"), Decimal("1e+30")),
    }


@pytest.mark.parametrize("name", equal_values())
def test_equal_values_told_differently_have_one_key(name):
    """Equal calls have equal keys: nothing but the value enters them."""
    one, other = equal_values()[name]
    assert canonical(one) == canonical(other)


def test_decimal_context_of_the_thread_does_not_matter():
    """The thread's decimal context is no part of a value."""
    with localcontext() as context:
        context.capitals = 0
        context.prec = 2
        told = canonical(Decimal("1.2345E+30"))
    assert told == canonical(Decimal("1.2345E+30"))


def test_arguments_of_a_call_are_a_list():
    """The hot form for a call's arguments is the canonical form of their list."""
    assert canonical_items((1, "a", {"b": [2.0]})) == canonical([1, "a", {"b": [2.0]}])
    assert canonical_items(()) == canonical([])


def test_value_keyed_twice_is_not_changed():
    """To key a value leaves it as it was."""
    value = {"b": [1, {2}], "a": Place(1, {"z": 1, "y": 2})}
    canonical(value)
    assert list(value) == ["b", "a"]
    assert list(value["a"].y) == ["z", "y"]


# Properties

texts = st.text(st.sampled_from("a1:[,\x00é😀\ud800\udc00"), max_size=4)
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=2)), PARIS])
naive = st.datetimes(min_value=datetime(2024, 10, 26), max_value=datetime(2024, 10, 28))  # noqa: DTZ001
moments = st.builds(lambda at, fold, zone: at.replace(fold=fold, tzinfo=zone), naive, st.integers(0, 1), zones)
leaves = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, math.nan, 2**64, -(2**64), "", "1", b"", b"1", ...]),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    texts,
    st.binary(max_size=4),
    st.builds(bytearray, st.binary(max_size=2)),
    moments,
    st.dates(date(2024, 1, 1), date(2024, 1, 3)),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.fractions(max_denominator=4),
    st.uuids(),
    st.sampled_from([*Color, *Number, *Word, *Perm, Perm.R | Perm.X, Perm(0), Path("a"), PurePosixPath("a")]),
    st.builds(range, st.integers(0, 3), st.integers(0, 3), st.integers(1, 2)),
    st.builds(np.array, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["<i4", ">i4", "<f8", "?"])),
    st.sampled_from([np.float64(1), np.int64(1), np.str_("1"), np.bool_(True)]),
)  # fmt: skip
hashable = st.one_of(
    st.sampled_from([None, True, 0, 1.0, "", "1", b"1", (), frozenset(), Word.ONE, Perm.R, Point(1, "1")]),
    texts,
    st.integers(-3, 3),
    st.floats(),
    st.tuples(texts, st.integers(-3, 3)),
    st.frozensets(texts, max_size=2),
)


def deeper(inner):
    several = st.lists(inner, max_size=3)
    pairs = st.lists(st.tuples(hashable, inner), max_size=3)
    return st.one_of(
        several,
        several.map(tuple),
        st.dictionaries(texts, inner, max_size=3),
        pairs.map(dict),
        pairs.map(OrderedDict),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Place, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Model, x=inner, y=inner),
        st.builds(lambda items: Model(**items), st.dictionaries(st.sampled_from("xy"), inner)),
        st.builds(lambda items: Open(**items), st.dictionaries(st.sampled_from("abc"), inner)),
        several.map(lambda items: objects(*items)),
    )


values = st.recursive(leaves, deeper, max_leaves=8)


def same(one: Any, other: Any) -> bool:
    """Say whether two values are equal with all their types: the oracle, which knows nothing of keys."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return same_unordered(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return same_unordered(list(one), list(other))
    parts = parts_of(one)
    if parts is None:
        return repr(one) == repr(other)
    return len(parts) == len(parts_of(other)) and all(map(same, parts, parts_of(other)))


def parts_of(value: Any) -> list[Any] | None:  # noqa: PLR0911 - one return a kind
    """Take a value apart; None where its type and repr say it all."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, OrderedDict):
        return list(value.items())
    if isinstance(value, Place):
        return [value.x, value.y]
    if isinstance(value, Slotted):
        return [value.x]
    if isinstance(value, pydantic.BaseModel):
        return [value.model_fields_set, dict(value), value.model_extra]
    if isinstance(value, np.ndarray):
        return [value.dtype.newbyteorder("=").str, value.shape, value.tolist()]
    return None


def same_unordered(ones, others):
    """Match the items of two collections; quadratic, as the collections are small."""
    left = list(others)
    for item in ones:
        place = next((place for place, other in enumerate(left) if same(item, other)), None)
        if place is None:
            return False
        del left[place]
    return not left


@given(values, values)
@example([1, True], [True, 1])
@example({1: "a"}, {True: "a"})
@example((1,), [1])
@settings(max_examples=200, deadline=None)
def test_keys_of_two_values_equal_exactly_if_the_values_are(one, other):
    """Equal values have equal bytes and different values different ones, types included."""
    assert (canonical(one) == canonical(other)) is same(one, other)


@given(st.lists(values, min_size=2, max_size=6), values)
@settings(max_examples=200, deadline=None)
def test_keys_of_a_value_changed_in_one_place_differ(items, other):
    """A change anywhere inside a value changes its key."""
    changed = [other, *items[1:]]
    assert (canonical(items) == canonical(changed)) is same(items[0], other)
    nested, changed_nested = {"a": [tuple(items)]}, {"a": [tuple(changed)]}
    assert (canonical(nested) == canonical(changed_nested)) is same(items[0], other)


def shuffled(value: Any, drawn: random.Random) -> Any:
    """Return an equal value, built in another order."""
    if type(value) is dict:
        items = [(key, shuffled(item, drawn)) for key, item in value.items()]
        drawn.shuffle(items)
        return dict(items)
    if type(value) in (set, frozenset):
        items = list(value)
        drawn.shuffle(items)
        return type(value)(items)
    if type(value) in (list, tuple):
        return type(value)(shuffled(item, drawn) for item in value)
    return value


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_keys_of_a_value_built_in_another_order_equal(value, drawn):
    """The order in which a dict or a set was filled does not matter, at whatever depth."""
    assert canonical(shuffled(value, drawn)) == canonical(value)


@given(st.one_of(values, st.builds(lambda items: [*items, object()], st.lists(values, max_size=2))))
@settings(max_examples=100, deadline=None)
def test_canonical_of_any_value_raises_unkeyable_or_nothing(value):
    """What cannot be keyed is an UnkeyableError, never another."""
    try:
        told = canonical(value)
    except UnkeyableError:
        assert isinstance(value, list)
    else:
        assert isinstance(told, bytes)


# What cannot be keyed


class Plain:
    pass


class Unreadable:
    def __repr__(self) -> str:
        raise OSError


class Liar:
    """An object that passes itself off as a list, as proxies do."""

    def __init__(self, items):
        self.items = items

    @property
    def __class__(self):
        return list

    def __iter__(self):
        return iter(self.items)


class Words(list):
    pass


class Names(dict):
    pass


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Folder(PosixPath):
    pass


@dataclass
class Counted(dict):
    """A dataclass that holds more than its fields."""

    total: int = 0


@dataclass
class Failed(Exception):  # noqa: N818 - as above
    code: int = 0


class Strange(type):
    __hash__ = None

    def __eq__(cls, other):
        return False


class Odd(metaclass=Strange):
    pass


def variable_text():
    """Return text whose array holds addresses, and its dtype, which numpy has from 2.0 on."""
    dtypes = [np.dtypes.StringDType()] if hasattr(np.dtypes, "StringDType") else []
    return [*dtypes, *(np.array(["a"], dtype) for dtype in dtypes)]


def local_class():
    class Inside:
        pass

    return Inside


@pytest.mark.parametrize(
    "value",
    [
        Plain(), Unreadable(), object(), lambda: None, print, iter([]), (item for item in ()), open, Mock(),
        Mock(spec=str), sys, Liar([1]), Words([1]), Names(a=1), Text("a"), Whole(1), Folder("a"), defaultdict(list),
        deque(),
        memoryview(b"a"),
        Counted(1), Failed(1), Odd(), local_class(), Exception("a"), list[int], slice(1), NotImplemented,
        np.ma.array([1, 2], mask=[0, 1]), np.zeros(2, "f4,f4").view(np.recarray), np.longdouble(1), np.zeros(1, "g"),
        np.random.default_rng(), np.zeros(1, "f4,f4").view(np.recarray)[0], np.add, *variable_text(),
        datetime(2024, 1, 1, tzinfo=Nameless()), time(1, tzinfo=Nameless()), objects(object()),
        {object()}, {object(): 1}, {Unreadable(): 1}, Place(object()), Model(x=object()), Open(a=object()),
        secret(object()), Point(object(), 1), types.MappingProxyType({1: object()}),
        types.MappingProxyType(defaultdict(list)),
        OrderedDict(a=object()), Owner(object()), Owner(ValueError("no")),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_canonical_of_what_has_no_form_is_refused(value):
    """Law 1: what cannot be keyed is an UnkeyableError, never a guess and never another error."""
    with pytest.raises(UnkeyableError):
        canonical(value)
    with pytest.raises(UnkeyableError):
        canonical_items(["a", value])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (datetime(2024, 1, 1, tzinfo=Nameless()), r"a time zone of type test_keys\.Nameless has no name; use zoneinfo"),
        *((value, "its bytes do not tell its values|the dtype") for value in variable_text()),
        (np.zeros(1, "g"), "an array of dtype .* cannot be keyed: its bytes do not tell its values"),
        (np.ma.array([1]), r"a numpy\.ma\..*MaskedArray cannot be keyed"),
        (Counted(1), r"a test_keys\.Counted holds more than its fields"),
        (local_class(), "a class made inside a function has no name that another process could know"),
        (Owner(ValueError("no such row")), "it cannot be read: ValueError: no such row"),
    ],
)
def test_refusal_tells_why(value, told):
    """The message says what it is about a value that makes it unkeyable."""
    with pytest.raises(UnkeyableError, match=told):
        canonical(value)


def test_refusal_of_an_unkeyable_class_names_it_and_the_mend():
    """The message names the class and what can be done."""
    with pytest.raises(UnkeyableError, match=r"a test_keys\.Plain cannot be keyed; give it __semcache_key__\(\)"):
        canonical(Plain())


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([1, 2, Plain()], "[2]"),
        ((1, Plain()), "[1]"),
        ({"x": Plain()}, "['x']"),
        ({1: Plain()}, "[1]"),
        ({(1, 2): Plain()}, "[(1, 2)]"),
        ({1: 0, "x": Plain()}, "['x']"),
        (OrderedDict(x=Plain()), "['x']"),
        (types.MappingProxyType({"x": Plain()}), "['x']"),
        (Place(1, Plain()), ".y"),
        (Point(1, Plain()), ".y"),
        (Model(y=Plain()), ".y"),
        (objects(1, Plain()), "[1]"),
        ([1, 2, {"x": Place(Plain())}], "[2]['x'].x"),
        ([{"a": [Point(Place({"b": Plain()}), 1)]}], "[0]['a'][0].x.x['b']"),
        ([{1: {2: [Plain()]}}], "[0][1][2][0]"),
        ({"x": {Plain()}}, "['x']"),
        (Owner([Plain()]), "[0]"),
    ],
)
def test_refusal_deep_inside_names_the_place(value, where):
    """An unkeyable value is named by the path to it."""
    with pytest.raises(UnkeyableError) as caught:
        canonical(value)
    assert caught.value.where == where
    with pytest.raises(UnkeyableError) as caught:
        canonical(value, "argument 'a'")
    assert caught.value.where == f"argument 'a'{where}"
    assert str(caught.value).startswith(f"argument 'a'{where}: a test_keys.Plain cannot be keyed")
    with pytest.raises(UnkeyableError) as caught:
        canonical_items(["a", value])
    assert caught.value.where == f"[1]{where}"


def test_refusal_of_a_failing_own_key_tells_the_error():
    """An error of the user's own `__semcache_key__` is told, not raised."""
    with pytest.raises(UnkeyableError, match="no such row") as caught:
        canonical([Owner(LookupError("no such row"))], "argument 'a'")
    assert caught.value.where.startswith("argument 'a'")


def loops() -> dict[str, Any]:
    """Return values that hold themselves, through every kind of container."""
    items: list[Any] = []
    items.append(items)
    inside: list[Any] = []
    inside.append((inside,))
    table: dict[Any, Any] = {}
    table["a"] = table
    mixed: dict[Any, Any] = {}
    mixed[1] = mixed
    ordered: OrderedDict[str, Any] = OrderedDict()
    ordered["a"] = ordered
    proxied: dict[str, Any] = {}
    proxied["a"] = types.MappingProxyType(proxied)
    place = Place()
    place.x = place
    model = Model()
    model.x = model
    pair: list[Any] = []
    pair.append(Point(pair, 1))
    owner = Owner(None)
    owner.told = owner
    member = Owner(None)
    member.told = {member}
    key = Owner(None)
    key.told = {key: 1}
    cells = objects(None)
    cells[0] = cells
    return {
        "list": items, "tuple": inside, "dict": table, "dict of numbers": mixed, "ordered dict": ordered,
        "mapping proxy": proxied, "dataclass": place, "model": model, "named tuple": pair, "own key": owner,
        "set": member, "key of a dict": key, "object array": cells,
    }  # fmt: skip


@pytest.mark.parametrize("name", loops())
def test_canonical_of_a_value_that_holds_itself_is_refused(name):
    """A cycle is an UnkeyableError, not a RecursionError and no endless loop."""
    value = loops()[name]
    with pytest.raises(UnkeyableError, match="nested too deeply, or holds itself"):
        canonical(value, "argument 'a'")
    with pytest.raises(UnkeyableError, match="nested too deeply, or holds itself") as caught:
        canonical_items([1, value])
    assert caught.value.where == "[1]"


@pytest.mark.parametrize("deepen", [lambda value: [value], lambda value: (value,), lambda value: {"a": value}])
@pytest.mark.parametrize("depth", [100, 600, 100_000])
def test_canonical_of_deep_nesting_is_told_or_refused(deepen, depth):
    """Depth alone never raises anything but UnkeyableError; a hundred levels are no depth."""
    value: Any = 1
    for _ in range(depth):
        value = deepen(value)
    try:
        if depth == 100:
            assert canonical(value) != canonical(deepen(value))
            assert canonical_items([value]) == canonical([value])
        else:
            for told in (canonical, lambda value: canonical_items([value])):
                with pytest.raises(UnkeyableError, match="nested too deeply"):
                    told(value)
    finally:
        while not isinstance(
            value, int
        ):  # from the outside in: to free it whole would overflow the interpreter's stack
            value = next(iter(value.values() if isinstance(value, dict) else value))


def test_canonical_after_a_refusal_is_as_before():
    """A refusal leaves nothing behind that could spoil the next key."""
    before = canonical({"a": [1, "\ud800", (2,)]})
    for value in loops().values():
        with pytest.raises(UnkeyableError):
            canonical([1, "x" * 1000, value])
    assert canonical({"a": [1, "\ud800", (2,)]}) == before


class Mixed(enum.Enum):
    ONE = 1

    def __lt__(self, other):
        return NotImplemented


def test_dicts_of_several_kinds_of_keys_nested_deeply_are_keyed_in_linear_time():
    """Keys that turn out late not to be text cost one look each, not two to the depth."""
    calls = []

    class Counting:
        def __semcache_key__(self):
            calls.append(1)
            return 1

    value: Any = Counting()
    for _ in range(40):
        value = {"a": value, Word.ONE: 1}
    canonical(value)
    assert len(calls) < 2**12


@pytest.mark.parametrize("keys", [[Decimal("NaN"), Decimal(1)], [Mixed.ONE, "a"], [1, "a"], [None, 1], [1 + 2j, 2j]])
def test_dict_of_keys_without_an_order_is_keyed(keys):
    """Keys that cannot be compared, or raise when they are, can be keyed all the same."""
    told = {canonical(dict.fromkeys(keys)), canonical(dict.fromkeys(reversed(keys)))}
    assert len(told) == 1


# Own keys, names


def test_own_key_of_a_class_stands_for_the_object():
    """`__semcache_key__` is all that enters, together with the class."""
    one, other = Owner({"a": 1}), Owner({"a": 1})
    one.unseen, other.unseen = 1, object()
    assert canonical(one) == canonical(other)
    assert canonical(one) != canonical(Other({"a": 1}))
    assert canonical(one) != canonical({"a": 1})


def test_own_key_that_keys_other_values_does_not_disturb_the_outer_one():
    """A key may be made inside the making of another."""

    class Nested:
        def __semcache_key__(self):
            return canonical([1, 2, 3]) + canonical("\ud800")

    assert canonical(["a", Nested(), "b"]) == canonical(["a", Nested(), "b"])
    assert canonical([1, 2, 3]) in canonical(["a", Nested(), "b"])


def test_canonical_in_many_threads_is_as_in_one():
    """Threads that make keys at once do not mix them up, not even where a number too wide for msgpack calls us back."""
    values = [
        [number, str(number), {"a": (number, Owner(2**70 + number))}, *range(2**70, 2**70 + 5)] for number in range(99)
    ]
    wanted = [canonical(value) for value in values]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(canonical, values * 20)) == wanted * 20
    finally:
        sys.setswitchinterval(before)


def test_flags_numbered_anew_are_keyed_anew():
    """A combination is not taken for the one that had its number in another version of its class."""
    before, after = enum.Flag("Rights", "READ WRITE"), enum.Flag("Rights", "WRITE READ")
    assert canonical(before(3)) == canonical(before.READ | before.WRITE)
    assert canonical(before(3)) != canonical(after(3))
    assert canonical(before.READ) == canonical(after.READ) != canonical(after.WRITE)


def test_class_made_by_a_function_names_itself_by_its_module():
    """Records of dynamically made classes are known by module and name."""
    made, again, other = (make_dataclass("Made", ["x"]) for _ in range(3))
    made.__module__ = again.__module__ = "elsewhere"
    other.__module__ = "there"
    assert canonical(made(1)) == canonical(again(1)) != canonical(other(1))


# Over processes

SCRIPT = """
import enum, sys
from dataclasses import dataclass
from semcache.keys import canonical, digest, type_name

class Size(enum.Enum):
    SMALL = 1

@dataclass(frozen=True)
class Job:
    name: str
    size: Size

def told():
    words = ["alpha", "beta", "gamma", "delta"]
    job = Job("a", Size.SMALL)
    value = [set(words), frozenset({job, "x", (1, "y")}), {word: hash(word) and 1 for word in words}, {job: Size, 1: 2}]
    return digest(canonical(value)).hex() + " " + type_name(Job)
"""


def in_process(tmp_path, *arguments, seed="0"):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    paths = [str(tmp_path), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(  # noqa: PLW1510 - the assertion shows what it printed
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[0]


def test_keys_under_other_hash_seeds_equal(tmp_path):
    """Keys do not depend on the process or its hash seed."""
    (tmp_path / "jobs.py").write_text(SCRIPT)
    told = {in_process(tmp_path, "-c", "import jobs; print(jobs.told())", seed=seed) for seed in ("0", "1", "77")}
    assert len(told) == 1
    assert told.pop().endswith(" jobs.Job")


def test_keys_of_a_main_module_equal_those_of_its_import(tmp_path):
    """Law 1: `__main__` is named by its file's stem, so that a script, `python -m` and an import agree."""
    (tmp_path / "jobs.py").write_text(SCRIPT + "\nif __name__ == '__main__': print(told())\n")
    imported = in_process(tmp_path, "-c", "import jobs; print(jobs.told())")
    assert in_process(tmp_path, str(tmp_path / "jobs.py")) == imported
    assert in_process(tmp_path, "-m", "jobs") == imported


def test_keys_of_a_spawned_process_equal_its_parent_s(tmp_path):
    """A main module that multiprocessing imports anew, as `__mp_main__`, keeps its name."""
    body = """
import multiprocessing

def ask(queue):
    queue.put(told())

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=ask, args=(queue,))
    process.start()
    child = queue.get(timeout=50)
    process.join()
    print(child == told(), child)
"""
    (tmp_path / "jobs.py").write_text(SCRIPT + body)
    assert in_process(tmp_path, str(tmp_path / "jobs.py")).startswith("True")


def test_package_run_as_main_is_named_as_the_package(tmp_path):
    """`python -m package` names its module as the package."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "__init__.py").write_text("")
    (tmp_path / "work" / "__main__.py").write_text(SCRIPT + "\nprint(told())\n")
    assert in_process(tmp_path, "-m", "work").endswith(" work.Job")


def test_keys_typed_at_a_prompt_are_made(tmp_path):
    """Without a file there is no better name than `__main__`."""
    assert in_process(tmp_path, "-c", SCRIPT + "\nprint(told())").endswith(" __main__.Job")
