"""Dates and times in a text, in figures and in words."""

from __future__ import annotations

import re

from semcache.policy.facts import Facts
from semcache.policy.lexicon import Lexicon
from semcache.policy.tokens import Cursor, Token, value_of

_FACE = 12
_HUNDRED = 100
_HOUR = 60
_LONGEST_MONTH = 31
# Words no longer than this are mostly another word too: "may", "in", "sec".
SHORT = 3
ORDINAL = ("st", "nd", "rd", "th")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# What may stand between a time and its half of the day: "6 tomorrow in the morning".
_BETWEEN = frozenset({"in", "at", "the", "this", "tomorrow"})
_BETWEEN_WORDS = 3


class Moments(Cursor):
    """Reads dates and times."""

    def __init__(self, facts: Facts, words: Lexicon, tokens: list[Token]) -> None:
        super().__init__(facts, words, tokens)
        # Which half of the day the text's first part of a day is in: "tomorrow morning at ten".
        self._half = next((words.halves[token.word] for token in tokens if token.word in words.parts), "")

    def moment(self, token: Token) -> None:
        """Read the date or time in figures that stands here."""
        self.place += 1
        if token.kind == "iso":
            self.facts.dates.add("-".join(str(int(part)) for part in token.text.split("-")))
        elif token.kind == "slashed":
            self.facts.dates.add(_slashed(token.text))
        else:
            hour, minute = map(int, token.text.split(":"))
            self.note_time(hour, minute, self.half_of_day(), is_24=token.text[0] == "0" or hour > _FACE)

    def date(self, day: float) -> bool:
        """Read "3 May 2024", "3rd of May"."""
        place = self.place + (self.word(self.place) == "of")
        month = self.words.months.get(self.word(place))
        if month is None or not (1 <= day <= _LONGEST_MONTH and day % 1 == 0):
            return False
        self.place = place + 1
        self.facts.dates.add(f"{self._year()}{month}-{int(day)}")
        return True

    def month(self, word: str) -> bool:
        """Read "May 3rd, 2024", "in May"; whether it is a month is told by what is beside it."""
        month = self.words.months.get(word)
        if month is None:
            return False
        following = self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else None
        value = value_of(following.text) if following is not None and following.kind == "number" else 0.0
        if following is not None and self.words.numbers.get(following.word, 0) >= 1 and len(word) > SHORT:
            self.place += 1
            value = self.below_hundred()
        elif value % 1 == 0 and 1 <= value <= _LONGEST_MONTH:
            self.place += 2
            self.place += self.is_glued(ORDINAL)
        else:
            if len(word) <= SHORT or word == "march":
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
        if token is None or token.kind != "number" or not _is_year(value_of(token.text)):
            return ""
        self.place += 1
        return f"{token.text}-"

    def clock(self, value: float, first: int, spelled: str) -> bool:
        """Read "6 am", "at 6 in the evening", "ten past six", "half past six", "halb sieben"."""
        words = self.words
        here, hour = self.word(self.place), self._hour(self.place + 1)
        if spelled == "halb" and self._hour(self.place):
            hour = self._hour(self.place) - 1
            self.place += 1
            self.note_time(hour, 30, self.half_of_day(), is_24=False)
            return True
        minutes = 30.0 if spelled == "half" else value
        if hour and here in words.past and 1 <= minutes < _HOUR and minutes % 1 == 0:
            self.place += 2
            self.note_time(hour, int(minutes), self.half_of_day(), is_24=False)
            return True
        if self.word(self.place) in words.oclock:
            self.place += 1
        if not 1 <= value < 100 * _FACE + _HOUR or value % 1:
            return False
        half = self.half_of_day()
        if not half and self.word(first - 1) in ("at", "um"):
            half = self._half
        if not half:
            return False
        hours, minute = divmod(int(value), 100) if value >= _HUNDRED else (int(value), 0)
        self.note_time(hours, minute, half, is_24=False)
        return True

    def quarter(self, word: str) -> bool:
        """Read "quarter past six", "quarter to six"."""
        if word not in ("quarter", "viertel"):
            return False
        after, hour = self.word(self.place + 1), self._hour(self.place + 2)
        if not hour:
            return False
        if after not in self.words.past and after not in self.words.to:
            return False
        self.place += 3
        minutes = hour * 60 + (15 if after in self.words.past else -15)
        self.note_time(minutes // 60, minutes % 60, self.half_of_day(), is_24=False)
        return True

    def _hour(self, place: int) -> int:
        """Return the hour on a clock's face that stands at a place, 0 where there is none."""
        token = self.tokens[place] if 0 <= place < len(self.tokens) else None
        if token is None or token.kind not in ("number", "word"):
            return 0
        value = value_of(token.text) if token.kind == "number" else self.words.numbers.get(token.word, 0)
        return int(value) if 1 <= value <= _FACE and value % 1 == 0 else 0

    def half_of_day(self) -> str:
        """Read which half of the day a time is in, "" where it is not said."""
        place = self.place
        while place - self.place < _BETWEEN_WORDS and self.word(place) in _BETWEEN:
            place += 1
        half = self.words.halves.get(self.word(place), "")
        if half:
            self.place = place + 1
        return half

    def note_time(self, hour: int, minute: int, half: str, *, is_24: bool) -> None:
        """Note a time; a full hour that may be of both halves is but a number."""
        if half:
            hour = hour % _FACE + (_FACE if half == "pm" else 0)
        elif not is_24 and not minute:
            self.facts.numbers.append((float(hour), "", float(hour), ""))
            return
        self.facts.times.add(f"{hour:02}:{minute:02}" if half or is_24 else f"{hour % _FACE}:{minute:02}")


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
