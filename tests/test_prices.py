"""Prices: the packaged table, an owner's own laid over it, and what a call cost, or would have cost now."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import pytest

from semcache.errors import ConfigurationError
from semcache.model import Usage
from semcache.prices import Prices

# Prices that are easily reckoned with; the packaged ones change.
TABLE = {
    "currency": "EUR",
    "providers": {
        "auto": {
            "as_of": "2026-01-02", "discount": "automatic", "from_tokens": 1024, "step_tokens": 128, "lasts": "10m",
            "models": {"large": {"input": 2.5, "cached_input": 1.25, "output": 10}, "plain": {"input": 1, "output": 2}},
        },
        "told": {
            "as_of": date(2026, 3, 4), "discount": "recorded", "lasts": "5m",
            "models": {"s": {"input": 3, "cached_input": 0.3, "cache_write": 3.75, "output": 15}},
        },
        "never": {"as_of": "2026-05-06", "models": {"own": {"input": 4, "cached_input": 1}, "v": {"input": 0.02}}},
    },
}  # fmt: skip
PRICES = Prices(TABLE)


@pytest.mark.parametrize(
    ("model", "usage", "money"),
    [
        ("large", Usage(1_000_000), 2.5),
        ("large", Usage(0, 1_000_000), 10.0),
        # 976 at 2.50, 1,024 at 1.25, 100 at 10 are 2,440 + 1,280 + 1,000 millionths.
        ("large", Usage(2000, 100, cached_tokens=1024), 0.00472),
        # 1,000 at 3, 1,000 at 0.30, 3,000 at 3.75, 200 at 15 are 3,000 + 300 + 11,250 + 3,000 millionths.
        ("s", Usage(5000, 200, cached_tokens=1000, cache_write_tokens=3000), 0.01755),
        # Without a price of its own what is cached or written costs as much as any.
        ("plain", Usage(1000, cached_tokens=400, cache_write_tokens=500), 0.001),
        ("v", Usage(1000), 0.00002),
    ],
)
def test_load_costs_what_its_own_usage_says(model, usage, money):
    """A load's prompt costs the plain, the cached or the written price, as the provider told."""
    assert PRICES.of(model).of(usage) == pytest.approx(money, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "usage", "age", "cached", "money"),
    [
        # Automatic: 15 steps of 128 are 1,920 at 1.25, 80 are at 2.50, 100 at 10.
        ("large", Usage(2000, 100), 60, 1920, 0.0036),
        ("large", Usage(2000, 100), 600, 1920, 0.0036),
        ("large", Usage(2000, 100), 600.1, 0, 0.006),
        ("large", Usage(1024, 100), 0, 1024, 0.00228),
        ("large", Usage(1023, 100), 0, 0, 0.0035575),
        # What the load was given from another's prompt is more than that only by chance, and is not what counts.
        ("large", Usage(2000, 100, cached_tokens=1024), 601, 0, 0.006),
        # Recorded: 4,000 at 0.30, 1,000 at 3, 200 at 15; a repeat reads what the load wrote.
        ("s", Usage(5000, 200, cached_tokens=1000, cache_write_tokens=3000), 300, 4000, 0.0072),
        ("s", Usage(5000, 200, cached_tokens=1000, cache_write_tokens=3000), 300.1, 0, 0.018),
        ("s", Usage(5000, 200), 1, 0, 0.018),
        # None: never; nor where a model has no price for it.
        ("own", Usage(5000, cached_tokens=5000), 1, 0, 0.02),
        ("plain", Usage(5000), 1, 0, 0.005),
    ],
)
def test_hit_saves_what_the_call_would_cost_now(model, usage, age, cached, money):
    """The prompt is at the cached-token price as far, and as long, as the provider would have discounted it."""
    price = PRICES.of(model)
    assert price.discounted(usage, age) == cached
    assert price.now(usage, cached) == pytest.approx(money, rel=1e-12)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("openai/gpt-4o-2024-08-06", "gpt-4o"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("anthropic/claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("text-embedding-3-small", "text-embedding-3-small"),
        # A release that has a price of its own.
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
    ],
)
def test_model_is_found_without_release_and_provider(asked, found):
    """The exact name first, then without what names its release; "provider/" may stand before it."""
    prices = Prices()
    assert prices.of(asked) is prices.of(found) is not None


def test_release_of_its_own_price_is_not_its_models():
    """What is found by its exact name has that price."""
    prices = Prices()
    assert prices.of("gpt-4o-2024-05-13").input == 2 * prices.of("gpt-4o").input


@pytest.mark.parametrize(
    "model",
    [
        "", "gpt-9", "gpt-4o-audio", "ft:gpt-4o:me::1", "my/gpt-4o", "anthropic/gpt-4o", "all-MiniLM-L6-v2",
        "gpt-4o-2024", "/gpt-4o", "openai/",
    ],
)  # fmt: skip
def test_unknown_model_has_no_price(model):
    """Nothing is guessed by a likeness of names, nor of another provider's model."""
    assert Prices().of(model) is None


