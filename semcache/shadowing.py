"""A second embedder in shadow: what its near matches are, and how often they are right, is learned before the switch.

Behind the callers each text that was looked up is embedded by it too, its neighbours are found in an index of its own,
and its near match is compared with what was loaded, as a policy in shadow compares those of the embedder in use.
Laws:
- no caller waits for it, hears of its troubles, or is given what it finds; what it cannot take in time is left out, and
  counted: whether it is, does not depend on the match;
- its sample is drawn for each request, at one rate, before its match is known: so its labels are wrong as often as all
  its near matches are, though what the embedder in use serves is not loaded, and has none;
- what it learns stands under its own identity (law 11), where a cache finds it that is made with it as `embedder`.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from threading import Condition, RLock, Thread
from typing import Any, Protocol

from semcache.codec import Codec
from semcache.events import Event, Recorder
from semcache.keys import of_embedder
from semcache.labelling import Labelling
from semcache.model import Decision, Entry, Evidence, Hit, Miss, Request, Verdict
from semcache.plan import Plan, run, started
from semcache.policy import Policy, Shadow, Tuned
from semcache.policy.guards import Guards
from semcache.policy.label import Source
from semcache.policy.learner import LEARNING_SHARE, Learner
from semcache.tier import Clock
from semcache.together import together

NAME = "shadow"
"""What its faults and figures stand under."""
SHED = "the shadow embedder is behind"
# So many texts wait at most, of answers of so many bytes together; more is left out.
MOST_WAITING = 512
MOST_BYTES = 16 << 20
# So many are embedded at once: a caller's own batch waits behind one of these at most, where they share a device.
_TOGETHER = 32
_DRAWN = 2**32


class ShadowTier(Protocol):
    """What is asked of the second embedder's near tier."""

    policy: Policy

    @property
    def identity(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...
    def unready(self) -> str: ...
    def get(self, request: Request) -> Plan[Hit | Miss]: ...
    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]: ...
    def stats(self) -> Mapping[str, int | float]: ...
    def flush(self, timeout: float | None = None) -> bool: ...
    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Asked:
    """A request, what was loaded and kept for it (None: nothing was), and whether it is one of the sample.

    With `counts` it is one that no exact tier answered.
    """

    request: Request
    kept: Entry | None
    is_drawn: bool
    counts: bool

    @property
    def weight(self) -> int:
        return 0 if self.kept is None else len(self.kept.value)


