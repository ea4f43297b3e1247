"""What the errors of a device mean: no memory just now, which may come back, or its end for this process.

Law: who owns what lies on a device says so with TierError("lost"), since all of it then begins anew.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from semcache.errors import TierError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORT = ("OutOfMemoryError", "out of memory", "ALLOC_FAILED")
"""The last is what cuBLAS and cuDNN say where there is no memory for their own."""


def is_short(error: BaseException) -> bool:
    """Say whether an error is a device's that had no memory for what was asked."""
    return isinstance(error, RuntimeError) and any(word in _told(error) for word in _SHORT)


def is_lost(error: BaseException) -> bool:
    """Say whether an error is the device's end for this process: nothing works on it any more."""
    told = _told(error)
    # Memory may come back, and a capture that failed spoils one graph and no more.
    is_over = not is_short(error) and "captur" not in told
    return isinstance(error, RuntimeError) and ("CUDA error" in told or "AcceleratorError" in told) and is_over


def lost(error: RuntimeError) -> Exception:
    """Return what a caller is to raise: that the device of the index is lost, or the error itself."""
    if is_lost(error):
        return TierError("lost", f"the device of the index has failed: {error}")
    return error


@contextmanager
def losing() -> Iterator[None]:
    """Raise what `lost` makes of an error."""
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise lost(error) from error
        raise


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
