"""The money of lookups: priced when they are counted, at their age, by what the provider tells of its prompt cache."""

from __future__ import annotations

import struct

import pytest
from instruments import GUARD
from msgpack import packb

import semcache
from semcache import Usage, meter
from semcache.errors import ConfigurationError, TierError
from semcache.model import Entry, Facets
from semcache.stores import about, header
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.openai import ChatCompletions

# A load of USED is 2,000 at 2.50 and 100 at 10, 0.006; a repeat in ten minutes 1,920 at 1.25 and 80 at 2.50, 0.0036.
PRICES = {
    "currency": "EUR",
    "providers": {
        "auto": {
            "as_of": "2026-01-02", "discount": "automatic", "from_tokens": 1024, "step_tokens": 128, "lasts": "10m",
            "models": {"large": {"input": 2.5, "cached_input": 1.25, "output": 10}},
        },
        "told": {
            "as_of": "2026-03-04", "discount": "recorded", "lasts": "5m",
            "models": {"s": {"input": 3, "cached_input": 0.3, "cache_write": 3.75, "output": 15}},
        },
    },
}  # fmt: skip
USED = Usage(2000, 100)
LONG = semcache.TTL(memory="10d", jitter=0)


@pytest.fixture
def open_priced(open_cache):
    """Make caches that know the prices of this module."""

    def open_one(**settings):
        return open_cache(**({"prices": PRICES, "ttl": LONG} | settings))

    return open_one


def ask(cache, *parts, usage=USED, model="large", **more):
    return cache.get_or_load(cache.request(*parts, model=model, **more), lambda: "answer", usage=lambda _: usage)


def money(cache):
    """What was saved and spent, in millionths."""
    (row,) = cache.usage(by=())
    return round(row.saved_money * 1e6, 6), round(row.spent_money * 1e6, 6)


def test_hit_is_priced_by_its_age(open_priced, clock):
    """A repeat is at the cached-token price while the provider would have discounted it, then at the full one."""
    cache = open_priced()
    ask(cache)
    assert money(cache) == (0, 6000)
    clock.advance(600)
    ask(cache)
    assert money(cache) == (3600, 6000)
    clock.advance(1)
    ask(cache)
    assert money(cache) == (9600, 6000)
    (row,) = cache.usage(by="model")
    assert (row.model, row.saved_prompt_tokens, row.saved_cached_tokens) == ("large", 4000, 1920)
    assert (row.unpriced_hits, row.unpriced_loads, row.prices) == (0, 0, ("EUR 2026-01-02",))


@pytest.mark.parametrize("traced", [False, True])
def test_memory_hit_of_a_function_is_priced_as_of_then(open_priced, clock, traced):
    """It is summed later, with the age that it had; its usage names the model, on which it is booked."""
    cache = open_priced(observers=[lambda event: None] if traced else [])

    @semcache.cached(cache, stage="s", usage=lambda _: Usage(2000, 100, model="large"))
    def answer(question):
        return question

    answer("a")
    clock.advance(60)
    answer("a")
    clock.advance(1000)
    assert money(cache) == (3600, 6000)
    answer("a")
    assert money(cache) == (9600, 6000)
    (row,) = cache.usage()
    assert (row.stage, row.model, row.hits, row.loads) == ("s", "large", 2, 1)


def test_hits_of_many_are_priced_by_their_age(open_priced, clock):
    """Hits that are summed together are priced one by one."""
    cache = open_priced()
    requests = []
    for part in range(3):
        ask(cache, part)
        requests.append(cache.request(part, model="large"))
        clock.advance(400)
    cache.get_or_load_many(requests, None)  # loaded 1,200, 800 and 400 seconds ago
    assert money(cache)[0] == 6000 + 6000 + 3600


def test_calls_are_booked_each_on_its_model(open_priced):
    """Memory hits of one function that are summed in a row may be of several models, one by one or of many together."""
    cache = open_priced()

    @semcache.cached(cache, usage=lambda model: Usage(2000, 100, model=model))
    def answer(model):
        return model

    asked = ["large", "s", "s", "mine"]
    for model in [*asked, *asked]:
        answer(model)
    told = {row.model: (row.loads, row.hits, row.unpriced_hits) for row in cache.usage(by="model")}
    assert told == {"large": (1, 1, 0), "s": (1, 3, 0), "mine": (1, 1, 1)}
    cache.get_or_load_many([answer.request(model) for model in asked], None)
    told = {row.model: (row.loads, row.hits, row.unpriced_hits) for row in cache.usage(by="model")}
    assert told == {"large": (1, 2, 0), "s": (1, 4, 0), "mine": (1, 2, 2)}


def test_prompt_cache_told_with_the_load_prices_load_and_hit(open_priced, clock):
    """What was written costs more at the load, and is read at the hit, while it lasts."""
    cache = open_priced()
    told = Usage(5000, 200, cached_tokens=1000, cache_write_tokens=3000)
    ask(cache, usage=told, model="s")
    clock.advance(300)
    ask(cache, model="s")
    clock.advance(1)
    ask(cache, model="s")
    assert money(cache) == (7200 + 18000, 17550)
    (row,) = cache.usage()
    assert (row.spent_cached_tokens, row.saved_cached_tokens, row.prices) == (1000, 4000, ("EUR 2026-03-04",))
    assert row.saved_prompt_tokens == 10_000


