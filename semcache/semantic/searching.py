"""The searches of a batch, carried out together, and the futures of those who asked.

Laws:
- whatever a search or a callback raises, every future is ended, with what was found or with an error;
- vectors that an index's own device is making are searched for there, and nobody waits for them in between; the copy on
  the host, which is remembered and handed out, is looked at when the search is done, or searched for where the device
  has no memory for that.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from semcache.semantic.failing import is_short
from semcache.semantic.ranges import ranged
from semcache.semantic.texts import as_exception
from semcache.semantic.work import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from semcache.model import Neighbour
    from semcache.semantic.texts import Vectors
    from semcache.semantic.work import Search, VectorIndex


def search_all(
    index: VectorIndex,
    searches: list[Search],
    known: Vectors,
    clock: Callable[[], float],
    *,
    before: Callable[[], None],
) -> None:
    """Search for all of these at once, and end their futures; `before` is called before any hears what was found.

    `known` are the vectors of their texts, or why there is none. Raises what the index raises, once they have heard.
    """
    if not searches:
        return
    scopes = list(chain.from_iterable(search.scopes for search in searches))
    texts = list(chain.from_iterable(search.texts for search in searches))
    most = max(search.k for search in searches)
    try:
        found = _find(index, scopes, texts, most, known, clock)
        _finish(index, searches, found, most)
    except BaseException as error:
        _end_all(searches, [known.errors.get(text) or as_exception(error) for text in texts])
        raise
    before()
    _end_all(searches, [found.get(place) or known.errors[text] for place, text in enumerate(texts)])


def _find(
    index: VectorIndex, scopes: list[bytes], texts: list[str], k: int, known: Vectors, clock: Callable[[], float]
) -> dict[int, Found]:
    """Return what was found for each text that has a vector, by its place."""
    import numpy as np

    asked, queries = _with_vector(texts, known), None
    if asked:
        queries = known.on_device([texts[place] for place in asked], getattr(index, "device", None))
    if queries is None:
        known.wait()
        asked = _with_vector(texts, known)
    if not asked:
        return {}
    if queries is None:
        queries = np.array([known.made[texts[place]] for place in asked])
    embed_ns, embedded, began = known.embed_ns, known.embedded, perf_counter_ns()
    try:
        with ranged("search"):
            neighbours = index.search([scopes[place] for place in asked], queries, k, clock())
        searched, is_sound = perf_counter_ns(), known.wait()
    except ValueError:
        if known.wait():
            raise
        is_sound = False
    except RuntimeError as error:
        if isinstance(queries, np.ndarray) or not is_short(error):
            raise
        known.tell("memory", error)
        known.wait()
        is_sound = False
    if not is_sound:  # what the device made were no vectors, or it had no memory: they are on the host now
        return _find(index, scopes, texts, k, known, clock)
    return {
        place: Found(known.made[texts[place]], near, embed_ns, searched - began, embedded, searched)
        for place, near in zip(asked, neighbours, strict=True)
    }


def _with_vector(texts: list[str], known: Vectors) -> list[int]:
    """Return the places of texts that are not known to have none."""
    return [place for place, text in enumerate(texts) if text not in known.errors]


def _finish(index: VectorIndex, searches: list[Search], found: dict[int, Found], most: int) -> None:
    """Leave each search the neighbours that it asked for, with their vectors where it wants them."""
    wanted: list[Neighbour] = []
    at = 0
    for search in searches:
        if search.k < most or search.with_vectors:
            for one in (found[place] for place in range(at, at + len(search.texts)) if place in found):
                del one.neighbours[search.k :]
                if search.with_vectors:
                    wanted += one.neighbours
        at += len(search.texts)
    if wanted:  # here no row is written meanwhile
        vectors = index.vectors([neighbour.key for neighbour in wanted])
        for neighbour, vector in zip(wanted, vectors, strict=True):
            neighbour.vector = vector


def _end_all(searches: list[Search], outcomes: Sequence[Found | Exception]) -> None:
    at = 0
    for search in searches:
        stop = at + len(search.texts)
        end(search.future, list(outcomes[at:stop]) if search.is_many else outcomes[at])
        at = stop


def end(future: Future[Any], outcome: object) -> None:
    """End a future with a value or an Exception, whatever its callbacks raise."""
    with suppress(BaseException):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
