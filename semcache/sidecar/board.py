"""What the dashboard shows, as one answer: what happens now, and what is slower to ask, asked seldom and once for all.

Laws: however many pages are open, the stores are asked once in a while; one that does not answer leaves what was told
before, and delays nothing; nothing of a text or a key is in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict
from time import monotonic
from typing import Any

from semcache import __version__
from semcache.cache import Cache
from semcache.errors import SemcacheError
from semcache.policy.status import FamilyStatus, PolicyStatus, Share, ThresholdStatus, TunedStatus
from semcache.sidecar.health import Health
from semcache.sidecar.live import Live
from semcache.stats import Stats

# How old what is told may be, in seconds: of the cache, and of what all processes saved.
_FRESH, _USAGE_FRESH = 0.8, 10.0
_MOST_ROWS, _MOST_FAMILIES = 50, 12
_SINCE = "30d"


class Board:
    """What one sidecar's dashboard shows; `live` observes its cache."""

    def __init__(self, cache: Cache, live: Live, health: Health) -> None:
        self.live = live
        self._cache = cache
        self._health = health
        self._began = monotonic()
        self._lock = asyncio.Lock()
        self._told: dict[str, Any] = {}
        self._until = self._usage_until = 0.0
        self._usage: list[dict[str, Any]] = []

    async def stats(self) -> Stats:
        """Return the sums of all processes of this sidecar."""
        stats, crowd = await asyncio.to_thread(self._cache.stats), self._health.crowd  # it may ask the store
        return stats if crowd is None else await crowd.stats(stats)

    async def lookups(
        self, search: str, kind: str, limit: int, reach: str, reaches: Callable[[str], bool] | None
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return the latest lookups of all processes of this sidecar, newest first."""
        rows = await asyncio.to_thread(self.live.lookups, search, kind, limit, reaches)  # a search redacts texts
        crowd = self._health.crowd
        if crowd is None:
            return rows
        return await crowd.lookups(rows, limit, search=search, kind=kind, reach=reach)

    async def told(self) -> dict[str, Any]:
        """Return all that is shown, as JSON."""
        async with self._lock:
            if monotonic() >= self._until:
                crowd = self._health.crowd
                stats, live = await self.stats(), self.live if crowd is None else await crowd.live(self.live)
                self._told = await asyncio.to_thread(self._asked, stats, live)
                self._until = monotonic() + _FRESH
            return self._told

    def _asked(self, stats: Stats, live: Live) -> dict[str, Any]:
        cache = self._cache
        return {
            "version": __version__, "namespace": cache.namespace, "mode": cache.mode, "at": cache.clock.time(),
            "uptime": monotonic() - self._began, "state": self._health.state, "texts": self.live.texts,
            "hits": stats.hits, "misses": stats.misses, "bypasses": stats.bypasses, "loads": stats.loads,
            "load_errors": stats.load_errors, "not_served": stats.not_served, "faults": stats.faults,
            "hit_rate": stats.hit_rate, "saved": self._saved(), "prices": stats.prices,
            "tiers": list(self._tiers(stats.tiers)), "policy": policy_told(cache.policy), **live.told(),
        }  # fmt: skip

    def _tiers(self, counted: dict[str, dict[str, int | float]]) -> Iterator[dict[str, Any]]:
        breakers = {tier.name: breaker.is_open for tier, breaker in self._cache.chain.tiers}
        for name, figures in counted.items():
            yield {"name": name, "figures": figures, "is_open": breakers.get(name)}

    def _saved(self) -> dict[str, Any]:
        """Return what was saved by stage and model, in all processes where there is a store."""
        if monotonic() >= self._usage_until:
            self._usage_until = monotonic() + _USAGE_FRESH if self._cache.store is not None else 0.0
            try:
                rows = self._cache.usage(since=_SINCE, by=("stage", "model"))
            except SemcacheError:
                pass  # what was told before is told on; the store's faults say why
            else:
                rows.sort(key=lambda row: (row.saved_money, row.saved_seconds), reverse=True)
                self._usage = [asdict(row) for row in rows]
        names = ("saved_money", "saved_seconds", "saved_prompt_tokens", "saved_completion_tokens", "spent_money")
        sums = {name: sum(row[name] for row in self._usage) for name in names}
        is_shared = self._cache.store is not None
        return {"since": _SINCE if is_shared else "start", "sums": sums, "rows": self._usage[:_MOST_ROWS]}


def policy_told(policy: Any) -> dict[str, Any]:
    """Return what a policy knows, as the page shows it."""
    ask: Callable[[], Any] | None = getattr(policy, "status", None)
    status = None if ask is None else ask()
    told: dict[str, Any] = {"kind": "other", "told": str(policy), "obstacles": [], "families": []}
    if isinstance(status, PolicyStatus):
        return told | {"kind": "shadow" if status.budget is None else "budget", **_learned(status)}
    if isinstance(status, ThresholdStatus):
        return told | {"kind": "threshold", "cut": status.cut, "obstacles": status.obstacles}
    if isinstance(status, TunedStatus):
        families = [
            {"name": one.name, "cut": one.cut, "state": "closed" if one.cut is None else "open", **_share(one.wrong),
             "labels": one.counted, "needed": one.needed or None, "served": True}
            for one in [*status.families[:_MOST_FAMILIES], status.others]
        ]  # fmt: skip
        return told | {
            "kind": "tuned", "budget": status.budget, "confidence": status.confidence, "families": families,
            "obstacles": status.obstacles, "measured": {key: str(value) for key, value in status.measured.items()},
        }  # fmt: skip
    return told


def _learned(status: PolicyStatus) -> dict[str, Any]:
    """Return what a policy that learns knows; the estimate is of what is served, or would be looked at."""
    others = [] if status.others is None else [status.others]
    apart = [one for one in status.families if one.is_by_itself]
    counted = [*others, *apart]
    serving = [one for one in counted if one.cut is not None]
    of = serving or counted
    whole = Share(sum(one.wrong.count for one in of), sum(one.wrong.labels for one in of))
    return {
        "budget": status.budget, "confidence": status.confidence, "obstacles": status.obstacles,
        "wrong": _share(whole) | {"served": bool(serving)},
        "alarms": sum(one.alarms for one in counted),
        "families": [_family(one) for one in [*others, *status.families[:_MOST_FAMILIES]]],
        "unlabelled": status.unlabelled,
        "score": None if status.score is None else str(status.score),
    }  # fmt: skip


def _family(one: FamilyStatus) -> dict[str, Any]:
    return {
        "name": one.about or one.name, "id": "" if one.name.startswith("others") else one.name[:6],
        "state": one.state, "cut": one.cut, "labels": one.labels, "needed": one.needed,
        "days": one.days, "alarms": one.alarms, "asked": one.asked, "near": one.near, "served": one.cut is not None,
        "is_by_itself": one.is_by_itself, **_share(one.wrong),
        "offers": [
            {"budget": offer.budget, "cut": offer.cut, "served": offer.served, "needed": offer.needed}
            for offer in one.offers
        ],
    }  # fmt: skip


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"wrong_count": share.count, "wrong_labels": share.labels, "share": share.share, "low": low, "high": high}
