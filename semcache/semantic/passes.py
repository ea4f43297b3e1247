"""The model's forward pass on a device, in shapes that are few: as CUDA graphs, since launching costs more than work.

Laws:
- the model's own modules do the work; what they are given is what its own `preprocess` gives, and what they make of it
  the same: both are compared once (`prove`), and where they differ the model is to be asked as it asks itself;
- where no graph can be captured the same shapes run plainly (`why` tells why);
- texts are sorted by length and share passes only where padding costs nothing or little: less than a tenth of what
  large batches compute;
- ids go to the device in one copy from pinned memory for each pass; vectors stay there for who searches there, and come
  back in one copy for each call, which nobody waits for who does not look at it.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from functools import lru_cache
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any

from semcache.semantic.graphs import Graph, capture
from semcache.semantic.started import Started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy import float32
    from numpy.typing import NDArray

_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Few for a pass that pads for free; of large ones the steps are an eighth of the length, and at most a token of 16.
_FEW_LENGTHS = (16, 32, 64, 128, 256, 512)
_LENGTHS = (*range(1, 16), *range(16, 32, 2), *range(32, 64, 4), *range(64, 128, 8), *range(128, 256, 16),
            *range(256, 513, 32))  # fmt: skip
_FREE_TOKENS = 2048
"""As many tokens as a GPU takes no longer for than for one: what is launched takes longer than what is computed. So
padding is free in a batch that fits in them, and said of larger ones alone: the tokens that their passes compute beyond
the texts' own, as a share of these."""
_PASS_TOKENS = 100
"""What a pass is taken to cost beside its tokens, in tokens: so few that large batches pad by less than a tenth. What
was measured is more, as of 1,500 tokens; fewer passes that pad more would take about as long."""
_MOST_TOKENS = 16384
_LEAST_TOKENS = 512
_MOST_GRAPHS = 256
_WARM = ((1, 16), (1, 32), (1, 64), (2, 16), (4, 16), (8, 16), (16, 16), (32, 16))
SAMPLES = ("a", "How do I reset my password?", "word " * 600)
"""Texts that passes are proved with: a short one, a usual one, one that is cut."""
_SAME = 0.999


class Passes:
    """Makes unit vectors of token ids, float32[n, d] on the host, by a SentenceTransformer on its device.

    `ids` are cut at the model's window here. `use_graphs` is for CUDA alone. Any thread may call it; one works.
    """

    def __init__(self, model: Any, *, window: int | None, pad: int, tail: int, use_graphs: bool) -> None:
        self.device = model.device
        self.pool: Any = None
        self.most_tokens = _MOST_TOKENS
        self.why = "" if use_graphs else "the device has no CUDA graphs"
        self._model = model
        self._window = window or sys.maxsize
        self._pad = pad
        self._tail = tail
        self._use_graphs = use_graphs
        self._types = False
        self._extra: dict[str, Any] = {}
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._lock = Lock()

    @property
    def graphs(self) -> int:
        """How many shapes have a graph."""
        return len(self._graphs)

    def prove(self, ids: Sequence[list[int]], texts: Sequence[str], prompt: str) -> str:
        """Compare what the model would be given, and what it makes of it; say what differs, "" for nothing."""
        import torch

        own = self._model.preprocess(list(texts), prompt=prompt or None)
        tensors = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
        self._extra = {name: value for name, value in own.items() if name not in tensors}
        others = tensors.keys() - {"input_ids", "attention_mask", "token_type_ids"}
        if others or not {"input_ids", "attention_mask"} <= tensors.keys():
            return f"the model wants {', '.join(sorted(tensors))}"
        self._types = "token_type_ids" in tensors
        if self._types and tensors["token_type_ids"].any():
            return "the model wants types of tokens"
        cut = [self._cut(one) for one in ids]
        for one, row, mask in zip(cut, tensors["input_ids"].tolist(), tensors["attention_mask"].tolist(), strict=True):
            if row[: len(one)] != one or sum(mask) != len(one) or not all(mask[: len(one)]):
                return "the tokenizer pads or cuts in another way"
        with torch.inference_mode():
            moved = {name: value.to(self.device) for name, value in tensors.items()}
            vectors = self._model({**moved, **self._extra})["sentence_embedding"][:, : self._model.truncate_dim]
            there = torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()
        here = self(ids)
        nearest = float((here * there).sum(axis=1).min())
        return "" if nearest > _SAME else f"vectors differ: a similarity of {nearest:.4f}"

    def warm(self) -> None:
        """Capture the shapes of single requests, so that the first do not wait for it."""
        for rows, length in _WARM:
            if self._use_graphs and length <= self._window:
                self._graph(rows, length)

    def __call__(self, ids: Sequence[list[int]]) -> NDArray[float32]:
        """Return the vectors, in order; errors as `start`."""
        return self.start(ids).host()

    def start(self, ids: Sequence[list[int]]) -> Started:
        """Hand texts to the device and do not wait.

        Raises torch.cuda.OutOfMemoryError, or RuntimeError where the device is lost.
        """
        import torch

        cut = [self._cut(one) for one in ids]
        order: list[int] = []
        with self._lock, torch.inference_mode():
            parts = []
            for places, rows, length in shapes([len(one) for one in cut], self.most_tokens):
                packed = self._packed([cut[place] for place in places], rows, length)
                made = self._pass(packed, rows, length)[: len(places)]
                parts.append(made.clone())  # the next pass writes where this one did
                order += places
            return Started(torch.cat(parts), order)

    def shrink(self) -> bool:
        """Free what can be, and take smaller passes from now on; False where they are as small as is any use."""
        import torch

        with self._lock:
            self._graphs.clear()
            self.pool = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.most_tokens <= _LEAST_TOKENS:
                return False
            self.most_tokens //= 2
            return True

    def run(self, packed: Any) -> Any:
        """Return vectors, float32[rows, d], of int32[rows, 1 + length]: each row's number of tokens, and its ids."""
        import torch

        lengths, ids = packed[:, :1], packed[:, 1:].long()
        mask = (torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32) < lengths).long()
        features = {**self._extra, "input_ids": ids, "attention_mask": mask}
        if self._types:
            features["token_type_ids"] = torch.zeros_like(ids)
        vectors = self._model(features)["sentence_embedding"][:, : self._model.truncate_dim]
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    def _cut(self, ids: list[int]) -> list[int]:
        """Cut at the window, as tokenizers do: the special tokens at the end stay."""
        if len(ids) <= self._window:
            return ids
        return ids[: self._window - self._tail] + ids[len(ids) - self._tail :]

    def _packed(self, some: list[list[int]], rows: int, length: int) -> Any:
        import numpy as np
        import torch

        packed = np.full((rows, length + 1), self._pad, np.int32)
        lengths = np.fromiter(map(len, some), np.int32, len(some))
        packed[:, 0] = 1  # a row of padding sees one token, as a row of none would be NaN
        packed[: len(some), 0] = lengths
        is_token = np.arange(length, dtype=np.int32) < lengths[:, None]
        packed[: len(some), 1:][is_token] = np.fromiter(chain.from_iterable(some), np.int32, int(lengths.sum()))
        host = torch.from_numpy(packed)
        return host.pin_memory() if self.device.type == "cuda" else host

    def _pass(self, packed: Any, rows: int, length: int) -> Any:
        graph = self._graph(rows, length) if self._use_graphs and length <= _LENGTHS[-1] else None
        if graph is None:
            return self.run(packed.to(self.device, non_blocking=True))
        graph.given.copy_(packed, non_blocking=True)
        return graph.replay()

    def _graph(self, rows: int, length: int) -> Graph | None:
        """Return the graph of a shape, captured now if need be; None where there is to be none."""
        import torch

        graph = self._graphs.get((rows, length))
        if graph is None and len(self._graphs) < _MOST_GRAPHS:
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            with torch.cuda.device(self.device), torch.inference_mode():
                shape = rows, length + 1
                made = capture(
                    self.run, lambda: torch.ones(shape, dtype=torch.int32, device=self.device), self.pool
                )  # fmt: skip
            if isinstance(made, str):
                self._use_graphs, self.why = False, f"no CUDA graph can be made of it: {made}"
            else:
                graph = self._graphs[rows, length] = made
        return graph


