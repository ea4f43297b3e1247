"""What policies that learn have in common: labels in, cuts out, one state for all processes.

Laws: thread-safe, and quick where callers wait (`decide` takes no lock); a bound is made of the labels of a sample
alone, drawn by hash for each request, whatever a match looks like; what is served in a scope family is what its own
labels allow, or, with too few of them, what those of all such families together allow; state is counts, bounded in
number.
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import count
from threading import RLock
from typing import Any

from semcache.errors import ConfigurationError
from semcache.model import Decision, Neighbour, Request
from semcache.policy.eprocess import CUTS, Detector, check_budget
from semcache.policy.equivalent import Comparator, Judge
from semcache.policy.guards import Guards
from semcache.policy.label import Label, Source
from semcache.policy.lessons import Lessons
from semcache.policy.scoring import InFamily, Rated, Scoring, places_of
from semcache.policy.sharing import Sharing
from semcache.policy.tally import (
    ALONE,
    MAX_FAMILIES,
    OTHERS,
    SEASONS,
    Booked,
    Family,
    Fresh,
    Trial,
    base_of,
    day_of,
    season_of,
)  # fmt: skip

# Where nothing is served, all near matches are loaded anyway: half of them make the bound, the others may train.
LEARNING_SHARE = 0.5
_CAP = 20
_MOST_REMEMBERED = 8192
_REST_SECONDS = 30.0
_DRAWN = 2**32
_SALT_BYTES = 8
_ALARM = (
    "alarm: more of what is served is wrong than the budget allows; nothing near is served until fresh labels allow it"
)

# Told (what happened, the family's name).
Tell = Callable[[str, str], None]


class Learner(Scoring, Sharing):
    """Learns from labels which near matches may be served; what is served of them its subclasses say."""

    def __init__(
        self, budget: float | None, confidence: float, guards: Iterable[str] | None,
        judge: Judge | Comparator | None, *, learn_score: bool = False, cross_encoder: Any = None,
    ) -> None:  # fmt: skip
        self.budget = budget
        self.confidence = check_budget(0.5 if budget is None else budget, confidence)[1]
        self.guards = Guards(guards)
        self.comparator = judge if isinstance(judge, Comparator) else Comparator(judge=judge)
        self.learns_score = bool(learn_score)
        self.cross_encoder = cross_encoder
        # Whose refusals its matches have passed: labels of other matches say nothing of these.
        self.stage = ""
        self.unlabelled: Counter[str] = Counter()
        self.shadow: Learner | None = None
        self._audit = 0.02
        self._owner: Callable[[], bool] | None = None
        self._time: Callable[[], float] = time.time
        self._tell: Tell = lambda _what, _name: None
        self._identity: Callable[[], str] = str
        # Whose vectors the families are of, what all but the large ones are called, and names by digest.
        self._named: tuple[str, str, dict[bytes, str]] = ("", OTHERS, {})
        self._begin()

    def _begin(self) -> None:
        self._begin_scores()
        self.lessons = Lessons() if self.learns_score else None
        self._lock = RLock()  # the collector may end a load, which is counted here, while this thread holds it
        self._salt = os.urandom(_SALT_BYTES)
        self._draws = count()
        self._families: dict[str, Family] = {}
        self._open: dict[str, int | None] = {}
        self._detectors: dict[str, Detector] = {}
        self._about: dict[str, str] = {}
        self._mine: Fresh = {}
        self._returned: Booked = {}
        self._changed: set[str] = set()
        # The families whose counts stand in the store in this season, and whether it has lost some of any.
        self._shared: set[str] = set()
        self._has_lost = False
        self._labels_here: Counter[str] = Counter()
        self._since = self._time()
        self._season = season_of(self._since)
        self._rests_until = 0.0
        self._pairs: OrderedDict[bytes, None] = OrderedDict()
        self._entries: OrderedDict[bytes, int] = OrderedDict()

    def check_free(self) -> None:
        """Refuse to work for two caches at once. Raises ConfigurationError."""
        if self._owner is not None and self._owner():
            raise ConfigurationError(f"{self!r} learns for another cache already: make one for each cache")

    def bind(self, owner: Callable[[], bool], now: Callable[[], float], audit: float, tell: Tell) -> None:
        """Work for a cache; `owner` says whether it is in use still. Raises ConfigurationError for a second one."""
        self.check_free()
        self._owner, self._time, self._audit, self._tell = owner, now, audit, tell
        self._begin()

    def attune(self, embedder: Callable[[], str], seed: int | None) -> None:
        """Take what is known once the cache is made: whose vectors it compares, "" while it is not known, and its seed.

        With a seed the same requests in the same order draw the same sample.
        """
        self._identity = embedder
        if seed is not None:
            self._salt = _digest_bytes(b"%d" % seed)

    def twin(self) -> Learner:
        """Return a policy of the same settings that has learned nothing, and works for no cache."""
        raise NotImplementedError

    def after_fork(self) -> None:
        """Begin anew in a child: what the parent has counted is the parent's to book."""
        self._begin()

    # Deciding

    def within(self, request: Request) -> InFamily:
        """Return what decides in the scope family of a request."""
        return self._at(request)

    def _at(self, request: Request) -> InFamily:
        kind = Rated if self.scores else InFamily
        return kind(self, *self._called(request.family, request.embedder))

    def _called(self, family: bytes, embedder: str = "") -> tuple[str, str]:
        """Return a family's name and its others': labels of another embedder's matches say nothing of this one's.

        `embedder` is taken where nobody has told us whose vectors are compared.
        """
        embedder = self._identity() or embedder or self._named[0]
        named = self._named
        if embedder != named[0]:  # all at once, for no lock is held
            self._named = named = (embedder, f"{OTHERS}:{_digest((embedder + self.stage).encode())}", {})
        _, others, names = named
        name = names.get(family)
        if name is None:
            if len(names) >= _MOST_REMEMBERED:
                names.clear()
            name = names[family] = f"{_digest(family)}:{others.partition(':')[2]}"
        return name, others

    def _is_ours(self, name: str) -> bool:
        return name.partition(":")[2] == self._called(b"")[1].partition(":")[2]

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        """Decide as in a scope family of which nothing is known."""
        others = self._named[1]
        return InFamily(self, others, others).decide(text, neighbour)

    def decision(self, place: int | None, why: str, neighbour: Neighbour) -> Decision:
        """Say whether a near match that no guard refuses may be served, where the lowest open cut has this place."""
        raise NotImplementedError

    def place(self, name: str, others: str) -> tuple[int | None, bool]:
        """Return the place of the lowest open cut of a family, and whether it is the family's own."""
        found = self._open.get(name, -1)  # nobody holds the lock here: it is looked at once
        return (self._open.get(others), False) if found == -1 else (found, True)

    def draw(self, request: Request, neighbour: Neighbour) -> Source:
        """Say what a label of this near match may be used for.

        One share is drawn while nothing is served, another while something is: both depend on the past alone, not on
        the match, so the labels of the sample are wrong as often as all near matches are. Each request is drawn anew: a
        rewording that is served is never stored, so it comes again, and were the draw its own, one that is not drawn
        at first would never be. One that is drawn is stored, and comes here no more.
        """
        at = self._at(request)
        anew = b"%d" % next(self._draws)
        drawn = int.from_bytes(_digest_bytes(request.key + neighbour.key + self._salt + anew)[:4], "big") / _DRAWN
        return Source.AUDIT if drawn < self._share_at(at) else Source.MISS

    def share_of(self, request: Request) -> float:
        """Return the share of the near matches of a request's family that is drawn now."""
        return self._share_at(self._at(request))

    def _share_at(self, at: InFamily) -> float:
        is_open = self.place(at.name, at.others)[0] is not None
        return self._audit if is_open else max(self._audit, LEARNING_SHARE)

    def explores(self, source: Source) -> bool:
        """Say whether a near match that would be served is loaded, to be compared: not while the origin fails."""
        return source is Source.AUDIT and self._time() >= self._rests_until

    def failed(self) -> None:
        """Say that the origin failed where it was asked for a comparison: for some time it is not asked so."""
        self._rests_until = self._time() + _REST_SECONDS

    # Learning

    def saw(self, request: Request, neighbour: Neighbour | None) -> None:
        """Count a request that no exact tier answered, and its near match, if it has one."""
        at = self._at(request)
        with self._lock:
            told = self._turn()
            if at.name not in self._about and len(self._about) < _MOST_REMEMBERED:
                self._about[at.name] = " ".join(filter(None, (request.facets.function, request.facets.model)))
            for name in (at.name, at.others):
                family = self._family(name)
                places = {} if neighbour is None else places_of(self.rates_of(neighbour))
                for generation in (self.generation, self.challenger):
                    if generation is not None:
                        self._add(family, "asked", None, generation)
                        self._add(family, "met", places.get(generation), generation)
        self._tell_all(told)

    def _turn(self) -> list[tuple[str, str]]:
        """Let go of what is too old with each new season, and of what it allowed; the lock is held."""
        season = season_of(self._time())
        if season == self._season:
            return []
        self._season = season
        told = []
        self._shared = set()
        if self.lessons is not None:
            self.lessons.forget(season)
        self._mine = {at: amount for at, amount in list(self._mine.items()) if at[1].season > season - SEASONS}
        days = self.days()
        self._returned = {at: amount for at, amount in list(self._returned.items()) if at[0] in days}
        for family in list(self._families.values()):
            family.forget(season)
            told += self._settle(family, [])
        return told

    def learn(self, label: Label) -> None:
        """Take a label; only the sample's make a bound: what people report is what they notice."""
        places = places_of(dict(label.rates) or {self.generation: label.score})
        if not places and self.lessons is None:
            return
        name, others = self._called(label.family)
        with self._lock:
            told = self._turn()
            if self.lessons is not None:
                self.lessons.take(label, self._season)
            is_right = label.is_right is True and label.source is not Source.REPORT
            kind = "right" if is_right else "wrong"
            if label.source is not Source.AUDIT:
                kind = f"miss_{kind}"
            elif is_right and self._is_again(label):
                kind = "again"
            # Who has labels enough of its own is no longer one of the others, neither served nor counted there.
            for at in (name,) if name in self._open else (name, others):
                for generation, place in places.items():
                    if generation in (self.generation, self.challenger):
                        self._add(self._family(at), kind, place, generation)
                if label.source is Source.AUDIT and self.generation in places:
                    self._labels_here[at] += 1
                    self._share(self._family(at))
                    told += self._settle(self._family(at), [(places[self.generation], is_right, 1.0)])
        self._tell_all(told)

    def _embedder(self) -> str:
        return self._identity() or self._named[0]

    def _let_go(self) -> None:
        self._detectors.clear()

    def compared_with_itself(self, request: Request, same: bool | None) -> None:  # noqa: FBT001 - what it was found to be
        """Count whether the origin gave an identical request the same answer again."""
        at = self._at(request)
        with self._lock:
            told = self._turn()
            for name in (at.name, at.others):
                family = self._family(name)
                self._add(family, "same" if same is True else "differs", None)
        self._tell_all(told)

    def _is_again(self, label: Label) -> bool:
        """Say whether a right label repeats what is known: of a pair one counts, of an entry some."""
        pair = label.asked + label.stored
        entry = self._entries.get(label.stored, 0)
        if pair in self._pairs or entry >= _CAP:
            return True
        self._pairs[pair] = None
        self._entries[label.stored] = entry + 1
        for remembered in (self._pairs, self._entries):
            if len(remembered) > _MOST_REMEMBERED:
                remembered.popitem(last=False)
        return False

    def _family(self, name: str) -> Family:
        """Return a family's counts, begun in the place of the one with fewest labels; the lock is held."""
        family = self._families.pop(name, None)
        if family is None:
            if len(self._families) >= MAX_FAMILIES:
                known = (each for each in list(self._families.values()) if not each.name.startswith(OTHERS))
                least = min(known, key=lambda each: each.weight, default=None)  # the oldest of equals
                if least is not None:
                    self._drop(least)
            family = Family(name, self._season)
        self._families[name] = family
        return family

    def _drop(self, family: Family) -> None:
        """Forget a family here; what the store is to be told of it, it is told all the same."""
        name = family.name
        if name in self._changed:
            self._changed.discard(name)
            self._returned[day_of(self._season), base_of(family)] = 1.0
        for kept_by_name in (self._families, self._open, self._detectors, self._labels_here):
            kept_by_name.pop(name, None)

    def _add(self, family: Family, kind: str, place: int | None, generation: int | None = None) -> None:
        if place is None and kind not in ALONE:
            return
        trial = Trial(self._season, generation or self.generation, family.alarms)
        family.add(trial, kind, place, 1.0)
        booked = self._mine if family.is_shared else family.waiting
        at = (family.name, trial, kind, place)
        booked[at] = booked.get(at, 0.0) + 1.0
        if family.is_shared:
            self._changed.add(family.name)
            self._take_place(family.name)

    def _settle(self, family: Family, fresh: list[tuple[int, bool, float]]) -> list[tuple[str, str]]:
        """Find the cut anew, and look whether what came says that what is served has changed; the lock is held.

        `fresh` are labels (place, is right, how many); returns what there is to tell.
        """
        if self.budget is None:
            return []
        told: list[tuple[str, str]] = []
        name, before = family.name, self._open.get(family.name)
        if before is not None:
            served = [(right, count) for place, right, count in fresh if place <= before]
            detector = self._detectors.setdefault(name, Detector(self.budget))
            good = sum(count for right, count in served if right)
            bad = sum(count for right, count in served if not right)
            if served and detector.add(good, bad):
                family.alarms += 1
                self._changed.add(name)
                told.append((_ALARM, name))
        after = None if self._has_lost else self._lowest(family, self.budget)
        is_known = self._has_labels(family, self.budget) or family.alarms > 0  # after an alarm it has no labels yet
        if is_known or name in self._open or name.startswith(OTHERS):
            self._open[name] = after
        if after != before:
            if after is None:
                self._detectors.pop(name, None)
            if not told:
                told.append((_change(before, after), name))
        return told

    def _tell_all(self, told: list[tuple[str, str]]) -> None:
        for what, name in told:
            self._tell(f"{self._about.get(name) or name}: {what}" if name else what, name)


def _change(before: int | None, after: int | None) -> str:
    if after is None:
        return "closed: the labels no longer allow any cut"
    how = "opened" if before is None else "lowered" if after > before else "tightened"
    return f"{how}: near matches from {CUTS[after]:g} on are served"


def _digest_bytes(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()


def _digest(data: bytes) -> str:
    return _digest_bytes(data).hex()
