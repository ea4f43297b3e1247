"""Near texts that miss at once share a load where the policy would reuse its answer; all others load for themselves."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from math import cos, radians

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruments import GUARD, Compass, Crew, JoinedFlights, Origin

import semcache

pytestmark = pytest.mark.semantic

# All texts but "far" are near to each other, and "next" to "b" alone.
DEGREES = {"a": 0, "b": 20, "next": 40, "far": 90}
# Who waits for himself is freed by the timeout, and his fault tells.
FREED = semcache.Timeouts(semantic="30s", flight="5s")


@pytest.fixture
def open_joined(open_near):
    """Make caches whose followers can be waited for; nothing may be left of any load."""
    opened = []

    def open_one(degrees=None, **settings):
        opened.append(open_near(degrees or DEGREES, **settings))
        opened[-1].chain.flights = JoinedFlights()
        return opened[-1]

    yield open_one
    for cache in opened:
        assert len(cache.chain.nearby) == 0, "a load is still seen"
        assert not cache.chain.flights._blocked


def told(cache, request, load, **more):
    """Look up in a thread of its own; the answer and its event."""
    answer = cache.get_or_load(request, load, **more)
    return answer, semcache.last()


def lead(crew, cache, text, origin, **more):
    """Begin a load that is held."""
    request = cache.request(text=text, **more)
    led = crew.submit(told, cache, request, origin)
    assert origin.entered.wait(GUARD)
    return request, led


def exact(cache, text):
    """Say what the exact tiers hold of a text."""
    with semcache.context(mode="exact"):
        return cache.explain(cache.request(text=text)).tier


# Who waits, and what he is given


@pytest.mark.parametrize("colour", ["thread", "task"])
def test_near_miss_waits_for_the_load_under_way(open_joined, colour):
    """One load for both; who waited is told that it was a near match, of which text, and that the load was shared."""
    cache, origin, own = open_joined(), Origin(["a's"], hold=True), Origin("b's")
    flights = cache.chain.flights

    def ask():
        if colour == "thread":
            return told(cache, cache.request(text="b"), own)

        async def task():
            answer = await cache.aget_or_load(cache.request(text="b"), own)
            return answer, semcache.last()

        return asyncio.run(task())

    with Crew() as crew:
        request, led = lead(crew, cache, "a", origin)
        joined = crew.submit(ask)
        flights.wait_for(1)
        origin.go.set()
        (first, _), (second, event) = led.result(GUARD), joined.result(GUARD)
    assert (first, second, own.calls) == (["a's"], ["a's"], 0)
    assert first is not second
    assert (event.kind, event.tier, event.shared, event.neighbour) == ("hit", "flight", True, request.key)
    assert event.similarity == pytest.approx(cos(radians(20)), abs=1e-6)
    assert (event.decision.verdict, event.reason) == (semcache.Verdict.REUSE, None)
    stats = cache.stats()
    assert (stats.hits, stats.loads, stats.shared) == ({"flight": 1}, 1, 1)


def test_near_answer_is_not_stored_under_the_text_that_asked(open_joined, tmp_path):
    """Law 3: what another text's load brought is no exact answer of this one, nor a row of the index."""
    cache, origin = open_joined(disk=tmp_path / "cache.db"), Origin("a's", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        joined = crew.submit(told, cache, cache.request(text="b"), Origin("b's"))
        cache.chain.flights.wait_for(1)
        origin.go.set()
        assert [one.result(GUARD)[0] for one in (led, joined)] == ["a's", "a's"]
    cache.flush()
    assert (exact(cache, "a"), exact(cache, "b")) == ("memory", None)
    assert cache.stats().tiers["semantic"]["rows"] == 1
    assert cache.get_or_load(cache.request(text="next"), Origin("next's")) == "next's"  # law 3: no drift over "b"


def test_answers_do_not_drift_over_one_who_waits(open_joined):
    """Law 3: who waits for a near text is waited for by none of his own near texts."""
    cache, origin = open_joined(), Origin("a's", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        joined = crew.submit(told, cache, cache.request(text="b"), Origin("b's"))
        cache.chain.flights.wait_for(1)
        assert cache.get_or_load(cache.request(text="next"), Origin("next's")) == "next's"
        origin.go.set()
        assert [one.result(GUARD)[0] for one in (led, joined)] == ["a's", "a's"]


def test_all_of_the_very_same_text_follow_the_one_who_waits(open_joined):
    """Law 6: the follower's own key has one flight too; its callers are all given the near answer, each a copy."""
    cache, origin, own = open_joined(), Origin(["a's"], hold=True), Origin("b's")
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        joined = [crew.submit(told, cache, cache.request(text="b"), own) for _ in range(4)]
        cache.chain.flights.wait_for(4)
        origin.go.set()
        given = [one.result(GUARD) for one in (led, *joined)]
    assert ([answer for answer, _ in given], own.calls, origin.calls) == ([["a's"]] * 5, 0, 1)
    assert len({id(answer) for answer, _ in given}) == 5
    assert all(event.similarity is not None for _, event in given[1:])


def test_follower_by_key_who_takes_no_near_match_loads(open_joined):
    """Who asks the same text in another mode is not given what his leader was given for a near one."""
    cache, origin = open_joined(), Origin("a's", hold=True)

    def in_shadow():
        with semcache.context(mode="shadow"):
            return cache.get_or_load(cache.request(text="b"), Origin("b's"))

    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        joined = crew.submit(told, cache, cache.request(text="b"), Origin("unused"))
        cache.chain.flights.wait_for(1)
        strict = crew.submit(in_shadow)
        cache.chain.flights.wait_for(1)
        origin.go.set()
        assert (led.result(GUARD)[0], joined.result(GUARD)[0], strict.result(GUARD)) == ("a's", "a's", "b's")


def test_the_nearest_of_those_that_load_is_waited_for(open_joined):
    """Of several loads under way the nearest text's answers, and an answer is only of a text that may."""
    cache = open_joined({"a": 0, "c": 50, "asked": 26})
    origins = {text: Origin(text, hold=True) for text in ("a", "c")}
    with Crew() as crew:
        led = [lead(crew, cache, text, origin)[1] for text, origin in origins.items()]
        joined = crew.submit(told, cache, cache.request(text="asked"), Origin("asked"))
        cache.chain.flights.wait_for(1)
        for origin in origins.values():
            origin.go.set()
        assert [one.result(GUARD)[0] for one in (*led, joined)] == ["a", "c", "c"]


def test_functions_share_the_loads_of_near_texts(open_joined):
    """A decorated function's calls join each other; what stands beside the text must be equal."""
    cache, held, go = open_joined(), threading.Semaphore(0), threading.Event()

    @semcache.cached(cache, text="question", version="1")
    def answer(question, locale="en"):
        held.release()
        assert go.wait(GUARD)
        return f"{question} in {locale}"

    with Crew() as crew:
        first = crew.submit(answer, "a")
        assert held.acquire(timeout=GUARD)
        joined, apart = crew.submit(answer, "b"), crew.submit(answer, "b", locale="de")
        cache.chain.flights.wait_for(1)
        assert held.acquire(timeout=GUARD)
        go.set()
        assert [one.result(GUARD) for one in (first, joined, apart)] == ["a in en", "a in en", "b in de"]


# Who loads for himself


def load_at_once(crew, cache, one, other):
    """Have two callers load, of which each goes on only when both do; their answers."""
    both = threading.Barrier(2)

    def load(text):
        both.wait(GUARD)
        return text

    asked = [crew.submit(cache.get_or_load, request, lambda text=text: load(text)) for text, request in (one, other)]
    return [each.result(GUARD) for each in asked]


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({}, ("a", "far")),
        ({"policy": None}, ("a", "b")),
        ({"tenant": None}, ("a", "b")),
        ({"mode": "shadow"}, ("a", "b")),
        ({"mode": "exact"}, ("a", "b")),
        ({"policy": semcache.Threshold(0.9)}, ("pay 6 euros", "pay 7 euros")),
    ],
    ids=["far", "no policy", "no tenant", "shadow", "exact", "guard"],
)
def test_who_may_not_be_given_the_answer_loads_at_the_same_time(open_joined, settings, texts):
    """Cut, guards, policy, tenant and mode count as they do in the index: neither waits for the other."""
    cache = open_joined(**settings)
    with Crew() as crew:
        asked = [(text, cache.request(text=text)) for text in texts]
        assert load_at_once(crew, cache, *asked) == list(texts)


