"""What a cache tells of its lookups in sums: `Cache.stats()`.

Laws: sums are of this process, since the cache was made; what all processes saved and spent is `usage` (`accounts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Sums since the cache was made. `stages` are seconds of wall-clock time; what was saved is told as in a UsageRow.

    `policy` says in a few words what decides on near matches, what it has learned, and what keeps it from serving any,
    `shadow` what is learned of a shadow embedder's.
    `unpriced` are the calls left out of the money, by model; `prices` the currency and the oldest day of the prices.
    """

    hits: dict[str, int] = field(default_factory=dict)
    misses: int = 0
    bypasses: dict[str, int] = field(default_factory=dict)
    loads: int = 0
    load_errors: int = 0
    shared: int = 0
    stale: int = 0
    refreshes: int = 0
    not_served: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0
    saved_seconds: float = 0.0
    saved_money: float = 0.0
    spent_money: float = 0.0
    unpriced: dict[str, int] = field(default_factory=dict)
    prices: str = ""
    tiers: dict[str, dict[str, int | float]] = field(default_factory=dict)
    recording: dict[str, int] = field(default_factory=dict)
    policy: str = ""
    shadow: str = ""

    @property
    def hit_rate(self) -> float:
        """Hits over hits and misses; bypasses are no lookups."""
        hits = sum(self.hits.values())
        return hits / (hits + self.misses) if hits + self.misses else 0.0
