"""What a policy has counted of one scope family, and the names under which a store sums it for all processes.

A count has a name, `trust|FAMILY|TEST|KIND`, on the first day of its season, as `2026-11-12t`: a store adds up what
processes book under one name, so the state of all of them is the sum. Beside the counts stands `trust|FAMILY|base|Q.E`:
the family's first season and how many alarms it has had, of which the smallest and the largest are true.

Laws: pure; all that is kept are counts, of a bounded number; evidence is at most SEASONS seasons old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from semcache.policy.eprocess import CUTS

SEASON_DAYS = 30
SEASONS = 4
MAX_FAMILIES = 48
# In all families that have not labels enough of their own, together.
OTHERS = "others"
_SEASON_SECONDS = SEASON_DAYS * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PARTS = 4

Booked = dict[tuple[str, str], float]

# By cut: labels that may make a bound, right ones that repeat a label, labels that only inform, near matches met.
BY_CUT = ("right", "wrong", "again", "miss_right", "miss_wrong", "met")
# And of the family: requests that no exact tier answered; identical requests that were answered the same, or not.
ALONE = ("asked", "same", "differs")


def season_of(seconds: float) -> int:
    """Return the season of a time, in seconds since 1970."""
    return int(seconds // _SEASON_SECONDS)


@lru_cache(16)
def day_of(season: int) -> str:
    """Return the day under which a season's counts stand in a store; no usage stands under such a one."""
    return f"{(_EPOCH + timedelta(days=season * SEASON_DAYS)).date().isoformat()}t"


class Trial(NamedTuple):
    """What is tested from when on: a generation of the score, after so many alarms, counted in a season."""

    season: int
    generation: int
    alarms: int


# What was counted since it was booked last: family, trial, kind and place of the cut.
Fresh = dict[tuple[str, Trial, str, int | None], float]


@dataclass(slots=True)
class Counts:
    """The counts of one test in one season."""

    by_cut: dict[str, list[float]] = field(default_factory=lambda: {kind: [0.0] * len(CUTS) for kind in BY_CUT})
    alone: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ALONE, 0.0))

    def add(self, kind: str, place: int | None, amount: float) -> None:
        """Add to a count; `place` is that of a cut, None for what is counted without one."""
        if place is None:
            self.alone[kind] += amount
        else:
            self.by_cut[kind][place] += amount


class Family:
    """The counts of one scope family; `first` is its first season, `alarms` how many there were.

    `weight` is how many labels it has had, and `is_shared` says that its counts are for the store too.
    """

    def __init__(self, name: str, season: int) -> None:
        self.name = name
        self.first = season
        self.alarms = 0
        self.weight = 0.0
        self.tests: dict[Trial, Counts] = {}
        # What is not for the store yet: most families that are met are never met again.
        self.waiting: Fresh = {}
        self.is_shared = name.startswith(OTHERS)

    def counts(self, test: Trial) -> Counts:
        """Return the counts of a test, to be added to."""
        found = self.tests.get(test)
        if found is None:
            found = self.tests[test] = Counts()
        return found

    def add(self, test: Trial, kind: str, place: int | None, amount: float) -> None:
        """Add to a count of a test."""
        self.counts(test).add(kind, place, amount)
        if place is not None and kind != "met":
            self.weight += amount

    def number(self, test: Trial) -> int:
        """Return the number of a test among all there ever were of this family, from 1 on.

        Each begins with a new season, score or alarm, so no two have the same.
        """
        return max(1, test.generation + test.alarms + test.season - self.first)

    def begun(self, season: int, generation: int, beside: int | None = None) -> list[Trial]:
        """Return the tests that are open at a season, oldest first: each counts from its own season on.

        Of a score that another one is tested `beside`, those alone whose numbers the other cannot have.
        """
        mine = [
            test.season
            for test, counts in self.tests.items()
            if test.generation == generation and test.alarms == self.alarms and season - SEASONS < test.season <= season
            and any(any(counts.by_cut[kind]) for kind in ("right", "wrong"))
        ]  # fmt: skip
        begun = [Trial(start, generation, self.alarms) for start in range(min(mine), season + 1)] if mine else []
        theirs = [self.number(test) for test in self.tests if test.generation == beside]
        return [test for test in begun if not theirs or self.number(test) < min(theirs)]

    def summed(self, since: Trial, kind: str) -> list[float]:
        """Return a kind of count at or above each cut, of one test from its season on."""
        rows = [
            counts.by_cut[kind]
            for test, counts in self.tests.items()
            if test.season >= since.season and test[1:] == since[1:]
        ]
        return list(accumulate(map(sum, zip(*rows, strict=True)))) if rows else [0.0] * len(CUTS)

    def met(self, season: int, generation: int) -> list[float]:
        """Return the near matches met at or above each cut of a score, since it was taught."""
        rows = [
            counts.by_cut["met"]
            for test, counts in self.tests.items()
            if season - SEASONS < test.season and test.generation == generation
        ]
        return list(accumulate(map(sum, zip(*rows, strict=True)))) if rows else [0.0] * len(CUTS)

    def alone(self, kind: str, season: int, generation: int | None = None) -> float:
        """Return a count that no cut has, of one score, or of all together."""
        return sum(
            counts.alone[kind]
            for test, counts in self.tests.items()
            if season - SEASONS < test.season and generation in (None, test.generation)
        )

    def forget(self, season: int) -> None:
        """Drop what is too old."""
        self.waiting = {at: amount for at, amount in self.waiting.items() if at[1].season > season - SEASONS}
        for test in [test for test in self.tests if test.season <= season - SEASONS]:
            del self.tests[test]


