"""Labels without people: where a request was loaded although there was a near match, the two answers are compared.

Laws: nothing here makes a caller wait, but for the load of a match that is audited, nor can it fail one; what compares
runs behind the callers, so many at once and so many a second; what raises, or takes too long, does not know.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass
from inspect import iscoroutinefunction
from threading import RLock
from typing import Any, Protocol

from semcache.codec import Codec
from semcache.events import Event, Recorder, logger
from semcache.model import Decision, Evidence, Match, Request, Verdict
from semcache.plan import Call, Crew, Plan, Spawn, Wait
from semcache.policy import Policy
from semcache.policy.label import Label, Source
from semcache.policy.learner import Learner
from semcache.policy.scoring import rank_of
from semcache.teaching import Teaching
from semcache.tier import Clock

JUDGE_SECONDS = 30.0
_AT_ONCE = 4
# Labels a second, and how many may come together: judges may cost money.
_RATE, _BURST = 50.0, 100.0
_JUDGED_RATE, _JUDGED_BURST = 1.0, 20.0
_MOST_REASONS = 32


def answer_text(value: object) -> str | None:
    """Return what an answer says as a text: itself, or the JSON of what is plain data; None for all else."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | tuple | int | float | None):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return None
    return None


def tell_policy(recorder: Recorder, namespace: str, what: str) -> None:
    """Tell the observers, and where it is an alarm the log too, what a policy that learns has done."""
    if "alarm" in what:
        logger.warning("%s", what)
    recorder.tell(Event("policy", namespace=namespace, reason=what))


def labelling_of(
    policy: Policy, codec: Codec, recorder: Recorder, clock: Clock, *, audit: float, namespace: str,
    is_in_use: Callable[[], bool],
) -> Labelling | None:  # fmt: skip
    """Let a policy that learns do so for a cache; None for another. Raises ConfigurationError."""
    if not isinstance(policy, Learner):
        return None
    policy.bind(is_in_use, clock.time, audit, lambda what, _: tell_policy(recorder, namespace, what))
    return Labelling(policy, codec, recorder, clock.monotonic)


class SecondStage(Protocol):
    """What says whether a near match in doubt is one."""

    def ask(self, text: str, other: str) -> Future[bool]:
        """Say so of the text asked and the stored one. Raises TierError."""
        ...


@dataclass(slots=True, eq=False)
class _Comparison:
    """Two answers, as they are stored, that are compared until `deadline`; `settle` takes what was found.

    First a second stage is asked whether they are those of a near match at all, where that is in doubt.
    """

    request: Request
    cached: bytes
    fresh: bytes
    settle: Callable[[bool | None], None]
    deadline: float
    asks: Callable[[], Future[bool]] | None = None


