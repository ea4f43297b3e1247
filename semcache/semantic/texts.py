"""The vectors of texts: of the latest they are remembered, of the others they are made, where the embedder sees all.

Laws: nothing that an embedder raises goes further than the text that it is about; a failed batch is retried text by
text, once, so that one bad text fails alone. Only the worker's thread comes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcache.errors import TierError
from semcache.semantic.ranges import ranged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from semcache.semantic.embedder import TextEmbedder
    from semcache.semantic.work import Vector


class Texts:
    """Turns texts into vectors, and remembers those of the `most` asked for last; `report` is told what failed."""

    def __init__(self, embedder: TextEmbedder, most: int, report: Callable[[str, BaseException], None]) -> None:
        self.counts = {"embedded": 0, "remembered": 0, "uncovered": 0}
        self._embedder = embedder
        self._most = most
        self._report = report
        self._remembered: dict[str, Vector] = {}

    def vectors(self, texts: Iterable[str]) -> dict[str, Vector | Exception]:
        """Return the vector of each distinct text, or why it has none."""
        known: dict[str, Vector | Exception] = {}
        missing = []
        distinct = dict.fromkeys(texts)
        self._prepare([text for text in distinct if text not in self._remembered])
        for text in distinct:
            remembered = self._remembered.pop(text, None)
            if remembered is not None:
                self._remembered[text] = known[text] = remembered
                self.counts["remembered"] += 1
            elif (error := self._uncovered(text)) is not None:
                known[text] = error
            else:
                missing.append(text)
        return known | self._embed(missing)

    def as_they_are(
        self, texts: Iterable[str], known: dict[str, Vector | Exception]
    ) -> dict[str, Vector | Exception]:  # fmt: skip
        """Return vectors of texts that are `known` to be not covered, but of those that are too long.

        None is remembered: whoever asks for a text that is to be seen whole is told that it is not.
        """
        found: dict[str, Vector | Exception] = {}
        for text in dict.fromkeys(texts):
            error = known[text]
            if isinstance(error, TierError) and error.reason == "uncovered" and not self._is_long(text):
                try:
                    found[text] = self._embedder([text])[0].copy()
                except BaseException as broken:  # noqa: BLE001 - an embedder may raise anything
                    self._report("embed", broken)
                    found[text] = as_exception(broken)
        return found

    def _is_long(self, text: str) -> bool:
        too_long = getattr(self._embedder, "too_long", None)
        return too_long is not None and too_long(text) is not None

    def uncovered(self, text: str) -> Exception | None:
        """Return why the embedder does not see a text whole; None where it does."""
        return None if text in self._remembered else self._uncovered(text)

    def tell_troubles(self, part: object) -> None:
        """Report what a part met and mended itself, as a device that was short of memory."""
        troubles = getattr(part, "troubles", None)
        while troubles:
            self._report("memory", troubles.popleft())

    def forget(self) -> None:
        """Remember nothing."""
        self._remembered.clear()

    def _prepare(self, texts: list[str]) -> None:
        """Let an embedder that can do so count many texts at once."""
        prepare = getattr(self._embedder, "prepare", None)
        if prepare is None or len(texts) < 2:  # noqa: PLR2004 - one is as soon counted by itself
            return
        try:
            prepare(texts)
        except BaseException as error:  # noqa: BLE001 - each text is asked about all the same
            self._report("embed", error)

    def _uncovered(self, text: str) -> Exception | None:
        try:
            reason = self._embedder.covers(text)
        except BaseException as error:  # noqa: BLE001 - a callable's own counter may raise anything
            self._report("embed", error)
            return as_exception(error)
        if reason is None:
            return None
        self.counts["uncovered"] += 1
        return TierError("uncovered", reason)

    def _embed(self, texts: list[str]) -> dict[str, Vector | Exception]:
        """Embed distinct texts; where that fails, each alone."""
        if not texts:
            return {}
        try:
            with ranged("embed"):
                matrix = self._embedder(texts)
            self.tell_troubles(self._embedder)
        except BaseException as error:  # noqa: BLE001 - an embedder may raise anything, and the thread lives on
            self._report("embed", error)
            if len(texts) == 1 or isinstance(error, TierError):  # which is of the embedder, not of a text
                return dict.fromkeys(texts, as_exception(error))
            return {text: self._embed_alone(text) for text in texts}
        return {text: self._remember(text, vector) for text, vector in zip(texts, matrix, strict=True)}

    def _embed_alone(self, text: str) -> Vector | Exception:
        try:
            return self._remember(text, self._embedder([text])[0])
        except BaseException as error:  # noqa: BLE001 - as above; the batch's failure was reported
            return as_exception(error)

    def _remember(self, text: str, row: Vector) -> Vector:
        """Keep a vector among the latest, as a copy of its own: a view would keep its whole batch."""
        vector = row.copy()
        vector.flags.writeable = False
        self.counts["embedded"] += 1
        self._remembered[text] = vector
        if len(self._remembered) > self._most:
            del self._remembered[next(iter(self._remembered))]
        return vector


def as_exception(error: BaseException) -> Exception:
    """Return an error that a waiting caller can be given: an embedder's SystemExit must not end the caller."""
    if isinstance(error, Exception):
        return error
    wrapped = TierError("embed", f"the embedder raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
