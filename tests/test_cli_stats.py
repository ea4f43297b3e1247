"""`semcache stats`: the figures of a store, as a table, CSV or JSON, and its errors in one line."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys

import pytest

import semcache
from semcache.cli import main
from semcache.prices import Prices
from semcache.testing import ManualClock

COST = semcache.Usage(1000, 200, 0.5)


@pytest.fixture(params=["disk", "redis"])
def store(request, tmp_path):
    """The settings of a cache of both stores."""
    if request.param == "disk":
        return {"disk": str(tmp_path / "cache.db")}
    return {"redis": request.getfixturevalue("redis_url")}


@pytest.fixture
def typed(store):
    """The options that lead to the store."""
    ((name, where),) = store.items()
    return ["stats", f"--{name}", where, "--namespace", "shop"]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("REDIS", "DISK", "NAMESPACE"):
        monkeypatch.delenv(f"SEMCACHE_{name}", raising=False)


def book(store, namespace="shop"):
    """Let a cache save: three hits and a load of one stage, one load of another, today."""
    with semcache.Cache(namespace, **store) as cache:
        for _ in range(4):
            request = cache.request("q", stage="answer", model="large", tenant="acme")
            cache.get_or_load(request, lambda: 0, usage=lambda _: COST)
        cache.get_or_load(cache.request("q", stage="sum\x1b[31m up", function="f"), lambda: 1)


def run(*arguments):
    assert main([*arguments]) == 0


def test_table_has_headings_with_units_and_a_total(store, typed, capsys):
    """The figures stand in a table; what a terminal would act on does not come through."""
    book(store)
    run(*typed)
    out, err = capsys.readouterr()
    assert err == ""
    title, blank, groups, head, first, second, total = out.splitlines()
    assert title.startswith("Usage of shop since 20")
    assert blank == ""
    assert groups.split() == ["calls", "saved", "spent"]
    assert head.split() == [
        "stage", "model", "hits", "near", "loads", "errors", *["tokens", "seconds", "money"] * 2,
    ]  # fmt: skip
    assert first.split()[:7] == ["answer", "large", "3", "0", "1", "0", "3,600"]
    assert "1.50" in first
    assert second.startswith("sum?[31m up  -")
    assert total.split()[:5] == ["total", "3", "0", "2", "0"]
    assert {line.rstrip() for line in (first, second, total)} == {first, second, total}
    assert len({len(line) for line in (head, first, second, total)}) == 1


def test_money_says_of_what_prices_it_is_and_what_had_none(store, typed, capsys):
    """Below the table stand currency and day of the prices, and the models that have none; JSON and CSV tell both."""
    with semcache.Cache("shop", **store) as cache:
        for model in ("claude-opus-4-1", "claude-opus-4-1", "mine", "mine", "mine"):
            cache.get_or_load(cache.request("q", model=model), lambda: 0, usage=lambda _: semcache.Usage(0, 1000))
    run(*typed, "--by", "model")
    out = capsys.readouterr().out
    day = Prices().of("claude-opus-4-1").as_of
    assert re.search(r"claude-opus-4-1 .* 0\.0750 .* 0\.0750\n", out)
    assert out.endswith(
        f"\n\nMoney in USD at prices of {day}.\n"
        "3 calls without a price, left out of the money: mine (docs/costs.md tells how to give one)\n"
    )
    run(*typed, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["unpriced"], told["total"]["prices"]) == ({"mine": 3}, f"USD {day}")
    assert (told["total"]["unpriced_hits"], told["total"]["unpriced_loads"]) == (2, 1)
    run(*typed, "--by", "model", "--csv")
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["prices"], second["prices"], second["unpriced_hits"]) == (f"USD {day}", "", "2")


def test_csv_has_every_measure(store, typed, capsys):
    """--csv is a line of headings, and one a row, in the columns' order."""
    book(store)
    run(*typed, "--by", "model,stage", "--csv")
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(second)[:4] == ["model", "stage", "hits", "near_hits"]
    assert (first["model"], first["stage"], first["loads"]) == ("", "sum\x1b[31m up", "1")
    assert (second["model"], second["saved_prompt_tokens"], second["saved_money"]) == ("large", "3000", "1.5")


def test_json_has_rows_and_the_total(store, typed, capsys):
    """--json tells the same, with the total."""
    book(store)
    run(*typed, "--by", "day", "--json")
    told = json.loads(capsys.readouterr().out)
    (row,) = told["rows"]
    assert (told["namespace"], row["loads"], row["spent_money"], told["total"]["hits"]) == ("shop", 2, 0.5, 3)
    assert row["day"] >= told["since"]


