"""Many requests as one call: each is answered as alone, in one trip, and what is missing is loaded at once."""

from __future__ import annotations

import asyncio
import threading
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruments import GUARD, Crew, Origin, watch_flights

import semcache

NAMESPACES = count()
STORES = ["memory", "disk", "redis", "memcached"]


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Settings of a cache whose exact store is this one."""
    if request.param in ("redis", "memcached"):
        return {request.param: request.getfixturevalue(f"{request.param}_url")}
    return {"disk": tmp_path / "cache.db"} if request.param == "disk" else {}


@pytest.fixture(params=["sync", "async"])
def ask_many(request):
    """Look up many in one colour, then the other."""
    if request.param == "sync":
        return lambda cache, requests, load, **more: cache.get_or_load_many(requests, load, **more)
    return lambda cache, requests, load, **more: asyncio.run(cache.aget_or_load_many(requests, load, **more))


class Batch:
    """A function that loads answers for places, and keeps what it was asked."""

    def __init__(self, word="answer"):
        self.word = word
        self.asked = []

    def __call__(self, places):
        self.asked.append(list(places))
        return [f"{self.word} {place}" for place in places]


def test_what_is_missing_is_loaded_in_one_call(open_cache, store, ask_many):
    """The places of all that are missing, in order, once; answers come back in the order of the requests."""
    cache = open_cache(**store)
    requests = [cache.request("q", number) for number in range(10)]
    cache.get_or_load(requests[3], lambda: "stood")
    assert cache.flush(GUARD)
    load = Batch()
    expected = [f"answer {place}" if place != 3 else "stood" for place in range(10)]
    assert ask_many(cache, requests, load) == expected
    assert load.asked == [[0, 1, 2, 4, 5, 6, 7, 8, 9]]
    assert cache.flush(GUARD)
    if cache.memory is not None:
        cache.memory.clear()
    again = Batch("new")
    stays = expected if store else [again.word + f" {place}" for place in range(10)]
    assert ask_many(cache, requests, again) == stays
    stats = cache.stats()
    assert sum(stats.hits.values()) + stats.misses == 21


def test_equal_requests_are_one(open_cache, ask_many):
    """The same question twice in one call is loaded once, and both have its answer."""
    cache = open_cache()
    requests = [cache.request(name) for name in "abab"]
    load = Batch()
    assert ask_many(cache, requests, load) == ["answer 0", "answer 1", "answer 0", "answer 1"]
    assert load.asked == [[0, 1]]


def test_none_and_nothing(open_cache, ask_many):
    """No request is no load; None is an answer."""
    cache = open_cache()
    assert ask_many(cache, [], Batch()) == []
    assert ask_many(cache, [cache.request("a")], lambda _: [None]) == [None]
    assert ask_many(cache, [cache.request("a")], Batch()) == [None]


@pytest.mark.parametrize("wrong", [[], ["a", "b", "c"], None, 7, "ab", b"ab", {0: "a", 1: "b"}, {"a", "b"}])
def test_load_that_does_not_answer_each_is_told(open_cache, ask_many, wrong):
    """Too few or too many answers cannot be told apart: nothing is kept, and who wrote the load is told."""
    cache = open_cache()
    requests = [cache.request(name) for name in "ab"]
    with pytest.raises(TypeError, match="2 answers"):
        ask_many(cache, requests, lambda _: wrong)
    assert ask_many(cache, requests, Batch()) == ["answer 0", "answer 1"]


def test_error_of_the_load_is_the_callers_unchanged_and_what_was_found_stays(open_cache, store, ask_many):
    """Law 7: the load's error is raised as it is, and kept nowhere."""
    cache = open_cache(**store)
    requests = [cache.request(name) for name in "ab"]
    cache.get_or_load(requests[0], lambda: "stood")
    error = ValueError("mine")

    def fail(places):
        raise error

    with pytest.raises(ValueError, match="mine") as raised:
        ask_many(cache, requests, fail)
    assert raised.value is error
    assert ask_many(cache, requests, Batch()) == ["stood", "answer 1"]


def test_async_load_is_awaited(open_cache):
    """A coroutine function loads as well, and a refresh behind the caller takes the same."""
    cache = open_cache()
    requests = [cache.request(name) for name in "ab"]

    async def load(places):
        await asyncio.sleep(0)
        return list(places)

    assert asyncio.run(cache.aget_or_load_many(requests, load)) == [0, 1]


