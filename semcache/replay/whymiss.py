"""Why don't I hit? What each part of key and scope keeps apart, and what would be found without it.

Laws: pure; before and after are counted in the same way, in a store with room for everything, with the replay's ttl and
no jitter, so the difference is the part's own. What would be found more is not what should be: of the answers that were
recorded, it is told how many were others. (Ground truth says nothing here: an `answer_id` holds within equal parts.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from semcache.replay.ingredients import TENANT, TEXT, Ingredients, Site
from semcache.replay.recording import Asked, Recording
from semcache.replay.settings import Settings
from semcache.replay.words import clip, percent, plain

DISTINCT_SHARE = 0.95
# Of fewer requests it says nothing that all their values are distinct.
_FEWEST = 20
_GAINS_TOLD = 12
_NAME_COLUMNS = 120
# A request's parameters have any names; the parts that most requests have are looked at.
_MOST_PARTS = 64

Keyed = Callable[[Ingredients], int | None]


@dataclass(slots=True)
class Gain:
    """What would be found if `what` was left out of the key: `exact` hits instead of the baseline's.

    `comparable` requests with a text would have had an earlier one to be compared with. Of the hits gained, `judged`
    were recorded with an answer, as was whose answer they would be given; `other` counts where these two differ.
    """

    what: str
    exact: int = 0
    comparable: int = 0
    judged: int = 0
    other: int = 0


@dataclass(slots=True)
class Distinct:
    """A part with `values` distinct values in the `of` requests that have it."""

    what: str
    values: int
    of: int


@dataclass(slots=True)
class WhyMiss:
    """`exact` and `comparable` are those of the key as it is; of `gains` the largest stands first."""

    requests: int
    exact: int
    comparable: int
    gains: list[Gain] = field(default_factory=list)
    distinct: list[Distinct] = field(default_factory=list)


def why_miss(recording: Recording, settings: Settings) -> WhyMiss | None:
    """Leave each part of key and scope out in turn; None where the recording was not kept part by part."""
    if recording.ingredients is None:
        return None
    counting = _Counting(recording.asked, recording.ingredients, settings)
    is_hit, comparable = counting.exact(lambda one: one.total), counting.comparable(lambda one: one.without(TEXT))
    told = WhyMiss(len(recording.asked), sum(is_hit), comparable)
    found = [one for one in recording.ingredients if one is not None]
    held = Counter(name for one in found for name in one.parts)
    parts = [name for name, _ in held.most_common(_MOST_PARTS)]
    told.distinct = _distinct(found, parts)
    moving = {name: site for name in parts if (site := _moving(found, name)) is not None}
    for label, keyed, scoped in _ways(parts, moving, [one.what for one in told.distinct]):
        gain = counting.gain(label, is_hit, keyed, scoped)
        if gain.exact > told.exact or gain.comparable > told.comparable:
            told.gains.append(gain)
    told.gains += [one for one in counting.others(is_hit) if one.exact > told.exact]
    told.gains.sort(key=lambda gain: (-gain.exact, -gain.comparable))  # stable: what is said more closely stands first
    return told


def _ways(parts: Sequence[str], moving: dict[str, Site], distinct: Sequence[str]) -> Iterable[tuple[str, Keyed, Keyed]]:
    """Yield what is left out: its name, and what is left of key and scope."""

    def still(*names: str) -> tuple[Keyed, Keyed]:
        return lambda one: one.stilled(*names), lambda one: one.stilled(*(set(names) - {TEXT})) - _text_of(one)

    def without(*names: str) -> tuple[Keyed, Keyed]:
        return lambda one: one.without(*names), lambda one: one.without(*names, TEXT)

    for name, site in moving.items():
        yield (f"{name} holds {site.what} at character {site.character}", *still(name))
    for name in parts:
        if name != TEXT:
            yield (name, *without(name))
    dropped = [name for name in distinct if name != TEXT and name not in moving]
    if len(moving) + len(dropped) > 1:
        together = ", ".join([*moving, *dropped])

        def all_of_it(one: Ingredients) -> int:
            total = one.stilled(*moving)
            return total - sum(hash((name, one.parts[name])) for name in dropped if name in one.parts)

        yield (
            f"all of these: {together}",
            all_of_it,
            lambda one: all_of_it(one) - _text_of(one, is_still=TEXT in moving),
        )
    yield "case, spaces and marks of the text", _folded, lambda one: one.without(TEXT)


def _text_of(one: Ingredients, *, is_still: bool = False) -> int:
    if TEXT not in one.parts:
        return 0
    told = one.parts[TEXT]
    return hash((TEXT, one.still.get(TEXT, told) if is_still else told))


def _folded(one: Ingredients) -> int:
    return one.total if one.folded is None else one.without(TEXT) + hash(("folded", one.folded))


class _Counting:
    """Counts what is found under other keys; one that is None is never found."""

    def __init__(self, asked: Sequence[Asked], parts: Sequence[Ingredients | None], settings: Settings) -> None:
        self._asked = asked
        self._parts = parts
        self._ttl = settings.exact_seconds
        self._near_ttl = settings.ttl.of("semantic")
        self._scale = settings.time_scale

    def exact(
        self, keyed: Keyed, ttl: float | None = None, *, with_bypassed: bool = False, makers: list[int] | None = None
    ) -> list[bool]:
        """Say of each request whether its answer would be found; `makers` is filled with whose it is, or -1."""
        ttl = self._ttl if ttl is None else ttl
        loaded: dict[int, tuple[float, int]] = {}
        is_hit = []
        for one, part in zip(self._asked, self._parts, strict=True):
            key = None if part is None or (one.request is None and not with_bypassed) else keyed(part)
            now = one.ts * self._scale
            found = loaded.get(key) if key is not None else None
            is_found = found is not None and now < found[0] + ttl
            is_hit.append(is_found)
            if makers is not None:
                makers.append(found[1] if found is not None and is_found else -1)
            if key is not None and not is_found:
                loaded[key] = now, one.position
        return is_hit

    def comparable(self, scoped: Keyed) -> int:
        """Count the requests with a text for which another stood in their scope."""
        latest: dict[int, float] = {}
        count = 0
        for one, part in zip(self._asked, self._parts, strict=True):
            if part is None or one.request is None or not one.text:
                continue
            scope, now = scoped(part), one.ts * self._scale
            if scope is not None:
                count += scope in latest and now < latest[scope] + self._near_ttl
                latest[scope] = now
        return count

    def gain(
        self, label: str, before: Sequence[bool], keyed: Keyed, scoped: Keyed | None, *, ttl: float | None = None,
        with_bypassed: bool = False,
    ) -> Gain:  # fmt: skip
        """Count what is found under other keys, and which of it has another answer."""
        makers: list[int] = []
        is_hit = self.exact(keyed, ttl, with_bypassed=with_bypassed, makers=makers)
        gain = Gain(label, sum(is_hit), 0 if scoped is None else self.comparable(scoped))
        for one, was, maker in zip(self._asked, before, makers, strict=True):
            if maker < 0 or was:
                continue
            answers = one.answer, self._asked[maker].answer
            if None not in answers:
                gain.judged += 1
                gain.other += answers[0] != answers[1]
        return gain

    def others(self, before: Sequence[bool]) -> list[Gain]:
        """Count what is not found for another reason than its key: it has expired, or is never kept."""
        gains = [self.gain("its life: nothing expires", before, lambda one: one.total, None, ttl=float("inf"))]
        bypassed = Counter(one.bypass for one in self._asked if one.request is None)
        if bypassed:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in bypassed.most_common(3))
            told = f"bypassed requests ({reasons})"
            gains.append(self.gain(told, before, lambda one: one.total, None, with_bypassed=True))
        return gains


def _distinct(found: Sequence[Ingredients], parts: Iterable[str]) -> list[Distinct]:
    """Return the parts that are another in nearly each request that has them."""
    told = []
    for name in parts:
        values = [one.parts[name] for one in found if name in one.parts]
        distinct = len(set(values))
        if len(values) >= _FEWEST and distinct > DISTINCT_SHARE * len(values):
            told.append(Distinct(name, distinct, len(values)))
    return sorted(told, key=lambda one: -one.of)


def _moving(found: Sequence[Ingredients], name: str) -> Site | None:
    """Return what moves in a text that is else the same, where most requests have such a one."""
    alike: dict[int, list[list[Site]]] = defaultdict(list)
    for one in found:
        if name in one.sites:
            alike[one.still[name]].append(one.sites[name])
    for same in sorted(alike.values(), key=len, reverse=True):
        if len(same) == 1:
            break
        for sites in zip(*same, strict=False):
            if len({site.value for site in sites}) > 1:
                first: Site = sites[0]
                return first
    return None


def caution(gain: Gain) -> str:
    """Return what speaks against leaving it out, as far as it is known."""
    if gain.what == TENANT:
        return "one tenant would be given another's answers: leave it in"
    if gain.judged:
        return f"{gain.other:,} of {gain.judged:,} more were recorded with another answer"
    return ""


def sentences(why: WhyMiss, most: int = _GAINS_TOLD) -> Iterator[tuple[str, str]]:
    """Tell it, the largest gain first: sentences with their styles."""

    def share(number: int) -> str:
        return percent(number / why.requests)

    for one in why.distinct:
        name = clip(plain(one.what), _NAME_COLUMNS)
        told = f"{name} is distinct in {one.values:,} of the {one.of:,} requests that have it"
        yield f"{told}: it keeps nearly all of them apart", "warn"
    for gain in why.gains[:most]:
        changes = []
        if gain.exact != why.exact:
            changes.append(f"exact {share(why.exact)} -> {share(gain.exact)}")
        if gain.comparable > why.comparable:
            changes.append(f"comparable {share(why.comparable)} -> {share(gain.comparable)}")
        told = caution(gain)
        yield f"{clip(plain(gain.what), _NAME_COLUMNS)}: {', '.join(changes)}{told and f' ({told})'}", ""
    if len(why.gains) > most:
        yield f"and {len(why.gains) - most} more, which would gain less.", "note"
    if not why.gains:
        yield "No part of the key, left out, would have found more.", ""
    told = (
        f"of {why.requests:,} requests, each part left out by itself; comparable: with a text, and another's in the "
        "same scope to compare it with. What would be found more is not what should be."
    )
    yield told, "note"
