"""What lookups saved and what loads cost, summed by day (UTC), stage, model and, if asked, tenant.

A sum has a name in the store, `MEASURE|STAGE|MODEL`, and `|TENANT` behind it where tenants are told apart.

Laws:
- nothing is counted in a lookup: lookups are noted, and come here many at once, in the recorder's lock;
- what is taken for the store is counted here no more, and is put back where the store could not take it;
- the names of a day are bounded: past `MOST_ROWS` whatever has a new name is counted as "other".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote

from semcache.errors import ConfigurationError
from semcache.model import Usage
from semcache.ttl import Duration, seconds

MOST_ROWS = 300
MOST_DAYS = 400
DAY_SECONDS = 86_400
LONGEST_NAME = 200
OTHER = "other"
COLUMNS = ("day", "stage", "model", "tenant")
MEASURES = (
    "hits", "near_hits", "loads", "load_errors", "saved_prompt_tokens", "saved_completion_tokens", "saved_seconds",
    "saved_money", "spent_prompt_tokens", "spent_completion_tokens", "spent_seconds", "spent_money",
)  # fmt: skip
(
    HITS, NEAR_HITS, LOADS, LOAD_ERRORS, SAVED_PROMPT, SAVED_COMPLETION, SAVED_SECONDS, SAVED_MONEY, SPENT_PROMPT,
    SPENT_COMPLETION, SPENT_SECONDS, SPENT_MONEY,
) = range(len(MEASURES))  # fmt: skip
_FRACTIONS = frozenset({"saved_seconds", "saved_money", "spent_seconds", "spent_money"})
_PLACES = 9
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NAME = re.compile(r"(\w+)\|([^|]*)\|([^|]*)(?:\|([^|]*))?", re.ASCII)
_PLAIN = " /:@.,+=()"  # beside letters, digits and _-~: what may stand in a name as it is

Row: TypeAlias = tuple[str, str, str]
Amounts: TypeAlias = dict[str, float]


@dataclass(slots=True)
class UsageRow:
    """What calls of one kind saved and cost; a column that was not asked for is None.

    `hits` are exact ones, `near_hits` near ones; `load_errors` are among the `loads`. Saved is what the hits' own loads
    had cost, spent is what loads cost, in seconds, tokens, and money in its owner's unit. `saved_seconds` is net of the
    time that the lookups took.
    """

    day: str | None = None
    stage: str | None = None
    model: str | None = None
    tenant: str | None = None
    hits: int = 0
    near_hits: int = 0
    loads: int = 0
    load_errors: int = 0
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0
    saved_seconds: float = 0.0
    saved_money: float = 0.0
    spent_prompt_tokens: int = 0
    spent_completion_tokens: int = 0
    spent_seconds: float = 0.0
    spent_money: float = 0.0


class Meter:
    """The sums of one process that no store has yet; `now` gives seconds since 1970, `tenants` tells them apart."""

    def __init__(self, now: Callable[[], float] = time.time, *, tenants: bool = False) -> None:
        self.tenants = tenants
        self._now = now
        self._sums: dict[str, dict[Row, list[float]]] = {}
        self.turn()

    @property
    def is_over(self) -> bool:
        """Whether the day whose sums these are is over: what was noted so far is to be summed before what comes."""
        return not self._begins <= self._now() < self._begins + DAY_SECONDS

    def turn(self) -> None:
        """Count on the day that it is from here on."""
        now = self._now()
        self._begins = now - now % DAY_SECONDS
        self._today = self._sums.setdefault(day_of(now), {})
        if len(self._sums) > MOST_DAYS:
            del self._sums[min(self._sums)]

    def sums_of(self, stage: str, model: str, tenant: str) -> list[float]:
        """Return the sums of a row of today, in the order of MEASURES, to be added to."""
        row = (stage, model, tenant if self.tenants else "")
        found = self._today.get(row)
        if found is None:
            found = self._new(self._today, row)
        return found

    @staticmethod
    def _new(day: dict[Row, list[float]], row: Row) -> list[float]:
        if len(day) >= MOST_ROWS:
            row = (OTHER, OTHER, OTHER)
        return day.setdefault(row, [0] * len(MEASURES))

    def saved(
        self, sums: list[float], usage: Usage | None, seconds: float, *, is_near: bool, count: int = 1
    ) -> None:  # fmt: skip
        """Count a hit, or several, and what loading had cost."""
        sums[NEAR_HITS if is_near else HITS] += count
        sums[SAVED_SECONDS] += seconds
        if usage is not None:
            sums[SAVED_PROMPT] += usage.prompt_tokens
            sums[SAVED_COMPLETION] += usage.completion_tokens
            sums[SAVED_MONEY] += usage.money

    def spent(self, sums: list[float], usage: Usage | None, seconds: float, *, failed: bool) -> None:
        """Count a load, and what it cost."""
        sums[LOADS] += 1
        sums[LOAD_ERRORS] += failed
        sums[SPENT_SECONDS] += seconds
        if usage is not None:
            sums[SPENT_PROMPT] += usage.prompt_tokens
            sums[SPENT_COMPLETION] += usage.completion_tokens
            sums[SPENT_MONEY] += usage.money

    def counted(self) -> dict[str, Amounts]:
        """Return what is counted here, by day and name."""
        told: dict[str, Amounts] = {}
        for day, rows in self._sums.items():
            named: Amounts = {}
            for row, sums in rows.items():
                for measure, amount in zip(MEASURES, sums, strict=True):
                    if amount:
                        named[name_of(measure, row)] = named.get(name_of(measure, row), 0.0) + amount
            if named:
                told[day] = named
        return told

    def take(self) -> dict[str, Amounts]:
        """Return what is counted here, by day and name, and count it no more."""
        told = self.counted()
        self.forget()
        return told

    def put_back(self, day: str, amounts: Mapping[str, float]) -> None:
        """Count again what was taken and could not be kept."""
        rows = self._sums.setdefault(day, {})
        for name, amount in amounts.items():
            told = read_name(name)
            if told is not None:
                sums = rows.get(told[1]) or self._new(rows, told[1])
                sums[MEASURES.index(told[0])] += amount

    def forget(self) -> None:
        """Count from nothing."""
        self._sums = {}
        self.turn()


def day_of(seconds_since_1970: float) -> str:
    """Return the day in UTC, "2026-11-27"."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds_since_1970))


