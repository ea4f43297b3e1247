"""Lives: sliding, limited, stale; over every exact tier that keeps an answer. Law 5 holds over all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruments import GUARD, Crew, Origin

import semcache
from semcache.model import Entry, Lives
from semcache.plan import run

TTL = semcache.TTL(memory=100, disk=1000, redis=1000, jitter=0)
PATIENT = semcache.Timeouts(disk="10s", redis="10s")


@pytest.fixture(params=["memory", "disk", "redis"])
def store(request, tmp_path):
    """Settings of a cache whose exact store is this one."""
    if request.param == "redis":
        return {"redis": request.getfixturevalue("redis_url")}
    return {"disk": tmp_path / "cache.db"} if request.param == "disk" else {}


@pytest.fixture
def cache(open_cache, store):
    """A cache over that store, without the memory tier where there is another."""
    return open_cache(**store, ttl=TTL, timeouts=PATIENT, **({"memory": 0} if store else {}))


def get(cache, origin, **lives):
    """Look up, wait until what was loaded is stored, and return the answer."""
    answer = cache.get_or_load(cache.request("a", **lives), origin)
    assert cache.flush(GUARD)
    return answer


def test_stale_answer_is_served_while_it_is_loaded_anew(cache, clock):
    """Past its life an answer is served for `stale_while_revalidate` more, and is loaded behind the caller."""
    lives = {"ttl": 50, "stale_while_revalidate": 20}
    assert get(cache, lambda: "old", **lives) == "old"
    clock.advance(60)
    assert get(cache, lambda: "new", **lives) == "old"
    assert semcache.last().is_stale
    assert get(cache, lambda: "newer", **lives) == "new"
    assert not semcache.last().is_stale
    assert (cache.stats().stale, cache.stats().refreshes) == (1, 1)


def test_answer_past_its_grace_is_loaded(cache, clock):
    """After ttl and `stale_while_revalidate` there is nothing left to serve."""
    lives = {"ttl": 50, "stale_while_revalidate": 20}
    get(cache, lambda: "old", **lives)
    clock.advance(71)
    assert get(cache, lambda: "new", **lives) == "new"


def test_grace_is_the_callers_to_ask_for(cache, clock):
    """Who asks for no stale answers gets none, though the entry was kept for others."""
    get(cache, lambda: "old", ttl=50, stale_while_revalidate=20)
    clock.advance(60)
    assert get(cache, lambda: "new", ttl=50) == "new"


def test_refresh_is_one_for_all_who_are_served_stale(cache, clock):
    """One load is in flight, however many threads are served the stale answer meanwhile."""
    lives = {"ttl": 50, "stale_while_revalidate": 20}
    get(cache, lambda: "old", **lives)
    clock.advance(60)
    origin = Origin("new", hold=True)
    with Crew(4) as crew:
        request = cache.request("a", **lives)
        served = [crew.submit(cache.get_or_load, request, origin) for _ in range(8)]
        assert [one.result(GUARD) for one in served] == ["old"] * 8
        assert origin.entered.wait(GUARD)
        origin.go.set()
    assert cache.flush(GUARD)
    assert origin.calls == 1


def test_refresh_that_comes_late_loads_nothing(cache, clock):
    """Whoever was served stale, and comes to load when another has loaded already, has nothing to do."""
    lives = {"ttl": 50, "stale_while_revalidate": 20}
    get(cache, lambda: "old", **lives)
    clock.advance(60)
    late, start = [], cache.chain.crew.start_thread
    cache.chain.crew.start_thread = late.append
    for word in ("new", "newer"):
        assert cache.get_or_load(cache.request("a", **lives), lambda word=word: word) == "old"
    cache.chain.crew.start_thread = start
    for plan in late:
        run(plan())
    assert len(late) == 2
    assert get(cache, lambda: "not loaded", **lives) == "new"


def test_failed_refresh_leaves_the_stale_answer(cache, clock):
    """A refresh that fails costs nobody anything: the next caller is served stale, and another is begun."""
    lives = {"ttl": 50, "stale_while_revalidate": 20}
    get(cache, lambda: "old", **lives)
    clock.advance(60)
    assert get(cache, Origin(ValueError("down")), **lives) == "old"
    assert get(cache, lambda: "new", **lives) == "old"
    assert get(cache, lambda: "newer", **lives) == "new"


def test_stale_answer_is_served_where_its_load_fails(cache, clock):
    """With `stale_if_error` the origin's error is answered by what it said last; the event names the error."""
    lives = {"ttl": 50, "stale_if_error": 100}
    get(cache, lambda: "old", **lives)
    clock.advance(60)
    assert get(cache, Origin(ValueError("down")), **lives) == "old"
    assert any(fault[0] == "origin" for fault in semcache.last().faults)
    assert get(cache, lambda: "new", **lives) == "new"


