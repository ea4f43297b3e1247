"""A lookup: the heart of the cache, once, for threads and tasks alike.

The order in which things happen is the whole of it:

1. *Board.* Before anything slow is asked, the caller boards the key's flight. The first one leads. Who comes later
   follows: it waits, and is given what the leader got. (Law 6.)
2. *Find.* The leader asks the tiers, nearest first. Memory, and the store that answers in place, were probed by plain
   functions before the plan was built; here they are asked again, because this may have happened in between:

       caller A            caller B
       probe: miss
                           probe: miss, board, load, put in memory, land
       board: leads (B's flight is gone)
       find: memory hit    -- without this second look, A would load what B has just loaded

   A tier that is late, broken or still loading is a miss and a fault in the event; after some failures its breaker
   opens, and it is not asked at all for a while. (Law 10.) An exact hit fills the tiers before the one that gave it,
   with the life that remains. A near match fills nothing: it is an answer to another question. (Laws 3 and 5.)
   Who then has nothing joins the load of a near text that is under way, where the policy would reuse it (`joining`).
3. *Load.* The log's position is read before the origin is called: what is invalidated from here on is newer than the
   answer, and the put that follows is refused. (Law 8.) The origin's error goes to whoever waits, as it was, and is
   kept nowhere. (Law 7.)
4. *Keep.* The answer is encoded, put into the exact tiers (a slow one queues it and reads its own queue), and only then
   does the flight land: who comes a moment later finds the answer. The near tiers come last, with the evidence that
   the miss brought along, so that nothing is embedded twice.

A leader that is cancelled, at whatever step, abandons its flight, and one of its followers boards as the new leader.
Nothing here does I/O: what must be waited for is yielded, and `plan.run` or `plan.arun` waits.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter_ns
from typing import Any

from semcache.chain import Chain, Landing, Origin
from semcache.errors import DecodeError, TierError
from semcache.events import Event
from semcache.finding import find, is_audited, is_usable, note_hit
from semcache.flight import Abandoned, Flight, enter, leave
from semcache.inherit import made_of, tell_loaded
from semcache.joining import join, leave_near, load_all_the_same
from semcache.keep import encode, is_kept, keep, usage_of
from semcache.ledger import near_of
from semcache.model import Entry, Evidence, Hit, Request
from semcache.plan import Follow, Load, Outcome, Plan, Spawn


def lookup(
    chain: Chain, request: Request, origin: Origin, event: Event, *, blocks: bool, joins: bool = True
) -> Plan[Outcome[Any]]:
    """Answer a request from the nearest tier that can, or from its origin, whose error is in the outcome as it was.

    `blocks` says that waiting stops the caller's whole thread; without `joins` it waits for no load of another text: it
    leads beside others, or for a caller in another thread. The event is filled in and given to the recorder.
    """
    event.key = request.key
    if request.mode == "off":
        outcome = yield from load_past(chain, request, origin, event)
        event.kind, event.reason = "bypass", chain.why_off
        return finish(chain, event, outcome)
    flight = None
    while True:
        key = request.key if request.mode != "refresh" else request.key + b"refresh"
        flight, leads = chain.flights.board(key, request, blocks=blocks)
        if flight is None or leads:
            break
        followed = yield from follow(chain, flight, request, event)
        if followed is not None:
            return finish(chain, event, followed)
        # The leader is too slow to wait for, or its answer cannot be shared; else it was cancelled.
        if any(tier == "flight" for tier, _, _ in event.faults):
            flight = None
            break
    try:
        joins = joins and takes_near(request)
        outcome = yield from lead(chain, request, origin, event, flight, blocks=blocks, joins=joins)
    except BaseException:
        if flight is not None:
            chain.flights.abandon(flight)
        raise
    finally:
        leave_near(chain, flight)
    return finish(chain, event, outcome)


def finish(chain: Chain, event: Event, outcome: Outcome[Any]) -> Outcome[Any]:
    """Record a lookup; its driver gives the caller the answer or the origin's error."""
    event.failed = outcome.error is not None
    chain.recorder.lookup(event, outcome.value)
    return outcome


def follow(chain: Chain, flight: Flight[Landing], request: Request, event: Event) -> Plan[Outcome[Any] | None]:
    """Wait for the flight to land; None where it was abandoned, was too slow, or brought nothing for this caller."""
    began = perf_counter_ns()
    try:
        landing: Landing = yield Follow(flight.future, chain.flight_timeout)  # type: ignore[arg-type]
    except Abandoned:
        return None
    except TimeoutError:
        event.fault("flight", TierError("late", f"the leader took over {chain.flight_timeout:g} s"))
        return None
    finally:
        chain.flights.unboard(flight)
        event.took("wait", perf_counter_ns() - began)
    if landing.error is not None:
        event.shared = True
        return Outcome(error=landing.error)
    return share(chain, landing, request, event)


