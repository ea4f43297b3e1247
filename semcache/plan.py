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
from contextvars import copy_context
from inspect import isawaitable
from threading import Condition, Thread
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

T = TypeVar("T")


class Outcome(Generic[T]):
    """What came of a load: a value, or the origin's error; `shares` is how many loads were one call."""

    __slots__ = ("error", "shares", "value")

    def __init__(self, value: T | None = None, error: BaseException | None = None, shares: int = 1) -> None:
        self.value = value
        self.error = error
        self.shares = shares

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


class Follow(Wait):
    """Wait for what somebody else loads."""

    __slots__ = ()


class Peer(Protocol):
    """A server, spoken to by threads and tasks; each waits `timeout` seconds at most, and raises what goes wrong.

    `join` makes one question of many, and returns it with a function that splits the answer.
    """

    def exchange(self, asked: Any, timeout: float) -> Any: ...
    async def aexchange(self, asked: Any, timeout: float) -> Any: ...
    def join(self, asked: list[Any]) -> tuple[Any, Callable[[Any], list[Any]]]: ...


class Exchange:
    """Ask a server; sends back its answer."""

    __slots__ = ("asked", "peer", "timeout")

    def __init__(self, peer: Peer, asked: Any, timeout: float) -> None:
        self.peer = peer
        self.asked = asked
        self.timeout = timeout

    def run(self) -> Any:
        return self.peer.exchange(self.asked, self.timeout)

    async def arun(self) -> Any:
        return await self.peer.aexchange(self.asked, self.timeout)


class Spawn:
    """Begin a plan behind the caller, in a thread or a task of its own; sends back whether there was room for it.

    What may block goes `in_thread`, whoever calls.
    """

    __slots__ = ("crew", "in_thread", "plan")

    def __init__(self, plan: Callable[[], Plan[Any]], crew: Crew, *, in_thread: bool = False) -> None:
        self.plan = plan
        self.crew = crew
        self.in_thread = in_thread

    def run(self) -> bool:
        return self.crew.start_thread(self.plan)

    async def arun(self) -> bool:
        return self.crew.start_thread(self.plan) if self.in_thread else self.crew.start_task(self.plan)


def running_future() -> Future[Any]:
    """Return a future that nobody who waits for it can cancel for the others."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def started(work: Callable[[], None], name: str) -> Thread | None:
    """Run work in a daemon thread of its own; None where there are no more threads, or the interpreter ends."""
    thread = Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


class Crew:
    """What runs behind the callers, at most `most` plans at once; what they raise is given to `on_error`."""

    def __init__(self, on_error: Callable[[BaseException], None], most: int = 16) -> None:
        self._on_error = on_error
        self._most = most
        self._running: set[object] = set()
        self._idle = Condition()

    def start_thread(self, plan: Callable[[], Plan[Any]]) -> bool:
        """Run a plan in a thread, in a copy of the caller's context."""
        context = copy_context()

        def work() -> None:
            try:
                context.run(lambda: run(plan()))
            except BaseException as error:  # noqa: BLE001 - nobody waits for it; it is told
                self._on_error(error)
            finally:
                self._leave(thread)

        thread = Thread(target=work, name="semcache-behind", daemon=True)
        if not self._enter(thread):
            return False
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._leave(thread)
            return False
        return True

    def start_task(self, plan: Callable[[], Plan[Any]]) -> bool:
        """Run a plan in a task of the running loop."""
        import asyncio

        async def work() -> None:
            try:
                await arun(plan())
            except Exception as error:  # noqa: BLE001 - nobody waits for it; it is told
                self._on_error(error)

        if len(self._running) >= self._most:
            return False
        task = asyncio.get_running_loop().create_task(work())
        self._enter(task)
        task.add_done_callback(self._leave)
        return True

    def _enter(self, one: object) -> bool:
        with self._idle:
            if len(self._running) >= self._most:
                return False
            self._running.add(one)
            return True

    def _leave(self, one: object) -> None:
        with self._idle:
            self._running.discard(one)
            self._idle.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no thread runs; False if the time was up first. Tasks are their loop's to wait for."""
        with self._idle:
            return self._idle.wait_for(lambda: not any(isinstance(one, Thread) for one in self._running), timeout)

    def after_fork(self) -> None:
        """Begin anew: what ran has stayed with the parent."""
        self._running = set()
        self._idle = Condition()


def _retrieve(waiter: Any) -> None:
    """Look at the error of a future nobody waits for any more, so that asyncio does not report it as lost."""
    if not waiter.cancelled():
        waiter.exception()


Step: TypeAlias = Call | Load | Wait | Exchange | Spawn
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
