"""Searches as plans ask for them: one is one step of the worker, and those of many plans together are one as well.

Law: each plan is told what it would be told alone: its own text's error, as many neighbours as it asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from semcache.plan import Wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from semcache.semantic.batcher import Batcher
    from semcache.semantic.work import Found

    Replies = list[Found | Exception]


class Asked(NamedTuple):
    """A search: of a text in a scope, for so many neighbours, with their vectors or without."""

    scope: bytes
    text: str
    k: int
    with_vectors: bool


class Searcher:
    """A batcher as a peer of plans; what is exchanged are lists, of searches and of what each found."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def exchange(self, asked: list[Asked], timeout: float) -> Replies:
        replies: Replies = Wait(self._begin(asked), timeout).run()
        return replies

    async def aexchange(self, asked: list[Asked], timeout: float) -> Replies:
        replies: Replies = await Wait(self._begin(asked), timeout).arun()
        return replies

    @staticmethod
    def join(asked: list[list[Asked]]) -> tuple[list[Asked], Callable[[Replies], list[Replies]]]:
        """Make one search of many."""

        def split(replies: Replies) -> list[Replies]:
            found = iter(replies)
            return [[_cut(next(found), one) for one in some] for some in asked]

        return [one for some in asked for one in some], split

    def _begin(self, asked: list[Asked]) -> Future[Replies]:
        scopes, texts, ks, with_vectors = zip(*asked, strict=True)
        return self._batcher.search_many(scopes, texts, max(ks), with_vectors=any(with_vectors))


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
