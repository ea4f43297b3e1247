"""What two texts have in common and what tells them apart, in a dozen numbers that a score learns from.

Laws: pure and symmetric; sums are exact, so no order of words or of a set changes a number; a text is read once, and
the latest ones are remembered, since the texts that are found are found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import fsum, log, log1p
from typing import NamedTuple
from zlib import crc32

from semcache.policy.facts import Facts, facts_of

BUCKETS = 4096
"""How many kinds of words are told apart when it is counted how rare they are: a word is known by its hash alone."""

_REMEMBERED = 4096
_WORD = re.compile(r"\w+")
_LETTERS = 3
_SKETCH = 512
_SOME = 0.1


class Read(NamedTuple):
    """A text as it is compared: its words' buckets, how many words, a sketch of its letters, and what guards know."""

    buckets: frozenset[int]
    length: int
    sketch: int
    facts: tuple[object, ...]


@lru_cache(maxsize=_REMEMBERED)
def read(text: str) -> Read:
    """Read a text."""
    words = _WORD.findall(text.casefold())
    row = f" {' '.join(words)} "
    sketch = 0
    for place in range(len(row) - _LETTERS + 1):
        sketch |= 1 << crc32(row[place : place + _LETTERS].encode()) % _SKETCH
    return Read(frozenset(map(_bucket, words)), len(words), sketch, _known(facts_of(text)))


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


def rarities(texts: Iterable[str]) -> list[float]:
    """Return how rare the words of each bucket are in texts: 0 for what stands in all of them, 1 for what in none."""
    counts = [0] * BUCKETS
    number = 0
    for text in texts:
        number += 1
        for bucket in read(text).buckets:
            counts[bucket] += 1
    most = log(number + 1) or 1.0
    return [log((number + 1) / (count + 1)) / most for count in counts]


NAMES = (
    "rare words shared", "rare words shared, of the poorer text", "rarest word apart", "rarest word apart, other side",
    "rarity apart", "rarity apart, lesser side", "words shared", "letters shared", "letters shared, of the lesser text",
    "lengths", "length", "same words", "numbers", "dates and times", "identifiers and quotes", "negation", "opposites",
    "names", "questions",
)  # fmt: skip
"""What `compare` tells, in order."""


def compare(one: Read, two: Read, rarity: Sequence[float]) -> list[float]:
    """Tell what two texts share and what tells them apart: one number for each of NAMES."""
    shared = one.buckets & two.buckets
    mine = [rarity[bucket] for bucket in one.buckets - shared]
    theirs = [rarity[bucket] for bucket in two.buckets - shared]
    both = fsum(rarity[bucket] for bucket in shared)
    lesser, greater = sorted((fsum(mine), fsum(theirs)))
    rarest = sorted((max(mine, default=0.0), max(theirs, default=0.0)))
    letters = (one.sketch & two.sketch).bit_count()
    shorter, longer = sorted((one.sketch.bit_count(), two.sketch.bit_count()))
    few, many = sorted((one.length, two.length))
    words = len(one.buckets) + len(two.buckets) - len(shared)
    return [
        both / (both + lesser + greater + _SOME),
        both / (both + lesser + _SOME),
        rarest[1],
        rarest[0],
        log1p(lesser + greater),
        log1p(lesser),
        len(shared) / words if words else 1.0,
        letters / max(1, shorter + longer - letters),
        letters / max(1, shorter),
        log((many + 1) / (few + 1)),
        log1p(few),
        float(one.buckets == two.buckets),
        *(float(known != other) for known, other in zip(one.facts, two.facts, strict=True)),
    ]
