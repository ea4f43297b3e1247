"""What happens now: lookups by second and how long they took, of ten minutes; the latest of them; who never hits.

Laws: a lookup is noted and nothing more (deque.append is atomic), and added up with others, later; of the hits in
memory of one second the first are looked at one by one, all are counted; all that is kept has a bound, whatever comes;
texts are redacted before they are told, and one tenant is told of its own lookups alone.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from semcache.context import current
from semcache.events import Event
from semcache.ledger import Near
from semcache.meter import LONGEST_NAME
from semcache.sidecar.latencies import Buckets, added, bucket, quantiles
from semcache.sidecar.seen import KEPT, SHOWN
from semcache.sidecar.why import counted, plain, sentences

if TYPE_CHECKING:
    from semcache.redact import Redactor

SECONDS = 600
STEP = 5
# How long lookups took is added up by so many seconds; the latest of these are what is told of now.
SLOT, NOW_SLOTS = 10, 6
KINDS = ("exact", "near", "miss", "bypass", "error")
"""What lookups can be looked for by; an error is what a load was that failed."""

_LOOKUPS = frozenset({"hit", "miss", "bypass", "refresh"})
# So many lookups are noted before they are added up; so many of each kind are kept.
_FOLD_AT, _MOST_NOTED = 512, 8192
_LATEST = 200
# So many hits in memory are looked at in a second; of more than these one of 64, and the first of each call.
_LOOKED_AT, _SELDOM = 200, 63
_MOST_CALLERS, _MOST_REASONS = 200, 12
_MOST_KEYS = 8192
_OTHER = "other"
_SHOWN_REASONS = 3


class Looked(NamedTuple):
    """A lookup that was noted: its number, when (seconds since 1970), its event, whose it was."""

    number: int
    at: float
    event: Event
    tenant: str | None


@dataclass(slots=True)
class _Slot:
    """How long the lookups of some seconds took, by what came of them and stage; "" is the whole of it."""

    by: dict[str, dict[str, Buckets]] = field(default_factory=dict)


@dataclass(slots=True)
class _Caller:
    """What came of the lookups of one function, stage, model and tenant."""

    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    latest: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)


class Live:
    """An observer of a cache; `clock` gives seconds since 1970. With `texts` the latest lookups tell theirs."""

    def __init__(self, clock: Callable[[], float], *, texts: bool = True) -> None:
        self.texts = texts
        self.since = clock()
        self._clock = clock
        self._lock = Lock()
        # When, what, in which context, and for how many it stands.
        self._noted: deque[tuple[float, Event, Any, int]] = deque(maxlen=_MOST_NOTED)
        self._hits = self._added = 0
        self._turns, self._left = 0.0, 0
        self._number = 0
        self._counts: dict[int, dict[str, int]] = {}
        self._slots: dict[int, _Slot] = {}
        self._callers: dict[tuple[str, str, str, str], _Caller] = {}
        self._keys: dict[bytes, None] = {}
        self._latest: dict[str, deque[Looked]] = {kind: deque(maxlen=_LATEST) for kind in KINDS}
        self._redactor: Redactor | None = None

    def __call__(self, event: Event) -> None:
        """Note an event."""
        now, weight = self._clock(), 1
        if event.tier == "memory":
            self._hits = hits = self._hits + 1
            seen = event.seen
            if seen is not None:
                seen.hits += 1
            if not 0 < self._turns - now <= 1:  # or the clock was set back
                self._turns, self._left = now + 1, _LOOKED_AT
            if self._left <= 0 and hits & _SELDOM and (seen is None or seen.hits > 1):
                return
            self._left -= 1
            weight, self._added = hits - self._added, hits
        if (event.identify or event.call or event.near) is not None or len(event.model) > LONGEST_NAME:
            event = self._slim(event)
        noted = self._noted
        noted.append((now, event, current.get(), weight))
        if len(noted) >= _FOLD_AT and self._lock.acquire(blocking=False):
            # The collector may record a half-read stream in a thread that holds it: that one is added up later.
            try:
                self._fold()
            finally:
                self._lock.release()

    def _slim(self, event: Event) -> Event:
        """Return an event without what holds its call and its answer, and with no more of its texts than is shown."""
        near = event.near
        if near is not None:
            near = Near(near.text[:KEPT], near.neighbour[:KEPT]) if self.texts else None
        return replace(event, call=None, identify=None, near=near, model=event.model[:LONGEST_NAME])

    # Adding up; the lock is held

    def _fold(self) -> None:
        noted, second, slot_at = self._noted, -1, -1
        counts: dict[str, int] = {}
        slot = _Slot()
        with suppress(IndexError):
            for _ in range(len(noted)):
                at, event, context, weight = noted.popleft()
                now = int(at)
                if now != second:
                    second, counts = now, self._counts_of(now)
                    if now // SLOT != slot_at:
                        slot_at, slot = now // SLOT, self._slot_of(now // SLOT)
                for tier, _reason, _message in event.faults:
                    counts[f"fault {tier}"] = counts.get(f"fault {tier}", 0) + 1
                if event.kind in _LOOKUPS:
                    name = (event.tier or "") if event.kind == "hit" else event.kind
                    counts[name] = counts.get(name, 0) + weight
                    self._add(at, event, name, context, slot)
                    if event.failed:
                        counts["error"] = counts.get("error", 0) + 1

    def _add(self, at: float, event: Event, outcome: str, context: Any, slot: _Slot) -> None:
        kind = event.kind
        by = slot.by.get(outcome)
        if by is None:
            by = slot.by[outcome] = {"": {}}
        whole = 0
        for stage, nanoseconds in event.stages.items():
            whole += nanoseconds
            held = by.get(stage)
            if held is None:
                held = by[stage] = {}
            number = bucket(nanoseconds)
            held[number] = held.get(number, 0) + 1
        held, number = by[""], bucket(whole)
        held[number] = held.get(number, 0) + 1
        tenant = _tenant_of(event, context)
        self._number += 1
        shelf = "error" if event.failed else ("exact" if event.similarity is None else "near")
        self._latest[shelf if kind == "hit" or event.failed else "bypass" if kind == "bypass" else "miss"].append(
            Looked(self._number, at, event, tenant)
        )
        caller = self._caller_of(event, tenant or "")
        caller.latest = at
        if kind == "hit":
            seen = event.seen if event.tier == "memory" else None
            if seen is None:
                caller.hits += 1
            else:
                caller.hits, seen.told = caller.hits + max(0, seen.hits - seen.told), seen.hits
        elif kind != "refresh":
            self._missed(caller, event)

    def _missed(self, caller: _Caller, event: Event) -> None:
        key, is_known = event.key, event.key in self._keys
        if event.kind == "bypass":
            caller.bypasses += 1
        else:
            caller.misses += 1
            if not is_known:
                if len(self._keys) >= _MOST_KEYS:
                    del self._keys[next(iter(self._keys))]
                self._keys[key] = None
        reason = counted(event, is_known=is_known)
        reasons = caller.reasons
        reasons[reason if reason in reasons or len(reasons) < _MOST_REASONS else _OTHER] += 1

    def _counts_of(self, second: int) -> dict[str, int]:
        found = self._counts.get(second)
        if found is None:
            for old in [one for one in self._counts if not second - SECONDS < one <= second + SECONDS]:
                del self._counts[old]
            found = self._counts[second] = {}
        return found

    def _slot_of(self, number: int) -> _Slot:
        found = self._slots.get(number)
        if found is None:
            most = SECONDS // SLOT
            for old in [one for one in self._slots if not number - most < one <= number + most]:
                del self._slots[old]
            found = self._slots[number] = _Slot()
        return found

    def _caller_of(self, event: Event, tenant: str) -> _Caller:
        name = (event.function, event.stage, event.model, tenant)
        found = self._callers.get(name)
        if found is None:
            if len(self._callers) >= _MOST_CALLERS:
                name = (_OTHER, _OTHER, _OTHER, _OTHER)
            found = self._callers.setdefault(name, _Caller())
        return found

    # Of several processes

    def state(self) -> dict[str, Any]:
        """Return what is added up, as plain data."""
        with self._lock:
            self._fold()
            return {
                "counts": self._counts,
                "slots": {number: slot.by for number, slot in self._slots.items()},
                "callers": [
                    [*name, one.hits, one.misses, one.bypasses, one.latest, dict(one.reasons)]
                    for name, one in self._callers.items()
                ],
            }  # fmt: skip

    def with_others(self, states: Iterable[Mapping[str, Any]]) -> Live:
        """Return what happens here and in other processes, by their states."""
        whole = Live(self._clock, texts=self.texts)
        for state in (self.state(), *states):
            whole._take(state)
        return whole

    def _take(self, state: Mapping[str, Any]) -> None:
        for second, counts in state.get("counts", {}).items():
            own = self._counts.setdefault(second, {})
            for name, count in counts.items():
                own[name] = own.get(name, 0) + count
        for number, by in state.get("slots", {}).items():
            slot = self._slots.setdefault(number, _Slot())
            for outcome, stages in by.items():
                held = slot.by.setdefault(outcome, {"": {}})
                for stage, buckets in stages.items():
                    own_buckets: Buckets = held.get(stage, {})
                    held[stage] = added([own_buckets, buckets])
        for *name, hits, misses, bypasses, latest, reasons in state.get("callers", ()):
            one = self._callers.setdefault((name[0], name[1], name[2], name[3]), _Caller())
            one.hits, one.misses, one.bypasses = one.hits + hits, one.misses + misses, one.bypasses + bypasses
            one.latest = max(one.latest, latest)
            one.reasons.update(reasons)

    # Telling

    def told(self) -> dict[str, Any]:
        """Return what happened, as JSON: of ten minutes by STEP seconds, of the last minute, and who seldom hits."""
        now = self._clock()
        with self._lock:
            self._fold()
            slots = [slot for number, slot in self._slots.items() if number > int(now) // SLOT - NOW_SLOTS]
            return {
                "series": self._series(now),
                "latencies": list(_latencies(slots)),
                "whole": _whole(slots),
                "minute": self._minute(now),
                "callers": list(self._seldom()),
            }

    def _series(self, now: float) -> dict[str, Any]:
        """Return the lookups by outcome, errors and faults in each STEP of the ten minutes; the last is not over."""
        last = int(now) // STEP
        steps = SECONDS // STEP
        by: dict[str, list[int]] = {}
        for second, counts in self._counts.items():
            place = second // STEP - last + steps - 1
            if 0 <= place < steps:
                for name, count in counts.items():
                    by.setdefault(name, [0] * steps)[place] += count
        return {"until": (last + 1) * STEP, "step": STEP, "elapsed": now - last * STEP, "by": by}

    def _minute(self, now: float) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for second, counts in self._counts.items():
            if now - SLOT * NOW_SLOTS <= second <= now:
                sums.update(counts)
        return dict(sums)

    def _seldom(self) -> Iterator[dict[str, Any]]:
        """Yield callers, those first who hit least of much."""
        for (function, stage, model, tenant), one in sorted(
            self._callers.items(), key=lambda told: (told[1].hits > 0, -(told[1].misses + told[1].bypasses))
        ):
            yield {
                "function": function, "stage": stage, "model": model, "tenant": tenant, "hits": one.hits,
                "misses": one.misses, "bypasses": one.bypasses, "latest": one.latest,
                "reasons": one.reasons.most_common(_SHOWN_REASONS),
            }  # fmt: skip

    def lookups(
        self, search: str = "", kind: str = "", limit: int = 100, reach: Callable[[str], bool] | None = None
    ) -> list[dict[str, Any]]:
        """Return the latest lookups, newest first; with `reach` of those tenants alone.

        Each word of `search` is to be found in what is told of a lookup. `kind` is one of KINDS, empty for all.
        """
        words = search.casefold().split()
        with self._lock:
            self._fold()
            kept = [one for shelf in ([kind] if kind else KINDS) for one in self._latest[shelf]]
        rows: list[dict[str, Any]] = []
        for one in sorted(kept, reverse=True, key=lambda looked: looked.number):
            if reach is not None and (one.tenant is None or not reach(one.tenant)):
                continue
            row = self._row(one)
            if all(word in row["words"] for word in words):
                del row["words"]
                rows.append(row)
                if len(rows) >= limit:
                    break
        return rows

    def _row(self, one: Looked) -> dict[str, Any]:
        event, near = one.event, one.event.near
        seen = event.seen
        text = seen.text if seen is not None else near.text if near is not None else ""
        told: dict[str, Any] = {
            "number": one.number, "at": one.at, "kind": event.kind, "tier": event.tier, "function": event.function,
            "stage": event.stage, "model": event.model, "tenant": one.tenant or "", "key": event.key.hex(),
            "neighbour": event.neighbour.hex() if event.neighbour else None, "similarity": event.similarity,
            "cut": event.cut, "failed": event.failed, "shared": event.shared,
            "stages": [[stage, nanoseconds / 1e6] for stage, nanoseconds in event.stages.items()],
            "text": self._shown(text), "neighbour_text": "" if near is None else self._shown(near.neighbour),
            "why": [self._clean(sentence) for sentence in sentences(event)] if self.texts else list(plain(event)),
        }  # fmt: skip
        names = (event.kind, event.tier, event.function, event.stage, event.model, told["tenant"], told["key"])
        texts = (told["text"], told["neighbour_text"], *told["why"])
        told["words"] = " ".join(str(name or "") for name in (*names, *texts)).casefold()
        return told

    def _shown(self, text: str) -> str:
        if not text or not self.texts:
            return ""
        shown = self._clean(text)
        return shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"

    def _clean(self, text: str) -> str:
        if self._redactor is None:
            from semcache.redact import Redactor

            self._redactor = Redactor(os.urandom(32))  # nobody can tell from a mark what it stands for
        return self._redactor.text(text)


def _tenant_of(event: Event, context: Any) -> str | None:
    """Return whose lookup it was, where that is known."""
    if event.seen is not None:
        return str(event.seen.tenant)
    told = event.tenant or ("" if context is None else context.tenant)
    return told if isinstance(told, str) and told else None


def _latencies(slots: Iterable[_Slot]) -> Iterator[dict[str, Any]]:
    """Yield how long lookups took, by what came of them: whole, and by stage, in milliseconds."""
    outcomes: dict[str, dict[str, list[Buckets]]] = {}
    for slot in slots:
        for outcome, stages in slot.by.items():
            own = outcomes.setdefault(outcome, {})
            for stage, buckets in stages.items():
                own.setdefault(stage, []).append(buckets)
    for outcome, timed in outcomes.items():
        sums = {stage: added(told) for stage, told in timed.items()}
        whole = sums.pop("")
        yield {
            "outcome": outcome, "count": sum(whole.values()), "whole": quantiles(whole, (0.5, 0.99)),
            "stages": {
                stage: [sum(buckets.values()), *quantiles(buckets, (0.5, 0.99))] for stage, buckets in sums.items()
            },
        }  # fmt: skip


def _whole(slots: Iterable[_Slot]) -> dict[str, list[float]]:
    """Return how long hits took, and all lookups with their loads: half of them, and 99 of 100, in milliseconds."""
    kinds: dict[str, list[Buckets]] = {"hits": [], "lookups": []}
    for slot in slots:
        for outcome, stages in slot.by.items():
            kinds["lookups"].append(stages[""])
            if outcome not in _LOOKUPS and outcome != "flight":  # a tier that had it, and waited for no load
                kinds["hits"].append(stages[""])
    return {name: quantiles(added(told), (0.5, 0.99)) for name, told in kinds.items()}
