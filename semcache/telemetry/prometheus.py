"""Metrics of a cache for Prometheus: what it counts is read when it is scraped, how long lookups take is observed.

Law: no text, key or tenant is in a metric or a label; labels have few values, and all metrics begin with `semcache_`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

from semcache.errors import MissingExtraError
from semcache.events import Event

try:
    from prometheus_client import CollectorRegistry, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import REGISTRY, Collector
except ImportError:
    raise MissingExtraError("semcache.telemetry.prometheus", "prometheus") from None

if TYPE_CHECKING:
    from semcache.stats import Stats

_BUCKETS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_LOOKUPS = frozenset({"hit", "miss", "bypass", "refresh"})
# So many lookups are noted before they are observed.
_FOLD_AT = 2048
# Of a reason what comes before its numbers and quotes.
_GENERAL = re.compile(r"[^0-9\":(]*")


class Metrics(Collector):
    """The metrics of a cache, in a registry (prometheus_client's own, where none is given) until `close`.

    Takes what a `semcache.Cache` is. Several caches have one registry each, or are told apart by `namespace`.
    """

    def __init__(self, cache: Any, registry: CollectorRegistry | None = None) -> None:
        self._cache = ref(cache)
        self._namespace = cache.namespace
        self._registry = registry = REGISTRY if registry is None else registry
        self._lookups = Histogram(
            "semcache_lookup_seconds", "How long lookups took, with their loads.", ("namespace", "kind", "tier"),
            buckets=_BUCKETS, registry=None,
        )  # fmt: skip
        self._stages = Histogram(
            "semcache_stage_seconds", "How long each stage of lookups took.", ("namespace", "stage"), buckets=_BUCKETS,
            registry=None,
        )  # fmt: skip
        # A memory hit takes as long as three observations: it is noted here (deque.append is atomic).
        self._noted: deque[tuple[str, str | None, dict[str, int]]] = deque()
        self._known_lookups: dict[tuple[str, str | None], Any] = {}
        self._known_stages: dict[str, Any] = {}
        registry.register(self)
        cache.recorder.add_observer(self)

    def __call__(self, event: Event) -> None:
        """Note an event, which is observed with others, later."""
        noted = self._noted
        if event.kind in _LOOKUPS:
            noted.append((event.kind, event.tier, event.stages))
            if len(noted) >= _FOLD_AT:
                self._fold()

    def _fold(self) -> None:
        """Observe what was noted; another thread may be at it too."""
        noted = self._noted
        with suppress(IndexError):
            for _ in range(len(noted)):
                self._observe(*noted.popleft())

    def _observe(self, kind: str, tier: str | None, told: dict[str, int]) -> None:
        lookups = self._known_lookups.get((kind, tier))
        if lookups is None:
            lookups = self._lookups.labels(self._namespace, kind, tier or "")
            self._known_lookups[kind, tier] = lookups
        lookups.observe(sum(told.values()) / 1e9)
        for stage, nanoseconds in told.items():
            stages = self._known_stages.get(stage)
            if stages is None:
                stages = self._known_stages[stage] = self._stages.labels(self._namespace, stage)
            stages.observe(nanoseconds / 1e9)

    def close(self) -> None:
        """Take them out of the registry, and observe no more."""
        self._registry.unregister(self)
        cache = self._cache()
        if cache is not None and self in cache.recorder.observers:
            cache.recorder.observers.remove(self)

    def describe(self) -> Iterator[Metric]:
        """Return nothing: names are checked when they are collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return what the cache has counted until now."""
        self._fold()
        yield from self._lookups.collect()
        yield from self._stages.collect()
        cache = self._cache()
        if cache is not None:
            stats = cache.stats()
            # What is not there yet is 0: else the first hit of a tier would be none that a rate sees.
            stats.hits = dict.fromkeys((*(tier.name for tier in cache.tiers), "flight"), 0) | stats.hits
            yield from self._counted(stats)
            yield from self._state(cache)

    def _counted(self, stats: Stats) -> Iterator[Metric]:
        yield self._counter("hits", "Answers from the cache.", stats.hits, "tier")
        yield self._counter("misses", "Lookups that found nothing to serve.", {"": stats.misses})
        yield self._counter("bypasses", "Calls that went by the cache.", general(stats.bypasses), "reason")
        yield self._counter("loads", "Calls of origins.", {"": stats.loads})
        yield self._counter("load_errors", "Calls of origins that failed.", {"": stats.load_errors})
        yield self._counter("shared", "Lookups that waited for another's load.", {"": stats.shared})
        yield self._counter("stale", "Answers that were served stale.", {"": stats.stale})
        yield self._counter("refreshes", "Loads behind answers that were served stale.", {"": stats.refreshes})
        yield self._counter("not_served", "Near matches not served.", general(stats.not_served), "reason")
        yield self._faults(stats.faults)
        tokens = {"prompt": stats.saved_prompt_tokens, "completion": stats.saved_completion_tokens}
        yield self._counter("saved_tokens", "Tokens that hits saved.", tokens, "kind")
        currency = stats.prices.partition(" ")[0]
        yield self._gauge("saved_seconds", "Seconds that hits saved, net of the lookups' own.", stats.saved_seconds)
        yield self._gauge(f"saved_money_{currency.lower()}", "Money that hits saved.", stats.saved_money)
        yield self._gauge(f"spent_money_{currency.lower()}", "Money that loads have cost.", stats.spent_money)
        yield from self._tiers(stats.tiers)

    def _state(self, cache: Any) -> Iterator[Metric]:
        """Tell what the cache may do now: its mode, the tiers that are left alone, and what its policy serves."""
        mode = GaugeMetricFamily("semcache_mode", "The mode that the cache is in.", labels=["namespace", "mode"])
        mode.add_metric([self._namespace, cache.mode], 1)
        yield mode
        about = "Whether a tier is left alone as it failed too often."
        open_ = GaugeMetricFamily("semcache_tier_open", about, labels=["namespace", "tier"])
        for tier, breaker in cache.chain.tiers:
            open_.add_metric([self._namespace, tier.name], breaker.is_open)
        yield open_
        try:
            told = figures_of(cache.policy.status())
        except Exception:  # noqa: BLE001 - a policy may be the user's own, and may have no status
            return
        for name, (figure, label, values) in told.items():
            family = GaugeMetricFamily(
                f"semcache_policy_{name}", figure, labels=["namespace", *([label] if label else [])]
            )
            for value, number in values.items():
                family.add_metric([self._namespace, *([value] if label else [])], number)
            yield family

    def _counter(self, name: str, about: str, values: dict[str, Any], label: str = "") -> Metric:
        labels = ["namespace", label] if label else ["namespace"]
        family = CounterMetricFamily(f"semcache_{name}", about, labels=labels)
        for value, count in values.items():
            family.add_metric([self._namespace, value] if label else [self._namespace], count)
        return family

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"semcache_{name}", about, labels=["namespace"])
        family.add_metric([self._namespace], value)
        return family

    def _faults(self, faults: dict[str, int]) -> Metric:
        about = "What made a tier a miss, or went wrong away from lookups."
        family = CounterMetricFamily("semcache_faults", about, labels=["namespace", "tier", "reason"])
        for told, count in faults.items():
            tier, _, reason = told.partition(": ")
            family.add_metric([self._namespace, tier, reason], count)
        return family

    def _tiers(self, tiers: dict[str, dict[str, int | float]]) -> Iterator[Metric]:
        """Tell what each tier counts, by its own names."""
        about = "What a tier counts: its entries, bytes, evictions and the like."
        family = GaugeMetricFamily("semcache_tier", about, labels=["namespace", "tier", "figure"])
        for tier, figures in tiers.items():
            for name, value in figures.items():
                family.add_metric([self._namespace, tier, name], value)
        yield family


def general(reasons: dict[str, int]) -> dict[str, int]:
    """Return reasons without what they tell of one call, so that they are few."""
    counted: dict[str, int] = {}
    for reason, count in reasons.items():
        match = _GENERAL.match(reason)
        kind = (match[0] if match else "").strip(" ,;") or "other"
        counted[kind] = counted.get(kind, 0) + count
    return counted


def figures_of(status: Any) -> dict[str, tuple[str, str, dict[str, float]]]:
    """Return what a policy's status has in numbers: by name what it is of, its label and the values by that.

    Of families, which may be many, the one is told whose bound is the worst of those that serve.
    """
    families = [one for one in (*getattr(status, "families", ()), getattr(status, "others", None)) if one is not None]
    serving = [one for one in families if one.cut is not None]
    cuts = [one.cut for one in serving] or ([status.cut] if hasattr(status, "cut") else [])
    told: dict[str, tuple[str, str, dict[str, float]]] = {}
    if status.budget is not None:
        told["budget"] = "The share of near matches served that may be wrong.", "", {"": status.budget}
    if cuts:
        told["cut"] = "The lowest cut from which on near matches are served.", "", {"": min(cuts)}
    worst = max(serving or families[-1:], key=lambda one: one.wrong.interval[1], default=None)
    if worst is not None:
        low, high = worst.wrong.interval
        shares = {"lower": low, "upper": high} | ({} if worst.wrong.share is None else {"estimate": worst.wrong.share})
        told["wrong_share"] = "The share of near matches that is wrong, and its 95% interval.", "bound", shares
        told["labels"] = "Comparisons that this rests on.", "", {"": worst.wrong.labels}
    if worst is not None and worst.needed is not None:
        told["labels_needed"] = "Comparisons that it takes for a cut to open.", "", {"": worst.needed}
    states = [one.state for one in families if hasattr(one, "state")]
    if states:
        counted = {state: float(states.count(state)) for state in ("open", "closed", "alarm")}
        told["families"] = "Scope families by what the policy does in them.", "state", counted
        told["alarms"] = "Alarms that closed a cut so far.", "", {"": sum(one.alarms for one in families)}
    return told
