"""What came of a replay: hits and wrong hits by tier, what they saved, how long they took.

Laws: pure, from outcomes to numbers; a hit is judged only where both its own request and the one whose answer it was
given have an `answer_id`; a rate of wrong hits has its interval beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt

from semcache.meter import has_tokens
from semcache.replay.recording import Asked

NEAR = "semantic"
_Z = 1.959963984540054  # the 97.5% quantile of the normal distribution


@dataclass(slots=True)
class Outcome:
    """How one request was answered: by `tier` with the answer of request `maker`, or by its origin (`tier` is None).

    `nearest` is the nearest stored text whose answer was at hand, as (position of its request, similarity), served or
    not; `guard` refused it. `nanoseconds` is what the cache took, without the origin, and `stages` what each stage of
    it took; None and nothing where that says nothing.
    """

    tier: str | None = None
    maker: int | None = None
    nearest: tuple[int, float] | None = None
    guard: str = ""
    nanoseconds: int | None = None
    stages: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Rate:
    """A share, with its 95% interval by Wilson (1927); `share` is None of nothing."""

    count: int
    of: int

    @property
    def share(self) -> float | None:
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        if not self.of:
            return None
        share, n = self.count / self.of, self.of
        centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        return max(0.0, centre - half) if self.count else 0.0, min(1.0, centre + half) if self.count < n else 1.0


@dataclass(slots=True)
class Hits:
    """The hits of one tier, or of all: how many, how many could be judged, how many of those were wrong."""

    hits: int = 0
    judged: int = 0
    wrong: int = 0

    def add(self, wrong: bool | None) -> None:  # noqa: FBT001 - a verdict
        """Count a hit, right or wrong; None: that is not known."""
        self.hits += 1
        self.judged += wrong is not None
        self.wrong += bool(wrong)

    @property
    def wrong_per_hit(self) -> Rate:
        return Rate(self.wrong, self.judged)


@dataclass(slots=True)
class Cost:
    """What origins take; `unpriced` are the calls that are left out of the money, by model."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    unpriced: Counter[str] = field(default_factory=Counter)

    def add(self, asked: Asked, age: float | None = None) -> None:
        """Add what a request takes; with `age`, what its call would have cost so long after the answer was loaded."""
        usage, price = asked.usage, asked.price
        self.seconds += asked.seconds
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if price is None:
            self.unpriced[asked.model] += has_tokens(usage)
            return
        money = price.of(usage)
        # The recorded call itself may have been given a discount that the rule does not know of.
        self.money += money if age is None else min(money, price.now(usage, price.discounted(usage, age)))


@dataclass(slots=True)
class Mistake:
    """A wrong near hit: what was asked, and what the answer that it got belongs to."""

    asked: str
    answered: str
    similarity: float


@dataclass(slots=True)
class Score:
    """The sums over a replay. `nanoseconds` are by tier, and of misses under "miss".

    `refused` are the requests whose nearest text a guard refused, by guard, as the hits that they would have been.
    """

    requests: int = 0
    misses: int = 0
    bypassed: int = 0
    tiers: dict[str, Hits] = field(default_factory=dict)
    saved: Cost = field(default_factory=Cost)
    nanoseconds: dict[str, list[int]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    refused: dict[str, Hits] = field(default_factory=dict)

    @property
    def hits(self) -> Hits:
        """All tiers' hits together."""
        tiers = self.tiers.values()
        return Hits(sum(one.hits for one in tiers), sum(one.judged for one in tiers), sum(one.wrong for one in tiers))

    @property
    def net_seconds(self) -> float:
        """Seconds of waiting that were saved, less what the cache itself took, embedding and misses with it."""
        return self.saved.seconds - sum(map(sum, self.nanoseconds.values())) / 1e9

    @property
    def near(self) -> Hits:
        return self.tiers.get(NEAR, Hits())

    @property
    def hit_rate(self) -> float:
        return self.hits.hits / self.requests if self.requests else 0.0


def is_wrong(asked: Asked, maker: Asked) -> bool | None:
    """Say whether a request must not be given the other's answer; None where that is not known."""
    if asked.answer_id is None or maker.answer_id is None:
        return None
    return (asked.answer_id, asked.around) != (maker.answer_id, maker.around)


def score(asked: Sequence[Asked], outcomes: Iterable[Outcome]) -> Score:
    """Sum up the outcomes of requests, in their order."""
    total = Score()
    for one, outcome in zip(asked, outcomes, strict=True):
        total.requests += 1
        total.bypassed += one.request is None
        if outcome.nanoseconds is not None:
            total.nanoseconds.setdefault(outcome.tier or "miss", []).append(outcome.nanoseconds)
        if outcome.tier is None or outcome.maker is None:
            total.misses += 1
            if outcome.guard and outcome.nearest is not None:
                refused = is_wrong(one, asked[outcome.nearest[0]])
                total.refused.setdefault(outcome.guard, Hits()).add(refused)
            continue
        total.saved.add(one, max(0.0, one.ts - asked[outcome.maker].ts))
        wrong = is_wrong(one, asked[outcome.maker])
        total.tiers.setdefault(outcome.tier, Hits()).add(wrong)
        if wrong and outcome.tier == NEAR and outcome.nearest is not None:
            total.mistakes.append(Mistake(one.text, asked[outcome.maker].text, outcome.nearest[1]))
    return total


def origin_cost(asked: Iterable[Asked]) -> Cost:
    """Return what all the requests cost without a cache."""
    cost = Cost()
    for one in asked:
        cost.add(one)
    return cost


def within(asked: Sequence[Asked], outcomes: Sequence[Outcome], cut: float) -> Hits:
    """Count the requests that no exact tier answered and whose nearest stored text was at least so similar.

    It tells what a threshold would find, and how much of that is another question's; not quite what it would serve,
    since a query that it answers is not stored, and so answers nobody.
    """
    found = Hits()
    for one, outcome in zip(asked, outcomes, strict=True):
        if outcome.nearest is not None and outcome.nearest[1] >= cut:
            found.add(is_wrong(one, asked[outcome.nearest[0]]))
    return found


def percentile(ordered: Sequence[int], share: float) -> int:
    """Return the nearest-rank percentile of numbers in ascending order, at least one."""
    return ordered[max(1, ceil(share * len(ordered))) - 1]


def oracle(asked: Sequence[Asked], ttl: float) -> list[Outcome]:
    """Return what a cache would answer that knew the truth: all that it has loaded within `ttl` seconds.

    A request without an `answer_id` is answered by its own exact repeat; one that bypasses the cache bypasses this
    one too. It has room for everything, and is no cache that could be built: it shows what there is to gain.
    """
    loaded: dict[object, Asked] = {}
    outcomes = []
    for one in asked:
        if one.request is None:
            outcomes.append(Outcome())
            continue
        truth = one.request.key if one.answer_id is None else (one.answer_id, one.around)
        maker = loaded.get(truth)
        if maker is not None and one.ts - maker.ts < ttl:
            outcomes.append(Outcome("oracle", maker.position))
        else:
            loaded[truth] = one
            outcomes.append(Outcome())
    return outcomes
