"""Which slots are searched together, and how the largest products of a search are found in them.

Law: what works on tensors has sizes that do not depend on what is in them, and copies nothing from the host, so that a
search can be a CUDA graph.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from semcache.semantic.arena import OFFSET, SHIFT, SLAB_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy import bool_, int64
    from numpy.typing import NDArray

    from semcache.semantic.graphs import Graph

_MOST_RUNS = 8
_LONG_RUN = 64
"""Runs of slots are searched where they lie; of more and shorter ones than this the rows are gathered first, as each
costs some launches."""
_DOUBLED_TO = 8
_WORTH_IT = 256
"""Searches that pay for making a graph several times over."""
_LONGEST_PATIENCE = 2**14


class Slots:
    """Slots that are searched together, in order, and the runs of them that lie side by side: (first, count).

    `chunks` are those that they lie in, in order, with the number of each one's first row: (rows, first). `patience` is
    how many searches of a size are asked for before they get a graph.
    """

    __slots__ = (
        "__weakref__",
        "_firsts",
        "_lasts",
        "_numbers",
        "asked",
        "chunks",
        "graphs",
        "numbers",
        "patience",
        "replayed",
        "runs",
    )

    def __init__(
        self, numbers: NDArray[int64], runs: list[tuple[int, int]], chunks: list[tuple[Any, int]], patience: int
    ) -> None:  # fmt: skip
        self.numbers = numbers
        self.runs = runs
        self.chunks = chunks
        self.patience = patience
        self.replayed = 0
        self.asked: Counter[tuple[int, int]] = Counter()
        self.graphs: dict[tuple[int, int], Graph] = {}
        self._numbers: Any = None
        self._firsts: Any = None
        self._lasts: Any = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def patience_left(self) -> int:
        """How patient those are to be that come in the place of these, where their scope has grown or shrunk.

        To make a graph takes as long as many searches: a scope that changes before it has paid for itself waits longer.
        """
        if not self.graphs:
            return self.patience
        has_paid = self.replayed >= _WORTH_IT * len(self.graphs)
        return self.patience // 2 if has_paid else min(2 * self.patience, _LONGEST_PATIENCE)

    @property
    def is_scattered(self) -> bool:
        """Whether their rows are better gathered before they are searched."""
        return len(self.runs) > _MOST_RUNS and len(self) < _LONG_RUN * len(self.runs)

    def vectors(self, places: Any) -> Any:
        """Return the vectors at some places, int64[n, k] in the order of the slots: [n, k, d]."""
        import torch

        if self._numbers is None:
            self._bring(places.device)
        rows = ((self._numbers[places >> SHIFT] << SHIFT) + (places & OFFSET)).flatten()
        # Each chunk gives a vector for all of them, and the last that begins before a row has its own.
        at = torch.minimum((rows - self._firsts).clamp_(min=0), self._lasts)
        taken = self.chunks[0][0].index_select(0, at[0])
        if len(self.chunks) > 1:
            is_behind = (rows >= self._firsts)[:, :, None]
            for number, (chunk, _) in enumerate(self.chunks[1:], 1):
                taken = torch.where(is_behind[number], chunk.index_select(0, at[number]), taken)
        return taken.view(*places.shape, -1)

    def _bring(self, device: Any) -> None:
        """Bring to the device what it is to know of these slots: once, before a graph is made."""
        import torch

        self._firsts = torch.tensor([first for _, first in self.chunks]).to(device)[:, None]
        self._lasts = torch.tensor([len(chunk) - 1 for chunk, _ in self.chunks]).to(device)[:, None]
        self._numbers = torch.from_numpy(self.numbers).to(device)


def find(
    slots: Slots, k: int, groups: Iterable[tuple[int, list[Any]]], given: Any, dtype: Any,
    alive: NDArray[bool_] | None = None, *, on_host: bool = False,
) -> Any:  # fmt: skip
    """Return float32[n, 2k]: similarities, and the bits of the int32 places in the slots' order.

    `given` is float32[n, d + 1]: queries, and how many rows of the last slot are in use; `groups` are their vectors, in
    `dtype`, with the place of the first slot of each, which are brought to the host where the search is `on_host`.
    """
    import numpy as np
    import torch

    exact, used = given[:, :-1].contiguous(), given[:1, -1:]
    rough = exact if on_host else exact.to(dtype)
    may = None
    if alive is not None:
        whole = np.zeros(len(slots) << SHIFT, dtype=bool)
        whole[: len(alive)] = alive
        may = torch.from_numpy(whole).to(exact.device)
    nears, founds, vectors = [], [], []
    for first, parts in groups:
        here = [part.cpu().float() for part in parts] if on_host else parts
        start, stop = first << SHIFT, (first << SHIFT) + sum(map(len, here))
        near = torch.empty((len(exact), stop - start), dtype=rough.dtype, device=exact.device)
        at = 0
        for part in here:
            torch.mm(rough, part.T, out=near[:, at : at + len(part)])
            at += len(part)
        if may is not None:
            near.masked_fill_(~may[start:stop], -torch.inf)
        if stop >> SHIFT == len(slots):
            near[:, -SLAB_ROWS:].masked_fill_(torch.arange(SLAB_ROWS, device=exact.device) >= used, -torch.inf)
        near, places = largest(near, k)
        nears.append(near)
        founds.append(places + start if start else places)
        if on_host:
            vectors.append((here[0] if len(here) == 1 else torch.cat(here))[places])
    near, found = (one[0] if len(one) == 1 else torch.cat(one, 1) for one in (nears, founds))
    if on_host:
        again = torch.cat(vectors, 1)
    else:
        if near.shape[1] > k:
            near, order = near.topk(k, sorted=False)
            found = found.gather(1, order)
        again = slots.vectors(found)
    near = torch.where(near == -torch.inf, -torch.inf, torch.einsum("qkd,qd->qk", again.float(), exact))
    near, order = near.topk(k)
    return torch.cat([near, found.gather(1, order).to(torch.int32).view(torch.float32)], 1)


def largest(near: Any, k: int) -> tuple[Any, Any]:
    """Return the k largest of each row, and their places: they are in the k slots with the largest maxima."""
    slots = near.shape[1] >> SHIFT
    if slots <= k:
        found: tuple[Any, Any] = near.topk(min(k, near.shape[1]), sorted=False)
        return found
    by_slot = near.view(len(near), slots, SLAB_ROWS)
    tops = by_slot.amax(2).topk(k, sorted=False).indices
    largest, at = by_slot.gather(1, tops[:, :, None].expand(-1, -1, SLAB_ROWS)).flatten(1).topk(k, sorted=False)
    return largest, (tops.gather(1, at >> SHIFT) << SHIFT) + (at & OFFSET)


def fill(given: Any, queries: Any, used: int) -> None:
    """Fill float32[n, d + 1] with queries, of numpy or a tensor, and how many rows of the last slot are in use."""
    import numpy as np
    import torch

    if isinstance(queries, torch.Tensor):
        given[:, :-1].copy_(queries)
        given[:, -1].fill_(used)
        return
    whole = np.full(given.shape, used, np.float32)  # one copy to the device
    whole[:, :-1] = queries
    given.copy_(torch.from_numpy(whole))


def size_of(queries: int) -> int:
    """Return for how many queries a graph is made that serves so many: at most twice, or half as many again."""
    fewest = 1 << (queries - 1).bit_length()
    between = fewest * 3 // 4
    return between if fewest > _DOUBLED_TO and queries <= between else fewest
