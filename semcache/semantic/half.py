"""Rows in half precision on the host, and the exact search of them, by FAISS's own kernels.

Laws:
- a row takes two bytes a dimension and is never copied as float32 for one query: FAISS converts in its registers;
- similarities are float32 products of the query and the row as it is kept, so every search of it gives the same ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semcache.semantic.arena import SLAB_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy import bool_, float16, float32, int64
    from numpy.typing import NDArray

NO_ROW = -1
"""Stands where a search has found fewer rows than it was asked for."""

_TOGETHER = 32
"""From so many queries on, to convert rows once and multiply matrices takes less than a scan for each."""
_MOST_RUNS = 32
"""Runs of living rows are scanned where they lie; of more of them than this the rows are copied first."""


def untyped_faiss() -> Any:
    """Return FAISS, whose types say less than there is."""
    import faiss

    return faiss


def nearest_first(
    similarities: NDArray[float32], numbers: NDArray[int64], k: int
) -> tuple[NDArray[float32], NDArray[int64]]:
    """Return the k largest of each query's similarities, in order, with their numbers: both [n, at most k]."""
    import numpy as np

    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(numbers, order, axis=1)


class Scanner:
    """Finds the nearest of rows given in parts, float16[n, d], n at most 1,024. Not locked: one thread owns it."""

    def __init__(self, dimension: int) -> None:
        import numpy as np

        faiss = untyped_faiss()
        self._pointer = faiss.swig_ptr
        self._code = faiss.ScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16)
        self._code.thisown = False  # some 200 bytes, for which FAISS's Python has no destructor and says so
        pairs = residuals = False
        self._scanner = self._code.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, pairs, None, residuals)
        self._scanner.thisown = True  # else it is never freed
        self._offsets = np.arange(SLAB_ROWS)
        self._converted = np.empty((SLAB_ROWS, dimension), dtype=np.float32)

    def convert(self, rows: NDArray[float16]) -> NDArray[float32]:
        """Return float32[n, d], which holds until the next call; numpy takes longer for it than FAISS to search."""
        converted = self._converted[: len(rows)]
        self._code.decode_c(self._pointer(_bytes_of(rows)), self._pointer(converted), len(rows))
        return converted

    def nearest(
        self, queries: NDArray[float32], parts: Iterable[tuple[NDArray[float16], NDArray[bool_] | None, int]], k: int
    ) -> tuple[NDArray[float32], NDArray[int64]]:
        """Return similarities and numbers of the k nearest to each of float32[n, d], nearest first: both [n, k].

        A part is rows, which of them may be found (None for all), and the number of the first.
        """
        import numpy as np

        similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)
        numbers = np.full((len(queries), k), NO_ROW, dtype=np.int64)
        for part in parts:
            for rows, ids in self._living(*part):
                if len(queries) < _TOGETHER:
                    self._scan(queries, rows, ids, similarities, numbers)
                else:
                    similarities, numbers = self._multiply(queries, rows, ids, similarities, numbers)
        return nearest_first(similarities, numbers, k)

    def _living(
        self, rows: NDArray[float16], alive: NDArray[bool_] | None, first: int
    ) -> Iterable[tuple[NDArray[float16], NDArray[int64]]]:
        """Yield what may be found of a part, with its numbers."""
        import numpy as np

        if alive is None or alive.all():
            yield rows, self._offsets[: len(rows)] + first
            return
        edges = np.flatnonzero(np.diff(alive, prepend=False, append=False))
        if len(edges) > 2 * _MOST_RUNS:
            places = alive.nonzero()[0]
            yield rows[places], places + first
            return
        for start, stop in edges.reshape(-1, 2).tolist():
            yield rows[start:stop], self._offsets[start:stop] + first

    def _scan(
        self, queries: NDArray[float32], rows: NDArray[float16], ids: NDArray[int64],
        similarities: NDArray[float32], numbers: NDArray[int64],
    ) -> None:  # fmt: skip
        """Put into each query's heap what is nearer than what it holds."""
        pointer, scanner, k = self._pointer, self._scanner, similarities.shape[1]
        codes, ids_at = pointer(_bytes_of(rows)), pointer(ids)
        for query, heap, found in zip(queries, similarities, numbers, strict=True):
            scanner.set_query(pointer(query))
            scanner.scan_codes(len(rows), codes, ids_at, pointer(heap), pointer(found), k)

    def _multiply(
        self, queries: NDArray[float32], rows: NDArray[float16], ids: NDArray[int64],
        similarities: NDArray[float32], numbers: NDArray[int64],
    ) -> tuple[NDArray[float32], NDArray[int64]]:  # fmt: skip
        import faiss
        import numpy as np

        k = similarities.shape[1]
        near, places = faiss.knn(
            queries, self.convert(rows), min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT
        )  # fmt: skip
        near, found = np.hstack([similarities, near]), np.hstack([numbers, ids[places]])
        best = np.argpartition(-near, k - 1, axis=1)[:, :k]
        return np.take_along_axis(near, best, axis=1), np.take_along_axis(found, best, axis=1)


def _bytes_of(rows: NDArray[float16]) -> Any:
    """Return rows as FAISS takes codes."""
    import numpy as np

    return rows.view(np.uint8)