def test_error_past_the_grace_is_the_callers(cache, clock):
    """After `stale_if_error` the origin's error goes to the caller, unchanged."""
    lives = {"ttl": 50, "stale_if_error": 100}
    get(cache, lambda: "old", **lives)
    clock.advance(151)
    error = ValueError("down")
    with pytest.raises(ValueError, match="down") as raised:
        get(cache, Origin(error), **lives)
    assert raised.value is error


def test_invalidated_answer_is_not_served_stale(cache, clock):
    """Law 8 goes before any grace."""
    lives = {"ttl": 50, "stale_while_revalidate": 20, "stale_if_error": 100}
    get(cache, lambda: "old", **lives)
    clock.advance(60)
    cache.invalidate(key=cache.request("a").key)
    assert get(cache, lambda: "new", **lives) == "new"


def test_max_age_ends_a_life(cache, clock):
    """Law 5: at `max_age` an answer is gone, whatever its ttl and grace."""
    lives = {"ttl": 500, "max_age": 60, "stale_if_error": 500}
    get(cache, lambda: "old", **lives)
    clock.advance(59)
    assert get(cache, lambda: "new", **lives) == "old"
    clock.advance(2)
    assert get(cache, lambda: "new", **lives) == "new"


def test_hits_of_a_sliding_answer_give_it_its_life_anew(open_cache, clock, tmp_path):
    """Law 5: a hit extends a life where that was asked for, and never past `max_age`."""
    for settings_ in ({}, {"disk": tmp_path / "cache.db", "memory": 0}):
        cache = open_cache(**settings_, ttl=TTL, timeouts=PATIENT)
        lives = {"ttl": 40, "sliding": True, "max_age": 130}
        get(cache, lambda: "old", **lives)
        for _ in range(4):
            clock.advance(30)
            assert get(cache, lambda: "new", **lives) == "old"
        clock.advance(30)
        assert get(cache, lambda: "new", **lives) == "new"
        clock.advance(41)
        assert get(cache, lambda: "newer", **lives) == "newer"


def test_hit_of_a_sliding_answer_moves_its_end_in_redis(open_cache, redis_server, redis_url):
    """In Redis the key's ttl is a sliding entry's end: a hit moves it on, and only a hit."""
    cache = open_cache(redis=redis_url, memory=0, timeouts=PATIENT)
    lives = {"ttl": 500, "sliding": True}
    get(cache, lambda: "old", **lives)
    name = b"semcache:tests:v:" + cache.request("a").key.hex().encode()
    redis_server.cli("PEXPIRE", name, 100_000)
    assert get(cache, lambda: "new", **lives) == "old"
    assert redis_server.cli("PTTL", name) > 400_000


def test_ttl_may_be_told_by_the_answer(cache, clock):
    """`ttl=callable`: each answer says how long it lives, in any form a ttl has; None leaves it to the tier."""
    lives = {"short": "10s", "long": 500, "plain": None}
    for answer in lives:
        cache.get_or_load(cache.request(answer, ttl=lives.get), lambda answer=answer: answer)
    assert cache.flush(GUARD)

    def alive():
        keep_nothing = {"when": lambda _: False}
        return {a for a in lives if cache.get_or_load(cache.request(a), lambda: "new", **keep_nothing) == a}

    clock.advance(9)
    assert alive() == {"short", "long", "plain"}
    clock.advance(2)
    assert alive() == {"long", "plain"}
    clock.advance(490)
    assert "long" not in alive()


@pytest.mark.parametrize(
    ("ttl", "told"),
    [(lambda _: 0, "not kept: ttl"), (lambda _: 1 / 0, "ttl: ZeroDivisionError"), (lambda _: "soon", "ttl:")],
    ids=["nothing", "raises", "nonsense"],
)
def test_answer_whose_ttl_is_nothing_or_cannot_be_told_is_not_kept(cache, ttl, told):
    """The caller has his answer; 0 says not to keep it, and a callable that fails is a fault, for nobody can tell."""
    request = cache.request("a", ttl=ttl)
    with semcache.trace() as seen:
        assert cache.get_or_load(request, lambda: "old") == "old"
    assert cache.flush(GUARD)
    faults = [f"{tier}: {reason}" for tier, reason, _ in seen.lookups[0].faults]
    assert any(one.startswith(told) for one in [*faults, seen.lookups[0].reason or ""])
    assert cache.get_or_load(request, lambda: "new") == "new"


