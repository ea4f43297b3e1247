"""Ranges for NVIDIA's profilers (NVTX) around what keeps a GPU busy: `semcache.tokenize`, `.embed`, `.search`.

Law: torch is not imported for them, and where no CUDA is in use they are nothing.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

_NOTHING: AbstractContextManager[None] = nullcontext()


def ranged(name: str) -> AbstractContextManager[None]:
    """Return a context that is a range of this name on the timeline of a profiler that watches the GPU."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return _NOTHING
    marked: AbstractContextManager[None] = cuda.nvtx.range(f"semcache.{name}")
    return marked