class Shadowing:
    """Learns of a second embedder's near matches, in a thread of its own.

    `share` says which share of a request's near matches is drawn, `may_begin` whether the embedder in use is loaded:
    who answers callers comes first. `audits` says that nobody else loads what was drawn and would be served.
    """

    def __init__(
        self, tier: ShadowTier, labelling: Labelling, recorder: Recorder, *, share: Callable[[Request], float],
        may_begin: Callable[[], bool], audits: bool, seed: int | None,
    ) -> None:  # fmt: skip
        self.tier = tier
        self.labelling = labelling
        self._recorder = recorder
        self._share = share
        self._may_begin = may_begin
        self._audits = audits
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        # The collector may close a half-read stream, and hand it over, while this thread holds it.
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._waiting: deque[_Asked] = deque()
        self._bytes = 0
        self._is_closed = False
        self._thread: Thread | None = None
        self._draws = count()
        self._salt = os.urandom(8) if self._seed is None else b"%d" % self._seed

    @property
    def policy(self) -> Learner:
        """What it has learned."""
        return self.labelling.policy

    # In a lookup

    def explores(self, request: Request, evidence: Evidence) -> Decision | None:
        """Return the decision to load what would be served, where the request is drawn and nobody else loads it."""
        told = evidence.decision
        is_drawn = self._audits and self.tier.is_ready and self._is_drawn(request, evidence)
        if not self.policy.explores(Source.AUDIT if is_drawn else Source.MISS):
            return None
        similarity, cut = (None, None) if told is None else (told.similarity, told.cut)
        return Decision(Verdict.EXPLORE, "audit: loaded to be compared, for the shadow embedder", similarity, cut)

    def failed(self) -> None:
        """Say that a load failed that was made for a comparison."""
        self.policy.failed()

    def take(self, request: Request, kept: Entry | None, evidence: Evidence | None, *, counts: bool) -> None:
        """Take a lookup that has ended, to be looked at behind the caller; what was loaded is `kept`, if it was.

        With `counts` it is one that no exact tier answered.
        """
        if request.scope is None or request.text is None or not self._may_begin():
            return
        asked = _Asked(request, kept, kept is not None and self._is_drawn(request, evidence), counts)
        with self._lock:
            if self._is_closed:
                return
            is_shed = len(self._waiting) >= MOST_WAITING or self._bytes + asked.weight > MOST_BYTES
            if not is_shed:
                self._waiting.append(asked)
                self._bytes += asked.weight
                self._start()
                self._changed.notify_all()
        if is_shed:
            self._left_out(SHED)

    def _is_drawn(self, request: Request, evidence: Evidence | None) -> bool:
        """Say whether a request is one of the sample: where the policy in use has drawn its match, as that one says.

        Else a match that is served and not drawn would be drawn here and never loaded: the sample would lack it.
        """
        if evidence is None:
            return self._draw(request)
        if evidence.match is not None and evidence.match.is_drawn is not None:
            return evidence.match.is_drawn
        if evidence.is_drawn is None:
            evidence.is_drawn = self._draw(request)
        return evidence.is_drawn

    def _draw(self, request: Request) -> bool:
        drawn = blake2b(request.key + self._salt + b"%d" % next(self._draws), digest_size=4).digest()
        return int.from_bytes(drawn) / _DRAWN < self._share(request)

    def _start(self) -> None:
        """Have a thread run, which ends when nothing waits, so that none holds a cache that is dropped.

        The lock is held.
        """
        if self._thread is None:
            self._thread = started(self._run, "semcache-shadow")  # where there is none, the next call tries again

    # Behind the callers

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
                self._bytes -= sum(asked.weight for asked in batch)
            try:
                self._look(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, no caller is to hear of it, and the next may do
                self._recorder.fault(NAME, type(error).__name__, error)

    def _look(self, batch: list[_Asked]) -> None:
        identity = self.tier.identity
        if not identity:  # its server is to say it
            self.tier.unready()
            return
        batch = [asked for asked in batch if not self._is_in_use(asked.request, identity)]
        for asked in batch:
            asked.request = _as_of(asked.request, identity)
        is_ready = self.tier.is_ready
        told = run(together([self.tier.get(asked.request) for asked in batch])) if is_ready else [None] * len(batch)
        for asked, outcome in zip(batch, told, strict=True):
            found: Hit | Miss | None = None if outcome is None else outcome.value
            if outcome is not None and outcome.error is not None:
                if self._is_closed:
                    return
                reason = getattr(outcome.error, "reason", type(outcome.error).__name__)
                self._recorder.fault(NAME, reason, outcome.error)
                self._left_out("the shadow embedder failed", is_told=True)
            evidence = None if found is None else found.evidence
            if found is not None and asked.counts:
                self._learn(asked, evidence)
            if asked.kept is not None:  # its text is found by whoever asks next, and not by who asked for it
                run(self.tier.put(asked.request, asked.kept, evidence))

    def _is_in_use(self, request: Request, identity: str) -> bool:
        """Say whether the embedder is the one in use, as that of two servers' may be: its labels count there."""
        if request.embedder == identity:
            self._left_out("the shadow embedder is the one in use", is_told=True)
        return request.embedder == identity

    def _learn(self, asked: _Asked, evidence: Evidence | None) -> None:
        if evidence is not None and evidence.match is not None:
            evidence.match.is_drawn = asked.is_drawn
        self.labelling.saw(asked.request, evidence)
        if asked.kept is not None:
            run(self.labelling.label(asked.request, evidence, asked.kept.value))

    def _left_out(self, why: str, *, is_told: bool = False) -> None:
        self.policy.unlabelled[why] += 1
        if not is_told:
            self._recorder.fault(NAME, "full", RuntimeError(f"{why}: {MOST_WAITING} texts wait"))

    # Life

    def __str__(self) -> str:
        """Say in a few words what it has learned."""
        return f"in shadow, by {self.tier.identity or 'an embedder that is not loaded yet'}: {self.policy}"

    def stats(self) -> dict[str, int | float]:
        """Return what its index counts, and how many texts wait."""
        return {**self.tier.stats(), "waiting": len(self._waiting)}

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was taken is embedded, found and compared; False where the time was up first."""
        with self._lock:
            is_done = self._changed.wait_for(lambda: self._thread is None, timeout)
        return all([is_done, self.tier.flush(timeout), self.labelling.flush(timeout)])

    def close(self) -> None:
        """Take nothing more, and leave what waits."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
            self._bytes = 0
        self.tier.close()

    def after_fork(self) -> None:
        """Begin anew: the queue and its thread are the parent's."""
        self._begin()
        self.labelling.after_fork()


def shadowing_of(
    tier: ShadowTier, policy: Policy, codec: Codec, recorder: Recorder, clock: Clock, *, audit: float, namespace: str,
    is_in_use: Callable[[], bool], may_begin: Callable[[], bool], seed: int | None,
) -> Shadowing:  # fmt: skip
    """Learn for a cache of the near matches of `tier`, whose policy `twin_of` has made of `policy`, the one in use."""
    twin, reference = tier.policy, weakref.ref(tier)
    assert isinstance(twin, Learner)  # noqa: S101 - `twin_of` makes no other

    def identity() -> str:  # a policy may outlive the cache, whose index it must not hold
        found = reference()
        return "" if found is None else found.identity

    def tell(what: str, _: str) -> None:
        recorder.tell(Event("policy", namespace=namespace, reason=f"in shadow, by {identity()}: {what}"))

    twin.bind(is_in_use, clock.time, audit, tell)
    twin.attune(identity, seed)
    learns = isinstance(policy, Learner)
    if isinstance(policy, Learner):
        policy.shadow = twin

    def share(request: Request) -> float:
        if isinstance(policy, Learner):
            return policy.share_of(request)
        return audit if getattr(policy, "serves", True) else max(audit, LEARNING_SHARE)

    return Shadowing(
        tier, Labelling(twin, codec, recorder, clock.monotonic), recorder, share=share, may_begin=may_begin,
        audits=not learns, seed=seed,
    )  # fmt: skip


def _as_of(request: Request, identity: str) -> Request:
    """Return the request as one whose texts another embedder compares (law 11)."""
    scope = of_embedder(of_embedder(request.scope or b"", request.embedder), identity)
    found = request.at(request.key)
    found.scope, found.embedder = scope, identity
    return found


def twin_of(policy: Any) -> Learner:
    """Return a policy that learns of the shadow embedder what `policy` would: another of its kind, or one in shadow."""
    if isinstance(policy, Learner):
        return policy.twin()
    guards = getattr(policy, "guards", None)
    if isinstance(guards, Guards):
        return Shadow(guards=guards.names)
    return Shadow(guards=policy.guards) if isinstance(policy, Tuned) else Shadow()
