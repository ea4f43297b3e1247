"""The lookup as a whole: chains in any order, everything against a dictionary, and many callers at once."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
import threading
import warnings
from contextlib import closing
from math import inf
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from instruments import GUARD, Compass, Crew, Origin, watch_flights

import semcache
from semcache.testing import ManualClock

# A chain is any ordered list of tiers

ORDERS = [
    ["memory"], ["disk"], ["disk", "memory"], ["memory", "disk"], [],
    pytest.param(["memory", "semantic"], marks=pytest.mark.semantic),
    pytest.param(["semantic", "memory"], marks=pytest.mark.semantic),
    pytest.param(["semantic", "disk"], marks=pytest.mark.semantic),
    pytest.param(["disk", "semantic", "memory"], marks=pytest.mark.semantic),
]  # fmt: skip


@pytest.fixture
def open_chain(open_cache, tmp_path):
    """Make caches whose tiers stand in any order."""

    def open_one(names, **more):
        parts = {
            "memory": "64MB" if "memory" in names else 0,
            "disk": tmp_path / "cache.db" if "disk" in names else None,
        }
        if "semantic" in names:
            near = {"embedder": Compass(), "policy": semcache.Threshold(0.9, guards=None), "tenant": semcache.SHARED}
            parts |= near
        cache = open_cache(**parts | more)
        cache.warm()
        by_name = {tier.name: (tier, breaker) for tier, breaker in cache.chain.tiers}
        cache.chain.tiers = [by_name[name] for name in names]
        return cache

    return open_one


@pytest.mark.parametrize("names", ORDERS, ids=">".join)
def test_chain_in_any_order_answers_right(open_chain, ask, names):
    """What is asked twice is loaded once where there is a tier, and every answer is its own question's."""
    cache = open_chain(names)
    loads = []

    def load(name):
        loads.append(name)
        return {"answer to": name}

    for _ in range(2):
        for name in ("a", "b", "c"):
            assert ask(cache, cache.request(name), lambda name=name: load(name)) == {"answer to": name}
        cache.flush()
    assert loads == ["a", "b", "c"] * (1 if names else 2)
    if names:
        cache.invalidate(key=cache.request("b").key)
        assert ask(cache, cache.request("b"), lambda: "new") == "new"


@pytest.mark.parametrize(
    ("names", "remaining"),
    [(["memory", "disk"], 100.0), (["disk", "memory"], 50.0)],
    ids=["memory>disk", "disk>memory"],
)
def test_chain_in_any_order_fills_what_is_nearer(open_chain, clock, ask, names, remaining):
    """Law 5: an exact hit fills the tier before it, with the smaller of that one's ttl and what remains."""
    cache = open_chain(names, ttl=semcache.TTL(memory=100, disk=1000, jitter=0))
    request = cache.request("a")
    ask(cache, request, Origin())
    cache.flush()
    clock.advance(50)
    drop(cache, names[0], request.key)
    with semcache.trace() as seen:
        for _ in range(2):
            ask(cache, request, Origin("not loaded"))
            cache.flush()
    assert [event.tier for event in seen.lookups] == names[::-1]
    assert cache.explain(request).remaining == pytest.approx(remaining)


def drop(cache, name, key):
    """Take an entry out of one tier, as eviction does."""
    if name == "memory":
        del cache.memory._entries[key]
    else:
        with closing(sqlite3.connect(cache.disk._store._path)) as file, file:
            file.execute("DELETE FROM entries WHERE key = ?", (key,))


NEAR_ORDERS = [order for order in ORDERS if not isinstance(order, list)]


@pytest.mark.parametrize("names", NEAR_ORDERS, ids=">".join)
def test_chain_in_any_order_serves_near_matches_and_keeps_them_out_of_exact_tiers(open_chain, ask, names):
    """Law 3: wherever the semantic tier stands, what it finds is an answer to another question."""
    cache = open_chain(names)
    stored, asked = cache.request(text="stored"), cache.request(text="asked")
    ask(cache, stored, lambda: "stored")
    cache.flush()
    assert ask(cache, asked, lambda: "loaded") == "stored"
    cache.flush()
    cache.invalidate(key=stored.key)
    assert ask(cache, asked, lambda: "loaded") == "loaded"