def test_ttl_told_by_the_answer_slides(open_cache, tmp_path, clock):
    """A sliding answer slides by the ttl that it told."""
    cache = open_cache(disk=tmp_path / "cache.db", ttl=TTL, memory=0, timeouts=PATIENT)
    lives = {"ttl": lambda _: 50, "sliding": True}
    assert get(cache, lambda: "old", **lives) == "old"
    for _ in range(3):
        clock.advance(40)
        assert get(cache, lambda: "new", **lives) == "old"
    clock.advance(51)
    assert get(cache, lambda: "new", **lives) == "new"


def test_ttl_of_the_context_wins_over_what_the_answer_tells(cache, clock):
    """Who sets a ttl around a call means it."""
    with semcache.context(ttl=10):
        assert get(cache, lambda: "old", ttl=lambda _: 500) == "old"
    clock.advance(11)
    assert get(cache, lambda: "new") == "new"


def test_ttl_of_a_stream_is_told_by_its_items(open_cache, clock):
    """A generator's ttl callable is given the list of its items, as `when` is."""
    cache = open_cache(ttl=TTL)
    seen = []

    @semcache.cached(cache, ttl=lambda items: seen.append(items) or 10)
    def numbers():
        yield from [1, 2]

    assert list(numbers()) == [1, 2]
    assert seen == [[1, 2]]
    clock.advance(11)
    assert list(numbers()) == [1, 2]
    assert len(seen) == 2


def test_lives_that_contradict_each_other_are_refused(cache):
    """What can never be meant is an error where it is said."""
    with pytest.raises(semcache.ConfigurationError, match="sliding=True wants a ttl"):
        cache.request("a", sliding=True)
    with pytest.raises(semcache.ConfigurationError, match="not both"):
        cache.request("a", ttl=5, sliding=True, stale_if_error=5)

    def items():
        yield 1

    with pytest.raises(semcache.ConfigurationError, match="generator"):
        semcache.cached(cache, ttl=5, stale_while_revalidate=5)(items)


fresh = count()
lives = st.fixed_dictionaries({}, optional={"ttl": st.integers(1, 400), "max_age": st.integers(1, 400)})
steps = st.lists(st.tuples(st.integers(1, 120), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=lives, steps=steps, tiers=st.tuples(st.integers(1, 300), st.integers(1, 400)))
def test_no_life_is_lengthened_by_moving(open_cache, clock, store, lives, steps, tiers):
    """Law 5: however an answer moves between memory and its store, it is never served past what it was given there."""
    memory, kept = tiers
    ttl = semcache.TTL(memory=memory, disk=kept, redis=kept, semantic=kept, jitter=0)
    cache = open_cache(**store, ttl=ttl, timeouts=PATIENT)
    longest = lives.get("ttl", max(memory, kept) if store else memory)
    longest = min(longest, lives.get("max_age", longest))
    born, serial, name = None, 0, next(fresh)

    def load():
        nonlocal born, serial
        born, serial = clock.monotonic(), serial + 1
        return serial

    for advance, forgets in steps:
        answer = cache.get_or_load(cache.request(name, **lives), load)
        assert cache.flush(GUARD)
        assert answer == serial
        assert clock.monotonic() - born < longest
        clock.advance(advance)
        if forgets and store:
            cache.memory.clear()
    cache.close()


def test_who_is_cut_off_serves_nothing_stale(open_cache, clock):
    """While nobody can tell of invalidations memory gives no grace, neither to what it has nor to what comes."""
    memory = open_cache(ttl=TTL).memory
    asked = semcache.Request(b"before", lives=Lives(ttl=50, stale_if_error=1000))
    after = replace(asked, key=b"after")
    entry = Entry(b"\x01\xa1a", life=50, own_ttl=True, grace=1000)
    run(memory.put(asked, entry, None))
    memory.lose(5)
    run(memory.put(after, entry, None))
    assert isinstance(run(memory.get(asked)), semcache.Hit)
    clock.advance(6)
    assert isinstance(run(memory.get(asked)), semcache.Miss)
    assert isinstance(run(memory.get(after)), semcache.Miss)
    memory.find()
    run(memory.put(after, entry, None))
    clock.advance(51)
    assert run(memory.get(after)).entry.life < 0