def test_tenants_are_told_where_they_were_counted(store, typed, capsys):
    """--by tenant: nobody's name, unless a cache was made to count them."""
    book(store)
    run(*typed, "--by", "tenant", "--csv")
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["tenant"] == ""


def test_environment_says_where_to_look(store, monkeypatch, capsys):
    """What is not typed is taken from where a default cache takes it."""
    book(store)
    ((name, where),) = store.items()
    monkeypatch.setenv(f"SEMCACHE_{name.upper()}", where)
    monkeypatch.setenv("SEMCACHE_NAMESPACE", "shop")
    run("stats", "--csv")
    assert capsys.readouterr().out.count("\n") == 3


def test_what_is_typed_goes_before_the_environment(store, typed, monkeypatch, capsys):
    """One store is asked, the one that was typed."""
    book(store)
    monkeypatch.setenv("SEMCACHE_NAMESPACE", "other")
    monkeypatch.setenv("SEMCACHE_DISK", "/no/such/file")
    monkeypatch.setenv("SEMCACHE_REDIS", "redis://localhost:1")
    run(*typed, "--csv")
    assert capsys.readouterr().out.count("\n") == 3


def test_earlier_days_are_told_from_since_on(store, typed, capsys):
    """--since takes a day or a time ago; what was booked before is left out."""
    long_ago = ManualClock()
    with semcache.Cache("shop", clock=long_ago, **store) as cache:
        cache.get_or_load(cache.request("q", stage="old"), lambda: 1)
    book(store)
    for since in ("2d", "2026-11-01"):
        run(*typed, "--since", since, "--by", "stage", "--csv")
        assert "old" not in capsys.readouterr().out


def fails(capsys, arguments, status, *told):
    """A command says what is wrong in one line."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for word in told:
        assert word in err


def test_nothing_booked_is_told(store, typed, capsys):
    """A namespace that booked nothing is no empty table."""
    book(store, "other")
    fails(capsys, typed, 1, "nothing was booked in namespace 'shop'", "--since")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which store? give --redis URL or --disk FILE"),
        (["--disk", "FILE"], "whose answers? give --namespace"),
        (
            ["--disk", "FILE", "--redis", "redis://localhost", "--namespace", "n"],
            "give one: --redis URL or --disk FILE",
        ),
        (["--disk", "FILE", "--namespace", "n", "--by", "tier"], "usage is told by day, stage, model, tenant"),
        (["--disk", "FILE", "--namespace", "n", "--since", "soon"], "2026-11-27"),
        (["--redis", "http://localhost", "--namespace", "n"], "http://localhost"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments, told, tmp_path, capsys):
    """What is missing or makes no sense is told with the mend."""
    path = str(tmp_path / "cache.db")
    book({"disk": path})
    fails(capsys, ["stats", *(path if one == "FILE" else one for one in arguments)], 2, told)


def test_store_that_is_not_there_is_one_line_and_begins_none(tmp_path, capsys):
    """A server that does not answer, and a file that is none, are named; neither is made."""
    fails(capsys, ["stats", "--redis", "redis://localhost:1", "--namespace", "n"], 1, "refused", "is it running")
    fails(capsys, ["stats", "--disk", str(tmp_path / "no.db"), "--namespace", "n"], 1, "no such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"SQLite format 3\0" + bytes(5000)])
def test_file_of_somebody_else_is_left_alone(tmp_path, capsys, content):
    """What is no store's file is told, and stays as it is, where a cache would move it aside."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    fails(capsys, ["stats", "--disk", str(path), "--namespace", "n"], 1, str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == content


def test_reading_evicts_nothing(tmp_path, monkeypatch, capsys):
    """A file that its cache lets grow beyond the default bound is not cut to it by who reads it."""
    path = tmp_path / "cache.db"
    with semcache.Cache("shop", disk=path, disk_size="20MB", memory=0) as cache:
        for number in range(40):
            cache.get_or_load(cache.request(number), lambda: "x" * 100_000)
        assert cache.flush()
        entries = cache.stats().tiers["disk"]["entries"]
        monkeypatch.setitem(semcache.Cache.__init__.__kwdefaults__, "disk_size", "1MB")
        run("stats", "--disk", str(path), "--namespace", "shop", "--csv")
        assert cache.stats().tiers["disk"]["entries"] == entries == 40


def test_another_process_is_told(store, typed):
    """`python -m semcache stats`, beside a cache in use."""
    book(store)
    done = subprocess.run([sys.executable, "-m", "semcache", *typed], capture_output=True, text=True, check=True)
    assert "answer" in done.stdout
    assert done.stderr == ""
