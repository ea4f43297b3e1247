"""Reads the facts of a text: its language, names and other words here, the rest in `quantities` and `moments`.

Pure, and linear in the text's length: one pass cuts it into tokens, one pass reads them. Case, spaces and punctuation
around words change no fact. `facts_of` remembers those of the texts asked for last, in some 10 MB.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from threading import Lock

from cachetools import LRUCache, cached

from semcache.policy.facts import Facts
from semcache.policy.lexicon import LANGUAGES, Lexicon, common, lexicon
from semcache.policy.moments import SHORT, WEEKDAYS
from semcache.policy.quantities import Quantities
from semcache.policy.tokens import Token, letters_of, tokens_of, value_of

# A text's facts take some 25 bytes a letter, and without any letter as much as with a hundred.
_REMEMBERED_LETTERS, _EMPTY_LETTERS = 400_000, 100
# Two microseconds a character: a caller waits for no more of them.
_LONGEST = 50_000
_QUOTED = re.compile(r"""["“”«„`]{1,3}([^"“”«»„`]{1,200})["“”»`]{1,3}|(?<!\w)'([^']{2,200})'(?!\w)""")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'"})
_SIGNS = {"+": "plus", "*": "times", "\u00d7": "times", "/": "divided", "÷": "divided", "-": "minus"}
_SPACED = re.compile(r"[^\W\d_]{1,20}-?(\d{1,9})")
_NO_NAMES = frozenset({
    "i", "im", "ive", "id", "ill", "ok", "okay", "am", "pm", "me", "him", "her", "them", "hi", "hello", "hey", "dear",
    "thanks", "thx", "pls", "plz", "asap", "fyi", "btw", "lol", "omg", "tbh", "imo",
})  # fmt: skip
_SMALL = frozenset({
    "a", "an", "the", "of", "in", "on", "to", "for", "and", "or", "by", "with", "at", "from", "as", "but", "vs", "via",
})  # fmt: skip


def read(text: str) -> Facts:
    """Read the facts of a text."""
    if len(text) > _LONGEST:
        return Facts(uncovered=f"the guards read at most {_LONGEST:,} characters")
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)
    foreign = next((letter for letter in dict.fromkeys(text) if not _is_read(letter)), None)
    if foreign is not None:
        return Facts(uncovered=f"the guards do not know letters such as {foreign!r}")
    tokens = tokens_of(text)
    votes = _votes(tokens)
    own = max(LANGUAGES, key=lambda one: votes.get(one, 0))
    other = max(votes, key=lambda one: (votes[one], one in LANGUAGES), default=own)
    # One foreign word among our own says nothing, two more than our own do.
    if other not in LANGUAGES and (not votes.get(own) or votes[other] > max(1, votes[own])):
        return Facts(uncovered=f"the guards do not know its language, which looks like {other!r}")
    facts = Facts(language=own if votes.get(own) else "")
    reader = _Reader(facts, lexicon(own), tokens)
    reader.read()
    facts.quotes = {letters_of(one or other) for one, other in _QUOTED.findall(text)} - {""}
    if own != "de":  # whose nouns all begin with a capital
        facts.names = _names(tokens, reader.taken)
    facts.words = frozenset(token.word for token in tokens)
    facts.letters = letters_of(text)
    return facts


def _weight(facts: Facts) -> int:
    return len(facts.letters) + _EMPTY_LETTERS


@cached(LRUCache(_REMEMBERED_LETTERS, _weight), key=str, lock=Lock())
def facts_of(text: str) -> Facts:
    """Return the facts of a text, which are read once while it is among those asked for last."""
    return read(text)