def test_stale_answers_are_served_and_loaded_anew_behind(open_cache, clock, ask_many):
    """Lives hold for many as for one."""
    cache = open_cache()
    requests = [cache.request(name, ttl=10, stale_while_revalidate=100) for name in "ab"]
    assert ask_many(cache, requests, Batch("old")) == ["old 0", "old 1"]
    clock.advance(50)
    assert ask_many(cache, requests, Batch("new")) == ["old 0", "old 1"]


def test_when_says_what_is_kept(open_cache, ask_many):
    """`when` is asked of each answer."""
    cache = open_cache()
    requests = [cache.request(name) for name in "abc"]
    ask_many(cache, requests, Batch("old"), when=lambda answer: answer != "old 1")
    assert ask_many(cache, requests, Batch("new")) == ["old 0", "new 1", "old 2"]


def test_hits_of_redis_take_one_trip(open_cache, redis_url):
    """64 keys are one exchange, of one command."""
    cache = open_cache(redis=redis_url, memory=0)
    requests = [cache.request("q", number) for number in range(64)]
    cache.get_or_load_many(requests, Batch())
    assert cache.flush(GUARD)
    asked = []
    exchange = cache.redis._store.link.exchange
    cache.redis._store.link.exchange = lambda commands, timeout: asked.append(commands) or exchange(commands, timeout)
    assert cache.get_or_load_many(requests, Batch("new")) == [f"answer {place}" for place in range(64)]
    assert [[command[0] for command in commands] for commands in asked] == [["MGET"]]


def test_store_that_is_gone_costs_one_fault_each_and_opens_no_breaker(open_cache, own_redis):
    """Law 10: a trip that failed is one failure, however many it was for; all are loaded, in one call."""
    server = own_redis()
    cache = open_cache(redis=server.url, memory=0, timeouts=semcache.Timeouts(redis="200ms"))
    requests = [cache.request("q", number) for number in range(20)]
    cache.get_or_load_many(requests, Batch())
    assert cache.flush(GUARD)
    server.kill()
    load = Batch("new")
    assert cache.get_or_load_many(requests, load) == [f"new {place}" for place in range(20)]
    assert load.asked == [list(range(20))]
    assert not cache.chain.tiers[0][1].is_open


@pytest.mark.semantic
def test_near_matches_are_served_and_the_rest_loaded(open_near, ask_many):
    """All texts are embedded in as few batches as there are; each scope's near match is served."""
    degrees = {"stored": 0, "near": 10, "far": 90}
    cache = open_near(degrees)
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    assert cache.flush(GUARD)
    load = Batch()
    assert ask_many(cache, [cache.request(text=text) for text in degrees], load) == ["stored", "stored", "answer 2"]
    assert load.asked == [[2]]


def test_two_who_want_what_the_other_loads_do_not_wait_for_each_other(open_cache):
    """Law 6: each lands what it leads before it waits; every key is loaded once."""
    cache = open_cache()
    names = ["a", "b", "c", "d"]
    both = threading.Barrier(2)
    loads = []

    def call(own):
        order = own + [name for name in names if name not in own]

        def load(places):
            asked = [order[place] for place in places]
            loads.extend(asked)
            return [f"answer {name}" for name in asked]

        both.wait(GUARD)
        return dict(zip(order, cache.get_or_load_many([cache.request(name) for name in order], load), strict=True))

    for _ in range(20):
        loads.clear()
        cache.invalidate(namespace=cache.namespace)
        with Crew() as crew:
            calls = [crew.submit(call, ["a", "b"]), crew.submit(call, ["d", "c"])]
            for one in calls:
                assert one.result(GUARD) == {name: f"answer {name}" for name in names}
        assert sorted(loads) == names


def test_flight_of_another_is_waited_for_and_not_loaded_again(open_cache, ask_many):
    """Who is loading already is waited for, when our own have been loaded."""
    cache = open_cache()
    flights, origin = watch_flights(cache), Origin("theirs", hold=True)
    load = Batch()

    def ours(places):
        origin.go.set()
        return load(places)

    with Crew() as crew:
        theirs = crew.submit(cache.get_or_load, cache.request("a"), origin)
        flights.wait_for(1)
        assert ask_many(cache, [cache.request("a"), cache.request("b")], ours) == ["theirs", "answer 1"]
        assert theirs.result(GUARD) == "theirs"
    assert load.asked == [[1]]


