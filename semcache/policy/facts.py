"""What of a text must be equal in a text that may stand for it: its numbers, dates, names and the like."""

from __future__ import annotations

from dataclasses import dataclass, field

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
