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
from semcache.events import Event
from semcache.lookup import fill, lookup, note_failure, note_hit, note_time
from semcache.model import Hit, Request
from semcache.plan import Outcome, Plan
from semcache.tier import Breaker, Tier
from semcache.together import together

LoadMany = Callable[[list[int]], Any]


def lookup_many(
    chain: Chain, requests: Sequence[Request], load: LoadMany, keeps: Callable[[Any], bool] | None,
    event: Callable[[Request], Event], *, blocks: bool, most: int | None = None,
) -> Plan[list[Outcome[Any]]]:  # fmt: skip
    """Answer requests, in their order; `load` is given the places of those that are missing, at most so many at once.

    What one load brought is kept before the next is begun.
    """
    first: dict[tuple[bytes, str], int] = {}
    for place, request in enumerate(requests):
        first.setdefault((request.key, request.mode), place)
    events = {place: event(requests[place]) for place in first.values()}
    outcomes: dict[int, Outcome[Any]] = {}
    for at, (tier, breaker) in enumerate(chain.tiers):
        waiting = [
            place for place in events if place not in outcomes and requests[place].mode not in ("off", "refresh")
        ]
        if not tier.exact or not waiting:
            break
        if not breaker.is_open:
            yield from _peek(
                chain, at, tier, breaker, {place: (requests[place], events[place]) for place in waiting}, outcomes
            )
    rest = [place for place in events if place not in outcomes]
    free = [place for place in rest if not chain.flights.flies(requests[place].key)]
    busy = [place for place in rest if place not in set(free)]
    for group in (*_parted(free, most), *_parted(busy, most)):
        plans = [
            lookup(chain, requests[place], Origin(partial(_load_one, load, place), keeps), events[place], blocks=blocks)
            for place in group
        ]
        done = yield from together(plans, partial(_load_group, load, group))
        for place, outcome in zip(group, done, strict=True):
            outcomes[place] = outcome.unwrap()
    return [outcomes[first[request.key, request.mode]] for request in requests]


def _parted(places: list[int], most: int | None) -> list[list[int]]:
    size = most or max(len(places), 1)
    return [places[at : at + size] for at in range(0, len(places), size)]


def _peek(
    chain: Chain, at: int, tier: Tier, breaker: Breaker, asked: dict[int, tuple[Request, Event]],
    outcomes: dict[int, Outcome[Any]],
) -> Plan[None]:  # fmt: skip
    """Ask one exact tier for all at once; what it has fresh is answered and recorded."""
    began = perf_counter_ns()
    found = yield from together([tier.get(request) for request, _ in asked.values()])
    share = (perf_counter_ns() - began) // len(asked)
    has_failed = False
    for (place, (request, event)), outcome in zip(asked.items(), found, strict=True):
        note_time(event, tier, share)
        try:
            hit = outcome.unwrap()
            if not isinstance(hit, Hit) or hit.entry.life <= 0:
                continue
            value = chain.codec.decode(hit.entry.value)
            if request.suits is not None and not request.suits(value):
                continue
        except Exception as error:  # noqa: BLE001 - a tier may fail in any way
            if has_failed:  # one trip that failed is one failure
                event.fault(tier.name, error)
            else:
                note_failure(event, tier, breaker, error)
            has_failed = True
            continue
        note_hit(event, tier.name, hit)
        if at:
            yield from fill(chain, request, hit, event, at)
        chain.recorder.lookup(event)
        outcomes[place] = Outcome(value)
    if not has_failed:
        breaker.succeeded()


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
