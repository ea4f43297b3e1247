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
from semcache.flight import Abandoned, Flight, enter, leave
from semcache.inherit import made_of, tell_found, tell_loaded
from semcache.joining import join, leave_near
from semcache.keep import encode, is_kept, keep, usage_of
from semcache.ledger import near_of
from semcache.model import Entry, Evidence, Hit, Miss, Request
from semcache.plan import Follow, Load, Outcome, Plan, Spawn, run
from semcache.tier import Breaker, Tier

# Why an answer that stands is not served: it is another call's, though the key is the same.
UNSUITED = "unsuited"


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
        event.kind, event.reason = "bypass", "mode: off"
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


def probe(chain: Chain, request: Request, event: Event) -> tuple[bool, Any]:
    """Ask the tier that answers in place, with no plan and no flight: (True, the answer), recorded, where it has it.

    A hit has nobody to wait for and nothing to load. What goes wrong here is in the event, and `ask` leaves that tier
    alone for the rest of the lookup; a plain miss is asked again once the flight is boarded.
    """
    if chain.in_place is None or request.mode in ("off", "refresh"):
        return False, None
    tier, breaker = chain.tiers[chain.in_place]
    if breaker.is_open:
        return False, None
    began = perf_counter_ns()
    try:
        found = tier.peek(request.key)  # type: ignore[attr-defined]
        if not isinstance(found, Hit):
            return False, None
        value = chain.codec.decode(found.entry.value)
        if not is_usable(request, value):
            return False, None
    except Exception as error:  # noqa: BLE001 - a tier may fail in any way
        note_failure(event, tier, breaker, error)
        return False, None
    finally:
        note_time(event, tier, perf_counter_ns() - began)
    breaker.succeeded()
    note_hit(chain, request, event, tier.name, found)
    if chain.in_place:
        run(fill(chain, request, found, event, chain.in_place))
    chain.recorder.lookup(event, value)
    return True, value


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
    if landing.near is not None and not takes_near(request):
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


def is_usable(request: Request, value: Any) -> bool:
    """Say whether an answer has a form that its caller can use; if not, it is a miss, and is loaded over."""
    return request.accepts is None or request.accepts(value)


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
        joins = joins and stale is None
        near = yield from join(chain, request, flight, event, evidence, since, blocks=blocks, joins=joins)
        if near is not None:
            note_hit(chain, request, event, near[0].tier, near[0])
            event.shared = near[0].tier == "flight"
            land_hit(chain, flight, near[0])
            return Outcome(near[1])
    born = chain.position()
    outcome = yield from load(origin, flight, event)
    if outcome.error is not None and stale is None and evidence is not None and evidence.audited is not None:
        stale, value = evidence.audited  # it would have been served
        chain.labelling.failed()  # type: ignore[union-attr]
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
        landing = Landing(entry.value, None, entry.load_seconds, near, entry.usage, documents, entry.born)
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
    began = perf_counter_ns()
    token = enter(flight) if flight is not None else None
    try:
        outcome: Outcome[Any] = yield Load(origin.load)
    finally:
        if token is not None:
            leave(token)
    took = perf_counter_ns() - began
    event.took("load", took)
    event.load_seconds = took / 1e9 / outcome.shares
    if outcome.error is None:
        event.usage = usage_of(origin.usage, outcome.value, event)
    return outcome


def find(
    chain: Chain, request: Request, event: Event, *, audits: bool = False
) -> Plan[tuple[Hit | None, Any, Evidence | None]]:
    """Ask the tiers, nearest first: the hit and its value, or the evidence of the miss.

    Who `audits` loads a near match that is drawn for it, though it would be served.
    What is stale in one tier may be fresh in the next, where another process has loaded it; a near match is asked for
    only where there is not even a stale answer, and may then be stale itself.
    """
    evidence = None
    stale: tuple[Hit, Any] | None = None
    for place, (tier, breaker) in enumerate(chain.tiers):
        if not tier.exact and (request.scope is None or stale is not None):
            continue
        found, value = yield from ask(chain, tier, breaker, request, event)
        if found.evidence is not None:
            evidence = found.evidence
            note_evidence(event, evidence)
        if is_audited(chain, tier, request, event, found, value, audits=audits):
            continue
        if isinstance(found, Hit) and found.entry.life <= 0:
            stale = (found, value) if stale is None or found.entry.life > stale[0].entry.life else stale
        elif isinstance(found, Hit):
            note_hit(chain, request, event, tier.name, found)
            if tier.exact and place:
                yield from fill(chain, request, found, event, place)
            return found, value, evidence
        elif found.reason:
            event.reason = found.reason
    if stale is None:
        return None, None, evidence
    note_stale(chain, request, event, stale[0])
    return *stale, evidence


