"""The store that a command is about: where it is typed, where it is found, and what is left alone."""

from __future__ import annotations

import sqlite3

import pytest

from semcache.stores.schema import APPLICATION_ID


def test_environment_names_the_store(open_service, store, semcache_command, typed, monkeypatch):
    """The variables that configure the default cache name the store here too; what is typed goes before."""
    open_service(**store).set_mode("exact")
    ((name, value),) = store.items()
    monkeypatch.setenv("SEMCACHE_NAMESPACE", "tests")
    monkeypatch.setenv(f"SEMCACHE_{name.upper()}", value)
    assert semcache_command("mode")[1].startswith("exact: namespace 'tests'")
    monkeypatch.setenv("SEMCACHE_NAMESPACE", "other")
    monkeypatch.setenv("SEMCACHE_DISK", "/no/such.db")
    monkeypatch.setenv("SEMCACHE_REDIS", "redis://nowhere:1/0")
    assert semcache_command("mode", *typed)[1].startswith("exact: namespace 'tests'")


@pytest.mark.parametrize(
    ("options", "environment", "why"),
    [
        (["--namespace", "shop"], {}, "which store? give --redis URL or --disk FILE"),
        (["--disk", "x.db"], {}, "whose answers? give --namespace"),
        (["--disk", "x.db", "--redis", "redis://h"], {}, "give one: --redis URL or --disk FILE"),
        ([], {"SEMCACHE_DISK": "x.db", "SEMCACHE_REDIS": "redis://h"}, "give one: --redis URL or --disk FILE"),
        (["--namespace", "shop", "--redis", "localhost"], {}, 'redis= is "redis://localhost:6379/0"'),
        (["--namespace", "shop", "--disk", ""], {}, "disk= is the path of a file"),
    ],
)
def test_store_that_is_not_told_is_asked_for(semcache_command, monkeypatch, options, environment, why):
    """What is missing is named, with how to give it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, out, err = semcache_command("mode", *options)
    assert (status, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "other database", "damaged", "no folder"])
def test_file_that_is_no_store_is_left_as_it_is(semcache_command, tmp_path, kind):
    """A typing error in a path makes no file, and moves or changes none."""
    path = tmp_path / ("gone/x.db" if kind == "no folder" else "x.db")
    if kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "not a database\n" * 100)
    if kind == "damaged":
        path.write_bytes(b"SQLite format 3\0" + bytes(5000))
    if kind == "other database":
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA application_id = 7")
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*")}
    for command in (["mode", "off"], ["invalidate", "--everything"]):
        status, out, err = semcache_command(*command, "--namespace", "tests", "--disk", path)
        assert (status, out) == (1, "")
        assert str(path) in err
        assert err.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.rglob("*")} == before


def test_file_of_a_running_service_is_known_before_its_first_checkpoint(open_service, tmp_path, semcache_command):
    """What says that a file is ours may still be in the WAL alone."""
    path = tmp_path / "x.db"
    open_service(disk=path)
    with path.open("rb") as file:
        assert int.from_bytes(file.read(100)[68:72]) in (0, APPLICATION_ID)
    assert semcache_command("mode", "--namespace", "tests", "--disk", path)[0] == 0


def test_command_evicts_nothing_from_a_larger_file(open_service, tmp_path, told, monkeypatch):
    """A file that is larger than the default bound is its service's to bound."""
    path = tmp_path / "x.db"
    monkeypatch.setattr("semcache.cli.store._LEAST_DISK_BYTES", 2**18)
    cache = open_service(disk=path, disk_size="16MB")
    for number in range(40):
        cache.get_or_load(cache.request(number), lambda: "x" * 50_000)
    assert cache.flush(30)
    typed = ["--namespace", "tests", "--disk", path]
    assert told("invalidate", "--tag", "none", *typed)["entries"] == 0
    assert told("invalidate", "--everything", "--dry-run", *typed)["entries"] == 40
