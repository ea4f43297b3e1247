"""The figures of a replay: what `--json` writes and the printed report tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from semcache.policy import Tuned
from semcache.replay.rehearsal import Learned
from semcache.replay.score import Cost, Hits, Score, origin_cost, percentile, score, within
from semcache.replay.settings import Replayed
from semcache.replay.whymiss import WhyMiss, why_miss

CUTS = (0.95, 0.90, 0.85)
TIERS = ("memory", "disk", "semantic", "flight")


@dataclass(slots=True)
class Report:
    """The scores of a replay, of exact matches alone, and of an oracle; `origin` is what no cache would cost.

    `why` is what keeps requests apart, where the recording was kept part by part.
    """

    replayed: Replayed
    score: Score
    exact: Score
    oracle: Score
    origin: Cost
    why: WhyMiss | None = None

    @property
    def is_judged(self) -> bool:
        return self.replayed.recording.has_answer_ids

    @property
    def has_near(self) -> bool:
        return self.replayed.settings.embedder is not None

    @property
    def is_shadow(self) -> bool:
        return self.has_near and self.replayed.settings.policy is None

    @property
    def proving(self) -> int:
        """How many of these requests, from the first on, have proved the policy that they are replayed with."""
        policy, recording = self.replayed.settings.policy, self.replayed.recording
        measured = policy.measured if isinstance(policy, Tuned) else {}
        first, known = measured.get("calibrating"), measured.get("proved_on")
        if not isinstance(first, int) or not 0 < first <= len(recording.asked):
            return 0
        return first if known == recording.digest(first) else 0

    @property
    def requests_per_second(self) -> float:
        return self.score.requests / max(self.replayed.wall_seconds, 1e-9)

    @property
    def money(self) -> tuple[float, float] | None:
        """Return what was saved and what no cache would cost, in money; None where no request could be priced."""
        return (self.score.saved.money, self.origin.money) if self.origin.money else None

    def tiers(self) -> list[tuple[str, Hits]]:
        """Return each tier's hits, nearest tier first; a tier that was not there is left out."""
        there = {*self.replayed.stats.tiers, *self.score.tiers}
        return [(name, self.score.tiers.get(name, Hits())) for name in TIERS if name in there]

    def references(self) -> list[tuple[str, Score]]:
        """Return what a replay is compared with, and itself, from the fewest answers to the most."""
        rows = [("no cache", Score(requests=self.score.requests))]
        if self.has_near:
            rows.append(("exact matches only", self.exact))
        rows.append(("this replay", self.score))
        if self.is_judged:
            rows.append(("oracle", self.oracle))
        return rows

    def near_by_cut(self) -> list[tuple[float, Hits]]:
        """Return, for some cuts, how many requests had a neighbour that near, and for how many it was another's."""
        asked = self.replayed.recording.asked
        return [(cut, within(asked, self.replayed.outcomes, cut)) for cut in CUTS]


def make_report(replayed: Replayed) -> Report:
    """Score a replay."""
    asked = replayed.recording.asked
    return Report(
        replayed,
        score=score(asked, replayed.outcomes),
        exact=score(asked, replayed.exact),
        oracle=score(asked, replayed.oracle),
        origin=origin_cost(asked),
        why=why_miss(replayed.recording, replayed.settings),
    )


def latencies_us(score: Score) -> dict[str, dict[str, float]]:
    """Return percentiles of what the cache took, in microseconds, by tier, and for misses under "miss"."""
    found = {}
    for tier in (*TIERS, "miss"):
        ordered = sorted(score.nanoseconds.get(tier, ()))
        if ordered:
            shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
            found[tier] = {name: percentile(ordered, share) / 1000 for name, share in shares.items()}
    return found


def figures(report: Report) -> dict[str, Any]:
    """Return the report as plain data for JSON: rates are shares of 1, null where nothing could be judged."""
    score, replayed = report.score, report.replayed
    wrong = score.hits.wrong_per_hit
    shadow = {
        "shadow": [{"cut": cut, "requests": near.hits, "wrong": near.wrong} for cut, near in report.near_by_cut()]
    }
    embedder = replayed.settings.embedder
    return {
        "requests": score.requests,
        "hits": {name: hits.hits for name, hits in report.tiers()},
        "misses": score.misses,
        "bypassed": score.bypassed,
        "skipped_lines": len(replayed.recording.skipped),
        "hit_rate": score.hit_rate,
        "wrong_hits": score.hits.wrong,
        "wrong_per_hit": wrong.share if report.is_judged else None,
        "wrong_per_hit_ci95": wrong.interval if report.is_judged else None,
        "semantic": {"hits": score.near.hits, "wrong": score.near.wrong},
        "refused_by_guard": {
            name: {"requests": near.hits, "wrong": near.wrong} for name, near in score.refused.items()
        },
        "exact_only_hit_rate": report.exact.hit_rate,
        "oracle_hit_rate": report.oracle.hit_rate if report.is_judged else None,
        "saved": {
            "seconds": score.saved.seconds,
            "net_seconds": score.net_seconds,
            "prompt_tokens": score.saved.prompt_tokens,
            "completion_tokens": score.saved.completion_tokens,
            "money": None if report.money is None else report.money[0],
            "prices": sorted(replayed.recording.prices),
            "unpriced": {model: calls for model, calls in report.origin.unpriced.items() if calls},
        },
        "latency_us": latencies_us(score),
        "requests_per_second": report.requests_per_second,
        "embed_seconds": replayed.embed_seconds,
        "wall_seconds": replayed.wall_seconds,
        "policy": repr(replayed.settings.policy) if replayed.settings.policy else "Shadow()",
        "embedder": embedder.identity if embedder is not None else None,
        **(shadow if report.is_shadow else {}),
        **({"composed_requests": replayed.recording.composed} if replayed.recording.composed else {}),
        **({} if replayed.learned is None else {"learned": _learned(replayed.learned)}),
        **({"proving_requests": report.proving} if report.proving else {}),
        **({"why_miss": asdict(report.why)} if report.why is not None else {}),
    }


def _learned(learned: Learned) -> dict[str, Any]:
    """Tell what an error budget learned: changes as they came, and each family's labels and cut at the end."""
    status = learned.status
    families = () if status is None else (*status.families, *([status.others] if status.others else ()))
    return {
        "changes": [change._asdict() for change in learned.changes],
        "families": [
            {"about": one.about or one.name, "state": one.state, "cut": one.cut, "labels": one.labels,
             "needed": one.needed, "wrong": one.wrong.count, "alarms": one.alarms}
            for one in families
        ],
    }  # fmt: skip
