"""The state that all processes of a store share: what is handed over, and what is taken over of the others' counts.

Laws: counts add up, so the evidence of the sum is that of one process that had all labels; what a store could not take
is handed over again; the families that stand in a store are bounded in each season, however many come and go; where a
store has lost some of any, nothing is open.
"""

from __future__ import annotations

from collections.abc import Mapping

from semcache.policy.eprocess import CUTS
from semcache.policy.tally import (
    BY_CUT,
    MAX_FAMILIES,
    OTHERS,
    SEASONS,
    Booked,
    Family,
    Fresh,
    base_of,
    booked_as,
    day_of,
    has_lost,
    kept,
    read,
    season_of,
)  # fmt: skip
from semcache.policy.telling import Telling

_WORTH_LABELS = 8
_LOST = (
    "closed: the store has counted labels under no family's name (a semcache before this one ran out of names), so "
    "nothing near is served in the seasons that hold them: use another namespace to begin anew"
)


# A label as it changes what is served: the place of its cut, whether it is right, how many there are of it.
Added = tuple[int, bool, float]
# What there is to tell, and the name of the family that it is told of.
News = list[tuple[str, str]]


class Sharing(Telling):
    """The part of a Learner that a store's other processes see; the rest of it gives it what it needs."""

    _mine: Fresh
    _returned: Booked
    _changed: set[str]
    _shared: set[str]
    _has_lost: bool
    _season: int
    _named: tuple[str, str, dict[bytes, str]]

    def _turn(self) -> News:
        raise NotImplementedError

    def _settle(self, family: Family, fresh: list[Added]) -> News:
        raise NotImplementedError

    def _drop(self, family: Family) -> None:
        raise NotImplementedError

    def _is_ours(self, name: str) -> bool:
        raise NotImplementedError

    def _hear(self, booked: Mapping[tuple[str, str], float]) -> None:
        raise NotImplementedError

    def _tell_all(self, told: News) -> None:
        raise NotImplementedError

    def taken(self) -> dict[str, dict[str, float]]:
        """Take what was counted here since the last time, by day and name, to be added to a store's sums."""
        with self._lock:
            mine = self._unbooked()
            self._mine, self._returned, self._changed = {}, {}, set()
        days: dict[str, dict[str, float]] = {}
        for (day, name), amount in mine.items():
            days.setdefault(day, {})[name] = amount
        return days

    def put_back(self, day: str, amounts: Mapping[str, float]) -> None:
        """Have what a store could not take counted as not booked."""
        with self._lock:
            for name, amount in amounts.items():
                self._returned[day, name] = self._returned.get((day, name), 0.0) + amount

    def inherit(self, other: Sharing) -> None:
        """Go on with what another policy of the same cache has learned here, and was not booked yet."""
        with other._lock:
            waiting = [booked_as(family.waiting) for family in other._families.values()]
        for day, amounts in other.taken().items():
            self.put_back(day, amounts)
        for booked in waiting:
            for (day, name), amount in booked.items():
                self.put_back(day, {name: amount})

    def days(self) -> list[str]:
        """Return the days under which a store may have counts that are not too old."""
        season = season_of(self._time())
        return [day_of(one) for one in range(season - SEASONS + 1, season + 1)]

    def take_over(self, booked: Mapping[tuple[str, str], float]) -> None:
        """Count from now on with what a store tells of all processes, and what was not booked yet.

        What stands there of another embedder's matches is left alone, and takes nobody's place here.
        """
        with self._lock:
            told = self._turn()
            season, sums = self._season, dict(booked)
            self._hear(booked)
            seasons = range(season - SEASONS + 1, season + 1)
            old, had_lost, self._has_lost = self._families, self._has_lost, has_lost(booked, seasons)
            there = filter(self._is_ours, read(booked, [season]))
            self._shared |= {name for name in there if not name.startswith(OTHERS)}
            for booked_later in (self._unbooked(), *[booked_as(family.waiting) for family in list(old.values())]):
                for at, amount in booked_later.items():
                    sums[at] = sums.get(at, 0.0) + amount
            ours = {name: family for name, family in read(sums, seasons).items() if self._is_ours(name)}
            self._families = dict(kept(ours))
            for name, family in list(self._families.items()):
                family.waiting = old[name].waiting if name in old else {}
                family.is_shared = family.is_shared or not family.waiting
                family.alarms = max(family.alarms, old[name].alarms if name in old else 0)
                told += self._settle(family, _grown(old.get(name), family, self.generation))
            for name in old.keys() - self._families.keys():
                self._drop(old[name])
            if self._has_lost and not had_lost:
                told.append((_LOST, self._named[1]))
        self._tell_all(told)

    def _unbooked(self) -> Booked:
        """Return what no store knows yet, and of each family in it when it began, and its alarms; the lock is held."""
        booked = booked_as(self._mine)
        for at, amount in self._returned.items():
            booked[at] = booked.get(at, 0.0) + amount
        day = day_of(self._season)
        return booked | {(day, base_of(self._families[name])): 1.0 for name in self._changed & self._families.keys()}

    def _take_place(self, name: str) -> bool:
        """Have a family be one of the store's in this season; False where there are as many as may be.

        So its names there are bounded, however many families come and go, and no store need ever give one up.
        """
        is_there = name in self._shared or name.startswith(OTHERS)
        if not is_there and len(self._shared) < MAX_FAMILIES:
            self._shared.add(name)
            return True
        return is_there

    def _share(self, family: Family) -> None:
        """Let a family's counts go to the store, once it has labels enough to be worth a place there.

        Where there is none in this season, they stay here, and wait for the next.
        """
        is_worth = not family.is_shared and self._labels(family, "right", "wrong", "again") >= _WORTH_LABELS
        if is_worth and self._take_place(family.name):
            family.is_shared = True
            for at, amount in family.waiting.items():
                self._mine[at] = self._mine.get(at, 0.0) + amount
            family.waiting = {}
            self._changed.add(family.name)


def _grown(old: Family | None, new: Family, generation: int) -> list[tuple[int, bool, float]]:
    """Return the labels of a score that others have added: (place of the cut, whether they are right, how many)."""
    if old is None or old.alarms != new.alarms:
        return []
    fresh = []
    for trial, counts in new.tests.items():
        if trial.generation != generation:
            continue
        known = old.tests.get(trial)
        for kind in BY_CUT[:3]:
            before = known.by_cut[kind] if known else [0.0] * len(CUTS)
            rows = zip(counts.by_cut[kind], before, strict=True)
            fresh += [(place, kind != "wrong", more - one) for place, (more, one) in enumerate(rows) if more > one]
    return fresh