def ahead(texts: Sequence[str], most: int) -> list[list[int]]:
    """Return the places of texts, at most so many at once, as they go to a device while others are split into tokens.

    Those of like length go together, so that they pad little.
    """
    if len(texts) <= most:
        return [list(range(len(texts)))] if texts else []
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
    return [order[at : at + most] for at in range(0, len(order), most)]


def shapes(lengths: list[int], most_tokens: int = _MOST_TOKENS) -> Iterator[tuple[list[int], int, int]]:
    """Yield which texts share a pass, and its shape: (places, rows, length), rows and length each of a short list.

    The longest come first. What pads for free is one pass; of more texts the passes compute as few tokens as they can,
    each pass counted as some.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if not order:
        return
    coarse = _fit(_FEW_LENGTHS, lengths[order[0]])
    if len(order) * coarse <= min(_FREE_TOKENS, most_tokens):
        yield order, _fit(_ROWS, len(order)), coarse
        return
    # The cheapest way to have the first texts in passes, by their number: its cost, and its last pass: first text,
    # rows, length.
    best = {0: (0, 0, 0, 0)}
    for at, place in enumerate(order):
        if at not in best:
            continue
        length = _fit(_LENGTHS, lengths[place])
        for rows in _rows_of(length, most_tokens):
            stop = min(at + rows, len(order))
            cost = best[at][0] + rows * length + _PASS_TOKENS
            if stop not in best or cost < best[stop][0]:
                best[stop] = cost, at, rows, length
            if stop == len(order):
                break
    found, stop = [], len(order)
    while stop:
        _, at, rows, length = best[stop]
        found.append((order[at:stop], rows, length))
        stop = at
    yield from reversed(found)


@lru_cache
def _rows_of(length: int, most_tokens: int) -> list[int]:
    """Return how many texts of a length a pass may have: no smaller passes than are of any use."""
    fitting = [rows for rows in _ROWS if rows * length <= most_tokens] or [1]
    return [rows for rows in fitting if rows * length >= _LEAST_TOKENS] or fitting[-1:]


def _fit(steps: Sequence[int], least: int) -> int:
    """Return the first step that is enough; past the last one, the number itself."""
    place = bisect_left(steps, least)
    return steps[place] if place < len(steps) else least
