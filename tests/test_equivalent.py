"""Whether two answers say the same: yes, no, or not known."""

from __future__ import annotations

import asyncio

import pytest

from semcache.errors import ConfigurationError
from semcache.policy.equivalent import Comparator, equivalent, similar


@pytest.mark.parametrize(
    ("cached", "fresh", "said"),
    [
        ("yes", "yes", True),
        ("", "", True),
        ("Yes.", "yes", True),
        ("It is  open\n(daily).", "it is open daily", True),
        ("It\u2019s \u201copen\u201d", "it's open", True),
        ("version 2.10", "version 2.1", None),
        ("(", ")", None),
        ("1,000 users", "1000 users", True),
        ("Open at 6", "Open at 7", False),
        ("It costs 10", "It costs -10", False),
        ("in 3.5 hours", "in 35 hours", False),
        ("between 1,2", "between 12", False),
        ("version 2.1", "version 2.10.3", False),
        ("6 and 6", "6", False),
        ("See example.com", "See examplecom", None),
        ("We use C++", "We use C#", None),
        ("x > 0", "x < 0", None),
        ("from 3 to 5", "from 5 to 3", None),
        ("Open daily", "It is open every day", None),
        ("enabled", "disabled", None),
        ("\u0661\u0662", "\u0661\u0663", False),
    ],
)
def test_texts(cached, fresh, said):
    """Case, spacing and punctuation at the edge of words say nothing, numbers all; wordings are left open."""
    assert equivalent(cached, fresh) is said
    assert equivalent(fresh, cached) is said


@pytest.mark.parametrize(
    ("cached", "fresh", "said"),
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}', True),
        ('{"intent": "Set Alarm"}', '{"intent": "set alarm."}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": 1, "b": null}', False),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", '{"a": 1}', False),
        ('{"a": "enabled"}', '{"a": "disabled"}', None),
        ('{"a": "enabled", "b": 1}', '{"a": "disabled", "b": 2}', False),
        ('{"a": null}', '{"a": "null"}', False),
        ('{"a": 1}', "a is 1", None),
        ("[" * 100_000, "[" * 100_001, None),
    ],
)
def test_structures(cached, fresh, said):
    """JSON answers agree in names, lengths, numbers and truths; their texts are compared as answers are."""
    assert equivalent(cached, fresh) is said
    assert equivalent(fresh, cached) is said


def test_similarity_of_answers_is_a_link_that_only_says_yes():
    """Answers whose vectors are near are equal; those that are not are left open."""

    def embed(texts):
        return [[1.0, 0.0] if "open" in text else [0.0, 1.0] for text in texts]

    link = similar(embed, 0.9)
    assert equivalent("it is open", "we are open", link) is True
    assert equivalent("it is open", "it is shut", link) is None
    assert equivalent("open at 6", "open at 7", link) is False
    with pytest.raises(ConfigurationError, match="a cosine"):
        similar(embed, 90)


def test_judge_is_asked_last_and_decides():
    """A judge is asked only where no link knows."""
    asked = []

    def judge(cached, fresh):
        asked.append((cached, fresh))
        return "not" not in fresh

    comparator = Comparator(judge=judge)
    said = [comparator.equivalent("do it", fresh) for fresh in ("Do it!", "please do it", "do not", "do it 5 times")]
    assert said == [True, True, False, False]
    assert asked == [("do it", "please do it"), ("do it", "do not")]


def test_async_judge_is_awaited():
    """A judge may be a coroutine."""

    async def judge(cached, fresh):
        await asyncio.sleep(0)
        return cached[0] == fresh[0]

    assert asyncio.run(Comparator(judge=judge).aequivalent("apple pie", "an apple pie")) is True


@pytest.mark.parametrize("said", [1 / 3, "yes"])
def test_judge_that_says_something_else_does_not_know(said):
    """Only True, False and None are words of a judge; the rest is counted."""
    comparator = Comparator(judge=lambda cached, fresh: said)
    assert comparator.equivalent("a", "b") is None
    assert comparator.opened == 1
    assert next(iter(comparator.troubles)).startswith("TypeError: a judge says True, False or None")


def test_judge_that_raises_does_not_know():
    """What a judge raises is counted by its name."""

    def judge(cached, fresh):
        raise OSError("no route")

    comparator = Comparator(judge=judge)
    assert [comparator.equivalent("a", fresh) for fresh in "bc"] == [None, None]
    assert comparator.troubles == {"OSError: no route": 2}


def test_judge_is_callable():
    """A judge that cannot be asked is refused at once."""
    with pytest.raises(ConfigurationError, match="a judge takes two answers"):
        Comparator(judge="module:function")
