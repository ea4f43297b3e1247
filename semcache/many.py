"""Many lookups as one: one trip to each server, one load of all that is missing.

Laws: each request is answered as a lookup of its own would answer it, for that is what it is given; what is found at
first sight boards no flight, as in `lookup.probe`; of equal requests one is looked up; flights of others are boarded
when our own loads have landed, and no sooner; what one load fails at takes nothing from what another brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import isawaitable
from time import perf_counter_ns
from typing import Any

from semcache.chain import Chain, Origin
from semcache.errors import DecodeError
from semcache.events import Event
from semcache.finding import fill, note_failure, note_hit, note_time
from semcache.inherit import tell_found
from semcache.lookup import lookup
from semcache.model import Alike, Hit, Miss, Request, Usage
from semcache.plan import Outcome, Plan
from semcache.tier import Glance, Tier
from semcache.together import together

LoadMany = Callable[[list[int]], Any]
# What a tier says of one of many; an error is of that one alone.
Found = Hit | Miss | BaseException | None
_NOTHING = object()
_UNASKED = ("off", "refresh")


def lookup_many(
    chain: Chain, requests: Sequence[Request], load: LoadMany, keeps: Callable[[Any], bool] | None,
    event: Callable[[Request], Event], *, blocks: bool, most: int | None = None,
    usage: Callable[[Any], Usage | None] | None = None, parted: Callable[[list[int]], list[list[int]]] | None = None,
) -> Plan[list[Outcome[Any]]]:  # fmt: skip
    """Answer requests, in their order; `load` is given the places of those that are missing, at most so many at once.

    What one load brought is kept before the next is begun; `usage` says of each answer what it has cost.
    `parted` says which places are loaded together, where their number does not.
    """
    first, places = _placed(requests)
    events = _Events(requests, event)
    outcomes: dict[int, Outcome[Any]] = {}
    yield from _find(chain, requests, events, first, outcomes)
    rest = [place for place in first if place not in outcomes]
    if not rest:
        return [outcomes[place] for place in places]
    free = [place for place in rest if not chain.flights.flies(requests[place].key)]
    busy = [place for place in rest if place not in set(free)]
    parted = parted or partial(_parted, most=most)
    for group in (*parted(free), *parted(busy)):
        plans = [
            lookup(
                chain,
                requests[place],
                Origin(partial(_load_one, load, place), keeps, usage),
                events[place],
                blocks=blocks,
                joins=False,
            )
            for place in group
        ]
        done = yield from together(plans, partial(_load_group, load, group))
        for place, outcome in zip(group, done, strict=True):
            outcomes[place] = outcome.unwrap()
    return [outcomes[place] for place in places]


def _placed(requests: Sequence[Request]) -> tuple[list[int], list[int]]:
    """Return the places of what is to be looked up, each once, and for every request the place that answers it."""
    if isinstance(requests, Alike):
        keys = requests.keys
        at = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
        places = [at[key] for key in keys]
        return (places if len(at) == len(keys) else list(dict.fromkeys(places))), places
    first: dict[tuple[bytes, str], int] = {}
    places = [first.setdefault((request.key, request.mode), place) for place, request in enumerate(requests)]
    return list(first.values()), places


def find_many(
    chain: Chain, requests: Sequence[Request], events: Sequence[Event], *, start: int = 0
) -> Plan[dict[int, Any]]:
    """Return what the exact tiers, from that place on, have at first sight: answers by the places of their requests.

    Of each answer its request's event is filled in and recorded; those of the others go on to their lookups.
    """
    outcomes: dict[int, Outcome[Any]] = {}
    places = list(range(len(requests)))
    yield from _find(chain, requests, dict(enumerate(events)), places, outcomes, start=start, each=True)
    return {place: outcome.value for place, outcome in outcomes.items()}


def _find(
    chain: Chain, requests: Sequence[Request], events: dict[int, Event], places: list[int],
    outcomes: dict[int, Outcome[Any]], *, start: int = 0, each: bool = False,
) -> Plan[None]:  # fmt: skip
    """Ask the exact tiers, nearest first; with `each` every answer's own event is filled in."""
    if isinstance(requests, Alike):
        waiting = places if requests.one.mode not in _UNASKED else []
    else:
        waiting = [place for place in places if requests[place].mode not in _UNASKED]
    for at, (tier, breaker) in enumerate(chain.tiers):
        if not tier.exact or not waiting:
            break
        if at >= start and not breaker.is_open:
            yield from _peek(chain, at, requests, events, waiting, outcomes, each=each)
            waiting = [place for place in waiting if place not in outcomes]


