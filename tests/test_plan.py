"""Plans: one procedure, carried out in a thread or on a loop, with the same results."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instruments import GUARD

from semcache.plan import Call, Load, Outcome, Plan, Wait, arun, run


@pytest.fixture(params=["run", "arun"])
def carry(request):
    """Carry out a plan in one colour, then in the other."""
    return run if request.param == "run" else lambda plan: asyncio.run(arun(plan))


class Odd(BaseException):
    """What is no Exception, as KeyboardInterrupt is none."""


def landed(value=None, error=None):
    future = Future()
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
    return future


def shared():
    """Make a future as flights and queues make them: nobody who waits for it can cancel it."""
    future = Future()
    future.set_running_or_notify_cancel()
    return future


def raising(error):
    def raise_it():
        raise error

    return raise_it


def caught(step):
    """Make a plan of one step that returns what was thrown into it."""

    def plan() -> Plan:
        try:
            yield step
        except BaseException as error:  # noqa: BLE001 - whatever it is
            return error
        return None

    return plan()


# Results


def test_plan_without_a_step_returns_its_value(carry):
    """A plan that waits for nothing is carried out too."""

    def plan() -> Plan[int]:
        return 5
        yield

    assert carry(plan()) == 5


def test_plan_of_every_step_is_sent_their_results(carry):
    """Each step's result is what the yield gives; plans are made of plans."""

    def inner(number) -> Plan[int]:
        return (yield Call(int, number)) + 1

    def plan() -> Plan[list]:
        called = yield Call(max, 2, 3)
        nested = yield from inner("4")
        loaded = yield Load(lambda: "loaded")
        waited = yield Wait(landed("waited"), 5)
        forever = yield Wait(landed("forever"))
        return [called, nested, loaded.unwrap(), loaded.error, waited, forever]

    assert carry(plan()) == [3, 5, "loaded", None, "waited", "forever"]


def test_plan_walked_by_hand_tells_what_it_waits_for():
    """A test can walk a plan step by step, and answer in its driver's place."""

    def plan() -> Plan[int]:
        first = yield Call(len, "abc")
        second = yield Wait(landed(1), 0.5)
        return first + second

    walked = plan()
    step = next(walked)
    assert (type(step), step.function, step.args) == (Call, len, ("abc",))
    step = walked.send(10)
    assert (type(step), step.timeout) == (Wait, 0.5)
    with pytest.raises(StopIteration) as stopped:
        walked.send(20)
    assert stopped.value.value == 30


def test_awaitable_result_is_awaited_on_a_loop():
    """On a loop, what a call or an origin returns is awaited if it can be, an awaitable of any kind."""

    async def answer(value):
        await asyncio.sleep(0)
        return value

    class Promise:
        def __await__(self):
            yield from answer("promised").__await__()
            return "kept"

    def plan() -> Plan[list]:
        called = yield Call(answer, 1)
        loaded = yield Load(lambda: answer(2))
        promised = yield Load(Promise)
        scheduled = yield Load(lambda: asyncio.ensure_future(answer(3)))
        plain = yield Load(lambda: 4)
        return [called, loaded.unwrap(), promised.unwrap(), scheduled.unwrap(), plain.unwrap()]

    assert asyncio.run(arun(plan())) == [1, 2, "kept", 3, 4]


def test_awaitable_result_in_a_thread_is_handed_on():
    """In a thread nothing is awaited: an awaitable is a result like another."""
    promise = shared()

    def plan() -> Plan:
        return (yield Load(lambda: promise)).unwrap()

    assert run(plan()) is promise


@given(st.lists(st.tuples(st.sampled_from(["call", "load", "wait"]), st.booleans(), st.integers()), max_size=6))
def test_plan_of_any_steps_gives_both_drivers_one_result(steps):
    """Sync and async callers share every line: what one driver returns or raises, the other does."""

    def plan() -> Plan[list]:
        told = []
        for kind, fails, number in steps:
            error = KeyError(number) if fails else None
            function = raising(error) if fails else lambda number=number: number
            try:
                if kind == "load":
                    outcome = yield Load(function)
                    told.append(outcome.error.args if fails else outcome.value)
                else:
                    told.append((yield Call(function) if kind == "call" else Wait(landed(number, error), 1)))
            except KeyError as thrown:
                told.append(thrown.args)
        return told

    wanted = [(number,) if fails else number for _, fails, number in steps]
    assert run(plan()) == asyncio.run(arun(plan())) == wanted


# Errors


@pytest.mark.parametrize("error", [ValueError("a"), StopIteration(5), StopAsyncIteration(6), TimeoutError()])
def test_error_of_an_origin_comes_out_unchanged(carry, error):
    """Whatever kind of error an origin raises, StopIteration too, its caller gets that very error."""

    def plan() -> Plan[Outcome]:
        outcome = yield Load(raising(error))
        yield Call(len, "")
        return outcome

    outcome = carry(plan())
    assert outcome.error is error
    with pytest.raises(type(error)) as raised:
        outcome.unwrap()
    assert raised.value is error


