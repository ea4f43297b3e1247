"""`semcache mode`: the kill switch from a terminal."""

from __future__ import annotations

import pytest
from instruments import GUARD, until


def comes_to(cache, mode):
    until(lambda: cache.mode == mode)


def test_mode_reaches_a_running_process_and_is_shown(open_service, store, told, typed):
    """What is set holds for who runs, and is what the next `mode` shows."""
    cache = open_service(**store)
    cache.get_or_load(cache.request("q"), lambda: "answer")
    assert cache.flush(GUARD)
    assert told("mode", *typed) == {"namespace": "tests", "mode": "live", "was": None, "entries": 1}
    assert told("mode", "off", *typed) == {"namespace": "tests", "mode": "off", "was": None, "entries": 1}
    comes_to(cache, "off")
    assert told("mode", *typed)["mode"] == "off"
    assert told("mode", "live", *typed) == {"namespace": "tests", "mode": "live", "was": "off", "entries": 1}
    comes_to(cache, "live")


def test_namespace_without_answers_is_doubted(open_service, store, semcache_command, typed):
    """A mistyped name is not taken for a service that was switched off."""
    open_service(**store)
    status, out, err = semcache_command("mode", "off", *typed)
    assert (status, err) == (0, "")
    assert out.startswith("off (it was live): namespace 'tests' in ")
    assert out.endswith("no entry: is it the right name?\n")


def test_mode_that_replicas_cannot_have_is_one_line(semcache_command):
    """refresh is for a call, not for all."""
    status, out, err = semcache_command("mode", "refresh", "--namespace", "tests", "--disk", "x")
    assert (status, out) == (2, "")
    assert "invalid choice: 'refresh'" in err
    assert err.count("\n") == 1


def test_mode_that_could_not_be_set_is_status_1(semcache_command, own_redis):
    """A full server keeps no mode, and says so; nobody takes it for set."""
    server = own_redis()
    server.cli("CONFIG", "SET", "maxmemory", "1")
    status, out, err = semcache_command("mode", "off", "--namespace", "tests", "--redis", server.url)
    assert (status, out) == (1, "")
    assert "its memory is full" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", [[], ["off"]])
def test_store_that_is_gone_is_status_1(semcache_command, own_redis, option):
    """Neither shown nor set: one line, status 1."""
    server = own_redis()
    server.kill()
    status, out, err = semcache_command("mode", *option, "--namespace", "tests", "--redis", server.url)
    assert (status, out) == (1, "")
    assert "Connection refused" in err
    assert err.count("\n") == 1
