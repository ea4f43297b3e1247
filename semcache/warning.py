"""Warnings to the developer, told at the line of his own that called us. Law: none fails his call."""

from __future__ import annotations

import inspect
import logging
import warnings

logger = logging.getLogger("semcache")

# The SDKs whose clients can be cached: their code stands between ours and his.
OPENAI, ANTHROPIC = "openai", "anthropic"
_BETWEEN = ("semcache.", f"{OPENAI}.", f"{ANTHROPIC}.")


class SemcacheWarning(UserWarning):
    """Something in the use of the cache costs its owner hits; the message holds the mend."""


def warn(message: str) -> None:
    """Warn of something at the nearest line that is neither ours nor an SDK's; under `-W error`, in the log."""
    try:
        warnings.warn(message, SemcacheWarning, stacklevel=_frames_between())
    except SemcacheWarning:
        logger.warning("%s", message)


def _frames_between() -> int:
    """Return the level of the developer's code, as `warnings.warn` in our caller counts it."""
    count, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_BETWEEN):
        count, frame = count + 1, frame.f_back
    return count
