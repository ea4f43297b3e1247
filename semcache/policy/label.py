"""A label: what is known of one near match, and how it came to be known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """How a label came to be: it says what it may be used for."""

    MISS = "miss"
    """A near match that was not served, and whose request was loaded anyway: free, but biased, so it only trains."""
    AUDIT = "audit"
    """One of the sample that is drawn by hash, at one rate, of all near matches: these alone make a bound."""
    REPORT = "report"
    """A person said that the answer was wrong."""
    PAIR = "pair"
    """Two texts that somebody has labelled, in no cache: it only trains."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a comparator or a person says of the near match of `asked`, a key, and `stored`, whose answer it would be.

    `family` is the scope family's digest, `score` what ranked the match (the cosine where no score was learned), and
    `is_right` what the comparator says: None where it does not know, which counts as wrong wherever a bound is made.
    `rates` are what each score in use or under test makes of the match, by its number; without them there is `score`.
    """

    family: bytes
    asked: bytes
    stored: bytes
    text: str
    neighbour: str
    similarity: float
    score: float
    is_right: bool | None
    source: Source
    rates: tuple[tuple[int, float], ...] = ()