def share(chain: Chain, landing: Landing, request: Request, event: Event) -> Outcome[Any] | None:
    """Take a copy of what the leader brought; None where this caller cannot, or must not."""
    if landing.value is None:
        event.fault("flight", TierError("unshared", "the leader's answer could not be encoded"))
        return None
    if landing.near is not None and not (takes_near(request) and (landing.near.similarity or 0.0) >= request.least):
        return None
    if landing.age > request.oldest:
        event.fault("flight", TierError("unshared", "the leader's answer is older than this caller takes"))
        return None
    try:
        value = chain.codec.decode(landing.value)
    except DecodeError as error:
        event.fault("flight", error)
        return None
    if not is_usable(request, value):
        event.fault("flight", TierError("unshared", "the leader's answer has another form than this caller wants"))
        return None
    event.kind, event.tier, event.shared, event.load_seconds = "hit", "flight", True, landing.load_seconds
    event.usage = landing.usage
    tell_loaded(chain, request, value, landing.documents, landing.born)
    if landing.near is not None:
        event.similarity, event.neighbour = landing.near.similarity, landing.near.key
        event.near = near_of(request, landing.near)
    return Outcome(value)


def takes_near(request: Request) -> bool:
    """Say whether a near match may answer a request: callers of one key may differ in it."""
    return request.scope is not None and request.tenanted and request.mode == "live"


def lead(
    chain: Chain, request: Request, origin: Origin, event: Event, flight: Flight[Landing] | None, *,
    blocks: bool, joins: bool, known: Hit | None = None,
) -> Plan[Outcome[Any]]:  # fmt: skip
    """Find the answer, or load and keep it; land the flight with it. `known` is what is loaded anew."""
    evidence, stale, value = None, None, None
    nearby = chain.nearby if flight is not None and request.scope is not None else None
    # A load behind a stale near match has not searched for fresh ones yet.
    since = -1 if nearby is None or request.mode == "refresh" else nearby.ended
    if request.mode != "refresh":
        found, value, evidence = yield from find(chain, request, event, audits=True)
        if found is not None and found.entry.life > -request.lives.stale_while_revalidate:
            if found.entry.life <= 0:
                yield from revalidate(chain, request, origin, is_near=found.similarity is not None)
            land_hit(chain, flight, found)
            return Outcome(value)
        stale = found
    if flight is not None and nearby is not None and nearby.serves:
        joins = joins and stale is None and (evidence is None or evidence.audited is None)
        near = yield from join(chain, request, flight, event, evidence, since, blocks=blocks, joins=joins)
        if near is not None and request.mode == "live" and is_audited(chain, request, event, *near):
            evidence = near[0].evidence
            load_all_the_same(chain, request, flight, evidence)  # type: ignore[arg-type]
        elif near is not None:
            note_hit(chain, request, event, near[0].tier, near[0])
            event.shared = near[0].tier == "flight"
            land_hit(chain, flight, near[0])
            return Outcome(near[1])
    born = chain.position()
    outcome = yield from load(origin, flight, event)
    if outcome.error is not None and stale is None and evidence is not None and evidence.audited is not None:
        stale, value = evidence.audited  # it would have been served
        chain.audit_failed()
    if outcome.error is not None and stale is not None:
        event.fault("origin", outcome.error)
        note_hit(chain, request, event, stale.tier, stale)
        land_hit(chain, flight, stale)
        return Outcome(value)
    kept = yield from settle(chain, request, origin, event, flight, outcome, born, evidence)
    yield from compare(chain, request, kept, evidence, known or stale)
    return outcome


def compare(
    chain: Chain, request: Request, kept: Entry | None, evidence: Evidence | None, known: Hit | None
) -> Plan[None]:
    """Have what was loaded compared, behind the caller, with its near match, or with what was known of it before."""
    if chain.shadowing is not None:
        is_missed = known is None and request.mode != "refresh"
        chain.shadowing.take(request, kept, evidence, counts=is_missed)
    if chain.labelling is None or kept is None:
        return
    yield from chain.labelling.label(request, evidence, kept.value)
    if known is not None:
        yield from chain.labelling.again(request, known.entry.value, kept.value)


