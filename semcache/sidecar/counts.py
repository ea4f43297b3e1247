"""What a sidecar counts beside its cache: requests by their answers, those under way, and what the servers behind took.

Law: labels have few values: no path, status or server in them is a caller's own word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Of a caller who had gone before there was an answer.
GONE = "gone"


class Counts(Collector):
    """The counters of one sidecar; `most` is how many requests it takes at once."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.running = 0
        self.handed_through = 0
        self.spans: Callable[[], Mapping[str, int]] = dict
        self._answered: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[int] = Counter()
        self._upstream = Histogram(
            "semcache_upstream_seconds", "How long servers behind took to begin their answers.", ("server", "status"),
            buckets=_BUCKETS, registry=None,
        )  # fmt: skip

    def answered(self, route: str, status: int) -> None:
        """Count a request that has ended."""
        self._answered[route, str(status) if status else GONE] += 1

    def refused(self, status: int) -> None:
        """Count a request that we refused ourselves."""
        self._refused[status] += 1

    def asked(self, server: str, status: int, seconds: float) -> None:
        """Observe an answer of a server behind; its status is 0 where it gave none."""
        kind = f"{status // 100}xx" if status else "none"
        self._upstream.labels(server, "429" if status == 429 else kind).observe(seconds)  # noqa: PLR2004 - as HTTP has it

    def describe(self) -> Iterator[Metric]:
        """Return nothing: names are checked when they are collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return what was counted until now."""
        answered = CounterMetricFamily("semcache_requests", "Requests answered.", labels=["route", "status"])
        for told, count in self._answered.copy().items():
            answered.add_metric(told, count)
        yield answered
        refused = CounterMetricFamily("semcache_refused", "Requests that the sidecar refused.", labels=["status"])
        for status, count in self._refused.copy().items():
            refused.add_metric([str(status)], count)
        yield refused
        yield CounterMetricFamily(
            "semcache_handed_through", "Requests of no endpoint that is cached.", value=self.handed_through
        )
        yield GaugeMetricFamily("semcache_requests_running", "Requests under way.", value=self.running)
        yield GaugeMetricFamily("semcache_requests_limit", "How many may be under way at once.", value=self.most)
        yield from self._upstream.collect()
        spans = CounterMetricFamily("semcache_spans", "Spans for the collector.", labels=["outcome"])
        for outcome, count in self.spans().items():
            spans.add_metric([outcome], count)
        yield spans
