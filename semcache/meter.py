"""What lookups saved and what loads cost, summed by day (UTC), stage, model and, if asked, tenant.

A sum has a name in the store, `MEASURE|STAGE|MODEL`, and `|TENANT` behind it where tenants are told apart. Beside the
measures stands `priced_USD_20260805|...`: how many calls of a row were priced, in what currency, at what day's prices.

Laws:
- nothing is counted in a lookup: lookups are noted, and come here many at once, in the recorder's lock;
- money is summed where a call is counted, at the prices known then; what has no price is counted, never guessed;
- what is saved is net: a load that no caller asked for is taken off it, and so is the time that the lookups took;
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
from semcache.prices import Price, Prices
from semcache.ttl import Duration, seconds

MOST_ROWS = 300
MOST_DAYS = 400
DAY_SECONDS = 86_400
LONGEST_NAME = 200
OTHER = "other"
# What a policy that learns has counted begins with this; none of it is usage.
TRUST = "trust|"
COLUMNS = ("day", "stage", "model", "tenant")
MEASURES = (
    "hits", "near_hits", "loads", "load_errors", "saved_prompt_tokens", "saved_completion_tokens",
    "saved_cached_tokens", "saved_seconds", "saved_money", "spent_prompt_tokens", "spent_completion_tokens",
    "spent_cached_tokens", "spent_seconds", "spent_money", "unpriced_hits", "unpriced_loads",
)  # fmt: skip
(
    HITS, NEAR_HITS, LOADS, LOAD_ERRORS, SAVED_PROMPT, SAVED_COMPLETION, SAVED_CACHED, SAVED_SECONDS, SAVED_MONEY,
    SPENT_PROMPT, SPENT_COMPLETION, SPENT_CACHED, SPENT_SECONDS, SPENT_MONEY, UNPRICED_HITS, UNPRICED_LOADS,
) = range(len(MEASURES))  # fmt: skip
# Behind the measures of a row: how many of its calls the table of prices has priced.
_PRICED = len(MEASURES)
_FRACTIONS = frozenset({"saved_seconds", "saved_money", "spent_seconds", "spent_money"})
_PLACES = 9
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_PRICED_BY = re.compile(r"priced_([A-Z]{3})_(\d{4})(\d{2})(\d{2})", re.ASCII)
_NAME = re.compile(r"(\w+)\|([^|]*)\|([^|]*)(?:\|([^|]*))?", re.ASCII)
_PLAIN = " /:@.,+=()"  # beside letters, digits and _-~: what may stand in a name as it is

Row: TypeAlias = tuple[str, str, str]
Amounts: TypeAlias = dict[str, float]


@dataclass(slots=True)
class UsageRow:
    """What calls of one kind saved and cost; a column that was not asked for is None.

    `hits` are exact ones, `near_hits` near ones; `load_errors` are among the `loads`. Spent is what loads cost, in
    seconds, tokens and money. Saved is what the hits would have cost now, net of the loads that no caller asked for;
    `saved_seconds` is net of the time that all lookups took. Of the prompt tokens `saved_cached_tokens` would have
    been, and `spent_cached_tokens` were, read from the provider's prompt cache. `unpriced_hits` and `unpriced_loads`
    are left out of the money; `prices` are currency and day of the prices that made it, as "USD 2026-08-05".
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
    saved_cached_tokens: int = 0
    saved_seconds: float = 0.0
    saved_money: float = 0.0
    spent_prompt_tokens: int = 0
    spent_completion_tokens: int = 0
    spent_cached_tokens: int = 0
    spent_seconds: float = 0.0
    spent_money: float = 0.0
    unpriced_hits: int = 0
    unpriced_loads: int = 0
    prices: tuple[str, ...] = ()