def first_day(since: Duration, now: float) -> str:
    """Return the day that `since` names, or the day so long ago. Raises ConfigurationError."""
    if isinstance(since, str) and _DAY.fullmatch(since):
        return since
    return day_of(max(0.0, now - seconds(since, 'since ("30d", or a day, "2026-11-27")')))


def columns_of(by: str | Iterable[str]) -> tuple[str, ...]:
    """Check what rows are to be told apart by. Raises ConfigurationError."""
    columns = (by,) if isinstance(by, str) else tuple(by)
    for column in columns:
        if column not in COLUMNS:
            raise ConfigurationError(f"usage is told by {', '.join(COLUMNS)}; got {column!r}")
    return tuple(dict.fromkeys(columns))


def name_of(measure: str, row: Row) -> str:
    """Return a sum's name in the store."""
    told = [quote(one[:LONGEST_NAME], _PLAIN, errors="surrogatepass") for one in row]
    return "|".join([measure, *(told if told[2] else told[:2])])


def read_name(name: str) -> tuple[str, Row] | None:
    """Return the measure and the row of a name; None for a name that is none of ours."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in MEASURES:
        return None
    stage, model, tenant = (unquote(one or "", errors="surrogatepass") for one in match.groups()[1:])
    return match[1], (stage, model, tenant)


def overflow(name: str) -> str:
    """Return the name under which a store counts what it has no more room for under its own."""
    return "|".join([name.partition("|")[0], OTHER, OTHER, OTHER])


def rows_of(booked: Mapping[tuple[str, str], float], columns: tuple[str, ...]) -> list[UsageRow]:
    """Return what was booked by (day, name) as rows, one for each value of the columns, in their order."""
    rows: dict[tuple[str, ...], UsageRow] = {}
    for (day, name), amount in booked.items():
        told = read_name(name)
        if told is None:
            continue
        values = dict(zip(COLUMNS, (day, *told[1]), strict=True))
        at = tuple(values[column] for column in columns)
        row = rows.get(at)
        if row is None:
            row = rows[at] = UsageRow(**dict(zip(columns, at, strict=True)))  # type: ignore[arg-type]
        add(row, told[0], amount)
    for row in rows.values():
        for measure in MEASURES:
            amount = getattr(row, measure)  # a sum of many floats: what is past its ninth place is their rounding
            setattr(row, measure, round(amount, _PLACES) if measure in _FRACTIONS else round(amount))
    return [rows[at] for at in sorted(rows)]


def add(row: UsageRow, measure: str, amount: float) -> None:
    """Add to one measure of a row."""
    setattr(row, measure, getattr(row, measure) + amount)


def total_of(rows: Iterable[UsageRow]) -> UsageRow:
    """Return the sums of all rows."""
    total = UsageRow()
    for row in rows:
        for measure in MEASURES:
            add(total, measure, getattr(row, measure))
    return total
