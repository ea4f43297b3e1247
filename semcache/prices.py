"""What tokens cost: the table of prices, and the price of a call that was made, or would have been made now.

Laws:
- nothing is fetched and nothing guessed: a model that stands in no table has no price;
- the packaged table is read when the first price is asked for, never at import (law 13); an owner's own is checked
  where the cache is made;
- a hit saves no more than its call would have cost now: what the provider discounts by itself is nobody's saving.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from semcache.errors import ConfigurationError
from semcache.model import Usage
from semcache.ttl import seconds

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
Kind = Literal["none", "automatic", "recorded"]

_MILLION = 1_000_000
_PRICES = ("input", "cached_input", "cache_write", "output")
_RULE = ("discount", "from_tokens", "step_tokens", "lasts")
# By what a name of a model may end that says which release it is.
_RELEASE = re.compile(r"[-@](?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MOST = 1e9


@dataclass(frozen=True, slots=True)
class Discount:
    """Which part of a prompt that is asked again its provider would have discounted, for `lasts` seconds."""

    kind: Kind = "none"
    from_tokens: int = 0
    step_tokens: int = 1
    lasts: float = 0.0

    def tokens(self, usage: Usage, age: float) -> int:
        """Return how many tokens of the prompt of an answer, loaded `age` seconds ago, would be read from its cache."""
        if self.kind == "none" or age > self.lasts:
            return 0
        if self.kind == "recorded":
            return usage.cached_tokens + usage.cache_write_tokens
        is_long = usage.prompt_tokens >= self.from_tokens
        return usage.prompt_tokens - usage.prompt_tokens % self.step_tokens if is_long else 0


@dataclass(frozen=True, slots=True)
class Price:
    """A model's prices for a million tokens, `as_of` a day, "2026-08-05", and how its provider discounts prompts."""

    input: float
    cached_input: float
    cache_write: float
    output: float
    provider: str
    as_of: str
    discount: Discount

    def discounted(self, usage: Usage, age: float) -> int:
        """Return how many tokens of its prompt a call that is answered now would have had at the cached-token price."""
        return self.discount.tokens(usage, age) if self.cached_input != self.input else 0

    def of(self, usage: Usage) -> float:
        """Return what a call cost, as its own usage tells."""
        return self._sum(usage, usage.cached_tokens, usage.cache_write_tokens)

    def now(self, usage: Usage, cached: int) -> float:
        """Return what the call would cost now, with so many tokens of the prompt at the cached-token price."""
        return self._sum(usage, cached, 0)

    def _sum(self, usage: Usage, cached: int, written: int) -> float:
        whole = usage.prompt_tokens - cached - written
        told = whole * self.input + cached * self.cached_input + written * self.cache_write
        return (told + usage.completion_tokens * self.output) / _MILLION


class Prices:
    """The packaged table, and an owner's own laid over it: the path of a TOML file, or the same as a mapping.

    A model of the owner's takes the place of ours of that name. Where his currency is another, none of our prices are
    used. Raises ConfigurationError, which names the field and the mend, for a table that is wrong.
    """

    def __init__(self, own: Source | None = None) -> None:
        self._own = None if own is None else _Table(*_read(own))
        self._models: dict[str, Price] | None = None
        self._currency = ""

    @property
    def currency(self) -> str:
        """The currency of all prices, "USD"."""
        self._all()
        return self._currency

    def of(self, model: str) -> Price | None:
        """Return a model's price; None where it has none.

        Its name stands in the table as it is, or without the date of its release or "-latest", and in either case
        without "provider/" before it.
        """
        if not model:
            return None
        models = self._all()
        provider, _, bare = model.rpartition("/")
        for name in (model, bare) if provider else (model,):
            price = models.get(name) or models.get(_RELEASE.sub("", name))
            if price is not None and (name == model or price.provider == provider):
                return price
        return None

    def dated(self, price: Price | None = None) -> str:
        """Return the currency and day of a price, "USD 2026-08-05"; of them all the oldest day."""
        days = [price] if price is not None else list(self._all().values())
        return f"{self.currency} {min((one.as_of for one in days), default='')}".strip()

    def _all(self) -> dict[str, Price]:
        if self._models is None:
            ours, own = _Table(*_packaged()), self._own
            models = ours.models({})
            if own is None:
                self._currency = ours.currency
            else:
                self._currency = own.currency or ours.currency
                models = models if self._currency == ours.currency else {}
                models |= own.models(ours.rules)
            self._models = models
        return self._models


