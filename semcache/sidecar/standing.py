"""What stands under a key, and whose it is.

Law: an entry is somebody's where a tier says so; what no tier knows is nobody's to look at or to drop, be it there or
not, and be it another's: these look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from semcache.cache import Cache
from semcache.errors import TierError
from semcache.model import Entry, Facets, Hit, Request
from semcache.plan import Plan
from semcache.sidecar.refusals import ABSENT, RefusedError
from semcache.together import together

_PAGE = 100


class Standing(NamedTuple):
    """What one tier has under a key."""

    tier: str
    entry: Entry


def facets_of(cache: Cache, key: bytes) -> Plan[Facets | None]:
    """Return the facets of what stands under a key, from the nearest tier that has it.

    Raises what the last tier that failed has raised, where none has it.
    """
    failure: Exception | None = None
    for tier in (cache.memory, cache.disk, cache.memcached, cache.redis):
        try:
            facets = None if tier is None else (yield from tier.facets_of(key))
        except Exception as error:  # noqa: BLE001 - another may know
            failure = error
            continue
        if facets is not None:
            return facets
    if failure is not None:
        raise TierError("unasked", f"whose entry stands under that key could not be asked: {failure}")
    return None


def own_of(cache: Cache, keys: Sequence[bytes], reaches: Callable[[str], bool]) -> Plan[list[bytes]]:
    """Return those of some keys under which an entry stands that is somebody's, by its tenant."""
    own: list[bytes] = []
    for at in range(0, len(keys), _PAGE):
        page = keys[at : at + _PAGE]
        outcomes = yield from together([facets_of(cache, key) for key in page])
        told = zip(page, (outcome.unwrap() for outcome in outcomes), strict=True)
        own += [key for key, facets in told if facets is not None and reaches(facets.tenant)]
    return own


def found(cache: Cache, key: bytes, reaches: Callable[[str], bool]) -> Plan[Facets]:
    """Return the facets of what stands under a key, if it is somebody's. Raises RefusedError where it is not."""
    facets = yield from facets_of(cache, key)
    if facets is None or not reaches(facets.tenant):
        raise absent()
    return facets


def standing(cache: Cache, key: bytes, facets: Facets) -> Plan[list[Standing]]:
    """Return what each exact tier has under a key; one that fails has nothing to tell."""
    told: list[Standing] = []
    for tier in cache.tiers:
        if tier.exact:
            try:
                hit = yield from tier.get(Request(key, facets=facets))
            except Exception:  # noqa: BLE001, S112 - what stands elsewhere is told all the same
                continue
            if isinstance(hit, Hit):
                told.append(Standing(tier.name, hit.entry))
    return told


def absent() -> RefusedError:
    """Return what is said where nothing of a caller's stands under a key, whatever else there is."""
    return RefusedError(ABSENT, "no entry that this caller reaches stands under that key")
