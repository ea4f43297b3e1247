"""Numbers in a text, in figures and in words, with their units."""

from __future__ import annotations

from semcache.policy.moments import ORDINAL, Moments

_FACE = 12
_TEN, _HUNDRED = 10, 100
_HOUR = 60
_MULTIPLIERS = {"k": 1_000, "m": 1_000_000, "bn": 1_000_000_000}


class Quantities(Moments):
    """Reads numbers: what begins with one is a date, a time, or else a quantity."""

    def is_spelled(self) -> bool:
        """Say whether a number in words begins here; "hundred" begins one where no other scale stands before it."""
        words, word = self.words, self.word(self.place)
        return word in words.numbers or (word in words.scales and self.word(self.place - 1) not in words.scales)

    def spelled(self, word: str) -> None:
        """Read a number in words: "twenty one", "two hundred and five", "a dozen", "five thirty"."""
        words, first = self.words, self.place
        value = self.below_hundred() if word in words.numbers else 1.0
        has_scale = False
        while self.word(self.place) in words.scales:
            has_scale = True
            value *= words.scales[self.word(self.place)]
            self.place += 1
            rest = self.place + (self.word(self.place) in ("and", "und"))
            if words.numbers.get(self.word(rest), 0) >= 1 and value >= _HUNDRED:
                self.place = rest
                value += self.below_hundred()
        is_alone = self.place == first + 1
        minute = words.numbers.get(self.word(self.place), 0)
        if is_alone and not has_scale and 1 <= value <= _FACE and _TEN <= minute < _HOUR and value % 1 == 0:
            minute = self.below_hundred()
            self.note_time(int(value), int(minute), self.half_of_day(), is_24=False)
            return
        self.note_sides(word)
        self.number(value, first, word if is_alone else "")

    def number(self, value: float, first: int, spelled: str) -> None:
        """Read what follows a number that began at the place `first`: it makes a date, a time or a quantity of it."""
        words = self.words
        if not spelled and self.is_glued(_MULTIPLIERS):
            value *= _MULTIPLIERS[self.word(self.place)]
            self.place += 1
        while not spelled and self.word(self.place) in words.scales:
            value *= words.scales[self.word(self.place)]
            self.place += 1
        is_ordinal = not spelled and self.is_glued(ORDINAL)
        self.place += is_ordinal
        if [self.word(self.place + ahead) for ahead in range(3)] == ["and", "a", "half"]:
            self.place += 3
            value += 0.5
        if self.date(value) or self.clock(value, first, spelled):
            return
        unit = self._unit(first, spelled) if not is_ordinal else None
        if unit is not None:
            self.facts.numbers.append((round(value * unit[1], 6), unit[0], value, unit[2]))
        elif spelled in words.hedged:
            self.facts.hedged.add(value)
        else:
            self.facts.numbers.append((value, "", value, ""))

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
