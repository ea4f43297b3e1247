"""Finding: the tiers asked in order, nearest first, and what each of them says, in the event.

Laws:
- whatever goes wrong in a tier is a miss and a fault, and its breaker spares who comes next from asking it (law 10);
- an exact hit fills the tiers before the one that gave it, a near match fills nothing (laws 3 and 5);
- what is stale in one tier may be fresh in the next; a near match is for want of any exact answer.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from semcache.chain import Chain
from semcache.errors import DecodeError, TierError
from semcache.events import Event
from semcache.inherit import tell_found
from semcache.keep import keep
from semcache.ledger import near_of
from semcache.model import Evidence, Hit, Miss, Request
from semcache.plan import Plan, run
from semcache.tier import AlsoFailed, Breaker, Tier

# Why an answer that stands is not served: it is another call's, though the key is the same.
UNSUITED = "unsuited"
# Or it is older than its caller takes.
TOO_OLD = "older than the caller takes"


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
            note_passed(chain, request)
            continue
        found, value = yield from ask(chain, tier, breaker, request, event)
        if found.evidence is not None:
            evidence = found.evidence
            event.decision = evidence.decision
        if is_noted(chain, tier, request, found) and audits and is_audited(chain, request, event, found, value):
            continue
        if isinstance(found, Hit) and found.entry.life <= 0:
            stale = (found, value) if stale is None or found.entry.life > stale[0].entry.life else stale
        elif isinstance(found, Hit):
            note_hit(chain, request, event, found.tier, found)
            if tier.exact and place and found.similarity is None:  # what a sidecar found may be a near match
                yield from fill(chain, request, found, event, place)
            return found, value, evidence
        elif found.reason:
            event.reason = found.reason
    if stale is None:
        return None, None, evidence
    note_stale(chain, request, event, stale[0])
    return *stale, evidence


def ask(
    chain: Chain, tier: Tier, breaker: Breaker, request: Request, event: Event
) -> Plan[tuple[Hit | Miss, Any]]:  # fmt: skip
    """Ask one tier; whatever goes wrong is a miss, and a fault in the event (law 10)."""
    if event.faults and any(name == tier.name for name, _, _ in event.faults):
        return Miss(), None  # it failed this lookup already
    if not breaker.allows():
        event.fault(tier.name, TierError("open", "it failed too often and is left alone for a while"))
        return Miss(), None
    began, found = perf_counter_ns(), None
    try:
        found = yield from tier.get(request)
        breaker.succeeded()
        if found.waited_ns:  # for a connection: no time of the store's
            began += found.waited_ns
            event.took("pool", found.waited_ns, began)
        if not isinstance(found, Hit):
            return found, None
        value = chain.codec.decode(found.entry.value)
        if found.entry.age > request.oldest:
            return Miss(TOO_OLD, found.evidence), None
        return (found, value) if is_usable(request, value) else (Miss(UNSUITED, found.evidence), None)
    except Exception as error:  # noqa: BLE001 - a tier may fail in any way
        note_failure(event, tier, breaker, error)
    finally:
        note_time(event, tier, perf_counter_ns() - began, None if found is None else found.evidence)
    return Miss(), None


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
        if found.entry.age > request.oldest or not is_usable(request, value):
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


def fill(chain: Chain, request: Request, hit: Hit, event: Event, place: int) -> Plan[None]:
    """Put what a tier gave into the exact tiers before it."""
    began = perf_counter_ns()
    yield from keep(chain, request, hit.entry, None, event, exact=True, before=place)
    event.took("put", perf_counter_ns() - began)


def is_usable(request: Request, value: Any) -> bool:
    """Say whether an answer has a form that its caller can use; if not, it is a miss, and is loaded over."""
    return request.accepts is None or request.accepts(value)


def is_noted(chain: Chain, tier: Tier, request: Request, found: Hit | Miss) -> bool:
    """Have a policy that learns know what a near tier said; say whether it is one."""
    if tier.exact:
        return False
    if chain.labelling is not None:
        chain.labelling.saw(request, found.evidence)
    return True


def note_passed(chain: Chain, request: Request) -> None:
    """Have a policy that learns know of a request that has no scope."""
    if request.scope is None and chain.labelling is not None:
        chain.labelling.passed(request)


def is_audited(chain: Chain, request: Request, event: Event, found: Hit | Miss, value: Any) -> bool:
    """Say whether a near match that would be served is loaded all the same, to be compared."""
    evidence = found.evidence
    learns = chain.labelling or chain.shadowing
    if learns is None or evidence is None or not isinstance(found, Hit):
        return False
    decision = learns.explores(request, evidence)
    if decision is None:
        return False
    evidence.audited = found, value
    event.decision, event.reason = decision, "audit"
    return True


def note_failure(event: Event, tier: Tier, breaker: Breaker, error: Exception) -> None:
    """Take over what went wrong in a tier."""
    if isinstance(error, AlsoFailed):
        error = error.error
    elif not isinstance(error, DecodeError):  # bytes of another version or another hand: they will be overwritten
        breaker.failed()
    event.fault(tier.name, TierError("late", "no answer in time") if isinstance(error, TimeoutError) else error)


def note_hit(chain: Chain, request: Request, event: Event, tier: str, hit: Hit) -> None:
    """Take over what is known of an answer that was found, and tell its pipeline of it."""
    tell_found(chain, request, hit.entry.facets, hit.entry.born)
    event.kind, event.tier, event.reason = "hit", tier, None
    event.is_stale, event.life = hit.entry.life <= 0, hit.entry.life
    event.age, event.load_seconds, event.usage = hit.entry.age, hit.entry.load_seconds, hit.entry.usage
    if hit.similarity is not None:
        event.similarity, event.neighbour, event.near = hit.similarity, hit.key, near_of(request, hit)
        if chain.shadowing is not None and request.mode != "refresh":  # a shadow embedder would have looked for one too
            chain.shadowing.take(request, None, None, counts=True)


def note_stale(chain: Chain, request: Request, event: Event, stale: Hit) -> None:
    """Take over a stale answer, where it is served as it is."""
    if stale.entry.life > -request.lives.stale_while_revalidate:
        note_hit(chain, request, event, stale.tier, stale)


def note_time(event: Event, tier: Tier, nanoseconds: int, evidence: Evidence | None = None) -> None:
    """Book a tier's time, which ended just now: what it tells of stages as theirs, what is between as its own."""
    own = "wait" if not tier.exact else "memory" if tier.name == "memory" else "store"
    ended = perf_counter_ns()
    reached = ended - nanoseconds
    told = [] if evidence is None else evidence.stages
    left = sum(took for _, took, _ in told)
    for stage, took, until in told:
        left -= took
        until = until or ended - left  # noqa: PLW2901 - another process's clock is not ours
        event.took(own, max(0, until - took - reached), until - took)
        event.took(stage, took, until)
        reached = until
    event.took(own, max(0, ended - reached), ended)
