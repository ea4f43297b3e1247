"""A graph of many rows in half precision, by FAISS's HNSW: it answers in a fraction of what a scan takes.

Laws:
- it is never changed once it is made: `grown` makes another, so whoever searches need not wait for whoever builds;
- the rows are kept once, as FAISS's codes; `rows` shows them where they lie.

Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
Small World graphs", 2016.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semcache.semantic.half import untyped_faiss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy import float16, float32, int64, uint8
    from numpy.typing import NDArray

_LINKS = 24
_CONSTRUCTION = 64
_AT_ONCE = 512
"""Rows added between two looks at whether to stop: a tenth of a second."""

LINK_BYTES = 4 * 2 * _LINKS + 20
"""What a row's links take: 48 on the lowest level, its share of those above, its level and place."""


class Graph:
    """Rows float16[n, d], numbered from 0, and the links between them."""

    def __init__(self, index: Any) -> None:
        import numpy as np

        faiss = untyped_faiss()
        self._index = index
        codes = faiss.downcast_index(index.storage).codes
        flat: NDArray[uint8] = faiss.rev_swig_ptr(codes.data(), len(self) * 2 * index.d)
        self.rows: NDArray[float16] = flat.view(np.float16).reshape(-1, index.d)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: NDArray[float32], k: int, effort: int, alive: NDArray[uint8] | None = None
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return similarities and numbers of about the k nearest, both [n, k], nearest first; -1 where there are fewer.

        `effort` is how many candidates are kept meanwhile; of `alive` a row's bit says whether it may be found.
        """
        faiss = untyped_faiss()
        selector = {} if alive is None else {"sel": faiss.IDSelectorBitmap(alive)}
        params = faiss.SearchParametersHNSW(efSearch=max(effort, k), **selector)
        found: tuple[NDArray[float32], NDArray[int64]] = self._index.search(queries, k, params=params)
        return found

    def free(self) -> None:
        """Give the memory back; the graph is not used any more.

        Python's destructor holds the interpreter's lock while the system takes a quarter of a gigabyte back, for some
        70 ms; FAISS's own calls do not hold it, and to reorder no rows swaps what there is for nothing.
        """
        import numpy as np

        nothing = np.empty(0, np.int64)
        faiss = untyped_faiss()
        del self.rows
        self._index.reset()
        faiss.downcast_index(self._index.storage).permute_entries(nothing)
        self._index.hnsw.permute_entries(faiss.swig_ptr(nothing))


def grown(
    graph: Graph | None, parts: Iterable[NDArray[float32]], rows: int, dimension: int, stopped: Callable[[], bool]
) -> Graph | None:
    """Return a graph of another's rows and, behind them, those of some parts, float32[n, d], `rows` in all.

    None once `stopped`.
    """
    import numpy as np

    faiss = untyped_faiss()
    index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_fp16, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _CONSTRUCTION
    index.is_trained = True  # half precision has nothing to learn
    storage = faiss.downcast_index(index.storage)
    before = 0 if graph is None else len(graph)
    # Room for all at once, not FAISS's own clone: as its codes grew, they would be copied again, to twice their size.
    storage.codes.resize((before + rows) * storage.code_size)
    if graph is not None:
        faiss.memcpy(storage.codes.data(), faiss.swig_ptr(graph.rows.view(np.uint8)), graph.rows.nbytes)
        _copy_links(graph._index.hnsw, index.hnsw)  # noqa: SLF001 - its own
        index.ntotal = storage.ntotal = before
    storage.codes.resize(before * storage.code_size)
    for part in parts:
        for start in range(0, len(part), _AT_ONCE):
            if stopped():
                return None
            index.add(part[start : start + _AT_ONCE])
    return Graph(index)


def _copy_links(source: Any, target: Any) -> None:
    """Let a graph have another's links; not by assigning them, for which Python's lock would be held 90 ms."""
    faiss = untyped_faiss()
    for name, size in (("levels", 4), ("offsets", 8), ("neighbors", 4)):
        from_, to = getattr(source, name), getattr(target, name)
        to.resize(from_.size())
        faiss.memcpy(to.data(), from_.data(), from_.size() * size)
    target.entry_point, target.max_level, target.rng = source.entry_point, source.max_level, source.rng