class _Reader(Quantities):
    """Reads a text's tokens in order, and notes its facts."""

    def __init__(self, facts: Facts, words: Lexicon, tokens: list[Token]) -> None:
        super().__init__(facts, words, tokens)
        # Places of tokens that are a fact of another kind, and so no name.
        self.taken: set[int] = set()
        self._parts: set[str] = set()

    def read(self) -> None:
        """Read all tokens."""
        while self.place < len(self.tokens):
            before = self.place
            self._take(self.tokens[before])
            if self.place == before:
                self.place += 1
            else:
                self.taken.update(range(before, self.place))
        # "tomorrow morning at ten" is "tomorrow at ten am": a time that says its half of the day says the part too.
        if not any(time[2:3] == ":" for time in self.facts.times):
            self.facts.times |= self._parts

    def _take(self, token: Token) -> None:
        """Read the token here, and what belongs to it; move on only behind what is a fact of its own."""
        kind = token.kind
        if kind in ("url", "mail", "version", "code"):
            self._identifier(token)
        elif kind in ("iso", "slashed", "clock"):
            self.moment(token)
        elif kind == "sign":
            around = self.place - 1, self.place + 1
            if all(0 <= one < len(self.tokens) and self.tokens[one].kind == "number" for one in around):
                self.note_sides(_SIGNS.get(token.text, token.text))
        elif kind == "number":
            self.place += 1
            self.number(value_of(token.text), self.place - 1, "")
        elif kind in ("word", "dotted"):
            if self.is_spelled():
                self.spelled(token.word)
            elif not self.quarter(token.word) and not self.month(token.word):
                self._note(token.word)

    def _identifier(self, token: Token) -> None:
        self.place += 1
        self.facts.identifiers.add(letters_of(token.text.rstrip(".,;:!?)'\"")))
        spaced = _SPACED.fullmatch(token.text) if token.kind == "code" else None
        if spaced is not None:  # what is "ABC-123" here may be "ABC 123" there
            value = float(spaced[1])
            self.facts.numbers.append((value, "", value, ""))

    def _note(self, word: str) -> None:  # noqa: C901 - one look at each table
        """Note what a word says that is no number, date or time."""
        facts, words = self.facts, self.words
        before, after = self.word(self.place - 1), self.word(self.place + 1)
        if word in words.negations:
            facts.negations += (before, word) not in words.not_negations and (word, after) not in words.not_negations
        elif (word, after) in words.negating:
            facts.negations += 1
        if word in words.weekdays:
            facts.dates.add(WEEKDAYS[words.weekdays[word]])
            self.taken.add(self.place)
        if word in words.at_noon:
            facts.times.add(f"{words.at_noon[word] // 60:02}:00")
        if word in words.volatile:
            facts.volatile.add(word)
        elif word in words.following and (after in words.periods or after in words.weekdays):
            facts.dates.add(f"{words.following[word]} {after}")
        if word in words.parts:
            self._parts.add(words.parts[word])
        if word in words.questions:
            if self._asks(word, before, after):
                facts.questions.add(words.questions[word])
        elif word in ("how", "wie"):
            facts.questions.add(self._how(word, after))
        if word in words.directions:
            place = self.place + 1
            place += self.word(place) in words.articles
            facts.directed.setdefault(word, set()).add(self.word(place))
        if word in words.units and len(word) > SHORT:
            facts.units.add(words.units[word][2])
        self.note_sides(word, before)

    def _asks(self, word: str, before: str, after: str) -> bool:
        """Say whether a question's word asks, and does not join two sentences: "when I paid"."""
        words = self.words
        is_told = before in words.telling or after in words.asking
        return word not in words.joining or is_told or self.tokens[self.place].text.casefold() != word

    def _how(self, word: str, after: str) -> str:
        """Return what is asked by "how" and the words behind it."""
        if after == "come":
            return "why"
        asked = self.words.how.get(after)
        if asked is None:
            return word
        length = self.words.durations.get(self.word(self.place + 2)) if asked in ("many", "viel") else None
        return f"{word} {length or asked}"


@lru_cache(maxsize=4096)
def _is_read(character: str) -> bool:
    """Say whether a character is a Latin letter, or none at all."""
    if character.isascii() or not character.isalpha():
        return True
    words = unicodedata.name(character, "").split()
    return any(word in ("LATIN", "FEMININE", "MASCULINE", "MICRO") for word in words[:2])


def _votes(tokens: list[Token]) -> dict[str, int]:
    """Count, for each language, the distinct words that it is known by."""
    table = common()
    votes: dict[str, int] = {}
    for word in dict.fromkeys(token.word for token in tokens):
        for language in table.get(word, ()):
            votes[language] = votes.get(language, 0) + 1
    return votes


def _names(tokens: list[Token], taken: set[int]) -> list[tuple[str, ...]]:
    """Return the words with a capital inside a sentence, those in a row as one name.

    Of a text whose words all have a capital, as in titles, there are none.
    """
    written = [token for token in tokens if token.kind in ("word", "dotted")]
    # A title leaves only its small words without; "Who is Albert Einstein" is none.
    if not any(token.text[0].islower() and token.word not in _SMALL for token in written):
        return []
    found: list[tuple[str, ...]] = []
    name: list[str] = []
    is_begun = False
    for place, token in enumerate(tokens):
        text, word = token.text, token.word
        is_word = token.kind in ("word", "dotted") and text[0].isupper()
        if is_word and (is_begun or (len(text) > 1 and text.isupper())) and _may_name(word) and place not in taken:
            name.append(word)
        elif name:
            found.append(tuple(name))
            name = []
        is_begun = token.kind != "end"
    return [*found, tuple(name)] if name else found


def _may_name(word: str) -> bool:
    return word not in _NO_NAMES and word not in common()