class Labelling:
    """Compares answers for a policy that learns; `now` is a monotonic clock, in seconds."""

    def __init__(self, policy: Learner, codec: Codec, recorder: Recorder, now: Callable[[], float]) -> None:
        self.policy = policy
        self._decode = codec.decode
        self._now = now
        self._crew = Crew(lambda error: recorder.fault("labels", type(error).__name__, error), _AT_ONCE)
        judge = policy.comparator.judge
        self._has_judge = judge is not None
        self._is_async = iscoroutinefunction(judge) or iscoroutinefunction(getattr(judge, "__call__", None))  # noqa: B004
        self.teaching: Teaching | None = None
        self.second: SecondStage | None = None
        self._rate, self._burst = (_JUDGED_RATE, _JUDGED_BURST) if self._has_judge else (_RATE, _BURST)
        self._begin()

    def _begin(self) -> None:
        self._lock = RLock()  # the collector may close a half-read stream, and label it, while this thread holds it
        self._waiting: set[_Comparison] = set()
        # Of the requests that no exact tier answered: whose tenant was named, and why some have no near matches.
        self.named, self.unnamed = 0, 0
        self.apart: Counter[str] = Counter()
        # Whether what other processes have learned was read.
        self.has_read = False
        self._room, self._filled_at = self._burst, self._now()

    def follow(self, other: Labelling) -> None:
        """Go on counting where another, whose policy was exchanged, has ended."""
        self.named, self.unnamed, self.apart = other.named, other.unnamed, other.apart

    def saw(self, request: Request, evidence: Evidence | None) -> None:
        """Take note of what the near tier said, and draw whether its match is one of the sample."""
        self.named += request.tenanted
        self.unnamed += not request.tenanted
        match = None if evidence is None else evidence.match
        self.policy.saw(request, None if match is None else match.neighbour)
        if match is not None:
            self._draw(request, match)

    def passed(self, request: Request) -> None:
        """Take note of a request whose text is compared with no other."""
        why = request.exact_only or (f"mode: {request.mode}" if request.text is not None else "the call has no text")
        if why in self.apart or len(self.apart) < _MOST_REASONS:
            self.apart[why] += 1

    def _draw(self, request: Request, match: Match) -> bool:
        if match.is_drawn is None:
            match.is_drawn = self.policy.draw(request, match.neighbour) is Source.AUDIT
        return match.is_drawn

    def explores(self, request: Request, evidence: Evidence) -> Decision | None:
        """Return the decision to load a match that would be served, where it is drawn; else None."""
        match, told = evidence.match, evidence.decision
        if match is None or not self.policy.explores(Source.AUDIT if self._draw(request, match) else Source.MISS):
            return None
        return Decision(
            Verdict.EXPLORE, "audit: loaded to be compared", match.neighbour.similarity, told.cut if told else None
        )

    def failed(self) -> None:
        """Say that the load of an audited match failed."""
        self.policy.failed()

    def label(self, request: Request, evidence: Evidence | None, fresh: bytes) -> Plan[None]:
        """Compare the near match of a request, if it had one, with what was loaded, behind the caller."""
        match = None if evidence is None else evidence.match
        if match is None or match.key == request.key:
            return
        near, source = match.neighbour, Source.AUDIT if match.is_drawn else Source.MISS

        def settle(is_right: bool | None) -> None:  # noqa: FBT001 - what was found
            self.policy.learn(Label(
                request.family, request.key, near.key, request.text or "", near.text, near.similarity, rank_of(near),
                is_right, source, tuple(self.policy.rates_of(near).items()),
            ))  # fmt: skip
            if self.teaching is not None:
                self.teaching.look()

        second, asks = self.second, None
        if match.is_doubted and second is not None:
            text, other = request.text or "", near.text
            asks = lambda: second.ask(text, other)  # noqa: E731 - called in another thread
        yield from self._compare(request, match.value, fresh, settle, asks)

    def again(self, request: Request, old: bytes, fresh: bytes) -> Plan[None]:
        """Compare two answers that the origin gave to one request."""
        if request.scope is not None:
            yield from self._compare(
                request, old, fresh, lambda same: self.policy.compared_with_itself(request, same=same)
            )

    def _compare(
        self, request: Request, cached: bytes, fresh: bytes, settle: Callable[[bool | None], None],
        asks: Callable[[], Future[bool]] | None = None,
    ) -> Plan[None]:  # fmt: skip
        self.sweep()
        comparison = _Comparison(request, cached, fresh, settle, self._now() + JUDGE_SECONDS, asks)
        if not self._has_room():
            self.policy.unlabelled["too many a second"] += 1
            return
        with self._lock:
            self._waiting.add(comparison)
        begun = yield Spawn(lambda: self._carry_out(comparison), self._crew, in_thread=not self._is_async)
        if not begun:
            with self._lock:
                self._waiting.discard(comparison)
            self.policy.unlabelled["too many at once"] += 1

    def _has_room(self) -> bool:
        now = self._now()
        with self._lock:
            self._room = min(self._burst, self._room + (now - self._filled_at) * self._rate)
            self._filled_at = now
            if self._room < 1:
                return False
            self._room -= 1
            return True

    def _carry_out(self, comparison: _Comparison) -> Plan[None]:
        told, is_told = [self._text(comparison, data) for data in (comparison.cached, comparison.fresh)], False
        said: bool | None = None
        try:
            is_match = yield from self._is_match(comparison)
            if is_match and None not in told:
                said = yield Call(self._asked, *told)
            is_told = is_match
        finally:  # a task of the user's loop may be cancelled: then nothing is known, as if it had not begun
            with self._lock:
                is_ours = comparison in self._waiting
                self._waiting.discard(comparison)
        if is_ours and is_told:
            comparison.settle(said)

    def _is_match(self, comparison: _Comparison) -> Plan[bool]:
        """Ask the second stage, if it is to be; what it does not pass would not be served, and says nothing."""
        if comparison.asks is None:
            return True
        try:
            return bool((yield Wait(comparison.asks(), JUDGE_SECONDS / 2)))
        except Exception:  # noqa: BLE001 - whatever it is, nobody waits for it
            self.policy.unlabelled["the second stage did not answer"] += 1
            return False

    def _asked(self, cached: str, fresh: str) -> Any:
        """Ask the comparator, in a context of its own: what a judge calls is none of the caller's work."""
        comparator = self.policy.comparator
        if not self._has_judge:
            return comparator.equivalent(cached, fresh)
        import asyncio

        asking = comparator.aequivalent(cached, fresh)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return Context().run(asyncio.run, asking)
        return asyncio.get_running_loop().create_task(asking, context=Context())

    def _text(self, comparison: _Comparison, data: bytes) -> str | None:
        try:
            value = self._decode(data)
            says = comparison.request.says
            return answer_text(value) if says is None else says(value)
        except Exception:  # noqa: BLE001 - answers that nobody here can read are compared by nobody
            return None

    def sweep(self) -> None:
        """Settle what takes too long: it is not known."""
        now = self._now()
        with self._lock:
            late = [comparison for comparison in self._waiting if now >= comparison.deadline]
            self._waiting.difference_update(late)
        for comparison in late:
            self.policy.comparator.troubles[f"no word within {JUDGE_SECONDS:g} s"] += 1
            comparison.settle(None)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for what is being compared, at most as long as a judge may take; False where some is not done."""
        is_done = self._crew.wait(JUDGE_SECONDS if timeout is None else min(timeout, JUDGE_SECONDS))
        self.sweep()
        return is_done

    def after_fork(self) -> None:
        """Begin anew: what was compared is the parent's."""
        self._crew.after_fork()
        self._begin()
        if self.teaching is not None:
            self.teaching.after_fork()
        self.policy.after_fork()
