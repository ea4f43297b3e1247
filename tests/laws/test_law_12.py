"""Law 12: a text that the embedder does not see whole is exact only, and counted."""

from __future__ import annotations

import pytest
from instruments import Compass

import semcache

pytestmark = pytest.mark.semantic

LONG = "one two three four five"


class Narrow(Compass):
    """Sees four words."""

    window = 4

    def count(self, text):
        return len(text.split())


class English(Compass):
    languages = ("en",)


def ask(cache, text):
    """Look a text up, stored as itself."""
    answer = cache.get_or_load(cache.request(text=text), lambda: text)
    cache.flush()
    return answer


@pytest.mark.parametrize(
    ("embedder", "unseen"),
    [
        (Narrow, LONG),
        (Narrow, "x" * 100_000),
        (English, "Где мой заказ?"),
        (English, "注文はどこですか"),
        (English, "where? Где?"),
    ],
)
def test_text_that_is_not_seen_whole_is_exact_only(open_near, embedder, unseen):
    """Law 12: beyond the window, or in a language that is not covered, a text answers itself and nothing else."""
    cache = open_near(embedder=embedder())
    assert ask(cache, "stored") == "stored"
    with semcache.trace() as seen:
        assert ask(cache, unseen) == unseen
    (event,) = seen.lookups
    assert event.reason.startswith("exact only: the text ")
    assert event.faults == []
    assert ask(cache, unseen) == unseen
    assert cache.stats().hits == {"memory": 1}
    assert cache.stats().not_served == {"exact only": 1}
    assert cache.stats().tiers["semantic"]["uncovered"] >= 1


@pytest.mark.parametrize(("embedder", "unseen"), [(Narrow, LONG), (English, "Где мой заказ?")])
def test_text_that_is_not_seen_whole_is_not_indexed(open_near, embedder, unseen):
    """Law 12: such a text's answer is no near match for others, though its first words may be theirs."""
    cache = open_near(embedder=embedder())
    assert ask(cache, unseen) == unseen
    assert cache.stats().tiers["semantic"]["rows"] == 0
    assert cache.stats().tiers["semantic"]["uncovered"] == 1
    assert ask(cache, "asked") == "asked"


def test_text_within_the_window_is_seen(open_near):
    """Law 12: the window's own length fits; an embedder without one sees every text whole."""
    cache = open_near(embedder=Narrow())
    ask(cache, "one two three four")
    assert ask(cache, "four three two one") == "one two three four"
    boundless = open_near()
    ask(boundless, "x" * 100_000)
    assert ask(boundless, "y" * 100_000) == "x" * 100_000


@pytest.mark.parametrize("empty", ["", " ", "\n\t "])
def test_empty_text_is_exact_only(open_near, empty):
    """Law 12: there is nothing in it to see."""
    cache = open_near()
    ask(cache, "stored")
    assert ask(cache, empty) == empty
    assert ask(cache, empty) == empty
    assert cache.stats().hits == {"memory": 1}
    assert "the text is empty" in str(cache.explain(cache.request(text=empty)))
