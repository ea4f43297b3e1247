"""Searches as plans ask for them: those of many plans together are one call, in slices of one step of the worker each.

Laws:
- each plan is told what it would be told alone: its own text's error, as many neighbours as it asked for;
- who is told in time is told, whatever becomes of the others of its call; one call is one failure at most.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from semcache.plan import Wait, arun, run
from semcache.tier import AlsoFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from semcache.plan import Plan
    from semcache.semantic.batcher import Batcher
    from semcache.semantic.work import Found

    Replies = list[Found | Exception]


class Asked(NamedTuple):
    """A search: of a text in a scope, for so many neighbours, with their vectors or without."""

    scope: bytes
    text: str
    k: int
    with_vectors: bool


class Many:
    """The searches of one call, under way: of each slice the places of its texts, and the future of what is found."""

    def __init__(self, slices: list[tuple[list[int], Future[Replies]]]) -> None:
        self._slices = slices

    def told(self, timeout: float) -> Plan[Replies]:
        """Return what is found of each text within `timeout` seconds, or its error: of a late one TimeoutError."""
        deadline = monotonic() + timeout
        replies: dict[int, Found | Exception] = {}
        for places, future in self._slices:
            try:
                some = yield Wait(future, max(0.0, deadline - monotonic()))
            except Exception as error:  # noqa: BLE001 - it is its slice's, and each plan decides what it means
                some = [error] * len(places)
            replies.update(zip(places, some, strict=True))
        return [replies[place] for place in range(len(replies))]

    def result(self, timeout: float) -> Replies:
        """Carry out `told` in this thread."""
        return run(self.told(timeout))


class Searcher:
    """A batcher as a peer of plans; what is exchanged are lists, of searches and of what each found."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def exchange(self, asked: list[Asked], timeout: float) -> Replies:
        return _one_failure(self._begin(asked).result(timeout))

    async def aexchange(self, asked: list[Asked], timeout: float) -> Replies:
        return _one_failure(await arun(self._begin(asked).told(timeout)))

    @staticmethod
    def join(asked: list[list[Asked]]) -> tuple[list[Asked], Callable[[Replies], list[Replies]]]:
        """Make one search of many."""

        def split(replies: Replies) -> list[Replies]:
            found = iter(replies)
            return [[_cut(next(found), one) for one in some] for some in asked]

        return [one for some in asked for one in some], split

    def _begin(self, asked: list[Asked]) -> Many:
        scopes, texts, ks, with_vectors = zip(*asked, strict=True)
        return self._batcher.search_many(scopes, texts, max(ks), with_vectors=any(with_vectors))


def _one_failure(replies: Replies) -> Replies:
    """Mark all failures but the first; that a text is not seen whole is none."""
    failed = [
        place
        for place, found in enumerate(replies)
        if isinstance(found, Exception) and getattr(found, "reason", None) != "uncovered"
    ]
    for place in failed[1:]:
        replies[place] = AlsoFailed(replies[place])  # type: ignore[arg-type]
    return replies


def _cut(found: Found | Exception, asked: Asked) -> Found | Exception:
    if not isinstance(found, Exception):
        del found.neighbours[asked.k :]
    return found


def found_of(replies: Replies) -> Found:
    """Return what the one search of an exchange has found, or raise its error."""
    (found,) = replies
    if isinstance(found, Exception):
        raise found
    return found
