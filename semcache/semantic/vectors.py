"""The one check that every embedder's answer passes, and what makes units of vectors that were kept since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import float32
    from numpy.typing import NDArray

LEAST_SQUARE, LARGEST_SQUARE = 0.98, 1.02
"""Between them the square of a row's length must be: float16 on the way leaves 0.999; NaN is in no range."""


def as_unit(vectors: Any, n: int, identity: str) -> NDArray[float32]:
    """Return n vectors as float32[n, d], contiguous and of unit length.

    Raises ValueError, naming the embedder, for another shape, other numbers than floating ones, NaN, zero vectors.
    """
    import numpy as np

    found = np.asarray(vectors)
    if found.ndim != 2 or found.shape[0] != n or not found.shape[1]:  # noqa: PLR2004 - texts times dimension
        raise ValueError(
            f"the embedder {identity!r} gave shape {found.shape} for {n} texts; it must be ({n}, dimension)"
        )
    if found.dtype.kind != "f":
        raise ValueError(f"the embedder {identity!r} gave {found.dtype}; it must give floating point numbers")
    # In double precision: the square of a large float32 is infinite.
    exact = found.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise ValueError(f"the embedder {identity!r} gave numbers that are not finite (NaN or infinity)")
    if not (lengths > np.finfo(np.float32).tiny).all():
        raise ValueError(f"the embedder {identity!r} gave a vector of length zero, which has no direction")
    return np.ascontiguousarray(exact / lengths, dtype=np.float32)


def to_units(vectors: Sequence[NDArray[Any]]) -> Sequence[NDArray[float32]]:
    """Return vectors as float32 of length one, which float16 on their way has cost them a little; zero stays zero."""
    import numpy as np

    if len({vector.shape for vector in vectors}) > 1:  # each for itself: the index will say which is wrong
        return [unit for vector in vectors for unit in to_units([vector])]
    matrix = np.array(vectors, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=-1, keepdims=True)
    matrix /= np.where(lengths == 0.0, np.float32(1.0), lengths)
    return list(matrix)


class Gathered:
    """Memory for vectors that come one by one and are checked together: fresh pages cost more than the check."""

    def __init__(self, rows: int, dimension: int) -> None:
        import numpy as np

        self._dimension = dimension
        self._memory: NDArray[float32] = np.empty(rows * dimension, np.float32)

    def matrix(self, vectors: Sequence[NDArray[float32]]) -> NDArray[float32] | None:
        """Return vectors as float32[n, d], until it is next asked, where all may be rows of an index, else None."""
        import numpy as np

        together = self._memory[: len(vectors) * self._dimension]
        try:
            if set(map(len, vectors)) != {self._dimension}:
                return None
            np.concatenate(vectors, out=together, casting="unsafe")
        except (TypeError, ValueError):  # one without a length, or with more dimensions than one
            return None
        matrix = together.reshape(len(vectors), self._dimension)
        squares = np.einsum("ij,ij->i", matrix, matrix)
        is_unit = (squares > LEAST_SQUARE) & (squares < LARGEST_SQUARE)
        return matrix if is_unit.all() else None
