"""What the lookups of a cache saved and cost: handed to the store, so that it outlives deploys, and told by rows.

Laws: nothing here has a timer or a thread of its own: the thread that follows the store's log hands over what was
counted, `flush`, `close` and `usage` what is left; what the store cannot take now is kept, and handed over later.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

from semcache.errors import ConfigurationError, TierError
from semcache.events import Recorder
from semcache.labelling import Labelling, labelling_of
from semcache.meter import Amounts, UsageRow, columns_of, first_day, rows_of
from semcache.model import Mode, Tenant
from semcache.obstacles import obstacles
from semcache.parts import attuned, is_open, surroundings
from semcache.policy import Policy, Threshold, Tuned, as_policy
from semcache.policy.learner import Learner
from semcache.tier import Clock
from semcache.ttl import Duration

if TYPE_CHECKING:
    from semcache.chain import Chain
    from semcache.tiers.disk import DiskTier
    from semcache.tiers.redis import RedisTier
    from semcache.tiers.semantic import SemanticTier
    from semcache.tiers.sidecar import SidecarTier

# What a process that is killed has not booked yet is what it counted in this time.
BOOK_SECONDS = 10.0


class Accounts:
    """The part of a Cache that books; the rest of it gives it what it needs."""

    namespace: str
    names_families: bool
    recorder: Recorder
    store: DiskTier | RedisTier | SidecarTier | None
    now: Callable[[], float]
    # Whether what is counted goes to the store: a trial is no traffic.
    books: bool = True
    clock: Clock
    policy: Policy
    chain: Chain
    semantic: SemanticTier | None
    mode: Mode
    tenant: Tenant | None
    _closed: bool
    _book_at: float
    # Held while booking: of two at once one would read sums in which what the other has just taken is missing. The
    # collector may close a cache in the thread that holds it.
    _booking: RLock

    def _book_when_due(self) -> None:
        """Hand over what was counted, some seconds after the last time."""
        now = self.now()
        if now >= self._book_at:
            self._book_at = now + BOOK_SECONDS
            self._book()

    def _book(self) -> None:
        """Hand what was counted to the store, which writes it behind us.

        Never called in a lookup: a stream that the collector closes is a lookup too, in a thread that may hold a lock
        of the store's.
        """
        if self.store is None or not self.books:
            return
        with self._booking:
            for labelling in self.chain.learning:
                self._learn_of_others(labelling)
            self._hand_over(self.recorder.taken(), self.recorder.put_back)

    def _surroundings(self) -> list[str]:
        """Tell what keeps the policy from serving, for its status, once what others have learned was read.

        It is read here where it never was; a store that does not answer is waited for no longer than its own writers
        wait for it.
        """
        labelling, told = self.chain.labelling, []
        if labelling is not None and self.store is not None and self.books and not self._closed:
            if not labelling.has_read:
                self._book()
            if not labelling.has_read:
                told.append(
                    f"what other processes have learned is not read yet: {self.store.name} did not answer in time "
                    "(stats().faults says why)"
                )
        return [*self._obstacles(), *told]

    def _obstacles(self) -> list[str]:
        return list(obstacles(self.semantic, self.mode, self.tenant, self.chain.labelling, is_closed=self._closed))

    def _policy_told(self) -> str:
        """Say in a few words what the policy does, and, where it would serve near matches, what keeps it from that."""
        is_learner = isinstance(self.policy, Learner)
        serves = not is_learner if self.semantic is None else self.semantic.serves
        return "; ".join([str(self.policy), *(self._obstacles() if serves else ())])

    def _learn_of_others(self, labelling: Labelling) -> None:
        """Have a policy count with the sums of all processes, then hand over what it counted here.

        In this order what we handed over the last time is there by now, so nobody waits for the store.
        """
        store, policy = self.store, labelling.policy
        try:
            policy.take_over(store.tallied(policy.days()))  # type: ignore[union-attr]
            labelling.has_read = True
        except TierError as error:  # until it can be read, we go on with what we know
            self.recorder.fault(store.name, error.reason, error)  # type: ignore[union-attr]
        else:
            if labelling.teaching is not None:
                labelling.teaching.turn()
        self._hand_over(policy.taken(), policy.put_back)

    def _hand_over(self, taken: dict[str, Amounts], put_back: Callable[[str, Amounts], None]) -> None:
        for day, amounts in taken.items():
            try:
                self.store.book(day, amounts)  # type: ignore[union-attr]
            except TierError:
                put_back(day, amounts)

    def adopt(self, policy: Policy | None, *, audit: float = 0.02) -> None:
        """Decide by another policy from now on; one that learns goes on with what the one before it has learned.

        Its second stage, and a score of its own, are made with a cache alone, and beside a `shadow_embedder` no policy
        is exchanged. Raises ConfigurationError, and changes nothing then.
        """
        new, old, tier, chain = as_policy(policy), self.chain.labelling, self.semantic, self.chain
        if chain.shadowing is not None:
            raise ConfigurationError("beside a shadow_embedder the policy stays as it is: begin anew with another one")
        staged = self.policy if tier is not None and tier.second is not None else new
        if getattr(staged, "cross_encoder", None) is not None or getattr(new, "learns_score", False):
            raise ConfigurationError(f"{staged!r} has a second stage, or a score to learn: make a cache anew")
        if tier is None:
            self.policy = new
            return
        if isinstance(new, Tuned) and tier.identity:
            new.check(tier.identity)
        own, reference = weakref.ref(self), weakref.ref(tier)
        labelling = labelling_of(
            new, chain.codec, self.recorder, self.clock, audit=audit, namespace=self.namespace,
            is_in_use=partial(is_open, own),
        )  # fmt: skip
        with self._booking:
            if labelling is not None:
                attuned(labelling, reference, None)
                if old is not None:
                    labelling.policy.inherit(old.policy)
                    labelling.follow(old)
                labelling.policy.take_over({})
            chain.labelling, self.policy = labelling, new
            tier.adopt(new)
        self.names_families = self.names_families or hasattr(new, "within")
        if isinstance(new, Learner | Threshold | Tuned):
            new.surround(partial(surroundings, own))
        self._book()

    def usage(self, since: Duration = "30d", by: str | Iterable[str] = ("stage", "model")) -> list[UsageRow]:
        """Return what the lookups saved and cost, in all processes that use the namespace, from a day in UTC on.

        `since` is that day, "2026-11-27", or how long ago it was; `by` says what the rows are told apart by: some of
        "day", "stage", "model", and "tenant" where caches are made with `tenant_usage=True`. Other processes' latest
        10 seconds may be missing. Without a store it is this cache's alone. Raises TierError where the store cannot be
        asked.
        """
        columns, day = columns_of(by), first_day(since, self.clock.time())
        return rows_of(self.booked(day), columns)

    def booked(self, day: str) -> dict[tuple[str, str], float]:
        """Return the sums of all processes, by day and name, from a day on. Raises TierError."""
        self._book()
        booked = {} if self.store is None else self.store.booked(day)
        for counted_on, amounts in self.recorder.counted().items():
            for name, amount in amounts.items():
                if counted_on >= day:
                    booked[counted_on, name] = booked.get((counted_on, name), 0.0) + amount
        return booked

    def book(self, day: str, amounts: Amounts) -> None:
        """Take the sums of another process. Raises TierError."""
        if self.store is None:
            self.recorder.put_back(day, amounts)
        else:
            self.store.book(day, amounts)

    async def ausage(self, since: Duration = "30d", by: str | Iterable[str] = ("stage", "model")) -> list[UsageRow]:
        """Return what `usage` does, without blocking the loop."""
        import asyncio

        return await asyncio.to_thread(self.usage, since, by)
