"""Gates: bounds on a replay's figures, for CI: "wrong_per_hit<=0.01".

Laws: what cannot be measured passes no gate, since silence is no proof; a measure that is not there is refused before
anything is replayed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from semcache.errors import ConfigurationError
from semcache.replay.report import Report, latencies_us
from semcache.replay.score import Rate

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_GATE = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a measure, as it was `typed`."""

    typed: str
    measure: str
    sign: str
    bound: float


@dataclass(frozen=True, slots=True)
class Checked:
    """A gate and what was measured; `note` says of how many, or why there is nothing."""

    gate: Gate
    value: float | None
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.value is not None and _SIGNS[self.gate.sign](self.value, self.gate.bound)

    def told(self) -> str:
        """Say it in a line: measure, value and bound."""
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        note = f" ({self.note})" if self.note else ""
        outcome = "holds" if self.passed else "fails"
        return f"gate {outcome}: {self.gate.measure} is {value}{note}, asked for {self.gate.sign} {self.gate.bound:g}"


Measure = Callable[[Report], "float | Rate | None"]


def _rate_of_all(report: Report) -> Rate | None:
    return report.score.hits.wrong_per_hit if report.is_judged else None


def _rate_of_near(report: Report) -> Rate | None:
    return report.score.near.wrong_per_hit if report.is_judged else None


def _upper(rate: Rate | None) -> float | None:
    return None if rate is None or rate.interval is None else rate.interval[1]


def _latency(tier: str, percentile: str) -> Measure:
    return lambda report: latencies_us(report.score).get(tier, {}).get(percentile)


MEASURES: dict[str, Measure] = {
    "hit_rate": lambda report: report.score.hit_rate,
    "exact_only_hit_rate": lambda report: report.exact.hit_rate,
    "oracle_hit_rate": lambda report: report.oracle.hit_rate if report.is_judged else None,
    "wrong_hits": lambda report: report.score.hits.wrong if report.is_judged else None,
    "wrong_per_hit": _rate_of_all,
    "wrong_per_hit_upper": lambda report: _upper(_rate_of_all(report)),
    "wrong_per_near_hit": _rate_of_near,
    "wrong_per_near_hit_upper": lambda report: _upper(_rate_of_near(report)),
    "requests": lambda report: report.score.requests,
    "misses": lambda report: report.score.misses,
    "bypassed": lambda report: report.score.bypassed,
    "skipped_lines": lambda report: len(report.replayed.recording.skipped),
    "saved_seconds": lambda report: report.score.saved.seconds,
    "net_seconds": lambda report: report.score.net_seconds,
    "saved_money": lambda report: None if report.money is None else report.money[0],
    "memory_p99_us": _latency("memory", "p99"),
    "disk_p99_us": _latency("disk", "p99"),
    "semantic_p99_us": _latency("semantic", "p99"),
    "miss_p99_us": _latency("miss", "p99"),
}


def gate(typed: str) -> Gate:
    """Read a gate. Raises ConfigurationError, with the measures that there are."""
    match = _GATE.fullmatch(typed)
    if match is None:
        raise ConfigurationError(
            f"--gate {typed!r}: expected MEASURE<=NUMBER (or >=, <, >), as in 'wrong_per_hit<=0.01'; {_listed()}"
        )
    measure, sign, number, percent = match.groups()
    if measure not in MEASURES:
        raise ConfigurationError(f"--gate {typed!r}: there is no measure {measure!r}; {_listed()}")
    return Gate(typed, measure, sign, float(number) / (100 if percent else 1))


def check(one: Gate, report: Report) -> Checked:
    """Measure what a gate asks for."""
    found = MEASURES[one.measure](report)
    if isinstance(found, Rate):
        if found.interval is None:
            return Checked(one, None, "no hit could be judged")
        low, high = found.interval
        return Checked(one, found.share, f"{found.count:,} of {found.of:,}, 95% {low:.4f} to {high:.4f}")
    if found is None:
        return Checked(one, None, "" if report.is_judged else "the recording has no answer_id")
    return Checked(one, float(found))


def told_of(checked: list[Checked]) -> list[dict[str, Any]]:
    """Return gates as plain data for JSON."""
    return [{"gate": one.gate.typed, "value": one.value, "passed": one.passed} for one in checked]


def _listed() -> str:
    return f"the measures are {', '.join(MEASURES)}"
