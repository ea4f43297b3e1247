"""Redaction: what is taken out of a text, what is left, and that it takes no longer than the text is long."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.redact import Redactor

REDACTOR = Redactor(b"k" * 32)

SECRETS = [
    ("mail joe.x+1@example.com.", "joe.x+1@example.com", "email"),
    ("<müller@exämple.de>", "müller@exämple.de", "email"),
    ("mailto:joe@x.org?subject=a", "joe@x.org", "email"),
    ("a@b@c.com", "b@c.com", "email"),
    ("my key is sk-proj-abcdefghijklmnopqrstuv", "sk-proj-abcdefghijklmnopqrstuv", "key"),
    ("sk-ant-api03-abcdefghijklmnop_-q,", "sk-ant-api03-abcdefghijklmnop_-q", "key"),
    ("Authorization: Bearer abcdef.123456==", "abcdef.123456==", "key"),
    ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE", "key"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "key"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_9", "eyJzdWIiOiIxMjM0In0", "key"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nand", "MIIE", "key"),
    ("card 4111111111111111!", "4111111111111111", "card"),
    ("4111 1111 1111 1111 12/25", "4111 1111 1111 1111", "card"),
    ("3782-822463-10005", "3782-822463-10005", "card"),
    ("1234 5500-0000-0000-0004", "5500-0000-0000-0004", "card"),
    ("to DE89 3704 0044 0532 0130 00 AND", "DE89 3704 0044 0532 0130 00", "iban"),
    ("call +49 (0)30 1234567 now", "+49 (0)30 1234567", "phone"),
]

PLAIN = [
    "numpy@1.26", "order 1234567890123456", "it took 1700000000000 ms", "a+b@c", "skiing is fun", "1 + 2 = 3",
    "DE89 is no account", "sk-", "the Bearer of news", "data:image/png;base64,4111111111111111",
]  # fmt: skip

HOSTILE = [
    "a", "@", "a@", "a.b@c.d ", "eyJ", "sk-", "1 ", "4 ", "41", "+1 ", "DE12", "-----BEGIN PRIVATE KEY", "Bearer ",
    "D ", "eyJaaaaaaaaa.", "4111 1111 1111 1111 ", "_-",
]  # fmt: skip


@pytest.mark.parametrize(("text", "secret", "kind"), SECRETS)
def test_a_secret_is_replaced_by_a_mark(text, secret, kind):
    """What surrounds it stays."""
    told = REDACTOR.text(text)
    assert secret not in told
    assert f"[{kind}:" in told
    begin, end = text.split(secret, 1)
    assert kind == "key" or (told.startswith(begin) and told.endswith(end))


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text):
    """Numbers, versions and words that look a little like secrets."""
    assert REDACTOR.text(text) == text


def test_equal_secrets_are_equal_marks_and_others_are_not():
    """A replay sees which requests were the same; however a card's digits are grouped."""
    first, second = REDACTOR.text("a joe@x.com"), REDACTOR.text("b joe@x.com")
    assert first[2:] == second[2:]
    assert REDACTOR.text("jim@x.com") != REDACTOR.text("joe@x.com")
    assert REDACTOR.text("4111 1111 1111 1111") == REDACTOR.text("4111111111111111")
    assert Redactor(b"q" * 32).text("joe@x.com") != REDACTOR.text("joe@x.com")


def test_secrets_deep_in_data_are_replaced_and_its_structure_stays():
    """In names, in lists, in JSON within a text, in what is named as a secret, and in a number."""
    data = {
        "messages": [{"content": [{"text": "I am joe@x.com"}], "joe@x.com": None}],
        "arguments": json.dumps({"to": "joe@x.com", "n": 1}),
        "password": "hunter2", "card": 4111111111111111, "n": 3, "t": True, "f": 0.5,
    }  # fmt: skip
    told = REDACTOR.data(data)
    assert "joe@x.com" not in json.dumps(told)
    assert "hunter2" not in json.dumps(told)
    assert json.loads(told["arguments"])["n"] == 1
    assert type(told["card"]) is int
    assert told["card"] != data["card"]
    assert (told["n"], told["t"], told["f"]) == (3, True, 0.5)
    assert list(told)[2] == "password"
    assert REDACTOR.data(told) == told


@pytest.mark.parametrize("part", HOSTILE)
def test_no_text_takes_longer_than_it_is_long(part):
    """A text of 50 kB that is made to begin matches at every place is through at once."""
    text = part * (50_000 // len(part))
    assert REDACTOR.text(text) is not None


@given(st.lists(st.sampled_from([*HOSTILE, "joe@x.com", " ", "4111111111111111", "x", "[email:", "+49 30 123456"])))
def test_redacting_again_changes_nothing(parts):
    """Marks are no secrets, and hide none that stand apart."""
    told = REDACTOR.text("; ".join(parts))
    assert REDACTOR.text(told) == told


@given(st.text(), st.text())
def test_an_address_between_any_words_is_found(before, after):
    """Whatever stands around it, if it is set apart."""
    assert "joe@example.com" not in REDACTOR.text(f"{before} joe@example.com {after}")