def _parted(places: list[int], most: int | None) -> list[list[int]]:
    size = most or max(len(places), 1)
    return [places[at : at + size] for at in range(0, len(places), size)]


class _Events(dict[int, Event]):
    """The events of requests by their places, each begun when it is wanted: what is found at once has none of its own.

    The first is there from the start.
    """

    def __init__(self, requests: Sequence[Request], begin: Callable[[Request], Event]) -> None:
        super().__init__()
        self._requests = requests
        self._begin = begin
        if requests:
            self[0]

    def __missing__(self, place: int) -> Event:
        event = self[place] = self._begin(self._requests[place])
        return event


def _peek(
    chain: Chain, at: int, requests: Sequence[Request], events: dict[int, Event], asked: list[int],
    outcomes: dict[int, Outcome[Any]], *, each: bool,
) -> Plan[None]:  # fmt: skip
    """Ask one exact tier for all at once; what it has fresh is answered and recorded."""
    tier, breaker = chain.tiers[at]
    began = perf_counter_ns()
    asked, found = yield from _look(chain, at, requests, events, asked, outcomes)
    if not asked:
        return
    share = (perf_counter_ns() - began) // len(asked)
    decode, failed = chain.codec.decode, False
    hits: dict[int, Any] = {}
    for place, told in zip(asked, found, strict=True):
        try:
            value = _answer(told, decode, requests[place].accepts)
        except Exception as error:  # noqa: BLE001 - a tier may fail in any way
            if failed:  # one trip that failed is one failure
                events[place].fault(tier.name, error)
            else:
                note_failure(events[place], tier, breaker, error)
            failed = True
            continue
        if value is not _NOTHING:
            hits[place] = told
            outcomes[place] = Outcome(value)
    if not failed:
        breaker.succeeded()
    for place in asked:
        if place not in hits:
            note_time(events[place], tier, share)
    yield from _record(chain, at, requests, events, hits, share, each=each or at > 0 or chain.recorder.is_watched)


def _look(
    chain: Chain, at: int, requests: Sequence[Request], events: dict[int, Event], asked: list[int],
    outcomes: dict[int, Outcome[Any]],
) -> Plan[tuple[list[int], Sequence[Found]]]:  # fmt: skip
    """Return what a tier has, and of which places: of all but those that a glance has answered already."""
    found: Sequence[Found] | None = None
    if isinstance(requests, Alike) and _may_glance(chain, at, requests.one):
        asked, found = yield from _glance(chain, requests, events, asked, outcomes)
    if found is None:
        found = yield from _get_many(chain.tiers[at][0], [requests[place] for place in asked])
    return asked, found


def _may_glance(chain: Chain, at: int, one: Request) -> bool:
    """Say whether hits of a tier need no more than their sums: they fill no nearer tier, and nobody looks at each."""
    return not at and hasattr(chain.tiers[0][0], "glance") and one.accepts is None and not chain.recorder.is_watched


