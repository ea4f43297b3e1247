"""Flights: one load per key among threads and loops, and nobody waits for itself (law 6; the traps of section 9)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from instruments import GUARD, Crew, Origin, WatchedFlights

from semcache.flight import Abandoned, Flights, _inside, enter, leave
from semcache.model import Facets, Request
from semcache.plan import Load, Outcome, Plan, Wait, arun, run


@pytest.fixture
def flights():
    """Flights that must all have landed, and left nothing behind, when the test is over."""
    made = WatchedFlights()
    yield made
    assert len(made) == 0
    assert not made._flights
    assert not made._blocked


@pytest.fixture
def _hurry():
    """Have threads change places as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def ask(flights, key, load, *, blocks) -> Plan[Outcome]:
    """Load as a lookup does, less the tiers: lead, follow, board anew, or load alone."""
    while True:
        flight, leads = flights.board(key, blocks=blocks)
        if flight is None:
            return (yield Load(load))
        if leads:
            token = enter(flight)
            try:
                outcome = yield Load(load)
            except BaseException:
                flights.abandon(flight)
                raise
            finally:
                leave(token)
            flights.land(flight, outcome)
            return outcome
        try:
            return (yield Wait(flight.future, GUARD))
        except Abandoned:
            continue
        finally:
            flights.unboard(flight)


def get(flights, key, load):
    return run(ask(flights, key, load, blocks=True)).unwrap()


async def aget(flights, key, load):
    return (await arun(ask(flights, key, load, blocks=False))).unwrap()


async def settle():
    """Let the other tasks of this loop run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


# One load


def test_callers_of_one_key_share_one_load(flights):
    """Law 6: one load per key, threads and tasks of several loops alike."""
    origin = Origin(hold=True)

    async def several():
        return await asyncio.gather(*(aget(flights, b"a", origin) for _ in range(8)))

    with Crew() as crew:
        threads = [crew.submit(get, flights, b"a", origin) for _ in range(8)]
        loops = [crew.submit(asyncio.run, several()) for _ in range(2)]
        flights.wait_for(24)
        origin.go.set()
        assert [one.result(GUARD) for one in threads] == ["answer"] * 8
        assert [one.result(GUARD) for one in loops] == [["answer"] * 8] * 2
    assert origin.calls == 1


def test_callers_of_other_keys_do_not_wait_for_each_other(flights):
    """A held load holds up its own key alone."""
    held = Origin("held", hold=True)
    with Crew() as crew:
        first = crew.submit(get, flights, b"a", held)
        assert held.entered.wait(GUARD)
        assert get(flights, b"b", Origin("free")) == "free"
        held.go.set()
        assert first.result(GUARD) == "held"


def test_caller_after_the_landing_loads_anew(flights):
    """A flight is no store: who comes when it has landed looks for itself."""
    origin = Origin()
    assert [get(flights, b"a", origin) for _ in range(3)] == ["answer"] * 3
    assert origin.calls == 3


def test_error_of_the_leader_goes_to_all_unchanged(flights):
    """Law 6: a leader's error goes, unchanged, to all who waited for it."""
    error = LookupError("gone")
    origin = Origin(error, hold=True)
    raised = []

    def note(key):
        try:
            get(flights, key, origin)
        except LookupError as caught:
            raised.append(caught)

    with Crew() as crew:
        asked = [crew.submit(note, b"a") for _ in range(8)]
        flights.wait_for(8)
        origin.go.set()
        for one in asked:
            one.result(GUARD)
    assert len(raised) == 8
    assert all(one is error for one in raised)
    assert origin.calls == 1


@pytest.mark.usefixtures("_hurry")
def test_callers_in_any_mixture_never_load_a_key_twice_at_once(flights):
    """Law 6, under load: at no moment are there two loads of one key, however threads and loops come and go."""
    loading: dict[bytes, int] = {}
    lock = threading.Lock()
    most = []
    start = threading.Barrier(9)

    def load(key):
        with lock:
            loading[key] = loading.get(key, 0) + 1
            most.append(loading[key])
        for _ in range(300):
            threading.get_native_id()
        with lock:
            loading[key] -= 1
        return key

    def in_thread(seed):
        start.wait(GUARD)
        drawn = random.Random(seed)
        for _ in range(200):
            key = drawn.choice([b"a", b"b", b"c"])
            assert get(flights, key, partial(load, key)) == key

    async def in_tasks(seed):
        async def one(seed):
            drawn = random.Random(seed)
            for _ in range(60):
                key = drawn.choice([b"a", b"b", b"c"])
                assert await aget(flights, key, partial(load, key)) == key

        start.wait(GUARD)
        await asyncio.gather(*(one(seed + place) for place in range(4)))

    with Crew() as crew:
        asked = [crew.submit(in_thread, seed) for seed in range(6)]
        asked += [crew.submit(asyncio.run, in_tasks(100 * seed)) for seed in range(3)]
        for one in asked:
            one.result(GUARD)
    assert max(most) == 1


