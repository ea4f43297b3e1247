"""How vectors stand in a store: float16, little-endian; many are read at once, which costs less than their rows do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def to_float16(vector: Any) -> bytes | None:
    """Return the bytes of a vector, None of none."""
    if vector is None:
        return None
    import numpy as np

    return np.asarray(vector, dtype="<f2").tobytes()


def from_float16(stored: Sequence[bytes | None]) -> Sequence[NDArray[np.float32] | None]:
    """Return vectors as they are used, float32[d], of their bytes, and None where there are none.

    Raises TypeError or ValueError for what can be no vector's bytes.
    """
    lengths = {None if vector is None else len(vector) for vector in stored}
    if lengths <= {None}:  # a process that follows for its memory's sake alone needs no numpy
        return [None] * len(stored)
    import numpy as np

    if len(lengths) == 1:
        matrix = np.frombuffer(b"".join(stored), dtype="<f2").astype(np.float32)  # type: ignore[arg-type]
        return list(matrix.reshape(len(stored), -1)) if matrix.size else [matrix] * len(stored)
    return [None if vector is None else np.frombuffer(vector, dtype="<f2").astype(np.float32) for vector in stored]
