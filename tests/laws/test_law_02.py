"""Law 2: scope before similarity."""

from __future__ import annotations

import threading

import pytest
from instruments import GUARD, Compass, Crew, Origin, watch_flights

import semcache

pytestmark = pytest.mark.semantic


def test_texts_of_another_scope_are_not_compared(open_near):
    """Law 2: a text is compared with those that share all else; whatever is nearer elsewhere does not count."""
    cache = open_near({"ours": 10})

    @semcache.cached(cache, text="question", version="1")
    def function(question, prompt):
        return prompt

    function("theirs", "be brief")
    cache.flush()
    assert function("asked", "be long") == "be long"


def test_nearer_rows_of_another_scope_crowd_nothing_out(open_near):
    """Law 2: the search is within the scope: what it finds is not what is left of a search of everything."""
    cache = open_near({"ours": 10})

    @semcache.cached(cache, text="question", version="1")
    def function(question, prompt):
        return f"{prompt}: {question}"

    for number in range(40):
        function(f"theirs {number}", "be brief")
    function("ours", "be long")
    cache.flush()
    assert function("asked", "be long") == "be long: ours"
    assert semcache.last().similarity == pytest.approx(0.985, abs=0.001)


def test_near_match_without_a_tenant_is_not_served(open_near):
    """Law 2: near matches are served only where the user typed whose they are."""
    cache = open_near(tenant=None)
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    with pytest.warns(semcache.SemcacheWarning, match="tenant="):
        assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"
    assert semcache.last().reason == "no tenant"


@pytest.mark.parametrize("how", ["value", "argument", "callable", "context", "shared"])
def test_near_match_of_a_named_tenant_is_served(open_near, how):
    """Law 2: `tenant=` is a value, an argument's name or a callable, a context's, or SHARED."""
    tenant = {"value": "acme", "shared": semcache.SHARED}.get(how)
    cache = open_near(tenant=tenant)
    given = {"argument": "owner", "callable": lambda _, owner: owner}.get(how)

    @semcache.cached(cache, text="question", tenant=given, ignore="owner")
    def function(question, owner):
        return question

    with semcache.context(tenant="acme" if how == "context" else None):
        function("stored", "acme")
        cache.flush()
        assert function("asked", "acme") == "stored"


def test_near_matches_of_two_tenants_do_not_meet(open_near):
    """Law 2: the tenant is part of the scope."""
    cache = open_near(tenant=None)

    @semcache.cached(cache, text="question", tenant="owner", ignore="owner")
    def function(question, owner):
        return f"{owner}'s"

    function("stored", "acme")
    cache.flush()
    assert function("asked", "zenith") == "zenith's"
    assert function("again", "acme") == "acme's"
    assert cache.stats().hits == {"semantic": 1}


def test_empty_tenant_is_nobody(open_near):
    """Law 2: those who have no name do not share their answers."""
    cache = open_near(tenant=None)

    @semcache.cached(cache, text="question", tenant="owner", ignore="owner")
    def function(question, owner):
        return question

    function("stored", "")
    cache.flush()
    with pytest.warns(semcache.SemcacheWarning, match="tenant="):
        assert function("asked", "") == "asked"
    with pytest.raises(semcache.ConfigurationError), semcache.context(tenant=""):
        pass


@pytest.mark.parametrize("asks", [{"tenant": None}, {"mode": "exact"}, {"mode": "shadow"}])
def test_follower_that_takes_no_near_match_is_given_none(open_near, asks):
    """Law 2: callers of one key may share a flight, though not all of them said that they take near matches."""
    embedder = Compass()
    cache = open_near(embedder=embedder, tenant=None)
    stored, asked = (cache.request(text=text, tenant=semcache.SHARED) for text in ("stored", "asked"))
    cache.get_or_load(stored, lambda: "near")
    cache.flush()
    with semcache.context(mode=asks.get("mode")):
        picky = cache.request(text="asked", tenant=asks.get("tenant", semcache.SHARED))
    assert picky.key == asked.key
    flights = watch_flights(cache)
    embedder.entered.clear()
    embedder.gate = threading.Event()
    with Crew(2) as crew:
        leader = crew.submit(cache.get_or_load, asked, Origin("not loaded"))
        assert embedder.entered.wait(GUARD)
        follower = crew.submit(cache.get_or_load, picky, Origin("loaded"))
        flights.wait_for(2)
        embedder.gate.set()
        assert leader.result(GUARD) == "near"
        assert follower.result(GUARD) == "loaded"


def test_follower_is_told_that_its_leader_had_a_near_match(open_near):
    """Law 2: who shares a near match can see that it is one."""
    embedder = Compass()
    cache = open_near(embedder=embedder)
    stored, asked = cache.request(text="stored"), cache.request(text="asked")
    cache.get_or_load(stored, lambda: "near")
    cache.flush()
    flights = watch_flights(cache)
    embedder.entered.clear()
    embedder.gate = threading.Event()

    def look_up():
        return cache.get_or_load(asked, Origin("loaded")), semcache.last()

    with Crew(2) as crew:
        callers = [crew.submit(look_up) for _ in range(2)]
        flights.wait_for(2)
        embedder.gate.set()
        answers, events = zip(*(caller.result(GUARD) for caller in callers), strict=True)
    assert answers == ("near", "near")
    assert sorted(event.tier for event in events) == ["flight", "semantic"]
    assert {(event.similarity, event.neighbour) for event in events} == {(1.0, stored.key)}
