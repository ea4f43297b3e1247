"""Ranges for NVIDIA's profilers (NVTX) around what keeps a GPU busy: `semcache.tokenize`, `.embed`, `.search`.

Law: torch is not imported for them, and where no CUDA is in use, or torch has no NVTX (as for AMD's GPUs), they are
nothing.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

_NOTHING: AbstractContextManager[None] = nullcontext()


def ranged(name: str) -> AbstractContextManager[None]:
    """Return a context that is a range of this name on the timeline of a profiler that watches the GPU."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized() or not _has_nvtx(cuda):
        return _NOTHING
    marked: AbstractContextManager[None] = cuda.nvtx.range(f"semcache.{name}")
    return marked


@cache
def _has_nvtx(cuda: Any) -> bool:
    try:
        cuda.nvtx.mark("semcache")
    except (AttributeError, RuntimeError):
        return False
    return True