# Cancelled followers, abandoned leaders


def test_follower_cancelled_cancels_nobody_else(flights):
    """A follower's cancellation is its own: neither the leader nor another follower hears of it."""
    origin = Origin(hold=True)

    async def main():
        tasks = [asyncio.create_task(aget(flights, b"a", origin)) for _ in range(3)]
        await settle()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        assert tasks[0].cancelled()
        origin.go.set()
        return await asyncio.gather(*tasks[1:])

    with Crew() as crew:
        leader = crew.submit(get, flights, b"a", origin)
        assert origin.entered.wait(GUARD)
        assert asyncio.run(main()) == ["answer"] * 2
        assert leader.result(GUARD) == "answer"
    assert origin.calls == 1


@pytest.mark.parametrize("followers", [1, 2, 5])
def test_leader_cancelled_hands_over_to_exactly_one(flights, followers):
    """Law 6: a cancelled leader hands over, to one: nobody is cancelled with it, nobody loads beside the new one."""
    calls = []

    async def main():
        held = asyncio.get_running_loop().create_future()

        async def load():
            calls.append(1)
            await (held if len(calls) == 1 else asyncio.sleep(0))
            return f"load {len(calls)}"

        leader = asyncio.create_task(aget(flights, b"a", load))
        await settle()
        tasks = [asyncio.create_task(aget(flights, b"a", load)) for _ in range(followers)]
        await settle()
        leader.cancel()
        answers = await asyncio.gather(*tasks)
        assert leader.cancelled()
        return answers

    assert asyncio.run(main()) == ["load 2"] * followers
    assert len(calls) == 2


def test_leader_cancelled_hands_over_to_threads_too(flights):
    """It makes no difference whose colour the followers have."""
    origin = Origin()
    leading = threading.Event()
    cancel = threading.Event()

    async def main():
        async def load():
            leading.set()
            await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(aget(flights, b"a", load))
        await asyncio.to_thread(cancel.wait, GUARD)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with Crew() as crew:
        loop = crew.submit(asyncio.run, main())
        assert leading.wait(GUARD)
        flights.wait_for(1)
        threads = [crew.submit(get, flights, b"a", origin) for _ in range(6)]
        flights.wait_for(6)
        origin.go.clear()
        cancel.set()
        flights.wait_for(6)
        origin.go.set()
        assert [one.result(GUARD) for one in threads] == ["answer"] * 6
        loop.result(GUARD)
    assert origin.calls == 1


def test_leader_that_dies_of_what_is_no_error_hands_over(flights):
    """KeyboardInterrupt ends its leader alone; a follower loads."""
    dying, origin = Origin(KeyboardInterrupt(), hold=True), Origin()

    def lead():
        with pytest.raises(KeyboardInterrupt):
            get(flights, b"a", dying)

    with Crew() as crew:
        leader = crew.submit(lead)
        assert dying.entered.wait(GUARD)
        follower = crew.submit(get, flights, b"a", origin)
        flights.wait_for(2)
        dying.go.set()
        leader.result(GUARD)
        assert follower.result(GUARD) == "answer"
    assert (dying.calls, origin.calls) == (1, 1)


def test_flight_landed_may_be_abandoned_again(flights):
    """A leader that is cancelled after its landing, in what it does behind the answer, undoes nothing."""
    flight, leads = flights.board(b"a", blocks=False)
    assert leads
    followed, leads = flights.board(b"a", blocks=False)
    assert (followed, leads) == (flight, False)
    flights.land(flight, "answer")
    flights.abandon(flight)
    flights.land(flight, "other")
    assert followed.future.result(0) == "answer"
    flights.unboard(flight)


def test_flight_landed_late_does_not_end_its_successor(flights):
    """What an old leader does with its flight touches only that flight."""
    old, _ = flights.board(b"a", blocks=False)
    flights.abandon(old)
    new, leads = flights.board(b"a", blocks=False)
    assert leads
    assert new is not old
    flights.land(old, "old")
    flights.abandon(old)
    assert flights.board(b"a", blocks=False) == (new, False)
    flights.land(new, "new")
    assert new.future.result(0) == "new"
    flights.unboard(new)


# Who would wait for itself


def nest_directly(inner):
    return inner()


def nest_in_a_thread_with_the_context(inner):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, inner).result(GUARD)


