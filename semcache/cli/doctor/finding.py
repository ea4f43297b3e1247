"""What the doctor finds: one fact each, with a mark, figures, and the mend where something is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mark = Literal["ok", "skipped", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `figures` are for programs: seconds, bytes and counts, by name."""

    mark: Mark
    what: str
    told: str
    mend: str = ""
    figures: dict[str, float | int | str] = field(default_factory=dict)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def milliseconds(seconds: float) -> str:
    """Return a short time as people read it: "0.05 ms", "1.2 ms", "350 ms", "4.1 s"."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"  # noqa: PLR2004 - two digits