def test_packaged_table_is_in_order():
    """Each of our prices has a day that is past; a cached token costs no more than another, a written one no less."""
    prices = Prices()
    assert prices.currency == "USD"
    assert {price.provider for price in prices._all().values()} == {"openai", "anthropic"}
    for model, price in prices._all().items():
        assert date(2026, 1, 1) <= date.fromisoformat(price.as_of) <= date.today(), model  # noqa: DTZ011
        assert 0 < price.cached_input <= price.input <= price.cache_write, model
        assert price.output > price.input or "embedding" in model, model
        assert price.discount.kind == {"openai": "automatic", "anthropic": "recorded"}[price.provider]
    assert prices.dated() == f"USD {min(price.as_of for price in prices._all().values())}"
    assert prices.dated(prices.of("claude-opus-4-1")) == f"USD {prices.of('claude-opus-4-1').as_of}"


def test_own_table_lies_over_ours(tmp_path):
    """A model of the owner's takes the place of ours; what he does not name is ours, rule of the discount included."""
    path = tmp_path / "prices.toml"
    path.write_text(
        '[providers.openai]\nas_of = 2026-11-01\nmodels."gpt-4o" = { input = 2, cached_input = 1, output = 8 }\n'
        '[providers.here]\nas_of = "2026-10-01"\nmodels.llama = { input = 0.5 }\n'
    )
    ours, prices = Prices(), Prices(path)
    mine = prices.of("gpt-4o-2024-08-06")
    assert (mine.input, mine.cached_input, mine.output, mine.as_of) == (2.0, 1.0, 8.0, "2026-11-01")
    assert mine.discount == ours.of("gpt-4o").discount
    assert (prices.of("llama").input, prices.of("llama").output) == (0.5, 0.0)
    assert prices.of("here/llama") is prices.of("llama")
    assert prices.of("gpt-4o-mini") == ours.of("gpt-4o-mini")
    assert prices.currency == "USD"
    assert (prices.of("llama").discounted(Usage(5000), 1), prices.dated(mine)) == (0, "USD 2026-11-01")
    assert Prices(str(path)).of("llama") == prices.of("llama")


def test_other_currency_leaves_none_of_our_prices():
    """Amounts in two currencies are never added up."""
    assert PRICES.currency == "EUR"
    assert PRICES.of("gpt-4o") is None
    assert PRICES.dated(PRICES.of("s")) == "EUR 2026-03-04"
    assert PRICES.dated() == "EUR 2026-01-02"
    assert Prices({"currency": "EUR"}).dated() == "EUR"


def own(**provider):
    return {"providers": {"mine": {"as_of": "2026-01-01", **provider}}}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (7, "path of a TOML file"),
        ("no/such.toml", r"no/such\.toml: the table of prices cannot be read"),
        ({"models": {}}, "models: there is no such field; there are currency, providers"),
        ({"currency": "euro"}, "currency is a code of three letters"),
        ({"providers": []}, "providers is a table"),
        ({"providers": {"mine": {}}}, r"providers\.mine\.as_of is the day"),
        (own(as_of="yesterday"), r"providers\.mine\.as_of is the day .*'yesterday'"),
        (own(price=3), r"providers\.mine\.price: there is no such field"),
        (own(models={"m": 3}), r"providers\.mine\.models\.m is a table; got 3"),
        (own(models={"m": {"output": 3}}), r"providers\.mine\.models\.m\.input is missing"),
        (own(models={"m": {"input": -1}}), r"models\.m\.input is a number from 0 on.*-1"),
        (own(models={"m": {"input": "3"}}), r"models\.m\.input is a number"),
        (own(models={"m": {"input": True}}), r"models\.m\.input is a number"),
        (own(models={"m": {"input": float("nan")}}), r"models\.m\.input is a number"),
        (own(models={"m": {"input": 1, "cached": 1}}), r"models\.m\.cached: there is no such field; there are input"),
        (own(discount="half"), r'discount is "none", "automatic" or "recorded"'),
        (own(discount="recorded"), r"providers\.mine\.lasts is missing"),
        (own(discount="recorded", lasts="soon"), r"providers\.mine\.lasts must be"),
        (own(discount="automatic", lasts="5m", step_tokens=0), "step_tokens is a whole number, at least 1"),
        (own(discount="automatic", lasts="5m", from_tokens=1.5), "from_tokens is a whole number"),
        (
            {"providers": {one: {"as_of": "2026-01-01", "models": {"m": {"input": 1}}} for one in "ab"}},
            "the model 'm' stands under a and b: leave one of them out",
        ),
    ],
)
def test_wrong_table_is_refused_where_it_is_given(table, told):
    """The error names the field, what is wrong with it and the mend."""
    with pytest.raises(ConfigurationError, match=told):
        Prices(table)


@pytest.mark.parametrize(("content", "told"), [(b"[providers\n", "line 1"), (b"\xff", "no TOML")])
def test_file_that_is_no_toml_is_refused_by_its_line(tmp_path, content, told):
    """What cannot be read says where."""
    path = tmp_path / "prices.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told) as error:
        Prices(path)
    assert str(path) in str(error.value)


def test_table_is_read_at_the_first_price(tmp_path):
    """Law 13: an import and a cache without prices of its own read no table."""
    code = (
        "import sys, semcache; cache = semcache.Cache('n'); assert 'tomllib' not in sys.modules; "
        "cache.get_or_load(cache.request(1, model='gpt-4o'), lambda: 1); cache.usage(); assert 'tomllib' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
