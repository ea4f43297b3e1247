"""What a policy tells its owner: what it serves, what that rests on, and of one that learns which labels it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

from semcache.policy.bounds import upper_bound

State = Literal["open", "closed", "alarm"]
_BOUNDS = "`semcache replay` measures it on a recording, semcache.ErrorBudget(0.01) bounds it"
_BOTH_SIDES = 0.975
_HOUR_MINUTES, _DAY_MINUTES = 60, 1440


@dataclass(frozen=True, slots=True)
class Share:
    """A share of labels, with its 95% interval (Clopper and Pearson); `share` is None without labels."""

    count: int
    labels: int

    @property
    def share(self) -> float | None:
        return self.count / self.labels if self.labels else None

    @property
    def interval(self) -> tuple[float, float]:
        """Return its ends, 0 and 1 without labels."""
        if not self.labels:
            return 0.0, 1.0
        right = self.labels - self.count
        return 1 - upper_bound(right, self.labels, _BOTH_SIDES), upper_bound(self.count, self.labels, _BOTH_SIDES)

    def __str__(self) -> str:
        if not self.labels:
            return "not known"
        low, high = self.interval
        return f"{self.count / self.labels:.2%} [{low:.2%}, {high:.2%}]"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a budget would serve: from which cut on, which share of the requests that no exact tier answered, how wrong.

    `cut` is None where nothing can be served yet; `needed` are then the labels that are missing, at the present wrong
    share (None: no number is enough), and `days` when they will be there.
    """

    budget: float
    cut: float | None
    served: float
    wrong: Share
    needed: int | None
    days: float | None

    def __str__(self) -> str:
        if self.cut is not None:
            return (
                f"at {self.budget:.3g} wrong: from {self.cut:g} on, {self.served:.1%} of requests served, "
                f"{self.wrong} of them wrong"
            )
        return f"at {self.budget:.3g} wrong: nothing yet; {_missing(self.needed, self.days)}"


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """What is known of one scope family, or of all that have not labels enough of their own together ("others").

    `labels` may make a bound, `needed` is how many there must be for a cut to open (None: at the present wrong share no
    number is enough); `informing` labels only inform. `wrong` is of what the cut serves, without one of all near
    matches from the lowest cut on; in shadow `budget` is None, and each of `offers` says its own. `origin` is how often
    the origin answered an identical request otherwise.
    """

    name: str
    about: str
    state: State
    cut: float | None
    labels: int
    needed: int | None
    days: float | None
    wrong: Share
    origin: Share
    informing: int
    asked: int
    near: int
    alarms: int
    is_by_itself: bool
    offers: tuple[Offer, ...] = ()
    budget: float | None = None

    def __str__(self) -> str:
        where = self.about or self.name
        cut = f" from {self.cut:g} on" if self.cut is not None else ""
        if not self.is_by_itself and not self.about.startswith("all"):
            cut = " (too few labels: the others' cut decides)"
        labels = f"{self.labels} labels"
        if self.cut is not None and self.wrong.labels != self.labels:  # the share is of what the cut serves alone
            labels = f"{self.wrong.labels} labels from there on ({self.labels} in all)"
        lines = [f"{where}: {self.state}{cut}; {labels}, {self.wrong} wrong"]
        if self.cut is None and self.budget is not None:
            lines.append(f"  {_missing(None if self.needed is None else self.needed - self.labels, self.days)}")
        if self.origin.labels:
            lines.append(f"  the origin itself answered identical requests otherwise: {self.origin}")
        lines += [f"  {offer}" for offer in self.offers if offer.cut is not None or offer.budget != self.budget]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ScoreStatus:
    """What rates near matches: the learned score of number `used` (None: the cosine), which `used_pairs` have taught.

    `tested` is the number of one that proves itself beside it, taught by `tested_pairs` (None: there is none). The next
    is taught in this process once it has `needed` pairs, some of either kind; it has `pairs`, of which `right` are.
    """

    used: int | None
    used_pairs: int
    tested: int | None
    tested_pairs: int
    pairs: int
    right: int
    needed: int

    def __str__(self) -> str:
        told = "rated by the cosine" if self.used is None else f"rated by score {self.used}, of {self.used_pairs} pairs"
        if self.tested is not None:
            told += f"; score {self.tested}, of {self.tested_pairs} pairs, is tested beside it"
        return f"{told}; {self.pairs} of {self.needed} pairs for the next are here, {self.right} of them right"


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """What a policy that learns knows; print it. `budget` is None in shadow, where nothing near is served.

    `unlabelled` counts what was to be compared and was not, by why, `troubles` what a judge failed at; `obstacles`
    say why its cache can serve nothing near, or not to all, whatever the labels allow, with the mend. `embedder` is
    whose matches it knows of, where that is known; `shadow` is what is known of a `shadow_embedder`'s, `score` what
    rates near matches, None where no score is to be learned.
    """

    budget: float | None
    confidence: float
    others: FamilyStatus | None
    families: tuple[FamilyStatus, ...] = ()
    unlabelled: dict[str, int] = field(default_factory=dict)
    troubles: dict[str, int] = field(default_factory=dict)
    obstacles: tuple[str, ...] = ()
    embedder: str = ""
    shadow: PolicyStatus | None = None
    score: ScoreStatus | None = None

    def __str__(self) -> str:
        what = "shadow: nothing near is served" if self.budget is None else f"at most {self.budget:.3g} wrong"
        lines = [f"{what}, at {self.confidence:.0%} confidence", *self.obstacles]
        lines += self._told() or ["no near match was met yet"]
        lines += [f"not compared: {count} ({why})" for why, count in self.unlabelled.items()]
        lines += [f"the judge failed {count} times: {why}" for why, count in self.troubles.items()]
        if self.score is not None and (self.score.pairs or self.score.used or self.score.tested):
            lines.append(str(self.score))
        if self.shadow is not None:
            lines.append(f"the shadow embedder, {self.shadow.embedder or 'not loaded yet'}, would serve:")
            lines += [f"  {line}" for line in str(self.shadow).splitlines()]
        return "\n".join(lines)

    def _told(self) -> list[str]:
        """Tell of each family, and of all others together where that is more than what one has just said."""
        others, families = self.others, self.families
        if others is None or len(families) != 1 or others.asked > families[0].asked:
            return [str(one) for one in (*families, *([others] if others else []))]
        (family,) = families
        if not family.is_by_itself:  # its numbers are theirs, and their cut is its own
            return [str(replace(others, about=family.about or family.name))]
        too = [] if others.cut is None else [f"any other family: open from {others.cut:g} on, by the same labels"]
        return [str(family), *too]


