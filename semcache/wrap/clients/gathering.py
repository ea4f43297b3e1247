"""A gathering: many calls of a cached client under way together, answered by one plan for both colours.

Only its crew, the threads or tasks side by side, is of a colour; each of them carries out the same worker, a plan too.

Laws: every call is answered as alone, by its client's engine, so that keys, flights (law 6), lives and what is not kept
are the same; what stands in the stores is found in few trips to each; what was loaded is kept, whatever becomes of the
rest; who is cancelled has ended all that it began.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from copy import deepcopy
from functools import partial
from typing import Any

from semcache.chain import Origin
from semcache.errors import TierError
from semcache.events import Event, remember
from semcache.lookup import finish, lookup
from semcache.many import find_many
from semcache.model import Request
from semcache.plan import Call, Load, Outcome, Plan, arun, run
from semcache.together import together
from semcache.wrap.clients.client import call_of
from semcache.wrap.clients.pack import GivenUp, Pack, Packing

# So many are asked for in one trip: its whole reply must come within the store's time for a single one.
_MOST_A_TRIP = 128


class Called:
    """One of the calls: what is known of it, and what came of it.

    `asked` is None where the call is none of the engine's, `request` where it goes by the cache, `event` where memory
    has answered it. `value` is what is kept of the answer, `outcome` what the caller is given.
    """

    __slots__ = ("asked", "engine", "event", "given", "outcome", "parameters", "request", "value")

    def __init__(self, engine: Any, parameters: Mapping[str, Any]) -> None:
        self.engine = engine
        self.parameters = parameters
        self.given: dict[str, Any] = {}
        self.asked: Any = None
        self.request: Request | None = None
        self.event: Event | None = None
        self.value: Any = None
        self.outcome: Outcome[Any] | None = None

    @property
    def is_shared(self) -> bool:
        """Say whether one load may serve all calls that are equal to this one."""
        return self.request is not None and self.request.mode != "off"

    def take(self, outcome: Outcome[Any]) -> None:
        """Take what came of its lookup."""
        self.value = outcome.value
        if outcome.error is not None:
            self.outcome = Outcome(error=outcome.error)
            return
        try:
            self.outcome = Outcome(self.asked.taken(outcome.value))
        except Exception as error:  # noqa: BLE001 - the SDK makes no answer of it: that is this call's, as when alone
            self.outcome = Outcome(error=error)

    def repeat(self, first: Called) -> None:
        """Take what came of an equal call: an answer of its own, equal to that one."""
        event, told = self.event, first.event
        if first.outcome is None or event is None or told is None:
            return
        event.shared = told.kind != "hit"
        if first.outcome.error is None:
            event.kind, event.tier, event.reason = "hit", told.tier if told.kind == "hit" else "flight", None
            event.age, event.load_seconds, event.usage = told.age, told.load_seconds, told.usage
            event.similarity, event.neighbour = told.similarity, told.neighbour
        self.take(Outcome(deepcopy(first.value), first.outcome.error))
        finish(self.engine.cache.chain, event, Outcome(self.value, first.outcome.error))


class Gathering:
    """The calls of one `gather` under way, in jobs: a call alone, or several that go in a pack."""

    def __init__(self, client: Any, most: int, packing: Packing | None, *, blocks: bool, goes_on: bool) -> None:
        self._client = client
        self._most = most
        self._packing = packing
        self._blocks = blocks
        self._goes_on = goes_on
        self._jobs: deque[list[Called]] = deque()
        self._again: list[Called] = []
        self._given_up: list[tuple[Any, GivenUp]] = []
        self._is_over = False

    def plan(self, calls: list[Called]) -> Plan[list[Any]]:
        """Answer the calls, in their order. Raises the first of their errors, unless they are to be returned."""
        for call in calls:
            self._open(call)
        first: dict[tuple[Any, bytes, str], Called] = {}
        repeats: list[tuple[Called, Called]] = []
        missing: list[Called] = []
        for call in calls:
            known = call
            if call.request is not None and call.is_shared:
                known = first.setdefault((call.engine, call.request.key, call.request.mode), call)
            if known is not call:
                repeats.append((call, known))
            elif call.outcome is None:
                missing.append(call)
        yield from self._find(missing)
        yield from self._send([call for call in missing if call.outcome is None])
        for call, known in repeats:
            call.repeat(known)
        events = [call.event for call in calls if call.event is not None and call.outcome is not None]
        if events:  # their own threads or tasks have heard of them, and not ours
            remember(events[-1])
        return self._results(calls)

    def _results(self, calls: list[Called]) -> list[Any]:
        done = [call.outcome for call in calls if call.outcome is not None]
        for outcome in done:
            if outcome.error is not None and not self._goes_on:
                outcome.unwrap()
        return [outcome.value if outcome.error is None else outcome.error for outcome in done]

    def _open(self, call: Called) -> None:
        """Look a call up in memory, and learn what a lookup needs."""
        try:
            path, call.given, send = call_of(self._client, call.engine, call.parameters)
        except Exception:  # noqa: BLE001 - what the SDK says of such a call, it says when the call is made
            return
        if not call.engine.takes(path, call.given):
            return
        call.asked, opened = call.engine.open(self._client, call.given, send)
        if opened is None:
            call.outcome = Outcome(call.asked.found)
        else:
            call.request, call.event = opened

    def _find(self, calls: list[Called]) -> Plan[None]:
        """Ask the stores for many at once; memory was asked already."""
        by_engine: dict[Any, list[Any]] = {}
        for call in calls:
            if call.is_shared:
                by_engine.setdefault(call.engine, []).append(call)
        for engine, asked in by_engine.items():
            cache = engine.cache
            start = 0 if cache.memory is None else 1
            for at in range(0, len(asked), _MOST_A_TRIP):
                group = asked[at : at + _MOST_A_TRIP]
                requests, events = [call.request for call in group], [call.event for call in group]
                found = yield from find_many(cache.chain, requests, events, start=start)
                for place, value in found.items():
                    group[place].take(Outcome(value))
                missing = [event for place, event in enumerate(events) if place not in found]
                if missing and all(event.faults for event in missing):
                    # The trip failed, as where it was too much for one: each may ask again, alone, before it is sent.
                    tier, reason, message = missing[0].faults[0]
                    cache.recorder.fault(tier, reason, TierError(reason, message))
                    for event in missing:
                        event.faults.clear()

    def _send(self, calls: list[Called]) -> Plan[None]:
        """Send what is missing, at most so many calls at a time."""
        busy = [call for call in calls if self._flies(call)]
        held = set(map(id, busy))
        jobs = self._parted([call for call in calls if id(call) not in held])
        while jobs and not self._is_over:
            yield from self._work(jobs, self._most)
            again, self._again = self._again, []
            jobs = [[call] for call in again]
        # Who leads these may be a task of the very loop that this call blocks; our own thread would notice, no other.
        if busy and not self._is_over:
            yield from self._work([[call] for call in busy], 1 if self._blocks else self._most)

    def _flies(self, call: Called) -> bool:
        """Say whether somebody else loads the answer of a call."""
        return call.request is not None and call.engine.cache.chain.flights.flies(call.request.key)

    def _parted(self, calls: list[Called]) -> list[list[Called]]:
        """Make jobs: those that may go in one pack together, in the order of the first of each."""
        if self._packing is None:
            return [[call] for call in calls]
        jobs: list[list[Called]] = []
        filling: dict[tuple[Any, bytes], list[Called]] = {}
        for call in calls:
            apart = None
            if call.is_shared:
                with suppress(Exception):  # the user's own text callable
                    apart = call.engine.apart(self._client, call.given)
            job = None if apart is None else filling.get((call.engine, apart))
            if job is not None and len(job) < self._packing.most:
                job.append(call)
                continue
            jobs.append([call])
            if apart is not None:
                filling[call.engine, apart] = jobs[-1]
        return jobs

    # The crew

    def _work(self, jobs: list[list[Called]], most: int) -> Plan[None]:
        """Do all jobs, at most so many at a time."""
        self._jobs.extend(jobs)
        number = min(most, len(jobs))
        if number == 1:
            yield from self._worker()
        else:
            yield Call(self._threads if self._blocks else self._tasks, number)
        for engine, given_up in self._given_up:
            name = engine.dialect.name
            engine.cache.recorder.warn_once(
                f"{name}: pack", f"calls of {name} that went in a pack are sent one by one: {given_up}"
            )
        self._given_up.clear()

    def _threads(self, number: int) -> None:
        """Work in so many threads, of which ours is one."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(number - 1, "semcache-gather") as pool:
            others: list[Future[None]] = []
            with suppress(RuntimeError):  # there are no more threads to be had: those that there are do it all
                others.extend(pool.submit(copy_context().run, run, self._worker()) for _ in range(number - 1))
            run(self._worker())
        for other in others:
            other.result()

    async def _tasks(self, number: int) -> None:
        """Work in so many tasks; who cancels us cancels them, and they have ended when this has."""
        import asyncio

        async def work() -> Exception | None:
            try:
                await arun(self._worker())
            except Exception as error:  # noqa: BLE001 - it is raised below, as it is, and not in a group
                return error
            return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work()) for _ in range(number)]
        for task in tasks:
            error = task.result()
            if error is not None:
                raise error

    def _worker(self) -> Plan[None]:
        """Take jobs and do them, until there are none, or no more are to be begun."""
        try:
            while not self._is_over:
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    return
                yield from self._alone(job[0]) if len(job) == 1 else self._packed(job)
                failed = any(call.outcome is not None and call.outcome.error is not None for call in job)
                self._is_over = self._is_over or (failed and not self._goes_on)
        except BaseException:
            self._is_over = True
            raise

    def _alone(self, call: Called) -> Plan[None]:
        if call.asked is None:
            call.outcome = yield Load(partial(self._create, call))
        else:
            opened = call.request, call.event
            # A thread of ours does not know whose loop our caller blocks: it waits for no load that others lead.
            plan = call.engine.plan(call.asked, opened, blocks=self._blocks, joins=not self._blocks)
            call.take((yield from plan))

    def _create(self, call: Called) -> Any:
        """Make a call as its caller would; returns the answer, or an awaitable of it."""
        from semcache.wrap.clients.early import resource_of  # it imports what the client has imported

        return resource_of(self._client, call.engine).create(**call.parameters)

    def _packed(self, calls: list[Called]) -> Plan[None]:
        """Answer calls by one; those that somebody else has begun to load, and all where it came to nothing, alone."""
        engine = calls[0].engine
        chain = engine.cache.chain
        busy = {id(call) for call in calls if self._flies(call)}
        free = [call for call in calls if id(call) not in busy]
        self._again.extend(call for call in calls if id(call) in busy)
        pack = Pack(
            engine, [call.parameters for call in free], [call.asked for call in free], self._packing,  # type: ignore[arg-type]
            partial(self._prepared, engine),
        )  # fmt: skip
        plans = []
        for place, call in enumerate(free):
            origin = Origin(call.asked.load, pack.keeps(place), call.asked.usage)
            plan = lookup(chain, call.request, origin, call.event, blocks=self._blocks, joins=False)  # type: ignore[arg-type]
            plans.append(_taken(call, plan))
        try:
            done = yield from together(plans, pack.load)
        except GivenUp as given_up:
            self._give_up(given_up, [call for call in free if call.outcome is None])
        else:
            for outcome in done:
                outcome.unwrap()

    def _give_up(self, given_up: GivenUp, calls: list[Called]) -> None:
        """Let the calls of a pack be sent one by one; tell why, and what was spent in vain."""
        call = calls[0]
        self._given_up.append((call.engine, given_up))
        self._again.extend(calls)
        if given_up.answer is None:
            call.event.fault("pack", given_up.error)  # type: ignore[union-attr]
            return
        cache = call.engine.cache
        event = cache.chain.begin("bypass", call.request)
        event.reason, event.load_seconds = "pack", given_up.seconds
        event.usage = call.asked.usage({"answer": given_up.answer}) if given_up.answer else None
        event.fault("pack", given_up.error)
        cache.recorder.lookup(event)

    def _prepared(self, engine: Any, parameters: Mapping[str, Any]) -> Any:
        """Return what asks the origin for a pack. Raises what the SDK raises for the parameters."""
        return call_of(self._client, engine, parameters, is_checked=True)[2]


def _taken(call: Called, plan: Plan[Outcome[Any]]) -> Plan[None]:
    """Have a call take what came of its lookup, whatever becomes of the other lookups beside it."""
    call.take((yield from plan))
