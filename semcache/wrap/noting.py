"""The events of calls that need no lookup: memory had the answer at once, or they go by the cache."""

from __future__ import annotations

from semcache.cache import Cache
from semcache.context import current
from semcache.events import Event
from semcache.tiers.memory import Kept
from semcache.trace import followed


def memory_event(
    cache: Cache, name: str, key: bytes, kept: Kept, key_ns: int, memory_ns: int, stage: str
) -> Event:  # fmt: skip
    """Make the event of a hit in memory, which took so long for its key and for the rest."""
    now = cache.now()
    return Event(
        "hit", name, cache.namespace, "memory", key, age=now - kept.since, life=kept.expires - now,
        load_seconds=kept.load_seconds, stages={"key": key_ns, "memory": memory_ns}, stage=stage,
        model=kept.facets.model, tenant=kept.facets.tenant if cache.chain.names_tenants else "", usage=kept.usage,
    )  # fmt: skip


def bypass_event(cache: Cache, name: str, stage: str, reason: str) -> Event:
    """Begin the event of a function's call, booked on the stage that the context says, else on this one."""
    told = current.get()
    event = Event("bypass", name, cache.namespace, reason=reason, stage=(told and told.stage) or stage)
    event.watch = followed(cache.recorder.observers, event)
    return event