@dataclass(frozen=True, slots=True)
class CutStatus:
    """What a tuned policy serves in one scope family, or in all that were not measured alone ("others").

    `cut` is None where none was proved; `wrong` is of the labels that were looked at, `bound` the share that is wrong
    at most, with the policy's confidence. None was where only `counted` were there, and it takes `needed`.
    """

    name: str
    cut: float | None
    wrong: Share
    bound: float
    counted: int = 0
    needed: int = 0

    def __str__(self) -> str:
        where = "all families that were not measured alone" if self.name == "others" else f"family {self.name}"
        if not self.wrong.labels and self.needed:
            return f"{where}: nothing, as it takes {self.needed:,} labels, none wrong, and there were {self.counted:,}"
        if not self.wrong.labels:
            return f"{where}: nothing, as there were no labels"
        told = f"{self.wrong.labels} labels, {self.wrong.count} of them wrong"
        if self.cut is None:
            return f"{where}: nothing, as no cut was proved by {told}"
        return f"{where}: from {self.cut:.6g} on; {told}, so at most {self.bound:.2%}"


@dataclass(frozen=True, slots=True)
class TunedStatus:
    """What a tuned policy serves, and what proves it; print it. It learns nothing: what traffic it meets changes none.

    `kind` says what its cuts are of, "cosine" or "score", `embedder` whose vectors were measured, and `measured` on
    what and when. `obstacles` are as of a policy that learns.
    """

    budget: float
    confidence: float
    kind: str
    embedder: str
    others: CutStatus
    families: tuple[CutStatus, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()

    def __str__(self) -> str:
        made, recording = self.measured.get("made"), self.measured.get("recording")
        when = f"tuned{f' at {made}' if made else ''}{f' on {recording}' if recording else ''}"
        requests = self.measured.get("requests")
        of = f" ({requests:,} requests)" if isinstance(requests, int) else ""
        what = "a learned score" if self.kind == "score" else "the similarity"
        return "\n".join([
            f"at most {self.budget:.3g} wrong, at {self.confidence:.0%} confidence; cuts of {what}",
            *self.obstacles,
            f"{when}{of}, for vectors of {self.embedder}; nothing is learned since",
            *map(str, [*self.families, self.others]),
            f"guards: {', '.join(self.guards) or 'none'}",
        ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class ThresholdStatus:
    """What a threshold serves; print it. Its `budget` is None: nothing bounds how much of that is wrong.

    `obstacles` are as of a policy that learns.
    """

    cut: float
    guards: tuple[str, ...] = ()
    budget: None = None
    obstacles: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([
            f"a fixed cut: near matches from similarity {self.cut:g} on are served",
            *self.obstacles,
            f"nothing bounds how many of them are wrong: {_BOUNDS}",
            f"guards: {', '.join(self.guards) or 'none'}",
        ])  # fmt: skip


def _missing(labels: int | None, days: float | None) -> str:
    if labels is None:
        return "at this wrong share no number of labels is enough"
    missing = "1 label is missing" if labels <= 1 else f"{labels} labels are missing"
    if days is None:
        return missing
    return f"{missing}, in about {_span(days)} at this rate"


def _span(days: float) -> str:
    if days >= 1:
        return f"{days:.1f} days"
    minutes = ceil(days * _DAY_MINUTES)
    return f"{ceil(minutes / _HOUR_MINUTES)} h" if minutes > _HOUR_MINUTES else f"{minutes} min"
