"""The one check that every embedder's answer passes, and what makes units of vectors that were kept since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import float32
    from numpy.typing import NDArray


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
