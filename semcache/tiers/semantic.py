"""The semantic tier: finds a stored text near to the one asked, and fetches that text's answer by its key.

Laws:
- only texts of one scope are compared, inside the search (law 2);
- the index holds keys; the answer comes from an exact tier, so expiry, eviction and invalidation hold here too; a
  neighbour without an answer is dropped and the next is tried (law 4);
- nothing near is served without a policy that says so and a tenant whose answers may meet, nor what was reported;
- a near answer is not put back under the text that asked for it (law 3): `put` is only ever given loaded answers;
- what a second stage is in doubt of, or does not answer for, is not served;
- a model that is still loading is a miss, not a wait (law 10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from semcache.blocks import Blocks
from semcache.errors import TierError
from semcache.marks import Row
from semcache.model import BELOW, Decision, Entry, Evidence, Hit, Match, Miss, Neighbour, Request, Verdict
from semcache.plan import Exchange, Plan, Wait
from semcache.policy import Policy, within
from semcache.policy.learner import Learner
from semcache.policy.scoring import is_match
from semcache.semantic.asking import Asked, Searcher, found_of
from semcache.semantic.batcher import Batcher, Found
from semcache.tier import Clock

if TYPE_CHECKING:
    from semcache.semantic.second import CrossEncoder

SECOND = "second stage"
NEIGHBOURS = 4
CANDIDATES = 8
"""How many neighbours a policy is given that ranks them anew: a better one may stand behind the nearest."""

_ROUNDS = 3
_MOST_BIRTHS = 4096
_PATIENCE_SECONDS = 60.0

# Called with (reason, message) when a policy would have served but the request names no tenant.
Warn = Callable[[str, str], None]


class Values(Protocol):
    """An exact tier that can be asked by key alone."""

    def fetch(self, key: bytes, grace: float = 0.0) -> Plan[Hit | Miss]:
        """Look an entry up by its key; one that expired less than `grace` seconds ago is a hit without life."""
        ...


class SemanticTier:
    """A near tier over the exact tiers `values`, nearest first.

    `attach` keeps a vector that a put computed late; `embedder` says whose vectors are compared, as far as it is known.
    """

    name = "semantic"
    exact = False

    def __init__(
        self, batcher: Batcher, policy: Policy, values: Sequence[Values], *, ttl: float, timeout: float, clock: Clock,
        jitter: float = 0.0, random: Callable[[], float], warn: Warn,
        attach: Callable[[bytes, Any], None] | None = None, embedder: Callable[[], str] = str,
        blocks: Blocks | None = None, second: CrossEncoder | None = None,
        on_second: Callable[[str, BaseException], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.batcher = batcher
        self._blocks = Blocks() if blocks is None else blocks
        self._embedder = embedder
        self.policy = policy
        self._values = values
        self._ttl = ttl
        self._timeout = timeout
        self._now = clock.monotonic
        self._jitter = jitter
        self._random = random
        self._warn = warn
        self._attach = attach
        self._learns = isinstance(policy, Learner)
        self.second = second
        self._on_second = on_second
        # Of the rows put last: our own invalidations come back to us from the log, perhaps when there is a new row.
        self._births: dict[bytes, int] = {}

    @property
    def batcher(self) -> Batcher:
        """What embeds and searches; a replay puts its own in its place."""
        return self._batcher

    @batcher.setter
    def batcher(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._searcher = Searcher(batcher)

    @property
    def identity(self) -> str:
        """Whose vectors are compared; empty while that is not known."""
        return self._embedder()

    def adopt(self, policy: Policy) -> None:
        """Decide by another policy from now on."""
        self.policy, self._learns = policy, isinstance(policy, Learner)

    @property
    def serves(self) -> bool:
        """Whether the policy can serve anything near; one that does not say so can, one that fails at it cannot."""
        try:
            return bool(getattr(self.policy, "serves", True))
        except Exception:  # noqa: BLE001 - a policy may be the user's own (law 10)
            return False

    @property
    def is_ready(self) -> bool:
        """Whether model and index are loaded."""
        return self.batcher.state == "ready"

    def unready(self) -> str:
        """Begin to load, if need be; say why there are no near matches yet."""
        state = self.batcher.state
        if state != "closed":
            self.batcher.start()
        return f"the embedder is {'failed' if state == 'failed' else 'loading'}"

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Search the request's scope and serve the nearest neighbour that the policy lets through."""
        scope, text = request.scope, request.text
        # Of another embedder: its server's model has changed since the request was made (law 11).
        if scope is None or text is None or request.embedder != self.identity:
            return Miss(request.exact_only)
        has_scope = self.batcher.has_scope(scope)
        if has_scope is None:
            return Miss(self.unready())
        if not has_scope:  # nothing to compare with: the text is embedded behind the answer
            return Miss()
        policy = within(self.policy, request)
        rank = getattr(policy, "rank", None)
        wanted = NEIGHBOURS if rank is None else CANDIDATES
        asked = [Asked(scope, text, wanted, rank is not None)]
        deadline = self._now() + self._timeout
        evidence = Evidence()
        for _ in range(_ROUNDS):
            try:
                found = found_of((yield Exchange(self._searcher, asked, deadline - self._now())))
            except TierError as error:
                if error.reason != "uncovered":
                    raise
                return Miss(f"exact only: {error}")
            _learn(evidence, found)
            began = perf_counter_ns()
            neighbours = found.neighbours if rank is None else rank(text, found.vector, found.neighbours)
            hit, gone = yield from self._decide(request, policy, neighbours, evidence, deadline)
            decided = perf_counter_ns()
            evidence.stages.append(("decide", decided - began, decided))
            if gone:
                self.batcher.remove(gone)
            if hit is not None:
                return hit
            if not gone or self._now() >= deadline:
                break
        return Miss(evidence.decision.reason if evidence.decision else None, evidence)

    def _decide(
        self, request: Request, policy: Policy, neighbours: Sequence[Neighbour], evidence: Evidence, deadline: float
    ) -> Plan[tuple[Hit | None, list[bytes]]]:
        """Ask the policy about each neighbour; also tell those whose answers are gone.

        A stale answer, where the caller takes one, is for want of a fresh one.
        """
        gone: list[bytes] = []
        stale: Hit | None = None
        matched_life = -inf
        grace = request.lives.stale_while_revalidate
        trouble: Exception | None = None
        for neighbour in neighbours:
            decision = self._judge(request, policy, neighbour)
            if evidence.decision is None or decision.verdict is Verdict.REUSE:
                evidence.decision = decision
            try:
                found = yield from self._fetch(neighbour.key, grace)
            except Exception as error:  # noqa: BLE001 - one answer that cannot be had is no reason against the next
                trouble = error
                continue
            if found is None:
                gone.append(neighbour.key)
                evidence.decision = None if evidence.decision is decision else evidence.decision
                continue
            decision = yield from self._ask_second(request, neighbour, decision, evidence, deadline)
            # What a policy learns of is what it would serve: the first, and a stale one only for want of a fresh one.
            is_better = evidence.match is None or matched_life <= 0 < found.entry.life
            if is_better and self._may_match(request, neighbour, decision):
                evidence.match, matched_life = self._match(neighbour, found.entry, decision), found.entry.life
            if decision.verdict is Verdict.REUSE:
                hit = Hit(found.entry, self.name, neighbour.key, neighbour.similarity, evidence)
                if found.entry.life > 0:
                    return hit, gone
                stale = stale or hit
            if matched_life > 0 or (self._learns and decision.guard == SECOND):
                break  # what is learned of is the first match: none behind it is served in its place
        if trouble is not None and stale is None:
            raise trouble
        return stale, gone

    def _match(self, neighbour: Neighbour, entry: Entry, decision: Decision) -> Match:
        """Return a near match; one that is not served anyway the second stage is asked of behind the caller."""
        is_doubted = (
            decision.verdict is not Verdict.REUSE
            and self.second is not None
            and self.second.doubts(neighbour.similarity)
        )
        return Match(neighbour, entry.value, is_doubted=is_doubted)

    def _ask_second(
        self, request: Request, neighbour: Neighbour, decision: Decision, evidence: Evidence, deadline: float
    ) -> Plan[Decision]:
        """Return the decision, or, of what would be served and is in doubt, the second stage's refusal."""
        second = self.second
        if second is None or decision.verdict is not Verdict.REUSE or not second.doubts(neighbour.similarity):
            return decision
        why = "it takes them for two questions"
        try:
            asked = second.ask(request.text or "", neighbour.text)
            if (yield Wait(asked, deadline - self._now())):
                return decision
        except Exception as error:  # noqa: BLE001 - whatever it is, what nobody has passed is not served (law 10)
            reason = "late" if isinstance(error, TimeoutError) else getattr(error, "reason", type(error).__name__)
            self._on_second(reason, error)
            why = f"no answer ({reason})"
        refused = Decision(
            Verdict.REJECT, f"{SECOND}: {why}", decision.similarity, decision.cut, SECOND, decision.score
        )  # fmt: skip
        evidence.decision = refused if evidence.decision is decision else evidence.decision
        return refused

    def _may_match(self, request: Request, neighbour: Neighbour, decision: Decision) -> bool:
        """Say whether some cut would serve a neighbour, if no guard refuses it: not one that was reported."""
        if not self._learns or decision.guard:
            return False
        reported = self._blocks.why_not(neighbour.key, request.text or "", neighbour.similarity)
        return reported is None and is_match(neighbour)

    def vectors(self, texts: list[str]) -> Plan[list[Any]]:
        """Return the float32[d] unit vectors of texts; None for one that is not seen whole, and for all before loading.

        Raises TierError, and TimeoutError where that takes longer than a lookup may.
        """
        if self.batcher.state != "ready":
            self.unready()
            return [None] * len(texts)
        deadline = self._now() + self._timeout
        vectors: list[Any] = []
        for future in [self.batcher.embed(text) for text in texts]:
            try:
                vectors.append((yield Wait(future, deadline - self._now())))
            except TierError as error:
                if error.reason != "uncovered":
                    raise
                vectors.append(None)
        return vectors

    def judge(self, request: Request, vector: Any, neighbour: Neighbour) -> Decision:
        """Say whether the answer of a near text may be served, as to one that the search has found."""
        policy = within(self.policy, request)
        rank = getattr(policy, "rank", None)
        if rank is not None:
            (neighbour,) = rank(request.text or "", vector, [neighbour])
        decision = self._judge(request, policy, neighbour)
        if decision.verdict is Verdict.REUSE and self.second is not None and self.second.doubts(neighbour.similarity):
            why = f"{SECOND}: it is not asked of loads"
            return Decision(Verdict.REJECT, why, decision.similarity, decision.cut, SECOND, decision.score)
        return decision

    def _judge(self, request: Request, policy: Policy, neighbour: Neighbour) -> Decision:
        decision = policy.decide(request.text or "", neighbour)
        if decision.verdict is not Verdict.REUSE:
            return decision
        if request.mode == "shadow":
            reason = "mode: shadow"
        elif not request.tenanted:
            reason = "no tenant"
            self._warn(
                "no tenant",
                "a near match was found but not served, because nobody said whose answers may meet: "
                "set tenant= on the cache or the call (semcache.SHARED if all users may share answers)",
            )
        elif neighbour.similarity < request.least:
            reason = f"{BELOW}: similarity {neighbour.similarity:.4f} < {request.least:g}, which the caller asked for"
        else:
            reported = self._blocks.why_not(neighbour.key, request.text or "", neighbour.similarity)
            if reported is None:
                return decision
            reason = reported
        return Decision(Verdict.REJECT, reason, decision.similarity, decision.cut, score=decision.score)

    def _fetch(self, key: bytes, grace: float) -> Plan[Hit | None]:
        stale: Hit | None = None
        for tier in self._values:
            found = yield from tier.fetch(key, grace)
            if isinstance(found, Hit):
                if found.entry.life > 0:
                    return found
                stale = found if stale is None or found.entry.life > stale.entry.life else stale
        return stale

    def within(self, text: str, similarity: float) -> Plan[list[Neighbour]]:
        """Return every row, of whatever scope, at least so similar to a text. Raises TierError.

        Whoever asks waits for a model that is still loading, up to a minute.
        """
        try:
            found: list[Neighbour] = yield Wait(self.batcher.within(text, similarity), _PATIENCE_SECONDS)
        except TimeoutError:
            raise TierError("late", f"the index did not answer within {_PATIENCE_SECONDS:g} s") from None
        return found

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:
        """Index a loaded answer's text, with the vector that its miss computed, if it did."""
        if request.scope is None or request.text is None or request.embedder != self.identity:
            return
        self.batcher.start()
        # Past its life an answer may be served while another is loaded: so long its text is to be found.
        life = min(self._ttl, entry.life + entry.grace, entry.limit) * (1 - self._jitter * self._random())
        life = inf if entry.is_pinned else life
        vector = evidence.vector if evidence is not None else None
        self._births.pop(request.key, None)
        self._births[request.key] = entry.born
        if len(self._births) > _MOST_BIRTHS:
            self._births.pop(next(iter(self._births)), None)
        done = self._attach if vector is None else None
        self.batcher.add(request.key, request.scope, request.text, vector, self._now() + life, done)
        return
        yield

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:
        """Drop a key's row, unless it was put after that; rows of other facets go as their answers are missed."""
        is_older = facet == "key" and self._births.get(value, -1) < position  # type: ignore[arg-type]
        if is_older and self.batcher.state not in ("idle", "closed"):
            self.batcher.remove([value])  # type: ignore[list-item]
        return 0
        yield

    def take(self, rows: Iterable[Row]) -> None:
        """Take rows that others have added, if they are this embedder's; before it is loaded there is no need."""
        if self.batcher.state in ("loading", "ready"):
            now, ttl, identity = self._now(), self._ttl, self.identity
            self.batcher.take([
                (key, scope, text, vector, now + row_life(remaining, ttl))
                for key, scope, embedder, text, vector, remaining in rows
                if embedder == identity
            ])  # fmt: skip

    def rebuild(self) -> None:
        """Forget all rows and read them from the store anew."""
        if self.batcher.state in ("loading", "ready"):
            self.batcher.rebuild()

    def stats(self) -> Mapping[str, int | float]:
        """Return rows, scopes, bytes, evictions and the batcher's counters."""
        return self.batcher.stats()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put can be found."""
        return self.batcher.flush(timeout)

    def close(self) -> None:
        """Stop the worker."""
        self.batcher.close()


def row_life(remaining: float, ttl: float) -> float:
    """Return how long a row from the store lives here: one without an end is a pinned entry's."""
    return inf if remaining == inf else min(remaining, ttl)


def _learn(evidence: Evidence, found: Found) -> None:
    evidence.vector = found.vector
    evidence.neighbours = found.neighbours
    evidence.stages += [
        ("embed", found.embed_ns, found.embedded or perf_counter_ns()),
        ("search", found.search_ns, found.searched or perf_counter_ns()),
    ]