def test_load_that_asks_for_its_own_keys_does_not_wait_for_itself(open_cache):
    """A call inside the load of its own key loads for itself."""
    cache = open_cache()
    requests = [cache.request(name) for name in "ab"]

    def load(places):
        return [cache.get_or_load(requests[place], lambda place=place: f"inner {place}") for place in places]

    assert cache.get_or_load_many(requests, load) == ["inner 0", "inner 1"]
    assert cache.get_or_load(cache.request("c"), lambda: "c") == "c"


def test_cancelled_call_abandons_every_flight(open_cache):
    """A leader that is cancelled hands over all it leads."""
    cache = open_cache()
    requests = [cache.request(name) for name in "ab"]

    async def main():
        entered = asyncio.Event()

        async def load(places):
            entered.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(cache.aget_or_load_many(requests, load))
        await entered.wait()
        assert len(cache.chain.flights) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(cache.chain.flights) == 0
        return await cache.aget_or_load_many(requests, Batch())

    assert asyncio.run(main()) == ["answer 0", "answer 1"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_answer_as_one_by_one_would(open_cache, tmp_path, data):
    """Against a dictionary: any mix of keys, modes, lives and invalidations, many at once or one by one."""
    cache = open_cache(f"namespace {next(NAMESPACES)}", disk=tmp_path / "cache.db")
    known, serial = {}, iter(range(10**6))
    for _ in range(data.draw(st.integers(1, 6))):
        names = data.draw(st.lists(st.sampled_from("abcdef"), max_size=8))
        mode = data.draw(st.sampled_from(["live", "live", "refresh", "off"]))
        with semcache.context(mode=mode):
            requests = [cache.request(name) for name in names]

        loaded = {}

        def load(places, names=names, loaded=loaded):
            assert len({names[place] for place in places}) == len(places)
            loaded.update({names[place]: next(serial) for place in places})
            return [loaded[names[place]] for place in places]

        answers = cache.get_or_load_many(requests, load)
        wanted = set(names) if mode != "live" else set(names) - known.keys()
        assert loaded.keys() == wanted
        assert answers == [loaded[name] if name in loaded else known[name] for name in names]
        if mode != "off":
            known |= loaded
        gone = data.draw(st.sampled_from([*"abcdef", None]))
        if gone is not None:
            cache.invalidate(key=cache.request(gone).key)
            known.pop(gone, None)
    cache.close()


def test_waits_of_many_do_not_add_up(open_cache):
    """Law 10: who waits for twenty flights that do not land waits once, and then loads all of them in one call."""
    cache = open_cache(timeouts=semcache.Timeouts(flight=0.2))
    requests = [cache.request(number) for number in range(20)]
    origin, load = Origin("theirs", hold=True), Batch()
    flights = watch_flights(cache)
    with Crew(20) as crew:
        theirs = [crew.submit(cache.get_or_load, request, origin) for request in requests]
        flights.wait_for(20)
        try:
            assert cache.get_or_load_many(requests, load) == [f"answer {place}" for place in range(20)]
        finally:
            origin.go.set()
        assert [one.result(GUARD) for one in theirs] == ["theirs"] * 20
    assert load.asked == [list(range(20))]


def test_memcached_is_asked_for_many_in_one_command(open_cache, memcached_url):
    """500 keys are one `gets` of them all, not 500 trips in one deadline."""
    cache = open_cache(memcached=memcached_url, memory=0)
    requests = [cache.request(number) for number in range(500)]
    cache.get_or_load_many(requests, Batch())
    assert cache.flush(GUARD)
    link, asked = cache.memcached._link, []
    exchange = link.exchange
    link.exchange = lambda commands, timeout: asked.append(commands) or exchange(commands, timeout)
    assert cache.get_or_load_many(requests, Batch("new")) == [f"answer {place}" for place in range(500)]
    assert [[command[0] for command in commands] for commands in asked] == [["gets_many"]]


def test_time_of_a_shared_load_is_booked_once(open_cache):
    """What a load of many took is shared out among them: it is neither spent nor saved a hundred times."""
    cache = open_cache()
    requests = [cache.request(number) for number in range(100)]
    with semcache.trace() as seen:
        cache.get_or_load_many(requests, Batch())
    assert len(seen.lookups) == 100
    for event in seen.lookups:
        assert event.load_seconds == pytest.approx(event.stages["load"] / 1e9 / 100)


def test_hits_found_at_once_are_counted_as_one_by_one(open_cache, store, clock, ask_many):
    """Sums, savings and the latest event are those of single lookups, whether or not somebody watches."""
    watched = []
    for observers in ((), (watched.append,)):
        cache = open_cache(f"watched {len(observers)} {next(NAMESPACES)}", observers=observers, **store)
        requests = [
            cache.request("q", number, function=f"f{number % 2}", stage=f"s{number % 3}") for number in range(7)
        ]
        for number, request in enumerate(requests):
            cache.get_or_load(request, lambda: "stood", usage=lambda _, number=number: semcache.Usage(number, 0, 0.5))
        watched.clear()
        assert ask_many(cache, requests, Batch()) == ["stood"] * 7
        stats = cache.stats()
        assert stats.hits == {"memory": 7}
        assert stats.stages["memory"] > 0
        assert [cache.recorder.counts(name)[0] for name in ("f0", "f1")] == [4, 3]
        assert cache.flush(GUARD)
        rows = {row.stage: (row.hits, row.saved_prompt_tokens, row.saved_money) for row in cache.usage(by=("stage",))}
        assert rows == {"s0": (3, 9, 1.5), "s1": (2, 5, 1.0), "s2": (2, 7, 1.0)}
    assert [event.key for event in watched] == [request.key for request in requests]


def test_latest_of_hits_found_at_once_is_remembered(open_cache, store):
    """`last()` tells the last one, `trace()` tells each."""
    cache = open_cache(**store)
    requests = [cache.request("q", number) for number in range(3)]
    cache.get_or_load_many(requests, Batch())
    cache.get_or_load_many(requests, Batch())
    event = semcache.last()
    assert (event.kind, event.tier, event.key) == ("hit", "memory", requests[2].key)
    with semcache.trace() as traced:
        cache.get_or_load_many(requests, Batch())
    assert [event.key for event in traced.lookups] == [request.key for request in requests]


def test_damaged_entry_among_many_is_loaded_alone(open_cache, redis_server, redis_url):
    """Bytes that are not ours are one miss and one fault; the others are hits of the same trip."""
    cache = open_cache(redis=redis_url, memory=0)
    requests = [cache.request("q", number) for number in range(4)]
    cache.get_or_load_many(requests, Batch())
    assert cache.flush(GUARD)
    names = cache.redis._store.names
    redis_server.client().set(names.of(requests[2].key), b"somebody else's")
    load = Batch("new")
    assert cache.get_or_load_many(requests, load) == ["answer 0", "answer 1", "new 2", "answer 3"]
    assert load.asked == [[2]]
    assert cache.stats().faults == {"redis: DecodeError": 1}


def test_pinned_and_waiting_answers_are_found_among_many(open_cache, redis_url):
    """What is pinned, or waits to be written, is answered as alone."""
    cache = open_cache(redis=redis_url, memory=0)
    requests = [cache.request("q", number) for number in range(3)]
    cache.get_or_load_many(requests, Batch())
    cache.put(requests[1], value="curated", pinned=True)
    assert cache.get_or_load_many(requests, Batch("new")) == ["answer 0", "curated", "answer 2"]
    assert cache.flush(GUARD)
    assert cache.get_or_load_many(requests, Batch("new")) == ["answer 0", "curated", "answer 2"]


def test_load_is_given_max_batch_at_once_and_each_is_kept(open_cache, store, ask_many):
    """A load that fails takes nothing from the others; its error is the caller's."""
    cache = open_cache(**store)
    requests = [cache.request("q", number) for number in range(5)]

    def load(places):
        if 2 in places:
            raise ValueError("no 2")
        return [f"answer {place}" for place in places]

    with pytest.raises(ValueError, match="no 2"):
        ask_many(cache, requests, load, max_batch=2)
    again = Batch("new")
    assert ask_many(cache, requests, again) == ["answer 0", "answer 1", "new 2", "new 3", "answer 4"]
    assert again.asked == [[2, 3]]
