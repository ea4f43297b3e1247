"""Whether the sidecar lives, whether it is ready, and what it counts: for who starts it, sends it traffic, watches it.

Ready is who has tried all that he was given: model, index, stores. One that failed is no reason to send traffic
elsewhere, as calls then go to the server behind (law 10).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from semcache.cache import Cache
from semcache.sidecar.counts import Counts
from semcache.telemetry.prometheus import Metrics

if TYPE_CHECKING:
    from semcache.sidecar.crowd import Crowd

_UNREADY, _ABSENT = 503, 404


class Health:
    """What is known of the sidecar's state, and what it counts."""

    def __init__(self, cache: Cache, most: int = 0, crowd: Crowd | None = None) -> None:
        self._cache = cache
        self.crowd = crowd
        self.counts = Counts(most)
        self._registry = CollectorRegistry()
        self._metrics = Metrics(cache, self._registry)
        self._registry.register(self.counts)
        self._fault = ""
        self.is_ready = False
        self.is_draining = False

    async def warm(self) -> None:
        """Load model and index, and then be ready, whatever came of it."""
        try:
            await self._cache.awarm()
        except Exception as error:  # noqa: BLE001 - in whatever way it cannot be loaded, calls are answered without it
            self._fault = f"{type(error).__name__}: {error}"
        self.is_ready = True

    def metrics(self) -> bytes:
        """Return what this process counts, as Prometheus reads it."""
        told: bytes = generate_latest(self._registry)
        return told

    @property
    def state(self) -> str:
        """Whether it takes traffic: "ok", or why not yet, or no more."""
        return "draining" if self.is_draining else "ok" if self.is_ready else "loading"

    async def answered(
        self, scope: MutableMapping[str, Any], send: Callable[[Mapping[str, Any]], Awaitable[None]]
    ) -> bool:
        """Answer a request for the state; False for any other."""
        path = scope["path"]
        if path not in ("/livez", "/readyz", "/metrics") or scope["method"] not in ("GET", "HEAD"):
            return False
        if path == "/metrics":
            metrics = self.metrics() if self.crowd is None else await self.crowd.metrics(self.metrics())
            await _send(send, 200, CONTENT_TYPE_LATEST.encode(), metrics)
            return True
        is_well = path == "/livez" or self.state == "ok"
        told: dict[str, Any] = {"status": "ok" if is_well else self.state}
        if path == "/readyz":
            told["tiers"] = [tier.name for tier in self._cache.tiers]
            if self._fault:
                told["near_matches"] = "failed to load; calls are answered without them"
        await _give(send, 200 if is_well else _UNREADY, told)
        return True


class HealthOnly:
    """The application of a port that serves nothing else."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def __call__(self, scope: MutableMapping[str, Any], _receive: object, send: Any) -> None:
        if scope["type"] == "http" and not await self._health.answered(scope, send):
            await _give(send, _ABSENT, {"status": "there are /livez, /readyz and /metrics here"})


async def _give(send: Callable[[Mapping[str, Any]], Awaitable[None]], status: int, told: dict[str, Any]) -> None:
    await _send(send, status, b"application/json", json.dumps(told).encode() + b"\n")


async def _send(send: Callable[[Mapping[str, Any]], Awaitable[None]], status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
