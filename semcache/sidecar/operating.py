"""What an operator asks and switches: figures, the mode of all replicas, what is dropped, why a call was answered so.

Law: who reaches one tenant alone is told and drops what is that tenant's, and learns nothing of what else there is.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from pydantic import BaseModel

from semcache import __version__
from semcache.model import Mode
from semcache.sidecar.service import Call, Row
from semcache.stats import Stats


class StatsTold(BaseModel):
    """Sums of this sidecar since it began, and what its tiers hold; times are seconds."""

    version: str
    namespace: str
    mode: Mode
    uptime: float
    hit_rate: float
    stats: Stats
    breakers: dict[str, str]


async def _stats(call: Call) -> Any:
    cache = call.cache
    stats = cache.stats()
    breakers = {tier.name: "open" if breaker.is_open else "closed" for tier, breaker in cache.chain.tiers}
    return StatsTold.model_construct(
        version=__version__, namespace=cache.namespace, mode=cache.mode, uptime=monotonic() - call.service.began,
        hit_rate=stats.hit_rate, stats=stats, breakers=breakers,
    )  # fmt: skip


ROWS = (
    Row("GET", "/semcache/v1/stats", "Sums of this sidecar since it began, and what its tiers hold.", _stats,
        is_of_all=True, gives=StatsTold),
)  # fmt: skip
