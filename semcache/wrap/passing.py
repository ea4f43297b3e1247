"""A call that goes by the cache: how its event begins."""

from __future__ import annotations

from semcache.cache import Cache
from semcache.context import current
from semcache.events import Event


def bypass_event(cache: Cache, name: str, stage: str, reason: str) -> Event:
    """Begin the event of a function's call, booked on the stage that the context says, else on this one."""
    told = current.get()
    return Event("bypass", name, cache.namespace, reason=reason, stage=(told and told.stage) or stage)
