"""Guards: what a near match must agree in, whatever its similarity: an embedder takes 6 for 7, enable for disable.

Laws: pure, symmetric, linear in the texts' length; a text conflicts with none of its own spellings, in case, spaces
and punctuation around words; a text that the guards cannot read is exact only (law 12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from semcache.errors import ConfigurationError
from semcache.model import Decision, Neighbour, Verdict
from semcache.policy.facts import Facts, Quantity
from semcache.policy.lexicon import same_names
from semcache.policy.reading import facts_of, read

GUARDS = (
    "language", "volatile", "numbers", "units", "dates", "times", "identifiers", "quotes", "negation", "antonyms",
    "names", "questions", "order",
)  # fmt: skip
"""All guards; each is on unless a policy names others."""

_SHOWN = 40
# Inside a row of letters a shorter name is found by chance.
_LONG = 5
# Texts of nearly the same words: else what follows "to" is mostly another thing.
_REWORDED = 2
_STEM, _ENDING = 3, 3


class Refusal(NamedTuple):
    """Why a near match is refused: the guard's name, and the reason in words."""

    guard: str
    reason: str


_Check = Callable[[Facts, Facts], Refusal | None]


class Guards:
    """The guards named, all of them by default. Raises ConfigurationError for a name that is none.

    `facts` tells what of a text must agree; by default the facts of the texts compared last are remembered.
    """

    def __init__(self, names: Iterable[str] | None = GUARDS, *, facts: Callable[[str], Facts] = facts_of) -> None:
        if isinstance(names, str):
            names = (names,)
        self.names = frozenset(names or ())
        unknown = self.names - set(GUARDS)
        if unknown:
            raise ConfigurationError(f"guards are {', '.join(GUARDS)}, or None; got {sorted(map(str, unknown))}")
        self.facts = facts
        self._checks = tuple(check for names, check in _CHECKS if self.names & set(names))

    def check(self, text: str, other: str) -> Refusal | None:
        """Say why two texts must not share an answer; None where no guard knows a reason."""
        if text == other or not self._checks:
            return None
        return self.compare(self.facts(text), self.facts(other))

    def compare(self, one: Facts, two: Facts) -> Refusal | None:
        """Say the same of the facts of two texts that differ."""
        for check in self._checks:
            refusal = check(one, two)
            if refusal is not None and refusal.guard in self.names:
                return refusal
        return None

    def refuses(self, text: str, other: str) -> str | None:
        """Return the name of the guard that refuses; None where none does."""
        refusal = self.check(text, other)
        return None if refusal is None else refusal.guard

    def over(self, decision: Decision, text: str, neighbour: Neighbour) -> Decision:
        """Return a policy's decision, or the rejection of what it would serve and a guard refuses.

        The policy comes first because it costs less: what a guard refused is what would have been served.
        """
        if decision.verdict is not Verdict.REUSE:
            return decision
        refusal = self.check(text, neighbour.text)
        if refusal is None:
            return decision
        return Decision(Verdict.REJECT, refusal.reason, decision.similarity, decision.cut, refusal.guard)

    def unbounded(self) -> Guards:
        """Return the same guards with a memory of their own for all texts, for one job that compares many."""
        return Guards(self.names, facts=cache(read))

    def __repr__(self) -> str:
        return f"Guards({sorted(self.names, key=GUARDS.index)})"


def _differ(guard: str, one: Iterable[object], two: Iterable[object]) -> Refusal:
    sides = (", ".join(sorted(map(str, side)))[:_SHOWN] or "none" for side in (one, two))
    return Refusal(guard, f"guard: {guard} differ ({' / '.join(sides)})")


def _language(one: Facts, two: Facts) -> Refusal | None:
    uncovered = one.uncovered or two.uncovered
    if uncovered is not None:
        return Refusal("language", f"exact only: {uncovered}")
    if one.language and two.language and one.language != two.language:
        return _differ("language", [one.language], [two.language])
    return None


def _numbers(one: Facts, two: Facts) -> Refusal | None:
    """Compare numbers and quantities: a unit may be left out, but not be another one."""
    if one.numbers == two.numbers and one.hedged == two.hedged and one.units == two.units:
        return None
    mine, theirs = _left(one.numbers, two.numbers), _left(two.numbers, one.numbers)
    mine, theirs = _unmatched(mine, theirs, two), _unmatched(theirs, mine, one)
    if mine or theirs:
        is_unit = {raw for _, _, raw, _ in mine} == {raw for _, _, raw, _ in theirs}
        return _differ("units" if is_unit else "numbers", map(_shown, mine), map(_shown, theirs))
    apart = one.hedged - two.hedged, two.hedged - one.hedged
    if all(apart):
        return _differ("numbers", *(map("{:g}".format, side) for side in apart))
    if one.units - two.units and two.units - one.units:
        return _differ("units", one.units - two.units, two.units - one.units)
    return None


def _left(mine: list[Quantity], theirs: list[Quantity]) -> list[Quantity]:
    there = {(base, dimension) for base, dimension, _, _ in theirs}
    return [one for one in mine if one[:2] not in there]


def _unmatched(mine: list[Quantity], theirs: list[Quantity], other: Facts) -> list[Quantity]:
    """Leave out what the other side has without the unit, as "an hour", or in a word that is mostly something else."""
    bare = {raw for _, dimension, raw, _ in theirs if not dimension}
    any_unit = {raw for _, _, raw, _ in theirs}
    return [
        one for one in mine
        if one[2] not in other.hedged
        and one[2] not in (bare if one[1] else any_unit)
        and not (one[2] == 1 and (one[3] in other.units or one[3] in other.words))
    ]  # fmt: skip


