"""Near matches where several parts meet: those that are joined in flight, reported, stale, audited and told."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from time import time

import pytest
from instruments import GUARD, Compass, Crew, JoinedFlights, Origin

import semcache
from semcache.blocks import Block, words_of
from semcache.policy.label import Label, Source

pytestmark = pytest.mark.semantic

# The cosine of 10 degrees is 0.985, of 20 0.940.
DEGREES = {"asked": 0, "first": 2, "second": 10}
CALLER = ContextVar("CALLER", default="nobody")


def opened(cache):
    """Have labels of a good family open its near matches, from 0.91 on."""
    request = cache.request(text="asked")
    cache.policy.within(request)
    for number in range(400):
        at = b"%d" % number
        cache.policy.learn(Label(request.family, at, at, "a", "b", 0.93, 0.93, True, Source.AUDIT))
    return cache


def joined(cache, origin):
    """Ask for a text while the load of a near one is held; its answer and event."""
    held, flights = Origin("first's", hold=True), JoinedFlights()
    cache.chain.flights = flights
    with Crew() as crew:
        led = crew.submit(cache.get_or_load, cache.request(text="first"), held)
        assert held.entered.wait(GUARD)

        def ask():
            return cache.get_or_load(cache.request(text="asked"), origin), semcache.last()

        asking = crew.submit(ask)
        flights.wait_for(1)
        held.go.set()
        led.result(GUARD)
        answer = asking.result(GUARD)
    assert cache.flush(GUARD)
    assert len(cache.chain.nearby) == 0
    return answer


def test_near_match_that_is_joined_is_audited_as_all_others(open_near):
    """Who is drawn loads for himself when the near load has landed, and the label is one of the sample."""
    cache = opened(open_near(DEGREES, policy=semcache.ErrorBudget(0.05), audit=1.0))
    answer, event = joined(cache, Origin("asked's"))
    assert (answer, event.kind, event.reason) == ("asked's", "miss", "audit")
    family = cache.policy.status().families[0]
    assert (family.labels, family.wrong.count) == (401, 1)


def test_near_match_that_is_joined_is_served_where_its_audit_fails(open_near):
    """Nobody is given an error in the place of an answer that was at hand."""
    cache = opened(open_near(DEGREES, policy=semcache.ErrorBudget(0.05), audit=1.0))
    answer, event = joined(cache, Origin(OSError("down")))
    assert (answer, event.kind, event.tier, event.faults[0][0]) == ("first's", "hit", "flight", "origin")


def test_near_match_that_is_joined_is_in_the_ledger_with_its_text(open_near):
    """Who looks for others who got an answer sees of which text it was."""
    cache = open_near(DEGREES)
    assert joined(cache, Origin("asked's"))[0] == "first's"
    (row,) = cache.blast(cache.request(text="first").key)
    assert (row.text, row.neighbour) == ("asked", "first")


def test_what_was_reported_is_no_match_to_learn_of(open_near):
    """A label is of what would be served: an entry that was reported for several texts is not."""
    cache = open_near(DEGREES, policy=semcache.ErrorBudget(0.05, guards=None), audit=1.0)
    for text in ("first", "second"):
        cache.get_or_load(cache.request(text=text), lambda text=text: text, when=lambda _: True)
        assert cache.flush(GUARD)
    before = cache.policy.status().others.labels
    stored = cache.request(text="first").key
    cache.blocks.take([Block(stored, words_of(text), 0.9, time()) for text in ("one", "other")])
    cache.get_or_load(cache.request(text="asked"), lambda: "second")
    assert cache.flush(GUARD)
    others = cache.policy.status().others
    assert others.labels == before + 1
    assert others.wrong.count == 1  # of "first" and "second", while nothing was reported; "asked" is as "second" is


def test_policy_that_fails_at_what_it_serves_fails_nobody(open_near):
    """Law 10: the caller is given the origin's answer."""

    class Failing:
        @property
        def serves(self):
            raise RuntimeError("mine")

        def decide(self, text, neighbour):
            raise RuntimeError("mine too")

    cache = open_near(DEGREES, policy=Failing())
    assert cache.get_or_load(cache.request(text="first"), lambda: "first's") == "first's"
    assert cache.get_or_load(cache.request(text="asked"), lambda: "asked's") == "asked's"


def test_judge_knows_nothing_of_its_caller(open_near):
    """What a judge calls is none of the caller's work: neither his tenant nor his trace."""
    seen, judged = [], asyncio.Event()

    async def judge(cached, fresh):
        await asyncio.sleep(0)
        seen.append(CALLER.get())
        judged.set()
        return True

    cache = open_near(DEGREES, policy=semcache.Shadow(judge=judge), audit=1.0)

    async def ask():
        CALLER.set("acme")
        for text in ("first", "asked"):
            await cache.aget_or_load(cache.request(text=text), lambda text=text: text)
            await asyncio.to_thread(cache.semantic.flush, GUARD)
        await judged.wait()

    asyncio.run(asyncio.wait_for(ask(), GUARD))
    assert seen == ["nobody"]


def test_lookups_of_one_call_that_are_late_are_one_failure(open_near):
    """Each is loaded and says why; the near tier is left alone after some calls that are late, not after one."""
    gate = threading.Event()
    gate.set()
    cache = open_near(embedder=Compass(gate=gate), timeouts=semcache.Timeouts(semantic="1ms"))
    cache.get_or_load(cache.request(text="first"), lambda: "first's")
    assert cache.flush(GUARD)
    gate.clear()
    (breaker,) = (breaker for tier, breaker in cache.chain.tiers if tier.name == "semantic")
    for call in range(5):
        assert not breaker.is_open
        requests = [cache.request(text=f"text {number} of {call}") for number in range(20)]
        assert cache.get_or_load_many(requests, lambda places: places) == list(range(20))
    assert breaker.is_open
    assert cache.stats().faults["semantic: late"] == 100
    gate.set()
