"""Seeding: an answer that nobody loaded, put where a loaded one would stand.

Laws: it is born at a mark of its own key, so that it takes the place of what stands everywhere, and no invalidation
that has returned is younger; unlike a lookup it raises where it is not kept: whoever curates answers wants to know.
"""

from __future__ import annotations

from typing import Any

from semcache.chain import Chain
from semcache.errors import ConfigurationError, EncodeError, TierError
from semcache.events import Event
from semcache.keep import has_life, name_documents, to_entry
from semcache.model import Entry, Request
from semcache.plan import Plan


def seed(chain: Chain, request: Request, value: Any, born: int, *, is_pinned: bool) -> Plan[None]:
    """Put an answer into every tier that can take it. Raises EncodeError, TierError, ConfigurationError."""
    data = chain.codec.encode(value)
    if len(data) > chain.max_value_bytes:
        raise EncodeError(f"the answer takes {len(data)} bytes, over max_value={chain.max_value_bytes}")
    event = Event("miss")
    entry = to_entry(request, data, born, event)
    name_documents(request, entry, value)
    entry.is_pinned = is_pinned
    if is_pinned:
        entry.slide = entry.grace = 0.0
    elif request.lives.ttl_of is not None and not has_life(request.lives, entry, value, event):
        raise ConfigurationError(f"its ttl= says not to keep the answer ({event.reason or event.faults[0][2]})")
    yield from seat(chain, request, entry)


def seat(chain: Chain, request: Request, entry: Entry) -> Plan[None]:
    """Put an entry into every tier that can take it, the store first. Raises what a tier says against it."""
    takers = [tier for tier, _ in chain.tiers if tier.exact or request.scope is not None]
    if not any(tier.exact for tier in takers):
        raise TierError("none", "no tier keeps answers here: give memory=, disk= or redis=")
    # The store first: where it refuses, nobody is to find the answer in memory either.
    for tier in sorted(takers, key=lambda tier: (not tier.exact, ("memcached", "memory").count(tier.name))):
        yield from tier.put(request, entry, None)
    if chain.shadowing is not None:
        chain.shadowing.take(request, entry, None, counts=False)
