"""Which slots are searched together, and how the largest products of a search are found in them.

Law: what works on tensors has sizes that do not depend on what is in them, so that a search can be a CUDA graph.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from semcache.semantic.arena import OFFSET, SHIFT, SLAB_ROWS

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

    from semcache.semantic.graphs import Graph

_MOST_RUNS = 8
_LONG_RUN = 64
"""Runs of slots are searched where they lie; of more and shorter ones than this the rows are gathered first, as each
costs some launches."""


class Slots:
    """Slots that are searched together, in order, and the runs of them that lie side by side: (first, count)."""

    __slots__ = ("asked", "graphs", "numbers", "runs")

    def __init__(self, numbers: NDArray[int64], runs: list[tuple[int, int]]) -> None:
        self.numbers = numbers
        self.runs = runs
        self.asked: Counter[tuple[int, int]] = Counter()
        self.graphs: dict[tuple[int, int], Graph] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def is_scattered(self) -> bool:
        """Whether their rows are better gathered before they are searched."""
        return len(self.runs) > _MOST_RUNS and len(self) < _LONG_RUN * len(self.runs)


def largest(near: Any, k: int) -> tuple[Any, Any]:
    """Return the k largest of each row, and their places: they are in the k slots with the largest maxima."""
    slots = near.shape[1] >> SHIFT
    if slots <= k:
        found: tuple[Any, Any] = near.topk(min(k, near.shape[1]))
        return found
    by_slot = near.view(len(near), slots, SLAB_ROWS)
    tops = by_slot.amax(2).topk(k).indices
    largest, at = by_slot.gather(1, tops[:, :, None].expand(-1, -1, SLAB_ROWS)).flatten(1).topk(k)
    return largest, (tops.gather(1, at >> SHIFT) << SHIFT) + (at & OFFSET)


def taken_of(parts: list[Any], places: Any) -> Any:
    """Return the vectors at some places of parts that follow one another; no size depends on what is in a tensor."""
    import torch

    if len(parts) == 1:
        return parts[0][places]
    taken, start = None, 0
    for part in parts:
        some = part[(places - start).clamp(0, len(part) - 1)]
        taken = some if taken is None else torch.where((places >= start)[:, :, None], some, taken)
        start += len(part)
    return taken
