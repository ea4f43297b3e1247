"""`semcache blast`: who was given an answer nearly, as people and programs read it."""

from __future__ import annotations

import pytest
from instruments import GUARD, Compass

import semcache

pytestmark = pytest.mark.semantic


@pytest.fixture
def service(open_service, store):
    """A service that has given one tenant's answer nearly, twice."""
    cache = open_service(
        **store, embedder=Compass({"parcel": 0, "letter": 10, "ann@example.com": 5}),
        policy=semcache.Threshold(0.9, guards=None),
    )  # fmt: skip
    cache.warm()
    for text in ("parcel", "letter", "ann@example.com"):
        request = cache.request(text=text, tenant="acme")
        assert cache.get_or_load(request, lambda: "answer", when=lambda _: True) == "answer"
        assert cache.flush(GUARD)
    return cache


def key_of(cache, text):
    return cache.request(text=text, tenant="acme").key.hex()


def test_rows_are_told_as_json(service, told, typed):
    """Every field, texts redacted, the tenant as a digest."""
    found = told("blast", key_of(service, "parcel"), *typed)
    assert (found["namespace"], found["key"]) == ("tests", key_of(service, "parcel"))
    latest, first = found["rows"]
    assert latest["text"].startswith("[email:")
    assert (first["text"], first["stored_text"]) == ("letter", "parcel")
    assert (first["asked"], first["stored"]) == (key_of(service, "letter"), key_of(service, "parcel"))
    assert first["similarity"] == pytest.approx(0.9848, abs=1e-4)
    assert (len(first["tenant"]), first["response_id"]) == (16, None)
    assert first["at"].endswith("+00:00")
    assert told("blast", key_of(service, "letter"), *typed)["rows"] == found["rows"]


def test_rows_are_told_as_a_table(service, semcache_command, typed):
    """A line each, with its headings."""
    status, out, err = semcache_command("blast", key_of(service, "parcel"), *typed)
    assert (status, err) == (0, "")
    title, _, head, latest, first = out.splitlines()
    assert title == "2 near matches of 2 calls, namespace tests"
    assert head.split("  ")[0] == "time (UTC)"
    assert "[email:" in latest
    assert "0.9848  letter" in first
    assert first.endswith(key_of(service, "letter"))


def test_tenant_narrows(service, told, typed):
    """Of another tenant there is nothing to tell."""
    key = key_of(service, "parcel")
    assert len(told("blast", key, *typed, "--tenant", "acme")["rows"]) == 2
    assert told("blast", key, *typed, "--tenant", "zenith")["rows"] == []


def test_answer_that_nobody_was_given_is_said(service, semcache_command, typed):
    """Nothing to tell is no error."""
    status, out, _ = semcache_command("blast", "00" * 20, *typed)
    assert status == 0
    assert out.startswith("nobody was given it as a near match in the last seven days")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["xyz"], "a key is bytes or their 40 hex digits"),
        (["8fd3b39e"], "40 hex digits"),
        ([], "the following arguments are required"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(service, semcache_command, typed, options, why):
    """A key is needed, and is hex digits."""
    status, out, err = semcache_command("blast", *options, *typed)
    assert (status, out) == (2, "")
    assert why in err


def test_answer_that_no_call_of_a_tenant_was_given_is_said_of_him(service, semcache_command, typed):
    """Others may have been: the line says what tells of them."""
    status, out, _ = semcache_command("blast", key_of(service, "parcel"), *typed, "--tenant", "zenith")
    assert status == 0
    assert out.startswith("nobody of tenant 'zenith' was given it")
    assert out.endswith("without --tenant all who were are told\n")
