"""The words that the guards know, by language: lexicon.toml, read once, when the first near match is judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "de")
_HALVES = (("am", "am"), ("pm", "pm"), ("am", "morning"), ("pm", "evening"))


@dataclass(frozen=True, slots=True)
class Lexicon:
    """One language's words, each with what it means; words are casefolded and without apostrophes.

    `opposites` names the (group, side) pairs of a word, `two_sided` the groups of two sides; `numbers` are those below
    100, `scales` what multiplies the number before it. `units` are of all languages: (dimension, factor, name).
    """

    opposites: dict[str, tuple[tuple[int, int], ...]]
    two_sided: frozenset[int]
    lessening: frozenset[str]
    not_opposites: frozenset[tuple[str, ...]]
    negations: frozenset[str]
    negating: frozenset[tuple[str, ...]]
    not_negations: frozenset[tuple[str, ...]]
    volatile: frozenset[str]
    following: dict[str, str]
    periods: frozenset[str]
    months: dict[str, int]
    weekdays: dict[str, int]
    before_months: frozenset[str]
    numbers: dict[str, float]
    tens: frozenset[str]
    scales: dict[str, int]
    hedged: frozenset[str]
    past: frozenset[str]
    to: frozenset[str]
    halves: dict[str, str]
    parts: dict[str, str]
    oclock: frozenset[str]
    at_noon: dict[str, int]
    directions: frozenset[str]
    articles: frozenset[str]
    questions: dict[str, str]
    joining: frozenset[str]
    asking: frozenset[str]
    telling: frozenset[str]
    durations: dict[str, str]
    how: dict[str, str]
    units: dict[str, tuple[str, float, str]]


@cache
def lexicon(language: str) -> Lexicon:
    """Return a language's words."""
    table: dict[str, Any] = _tables()[language]
    return Lexicon(
        opposites=_opposites(table["opposites"]),
        two_sided=frozenset(group for group, line in enumerate(table["opposites"]) if line.count("|") == 1),
        lessening=_words(table["lessening"]),
        not_opposites=_phrases(table["not_opposites"]),
        negations=_words(table["negations"]),
        negating=_phrases(table["negating"]),
        not_negations=_phrases(table["not_negations"]),
        volatile=_words(table["volatile"]),
        following=_named(table["following"]),
        periods=_words(table["periods"]),
        months=_ordered(table["months"], 1),
        weekdays=_ordered(table["weekdays"], 0),
        before_months=_words(table["before_months"]),
        numbers=_numbers(table),
        tens=_words(table["tens"]),
        scales={_fold(word): scale for word, scale in table["scales"].items()},
        hedged=_words(table["hedged"]),
        past=_words(table["past"]),
        to=_words(table["to"]),
        halves={word: half for half, name in _HALVES for word in _named(table[name])},
        parts=_named(table["morning"]) | _named(table["evening"]),
        oclock=_words(table["oclock"]),
        at_noon={_fold(word): minutes for word, minutes in table["at_noon"].items()},
        directions=_words(table["directions"]),
        articles=_words(table["articles"]),
        questions=_named(table["questions"]),
        joining=_words(table["joining"]),
        asking=_words(table["asking"]),
        telling=_words(table["telling"]),
        durations=_named(table["durations"]),
        how=_named(table["how"]),
        units=_units(),
    )  # fmt: skip


@cache
def common() -> dict[str, tuple[str, ...]]:
    """Return the words by which languages are told apart, each with the languages it stands for."""
    tables = _tables()
    found: dict[str, tuple[str, ...]] = {}
    own = {language: tables[language]["common"] for language in LANGUAGES}
    for language, words in (own | tables["other"]).items():
        for word in map(_fold, words):
            found[word] = (*found.get(word, ()), language)
    return found


@cache
def same_names() -> dict[str, frozenset[str]]:
    """Return the words that name the same, for each of them."""
    found = {}
    for line in _tables()["names"]["same"]:
        words = _words(line.split())
        found.update(dict.fromkeys(words, words))
    return found


@cache
def _tables() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(files("semcache.policy").joinpath("lexicon.toml").read_text(encoding="utf-8"))


@cache
def _units() -> dict[str, tuple[str, float, str]]:
    units: dict[str, tuple[str, float, str]] = {}
    for dimension, lines in _tables()["units"].items():
        for line in lines:
            name, factor, *words = line.split()
            units.update((_fold(word), (dimension, float(factor), name)) for word in words)
    return units


def _numbers(table: dict[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {word: number for number, word in enumerate(map(_fold, table["digits"]))}
    numbers |= {_fold(word): 10.0 * number for number, word in enumerate(table["tens"], 2)}
    numbers |= {_fold(word): number for number, word in enumerate(table["ordinals"], 1)}
    return numbers | {_fold(word): number for word, number in table["others"].items()}


def _opposites(lines: Iterable[str]) -> dict[str, tuple[tuple[int, int], ...]]:
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    for group, line in enumerate(lines):
        for side, words in enumerate(line.split("|")):
            for word in {form for plain in _fold(words).split() for form in _forms(plain)}:
                found[word] = (*found.get(word, ()), (group, side))
    return found


def _forms(word: str) -> Iterable[str]:
    """Return a word; where it is marked "~" also the regular forms of an English verb, which it may not all have."""
    if not word.startswith("~"):
        return (word,)
    verb = word[1:]
    stem = verb[:-1] if verb.endswith(("e", "y")) else verb
    past = {"e": "ed", "y": "ied"}.get(verb[-1], "ed")
    present = (
        "ies" if verb.endswith("y") and verb[-2] not in "aeou" else "es" if verb.endswith(("s", "h", "x")) else "s"
    )
    third = stem + present if present == "ies" else verb + present
    doubled = verb + verb[-1]
    ing = verb if verb.endswith("y") else stem
    return (verb, third, stem + past, verb + "ed", ing + "ing", doubled + "ed", doubled + "ing")


def _words(words: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_fold, words))


def _phrases(phrases: Iterable[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(_fold(phrase).split()) for phrase in phrases)


def _named(lines: Iterable[str]) -> dict[str, str]:
    """Return words that say the same, line by line, each with the first of its line."""
    return {word: _fold(words).split()[0] for words in lines for word in _fold(words).split()}


def _ordered(lines: Iterable[str], first: int) -> dict[str, int]:
    return {word: place for place, words in enumerate(lines, first) for word in _fold(words).split()}


def _fold(words: str) -> str:
    return words.casefold()