def test_loads_of_other_scopes_are_not_waited_for(open_joined):
    """Law 2: texts are compared within one scope alone; here they are of two tenants."""
    cache = open_joined()
    with Crew() as crew:
        asked = [("a", cache.request(text="a", tenant="one")), ("b", cache.request(text="b", tenant="two"))]
        assert load_at_once(crew, cache, *asked) == ["a", "b"]


def test_without_a_policy_that_serves_nothing_is_computed(open_joined):
    """What could not be served is not compared: a miss beside another costs no embedding before its load."""
    embedder = Compass(DEGREES)
    cache, origin = open_joined(embedder=embedder, policy=None), Origin("a's", hold=True)
    embedder.asked.clear()
    seen = []
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        cache.get_or_load(cache.request(text="b"), lambda: seen.append((list(embedder.asked), len(cache.chain.nearby))))
        origin.go.set()
        led.result(GUARD)
    assert seen == [([], 0)]


def test_vectors_of_the_comparison_are_not_computed_again(open_joined):
    """Nothing is computed twice: what was embedded to compare is what the index is given."""
    embedder = Compass(DEGREES)
    cache, origin = open_joined(embedder=embedder), Origin("a's", hold=True)
    embedder.asked.clear()
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        cache.get_or_load(cache.request(text="far"), Origin("far's"))
        origin.go.set()
        led.result(GUARD)
    cache.flush()
    assert sorted(embedder.asked) == ["a", "far"]
    assert cache.stats().tiers["semantic"]["rows"] == 2


