"""What was reported, as one process knows it: which text an entry is kept from, and what bounds there are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache import blocks as blocks_module
from semcache.blocks import Block, Blocks, raised_cut, words_of

WORDS = words_of("reported")


def known(*blocks):
    made = Blocks()
    made.take(blocks)
    return made


@pytest.mark.parametrize("text", ["Reported", " reported ", "reported?", "REPORTED!!"])
def test_spelling_makes_no_other_text(text):
    """Case, spaces and punctuation around words are nothing."""
    assert words_of(text) == WORDS


@pytest.mark.parametrize("text", ["reported it", "", "re ported", "\ud800", "?"])
def test_other_words_make_another_text(text):
    """What differs in a word, or has none, is another; any text has a digest."""
    assert words_of(text) != WORDS
    assert words_of("?") != words_of("!")


@given(st.floats(0, math.pi), st.floats(0, math.pi), st.floats(0, 2 * math.pi))
def test_nothing_is_served_that_is_as_near_to_the_reported_text(reported, asked, turn):
    """Whatever passes the raised cut lies nearer to the entry than to the reported text, wherever that lies."""
    cosine = math.cos(asked)
    if known(Block(b"e", WORDS, math.cos(reported), 0.0)).why_not(b"e", "another", cosine) is None:
        to_reported = cosine * math.cos(reported) + math.sin(asked) * math.sin(reported) * math.cos(turn)
        assert cosine > to_reported
        assert cosine > raised_cut(math.cos(reported))


def test_reported_text_is_refused_at_any_similarity():
    """Also where it is equal in its vector; of another entry nothing is said."""
    made = known(Block(b"e", WORDS, 0.9, 0.0))
    assert made.why_not(b"e", "Reported.", 1.0) == "reported: wrong for this text"
    assert made.why_not(b"other", "reported", 1.0) is None
    assert made.why_not(b"e", "another", 0.99) is None


def test_texts_of_equal_vectors_are_one_to_the_cut():
    """Who was wrong at a cosine of 1 leaves nothing near that is certain to be right."""
    assert known(Block(b"e", WORDS, 1.0, 0.0)).why_not(b"e", "another", 1.0) is not None


def test_pair_is_known_once_and_dropped_as_a_whole():
    """Of one pair the higher cosine stands, and the later time; after its last block an entry is free."""
    made = known(Block(b"e", WORDS, 0.9, 2.0), Block(b"e", WORDS, 0.95, 1.0))
    assert (made.listed(), len(made), made.is_closed(b"e")) == ([Block(b"e", WORDS, 0.95, 2.0)], 1, False)
    made.take([Block(b"e", b"others", 0.9, 0.0)])
    assert made.is_closed(b"e")
    assert made.why_not(b"e", "another", 0.999999).startswith("reported: wrong for several texts")
    made.drop([*made.listed(), Block(b"none", WORDS, 0.9, 0.0)])
    assert (len(made), made.why_not(b"e", "reported", 0.9)) == (0, None)


def test_mirror_is_bounded(monkeypatch):
    """Who only hears of reports forgets the oldest, which those who reported have seen to."""
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 5)
    made = Blocks()
    for number in range(100):
        made.take([Block(b"%d" % number, WORDS, 0.9, float(number))])
        assert len(made) <= 10
    assert made.listed()[-1].stored == b"99"
    assert len(made.listed()) == len(made)
