"""The vectors of texts: of the latest they are remembered, of the others they are made, where the embedder sees all.

Laws:
- nothing that an embedder raises goes further than the text that it is about; a failed batch is retried text by text,
  once, so that one bad text fails alone;
- a device is handed the first texts while the next are looked at, and is waited for only where its vectors are wanted
  on the host.

Only the worker's thread comes here; `slices` alone is for any.
"""

from __future__ import annotations

from collections import OrderedDict
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from semcache.errors import TierError
from semcache.semantic.failing import is_short, losing
from semcache.semantic.passes import ahead
from semcache.semantic.ranges import ranged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from semcache.semantic.embedder import TextEmbedder
    from semcache.semantic.started import Embedding
    from semcache.semantic.work import Vector


class Vectors:
    """The vectors of some texts, or why one has none; those under way on a device are waited for when looked at.

    `made` and `errors` are what is known of them so far; `embed_ns` is what it took, and `embedded` when that ended, a
    reading of `perf_counter_ns`.
    """

    def __init__(self, texts: Texts) -> None:
        self.made: dict[str, Vector] = {}
        self.errors: dict[str, Exception] = {}
        self.embed_ns = self.embedded = 0
        self._texts = texts
        self._under_way: list[tuple[list[str], Embedding]] = []

    def learn(self, found: dict[str, Vector | Exception]) -> None:
        """Take what is known of some texts."""
        for text, vector in found.items():
            if isinstance(vector, Exception):
                self.errors[text] = vector
            else:
                self.made[text] = vector

    def expect(self, texts: list[str], embedding: Embedding) -> None:
        """Take what a device is making."""
        self._under_way.append((texts, embedding))

    def took(self, since: int) -> None:
        """Count the time from a reading of the clock until now."""
        self.embedded = perf_counter_ns()
        self.embed_ns += self.embedded - since

    def __getitem__(self, text: str) -> Vector | Exception:
        self.wait()
        return self.errors[text] if text in self.errors else self.made[text]

    def wait(self) -> bool:
        """Have all on the host; False where what a device made was no vectors, and is replaced."""
        if not self._under_way:
            return True
        began = perf_counter_ns()
        under_way, self._under_way = self._under_way, []
        is_sound = True
        for texts, embedding in under_way:
            try:
                matrix = embedding.host()
            except BaseException as error:  # noqa: BLE001 - as where an embedder is called
                is_sound = False
                self.learn(self._texts.failed(texts, error))
            else:
                self.made |= self._texts.remember(texts, matrix)
        self.took(began)
        return is_sound

    def on_device(self, texts: Sequence[str], device: Any) -> Any:
        """Return the vectors of texts as float32[n, d] on that device; None where none of them is under way there.

        Nobody waits for them, and none of these texts has an error. Raises TierError("lost").
        """
        if device is None or not self._under_way:
            return None
        try:
            with losing():
                return self._gathered(texts, device)
        except RuntimeError as error:
            if not is_short(error):
                raise
            self.tell("memory", error)  # the copy on the host is there for that
            return None

    def tell(self, reason: str, error: BaseException) -> None:
        """Report what went wrong, and was done in another way."""
        self._texts.report(reason, error)

    def _gathered(self, texts: Sequence[str], device: Any) -> Any:
        import numpy as np
        import torch

        parts = []
        places: dict[str, int] = {}
        for some, embedding in self._under_way:
            parts.append(embedding.device_vectors)
            places.update(zip(some, range(len(places), len(places) + len(some)), strict=True))
        if not _is_same(parts[0].device, device):
            return None
        # What is remembered goes there beside them.
        others = [text for text in dict.fromkeys(texts) if text not in places]
        with torch.inference_mode():
            if others:
                places.update(zip(others, range(len(places), len(places) + len(others)), strict=True))
                there = torch.from_numpy(np.array([self.made[text] for text in others]))
                parts.append(there.to(parts[0].device, non_blocking=True))
            vectors = parts[0] if len(parts) == 1 else torch.cat(parts)
            wanted = [places[text] for text in texts]
            if wanted == list(range(len(vectors))):
                return vectors
            return vectors[torch.tensor(wanted).to(vectors.device, non_blocking=True)]


def _is_same(one: Any, other: Any) -> bool:
    """Say whether two devices are one: one without a number is the current one, of which there is one in a process."""
    return one.type == other.type and (None in {one.index, other.index} or one.index == other.index)


