"""What becomes of a loaded answer: how it is stored, whether and for how long, and in which tiers.

Laws: nothing here can fail the caller, who has the answer already: what goes wrong is a fault in the event (law 10);
an entry's life is told once, here, and no tier that it moves to makes it longer (law 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from semcache.chain import Chain
from semcache.errors import TierError
from semcache.events import Event
from semcache.inherit import documents_told, inherit
from semcache.model import Entry, Evidence, Lives, Request, Usage, as_usage
from semcache.plan import Plan
from semcache.ttl import seconds

LONGEST_LOAD_SECONDS = 3600.0
# Why a tier that is well does not take an entry: it has nothing to do with the next one.
_NOT_TAKEN = ("unmarked", "unpinned")


class Unkept:
    """A predicate's no, and why: what `keeps` returns in place of False where there is something to tell."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __bool__(self) -> bool:
        return False


def usage_of(told: Callable[[Any], Usage | None] | None, value: object, event: Event) -> Usage | None:
    """Ask what loading an answer has cost; None, and where that failed a fault in the event, if it is not known."""
    try:
        return None if told is None else as_usage(told(value))
    except Exception as error:  # noqa: BLE001 - the user's own callable
        event.fault("usage", error)
        return None


def encode(chain: Chain, request: Request, value: object, born: int, event: Event) -> Entry | None:
    """Encode a loaded answer; None, with a fault in the event, where it would not come back as it is."""
    try:
        data = chain.codec.encode(value)
    except Exception as error:  # noqa: BLE001 - an object may break in any way when it is looked into
        event.fault("codec", error)
        chain.recorder.warn_once(
            f"{event.function}: codec", f"an answer of {event.function or 'a load'} is not stored: {error}"
        )
        return None
    return to_entry(request, data, born, event)


def to_entry(request: Request, data: bytes, born: int, event: Event) -> Entry:
    """Make an entry of encoded bytes; the request's own ttl is its life."""
    lives = request.lives
    entry = Entry(
        data, born=born, load_seconds=event.load_seconds or 0.0, grace=lives.grace, limit=lives.max_age,
        usage=event.usage,
    )  # fmt: skip
    if lives.ttl is not None:
        entry.life, entry.own_ttl = lives.ttl, True
        entry.slide = lives.ttl if lives.sliding else 0.0
    return entry


def is_kept(
    chain: Chain,
    request: Request,
    keeps: Callable[[Any], bool | Unkept] | None,
    entry: Entry,
    value: object,
    event: Event,
) -> bool:
    """Say whether an answer is to be stored; if not, the event says why."""
    if len(entry.value) > chain.max_value_bytes:
        event.reason = "not kept: over max_value"
        return False
    # Where many were loaded in one call, the entry's own seconds are its share of them.
    load_seconds = max(entry.load_seconds, event.stages.get("load", 0) / 1e9)
    if load_seconds > LONGEST_LOAD_SECONDS:  # marks of single keys are kept no longer
        event.reason = "not kept: its load took over an hour"
        return False
    try:
        wanted: bool | Unkept = keeps is None or keeps(value)
    except Exception as error:  # noqa: BLE001 - the user's own predicate
        event.fault("when", error)
        chain.recorder.warn_once(
            f"{event.function}: when", f"answers of {event.function or 'a load'} are not kept: when= raised {error!r}"
        )
        return False
    if not wanted:
        event.reason = f"not kept: {wanted.reason if isinstance(wanted, Unkept) else 'when'}"
    if not wanted or (request.lives.ttl_of is not None and not has_life(request.lives, entry, value, event)):
        return False
    try:
        name_documents(request, entry, value)
    except Exception as error:  # noqa: BLE001 - the user's own callable; what nobody could invalidate is not kept
        event.fault("documents", error)
        return False
    return inherit(chain, request, entry, event)


def name_documents(request: Request, entry: Entry, value: object) -> None:
    """Give an entry the documents that its answer holds. Raises TypeError, and what the user's callable raises."""
    if request.documents_of is None:
        return
    documents = dict.fromkeys((*request.facets.documents, *documents_told(request, value)))
    entry.facets = replace(request.facets, documents=tuple(documents))


def has_life(lives: Lives, entry: Entry, value: object, event: Event) -> bool:
    """Give an entry the ttl that its answer asks for; False where that is none at all, or nobody can tell."""
    try:
        told = lives.ttl_of(value)  # type: ignore[misc]
        life = None if told is None or told == 0 else seconds(told, "ttl")
    except Exception as error:  # noqa: BLE001 - the user's own callable
        event.fault("ttl", error)
        return False
    if life is not None:
        entry.life, entry.own_ttl = life, True
        entry.slide = life if lives.sliding else 0.0
    elif told is not None:
        event.reason = "not kept: ttl"
        return False
    return True


def keep(
    chain: Chain, request: Request, entry: Entry, evidence: Evidence | None, event: Event, *,
    exact: bool, before: int | None = None,
) -> Plan[None]:  # fmt: skip
    """Put an entry into the exact tiers or the near ones; with `before`, into those nearer than that place."""
    for tier, breaker in chain.tiers[:before]:
        if tier.exact is not exact or (not exact and request.scope is None):
            continue
        # An open breaker lets one caller a pause through: who was let through to read may put too, and who was refused
        # may not. A put takes no turn of its own: where loads are slower than the pause, no reader would get one.
        if request.mode == "refresh" and not breaker.allows():
            continue
        if any(fault[:2] == (tier.name, "open") for fault in event.faults):
            continue
        try:
            yield from tier.put(request, entry, evidence)
        except Exception as error:  # noqa: BLE001 - the caller has the answer; keeping it is our affair (law 10)
            if not is_not_taken(error):
                breaker.failed()
            event.fault(tier.name, error)
        else:
            if request.mode == "refresh":
                breaker.succeeded()


def is_not_taken(error: Exception) -> bool:
    """Say whether a tier that is well has refused an entry for what the entry is."""
    return isinstance(error, TierError) and error.reason in _NOT_TAKEN
