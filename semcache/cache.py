"""The cache: what users build, and what its parts share.

Construction checks every setting and opens nothing slow: the model loads behind the first lookup that wants it. From
then on only `invalidate` raises (law 10). A cache flushes and closes itself when the interpreter exits.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from semcache.accounts import BOOK_SECONDS
from semcache.blocks import Blocks
from semcache.chain import Chain, Origin
from semcache.codec import Codec
from semcache.context import named_tenant
from semcache.errors import ConfigurationError, InvalidationError
from semcache.events import Event, Observer, Recorder
from semcache.explain import Explanation, explain
from semcache.labelling import labelling_of
from semcache.ledger import Ledger
from semcache.life import Living, watch
from semcache.log import SETTLE_SECONDS, Log
from semcache.lookup import lookup
from semcache.many import lookup_many
from semcache.marks import Marks
from semcache.meaning import Meaning, checked
from semcache.meter import Meter
from semcache.model import Mode, Request, Tenant, Usage
from semcache.nearby import Nearby
from semcache.parts import (
    LONGEST_LIFE_SECONDS,
    Parts,
    attuned,
    check_mode,
    check_near,
    check_sidecar,
    check_stores,
    embedder_of,
    identity_of,
    is_open,
    is_ready,
    observers_of,
    surroundings,
)  # fmt: skip
from semcache.plan import Crew, Outcome, Plan, arun, run
from semcache.policy import Policy, Threshold, Tuned, as_policy
from semcache.policy.learner import Learner
from semcache.policy.threshold import warn_unmeasured
from semcache.prices import Prices, Source
from semcache.recording import Recording, recording_of, tape_of
from semcache.reindex import Reindexing
from semcache.replica import Replica
from semcache.seed import seed
from semcache.shadowing import NAME as SHADOW
from semcache.shadowing import shadowing_of, twin_of
from semcache.stats import Stats
from semcache.teaching import Shelf, Teaching
from semcache.tier import Breaker, Clock, SystemClock
from semcache.tiers.memory import Kept
from semcache.ttl import TTL, Size, Timeouts, size_bytes
from semcache.wrong import Reports

if TYPE_CHECKING:
    from semcache.tiers.disk import DiskTier
    from semcache.tiers.redis import RedisTier
    from semcache.tiers.semantic import SemanticTier
    from semcache.tiers.sidecar import SidecarTier

T = TypeVar("T")


class Cache(Meaning, Reports, Reindexing, Living):
    """Tiers in order, nearest first, and one lookup through them.

    `namespace` keeps services apart; it is required with `disk`, `redis` and `memcached`. `memory`, `disk_size` and
    `semantic` bound the tiers in bytes ("64MB"; 0: no such tier). The exact store is `disk`, the path of an SQLite
    file for the processes of one host, or `redis`, a URL or a redis.Redis, for those of many. `memcached`, a URL, is a
    tier beside it, or the store itself, which then can be invalidated by key alone. A `sidecar`, the address of a
    `semcache serve` or a list of some, has all but memory: store, near matches and policy. `embedder` is a
    sentence-transformers name or path, the URL of a server that speaks OpenAI's `/embeddings`, a
    `semcache.EmbeddingServer`, or a callable from `list[str]` to float32[n, d] with an `identity`; without it there
    are no near matches. What near matches a `shadow_embedder` would find, and which cut they bear, is learned behind
    the callers, before it takes the other's place. `device` may name several GPUs, "cuda:0,cuda:1": the first
    has the model, all of them the index; `gpu_memory` bounds what the index takes of each.
    `policy` says which near matches are served (None: none, they are only recorded; a path: as the file of
    `semcache tune` says), `tenant` whose may meet. Of what a policy that learns serves, the share `audit` is loaded all
    the same, to be compared.
    `ttl` and `timeouts` take `semcache.TTL` and `semcache.Timeouts`; `observers` are callables, told
    every event. `compress="zstd"` packs answers over 1 kB. With `tenant_usage` what is saved and spent is counted by
    tenant too. `prices` is a table of your own, laid over ours: the path of a TOML file, or a mapping
    (docs/costs.md). `record` is the path of a file that what is asked is recorded in, or a `semcache.Recording`
    (docs/traffic.md). Raises ConfigurationError, with the mend, for settings that are wrong.
    """

    def __init__(
        self,
        namespace: str = "",
        *,
        memory: Size = "64MB",
        disk: str | os.PathLike[str] | None = None,
        disk_size: Size = "1GB",
        redis: Any = None,
        memcached: str | None = None,
        sidecar: Any = None,
        embedder: Any = None,
        shadow_embedder: Any = None,
        semantic: Size = "512MB",
        device: str = "auto",
        gpu_memory: Size | None = None,
        policy: Policy | str | os.PathLike[str] | None = None,
        tenant: Tenant | None = None,
        mode: Mode = "live",
        audit: float = 0.02,
        ttl: TTL | None = None,
        timeouts: Timeouts | None = None,
        max_value: Size = "1MB",
        compress: str | None = None,
        tenant_usage: bool = False,
        prices: Source | None = None,
        record: str | os.PathLike[str] | Recording | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> None:
        check_stores(namespace, disk, redis, memcached)
        check_sidecar(sidecar, disk, redis, memcached, embedder, shadow_embedder, policy)
        check_mode(mode, audit)
        if not isinstance(ttl, TTL | None) or not isinstance(timeouts, Timeouts | None):
            raise ConfigurationError(
                f'ttl is semcache.TTL(disk="1d"), timeouts semcache.Timeouts(disk="25ms"); got {ttl!r}, {timeouts!r}'
            )
        self.namespace, keeps_log = namespace, any(store is not None for store in (disk, redis, sidecar))
        self.tenant = None if tenant is None else named_tenant(tenant)
        self._own_mode: Mode = mode
        self._switch_to(None)
        self.policy: Policy = as_policy(policy)
        self.names_families = bool(shadow_embedder or sidecar) or hasattr(self.policy, "within")
        warn_unmeasured(None if embedder is None else self.policy)  # without one another warning says more
        self.clock = clock or SystemClock()
        self.now = self.clock.monotonic
        self.blocks, self.ledger = Blocks(), Ledger(self.clock.time, stay=not keeps_log)
        self.recorder = Recorder(
            observers_of(observers), Meter(self.clock.time, tenants=tenant_usage, prices=Prices(prices)), self.ledger
        )
        recording = None if record is None else recording_of(record)
        self._book_at, self._booking = self.now() + BOOK_SECONDS, RLock()
        self._closed = False

        ttl, timeouts = ttl or TTL(), timeouts or Timeouts()
        memory_bytes, semantic_bytes = size_bytes(memory, "memory"), size_bytes(semantic, "semantic")
        disk_bytes, max_value_bytes = size_bytes(disk_size, "disk_size"), size_bytes(max_value, "max_value")
        gpu_bytes, codec = None if gpu_memory is None else size_bytes(gpu_memory, "gpu_memory"), Codec(compress)
        made = embedder_of(embedder, device, policy) if semantic_bytes else None
        shadow = None if shadow_embedder is None else embedder_of(shadow_embedder, device, None)
        check_near(made, shadow, self.policy, keeps=bool(memory_bytes) or keeps_log or memcached is not None)
        self._marks = Marks(self.now, max(LONGEST_LIFE_SECONDS, *map(ttl.of, ("redis", "disk", "memcached"))))
        # Nobody tells others' memory what was invalidated in a memcached that stands alone.
        is_deaf = memcached is not None and not keeps_log
        parts = Parts(
            namespace, self.clock, Random(seed).random, self._marks, ttl, timeouts, self.recorder, is_deaf,  # noqa: S311 - spreads expiries, keeps no secret
            0.0 if memcached is None else ttl.of("memcached"), self.blocks,
        )  # fmt: skip
        is_store = not keeps_log and memcached is None
        self.memory = parts.memory(memory_bytes, is_store=is_store) if memory_bytes else None
        self.memcached = parts.memcached(memcached) if memcached is not None else None
        # The store is opened last of all, so that no wrong setting leaves it open.
        self.disk = parts.disk(disk, disk_bytes) if disk is not None else None
        self.redis = parts.redis(redis) if redis is not None else None
        self.sidecar = None if sidecar is None else parts.sidecar(sidecar, codec)
        self.store: DiskTier | RedisTier | SidecarTier | None = self.disk or self.redis or self.sidecar
        settles = SETTLE_SECONDS if self.redis or self.sidecar else 0.0
        self.log = Log(self.store, self._marks, self.clock.time if is_deaf else None, settles)
        alone = self.memcached if is_deaf else None  # else the store has what it has
        values = [tier for tier in (self.memory, self.disk, alone, self.redis) if tier is not None]
        self.semantic = (
            None
            if made is None
            else parts.semantic(made, semantic_bytes, self.policy, self.disk or self.redis, values, gpu_bytes, device)
        )
        # A file is nearer than a memcached; of two servers the one that may forget comes first, be it on this host.
        tiers = [
            tier
            for tier in (self.memory, self.disk, self.memcached, self.redis, self.sidecar, self.semantic)
            if tier is not None
        ]
        self.chain = Chain(
            tiers=[(tier, Breaker(self.now)) for tier in tiers],
            codec=codec,
            recorder=self.recorder,
            position=self.log.position,
            birth=self.log.birth,
            flight_timeout=timeouts.of("flight"),
            max_value_bytes=max_value_bytes,
            crew=Crew(lambda error: self.recorder.fault("refresh", type(error).__name__, error)),
            in_place=None if self.disk is None else tiers.index(self.disk),
            names_tenants=tenant_usage,
            labelling=None
            if self.semantic is None
            else attuned(
                labelling_of(
                    self.policy,
                    codec,
                    self.recorder,
                    self.clock,
                    audit=audit,
                    namespace=namespace,
                    is_in_use=partial(is_open, weakref.ref(self)),
                ),
                weakref.ref(self.semantic),
                seed,
            ),
            nearby=None if self.semantic is None else Nearby(self.semantic),
        )
        self._indexes = [] if self.semantic is None else [self.semantic]
        self._begin_learning(
            None if shadow is None
            else parts.semantic(
                shadow, semantic_bytes, twin_of(self.policy), self.disk or self.redis, values, is_shadow=True
            ),
            audit, seed,
        )  # fmt: skip
        self._listen()
        if recording is not None:
            self.recorder.recording = tape = tape_of(recording, self.clock.time, self.recorder)
            weakref.finalize(self, tape.stop).atexit = False  # the tape must not hold the cache itself
        watch(self)

    def _begin_learning(self, tier: SemanticTier | None, audit: float, seed: int | None) -> None:
        """Learn of what the tier of a shadow embedder finds, where there is one, and have scores taught."""
        chain = self.chain
        if tier is not None:
            ready = partial(is_ready, weakref.ref(self._indexes[0]))
            chain.shadowing = shadowing_of(
                tier, self.policy, chain.codec, self.recorder, self.clock, audit=audit, namespace=self.namespace,
                is_in_use=partial(is_open, weakref.ref(self)), may_begin=ready, seed=seed,
            )  # fmt: skip
            self._indexes.append(tier)
        kept = self.disk or self.redis
        shelf = None if kept is None else Shelf(kept, chain.codec, self.namespace, chain.position)
        for labelling in chain.learning:
            tier = self._indexes[0] if labelling is chain.labelling else self._indexes[-1]
            labelling.second = tier.second
            if labelling.policy.learns_score:
                identity = partial(identity_of, weakref.ref(tier))
                labelling.teaching = Teaching(
                    labelling.policy, self.recorder, identity, tier.batcher.embed, self.clock.time, shelf
                )

    def _listen(self) -> None:
        """Let the log tell our tiers, and the policy ask about us.

        Neither must hold the cache itself, or one that is dropped would never end.
        """
        recorder, reference, name = self.recorder, weakref.ref(self), self.store.name if self.store else ""
        if isinstance(self.policy, Learner | Threshold | Tuned):
            self.policy.surround(partial(surroundings, reference))

        def switch(mode: Mode | None) -> None:
            cache = reference()
            if cache is not None:
                cache._switch_to(mode)  # noqa: SLF001
                recorder.tell(Event("mode", namespace=cache.namespace, reason=f"mode of all replicas: {mode}"))

        def passed() -> None:
            cache = reference()
            if cache is not None:
                cache._book_when_due()  # noqa: SLF001

        self.log.listener = Replica(
            self.memory, self.memcached, self._indexes, self.chain.flights, switch, passed,
            lambda reason, error: recorder.fault(name, reason, error), self.blocks,
        )  # fmt: skip
        self._let_go = weakref.finalize(self, self.log.stop, None)
        self._let_go.atexit = False

    # Lookups

    def get_or_load(
        self, request: Request, load: Callable[[], T], *, when: Callable[[T], bool] | None = None,
        usage: Callable[[T], Usage | None] | None = None,
    ) -> T:  # fmt: skip
        """Answer a request from the nearest tier that can, or call `load` and keep what it returns.

        Raises what `load` raises, unchanged. `when` says which answers are worth keeping, `usage` what one that was
        loaded has cost.
        """
        origin = Origin(load, when, usage)
        checked(request)
        outcome: Outcome[T] = run(lookup(self.chain, request, origin, self.event(request), blocks=True))
        return outcome.unwrap()

    async def aget_or_load(
        self, request: Request, load: Callable[[], Any], *, when: Callable[[Any], bool] | None = None,
        usage: Callable[[Any], Usage | None] | None = None,
    ) -> Any:  # fmt: skip
        """Answer a request as `get_or_load` does; what `load` returns is awaited if it can be."""
        origin = Origin(load, when, usage)
        checked(request)
        outcome = await arun(lookup(self.chain, request, origin, self.event(request), blocks=False))
        return outcome.unwrap()

    def get_or_load_many(
        self, requests: Sequence[Request], load: Callable[[list[int]], Sequence[T]], *,
        when: Callable[[T], bool] | None = None, max_batch: int | None = None,
    ) -> list[T]:  # fmt: skip
        """Answer many requests in one trip to each server; `load` is given the places of all that are missing.

        It returns their answers in that order; with `max_batch` it is given at most so many at once, and what one load
        brought is kept, whatever becomes of the next. Equal requests are one, and are given the same answer. Raises
        what `load` raises, unchanged, or TypeError where it does not return an answer for each.
        """
        asked = list(map(checked, requests))
        plan = lookup_many(self.chain, asked, load, when, self.event, blocks=True, most=max_batch)
        return [outcome.unwrap() for outcome in run(plan)]

    async def aget_or_load_many(
        self, requests: Sequence[Request], load: Callable[[list[int]], Any], *,
        when: Callable[[Any], bool] | None = None, max_batch: int | None = None,
    ) -> list[Any]:  # fmt: skip
        """Answer many requests as `get_or_load_many` does; what `load` returns is awaited if it can be."""
        asked = list(map(checked, requests))
        plan = lookup_many(self.chain, asked, load, when, self.event, blocks=False, most=max_batch)
        return [outcome.unwrap() for outcome in await arun(plan)]

    def put(self, request: Request, *, value: Any, pinned: bool = False) -> None:
        """Put an answer that nobody loaded, in place of what stands; the semantic tier finds it by its text.

        With `pinned` it lives until it is invalidated or pinned anew: no ttl and no pressure ends it, and no load takes
        its place; another may be lost to an older load that is written in the same moment, and is loaded again.
        The store writes it behind the caller: `flush` tells when it is there. Raises EncodeError for a value
        that cannot be stored, TierError where a tier does not take it, as when too much is pinned, and
        InvalidationError where the store cannot be told.
        """
        run(self._put(request, value, pinned=pinned))

    async def aput(self, request: Request, *, value: Any, pinned: bool = False) -> None:
        """Put an answer as `put` does, without blocking the loop."""
        await arun(self._put(request, value, pinned=pinned))

    def _put(self, request: Request, value: Any, *, pinned: bool) -> Plan[None]:
        # What stands goes everywhere, also from the memories of other processes, and what is being loaded is older.
        checked(request)
        try:
            born, _ = yield from self.mark([("key", request.key)])
        except InvalidationError as error:
            raise InvalidationError(f"the answer was not put: {error.__cause__ or error}") from error
        yield from seed(self.chain, request, value, born, is_pinned=pinned)

    def event(self, request: Request) -> Event:
        """Begin the event of a lookup; it is a miss until something is found."""
        self.log.start()
        event = self.chain.begin("miss", request)
        event.namespace, event.reason = self.namespace, request.exact_only
        return event

    def probe(self, key: bytes) -> Kept | None:
        """Look into memory alone."""
        return self.memory.probe(key) if self.memory is not None else None

    def explain(self, request: Request) -> Explanation:
        """Tell how a request would be answered now, by which tier, and why not by the others; nothing is loaded."""
        codec = self.chain.codec
        return run(explain(self.chain.tiers, codec.decode, self.blocks, request, is_closed=self._closed))

    # Life

    @property
    def shadow_policy(self) -> Learner | None:
        """What is learned of the near matches of `shadow_embedder`: its `status()` says it; None without one."""
        return None if self.chain.shadowing is None else self.chain.shadowing.policy

    @property
    def is_closed(self) -> bool:
        """Whether it was closed: its functions then call their origins."""
        return self._closed

    def stats(self) -> Stats:
        """Return the sums since the cache was made, and what each tier counts."""
        stats = self.recorder.stats()
        stats.recording = {} if self.recorder.recording is None else self.recorder.recording.stats()
        stats.policy = self._policy_told()
        stats.tiers = {tier.name: dict(tier.stats()) for tier in self.tiers}
        if self.chain.shadowing is not None:
            stats.shadow, stats.tiers[SHADOW] = str(self.chain.shadowing), self.chain.shadowing.stats()
        return stats

    def __repr__(self) -> str:
        tiers = " > ".join(tier.name for tier in self.tiers)
        return f"Cache({self.namespace!r}, {tiers or 'no tier'}, policy={self.policy!r}, mode={self.mode!r})"