def land_hit(chain: Chain, flight: Flight[Landing] | None, found: Hit) -> None:
    """Give followers what was found."""
    if flight is not None:
        near, entry = None if found.similarity is None else found, found.entry
        documents = () if entry.facets is None else entry.facets.documents
        landing = Landing(
            entry.value, None, entry.load_seconds, near, entry.usage, documents, entry.born, age=entry.age
        )
        chain.flights.land(flight, landing)


def settle(
    chain: Chain, request: Request, origin: Origin, event: Event, flight: Flight[Landing] | None,
    outcome: Outcome[Any], born: int, evidence: Evidence | None,
) -> Plan[Entry | None]:  # fmt: skip
    """Keep what was loaded, if it is worth it, and give it to the followers, once it can be found; return what is."""
    began = perf_counter_ns()
    entry = None if outcome.error is not None else encode(chain, request, outcome.value, born, event)
    kept = entry is not None and is_kept(chain, request, origin.keeps, entry, outcome.value, event)
    if kept:
        yield from keep(chain, request, entry, evidence, event, exact=True)  # type: ignore[arg-type]
    documents, since = made_of(chain, request, entry, born)
    if outcome.error is None:
        is_told = entry is not None and entry.facets is not None
        tell_loaded(chain, request, outcome.value, documents, since, is_told=is_told)
    if flight is not None:
        landing = Landing(entry.value if entry else None, outcome.error, event.load_seconds or 0.0)
        landing.usage, landing.documents, landing.born, landing.is_kept = event.usage, documents, since, kept
        chain.flights.land(flight, landing)
    if kept:
        yield from keep(chain, request, entry, evidence, event, exact=False)  # type: ignore[arg-type]
    event.took("put", perf_counter_ns() - began)
    return entry if kept else None


def revalidate(chain: Chain, request: Request, origin: Origin, *, is_near: bool) -> Plan[None]:
    """Load behind the caller what it was served stale, unless somebody does so already.

    How to load a near match's answer, only its own callers know: what is loaded is the asking text's, and kept as that.
    """
    if not chain.flights.flies(request.key + b"refresh"):
        asked = replace(request, mode="refresh")
        yield Spawn(lambda: refresh(chain, asked, origin, is_near=is_near), chain.crew)


def refresh(chain: Chain, request: Request, origin: Origin, *, is_near: bool) -> Plan[None]:
    """Load and keep, one at a time for each key; who comes second has nothing to do.

    In place of a near match a fresh one will do: what others have loaded of near texts by now, or are loading.
    """
    flight, leads = chain.flights.board(request.key + b"refresh", request, blocks=False)
    if flight is None or not leads:
        if flight is not None:
            chain.flights.unboard(flight)
        return
    event = chain.begin("refresh", request)
    try:
        # Whoever was served stale too may have begun, and ended, since we were.
        found, _, _ = yield from find(chain, replace(request, scope=None), chain.begin("refresh", request))
        if found is not None and found.entry.life > 0:
            land_hit(chain, flight, found)
            return
        outcome = yield from lead(chain, request, origin, event, flight, blocks=False, joins=is_near, known=found)
    except BaseException:
        chain.flights.abandon(flight)
        raise
    finally:
        leave_near(chain, flight)
    if event.kind == "refresh":  # else a near text's load has served
        finish(chain, event, outcome)


def load_past(chain: Chain, request: Request, origin: Origin, event: Event) -> Plan[Outcome[Any]]:
    """Call the origin alone, past the cache; its pipeline is told what came all the same."""
    born = 0 if request.sources is None else chain.position()
    outcome = yield from load(origin, None, event)
    if outcome.error is None:
        tell_loaded(chain, request, outcome.value, *made_of(chain, request, None, born))
    return outcome


def load(origin: Origin, flight: Flight[Landing] | None, event: Event) -> Plan[Outcome[Any]]:
    """Call the origin, marked as the inside of its flight, so that it cannot wait for itself."""
    began, watch = perf_counter_ns(), event.watch
    token = enter(flight) if flight is not None else None
    entered = watch.enter() if watch is not None else None
    try:
        outcome: Outcome[Any] = yield Load(origin.load)
    except BaseException as error:
        if watch is not None:
            watch.loaded(error)
        raise
    finally:
        if watch is not None:
            watch.leave(entered)
        if token is not None:
            leave(token)
    took = perf_counter_ns() - began
    event.took("load", took)
    if watch is not None:
        watch.loaded(outcome.error)
    event.load_seconds = took / 1e9 / outcome.shares
    if outcome.error is None:
        event.usage = usage_of(origin.usage, outcome.value, event)
    return outcome
