"""A text in pieces, and a place among them from which its numbers, dates and words are read.

Linear in the text's length: each pattern is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Container

from semcache.policy.facts import Facts
from semcache.policy.lexicon import Lexicon

# Bounded in every part, so that no text makes a pattern look at a place more often than so.
_TOKEN = re.compile(
    r"""(?P<url>https?://\S{1,500}|www\.\S{1,500})
    |(?P<mail>[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5})
    |(?P<iso>(?<!\d)\d{4}-\d{1,2}-\d{1,2}(?!\d))
    |(?P<slashed>(?<!\d)\d{1,2}/\d{1,2}/\d{2,4}(?!\d)|(?<!\d)\d{1,2}\.\d{1,2}\.\d{4}(?!\d))
    |(?P<clock>(?<!\d)\d{1,2}:\d{2}(?!\d))
    |(?P<version>v?\d{1,9}(?:\.\d{1,9}){2,6})
    |(?P<code>[^\W\d_]{1,20}-?\d[^\W_]{0,64}(?:-[^\W_]{1,32}){0,6}|[^\W_]{1,40}(?:_[^\W_]{1,40}){1,9}|\#\d{1,18})
    |(?P<number>\d{1,3}(?:,\d{3}){1,6}(?:\.\d{1,9})?(?!\d)|\d{1,18}(?:[.,]\d{1,9})?)
    |(?P<dotted>(?:[^\W\d_]\.){1,8}[^\W\d_](?!\w)\.?)
    |(?P<word>[^\W\d_]{1,64}(?:'[^\W\d_]{1,16}){0,3}|[%$€£¥₹]|°[cCfF])
    |(?P<sign>[+*/\u00d7÷^=<>-])
    |(?P<end>[.!?;:\n]{1,8}|["“”«»(])""",
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")
_TEN = 10
# No reader looks further ahead than so.
_AHEAD = 8


class Token:
    """A piece of a text: `word` is what it means, whatever its case."""

    __slots__ = ("end", "kind", "start", "text", "word")

    def __init__(self, kind: str, text: str, start: int, end: int) -> None:
        self.kind, self.text, self.start, self.end = kind, text, start, end
        self.word = text.casefold()
        if kind == "word":
            self.word = self.word.removesuffix("'s")
            self.word = self.word.replace("'", "")
        elif kind == "dotted":
            self.word = self.word.replace(".", "")


def tokens_of(text: str) -> list[Token]:
    """Cut a text into tokens."""
    return [Token(match.lastgroup or "", match.group(), match.start(), match.end()) for match in _TOKEN.finditer(text)]


def letters_of(text: str) -> str:
    """Return a text's letters and digits in a row, casefolded."""
    return "".join(filter(str.isalnum, text.casefold()))


def value_of(number: str) -> float:
    """Read a number in figures: a comma parts thousands, or else stands before a fraction, as in German."""
    if _THOUSANDS.match(number):
        return float(number.replace(",", ""))
    return float(number.replace(",", "."))


class Cursor:
    """A place among a text's tokens; what is read behind it is noted in `facts`.

    `words` are those of the text's language; `place` moves on behind what was read.
    """

    def __init__(self, facts: Facts, words: Lexicon, tokens: list[Token]) -> None:
        self.facts, self.words = facts, words
        self.tokens = tokens
        self.place = 0
        # With room behind the last, which is also what stands before the first.
        self._written = [token.word if token.kind in ("word", "dotted") else "" for token in tokens] + [""] * _AHEAD

    def word(self, place: int) -> str:
        """Return the word at a place, "" where there is none."""
        return self._written[place]

    def is_glued(self, words: Container[str]) -> bool:
        """Say whether one of the words stands here, with no space before it."""
        if self.word(self.place) not in words:
            return False
        return self.tokens[self.place].start == self.tokens[self.place - 1].end

    def below_hundred(self) -> float:
        """Read a number below a hundred in words: "nine", "twenty-one"."""
        words = self.words
        word = self.word(self.place)
        value = words.numbers[word]
        self.place += 1
        if word in words.tens:
            place = self.place
            place += place < len(self.tokens) and self.tokens[place].text == "-"
            digit = words.numbers.get(self.word(place), 0)
            if 1 <= digit < _TEN and digit % 1 == 0:
                self.place = place + 1
                value += digit
        return value

    def note_sides(self, word: str, before: str = "") -> None:
        """Note which sides of which opposites a word names, behind another: "least expensive" is the other side."""
        if (before, word) in self.words.not_opposites:
            return
        is_less = before in self.words.lessening
        for group, side in self.words.opposites.get(word, ()):
            other = 1 - side if is_less and group in self.words.two_sided else side
            self.facts.sides.setdefault((group, other), []).append(word)