@pytest.mark.parametrize("error", [ValueError("a"), StopAsyncIteration(6), TimeoutError()])
def test_error_of_an_async_origin_comes_out_unchanged(error):
    """A coroutine's error is its caller's too."""

    async def origin():
        await asyncio.sleep(0)
        raise error

    def plan() -> Plan[Outcome]:
        return (yield Load(origin))

    assert asyncio.run(arun(plan())).error is error


@pytest.mark.parametrize("error", [KeyError("a"), StopAsyncIteration(6), Odd()])
def test_error_of_a_call_is_thrown_into_the_plan(carry, error):
    """A step that fails does so inside the plan, which decides what that means."""
    assert carry(caught(Call(raising(error)))) is error


def test_error_of_a_future_is_thrown_into_the_plan(carry):
    """What went wrong where we wait is an error of the step."""
    error = KeyError("a")
    assert carry(caught(Wait(landed(error=error), 5))) is error


@pytest.mark.parametrize("error", [Odd(), SystemExit(3)])
def test_what_must_stop_an_origin_stops_the_plan(carry, error):
    """What is no Exception is no outcome: it is thrown in, passes the plan's `finally`, and comes out."""
    passed = []

    def plan() -> Plan:
        try:
            yield Load(raising(error))
        finally:
            passed.append(1)

    with pytest.raises(type(error)) as raised:
        carry(plan())
    assert raised.value is error
    assert passed == [1]


def test_error_of_the_plan_itself_comes_out(carry):
    """A plan may raise; a step after a caught error is carried out."""

    def plan() -> Plan:
        try:
            yield Call(int, "x")
        except ValueError:
            answer = yield Call(int, "7")
        raise LookupError(answer)

    with pytest.raises(LookupError, match="7"):
        carry(plan())


def test_outcome_unwrapped_while_another_error_is_handled_keeps_its_context():
    """An origin's error is raised as it was: it does not take on the errors of whoever asks for it."""
    error = KeyError("a")
    outcome = Outcome(error=error)
    for _ in range(2):
        try:
            int("x")
        except ValueError:
            with pytest.raises(KeyError):
                outcome.unwrap()
        assert error.__context__ is None


class Held:
    """Something that an origin holds when it fails."""


def test_error_of_an_origin_dropped_is_freed_at_once():
    """No frame of a driver keeps an origin's error, and all that hangs on it, alive for the collector."""
    held = []

    def origin():
        mine = Held()
        held.append(weakref.ref(mine))
        raise ValueError

    def plan() -> Plan[Outcome]:
        return (yield Load(origin))

    gc.disable()
    try:
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - the origin's
            run(plan()).unwrap()
        del raised
        assert held[0]() is None
    finally:
        gc.enable()


def test_values_of_outcomes_are_theirs():
    """An outcome without an error is its value, None too."""
    assert Outcome(5).unwrap() == 5
    assert Outcome().unwrap() is None


# Waiting


def test_future_late_is_a_timeout_inside_the_plan_and_left_alone(carry):
    """When the time is up, the plan is told; whoever else waits is not touched, and it may be waited for again."""
    late, elsewhere = shared(), shared()

    def plan() -> Plan:
        try:
            yield Wait(late, 0.001)
        except TimeoutError:
            elsewhere.set_result("instead")
        return (yield Wait(elsewhere, GUARD))

    assert carry(plan()) == "instead"
    assert late.running()
    late.set_result("late")
    assert carry(caught(Wait(late, 0))) is None


def test_future_without_a_timeout_is_waited_for(carry):
    """A future that lands in another thread, while we wait, ends the waiting."""
    future = shared()

    def plan() -> Plan:
        threading.Thread(target=future.set_result, args=("landed",)).start()
        return (yield Wait(future))

    assert carry(plan()) == "landed"


def test_future_that_fails_while_we_wait_is_an_error_inside_the_plan(carry):
    """A future may fail in another thread, too."""
    future, error = shared(), KeyError("a")
    threading.Timer(0.001, future.set_exception, [error]).start()
    assert carry(caught(Wait(future, GUARD))) is error


@pytest.mark.parametrize("is_done", [True, False])
def test_future_cancelled_is_an_error_and_no_cancellation_of_the_caller(carry, is_done):
    """Who gave up the work that we wait for has not cancelled us: it is an Exception, in both colours."""
    future = Future()
    if is_done:
        future.cancel()
    else:
        threading.Timer(0.001, future.cancel).start()
    error = carry(caught(Wait(future, GUARD)))
    assert type(error) is CancelledError
    assert isinstance(error, Exception)