class Meter:
    """The sums of one process that no store has yet; `now` gives seconds since 1970, `tenants` tells them apart."""

    def __init__(
        self, now: Callable[[], float] = time.time, *, tenants: bool = False, prices: Prices | None = None
    ) -> None:
        self.tenants = tenants
        self.prices = prices or Prices()
        self.price_of = self.prices.of
        self._now = now
        self._sums: dict[str, dict[Row, list[float]]] = {}
        # What was counted here, and is no more, by model.
        self._past: dict[str, list[float]] = {}
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
            self._pass(self._sums.pop(min(self._sums)))

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
        return day.setdefault(row, [0] * (_PRICED + 1))

    def _pass(self, rows: dict[Row, list[float]]) -> None:
        """Remember for `totals` what is counted here no more."""
        for (_, model, _), sums in rows.items():
            past = self._past_of(model)
            for at, amount in enumerate(sums):
                past[at] += amount

    def _past_of(self, model: str) -> list[float]:
        if model not in self._past and len(self._past) >= MOST_ROWS:
            model = OTHER
        return self._past.setdefault(model, [0] * (_PRICED + 1))

    def saved(
        self, sums: list[float], price: Price | None, usage: Usage | None, seconds: float, age: float, *,
        is_near: bool, count: int = 1,
    ) -> None:  # fmt: skip
        """Count a hit on an answer that was loaded `age` seconds ago, and what its call would have cost now.

        Several are counted at once where nobody knows what they used.
        """
        sums[NEAR_HITS if is_near else HITS] += count
        sums[SAVED_SECONDS] += seconds
        if usage is None:
            if price is not None:
                sums[UNPRICED_HITS] += count
            return
        sums[SAVED_PROMPT] += usage.prompt_tokens
        sums[SAVED_COMPLETION] += usage.completion_tokens
        if usage.money:
            sums[SAVED_MONEY] += usage.money
        elif price is not None:
            cached = price.discounted(usage, age)
            sums[SAVED_CACHED] += cached
            sums[SAVED_MONEY] += price.now(usage, cached)
            sums[_PRICED] += 1
        else:
            sums[UNPRICED_HITS] += has_tokens(usage)

    def spent(
        self,
        sums: list[float],
        price: Price | None,
        usage: Usage | None,
        seconds: float,
        *,
        failed: bool,
        is_ours: bool,
    ) -> None:
        """Count a load, and what it cost; one that is ours, that no caller asked for, takes it off what was saved."""
        sums[LOADS] += 1
        sums[LOAD_ERRORS] += failed
        sums[SPENT_SECONDS] += seconds
        if usage is None:
            sums[UNPRICED_LOADS] += price is not None and not failed
            return
        money = usage.money
        if not money and price is not None:
            money = price.of(usage)
            sums[_PRICED] += 1
        elif not money:
            sums[UNPRICED_LOADS] += has_tokens(usage)
        told = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, money
        for at, amount in zip((SPENT_PROMPT, SPENT_COMPLETION, SPENT_CACHED, SPENT_MONEY), told, strict=True):
            sums[at] += amount
        if is_ours:
            for at, amount in zip((SAVED_PROMPT, SAVED_COMPLETION, SAVED_CACHED, SAVED_MONEY), told, strict=True):
                sums[at] -= amount

    def took(self, sums: list[float], seconds: float) -> None:
        """Take off what was saved the time of a lookup that found nothing."""
        sums[SAVED_SECONDS] -= seconds

    def totals(self) -> list[UsageRow]:
        """Return what was ever counted here, a row for each model."""
        rows: dict[str, UsageRow] = {}
        told = [(model, sums) for counted in self._sums.values() for (_, model, _), sums in counted.items()]
        for model, sums in [*self._past.items(), *told]:
            row = rows.setdefault(model, UsageRow(model=model))
            for measure, amount in zip(MEASURES, sums, strict=False):
                add(row, measure, amount)
            if sums[_PRICED]:
                add(row, self._priced_by(model), sums[_PRICED])
        return [_rounded(row) for row in rows.values()]

    def counted(self) -> dict[str, Amounts]:
        """Return what is counted here, by day and name."""
        told: dict[str, Amounts] = {}
        for day, rows in self._sums.items():
            named: Amounts = {}
            for row, sums in rows.items():
                for at, amount in enumerate(sums):
                    if amount:
                        name = name_of(MEASURES[at] if at < _PRICED else self._priced_by(row[1]), row)
                        named[name] = named.get(name, 0.0) + amount
            if named:
                told[day] = named
        return told

    def _priced_by(self, model: str) -> str:
        """Return the measure under which the calls of a model that were priced are counted in the store."""
        return "priced_" + self.prices.dated(self.price_of(model)).replace(" ", "_").replace("-", "")

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
                at = _PRICED if told[0] not in MEASURES else MEASURES.index(told[0])
                sums = rows.get(told[1]) or self._new(rows, told[1])
                sums[at] += amount
                self._past_of(told[1][1])[at] -= amount

    def forget(self) -> None:
        """Count from nothing."""
        for rows in self._sums.values():
            self._pass(rows)
        self._sums = {}
        self.turn()


def model_of(model: str, usage: Usage | None) -> str:
    """Return on which model a call is booked: its own, or else the one that its usage names."""
    return model or ("" if usage is None else usage.model)


def has_tokens(usage: Usage) -> bool:
    """Say whether there is something in it that has a price."""
    return bool(usage.prompt_tokens or usage.completion_tokens)


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
    if match is None or not (match[1] in MEASURES or _PRICED_BY.fullmatch(match[1])):
        return None
    stage, model, tenant = (unquote(one or "", errors="surrogatepass") for one in match.groups()[1:])
    return match[1], (stage, model, tenant)


def overflow(name: str) -> str:
    """Return the name under which a store counts what it has no more room for under its own.

    A policy's counts keep theirs: one that is lost is a wrong label or an alarm that nobody hears of. It bounds them
    itself (`semcache.policy.learner`).
    """
    if name.startswith(TRUST):
        return name
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
        _rounded(row)
    return [rows[at] for at in sorted(rows)]


def _rounded(row: UsageRow) -> UsageRow:
    row.prices = tuple(sorted(row.prices))
    for measure in MEASURES:
        amount = getattr(row, measure)  # a sum of many floats: what is past its ninth place is their rounding
        setattr(row, measure, round(amount, _PLACES) if measure in _FRACTIONS else round(amount))
    return row


def add(row: UsageRow, measure: str, amount: float) -> None:
    """Add to one measure of a row, or to the prices it was made with."""
    by = _PRICED_BY.fullmatch(measure)
    if by is not None:
        told = "{} {}-{}-{}".format(*by.groups())
        row.prices = row.prices if told in row.prices else (*row.prices, told)
        return
    setattr(row, measure, getattr(row, measure) + amount)


def total_of(rows: Iterable[UsageRow]) -> UsageRow:
    """Return the sums of all rows."""
    total = UsageRow()
    for row in rows:
        for measure in MEASURES:
            add(total, measure, getattr(row, measure))
        total.prices = tuple(sorted({*total.prices, *row.prices}))
    return total
