"""Where a cache records what it is asked, how much of it, and what is taken out first."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semcache.errors import ConfigurationError
from semcache.ttl import Size, size_bytes

if TYPE_CHECKING:
    from semcache.events import Recorder
    from semcache.recording.tape import Tape


@dataclass(frozen=True, slots=True)
class Recording:
    """Where and how a cache records, as in `Cache(record=Recording("traffic.jsonl", sample=0.1))`.

    At `max_size` the file is renamed `traffic.jsonl.1`, and so many as `keep` of such are kept, the newest with the
    smallest number. `redact=True` replaces API keys, e-mail addresses, card numbers, account and telephone numbers by
    marks; a callable is given each text, and returns what is to stand in its place; False leaves all as it is. `sample`
    is the share of requests that are recorded: of one request all calls or none. Without `responses` no answer is
    written. Raises ConfigurationError.
    """

    path: str | os.PathLike[str]
    max_size: Size = "100MB"
    keep: int = 5
    redact: bool | Callable[[str], str] = True
    sample: float = 1.0
    responses: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise ConfigurationError(f'path is a file\'s, as in record="traffic.jsonl"; got {self.path!r}')
        if not size_bytes(self.max_size, "max_size"):
            raise ConfigurationError("max_size is over 0: a file of no size holds nothing")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 0:
            raise ConfigurationError(f"keep is how many full files are kept, 0 or more; got {self.keep!r}")
        if not isinstance(self.redact, bool) and not callable(self.redact):
            raise ConfigurationError(f"redact is True, False or a callable from text to text; got {self.redact!r}")
        if isinstance(self.sample, bool) or not isinstance(self.sample, int | float) or not 0 < self.sample <= 1:
            raise ConfigurationError(f"sample is a share over 0 and up to 1, as in 0.1; got {self.sample!r}")
        if not isinstance(self.responses, bool):
            raise ConfigurationError(f"responses is True or False; got {self.responses!r}")


def recording_of(told: object) -> Recording:
    """Return what `record=` says. Raises ConfigurationError, also where no file can be written there."""
    made = told if isinstance(told, Recording) else Recording(told)  # type: ignore[arg-type]
    path = Path(made.path)
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigurationError(f"record={os.fspath(path)!r}: there is no folder to write that file in; make it first")
    return made


def tape_of(settings: Recording, time: Callable[[], float], recorder: Recorder) -> Tape:
    """Begin to record; what is lost on the way is the recorder's to count."""
    from semcache.recording.tape import Tape

    return Tape(settings, time, lambda reason, error: recorder.fault("recording", reason, error), recorder.warn_once)