def booked_as(fresh: Fresh) -> Booked:
    """Return counts under the days and names that they have in a store."""
    return {(day_of(at[1].season), name_of(*at)): amount for at, amount in fresh.items()}


def name_of(family: str, test: Trial, kind: str, place: int | None) -> str:
    """Return the name of a count."""
    return f"trust|{family}|{test.generation}.{test.alarms}|{kind}{'' if place is None else f'.{place}'}"


def base_of(family: Family) -> str:
    """Return the name that says when a family began, and how many alarms it has had."""
    return f"trust|{family.name}|base|{family.first}.{family.alarms}"


def read(booked: Mapping[tuple[str, str], float], seasons: Iterable[int]) -> dict[str, Family]:
    """Return the families that a store tells of; what is none of ours is left out."""
    families: dict[str, Family] = {}
    by_day = {day_of(season): season for season in seasons}
    for (day, name), amount in booked.items():
        season, parts = by_day.get(day), name.split("|")
        if season is None or len(parts) != _PARTS or parts[0] != "trust":
            continue
        family = families.get(parts[1]) or Family(parts[1], season)
        if _take(family, season, parts[2], parts[3], amount):
            families[parts[1]] = family
    return families


def has_lost(booked: Mapping[tuple[str, str], float], seasons: Iterable[int]) -> bool:
    """Say whether a store once counted, for want of room, what was some family's under no family's name."""
    days = {day_of(season) for season in seasons}
    return any(day in days and name.startswith("trust|other|") for day, name in booked)


def _take(family: Family, season: int, part: str, told: str, amount: float) -> bool:
    """Take one name's count; False where it is none of ours."""
    one, dot, two = (told if part == "base" else part).partition(".")
    if not (dot and one.isdecimal() and two.isdecimal()):
        return False
    if part == "base":
        family.first, family.alarms = min(family.first, int(one)), max(family.alarms, int(two))
        return True
    kind, _, place = told.partition(".")
    if kind in ALONE and not place:
        family.add(Trial(season, int(one), int(two)), kind, None, amount)
        return True
    if kind not in BY_CUT or not place.isdecimal() or int(place) >= len(CUTS):
        return False
    family.add(Trial(season, int(one), int(two)), kind, int(place), amount)
    family.alarms = max(family.alarms, int(two))
    return True


def kept(families: Mapping[str, Family], most: int = MAX_FAMILIES) -> Iterator[tuple[str, Family]]:
    """Return the families with most labels, the others' always among them."""
    names = sorted(families, key=lambda name: (name.startswith(OTHERS), families[name].weight), reverse=True)
    for name in names[:most]:
        yield name, families[name]
