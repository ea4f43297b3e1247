"""Plans: procedures without I/O that say what to wait for, and the two drivers that carry them out.

A plan is a generator. It yields steps and is sent their results; `run` carries it out in a thread, `arun` on an
asyncio loop. So a procedure stands once for both colours, and a test can walk it step by step.

Laws:
- a plan does nothing that can block; what can, it yields;
- the origin's errors never travel through a plan's frames: `load` sends back an Outcome (an origin may raise
  StopIteration, which no generator can let through unchanged); only what must stop the plan itself
  (cancellation, KeyboardInterrupt) is thrown in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from inspect import isawaitable
from typing import Any, Generic, TypeAlias, TypeVar, cast

T = TypeVar("T")


class Outcome(Generic[T]):
    """What came of a load: a value, or the origin's error."""

    __slots__ = ("error", "value")

    def __init__(self, value: T | None = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error

    def unwrap(self) -> T:
        """Return the value, or raise the origin's error as it was."""
        if self.error is None:
            return cast("T", self.value)
        error, context = self.error, self.error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # which raising has set anew, where the caller handles an error of its own
            del self, error  # this frame is in the error's traceback: without this they would keep each other alive


class Call:
    """Call a function; under `arun`, what it returns is awaited if it can be. Its errors are thrown into the plan."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function = function
        self.args = args

    def run(self) -> Any:
        return self.function(*self.args)

    async def arun(self) -> Any:
        result = self.function(*self.args)
        return await result if isawaitable(result) else result


class Load:
    """Call the origin; sends back an Outcome, whatever kind of Exception it raised."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def run(self) -> Outcome[Any]:
        try:
            return Outcome(self.function())
        except Exception as error:  # noqa: BLE001 - the origin's error, whatever it is, is its caller's
            return Outcome(error=error)

    async def arun(self) -> Outcome[Any]:
        try:
            result = self.function()
            return Outcome(await result if isawaitable(result) else result)
        except Exception as error:  # noqa: BLE001 - the origin's error, whatever it is, is its caller's
            return Outcome(error=error)


class Wait:
    """Wait for a future, at most `timeout` seconds; TimeoutError is thrown into the plan, the future is left alone."""

    __slots__ = ("future", "timeout")

    def __init__(self, future: Future[Any], timeout: float | None = None) -> None:
        self.future = future
        self.timeout = timeout

    def run(self) -> Any:
        return self.future.result(self.timeout)

    async def arun(self) -> Any:
        if self.future.done():
            return self.future.result()
        import asyncio

        waiter = asyncio.wrap_future(self.future)
        waiter.add_done_callback(_retrieve)
        try:
            done, _ = await asyncio.wait([waiter], timeout=self.timeout)
        finally:
            # Who waits no more must not be called back, perhaps after its loop was closed. The shared future goes on:
            # whoever made it marked it as running, so that it cannot be cancelled.
            waiter.cancel()
        if not done:
            raise TimeoutError
        return self.future.result()  # as in a thread: the waiter's would take a cancelled future for a cancelled task


def _retrieve(waiter: Any) -> None:
    """Look at the error of a future nobody waits for any more, so that asyncio does not report it as lost."""
    if not waiter.cancelled():
        waiter.exception()


Step: TypeAlias = Call | Load | Wait
Plan: TypeAlias = Generator[Step, Any, T]


def run(plan: Plan[T]) -> T:
    """Carry out a plan in this thread."""
    result: Any = None
    try:
        step = next(plan)
        while True:
            try:
                result = step.run()
            except BaseException as error:  # noqa: BLE001 - the plan decides what a failed step means
                step = plan.throw(error)
            else:
                step = plan.send(result)
    except StopIteration as stop:
        return cast("T", stop.value)
    finally:
        result = None  # the traceback of an origin's error holds this frame, which must not hold the error


async def arun(plan: Plan[T]) -> T:
    """Carry out a plan on the running loop."""
    result: Any = None
    try:
        step = next(plan)
        while True:
            try:
                result = await step.arun()
            except BaseException as error:  # noqa: BLE001 - the plan decides what a failed step means
                step = plan.throw(error)
            else:
                step = plan.send(result)
    except StopIteration as stop:
        return cast("T", stop.value)
    finally:
        result = None  # as above; Python 3.13 does so for coroutines too