def note_stale(chain: Chain, request: Request, event: Event, stale: Hit) -> None:
    """Take over a stale answer, where it is served as it is."""
    if stale.entry.life > -request.lives.stale_while_revalidate:
        note_hit(chain, request, event, stale.tier, stale)


def is_audited(
    chain: Chain, tier: Tier, request: Request, event: Event, found: Hit | Miss, value: Any, *, audits: bool
) -> bool:  # fmt: skip
    """Have a policy that learns know what a near tier said; say whether what it found is loaded, to be compared."""
    if tier.exact or chain.labelling is None:
        return False
    evidence = found.evidence
    chain.labelling.saw(request, evidence)
    decision = chain.labelling.explores(evidence) if audits and isinstance(found, Hit) else None
    if decision is None or evidence is None or not isinstance(found, Hit):
        return False
    evidence.audited = found, value
    event.decision, event.reason = decision, "audit"
    return True


def fill(chain: Chain, request: Request, hit: Hit, event: Event, place: int) -> Plan[None]:
    """Put what a tier gave into the exact tiers before it."""
    began = perf_counter_ns()
    yield from keep(chain, request, hit.entry, None, event, exact=True, before=place)
    event.took("put", perf_counter_ns() - began)


def ask(
    chain: Chain, tier: Tier, breaker: Breaker, request: Request, event: Event
) -> Plan[tuple[Hit | Miss, Any]]:  # fmt: skip
    """Ask one tier; whatever goes wrong is a miss, and a fault in the event (law 10)."""
    if event.faults and any(name == tier.name for name, _, _ in event.faults):
        return Miss(), None  # it failed this lookup already
    if not breaker.allows():
        event.fault(tier.name, TierError("open", "it failed too often and is left alone for a while"))
        return Miss(), None
    began = perf_counter_ns()
    try:
        found = yield from tier.get(request)
        breaker.succeeded()
        if found.waited_ns:  # for a connection: no time of the store's
            event.took("pool", found.waited_ns)
            began += found.waited_ns
        if not isinstance(found, Hit):
            return found, None
        value = chain.codec.decode(found.entry.value)
        return (found, value) if is_usable(request, value) else (Miss(UNSUITED, found.evidence), None)
    except Exception as error:  # noqa: BLE001 - a tier may fail in any way
        note_failure(event, tier, breaker, error)
    finally:
        note_time(event, tier, perf_counter_ns() - began)
    return Miss(), None


def note_failure(event: Event, tier: Tier, breaker: Breaker, error: Exception) -> None:
    """Take over what went wrong in a tier."""
    if not isinstance(error, DecodeError):  # bytes of another version or another hand: they will be overwritten
        breaker.failed()
    event.fault(tier.name, TierError("late", "no answer in time") if isinstance(error, TimeoutError) else error)


def note_hit(chain: Chain, request: Request, event: Event, tier: str, hit: Hit) -> None:
    """Take over what is known of an answer that was found, and tell its pipeline of it."""
    tell_found(chain, request, hit.entry.facets, hit.entry.born)
    event.kind, event.tier, event.reason = "hit", tier, None
    event.is_stale = hit.entry.life <= 0
    event.age, event.load_seconds, event.usage = hit.entry.age, hit.entry.load_seconds, hit.entry.usage
    if hit.similarity is not None:
        event.similarity, event.neighbour, event.near = hit.similarity, hit.key, near_of(request, hit)


def note_time(event: Event, tier: Tier, nanoseconds: int) -> None:
    """Book a tier's time; a near tier tells its own stages, and what is left over is waiting."""
    if tier.exact:
        event.took("memory" if tier.name == "memory" else "store", nanoseconds)
    else:
        event.took("wait", nanoseconds)


def note_evidence(event: Event, evidence: Evidence) -> None:
    """Take over what a near tier learned: its stages were booked as waiting so far."""
    for stage, nanoseconds in evidence.stages.items():
        event.took(stage, nanoseconds)
    told = sum(evidence.stages.values())
    event.stages["wait"] = max(0, event.stages["wait"] - told)
    event.decision = evidence.decision