def test_money_of_all_processes_is_summed_in_the_store(open_priced, store, clock):
    """Another process finds the answer, its age and its usage in the store; both their sums stand there."""
    first, second = (open_priced(memory=0, **store) for _ in range(2))
    ask(first)
    assert first.flush(GUARD)
    clock.advance(60)
    ask(second)
    assert semcache.last().tier in store
    ask(second, model="unheard", usage=Usage(1))
    assert second.flush(GUARD)
    for cache in (first, second):
        by_model = {row.model: row for row in cache.usage(by="model")}
        assert round(by_model["large"].saved_money, 9) == 0.0036
        assert (by_model["large"].prices, by_model["unheard"].prices) == (("EUR 2026-01-02",), ())
        assert by_model["unheard"].unpriced_loads == 1
    assert (first.stats().spent_money, first.stats().saved_money) == (0.006, 0.0)
    assert (second.stats().spent_money, second.stats().saved_money) == (0.0, 0.0036)


def test_two_tables_are_both_named(open_cache, tmp_path):
    """Processes with different tables are seen in the row."""
    path = tmp_path / "cache.db"
    dollars = {"currency": "USD", "providers": {"a": {"as_of": "2026-02-02", "models": {"large": {"input": 1}}}}}
    for number, prices in enumerate((PRICES, dollars)):
        with semcache.Cache("n", disk=path, prices=prices) as cache:
            ask(cache, number)
    with semcache.Cache("n", disk=path) as cache:
        assert cache.usage(by="model")[0].prices == ("EUR 2026-01-02", "USD 2026-02-02")


def test_money_that_is_told_is_not_priced(open_priced):
    """The owner's own figure holds, for the load and its hits."""
    cache = open_priced()
    for _ in range(2):
        ask(cache, usage=Usage(2000, 100, money=0.25, cached_tokens=1024))
    assert money(cache) == (250_000, 250_000)
    (row,) = cache.usage()
    assert (row.prices, row.saved_cached_tokens, row.spent_cached_tokens) == ((), 0, 1024)


@pytest.mark.parametrize(
    ("model", "usage", "unpriced"),
    [
        ("unheard", Usage(10, 5), 1),
        ("", Usage(0, 5), 1),
        ("large", None, 1),  # there is something to pay, and nobody knows how much
        ("unheard", None, 0),
        ("", None, 0),
        ("unheard", Usage(), 0),
        ("large", Usage(10), 0),
    ],
)
def test_what_has_no_price_is_counted_and_named(open_priced, model, usage, unpriced):
    """Tokens without a price, or a priced model without its tokens, are left out of the money and counted."""
    cache = open_priced()
    for _ in range(3):
        ask(cache, usage=usage, model=model)
    (row,) = cache.usage()
    assert (row.unpriced_hits, row.unpriced_loads) == (2 * unpriced, unpriced)
    assert cache.stats().unpriced == ({model: 3} if unpriced else {})


def test_failed_load_is_not_unpriced(open_priced):
    """An error costs no tokens that anybody knows of."""
    cache = open_priced()
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load(cache.request(model="large"), lambda: 1 / 0)
    assert cache.stats().unpriced == {}


def test_load_that_nobody_asked_for_is_off_the_money_saved(open_priced, clock):
    """Behind a stale hit it costs as any load: three calls were two loads, and one of them at its discount saved."""
    cache = open_priced()
    lives = {"ttl": 60, "stale_while_revalidate": 100}
    ask(cache, **lives)
    clock.advance(61)
    ask(cache, **lives)
    assert cache.flush(GUARD)
    assert money(cache) == (3600 - 6000, 12_000)
    ask(cache, **lives)
    assert money(cache) == (3600 - 6000 + 3600, 12_000)


def test_refresh_that_the_caller_asked_for_is_not(open_priced):
    """Mode "refresh" is a wish like any other call."""
    cache = open_priced()
    with semcache.context(mode="refresh"):
        for _ in range(2):
            ask(cache)
    assert money(cache) == (0, 12_000)


def test_stats_tell_what_was_ever_counted(open_priced, store, monkeypatch):
    """What is booked, or could not be and was put back, is counted once."""
    cache = open_priced(**store)
    for _ in range(3):
        ask(cache)
    assert cache.flush(GUARD)
    ask(cache)

    def refuse(day, amounts):
        raise TierError("closed", "no")

    monkeypatch.setattr(cache.store, "book", refuse)
    cache.flush(GUARD)
    stats = cache.stats()
    assert (round(stats.saved_money, 9), stats.spent_money) == (0.0108, 0.006)
    assert (stats.saved_prompt_tokens, stats.saved_completion_tokens, stats.unpriced) == (6000, 300, {})
    assert stats.prices == "EUR 2026-01-02"