class Texts:
    """Turns texts into vectors, and remembers those of the `most` asked for last; `report` is told what failed.

    An embedder is given `at_once` texts at most.
    """

    def __init__(
        self, embedder: TextEmbedder, most: int, report: Callable[[str, BaseException], None], at_once: int = 256
    ) -> None:
        self.counts = {"embedded": 0, "remembered": 0, "uncovered": 0}
        self._embedder = embedder
        self._most = most
        self.report = report
        self._at_once = at_once
        self._remembered: OrderedDict[str, Vector] = OrderedDict()

    def vectors(self, texts: Iterable[str]) -> Vectors:
        """Return the vectors of texts, each distinct one made once."""
        began = perf_counter_ns()
        found = Vectors(self)
        known: dict[str, Vector | Exception] = {}
        rest = []
        for text in dict.fromkeys(texts):
            remembered = self._remembered.get(text)
            if remembered is None:
                rest.append(text)
            else:
                self._remembered.move_to_end(text)
                known[text] = remembered
        self.counts["remembered"] += len(known)
        for places in ahead(rest, getattr(self._embedder, "ahead", 0) or self._at_once):
            some = [rest[place] for place in places]
            self._prepare(some)
            missing = []
            for text in some:
                error = self._uncovered(text)
                if error is None:
                    missing.append(text)
                else:
                    known[text] = error
            if missing:
                self._begin(missing, found)
        found.learn(known)
        found.took(began)
        return found

    def slices(self, texts: Sequence[str], size: int) -> list[list[int]]:
        """Return the places of texts, at most so many in each slice: of several those remembered come first, apart.

        Any thread may ask.
        """
        known, rest = [], list(range(len(texts)))
        if len(rest) > size:
            known = [place for place in rest if texts[place] in self._remembered]
            apart = set(known)
            rest = [place for place in rest if place not in apart]
        return [some[at : at + size] for some in (known, rest) for at in range(0, len(some), size)]

    def as_they_are(self, texts: Iterable[str], known: Vectors) -> dict[str, Vector | Exception]:
        """Return vectors of texts that are `known` to be not covered, but of those that are too long.

        None is remembered: whoever asks for a text that is to be seen whole is told that it is not.
        """
        found: dict[str, Vector | Exception] = {}
        for text in dict.fromkeys(texts):
            error = known.errors.get(text)
            if isinstance(error, TierError) and error.reason == "uncovered" and not self._is_long(text):
                try:
                    found[text] = self._embedder([text])[0].copy()
                except BaseException as broken:  # noqa: BLE001 - an embedder may raise anything
                    self.report("embed", broken)
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
            self.report("memory", troubles.popleft())

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
            self.report("embed", error)

    def _uncovered(self, text: str) -> Exception | None:
        try:
            reason = self._embedder.covers(text)
        except BaseException as error:  # noqa: BLE001 - a callable's own counter may raise anything
            self.report("embed", error)
            return as_exception(error)
        if reason is None:
            return None
        self.counts["uncovered"] += 1
        return TierError("uncovered", reason)

    def _begin(self, texts: list[str], found: Vectors) -> None:
        """Hand texts to the embedder's device, or have their vectors made."""
        start = getattr(self._embedder, "start", None)
        try:
            with ranged("embed"):
                embedding: Embedding | None = None if start is None else start(texts)
                matrix = self._embedder(texts) if embedding is None else ()
        except BaseException as error:  # noqa: BLE001 - an embedder may raise anything, and the thread lives on
            found.learn(self.failed(texts, error))
            return
        if embedding is None:
            found.made |= self.remember(texts, matrix)
        else:
            found.expect(texts, embedding)

    def failed(self, texts: list[str], error: BaseException) -> dict[str, Vector | Exception]:
        """Report that a batch has failed, and embed each text alone, unless the error is the embedder's own."""
        self.report("embed", error)
        if len(texts) == 1 or isinstance(error, TierError):
            return dict.fromkeys(texts, as_exception(error))
        return {text: self._embed_alone(text) for text in texts}

    def remember(self, texts: Iterable[str], matrix: Iterable[Vector]) -> dict[str, Vector]:
        """Return the vectors of texts, which were just made, and keep them among the latest."""
        self.tell_troubles(self._embedder)
        return {text: self._remember(text, vector) for text, vector in zip(texts, matrix, strict=True)}

    def _embed_alone(self, text: str) -> Vector | Exception:
        try:
            return self._remember(text, self._embedder([text])[0])
        except BaseException as error:  # noqa: BLE001 - as above; the batch's failure was reported
            return as_exception(error)

    def _remember(self, text: str, row: Vector) -> Vector:
        """Keep a vector among the latest, as a copy of its own: a view would keep its whole batch."""
        vector = row.copy()
        vector.setflags(write=False)
        self.counts["embedded"] += 1
        self._remembered[text] = vector
        if len(self._remembered) > self._most:
            self._remembered.popitem(last=False)
        return vector


def as_exception(error: BaseException) -> Exception:
    """Return an error that a waiting caller can be given: an embedder's SystemExit must not end the caller."""
    if isinstance(error, Exception):
        return error
    wrapped = TierError("embed", f"the embedder raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