def _shown(number: Quantity) -> str:
    return f"{number[2]:.15g} {number[3]}".rstrip()


def _sets(guard: str, name: str) -> _Check:
    """Return a check that two sets of facts are equal."""

    def check(one: Facts, two: Facts) -> Refusal | None:
        mine, theirs = getattr(one, name), getattr(two, name)
        return None if mine == theirs else _differ(guard, mine - theirs, theirs - mine)

    return check


def _written(guard: str, name: str) -> _Check:
    """Return a check that what one text names stands in the other, however that writes it."""

    def check(one: Facts, two: Facts) -> Refusal | None:
        named, theirs_named = getattr(one, name), getattr(two, name)
        if not named and not theirs_named:
            return None
        mine, theirs = _missing(named, two), _missing(theirs_named, one)
        return _differ(guard, mine, theirs) if mine or theirs else None

    return check


def _missing(named: set[str], text: Facts) -> set[str]:
    return {
        one for one in named
        if one not in text.words
        and (not (len(one) >= _LONG or any(map(str.isdigit, one))) or one.removesuffix("s") not in text.letters)
    }  # fmt: skip


def _names(one: Facts, two: Facts) -> Refusal | None:
    """Compare names: a part of one stands for all of it ("Trump"), unless each text has a part of its own."""
    if not one.names and not two.names:
        return None
    mine, theirs = _unnamed(one, two), _unnamed(two, one)
    if not mine and not theirs:
        return None
    if not (mine and theirs) and all(len(words) < len(name) for name, words in mine or theirs):
        return None
    return _differ("names", *({word for _, words in side for word in words} for side in (mine, theirs)))


def _unnamed(one: Facts, two: Facts) -> list[tuple[tuple[str, ...], list[str]]]:
    """Return the names of one text of which words do not stand in the other, with those words."""
    names = [(name, [word for word in name if not _is_named(word, two)]) for name in one.names]
    return [(name, words) for name, words in names if words]


def _is_named(word: str, text: Facts) -> bool:
    """Say whether a text has a name, what is derived from it ("India", "Indian"), or means the same."""
    if word in text.words or (len(word) >= _LONG and word in text.letters):
        return True
    if any(identifier.startswith(word) for identifier in text.identifiers):  # "ABC 123", written "ABC-123"
        return True
    if not text.words.isdisjoint(same_names().get(word, ())):
        return True
    return any(
        abs(len(word) - len(other)) <= _ENDING and (word.startswith(other) or other.startswith(word))
        for other in text.words
        if min(len(word), len(other)) >= _STEM
    )


def _negation(one: Facts, two: Facts) -> Refusal | None:
    if one.negations % 2 == two.negations % 2:
        return None
    told = ["negated" if facts.negations % 2 else "not negated" for facts in (one, two)]
    return Refusal("negation", f"guard: negation differs ({' / '.join(told)})")


def _antonyms(one: Facts, two: Facts) -> Refusal | None:
    """Refuse where one text says more of one side of a group, the other more of another side."""
    if one.sides == two.sides:
        return None
    more: dict[int, str] = {}
    for (group, side), words in one.sides.items():
        if len(words) > len(two.sides.get((group, side), ())):
            more[group] = words[0]
    for (group, side), words in two.sides.items():
        if group in more and len(words) > len(one.sides.get((group, side), ())):
            return _differ("antonyms", [more[group]], [words[0]])
    return None


def _questions(one: Facts, two: Facts) -> Refusal | None:
    mine, theirs = one.questions - {"how", "wie"}, two.questions - {"how", "wie"}
    if mine and theirs and not mine & theirs:
        return _differ("questions", mine, theirs)
    return None


def _volatile(one: Facts, two: Facts) -> Refusal | None:
    """Refuse both texts: when they were asked is a part of what they mean, and nobody tells it here."""
    words = one.volatile | two.volatile
    return Refusal("volatile", f"exact only: volatile words ({', '.join(sorted(words))})") if words else None


def _order(one: Facts, two: Facts) -> Refusal | None:
    """Refuse "dollars to euros" for "euros to dollars": both have both, each in the other's place."""
    if not one.directed or not two.directed or len(one.words ^ two.words) > _REWORDED:
        return None
    for word in one.directed.keys() & two.directed.keys():
        mine, theirs = one.directed[word] - two.directed[word], two.directed[word] - one.directed[word]
        if mine & two.words and theirs & one.words:
            return Refusal("order", f"guard: order differs ({word} {min(mine)} / {word} {min(theirs)})")
    return None


# What costs least and refuses most comes first.
_CHECKS: tuple[tuple[tuple[str, ...], _Check], ...] = (
    (("language",), _language),
    (("volatile",), _volatile),
    (("numbers", "units"), _numbers),
    (("dates",), _sets("dates", "dates")),
    (("times",), _sets("times", "times")),
    (("identifiers",), _written("identifiers", "identifiers")),
    (("quotes",), _written("quotes", "quotes")),
    (("negation",), _negation),
    (("antonyms",), _antonyms),
    (("names",), _names),
    (("questions",), _questions),
    (("order",), _order),
)