def test_future_waited_for_by_many_threads_and_loops_answers_all():
    """One future, any number of waiters of both colours."""
    future = shared()
    ready = threading.Semaphore(0)

    def plan() -> Plan:
        yield Call(ready.release)
        return (yield Wait(future, GUARD))

    async def several():
        return await asyncio.gather(*(arun(plan()) for _ in range(5)))

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(run, plan()) for _ in range(5)]
        loops = [pool.submit(asyncio.run, several()) for _ in range(2)]
        for _ in range(15):
            assert ready.acquire(timeout=GUARD)
        future.set_result("all")
        assert [one.result(GUARD) for one in asked] == ["all"] * 5
        assert [one.result(GUARD) for one in loops] == [["all"] * 5] * 2


# Cancellation


async def started(coroutine):
    """Start a task, and let it run until it waits."""
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def until_cancelled(step, passed):
    def plan() -> Plan:
        try:
            yield step
        except asyncio.CancelledError:
            passed.append("cancelled")
            raise
        finally:
            passed.append("finally")

    return plan()


async def forever():
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("kind", ["wait", "call", "load"])
def test_task_cancelled_passes_the_plans_finally(kind):
    """Cancellation is thrown into the plan, at whatever step it waits, and comes out as itself."""
    passed = []
    step = {"wait": lambda: Wait(shared(), GUARD), "call": lambda: Call(forever), "load": lambda: Load(forever)}[kind]()

    async def main():
        task = await started(arun(until_cancelled(step, passed)))
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert passed == ["cancelled", "finally"]


def test_task_cancelled_leaves_the_shared_future_to_the_others():
    """A follower that is cancelled cancels nobody else's waiting (design, section 9)."""
    future = shared()

    async def main():
        one = await started(arun(until_cancelled(Wait(future, GUARD), [])))
        other = await started(arun(caught(Wait(future, GUARD))))
        one.cancel()
        await asyncio.wait([one])
        assert one.cancelled()
        assert not future.cancelled()
        future.set_result("landed")
        assert await other is None

    asyncio.run(main())


def test_plan_that_goes_on_after_its_cancellation_is_carried_out():
    """What a plan does about a cancellation is its own affair: it may tidy up with further steps."""

    def plan() -> Plan:
        try:
            yield Wait(shared(), GUARD)
        except asyncio.CancelledError:
            yield Call(asyncio.sleep, 0)
            raise

    async def main():
        task = await started(arun(plan()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("error", [None, KeyError("nobody asked")])
@pytest.mark.parametrize("closed", [True, False])
def test_future_landing_when_nobody_waits_any_more_is_silent(error, closed, caplog):
    """Who was cancelled or late hears no more of it: no complaint about a lost error, none about a closed loop."""
    future = shared()
    complaints = []

    def land():
        future.set_exception(error) if error else future.set_result(1)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        task = await started(arun(until_cancelled(Wait(future, GUARD), [])))
        task.cancel()
        await asyncio.wait([task])
        assert isinstance(await arun(caught(Wait(future, 0.001))), TimeoutError)
        del task
        if not closed:
            land()
            for _ in range(5):
                await asyncio.sleep(0)
            gc.collect()

    asyncio.run(main())
    if closed:
        land()
    gc.collect()
    assert complaints == []
    assert caplog.records == []


def test_future_failing_while_we_wait_is_reported_once():
    """An error that the plan has got is not reported by the loop as lost."""
    complaints = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        future = shared()
        task = await started(arun(caught(Wait(future, GUARD))))
        future.set_exception(KeyError("a"))
        assert isinstance(await task, KeyError)
        del task
        gc.collect()

    asyncio.run(main())
    assert complaints == []


def test_coroutine_closed_in_the_middle_ends_its_plan():
    """A caller that is thrown away, as when its loop is closed, ends the plan: its `finally` runs."""
    passed = []

    async def pause():
        await asyncio.sleep(GUARD)

    async def main():
        coroutine = arun(until_cancelled(Call(pause), passed))
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())
    assert passed == ["finally"]


# Law 13

SYNC = """
import sys, threading
from concurrent.futures import Future
from semcache.plan import Call, Load, Wait, run

def plan(future):
    told = [(yield Call(len, "abc")), (yield Load(lambda: 4)).unwrap()]
    threading.Thread(target=future.set_result, args=(5,)).start()
    told.append((yield Wait(future, 30)))
    try:
        yield Wait(Future(), 0.001)
    except TimeoutError:
        told.append(6)
    return told

assert run(plan(Future())) == [3, 4, 5, 6]
print("asyncio" in sys.modules)
"""


def test_sync_use_does_not_load_asyncio():
    """Law 13: asyncio is imported only when an async call is made."""
    done = subprocess.run([sys.executable, "-c", SYNC], capture_output=True, text=True, timeout=GUARD, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
