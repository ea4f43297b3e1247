"""What two texts have in common and what tells them apart, in numbers that a score learns from.

Laws: pure and symmetric; sums are exact, so no order of words or of a set changes a number; a text is read once, and
the latest ones are remembered, in bounded memory, since the texts that are found are found again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import fsum, log, log1p
from operator import ne
from threading import Lock
from typing import NamedTuple
from zlib import crc32

from cachetools import LRUCache, cached

from semcache.policy.facts import Facts
from semcache.policy.guards import Guards
from semcache.policy.reading import facts_of

BUCKETS = 4096
"""How many kinds of words are told apart when it is counted how rare they are: a word is known by its hash alone."""

APART = 512
"""How many kinds of words are told apart where one text of a pair has them and the other lacks them."""

# As many letters as `reading` remembers the facts of, which are kept here too, and what a bucket takes besides.
_REMEMBERED_LETTERS, _EMPTY_LETTERS, _LETTERS_A_WORD = 400_000, 100, 3
_WORD = re.compile(r"\w+")
_LETTERS = 3
_SKETCH = 512
_SOME = 0.1
_GUARDS = Guards()
_AGREED = (False,) * 8


class Read(NamedTuple):
    """A text as it is compared: its words' buckets, how many words, a sketch of its letters, and what guards know.

    Of a sketch's bits `letters` are set. `known` is what is equal in texts whose `facts` agree, and where `rest` is
    equal too, and not None, no guard refuses.
    """

    buckets: frozenset[int]
    length: int
    sketch: int
    letters: int
    known: tuple[object, ...]
    rest: tuple[object, ...] | None
    facts: Facts


def _weight(one: Read) -> int:
    return len(one.facts.letters) + _LETTERS_A_WORD * len(one.buckets) + _EMPTY_LETTERS


@cached(LRUCache(_REMEMBERED_LETTERS, _weight), key=str, lock=Lock())
def read(text: str) -> Read:
    """Read a text."""
    return _read(text)


def _read(text: str) -> Read:
    words = _WORD.findall(text.casefold())
    row = f" {' '.join(words)} "
    sketch = 0
    for place in range(len(row) - _LETTERS + 1):
        sketch |= 1 << crc32(row[place : place + _LETTERS].encode()) % _SKETCH
    facts = facts_of(text)
    return Read(
        frozenset(map(_bucket, words)), len(words), sketch, sketch.bit_count(), _known(facts), _rest(facts), facts
    )


def reader() -> Callable[[str], Read]:
    """Return `read` with a memory of its own for all texts, for one job that compares many."""
    return cache(_read)


def _bucket(word: str) -> int:
    return crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS


def _known(facts: Facts) -> tuple[object, ...]:
    """Return the facts that are compared, each as what is equal in texts that agree."""
    return (
        (frozenset((base, dimension) for base, dimension, _, _ in facts.numbers), frozenset(facts.hedged)),
        (frozenset(facts.dates), frozenset(facts.times)),
        (frozenset(facts.identifiers), frozenset(facts.quotes)),
        facts.negations % 2,
        frozenset(facts.sides),
        frozenset(word for name in facts.names for word in name),
        frozenset(facts.questions),
    )


def _rest(facts: Facts) -> tuple[object, ...] | None:
    """Return what guards compare besides what is known; None where they refuse whatever the other text says."""
    if facts.uncovered is not None or facts.volatile:
        return None
    return (
        facts.language, tuple(facts.numbers), frozenset(facts.units), tuple(facts.names),
        frozenset((side, len(words)) for side, words in facts.sides.items()),
        frozenset((word, frozenset(there)) for word, there in facts.directed.items()),
    )  # fmt: skip


def rarities(texts: Iterable[Read]) -> list[float]:
    """Return how rare the words of each bucket are in texts: 0 for what stands in all of them, 1 for what in none."""
    counts = [0] * BUCKETS
    number = 0
    for text in texts:
        number += 1
        for bucket in text.buckets:
            counts[bucket] += 1
    most = log(number + 1) or 1.0
    return [log((number + 1) / (count + 1)) / most for count in counts]


NAMES = (
    "rare words shared", "rare words shared, of the poorer text", "rarest word apart", "rarest word apart, other side",
    "rarity apart", "rarity apart, lesser side", "words shared", "letters shared", "letters shared, of the lesser text",
    "lengths", "length", "same words", "numbers", "dates and times", "identifiers and quotes", "negation", "opposites",
    "names", "questions", "refused by a guard",
)  # fmt: skip
"""What `compare` tells, in order."""


def compare(one: Read, two: Read, rarity: Sequence[float]) -> list[float]:
    """Tell what two texts share and what tells them apart: one number for each of NAMES."""
    shared = one.buckets & two.buckets
    weigh = rarity.__getitem__
    mine, theirs = list(map(weigh, one.buckets - shared)), list(map(weigh, two.buckets - shared))
    both, lesser, greater = fsum(map(weigh, shared)), fsum(mine), fsum(theirs)
    if lesser > greater:
        lesser, greater = greater, lesser
    rarest, less_rare = max(mine, default=0.0), max(theirs, default=0.0)
    if rarest < less_rare:
        rarest, less_rare = less_rare, rarest
    letters = (one.sketch & two.sketch).bit_count()
    few, many = (one, two) if one.length <= two.length else (two, one)
    words = len(one.buckets) + len(two.buckets) - len(shared)
    return [
        both / (both + lesser + greater + _SOME),
        both / (both + lesser + _SOME),
        rarest,
        less_rare,
        log1p(lesser + greater),
        log1p(lesser),
        len(shared) / words if words else 1.0,
        letters / max(1, one.letters + two.letters - letters),
        letters / max(1, min(one.letters, two.letters)),
        log((many.length + 1) / (few.length + 1)),
        log1p(few.length),
        not mine and not theirs,
        *_disagree(one, two),
    ]


def _disagree(one: Read, two: Read) -> Iterable[bool]:
    if one.known == two.known and one.rest is not None and one.rest == two.rest:
        return _AGREED
    return *map(ne, one.known, two.known), _GUARDS.compare(one.facts, two.facts) is not None


def apart(one: Read, two: Read, begin: int = 0) -> list[int]:
    """Return the kinds of the words that stand in one text alone, APART numbers from `begin` on."""
    return [begin + bucket % APART for bucket in one.buckets ^ two.buckets]
