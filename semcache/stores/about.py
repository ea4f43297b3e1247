"""What some entries in a store's file say of themselves, packed, so that reading the others costs no more for it."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from msgpack import packb, unpackb

from semcache.errors import TierError
from semcache.model import Entry, Facets, Usage


class About(NamedTuple):
    """How an entry is kept beside its expiry, what its load used, and its facets where it has tags or documents.

    `goes` is when it must go, in the store's clock. All but `is_pinned` and the end of its grace is for readers alone,
    so that SQL need not see it.
    """

    is_pinned: bool = False
    grace: float = 0.0
    slide: float = 0.0
    goes: float = inf
    usage: tuple[Any, ...] | None = None
    facets: tuple[str, str, str, str, tuple[str, ...], tuple[str, ...]] | None = None

    def fill(self, entry: Entry, namespace: str, now: float) -> None:
        """Tell an entry what stands here."""
        entry.is_pinned, entry.grace, entry.slide, entry.limit = self.is_pinned, self.grace, self.slide, self.goes - now
        if self.usage is not None:
            entry.usage = Usage(*self.usage)
        if self.facets is not None:
            entry.facets = Facets(namespace, *self.facets)


PLAIN = About()


def of(entry: Entry, facets: Facets, now: float) -> About:
    """Return what is to be said of an entry with these facets that is put now; a pinned one has no end of any kind."""
    usage, told = entry.usage, None
    if facets.tags or facets.documents:
        told = facets.function, facets.version, facets.tenant, facets.model, facets.tags, facets.documents
    used = None if usage is None else usage.packed()
    if entry.is_pinned:
        return About(is_pinned=True, usage=used, facets=told)
    return About(False, entry.grace, entry.slide, now + entry.limit, used, told)  # noqa: FBT003 - in its own order


def pack(about: About) -> bytes:
    """Return it as it stands in the file."""
    packed: bytes = packb(about)
    return packed


def unpack(packed: bytes) -> About:
    """Return what stands in the file; raises TierError("damaged")."""
    try:
        return About(*unpackb(packed, use_list=False))
    except Exception as error:  # damaged bytes may break any constructor below us
        raise TierError("damaged", f"what an entry says of itself is not what was written: {error}") from error
