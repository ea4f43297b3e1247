"""Events: the facts about lookups and faults, who hears them, and who sums them.

Laws:
- an observer cannot break a lookup: what it raises is logged once for each observer, and dropped;
- every finished lookup is one event, with the wall-clock nanoseconds of each of its stages.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import RLock
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

from semcache.meter import Amounts, Meter, model_of, total_of
from semcache.model import BELOW, Decision, Entry, Facets, Usage
from semcache.stats import Stats
from semcache.trace import Watch, tracing
from semcache.warning import warn

if TYPE_CHECKING:
    from semcache.ledger import Ledger, Near
    from semcache.recording import Call
    from semcache.recording.tape import Tape

logger = logging.getLogger("semcache")

# So many memory hits, and other lookups, are noted before they are summed.
FOLD_AT = 4096
EVENTS_FOLD_AT = 256
# Tiers that are another process or a file: the first fault of each kind is logged.
_TOLD = ("disk", "redis", "memcached", "sidecar", "recording")

STAGES = ("key", "memory", "wait", "pool", "store", "embed", "search", "decide", "load", "put")

Kind = Literal["hit", "miss", "bypass", "refresh", "fault", "invalidated", "mode", "reported", "policy"]


@dataclass(slots=True)
class Event:
    """One fact.

    `kind` is "hit", "miss" or "bypass" for a lookup, "refresh" for a load behind an answer that was served stale,
    "fault" for what went wrong away from a lookup, "invalidated", "mode" for a switch of all replicas, "reported", or
    "policy" for what a policy that learns opens or closes.
    `stages` holds nanoseconds of wall-clock time; `age`, `life` (what remains of it) and `load_seconds` are seconds.
    `similarity` is the cosine of the near match that was served, or, of a miss, of the best that was not, `cut` what it
    was held against.
    `faults` are the (tier, reason, message) met on the way: each made that tier a miss. `reason` says why a call was
    bypassed, or its near match not served. `shared` is True for a follower, which was given its leader's answer.
    `stage` is what cost and time are booked on, `usage` what the answer's load has cost, where that is known; `tenant`
    is told only by a cache that was made with `tenant_usage=True`. `call` is there for a recording, which takes it.
    `near` tells both texts of a near match that was served, for `report_wrong` and the ledger; `identify` finds the id
    of a client's answer, `response_id`, which is told where it was loaded or given for a near match. `watch` follows
    the lookup while it goes on, `seen` is told to who looks at recent ones, `text` is the part that may match nearly.
    """

    kind: Kind
    function: str = ""
    namespace: str = ""
    tier: str | None = None
    key: bytes = b""
    similarity: float | None = None
    neighbour: bytes | None = None
    decision: Decision | None = None
    age: float | None = None
    life: float | None = None
    load_seconds: float | None = None
    reason: str | None = None
    shared: bool = False
    failed: bool = False
    is_stale: bool = False
    stages: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    stage: str = ""
    model: str = ""
    tenant: str = ""
    usage: Usage | None = None
    call: Call | None = field(default=None, repr=False, compare=False)
    near: Near | None = field(default=None, repr=False, compare=False)
    identify: Callable[[Any], str | None] | None = field(default=None, repr=False, compare=False)
    response_id: str | None = None
    seen: Any = field(default=None, repr=False, compare=False)
    watch: Watch | None = field(default=None, repr=False, compare=False)
    text: str | None = field(default=None, repr=False, compare=False)

    @property
    def is_hit(self) -> bool:
        return self.kind == "hit"

    @property
    def cut(self) -> float | None:
        """The cut that decided on the near match; None where none was asked."""
        return None if self.decision is None else self.decision.cut

    def fault(self, tier: str, error: BaseException) -> None:
        """Note what made a tier a miss."""
        self.faults.append((tier, getattr(error, "reason", None) or type(error).__name__, str(error)))

    def took(self, stage: str, nanoseconds: int, ended: int = 0) -> None:
        """Add to a stage's time, which ended at that reading of `perf_counter_ns`, or just now."""
        self.stages[stage] = self.stages.get(stage, 0) + nanoseconds
        if self.watch is not None:
            self.watch.took(stage, nanoseconds, ended or perf_counter_ns())


