"""The searches of a batch, carried out together, and the futures of those who asked.

Law: whatever a search or a callback raises, every future is ended, with what was found or with an error.
"""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from semcache.semantic.ranges import ranged
from semcache.semantic.texts import as_exception
from semcache.semantic.work import Found

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from semcache.semantic.work import Search, Vector, VectorIndex


def search_all(
    index: VectorIndex, searches: list[Search], known: dict[str, Vector | Exception], embedding: tuple[int, int],
    clock: Callable[[], float], *, before: Callable[[], None],
) -> None:  # fmt: skip
    """Search for all of these at once, and end their futures; `before` is called before any hears what was found.

    `known` are the vectors of their texts, or why there is none; `embedding` says what those took, and when that ended.
    Raises what the index raises, once they have heard.
    """
    import numpy as np

    asked: list[Search] = []
    vectors: list[Vector] = []
    for search in searches:
        vector = known[search.text]
        if isinstance(vector, Exception):
            end(search.future, vector)
        else:
            asked.append(search)
            vectors.append(vector)
    if not asked:
        return
    began = perf_counter_ns()
    try:
        most = max(search.k for search in asked)
        with ranged("search"):
            found = index.search([search.scope for search in asked], np.stack(vectors), most, clock())
        for search, neighbours in zip(asked, found, strict=True):
            for neighbour in neighbours[: search.k] if search.with_vectors else ():  # here no row is written meanwhile
                neighbour.vector = index.vector(neighbour.key)
    except BaseException as error:
        for search in asked:
            end(search.future, as_exception(error))
        raise
    searched, (embed_ns, embedded) = perf_counter_ns(), embedding
    before()
    for search, vector, neighbours in zip(asked, vectors, found, strict=True):
        end(search.future, Found(vector, neighbours[: search.k], embed_ns, searched - began, embedded, searched))


def end(future: Future[Any], outcome: object) -> None:
    """End a future with a value or an Exception, whatever its callbacks raise."""
    with suppress(BaseException):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
