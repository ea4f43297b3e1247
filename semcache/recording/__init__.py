"""Recording: what callers asked, and what they were given, written down behind them in the traffic format.

The parts that write are `tape` and `file`; they are imported where a cache records.
"""

from semcache.recording.settings import Recording, recording_of, tape_of
from semcache.recording.taken import Call, Taken, Told, UnrecordedError, owner_of, packed, text_of

__all__ = [
    "Call",
    "Recording",
    "Taken",
    "Told",
    "UnrecordedError",
    "owner_of",
    "packed",
    "recording_of",
    "tape_of",
    "text_of",
]
