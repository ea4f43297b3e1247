"""What of a text must be equal in a text that may stand for it: its numbers, dates, names and the like.

Pure, and linear in the text's length: one pass cuts it into tokens, each pattern bounded, one pass reads them.
Case, spaces and punctuation around words change no fact. `facts_of` remembers the latest texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass, field
from functools import lru_cache

from semcache.policy.lexicon import LANGUAGES, Lexicon, common, lexicon

_REMEMBERED = 1024
_FACE = 12
_TEN, _HUNDRED = 10, 100
_HOUR = 60
_LONGEST_MONTH = 31
# Words no longer than this are mostly another word too: "may", "in", "sec".
_SHORT = 3
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
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
    |(?P<dotted>(?:[^\W\d_]\.){2,8})
    |(?P<word>[^\W\d_]{1,64}(?:'[^\W\d_]{1,16}){0,3}|[%$€£¥₹]|°[cCfF])
    |(?P<sign>[+*/\u00d7÷^=<>-])
    |(?P<end>[.!?;:\n]{1,8}|["“”«»(])""",
    re.VERBOSE,
)
_QUOTED = re.compile(r"""["“”«„`]([^"“”«»„`]{1,200})["“”»`]|(?<!\w)'([^']{2,200})'(?!\w)""")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'"})
_SIGNS = {"+": "plus", "*": "times", "\u00d7": "times", "/": "divided", "÷": "divided", "-": "minus"}
_MULTIPLIERS = {"k": 1_000, "m": 1_000_000, "bn": 1_000_000_000}
_ORDINAL = ("st", "nd", "rd", "th")
_SPACED = re.compile(r"[^\W\d_]{1,20}-?(\d{1,9})")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")
# What may stand between a time and its half of the day: "6 tomorrow in the morning".
_BETWEEN = frozenset({"in", "at", "the", "this", "tomorrow"})
_BETWEEN_WORDS = 3
_NO_NAMES = frozenset({"i", "im", "ive", "id", "ill", "ok", "okay", "am", "pm"})
_SMALL = frozenset({
    "a", "an", "the", "of", "in", "on", "to", "for", "and", "or", "by", "with", "at", "from", "as", "but", "vs", "via",
})  # fmt: skip

# A number: its value in the dimension's first unit, its dimension ("" without a unit), its value as written, its unit.
Quantity = tuple[float, str, float, str]


@dataclass(slots=True)
class Facts:
    """What of a text must be equal. `uncovered` says why the guards cannot read it; `language` is "" if it is not told.

    `hedged` are numbers that another text may leave out ("one").
    `names` are casefolded, word by word, `words` all words; `letters` are its letters and digits in a row, to look up
    what the other text may write apart.
    """

    uncovered: str | None = None
    language: str = ""
    numbers: list[Quantity] = field(default_factory=list)
    hedged: set[float] = field(default_factory=set)
    units: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    times: set[str] = field(default_factory=set)
    identifiers: set[str] = field(default_factory=set)
    quotes: set[str] = field(default_factory=set)
    negations: int = 0
    sides: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    names: list[tuple[str, ...]] = field(default_factory=list)
    volatile: set[str] = field(default_factory=set)
    questions: set[str] = field(default_factory=set)
    directed: dict[str, set[str]] = field(default_factory=dict)
    words: frozenset[str] = frozenset()
    letters: str = ""