@pytest.mark.semantic
@pytest.mark.parametrize("mode", ["live", "shadow", "exact", "refresh", "off"])
def test_mode_says_what_is_read_and_kept(open_near, ask, mode):
    """Shadow serves nothing near, exact does not even ask; refresh reads nothing, off keeps nothing either."""
    embedder = Compass()
    cache = open_near(embedder=embedder)
    ask(cache, cache.request(text="stored"), lambda: "stored")
    cache.flush()
    embedder.asked.clear()
    with semcache.context(mode=mode), semcache.trace() as seen:
        same, near = cache.request(text="stored"), cache.request(text="near")
        answers = [ask(cache, same, lambda: "new"), ask(cache, near, lambda: "loaded")]
    cache.flush()
    assert answers == {
        "live": ["stored", "stored"], "shadow": ["stored", "loaded"], "exact": ["stored", "loaded"],
        "refresh": ["new", "loaded"], "off": ["new", "loaded"],
    }[mode]  # fmt: skip
    assert {event.kind for event in seen.lookups} == {
        "live": {"hit"}, "shadow": {"hit", "miss"}, "exact": {"hit", "miss"}, "refresh": {"miss"}, "off": {"bypass"},
    }[mode]  # fmt: skip
    assert seen.lookups[1].reason == {"shadow": "mode: shadow", "off": "mode: off"}.get(mode)
    assert embedder.asked == {"live": ["near"], "shadow": ["near"], "refresh": ["near"]}.get(mode, [])
    kept = ask(cache, cache.request(text="near"), lambda: "not kept")
    assert kept == {"live": "stored", "off": "stored"}.get(mode, "loaded")


def test_refreshing_callers_share_one_load(open_cache):
    """Law 6: refreshing callers share one load; they do not share a plain caller's, which may be a hit."""
    cache = open_cache()
    flights, origin = watch_flights(cache), Origin("new", hold=True)
    cache.get_or_load(cache.request("a"), lambda: "old")
    flights.wait_for(1)
    with semcache.context(mode="refresh"):
        refresh = cache.request("a")
    with Crew() as crew:
        refreshing = [crew.submit(cache.get_or_load, refresh, origin) for _ in range(3)]
        flights.wait_for(3)
        assert cache.get_or_load(cache.request("a"), lambda: "not loaded") == "old"
        origin.go.set()
        assert [one.result(GUARD) for one in refreshing] == ["new"] * 3
    assert origin.calls == 1
    assert cache.get_or_load(cache.request("a"), lambda: "not loaded") == "new"


# Everything, against a dictionary

TEXTS = {f"{angle} degrees": angle for angle in range(0, 90, 15)}
MEMORY_TTL, DISK_TTL, SEMANTIC_TTL = 300.5, 86400.5, 3600.5


class Model:
    """What should be answered: values by key, rows of the index by key, each with the end of its life."""

    def __init__(self):
        self.now = 0.0
        self.values = {}
        self.rows = {}

    def exact(self, key):
        """Return the value of a key while it lives."""
        value, ends = self.values.get(key, (None, -inf))
        return value if self.now < ends else None

    def near(self, key):
        """Return the values that a near match may have: those of the nearest rows within 25 degrees."""
        text, scope = key[0], key[1:]
        found = [
            (abs(TEXTS[text] - TEXTS[other[0]]), self.exact(other))
            for other, (ends, _) in self.rows.items()
            if other[1:] == scope and self.now < ends and self.exact(other) is not None
        ]
        nearest = min((angle for angle, _ in found), default=inf)
        return [value for angle, value in found if angle == nearest <= 25]

    def load(self, key, value, own_ttl, *, is_indexed):
        life = own_ttl or DISK_TTL
        self.values[key] = value, self.now + life
        if is_indexed:
            self.rows[key] = self.now + min(life, SEMANTIC_TTL), True
        elif key in self.rows:  # the store forgets the row with the entry that was overwritten
            self.rows[key] = self.rows[key][0], False

    def restart(self):
        """Keep the rows that the store has: those of entries that it has."""
        self.rows = {key: row for key, row in self.rows.items() if row[1] and self.exact(key) is not None}

    def invalidate(self, is_meant):
        for table in (self.values, self.rows):
            for key in [key for key in table if is_meant(key)]:
                del table[key]