def _glance(
    chain: Chain, requests: Alike, events: dict[int, Event], asked: list[int], outcomes: dict[int, Outcome[Any]]
) -> Plan[tuple[list[int], Sequence[Found] | None]]:
    """Answer what the first tier has fresh and plain, with no request and no event for each.

    Return the places of the others, and what the tier has of each; None where it can only be asked by request.
    """
    tier: Any = chain.tiers[0][0]
    began = perf_counter_ns()
    keys = requests.keys
    try:
        seen: Glance | None = yield from tier.glance(
            keys if len(asked) == len(keys) else [keys[place] for place in asked]
        )
    except Exception as error:  # noqa: BLE001 - a tier may fail in any way
        return asked, [error] * len(asked)
    if seen is None:
        return asked, None
    decode, rest, last = chain.codec.decode, [], -1
    for number, value in enumerate(seen.values):
        if value is None:
            rest.append(number)
            continue
        try:
            outcomes[asked[number]] = Outcome(decode(value))
        except DecodeError:
            rest.append(number)
        else:
            last = number
    if last >= 0:
        share = (perf_counter_ns() - began) // len(asked)
        one, event = requests[asked[last]], events[asked[last]]
        note_time(event, tier, share)
        event.kind, event.tier, event.reason = "hit", tier.name, None
        hit = tier.settle(one, seen.stands[last])
        if isinstance(hit, Hit):  # it may be gone since
            note_hit(chain, one, event, tier.name, hit)
        chain.recorder.glanced(event, one.facets, one.stage, len(asked) - len(rest), seen.seconds, share)
        chain.tiers[0][1].succeeded()
    return [asked[number] for number in rest], [_settled(tier, requests, seen, asked, number) for number in rest]


def _settled(tier: Any, requests: Alike, seen: Glance, asked: list[int], number: int) -> Found:
    try:
        found: Found = tier.settle(requests[asked[number]], seen.stands[number])
    except Exception as error:  # noqa: BLE001 - what one of them fails at is its own
        return error
    return found


def _answer(told: Found, decode: Callable[[bytes], Any], suits: Callable[[Any], bool] | None) -> Any:
    """Return the fresh answer that a tier has for a request, or _NOTHING. Raises what went wrong."""
    if isinstance(told, BaseException):
        raise told
    if not isinstance(told, Hit) or told.entry.life <= 0:
        return _NOTHING
    value = decode(told.entry.value)
    return value if suits is None or suits(value) else _NOTHING


def _get_many(tier: Tier, requests: list[Request]) -> Plan[list[Found]]:
    """Ask a tier for many: by `get_many` where it has one, whose failure is that of each."""
    get_many = getattr(tier, "get_many", None)
    if get_many is None:
        outcomes = yield from together([tier.get(request) for request in requests])
        return [outcome.value if outcome.error is None else outcome.error for outcome in outcomes]
    try:
        found: list[Found] = yield from get_many(requests)
    except Exception as error:  # noqa: BLE001 - a tier may fail in any way
        return [error] * len(requests)
    return found


def _record(
    chain: Chain, at: int, requests: Sequence[Request], events: dict[int, Event], hits: dict[int, Hit], share: int,
    *, each: bool,
) -> Plan[None]:  # fmt: skip
    """Record what a tier had: together, unless it fills nearer tiers or somebody looks at each."""
    tier, _ = chain.tiers[at]
    alone = list(hits)
    if not each:
        alone = alone[-1:]
    for place in hits.keys() - set(alone):
        tell_found(chain, requests[place], hits[place].entry.facets, hits[place].entry.born)
    for place in alone:
        event = events[place]
        note_time(event, tier, share)
        note_hit(chain, requests[place], event, tier.name, hits[place])
        if at:
            yield from fill(chain, requests[place], hits[place], event, at)
        if len(alone) == len(hits):
            chain.recorder.lookup(event)
    if len(alone) < len(hits):
        told = [(requests[place].facets, requests[place].stage, hit.entry) for place, hit in hits.items()]
        chain.recorder.hits(events[alone[-1]], told, share)


def _load_group(load: LoadMany, group: list[int], places: list[int]) -> Any:
    return load([group[place] for place in places])


def _load_one(load: LoadMany, place: int) -> Any:
    """Load a single answer, as where it is loaded anew behind the caller."""
    loaded = load([place])
    return _await_one(loaded) if isawaitable(loaded) else _only(loaded)


async def _await_one(loaded: Any) -> Any:
    return _only(await loaded)


def _only(loaded: Any) -> Any:
    (answer,) = loaded
    return answer