@lru_cache(maxsize=_REMEMBERED)
def facts_of(text: str) -> Facts:
    """Return the facts of a text."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)
    foreign = next((letter for letter in dict.fromkeys(text) if not _is_read(letter)), None)
    if foreign is not None:
        return Facts(uncovered=f"the guards do not know letters such as {foreign!r}")
    tokens = [
        Token(match.lastgroup or "", match.group(), match.start(), match.end()) for match in _TOKEN.finditer(text)
    ]
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


class _Reader:
    """Reads a text's tokens in order, and notes its facts."""

    def __init__(self, facts: Facts, words: Lexicon, tokens: list[Token]) -> None:
        self.facts, self.words = facts, words
        self.tokens = tokens
        self.place = 0
        # Places of tokens that are a fact of another kind, and so no name.
        self.taken: set[int] = set()
        self.parts: set[str] = set()
        # Which half of the day the text's first part of a day is in: "tomorrow morning at ten".
        self.part = next((words.halves[token.word] for token in tokens if token.word in words.parts), "")

    def word(self, place: int) -> str:
        """Return the word at a place, "" where there is none."""
        if 0 <= place < len(self.tokens):
            token = self.tokens[place]
            return token.word if token.kind in ("word", "dotted") else ""
        return ""

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
            self.facts.times |= self.parts

    def _take(self, token: Token) -> None:  # noqa: C901 - one branch for each kind
        """Read the token here, and what belongs to it; move on only behind what is a fact of its own."""
        kind = token.kind
        if kind in ("url", "mail", "version", "code"):
            self._identifier(token)
        elif kind == "iso":
            self.place += 1
            self.facts.dates.add("-".join(str(int(part)) for part in token.text.split("-")))
        elif kind == "slashed":
            self.place += 1
            self.facts.dates.add(_slashed(token.text))
        elif kind == "clock":
            self.place += 1
            hour, minute = map(int, token.text.split(":"))
            self._time(hour, minute, self._half(), is_24=token.text[0] == "0" or hour > _FACE)
        elif kind == "sign":
            around = self.place - 1, self.place + 1
            if all(0 <= one < len(self.tokens) and self.tokens[one].kind == "number" for one in around):
                self._note_sides(_SIGNS.get(token.text, token.text))
        elif kind == "number":
            self.place += 1
            self._number(_value(token.text), self.place - 1, "")
        elif kind in ("word", "dotted"):
            word = token.word
            is_number = word in self.words.numbers or (word in self.words.scales and not self._is_scale(self.place))
            if is_number:
                self._spelled(word)
            elif not self._quarter(word) and not self._month(word):
                self._note(word)

    def _is_scale(self, place: int) -> bool:
        return self.word(place - 1) in self.words.scales

    def _identifier(self, token: Token) -> None:
        self.place += 1
        self.facts.identifiers.add(letters_of(token.text.rstrip(".,;:!?)'\"")))
        spaced = _SPACED.fullmatch(token.text) if token.kind == "code" else None
        if spaced is not None:  # what is "ABC-123" here may be "ABC 123" there
            value = float(spaced[1])
            self.facts.numbers.append((value, "", value, ""))

    def _spelled(self, word: str) -> None:
        """Read a number in words: "twenty one", "two hundred and five", "a dozen", "five thirty"."""
        words, first = self.words, self.place
        value = self._below_hundred() if word in words.numbers else 1.0
        has_scale = False
        while self.word(self.place) in words.scales:
            has_scale = True
            value *= words.scales[self.word(self.place)]
            self.place += 1
            rest = self.place + (self.word(self.place) in ("and", "und"))
            if words.numbers.get(self.word(rest), 0) >= 1 and value >= _HUNDRED:
                self.place = rest
                value += self._below_hundred()
        is_alone = self.place == first + 1
        minute = words.numbers.get(self.word(self.place), 0)
        if is_alone and not has_scale and 1 <= value <= _FACE and _TEN <= minute < _HOUR and value % 1 == 0:
            minute = self._below_hundred()
            self._time(int(value), int(minute), self._half(), is_24=False)
            return
        self._note_sides(word)
        self._number(value, first, word if is_alone else "")

    def _below_hundred(self) -> float:
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

    def _number(self, value: float, first: int, spelled: str) -> None:
        """Read what follows a number that began at the place `first`: it makes a date, a time or a quantity of it."""
        words = self.words
        if not spelled and self._is_glued(_MULTIPLIERS):
            value *= _MULTIPLIERS[self.word(self.place)]
            self.place += 1
        while not spelled and self.word(self.place) in words.scales:
            value *= words.scales[self.word(self.place)]
            self.place += 1
        is_ordinal = not spelled and self._is_glued(_ORDINAL)
        self.place += is_ordinal
        if [self.word(self.place + ahead) for ahead in range(3)] == ["and", "a", "half"]:
            self.place += 3
            value += 0.5
        if self._date(value) or self._clock(value, first, spelled):
            return
        unit = self._unit(first, spelled) if not is_ordinal else None
        if unit is not None:
            self.facts.numbers.append((round(value * unit[1], 6), unit[0], value, unit[2]))
        elif spelled in words.hedged:
            self.facts.hedged.add(value)
        else:
            self.facts.numbers.append((value, "", value, ""))

    def _is_glued(self, words: Container[str]) -> bool:
        """Say whether one of the words stands here, with no space before it."""
        if self.word(self.place) not in words:
            return False
        return self.tokens[self.place].start == self.tokens[self.place - 1].end

    def _date(self, day: float) -> bool:
        """Read "3 May 2024", "3rd of May"."""
        place = self.place + (self.word(self.place) == "of")
        month = self.words.months.get(self.word(place))
        if month is None or not (1 <= day <= _LONGEST_MONTH and day % 1 == 0):
            return False
        self.place = place + 1
        self.facts.dates.add(f"{self._year()}{month}-{int(day)}")
        return True

    def _month(self, word: str) -> bool:
        """Read "May 3rd, 2024", "in May"; whether it is a month is told by what is beside it."""
        month = self.words.months.get(word)
        if month is None:
            return False
        following = self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else None
        value = _value(following.text) if following is not None and following.kind == "number" else 0.0
        if following is not None and self.words.numbers.get(following.word, 0) >= 1 and len(word) > _SHORT:
            self.place += 1
            value = self._below_hundred()
        elif value % 1 == 0 and 1 <= value <= _LONGEST_MONTH:
            self.place += 2
            self.place += self._is_glued(_ORDINAL)
        else:
            if len(word) <= _SHORT or word == "march":
                before = self.word(self.place - 1)
                if before not in self.words.before_months and not _is_year(value):
                    return False
            self.place += 1
            self.facts.dates.add(f"{self._year()}{month}")
            return True
        self.facts.dates.add(f"{self._year()}{month}-{int(value)}")
        return True

    def _year(self) -> str:
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        if token is None or token.kind != "number" or not _is_year(_value(token.text)):
            return ""
        self.place += 1
        return f"{token.text}-"

    def _clock(self, value: float, first: int, spelled: str) -> bool:
        """Read "6 am", "at 6 in the evening", "ten past six", "half past six", "halb sieben"."""
        words = self.words
        here, hour = self.word(self.place), self._hour(self.place + 1)
        if spelled == "halb" and self._hour(self.place):
            hour = self._hour(self.place) - 1
            self.place += 1
            self._time(hour, 30, self._half(), is_24=False)
            return True
        minutes = 30.0 if spelled == "half" else value
        if hour and here in words.past and 1 <= minutes < _HOUR and minutes % 1 == 0:
            self.place += 2
            self._time(hour, int(minutes), self._half(), is_24=False)
            return True
        if self.word(self.place) in words.oclock:
            self.place += 1
        if not 1 <= value < 100 * _FACE + _HOUR or value % 1:
            return False
        half = self._half()
        if not half and self.word(first - 1) in ("at", "um"):
            half = self.part
        if not half:
            return False
        hours, minute = divmod(int(value), 100) if value >= _HUNDRED else (int(value), 0)
        self._time(hours, minute, half, is_24=False)
        return True

    def _quarter(self, word: str) -> bool:
        """Read "quarter past six", "quarter to six"."""
        after, hour = self.word(self.place + 1), self._hour(self.place + 2)
        if word not in ("quarter", "viertel") or not hour:
            return False
        if after not in self.words.past and after not in self.words.to:
            return False
        self.place += 3
        minutes = hour * 60 + (15 if after in self.words.past else -15)
        self._time(minutes // 60, minutes % 60, self._half(), is_24=False)
        return True

    def _hour(self, place: int) -> int:
        """Return the hour on a clock's face that stands at a place, 0 where there is none."""
        token = self.tokens[place] if 0 <= place < len(self.tokens) else None
        if token is None or token.kind not in ("number", "word"):
            return 0
        value = _value(token.text) if token.kind == "number" else self.words.numbers.get(token.word, 0)
        return int(value) if 1 <= value <= _FACE and value % 1 == 0 else 0

    def _half(self) -> str:
        """Read which half of the day a time is in, "" where it is not said."""
        place = self.place
        while place - self.place < _BETWEEN_WORDS and self.word(place) in _BETWEEN:
            place += 1
        half = self.words.halves.get(self.word(place), "")
        if half:
            self.place = place + 1
        return half

    def _time(self, hour: int, minute: int, half: str, *, is_24: bool) -> None:
        """Note a time; a full hour that may be of both halves is but a number."""
        if half:
            hour = hour % _FACE + (_FACE if half == "pm" else 0)
        elif not is_24 and not minute:
            self.facts.numbers.append((float(hour), "", float(hour), ""))
            return
        self.facts.times.add(f"{hour:02}:{minute:02}" if half or is_24 else f"{hour % _FACE}:{minute:02}")

    def _unit(self, first: int, spelled: str) -> tuple[str, float, str] | None:
        """Read the unit behind a number, or the sign of a currency before it."""
        units = self.words.units
        sign = self.tokens[first - 1].text if first else ""
        if not sign.isalnum() and sign in units:
            return units[sign]
        place = self.place + (spelled in ("half", "halbe") and self.word(self.place) in ("a", "an", "eine"))
        if place < len(self.tokens) and self.tokens[place].text == "-":  # "a 5-minute walk"
            place += 1
        word = self.word(place)
        unit = units.get(word) if len(word) > 1 or not spelled else None  # "one's" has no unit
        if unit is not None:
            self.place = place + 1
        return unit

    def _note(self, word: str) -> None:  # noqa: C901 - one look at each table
        """Note what a word says that is no number, date or time."""
        facts, words = self.facts, self.words
        before, after = self.word(self.place - 1), self.word(self.place + 1)
        if word in words.negations:
            facts.negations += (before, word) not in words.not_negations and (word, after) not in words.not_negations
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
            self.parts.add(words.parts[word])
        if word in words.questions:
            facts.questions.add(words.questions[word])
        elif word in ("how", "wie"):
            facts.questions.add(f"{word} {words.how[after]}" if after in words.how else word)
        if word in words.directions:
            place = self.place + 1
            place += self.word(place) in words.articles
            facts.directed.setdefault(word, set()).add(self.word(place))
        if word in words.units and len(word) > _SHORT:
            facts.units.add(words.units[word][2])
        self._note_sides(word)

    def _note_sides(self, word: str) -> None:
        for side in self.words.opposites.get(word, ()):
            self.facts.sides.setdefault(side, []).append(word)


def letters_of(text: str) -> str:
    """Return a text's letters and digits in a row, casefolded."""
    return "".join(filter(str.isalnum, text.casefold()))


def _value(number: str) -> float:
    """Read a number in figures: a comma parts thousands, or else stands before a fraction, as in German."""
    if _THOUSANDS.match(number):
        return float(number.replace(",", ""))
    return float(number.replace(",", "."))


def _is_year(value: float) -> bool:
    return 1000 <= value < 2200 and value % 1 == 0  # noqa: PLR2004 - the years that people write of


def _slashed(text: str) -> str:
    """Return a date of three numbers as year-month-day, where only one order of them is a date."""
    first, second, year = map(int, re.split("[/.]", text))
    year += 2000 if year < _HUNDRED else 0
    if second > _FACE or "." in text:
        first, second = second, first
        if "." not in text:
            return f"{year}-{second}-{first}"
        return f"{year}-{first}-{second}"
    return f"{year}-{second}-{first}" if first > _FACE else f"{year}-{first}/{second}"


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