def test_totals_outlive_the_days_and_are_bounded(open_priced, clock, monkeypatch):
    """What is counted no more by day still is in stats(); past a number of models a new one is counted as "other"."""
    monkeypatch.setattr(meter, "MOST_DAYS", 2)
    monkeypatch.setattr(meter, "MOST_ROWS", 3)
    cache = open_priced()
    for number in range(5):
        ask(cache, model=f"m{number}")
        cache.stats()
        clock.advance(86_400)
    cache.stats()
    clock.advance(86_400)
    ask(cache, model="m9", usage=None)
    clock.advance(86_400)
    ask(cache, model="m9", usage=None)
    assert cache.stats().unpriced == {"m0": 1, "m1": 1, "m2": 1, "other": 2}


# The table of a cache


def test_wrong_table_is_told_where_the_cache_is_made():
    """Not at the first call."""
    with pytest.raises(ConfigurationError, match=r"providers\.mine\.as_of"):
        semcache.Cache("n", prices={"providers": {"mine": {}}})


def test_environment_names_the_default_caches_table(tmp_path, monkeypatch):
    """SEMCACHE_PRICES is a path."""
    from semcache.wrap.default import default_cache, reset

    path = tmp_path / "prices.toml"
    path.write_text('currency = "CHF"\n')
    monkeypatch.setenv("SEMCACHE_PRICES", str(path))
    reset()
    try:
        assert default_cache().stats().prices == "CHF"
    finally:
        reset()


# Usage: what is told, and how it is kept


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        (Usage(10, cached_tokens=6, cache_write_tokens=5), "ValueError"),
        (Usage(10, cached_tokens=-1), "ValueError"),
        (Usage(10, model=7), "TypeError"),
    ],
)
def test_usage_that_cannot_be_is_a_fault(open_priced, told, fault):
    """All of the prompt's tokens are in prompt_tokens, also those that the provider had cached."""
    cache = open_priced()
    assert ask(cache, usage=told) == "answer"
    assert cache.stats().faults == {f"usage: {fault}": 1}


@pytest.mark.parametrize("kept", [USED, Usage(2000, 100, 0.5, 1000, 200, "large"), Usage(1, model="m")])
def test_usage_is_found_in_the_store_as_it_was_told(open_priced, store, kept):
    """Every field comes back, in another process."""
    with open_priced(memory=0, **store) as cache:
        ask(cache, usage=kept)
        assert cache.flush(GUARD)
    with open_priced(memory=0, **store) as cache:
        ask(cache)
        assert (semcache.last().tier in store, semcache.last().usage) == (True, kept)


def test_bytes_from_before_there_were_prompt_caches_are_read():
    """An older process's entry, whose usage has three fields, is found in either store; ours are the same bytes."""
    facets = Facets("n", "f", "1", "", "m")
    new = header.write(b"k" * 16, Entry(b"value", usage=Usage(3, 2, 0.5)), facets, 60.0, 1000.0)
    (length,) = struct.unpack_from("<H", new, 2)
    assert new[header.HEADER_BYTES :][:length] == packb(["f", "1", "", "m", (), (), (3, 2, 0.5)])
    assert header.read(b"k" * 16, new, 1000.0).usage == Usage(3, 2, 0.5)
    old, entry = packb((False, 0.0, 0.0, 2000.0, (3, 2, 0.5), None)), Entry(b"value")
    about.unpack(old).fill(entry, "n", 1000.0)
    assert entry.usage == Usage(3, 2, 0.5)
    assert about.pack(about.of(Entry(b"value", usage=Usage(3, 2, 0.5), limit=1000.0), facets, 1000.0)) == old


@pytest.mark.parametrize(
    ("dialect", "told", "usage"),
    [
        (ChatCompletions(), {"prompt_tokens": 9, "completion_tokens": 3}, Usage(9, 3)),
        (ChatCompletions(), {"prompt_tokens": 9, "prompt_tokens_details": None}, Usage(9)),
        (ChatCompletions(), {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": None}}, Usage(9)),
        (
            ChatCompletions(),
            {"prompt_tokens": 2006, "completion_tokens": 300, "prompt_tokens_details": {"cached_tokens": 1920}},
            Usage(2006, 300, cached_tokens=1920),
        ),
        (
            ChatCompletions(),
            {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(5, cached_tokens=5),
        ),
        (Messages(), {"input_tokens": 9, "output_tokens": 3}, Usage(9, 3)),
        (
            Messages(),
            {
                "input_tokens": 50, "cache_creation_input_tokens": 248, "cache_read_input_tokens": 1800,
                "output_tokens": 503,
            },
            Usage(2098, 503, cached_tokens=1800, cache_write_tokens=248),
        ),
        (Messages(), {"input_tokens": 9, "cache_read_input_tokens": None}, Usage(9)),
    ],
)  # fmt: skip
def test_dialect_tells_what_the_provider_had_cached(dialect, told, usage):
    """The prompt's tokens are all of them, as the protocol counts them; what was read and written is told beside."""
    assert dialect.usage({"usage": told}) == usage