Observer = Callable[[Event], None]


# A memory hit leaves what its event can be made of, not the event: most callers never look.
Unmade = tuple[Any, ...]
_last: ContextVar[Event | Unmade | None] = ContextVar("semcache_last", default=None)
remember = _last.set


def last() -> Event | None:
    """Return how the latest cached call of this thread or task was answered, or None."""
    latest = _last.get()
    if latest is None or isinstance(latest, Event):
        return latest
    event: Event = latest[0].memory_hit(*latest[1:])
    _last.set(event)
    return event


class Recorder:
    """Takes every event: sums it, remembers it for `last` and `trace`, and tells the observers."""

    def __init__(self, observers: list[Observer], meter: Meter | None = None, ledger: Ledger | None = None) -> None:
        self.observers = observers
        self.recording: Tape | None = None
        self.ledger = ledger
        self.meter = meter or Meter()
        self._broken: set[int] = set()
        self._warned: set[str] = set()
        self._lock = RLock()  # the collector may close a half-read stream, and record it, while this thread holds it
        self._hits: Counter[str] = Counter()
        self._bypasses: Counter[str] = Counter()
        self._not_served: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._stages: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._calls: dict[str, Counter[str]] = {}
        self._quick_hits: dict[str, int] = {}
        # Lookups are noted here without a lock (deque.append is atomic) and summed later, many at once.
        self.quick: deque[tuple[Facets, str, int, int, float, Usage | None, float]] = deque()
        self._events: deque[Event] = deque()

    def add_observer(self, observer: Observer) -> None:
        """Tell `observer` every event from now on."""
        self.observers.append(observer)

    def fold(self) -> None:
        """Sum the lookups noted so far."""
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        """Sum the lookups noted so far; the lock is held."""
        events = self._events
        with suppress(IndexError):  # the collector, at work in this thread, may have recorded a stream and folded
            for _ in range(len(events)):
                self._sum(events.popleft())
            self._fold_quick()
        if self.meter.is_over:
            self.meter.turn()

    def _fold_quick(self) -> None:
        """Sum the memory hits; of those in a row most are of one function, whose sums are looked up once."""
        quick, meter = self.quick, self.meter
        latest: tuple[Facets, str] | None = None
        all_key_ns = all_memory_ns = 0
        for _ in range(len(quick)):
            facets, stage, key_ns, memory_ns, load_seconds, usage, age = quick.popleft()
            if latest is None or facets is not latest[0] or stage is not latest[1]:
                latest = facets, stage
                model = model_of(facets.model, usage)  # facets are one entry's, or say their model themselves
                sums, price = meter.sums_of(stage, model, facets.tenant), meter.price_of(model)
            self._quick_hits[facets.function] = self._quick_hits.get(facets.function, 0) + 1
            all_key_ns += key_ns
            all_memory_ns += memory_ns
            seconds = load_seconds - (key_ns + memory_ns) / 1e9
            meter.saved(sums, price, usage, seconds, age, is_near=False)
        self._stages["key"] += all_key_ns
        self._stages["memory"] += all_memory_ns

    def counted(self) -> dict[str, Amounts]:
        """Return what the meter has counted, by day and name."""
        with self._lock:
            self._fold()
            return self.meter.counted()

    def taken(self) -> dict[str, Amounts]:
        """Take what the meter has counted, by day and name, to be booked."""
        with self._lock:
            self._fold()
            return self.meter.take()

    def put_back(self, day: str, amounts: Amounts) -> None:
        """Have the meter count again what could not be booked."""
        with self._lock:
            self.meter.put_back(day, amounts)

    def counts(self, function: str) -> tuple[int, int, int]:
        """Return a function's hits, misses and bypasses."""
        with self._lock:
            self._fold()
            calls = self._calls.get(function) or Counter()
            return calls["hit"] + self._quick_hits.get(function, 0), calls["miss"], calls["bypass"]

    def lookup(self, event: Event, answer: Any = None) -> None:
        """Take the event of a finished lookup; `answer` is what its caller is given, where that is known here."""
        if event.kind == "miss" and event.decision is not None:
            event.similarity = event.decision.similarity
        if self.recording is not None:
            self.recording.take(event, answer)
        if self.ledger is not None and (event.near is not None or event.identify is not None):
            self.ledger.note(event, answer)
        if len(self._events) >= EVENTS_FOLD_AT or self.meter.is_over:
            self.fold()
        self._events.append(event)
        remember(event)
        for collected in tracing():
            collected.take(event)
        if self.observers:
            self.tell(event)

    def relay(self, event: Event, *, is_told: bool = True) -> None:
        """Take the event of a lookup for another process, which counts it itself; observers may be told of it."""
        if self.ledger is not None and event.near is not None:
            self.ledger.note(event, None)
        if is_told:
            self.tell(event)

    def fault(self, tier: str, reason: str, error: BaseException) -> None:
        """Take a fault met away from any lookup: in a writer, a worker, a sweep."""
        with self._lock:
            self._count_fault(tier, reason, str(error))
        self.tell(Event("fault", tier=tier, reason=reason, faults=[(tier, reason, str(error))]))

    def tell(self, event: Event) -> None:
        """Tell the observers, none of which can break us."""
        for observer in self.observers:
            try:
                observer(event)
            except Exception:  # whatever an observer raises is its own affair
                if id(observer) not in self._broken:
                    self._broken.add(id(observer))
                    logger.exception("observer %r failed; its further failures are not logged", observer)

    def warn_once(self, about: str, message: str) -> None:
        """Warn the developer of something that happens at many calls, once, at the line that called us."""
        with self._lock:
            if about in self._warned:
                return
            self._warned.add(about)
        warn(message)

    @property
    def is_watched(self) -> bool:
        """Say whether anybody looks at the event of each lookup."""
        return bool(self.observers or self.recording or tracing())

    def glanced(self, latest: Event, facets: Facets, stage: str, count: int, saved: float, nanoseconds: int) -> None:
        """Sum so many plain hits of one tier, whose loads took `saved` seconds; the rest is as in `hits`."""
        with self._lock:
            if self.meter.is_over:
                self._fold()
            seconds = saved - count * nanoseconds / 1e9
            self._calls.setdefault(facets.function, Counter())["hit"] += count
            sums, price = self.meter.sums_of(stage, facets.model, facets.tenant), self.meter.price_of(facets.model)
            self.meter.saved(sums, price, None, seconds, 0.0, is_near=False, count=count)
            self._hits[latest.tier or ""] += count
            for name in latest.stages:
                self._stages[name] += nanoseconds * count
        remember(latest)

    def hits(self, latest: Event, found: Sequence[tuple[Facets, str, Entry]], nanoseconds: int) -> None:
        """Sum hits of one tier that nobody watches, (facets, stage, entry) each, at once; `latest` is the last one's.

        Each took so many nanoseconds in the stage that `latest` names.
        """
        group: tuple[Facets, str] | None = None
        with self._lock:
            if self.meter.is_over:
                self._fold()
            for facets, stage, entry in found:
                if group is None or facets is not group[0] or stage is not group[1]:
                    group = facets, stage
                    model = model_of(facets.model, entry.usage)
                    sums, price = self.meter.sums_of(stage, model, facets.tenant), self.meter.price_of(model)
                    calls = self._calls.setdefault(facets.function, Counter())
                calls["hit"] += 1
                seconds = entry.load_seconds - nanoseconds / 1e9
                self.meter.saved(sums, price, entry.usage, seconds, entry.age, is_near=False)
            self._hits[latest.tier or ""] += len(found)
            for stage in latest.stages:
                self._stages[stage] += nanoseconds * len(found)
        remember(latest)

    def after_fork(self) -> None:
        """Begin with a lock of our own: the old one may be held by a thread that the fork left behind.

        What the parent counted is the parent's to book.
        """
        self._lock = RLock()
        if self.recording is not None:
            self.recording.after_fork()
        if self.ledger is not None:
            self.ledger.after_fork()
        self.fold()
        self.meter.forget()

    def _sum(self, event: Event) -> None:
        """Add a lookup to the sums; the lock is held."""
        stages, kind = event.stages, event.kind
        self._account(event)
        calls = self._calls.get(event.function)
        if calls is None:
            calls = self._calls[event.function] = Counter()
        calls[kind] += 1
        for stage, nanoseconds in stages.items():
            self._stages[stage] += nanoseconds
        if kind == "hit":
            self._hits[event.tier or ""] += 1
            self._counts["stale"] += event.is_stale
        elif kind == "bypass":
            self._bypasses[event.reason or ""] += 1
        elif kind == "refresh":
            self._counts["refreshes"] += 1
        else:
            self._counts["misses"] += 1
            if event.reason:
                self._not_served[counted_as(event.reason, event.decision)] += 1
        if event.shared:
            self._counts["shared"] += 1
        elif kind != "hit":
            self._counts["loads"] += 1
            self._counts["load_errors"] += event.failed
        for tier, reason, message in event.faults:
            self._count_fault(tier, reason, message)

    def _account(self, event: Event) -> None:
        """Add what a lookup saved or spent to the sums; the lock is held."""
        meter, usage = self.meter, event.usage
        model = model_of(event.model, usage)
        sums, price = meter.sums_of(event.stage, model, event.tenant), meter.price_of(model)
        load_seconds, took = event.load_seconds or 0.0, sum(event.stages.values()) / 1e9
        if event.kind == "hit":
            is_near = event.similarity is not None
            meter.saved(sums, price, usage, load_seconds - took, event.age or 0.0, is_near=is_near)
        elif event.kind == "refresh":  # behind a caller who has his answer: nobody waited for it
            meter.spent(sums, price, usage, load_seconds, failed=event.failed, is_ours=True)
        elif not event.shared:
            meter.spent(sums, price, usage, load_seconds, failed=event.failed, is_ours=False)
            meter.took(sums, took - event.stages.get("load", 0) / 1e9)

    def _count_fault(self, tier: str, reason: str, message: str) -> None:
        """Count a fault, and log the first of each kind: a disk that is never reached is else easily overlooked."""
        kind = f"{tier}: {reason}"
        self._faults[kind] += 1
        is_told = tier in _TOLD or kind == "semantic: load"
        if self._faults[kind] == 1 and is_told:
            logger.warning("%s (%s); further ones are counted, in stats()", kind, message)

    def stats(self) -> Stats:
        """Return the sums, without the tiers' own."""
        with self._lock:
            self._fold()
            hits = self._hits + Counter({"memory": sum(self._quick_hits.values())})
            stages = self._stages
            by_model = self.meter.totals()
            total = total_of(by_model)
            unpriced = {row.model or "": row.unpriced_hits + row.unpriced_loads for row in by_model}
            return Stats(
                hits=dict(hits),
                misses=self._counts["misses"],
                bypasses=dict(self._bypasses),
                loads=self._counts["loads"],
                load_errors=self._counts["load_errors"],
                shared=self._counts["shared"],
                stale=self._counts["stale"],
                refreshes=self._counts["refreshes"],
                not_served=dict(self._not_served),
                faults=dict(self._faults),
                stages={stage: stages[stage] / 1e9 for stage in STAGES if stages[stage]},
                saved_prompt_tokens=total.saved_prompt_tokens,
                saved_completion_tokens=total.saved_completion_tokens,
                saved_seconds=total.saved_seconds,
                saved_money=total.saved_money,
                spent_money=total.spent_money,
                unpriced={model: calls for model, calls in unpriced.items() if calls},
                prices=", ".join(total.prices) or self.meter.prices.dated(),
            )


def counted_as(reason: str, decision: Decision | None) -> str:
    """Return a reason without what it tells of one text: "guard: numbers", "exact only", "below the cut"."""
    if decision is not None and decision.guard and decision.reason == reason:
        return f"guard: {decision.guard}"
    return next((begin for begin in ("exact only", BELOW) if reason.startswith(begin)), reason)
