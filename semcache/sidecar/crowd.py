"""What the workers of one sidecar have to tell, and how it is added to what their owner tells itself.

A worker answers at a socket in the owner's private folder; it is asked when somebody looks. Laws: a worker that does
not answer in time is told of as it was; what one has counted that ended is counted on, so that no sum goes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from msgpack import packb, unpackb
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from semcache.sidecar.credentials import Caller
from semcache.sidecar.live import Live
from semcache.stats import Stats

_PATIENCE_SECONDS = 3.0
_MEDIA = "application/msgpack"


class Crowd:
    """The workers of an owner, by the paths of their sockets; without any, what the owner tells is all."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}
        self._latest: dict[tuple[int, str], Any] = {}
        # Sums of those that ended.
        self._past_stats: list[Mapping[str, Any]] = []
        self._past_metrics: list[str] = []

    async def ask(self, what: str, **query: str) -> list[Any]:
        """Return what each worker tells."""
        return list(await asyncio.gather(*(self._asked(number, what, query) for number in list(self.paths))))

    async def _asked(self, number: int, what: str, query: dict[str, str]) -> Any:
        import aiohttp

        try:
            connector = aiohttp.UnixConnector(str(self.paths[number]))
            async with (
                asyncio.timeout(_PATIENCE_SECONDS),
                aiohttp.ClientSession(connector=connector) as client,
                client.get(f"http://worker/{what}", params=query) as response,
            ):
                told = unpackb(await response.read(), strict_map_key=False)
        except (OSError, aiohttp.ClientError, ValueError, KeyError):
            return self._latest.get((number, what), {"stats": {}, "metrics": "", "live": {}, "lookups": []}[what])
        self._latest[number, what] = told
        return told

    def ended(self, number: int) -> None:
        """Count on what a worker has counted that ended."""
        self.paths.pop(number, None)
        told = self._latest.pop((number, "stats"), None)
        if told:
            # What its tiers held is gone with it.
            self._past_stats = [summed([*self._past_stats, {**told, "tiers": {}}])]
        metrics = self._latest.pop((number, "metrics"), "")
        if metrics:
            self._past_metrics = [added([*self._past_metrics, metrics], without=("semcache_tier",)).decode()]

    # Adding

    async def stats(self, own: Stats) -> Stats:
        """Return the sums of all."""
        if not self.paths and not self._past_stats:
            return own
        told = summed([asdict(own), *self._past_stats, *await self.ask("stats")])
        known = {one.name for one in fields(Stats)}
        whole = Stats(**{name: value for name, value in told.items() if name in known})
        return replace(whole, policy=own.policy, shadow=own.shadow, prices=own.prices)

    async def metrics(self, own: bytes) -> bytes:
        """Return the metrics of all, as Prometheus reads them."""
        if not self.paths and not self._past_metrics:
            return own
        return added([own.decode(), *self._past_metrics, *await self.ask("metrics")])

    async def live(self, own: Live) -> Live:
        """Return what happens in all."""
        return own.with_others(await self.ask("live")) if self.paths else own

    async def lookups(self, own: list[dict[str, Any]], limit: int, **query: str) -> list[dict[str, Any]]:
        """Return the latest lookups of all."""
        if not self.paths:
            return own
        rows = [*own]
        apart = len(self.paths) + 1
        for number, told in enumerate(await self.ask("lookups", limit=str(limit), **query), 1):
            rows += [row | {"number": row["number"] * apart + number} for row in told]
        return sorted(rows, key=lambda row: row["at"], reverse=True)[:limit]


def summed(told: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return numbers of the same names added, in whatever depth; of texts the first."""
    sums: dict[str, Any] = {}
    for one in told:
        for name, value in one.items():
            known = sums.get(name)
            if isinstance(value, Mapping):
                sums[name] = summed([known or {}, value])
            elif isinstance(value, int | float) and not isinstance(value, bool):
                sums[name] = (known or 0) + value
            else:
                sums.setdefault(name, value)
    return sums


class _Added:
    """Metrics, as an exposition wants them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def added(texts: Iterable[str], without: tuple[str, ...] = ()) -> bytes:
    """Return metrics of several processes as one's, their samples added; the first says which there are first."""
    families: dict[str, Metric] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name in without:
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            own = sums.setdefault(family.name, {})
            for one in family.samples:
                at = one.name, tuple(one.labels.items())
                own[at] = own.get(at, 0.0) + one.value
    for name, family in families.items():
        for (sample, labels), value in sums[name].items():
            family.add_sample(sample, dict(labels), value)
    told: bytes = generate_latest(_Added(families.values()))
    return told


class Telling:
    """A worker's application at its own socket: what the owner asks of it."""

    def __init__(self, stats: Any, metrics: Any, live: Live) -> None:
        self._stats = stats
        self._metrics = metrics
        self._live = live

    async def __call__(self, scope: Any, _receive: object, send: Any) -> None:
        if scope["type"] != "http":
            return
        told = packb(self._told(scope["path"].strip("/"), scope["query_string"].decode("ascii", "replace")))
        headers = [(b"content-type", _MEDIA.encode()), (b"content-length", b"%d" % len(told))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": told})

    def _told(self, what: str, query: str) -> Any:
        from urllib.parse import parse_qs

        if what == "stats":
            return asdict(self._stats())
        if what == "metrics":
            return self._metrics().decode()
        if what == "live":
            return self._live.state()
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        caller = Caller("", frozenset(), reach=asked.get("reach", ""))
        reaches = caller.reaches if caller.reach else None
        return self._live.lookups(asked.get("search", ""), asked.get("kind", ""), int(asked["limit"]), reaches)
