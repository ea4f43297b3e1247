"""Why a lookup was answered as it was: in sentences for people, and in a few words that can be counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf

from semcache.events import Event, counted_as

NEW, GONE, FAILED = "asked for the first time", "asked before, and no longer kept", "its load failed"
# Of a reason what comes before its numbers, quotes and brackets.
_GENERAL = re.compile(r"[^0-9\"'(\[{<]*")
_LONGEST = 60


def counted(event: Event, *, is_known: bool) -> str:
    """Return why nothing was served, without what it tells of one call; `is_known` where it was asked before."""
    if event.failed:
        return FAILED
    if not event.reason:
        return GONE if is_known else NEW
    match = _GENERAL.match(counted_as(event.reason, event.decision))
    return (match[0] if match else "").strip(" ,;:")[:_LONGEST] or "other"


def sentences(event: Event) -> Iterator[str]:
    """Yield how a lookup was answered, and why so; texts of its caller may be in it."""
    yield from {"hit": _hit, "bypass": _bypass, "refresh": _refresh}.get(event.kind, _miss)(event)
    for tier, reason, _ in event.faults:
        yield f"{tier} was passed over: {reason}"


def plain(event: Event) -> Iterator[str]:
    """Yield how a lookup was answered, without what a reason quotes of a text."""
    if event.kind == "hit" and event.similarity is None:
        yield from sentences(event)
        return
    similarity = "" if event.similarity is None else f" (cosine {event.similarity:.4f})"
    yield f"{event.kind}: {counted(event, is_known=False)}{similarity}"


def _hit(event: Event) -> Iterator[str]:
    if event.similarity is not None:
        cut = "" if event.cut is None else f", and {_rated(event)} is served from {event.cut:g} on"
        how = "waited for the load of a near text" if event.tier == "flight" else "answered by a near match"
        yield f"{how}: its cosine is {event.similarity:.4f}{cut}"
        if event.decision is not None and event.decision.reason:
            yield f"the policy says: {event.decision.reason}"
    elif event.tier == "flight":
        yield "waited for the same call of another, which was being loaded"
    else:
        yield f"the very call was answered before: its answer was in {event.tier}"
    if event.is_stale:
        yield "it was served stale, and is loaded anew behind that"
    if event.age is not None:
        life = "" if event.life is None or abs(event.life) == inf else f"; it lives {span(max(0.0, event.life))} more"
        yield f"loaded {span(event.age)} ago{life}"


def _rated(event: Event) -> str:
    return "a similarity" if event.decision is None or event.decision.score is None else "a score"


def _miss(event: Event) -> Iterator[str]:
    reason, decision = event.reason or "", event.decision
    if reason.startswith("exact only"):
        yield f"no exact match; {reason}"
    elif reason.startswith("not kept"):
        yield f"no match; it was loaded, and is {reason}"
    elif decision is not None and event.similarity is not None:
        yield f"no exact match; the nearest text has a cosine of {event.similarity:.4f}"
        yield f"it was not served: {reason or decision.reason}"
    elif reason:
        yield f"no exact match, and no near one: {reason}"
    else:
        yield "no tier has it, and nothing near: it was loaded"
    if event.failed:
        yield "its load failed, so nothing is kept"


def _bypass(event: Event) -> Iterator[str]:
    yield f"went by the cache: {event.reason or 'it was told to'}"
    if event.failed:
        yield "the server behind did not answer it well"


def _refresh(event: Event) -> Iterator[str]:
    yield "loaded anew behind an answer that was served stale"
    if event.failed:
        yield "that load failed: what was there stays"


def span(seconds: float) -> str:
    """Return a time as people say it: "12 s", "4 min", "3 h", "2 days"."""
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