class _Table:
    """A table that was read and checked; `where` is what its errors begin with."""

    def __init__(self, told: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._known(told, "", ("currency", "providers"))
        self.currency = told.get("currency", "")
        if self.currency and not (isinstance(self.currency, str) and _CURRENCY.fullmatch(self.currency)):
            self._refuse("currency", 'is a code of three letters, as "USD"', self.currency)
        self.rules: dict[str, Discount | None] = {}
        self._days: dict[str, str] = {}
        self._tokens: dict[str, tuple[str, dict[str, float]]] = {}
        for name, provider in self._mapping(told.get("providers", {}), "providers").items():
            self._provider(str(name), self._mapping(provider, f"providers.{name}"))

    def _provider(self, name: str, told: Mapping[str, Any]) -> None:
        field = f"providers.{name}"
        self._known(told, field, ("as_of", "models", *_RULE))
        self._days[name] = self._day(told.get("as_of"), f"{field}.as_of")
        self.rules[name] = self._rule(told, field) if any(one in told for one in _RULE) else None
        for model, prices in self._mapping(told.get("models", {}), f"{field}.models").items():
            at = f"{field}.models.{model}"
            if model in self._tokens:
                other = self._tokens[model][0]
                raise ConfigurationError(
                    f"{self._where}: the model {model!r} stands under {other} and {name}: leave one of them out"
                )
            self._known(self._mapping(prices, at), at, _PRICES)
            if "input" not in prices:
                self._refuse(f"{at}.input", "is missing; it is the price of a million tokens of prompt", None)
            self._tokens[str(model)] = name, {one: self._number(prices[one], f"{at}.{one}") for one in prices}

    def _rule(self, told: Mapping[str, Any], field: str) -> Discount:
        kind = told.get("discount", "none")
        if kind not in ("none", "automatic", "recorded"):
            self._refuse(f"{field}.discount", 'is "none", "automatic" or "recorded"', kind)
        numbers = []
        for name, least in (("from_tokens", 0), ("step_tokens", 1)):
            number = told.get(name, least)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                self._refuse(f"{field}.{name}", f"is a whole number, at least {least}", number)
            numbers.append(number)
        if kind != "none" and "lasts" not in told:
            self._refuse(f"{field}.lasts", f'is missing; with discount = "{kind}" it says how long, as "5m"', None)
        lasts = seconds(told["lasts"], f"{self._where}: {field}.lasts") if "lasts" in told else 0.0
        return Discount(kind, numbers[0], numbers[1], lasts)

    def models(self, rules: Mapping[str, Discount | None]) -> dict[str, Price]:
        """Return the prices by model; `rules` are of providers whose rule this table does not tell."""
        made = {}
        for model, (provider, told) in self._tokens.items():
            rule = self.rules[provider] or rules.get(provider) or Discount()
            made[model] = Price(
                told["input"], told.get("cached_input", told["input"]), told.get("cache_write", told["input"]),
                told.get("output", 0.0), provider, self._days[provider], rule,
            )  # fmt: skip
        return made

    def _day(self, told: object, field: str) -> str:
        if isinstance(told, date):
            return told.isoformat()[:10]
        if not isinstance(told, str) or not _DAY.fullmatch(told):
            self._refuse(field, "is the day on which these prices were last checked, as 2026-08-05", told)
        return told

    def _number(self, told: object, field: str) -> float:
        if isinstance(told, bool) or not isinstance(told, int | float) or not (isfinite(told) and 0 <= told <= _MOST):
            self._refuse(field, "is a number from 0 on, the price of a million tokens", told)
        return float(told)

    def _mapping(self, told: object, field: str) -> Mapping[str, Any]:
        if not isinstance(told, Mapping):
            self._refuse(field, "is a table", told)
        return told

    def _known(self, told: Mapping[str, Any], field: str, names: tuple[str, ...]) -> None:
        for name in told:
            if name not in names:
                at = f"{field}.{name}" if field else str(name)
                raise ConfigurationError(f"{self._where}: {at}: there is no such field; there are {', '.join(names)}")

    def _refuse(self, field: str, expected: str, told: object) -> NoReturn:
        got = "" if told is None else f"; got {told!r}"
        raise ConfigurationError(f"{self._where}: {field} {expected}{got}")


def _read(own: Source) -> tuple[Mapping[str, Any], str]:
    """Return an owner's table and the name by which its errors call it. Raises ConfigurationError."""
    import tomllib

    if isinstance(own, Mapping):
        return own, "prices"
    if not isinstance(own, str | os.PathLike):
        raise ConfigurationError(f"prices is the path of a TOML file, or the same as a mapping; got {own!r}")
    where = str(own)
    try:
        return tomllib.loads(Path(own).read_text(encoding="utf-8")), where
    except OSError as error:
        raise ConfigurationError(
            f"{where}: the table of prices cannot be read ({error.strerror}): give the path of a TOML file"
        ) from error
    except ValueError as error:  # TOMLDecodeError, which names the line, or bytes that are no text
        raise ConfigurationError(f"{where}: no TOML: {error}") from error


def _packaged() -> tuple[Mapping[str, Any], str]:
    import tomllib
    from importlib.resources import files

    return tomllib.loads(files("semcache").joinpath("prices.toml").read_text(encoding="utf-8")), "prices.toml"
