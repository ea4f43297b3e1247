"""What an answer is made of: its own documents, and those that its pipeline was given before it (law 8).

A *retrieval* is an answer whose documents are told of itself (`Request.documents_of`): it gives them to its pipeline
and inherits none. Every other answer inherits all that the pipeline has when it is kept, and hands them on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from semcache.chain import Chain
from semcache.context import current
from semcache.events import Event
from semcache.model import Entry, Facets, Request
from semcache.sources import MOST_DOCUMENTS

UNKNOWN = "not kept: not all documents of its pipeline are known"
INVALIDATED = "not kept: what it is made of was invalidated"


def documents_told(request: Request, value: object) -> tuple[str, ...]:
    """Ask which documents an answer holds. Raises TypeError, and what the user's callable raises."""
    if request.documents_of is None:
        return ()
    told: Any = request.documents_of(value)
    names = [told] if isinstance(told, str) else list(told)
    if not all(isinstance(name, str | int) and name != "" for name in names):
        raise TypeError(f"documents= returns the names of an answer's documents; got {told!r}")
    return tuple(map(str, names))


def inherit(chain: Chain, request: Request, entry: Entry, event: Event) -> bool:
    """Give an entry that is to be kept the documents of its pipeline; False, with the reason, where it must not be."""
    sources = request.sources
    if sources is None or request.documents_of is not None:
        return True
    if not sources.is_whole:
        event.reason = UNKNOWN
        chain.recorder.warn_once(
            "pipeline: documents",
            "answers of a pipeline are not kept, since nobody can say what they are made of: it has over "
            f"{MOST_DOCUMENTS} documents (open one for each question), or documents= of a retrieval in it failed",
        )
        return False
    births = sources.births(chain.birth)
    if births:
        pairs: dict[tuple[str, str | bytes], int] = {("document", name): born for name, born in births.items()}
        pairs["namespace", request.facets.namespace] = min(births.values())
        born = chain.birth(entry.born, pairs)
        if born is None:
            event.reason = INVALIDATED
            return False
        entry.born = born
    names = sources.names()
    if names:
        facets = entry.facets or request.facets
        entry.facets = replace(facets, documents=tuple(dict.fromkeys((*facets.documents, *names))))
    return True


def tell_found(chain: Chain, request: Request, facets: Facets | None, born: int) -> None:
    """Tell the pipeline of an answer that stood in a tier; one without documents may have no facets here."""
    if request.sources is not None and facets is not None and facets.documents:
        request.sources.add(chain.birth, facets.documents, born)


def tell_context(chain: Chain) -> None:
    """Tell the pipeline of the documents that the context names, before a load that goes by the cache."""
    told = current.get()
    if told is not None and told.sources is not None and told.documents:
        told.sources.add(chain.birth, told.documents, chain.position())


def made_of(chain: Chain, request: Request, entry: Entry | None, born: int) -> tuple[tuple[str, ...] | None, int]:
    """Return what a loaded answer is made of, kept or not, beside what it tells itself, and since when that counts.

    None where nobody knows all of it.
    """
    if entry is not None and entry.facets is not None:
        return entry.facets.documents, entry.born
    sources = request.sources if request.documents_of is None else None
    if sources is None:
        return request.facets.documents, born
    if not sources.is_whole:
        return None, born
    return (*request.facets.documents, *sources.names()), min([born, *sources.births(chain.birth).values()])


def tell_loaded(
    chain: Chain, request: Request, value: object, documents: tuple[str, ...] | None, born: int, *,
    is_told: bool = False,
) -> None:  # fmt: skip
    """Tell the pipeline of an answer that was loaded; `is_told` says that `documents` are its own too."""
    sources = request.sources
    if sources is None:
        return
    own: tuple[str, ...] = ()
    try:
        own = () if is_told else documents_told(request, value)
    except Exception:  # noqa: BLE001 - the user's own callable; what nobody can tell is not known
        documents = None
    if documents is None:
        sources.doubt()
    elif documents or own:
        sources.add(chain.birth, (*documents, *own), born)