def nest_in_a_loop(inner):
    async def main():
        return inner()

    return nest_in_a_thread_with_the_context(lambda: asyncio.run(main()))


@pytest.mark.parametrize("nest", [nest_directly, nest_in_a_thread_with_the_context, nest_in_a_loop])
def test_call_inside_its_own_load_loads_alone(flights, nest):
    """Law 6: a re-entrant call loads for itself, also in a thread that inherited the context."""
    calls = []

    def load():
        calls.append(1)
        return nest(lambda: get(flights, b"a", load)) + 1 if len(calls) < 4 else 0

    assert get(flights, b"a", load) == 3
    assert len(calls) == 4


@pytest.mark.parametrize("kind", ["same task", "child task", "to_thread", "sync"])
def test_call_inside_its_own_async_load_loads_alone(flights, kind):
    """Law 6: a re-entrant call loads for itself, in the same task, in a child, in a thread, in the other colour."""
    calls = []

    async def load():
        calls.append(1)
        if len(calls) == 2:
            return "inner"
        if kind == "same task":
            return await aget(flights, b"a", load)
        if kind == "child task":
            return await asyncio.create_task(aget(flights, b"a", load))
        if kind == "to_thread":
            return await asyncio.to_thread(get, flights, b"a", lambda: "inner")
        return get(flights, b"a", lambda: "inner")

    assert asyncio.run(asyncio.wait_for(aget(flights, b"a", load), GUARD)) == "inner"


def test_call_two_loads_deep_for_the_outer_key_loads_alone(flights):
    """A load that asks for another key, whose load asks for the first, does not wait for itself."""
    depth = []

    def load_a():
        depth.append("a")
        return get(flights, b"b", load_b) if len(depth) < 3 else "end"

    def load_b():
        depth.append("b")
        return get(flights, b"a", load_a)

    assert get(flights, b"a", load_a) == "end"
    assert depth == ["a", "b", "a"]


def test_call_after_its_load_follows_again(flights):
    """Only what runs inside a load is inside it: afterwards, the same thread may follow the key's next flight."""
    before = _inside.get()
    assert get(flights, b"a", Origin("first")) == "first"
    assert _inside.get() == before
    held = Origin("second", hold=True)
    with Crew() as crew:
        leader = crew.submit(get, flights, b"a", held)
        assert held.entered.wait(GUARD)
        crew.submit(lambda: (flights.wait_for(3), held.go.set()))
        assert get(flights, b"a", Origin("never")) == "second"
        assert leader.result(GUARD) == "second"


def test_loads_of_two_threads_that_would_wait_for_each_other_do_not(flights):
    """Two loads, each asking for the other's key: one of them loads for itself, and both end."""
    both = threading.Barrier(2)
    calls = []

    def load(own, other):
        def inside():
            calls.append(own)
            both.wait(GUARD)
            return own + get(flights, other, other.lower)

        return inside

    with Crew() as crew:
        one = crew.submit(get, flights, b"A", load(b"A", b"B"))
        other = crew.submit(get, flights, b"B", load(b"B", b"A"))
        answers = {one.result(GUARD), other.result(GUARD)}
    assert answers in ({b"Ab", b"BAb"}, {b"ABa", b"Ba"})
    assert sorted(calls) == [b"A", b"B"]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_loads_in_a_ring_of_tasks_do_not_wait_for_each_other(flights, size):
    """A ring of loads, each waiting for the next: it is cut in one place, and all end."""

    async def main():
        ready = asyncio.Barrier(size)
        alone = []

        async def load(number):
            await ready.wait()
            key = bytes([(number + 1) % size])

            async def instead():
                alone.append(number)
                return "cut"

            return await aget(flights, key, instead)

        tasks = [aget(flights, bytes([number]), partial(load, number)) for number in range(size)]
        answers = await asyncio.wait_for(asyncio.gather(*tasks), GUARD)
        assert answers == ["cut"] * size
        assert len(alone) == 1

    asyncio.run(main())


def test_ring_is_seen_though_one_of_two_who_wait_has_gone(flights):
    """Of two children of one load that wait for the same flight, one goes: the other still waits, and counts."""

    async def main():
        inside, asked = asyncio.Event(), asyncio.Event()

        async def load_b():
            inside.set()
            await asked.wait()
            return await aget(flights, b"A", Origin("alone"))

        async def load_a():
            await inside.wait()
            children = [asyncio.create_task(aget(flights, b"B", Origin("never"))) for _ in range(2)]
            await settle()
            children[0].cancel()
            await asyncio.wait([children[0]])
            asked.set()
            return await children[1]

        tasks = aget(flights, b"A", load_a), aget(flights, b"B", load_b)
        return await asyncio.wait_for(asyncio.gather(*tasks), GUARD)

    assert asyncio.run(main()) == ["alone", "alone"]