class WholeCache(RuleBasedStateMachine):
    """A cache of three tiers answers as a dictionary with lives does: nothing wrong, expired or invalidated."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock, self.model = ManualClock(), Model()
        self.loads = itertools.count()
        self.colour = itertools.cycle(["sync", "async"])

    @initialize()
    def open(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.cache = semcache.Cache(
                "tests",
                disk=Path(self.folder.name, "cache.db"),
                embedder=Compass(TEXTS),
                policy=semcache.Threshold(0.9, guards=None),
                clock=self.clock,
                ttl=semcache.TTL(memory=MEMORY_TTL, disk=DISK_TTL, semantic=SEMANTIC_TTL, jitter=0),
                timeouts=semcache.Timeouts(disk="10s", semantic="30s"),
            )
        self.cache.warm()

    def teardown(self):
        if hasattr(self, "cache"):
            self.cache.close()
        self.folder.cleanup()

    @rule(
        text=st.sampled_from(list(TEXTS)),
        tenant=st.sampled_from(["acme", "zenith"]),
        function=st.sampled_from("fg"),
        own_ttl=st.sampled_from([None, None, None, 20.25, 100_000.25]),
        mode=st.sampled_from(["live", "live", "live", "shadow", "exact", "refresh", "off"]),
    )
    def ask(self, text, tenant, function, own_ttl, mode):
        with semcache.context(mode=mode):
            request = self.cache.request(text=text, tenant=tenant, function=function, ttl=own_ttl)
        fresh = f"{text} {tenant} {function} {next(self.loads)}"
        if next(self.colour) == "sync":
            answer = self.cache.get_or_load(request, lambda: fresh)
        else:
            answer = asyncio.run(self.cache.aget_or_load(request, lambda: fresh))
        key = text, tenant, function
        exact, near = self.model.exact(key), self.model.near(key)
        if mode in ("refresh", "off"):
            assert answer == fresh
        elif exact is not None:
            assert answer == exact
        elif mode == "live" and near:
            assert answer in near
        else:
            assert answer == fresh
        if answer == fresh and mode != "off":
            self.model.load(key, fresh, own_ttl, is_indexed=mode != "exact")

    @rule(text=st.sampled_from(list(TEXTS)), tenant=st.sampled_from(["acme", "zenith"]), function=st.sampled_from("fg"))
    def invalidate_key(self, text, tenant, function):
        self.cache.invalidate(key=self.cache.request(text=text, tenant=tenant, function=function).key)
        self.model.invalidate(lambda key: key == (text, tenant, function))

    @rule(function=st.sampled_from("fg"))
    def invalidate_function(self, function):
        self.cache.invalidate(function=function)
        self.model.invalidate(lambda key: key[2] == function)

    @rule(seconds=st.sampled_from([1, 19, 250, 3000, 40_000]))
    def let_time_pass(self, seconds):
        self.clock.advance(seconds)
        self.model.now += seconds

    @rule()
    def restart(self):
        self.cache.close()
        self.open()
        self.model.restart()

    @rule()
    def flush(self):
        assert self.cache.flush(GUARD)

    @rule()
    def evict_from_memory(self):
        """What pressure takes from memory, the store still has."""
        self.cache.memory._entries.clear()

    @invariant()
    def nothing_is_amiss(self):
        if hasattr(self, "cache"):
            assert self.cache.stats().faults == {}
            assert len(self.cache.chain.flights) == 0


@pytest.mark.semantic
class TestWholeCache(WholeCache.TestCase):
    settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


# Many callers at once


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "memory and disk"])
def test_callers_of_all_colours_share_loads_and_see_no_stale_answer(  # noqa: C901 - the parts are read together
    open_cache, tmp_path, disk
):
    """Laws 6 and 8: threads and tasks at a few keys, invalidated all the while.

    Nobody who asks after an invalidation has returned is given what was loaded before it was called, and between two
    invalidations a key is loaded once, however many ask.
    """
    cache = open_cache(disk=tmp_path / "cache.db" if disk else None)
    keys, rounds, callers = range(5), 60, 8
    requests = [cache.request(key) for key in keys]
    world, acknowledged = [0] * len(keys), [0] * len(keys)
    loaded, lock, wrong = [], threading.Lock(), []

    def load(key, floor):
        """Answer with the world as it is, and note whose call loaded it."""
        version = world[key]
        with lock:
            loaded.append((key, version, floor))
        return version

    def check(key, floor, answer):
        if answer < floor:
            wrong.append((key, floor, answer))

    def call(seed):
        draw = Random(seed)
        for _ in range(rounds):
            key = draw.choice(keys)
            floor = acknowledged[key]
            check(key, floor, cache.get_or_load(requests[key], lambda key=key, floor=floor: load(key, floor)))

    async def acall(seed):
        draw = Random(seed)

        async def slow_load(key, floor):
            await asyncio.sleep(0)
            return load(key, floor)

        for _ in range(rounds):
            key = draw.choice(keys)
            floor = acknowledged[key]
            answer = await cache.aget_or_load(requests[key], lambda key=key, floor=floor: slow_load(key, floor))
            check(key, floor, answer)

    async def on_a_loop(seed):
        await asyncio.gather(*(acall(seed + number) for number in range(4)))

    def invalidate():
        draw = Random(0)
        for _ in range(rounds):
            key = draw.choice(keys)
            world[key] += 1
            cache.invalidate(key=requests[key].key)
            acknowledged[key] = world[key]

    with Crew() as crew:
        jobs = [crew.submit(call, seed) for seed in range(callers)]
        jobs += [crew.submit(asyncio.run, on_a_loop(100 * seed)) for seed in (1, 2)]
        jobs.append(crew.submit(invalidate))
        for job in jobs:
            job.result(2 * GUARD)
    assert wrong == []
    # Of the loads by callers who came after the invalidation that began a life, there is one in each life.
    in_their_lives = [(key, version) for key, version, floor in loaded if version == floor]
    assert len(in_their_lives) == len(set(in_their_lives))
    assert cache.stats().faults == {}
