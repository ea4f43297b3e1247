"""What the answers of a pipeline may be made of: the documents of those that it was given so far.

Laws: a document counts from the birth of the oldest answer that brought it, so that an invalidation between that
answer's load and the next one's takes the next one too (law 8); positions of different logs are never compared: of an
answer from another cache the document alone is known; what cannot be told whole is told as such, never in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Lock

# So many documents make a pipeline at most: an answer names each of them.
MOST_DOCUMENTS = 1000

# Of one log: where an answer is born that is made of facet values known since a position; None where one is invalid.
Birth = Callable[[int, Mapping[tuple[str, str | bytes], int]], int | None]


class Sources:
    """The documents of one pipeline, collected by any of its threads and tasks."""

    __slots__ = ("_births", "_lock", "_names", "is_whole")

    def __init__(self) -> None:
        self.is_whole = True
        self._lock = Lock()
        self._names: dict[str, None] = {}
        self._births: dict[Birth, dict[str, int]] = {}

    def add(self, log: Birth, documents: Iterable[str], born: int) -> None:
        """Take the documents of an answer that was born at a position of a log."""
        with self._lock:
            births = self._births.setdefault(log, {})
            for document in documents:
                if len(self._names) >= MOST_DOCUMENTS and document not in self._names:
                    self.is_whole = False
                    return
                self._names[document] = None
                births[document] = min(born, births.get(document, born))

    def doubt(self) -> None:
        """Take an answer whose documents nobody can tell: from now on not all are known."""
        self.is_whole = False

    def names(self) -> tuple[str, ...]:
        """Return the documents so far, in the order in which they came."""
        with self._lock:
            return tuple(self._names)

    def births(self, log: Birth) -> dict[str, int]:
        """Return since when each of the documents that came from one log counts."""
        with self._lock:
            return dict(self._births.get(log, ()))
