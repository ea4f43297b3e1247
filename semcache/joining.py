"""Joining: a request that missed waits for the load of a near text that is under way, where the policy would reuse it.

Laws:
- it is answered as by the index a moment later: same scope, same policy and guards, same tenant and mode; its answer is
  a near match, and is not stored under the text that asked (law 3);
- what another text's load fails at is not shared, nor what is not kept of it: who waited loads for himself;
- nobody waits for himself: a call inside the load that it would wait for, two that would wait for each other, over
  whatever flights, or one that blocks its leader's thread, load alone (law 6); who once loads waits for nobody's text;
- an invalidation of what is waited for lets nobody board the flight of who waits (law 8);
- the comparison has the semantic tier's time and breaker; what goes wrong in it is a load (law 10).

A load that began in an empty scope has no vector: the next text that misses there has both made, in one batch, and the
put that follows finds it among the texts remembered.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter_ns
from typing import Any

from semcache.chain import Chain, Landing
from semcache.errors import DecodeError, TierError
from semcache.events import Event
from semcache.flight import Abandoned, Flight
from semcache.model import Entry, Evidence, Hit, Match, Miss, Neighbour, Request, Verdict
from semcache.nearby import Loading, Nearby
from semcache.plan import Follow, Plan
from semcache.tier import Breaker

# New ones may begin while others are compared; of those that come later a request is not told.
_ROUNDS = 4
# As many as a search brings.
_NEIGHBOURS = 4

Near = tuple[Hit, Any]


def join(
    chain: Chain, request: Request, flight: Flight[Landing], event: Event, evidence: Evidence | None, since: int, *,
    blocks: bool, joins: bool,
) -> Plan[Near | None]:  # fmt: skip
    """Return what a near text's load brings, with its value; None where this call is to load: others may wait for it.

    `since` is how many loads had ended when the tiers were asked; without `joins` it is only seen. In the end there is
    to be a `leave_near`.
    """
    nearby = chain.nearby
    assert nearby is not None  # noqa: S101 - the lookup has seen to it
    chain.flights.linger(flight)
    one = Loading(flight, request, None if evidence is None else evidence.vector)
    breaker = next((breaker for tier, breaker in chain.tiers if not tier.exact), None)
    has_failed = any(fault[0] == "semantic" for fault in event.faults)
    if joins and breaker is not None and not breaker.is_open and not has_failed:
        began = perf_counter_ns()
        near = yield from _meet(chain, nearby, breaker, one, event, since, blocks=blocks)
        event.took("wait", perf_counter_ns() - began)
        if near is not None:
            return near
    nearby.begin(one)
    return None


def load_all_the_same(chain: Chain, request: Request, flight: Flight[Landing], evidence: Evidence) -> None:
    """Let others see the load of a call that might have been answered by `join`, but is to be compared with that."""
    assert chain.nearby is not None  # noqa: S101 - the lookup has seen to it
    chain.nearby.begin(Loading(flight, request, evidence.vector))


def leave_near(chain: Chain, flight: Flight[Landing] | None) -> None:
    """End what `join` began, if it did, when the flight has landed or was given up."""
    if flight is not None and flight.request is not None and chain.nearby is not None:
        landing = flight.landing
        chain.nearby.end(flight, flight.request.scope, is_kept=landing is not None and landing.is_kept)
        if flight.lingers:
            chain.flights.leave(flight)


def _meet(
    chain: Chain, nearby: Nearby, breaker: Breaker, one: Loading, event: Event, since: int, *, blocks: bool
) -> Plan[Near | None]:
    """Compare with all who load in the scope, until one is near enough or there is nobody left."""
    met: set[Flight[Any]] = set()
    for _ in range(_ROUNDS):
        now = nearby.ended
        others, has_ended = nearby.meet(one, met, since)
        if not others and not has_ended:
            return None
        since = now
        try:
            near = (yield from _search_again(chain, nearby, one, event)) if has_ended else None
            found = (yield from _nearest(nearby, one, others, event)) if near is None and others else None
        except Exception as error:  # noqa: BLE001 - a tier may fail in any way (law 10)
            breaker.failed()
            event.fault(
                "semantic", TierError("late", "no answer in time") if isinstance(error, TimeoutError) else error
            )
            return None
        met.update(other.flight for other in others)
        if near is not None:
            return near
        if found is not None and chain.flights.follow(found[0].flight, blocks=blocks, leading=one.flight):
            return (yield from _follow(chain, one, *found, event))
    return None


def _search_again(chain: Chain, nearby: Nearby, one: Loading, event: Event) -> Plan[Near | None]:
    """Ask the index for what was put there after it was asked."""
    found: Hit | Miss = yield from nearby.tier.get(one.request)
    if found.evidence is not None:
        one.vector, event.decision = found.evidence.vector, found.evidence.decision
    if isinstance(found, Hit) and found.entry.life > 0:
        return _usable(chain, one.request, found)
    return None


def _nearest(
    nearby: Nearby, one: Loading, others: list[Loading], event: Event
) -> Plan[tuple[Loading, Neighbour] | None]:
    """Return the nearest of those whose answer the policy would reuse."""
    unknown = [each for each in (one, *others) if each.vector is None and not each.is_unseen]
    if unknown:
        vectors = yield from nearby.tier.vectors([each.request.text or "" for each in unknown])
        for each, vector in zip(unknown, vectors, strict=True):
            each.vector, each.is_unseen = vector, vector is None
    if one.vector is None:
        return None
    near = [(float(one.vector @ other.vector), other) for other in others if other.vector is not None]
    for similarity, other in sorted(near, key=lambda pair: -pair[0])[:_NEIGHBOURS]:
        neighbour = Neighbour(other.request.key, similarity, other.request.text or "", other.vector)
        decision = nearby.tier.judge(one.request, one.vector, neighbour)
        if decision.verdict is Verdict.REUSE:
            event.decision = decision
            return other, neighbour
    return None


def _follow(chain: Chain, one: Loading, other: Loading, neighbour: Neighbour, event: Event) -> Plan[Near | None]:
    """Wait for another text's load; None where it failed, was given up, took too long, or was not kept."""
    assert other.flight.future is not None  # noqa: S101 - it lingers
    patience = chain.flight_timeout / 2
    try:
        # Half as long as those wait who follow this call: it is to load while they still do.
        landing: Landing = yield Follow(other.flight.future, patience)
    except Abandoned:
        return None
    except TimeoutError:
        event.fault("flight", TierError("late", f"the load of a near text took over {patience:g} s"))
        return None
    finally:
        chain.flights.unboard(other.flight, leading=one.flight)
    if not landing.is_kept or landing.value is None:
        return None
    facets = replace(other.request.facets, documents=landing.documents or ())
    entry = Entry(
        landing.value, born=landing.born, load_seconds=landing.load_seconds, usage=landing.usage, facets=facets
    )
    evidence = Evidence(one.vector, [neighbour], event.decision, match=Match(neighbour, landing.value))
    return _usable(chain, one.request, Hit(entry, "flight", neighbour.key, neighbour.similarity, evidence))


def _usable(chain: Chain, request: Request, found: Hit) -> Near | None:
    """Return an answer with its value, where it has a form that its caller can use."""
    if found.entry.age > request.oldest:
        return None
    try:
        value = chain.codec.decode(found.entry.value)
    except DecodeError:
        return None
    return (found, value) if request.accepts is None or request.accepts(value) else None