def test_ring_through_a_load_inside_a_load_is_seen(flights):
    """A load waits for whatever a load inside it waits for: who leads the outer one is not waited for from there."""

    async def main():
        inside, asked = asyncio.Event(), asyncio.Event()

        async def load_c():
            inside.set()
            await asked.wait()
            return await aget(flights, b"A", Origin("alone"))

        async def load_a():
            await inside.wait()
            return await aget(flights, b"B", lambda: aget(flights, b"C", Origin("never")))

        tasks = [asyncio.create_task(aget(flights, b"A", load_a)), asyncio.create_task(aget(flights, b"C", load_c))]
        await settle()
        asked.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), GUARD)

    assert asyncio.run(main()) == ["alone", "alone"]


def test_flight_waited_for_before_does_not_stand_in_the_way(flights):
    """A thread may wait for a load that has waited for one of its own, and waits no more."""
    first, second = Origin("b", hold=True), Origin("a", hold=True)

    def load_a():
        return get(flights, b"b", Origin("never")) + second()

    with Crew() as crew, ThreadPoolExecutor(1) as thread:
        leads_b = thread.submit(get, flights, b"b", first)
        assert first.entered.wait(GUARD)
        leads_a = crew.submit(get, flights, b"a", load_a)
        flights.wait_for(3)
        first.go.set()
        assert leads_b.result(GUARD) == "b"
        assert second.entered.wait(GUARD)
        follows_a = thread.submit(get, flights, b"a", Origin("alone"))
        flights.wait_for(1)
        second.go.set()
        assert (leads_a.result(GUARD), follows_a.result(GUARD)) == ("ba", "ba")


def test_sync_call_on_the_leading_loops_own_thread_loads_alone(flights):
    """A call that blocks the thread its leader's task runs on would wait for ever: it loads for itself."""

    async def main():
        go = asyncio.Event()

        async def load():
            await go.wait()
            return "led"

        leader = asyncio.create_task(aget(flights, b"a", load))
        await settle()
        told = get(flights, b"a", Origin("alone"))
        go.set()
        return told, await leader

    assert asyncio.run(main()) == ("alone", "led")


def test_sync_call_that_waits_for_its_own_loop_over_another_thread_loads_alone(flights):
    """A thread whose load waits for this loop's task must not be waited for by blocking this loop."""
    waiting = threading.Event()

    def load_b():
        waiting.set()
        return "b" + get(flights, b"a", Origin("never"))

    async def main(crew):
        go = asyncio.Event()

        async def load_a():
            await go.wait()
            return "a"

        leader = asyncio.create_task(aget(flights, b"a", load_a))
        await settle()
        thread = crew.submit(get, flights, b"b", load_b)
        flights.wait_for(3)
        told = get(flights, b"b", Origin("alone"))
        go.set()
        return told, await leader, await asyncio.wrap_future(thread)

    with Crew() as crew:
        assert asyncio.run(main(crew)) == ("alone", "a", "ba")


def test_load_asking_for_a_flight_of_the_loop_that_its_follower_blocks_loads_alone(flights):
    """The same ring, closed from the other side: the loop blocks first, then the thread asks for its task's key."""
    leading, blocked = threading.Event(), threading.Event()

    def load_b():
        leading.set()
        assert blocked.wait(GUARD)
        return "b" + get(flights, b"a", Origin("alone"))

    async def main(crew):
        go = asyncio.Event()

        async def load_a():
            await go.wait()
            return "a"

        leader = asyncio.create_task(aget(flights, b"a", load_a))
        await settle()
        thread = crew.submit(get, flights, b"b", load_b)
        assert leading.wait(GUARD)
        flights.wait_for(2)
        crew.submit(lambda: (flights.wait_for(1), blocked.set()))
        told = get(flights, b"b", Origin("never"))
        go.set()
        return told, await leader, await asyncio.wrap_future(thread)

    with Crew() as crew:
        assert asyncio.run(main(crew)) == ("balone", "a", "balone")