def test_error_of_another_texts_load_is_not_shared(open_joined):
    """What the leader's load fails at is its own; who waited loads, and is given his own answer."""
    cache, origin = open_joined(), Origin(LookupError("gone"), hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        joined = crew.submit(told, cache, cache.request(text="b"), Origin("b's"))
        cache.chain.flights.wait_for(1)
        origin.go.set()
        answer, event = joined.result(GUARD)
        with pytest.raises(LookupError):
            led.result(GUARD)
    assert (answer, event.kind, event.shared) == ("b's", "miss", False)
    assert exact(cache, "b") == "memory"


def test_answer_that_is_not_kept_is_not_shared_with_near_texts(open_joined):
    """Law 7: a refusal, or whatever `when` says no to, answers the text that it was loaded for and no other."""
    cache, origin = open_joined(), Origin("I cannot help", hold=True)
    with Crew() as crew:
        request = cache.request(text="a")
        led = crew.submit(told, cache, request, origin, when=lambda answer: "cannot" not in answer)
        assert origin.entered.wait(GUARD)
        joined = crew.submit(told, cache, cache.request(text="b"), Origin("b's"))
        cache.chain.flights.wait_for(1)
        origin.go.set()
        assert [one.result(GUARD)[0] for one in (led, joined)] == ["I cannot help", "b's"]


def test_form_that_its_caller_cannot_use_is_not_taken(open_joined):
    """An answer of another form than a caller wants is a load of his own."""
    cache, origin = open_joined(), Origin("text", hold=True)
    request = cache.request(text="b")
    request.accepts = lambda value: isinstance(value, int)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        joined = crew.submit(told, cache, request, Origin(1))
        cache.chain.flights.wait_for(1)
        origin.go.set()
        assert [one.result(GUARD)[0] for one in (led, joined)] == ["text", 1]


def test_cancelled_leader_leaves_the_near_follower_to_load(open_joined):
    """A leader's cancellation is its own: who waited loads for himself."""
    cache = open_joined()

    async def main():
        entered = asyncio.Event()

        async def never():
            entered.set()
            await asyncio.Event().wait()

        leader = asyncio.create_task(cache.aget_or_load(cache.request(text="a"), never))
        await entered.wait()
        joined = asyncio.create_task(cache.aget_or_load(cache.request(text="b"), lambda: "b's"))
        await asyncio.to_thread(cache.chain.flights.wait_for, 1)
        leader.cancel()
        return await joined

    assert asyncio.run(main()) == "b's"


def test_cancelled_follower_takes_nothing_from_anybody(open_joined):
    """Who stops waiting ends neither the load nor those of his own text: one of these takes his place."""
    cache = open_joined()

    async def main():
        entered, go = asyncio.Event(), asyncio.Event()

        async def held():
            entered.set()
            await go.wait()
            return "a's"

        async def ask(text, load):
            return await cache.aget_or_load(cache.request(text=text), load)

        leader = asyncio.create_task(ask("a", held))
        await entered.wait()
        first = asyncio.create_task(ask("b", lambda: "b's"))
        await asyncio.to_thread(cache.chain.flights.wait_for, 1)
        second = asyncio.create_task(ask("b", lambda: "b's"))
        await asyncio.to_thread(cache.chain.flights.wait_for, 1)
        first.cancel()
        await asyncio.to_thread(cache.chain.flights.wait_for, 1)
        go.set()
        return await asyncio.gather(leader, second, first, return_exceptions=True)

    *answers, cancelled = asyncio.run(main())
    assert answers == ["a's", "a's"]
    assert isinstance(cancelled, asyncio.CancelledError)


def test_leader_that_takes_too_long_is_not_waited_for(open_joined):
    """A follower waits for its flight timeout at most, and is told why it loaded then."""
    cache = open_joined(timeouts=semcache.Timeouts(semantic="30s", flight=0.01))
    origin = Origin("a's", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        assert cache.get_or_load(cache.request(text="b"), Origin("b's")) == "b's"
        assert [fault[:2] for fault in semcache.last().faults] == [("flight", "late")]
        origin.go.set()
        assert led.result(GUARD)[0] == "a's"


def test_embedder_that_fails_is_a_load(open_joined):
    """Law 10: what goes wrong in the comparison is a miss and a fault, and the call is as without a cache."""
    embedder = Compass(DEGREES)
    cache, origin = open_joined(embedder=embedder), Origin("a's", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        embedder.degrees = None
        assert cache.get_or_load(cache.request(text="b"), Origin("b's")) == "b's"
        assert semcache.last().faults[0][0] == "semantic"
        origin.go.set()
        assert led.result(GUARD)[0] == "a's"


# Who would wait for himself


@pytest.mark.parametrize("where", ["inside", "in a thread", "in a task"])
def test_near_call_inside_the_load_loads_for_itself(open_joined, where):
    """Law 6: a load that asks for a near text does not wait for its own end."""
    cache = open_joined(timeouts=FREED)
    request = cache.request(text="b")

    def inner():
        return cache.get_or_load(request, lambda: "inner")

    def outer():
        if where == "inside":
            return "outer, " + inner()
        with ThreadPoolExecutor(1) as pool:
            return "outer, " + pool.submit(contextvars.copy_context().run, inner).result(GUARD)

    async def aouter():
        return "outer, " + await asyncio.create_task(cache.aget_or_load(request, lambda: "inner"))

    if where == "in a task":
        answer = asyncio.run(cache.aget_or_load(cache.request(text="a"), aouter))
    else:
        answer = cache.get_or_load(cache.request(text="a"), outer)
    assert answer == "outer, inner"
    assert cache.stats().faults == {}


def test_leader_that_asks_for_its_followers_text_loads_it(open_joined):
    """Law 6: while a near text's caller waits for a load, that load may ask for the very text, and nobody hangs."""
    cache, entered, go = open_joined(timeouts=FREED), threading.Event(), threading.Event()

    def outer():
        entered.set()
        assert go.wait(GUARD)
        return "outer, " + cache.get_or_load(cache.request(text="b"), lambda: "inner")

    with Crew() as crew:
        led = crew.submit(told, cache, cache.request(text="a"), outer)
        assert entered.wait(GUARD)
        joined = crew.submit(told, cache, cache.request(text="b"), Origin("unused"))
        cache.chain.flights.wait_for(1)
        go.set()
        assert [one.result(GUARD)[0] for one in (led, joined)] == ["outer, inner", "outer, inner"]
    assert cache.stats().faults == {}


def test_task_that_asks_for_its_followers_text_loads_it(open_joined):
    """Law 6: the same among tasks, of which none blocks a thread."""
    cache = open_joined(timeouts=FREED)

    async def main():
        entered, go = asyncio.Event(), asyncio.Event()

        async def outer():
            entered.set()
            await go.wait()
            return "outer, " + await cache.aget_or_load(cache.request(text="b"), lambda: "inner")

        leader = asyncio.create_task(cache.aget_or_load(cache.request(text="a"), outer))
        await entered.wait()
        joined = asyncio.create_task(cache.aget_or_load(cache.request(text="b"), Origin("unused")))
        await asyncio.to_thread(cache.chain.flights.wait_for, 1)
        go.set()
        return await leader, await joined

    assert asyncio.run(main()) == ("outer, inner", "outer, inner")
    assert cache.stats().faults == {}


def test_loads_that_ask_for_texts_near_to_each_other_do_not_wait_in_a_ring(open_joined):
    """Law 6: of two loads that each ask for a text near to the other's, one at least loads for itself."""
    cache, both = open_joined({"a": 0, "near a": 5, "z": 90, "near z": 95}, timeouts=FREED), threading.Barrier(2)

    def load(mine, other):
        both.wait(GUARD)
        return mine + " " + cache.get_or_load(cache.request(text=f"near {other}"), lambda: f"near {other}")

    with Crew(2) as crew:
        asked = [
            crew.submit(cache.get_or_load, cache.request(text=one), lambda one=one, other=other: load(one, other))
            for one, other in (("a", "z"), ("z", "a"))
        ]
        answers = [one.result(GUARD) for one in asked]
    assert all(answer.startswith(text) for answer, text in zip(answers, "az", strict=True))
    assert any(answer.count("near") == 1 for answer in answers)
    assert cache.stats().faults == {}


def test_sync_call_on_the_leading_loops_own_thread_loads_its_near_text(open_joined):
    """Law 6: a sync call cannot wait for a load that a task of the very loop it blocks has to carry out."""
    cache = open_joined(timeouts=FREED)

    async def main():
        entered, go = asyncio.Event(), asyncio.Event()

        async def held():
            entered.set()
            await go.wait()
            return "a's"

        leader = asyncio.create_task(cache.aget_or_load(cache.request(text="a"), held))
        await entered.wait()
        mine = cache.get_or_load(cache.request(text="b"), lambda: "mine")
        go.set()
        return mine, await leader

    assert asyncio.run(main()) == ("mine", "a's")
    assert cache.stats().faults == {}


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_near_texts_of_one_batch_are_loaded_in_one_call(open_joined, colour):
    """Lookups carried out as one wait for no other text's load: what is missing goes to the origin together."""
    cache, asked = open_joined(), []

    def load(places):
        asked.append(places)
        return [f"answer {place}" for place in places]

    requests = [cache.request(text=text) for text in ("a", "b", "far")]
    if colour == "sync":
        answers = cache.get_or_load_many(requests, load)
    else:
        answers = asyncio.run(cache.aget_or_load_many(requests, load))
    assert (answers, asked) == (["answer 0", "answer 1", "answer 2"], [[0, 1, 2]])


def test_batch_waits_for_no_near_text_of_others(open_joined):
    """Who leads flights beside each other could wait for one while others wait for another of his: he loads."""
    cache, origin = open_joined(), Origin("a's", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        requests = [cache.request(text=text) for text in ("b", "far")]
        assert cache.get_or_load_many(requests, lambda places: [f"own {place}" for place in places]) == [
            "own 0",
            "own 1",
        ]
        origin.go.set()
        assert led.result(GUARD)[0] == "a's"


# What happens meanwhile


def test_invalidation_of_the_load_reaches_who_waits_for_it(open_joined):
    """Law 8: who asks after an invalidation is not given, over a near text's flight, what was loaded before it."""
    cache, origin = open_joined(), Origin("old", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin, tags=["prices"])
        before = crew.submit(told, cache, cache.request(text="b"), Origin("unused"))
        cache.chain.flights.wait_for(1)
        cache.invalidate(tag="prices")
        assert cache.get_or_load(cache.request(text="b"), Origin("new")) == "new"
        origin.go.set()
        assert [one.result(GUARD)[0] for one in (led, before)] == ["old", "old"]
    assert cache.get_or_load(cache.request(text="a"), Origin("a's, new")) in ("new", "a's, new")


def test_load_begun_before_an_invalidation_is_not_joined_after_it(open_joined):
    """Law 8: a near text's load that may bring what was invalidated is waited for by nobody who comes later."""
    cache, origin = open_joined(), Origin("old", hold=True)
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin, tags=["prices"])
        cache.invalidate(tag="prices")
        assert cache.get_or_load(cache.request(text="b"), Origin("new")) == "new"
        origin.go.set()
        assert led.result(GUARD)[0] == "old"


def test_who_searched_before_a_landing_searches_again(open_joined):
    """Law 6: who missed before a near text's row was there, and comes to load after its load has ended, finds it."""
    embedder = Compass(DEGREES)
    cache, origin, own = open_joined(embedder=embedder), Origin("a's", hold=True), Origin("b's")
    with Crew() as crew:
        _, led = lead(crew, cache, "a", origin)
        embedder.gate = threading.Event()
        embedder.entered.clear()
        asked = crew.submit(told, cache, cache.request(text="b"), own)
        assert embedder.entered.wait(GUARD)
        origin.go.set()
        assert led.result(GUARD)[0] == "a's"
        embedder.gate.set()
        answer, event = asked.result(GUARD)
    assert (answer, own.calls, event.kind, event.tier, event.shared) == ("a's", 0, "hit", "semantic", False)


# In any order


class Script:
    """Lookups begun, and loads ended, in the order that a test says, on one loop."""

    def __init__(self, cache):
        self.cache = cache
        self.tasks = []
        self.loads = []

    def begin(self, text):
        async def load():
            ended = asyncio.get_running_loop().create_future()
            self.loads.append(ended)
            if not await ended:
                raise ValueError(text)
            return text

        self.tasks.append((text, asyncio.create_task(self.cache.aget_or_load(self.cache.request(text=text), load))))

    def end(self, place, *, is_well):
        waiting = [load for load in self.loads if not load.done()]
        if waiting:
            waiting[place % len(waiting)].set_result(is_well)

    async def settle(self):
        """Let all go on until each waits for a load."""
        for _ in range(4):
            assert self.cache.semantic.flush(GUARD)
            for _ in range(4):
                await asyncio.sleep(0)


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 11)),
        st.tuples(st.just("end"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
        st.tuples(st.just("settle")),
    ),
    min_size=4,
    max_size=16,
)


@settings(max_examples=25, deadline=None)
@given(steps=_STEPS)
def test_everybody_is_given_his_own_load_or_what_the_policy_allows(steps):
    """Laws 3 and 6, in any order: an answer is of a text near enough, an error of the caller's own; nothing is left."""
    degrees = {f"text {number}": number * 12.0 for number in range(12)}
    patience = semcache.Timeouts(semantic="30s", flight="30s")

    async def play(cache):
        script = Script(cache)
        for what, *how in steps:
            if what == "begin":
                script.begin(f"text {how[0]}")
            elif what == "end":
                script.end(how[0], is_well=how[1])
            elif what == "cancel" and script.tasks:
                script.tasks[how[0] % len(script.tasks)][1].cancel()
            else:
                await script.settle()
        while not all(task.done() for _, task in script.tasks):
            await script.settle()
            script.end(0, is_well=True)
        return [(text, await asyncio.gather(task, return_exceptions=True)) for text, task in script.tasks]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", semcache.UnmeasuredThresholdWarning)
        policy = semcache.Threshold(0.9, guards=None)
        made = semcache.Cache(embedder=Compass(degrees), policy=policy, tenant=semcache.SHARED, timeouts=patience)
    with made as cache:
        cache.warm()
        for text, (answer,) in asyncio.run(play(cache)):
            if isinstance(answer, ValueError):
                assert answer.args == (text,)
            elif not isinstance(answer, asyncio.CancelledError):
                assert cos(radians(degrees[text] - degrees[answer])) >= 0.9 - 1e-6, (text, answer)
        assert len(cache.chain.flights) == len(cache.chain.nearby) == 0
        assert cache.stats().faults == {}