@pytest.mark.usefixtures("_hurry")
def test_loads_asking_for_random_keys_all_end(flights):  # noqa: C901 - the loads of both colours
    """Threads and loops whose loads ask for each other's keys, at random: all end, and nothing is left behind."""
    keys = [bytes([number]) for number in range(5)]

    def load(seed, depth):
        def inside():
            drawn = random.Random(seed)
            if depth == 0:
                return 1
            return sum(get(flights, drawn.choice(keys), load(seed * 7 + place, depth - 1)) for place in range(2))

        return inside

    def aload(seed, depth):
        async def inside():
            drawn = random.Random(seed)
            if depth == 0:
                await asyncio.sleep(0)
                return 1
            asked = (aget(flights, drawn.choice(keys), aload(seed * 7 + place, depth - 1)) for place in range(2))
            return sum(await asyncio.gather(*asked))

        return inside

    async def several(seed):
        for turn in range(10):
            asked = (aget(flights, keys[place], aload(seed + 31 * turn + place, 3)) for place in range(4))
            assert all(isinstance(one, int) for one in await asyncio.gather(*asked))

    def many(seed):
        for turn in range(20):
            assert isinstance(get(flights, keys[turn % 5], load(seed + 31 * turn, 3)), int)

    with Crew() as crew:
        asked = [crew.submit(many, seed) for seed in range(5)]
        asked += [crew.submit(asyncio.run, several(1000 + seed)) for seed in range(3)]
        for one in asked:
            one.result(GUARD)


# Invalidation, fork, what is left


def request(key=b"a", **facets):
    return Request(key, facets=Facets(**facets))


@pytest.mark.parametrize(
    ("facet", "value"), [("key", b"a"), ("tenant", "acme"), ("function", "f"), ("namespace", "shop")]
)
def test_flight_that_an_invalidation_means_is_boarded_no_more(flights, facet, value):
    """Law 8: who comes after an invalidation is not given what was loaded before it; who came before it still is."""
    asked = request(tenant="acme", function="f", namespace="shop")
    old, _ = flights.board(b"a", asked, blocks=False)
    follower, leads = flights.board(b"a", asked, blocks=False)
    assert (follower, leads) == (old, False)
    flights.close(facet, value)
    new, leads = flights.board(b"a", asked, blocks=False)
    assert leads
    assert new is not old
    assert len(flights) == 2
    flights.land(old, "old")
    assert old.future.result(0) == "old"
    assert flights.board(b"a", asked, blocks=False) == (new, False)
    flights.land(new, "new")
    assert new.future.result(0) == "new"
    flights.unboard(old)
    flights.unboard(new)


@pytest.mark.parametrize(("facet", "value"), [("key", b"b"), ("tenant", "other"), ("tenant", ""), ("model", "acme")])
def test_flight_that_an_invalidation_does_not_mean_is_boarded(flights, facet, value):
    """An invalidation of something else disturbs no load."""
    asked = request(tenant="acme")
    flight, _ = flights.board(b"a", asked, blocks=False)
    flights.close(facet, value)
    assert flights.board(b"a", asked, blocks=False) == (flight, False)
    flights.land(flight, 1)
    flights.unboard(flight)


def test_flights_forgotten_after_a_fork_are_led_anew(flights):
    """In a forked child the leaders are gone: their flights are too."""
    flights.board(b"a", blocks=True)
    flights.forget()
    assert len(flights) == 0
    flight, leads = flights.board(b"a", blocks=True)
    assert leads
    flights.land(flight, 1)


def test_flight_that_nobody_follows_makes_no_future(flights):
    """Most loads have one caller: for those a flight is an entry in a dict."""
    flight, _ = flights.board(b"a", blocks=True)
    assert flight.future is None
    flights.land(flight, "answer")
    assert flight.future is None


def test_flight_landed_is_freed(flights):
    """A landed flight holds on to nothing, nor does anything to it."""
    with Crew() as crew:
        held = Origin(hold=True)
        asked = [crew.submit(get, flights, b"a", lambda: get(flights, b"b", held)) for _ in range(4)]
        assert held.entered.wait(GUARD)
        held.go.set()
        for one in asked:
            one.result(GUARD)
        del asked, one
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one).__name__ == "Flight" and one.key in (b"a", b"b")]


def test_coroutine_dropped_by_its_loop_abandons_its_flight(flights):
    """A leader whose task is never run again, because its loop was closed, gives its flight up when it is collected."""

    async def load():
        await asyncio.get_running_loop().create_future()

    coroutine = aget(flights, b"a", load)

    async def main():
        coroutine.send(None)

    asyncio.run(main())
    assert len(flights) == 1
    coroutine.close()
    assert len(flights) == 0
    assert get(flights, b"a", Origin()) == "answer"


def test_plain_flights_are_what_a_cache_has():
    """Without a watcher they behave the same."""
    plain = Flights()
    flight, leads = plain.board(b"a", blocks=True)
    assert (leads, len(plain)) == (True, 1)
    plain.land(flight, 1)
    assert len(plain) == 0
