"""The tiers of a cache, made of its settings: what each is given, in one place.

Laws: a tier's module, and with it its store's client or its device, is imported when such a tier is made (law 13); a
setting that can never work is a ConfigurationError, and a store that is away is none.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from semcache.blocks import Blocks
from semcache.codec import Codec
from semcache.errors import ConfigurationError
from semcache.events import Observer, Recorder
from semcache.labelling import Labelling
from semcache.log import LOST_SECONDS
from semcache.marks import Marks
from semcache.model import MODES
from semcache.obstacles import EMBEDDER_MEND, NO_EMBEDDER
from semcache.policy import Policy, Tuned
from semcache.policy.learner import Learner
from semcache.shadowing import MOST_WAITING
from semcache.shadowing import NAME as SHADOW
from semcache.tier import Clock
from semcache.tiers.memory import MemoryTier
from semcache.ttl import TTL, Timeouts
from semcache.warning import warn

if TYPE_CHECKING:
    from semcache.semantic.embedder import TextEmbedder
    from semcache.tiers.disk import DiskTier
    from semcache.tiers.memcached import MemcachedTier
    from semcache.tiers.redis import RedisTier
    from semcache.tiers.semantic import SemanticTier
    from semcache.tiers.sidecar import SidecarTier

LONGEST_LIFE_SECONDS = 86400.0
# Nobody waits for it: a batch of a large model on a busy CPU may take so long.
_SHADOW_SECONDS = 30.0


def check_stores(namespace: object, disk: object, redis: object, memcached: object) -> None:
    """Refuse stores that cannot stand together, or without a name. Raises ConfigurationError."""
    if not isinstance(namespace, str):
        raise ConfigurationError(f"namespace is text; got {namespace!r}")
    if not isinstance(disk, str | os.PathLike | None):
        raise ConfigurationError(f"disk is the path of a file; got {disk!r}")
    if not namespace and any(store is not None for store in (disk, redis, memcached)):
        raise ConfigurationError('a store may be shared: name the service, as in namespace="shop"')
    if disk is not None and redis is not None:
        raise ConfigurationError("disk= and redis= are both exact stores: give the one that keeps the answers")


def check_sidecar(sidecar: object, *others: object) -> None:
    """Refuse what the sidecar has beside a sidecar. Raises ConfigurationError."""
    names = ("disk", "redis", "memcached", "embedder", "shadow_embedder", "policy")
    told = [name for name, other in zip(names, others, strict=True) if other is not None]
    if sidecar is not None and told:
        raise ConfigurationError(
            f"sidecar= has all but memory: give {'=, '.join(told)}= to `semcache serve`, and leave it out here"
        )


def check_mode(mode: object, audit: object) -> None:
    """Refuse a mode that there is not, and an audit that is no share. Raises ConfigurationError."""
    if mode not in MODES:
        raise ConfigurationError(f"mode is one of {', '.join(MODES)}; got {mode!r}")
    if isinstance(audit, bool) or not isinstance(audit, int | float) or not 0 <= audit <= 1:
        raise ConfigurationError(f"audit is a share of the near matches, from 0 to 1; got {audit!r}")


def check_near(embedder: TextEmbedder | None, shadow: TextEmbedder | None, policy: Policy, *, keeps: bool) -> None:
    """Refuse near matches without a tier that `keeps` answers, another embedder's policy, a shadow of nothing.

    Raises ConfigurationError.
    """
    if shadow is not None and embedder is None:
        raise ConfigurationError("shadow_embedder= learns beside the one that is in use: give embedder= too")
    if embedder is None:
        return
    if embedder.identity and isinstance(policy, Tuned):
        policy.check(embedder.identity)
    if not keeps:
        raise ConfigurationError("near matches need a tier that keeps the answers: memory= or disk= or redis=")
    if shadow is not None and shadow.identity and shadow.identity == embedder.identity:
        raise ConfigurationError(
            f"shadow_embedder= is the embedder in use, {shadow.identity!r}: give the one that is to take its place"
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the tiers of one cache have in common.

    `is_deaf` says that nobody tells this process what others invalidate, as with a memcached that stands alone;
    `others_ttl` is how long, in seconds, a tier beside the store keeps what the store's marks must outlive.
    """

    namespace: str
    clock: Clock
    random: Callable[[], float]
    marks: Marks
    ttl: TTL
    timeouts: Timeouts
    recorder: Recorder
    is_deaf: bool
    others_ttl: float
    blocks: Blocks

    def _fault(self, tier: str) -> Callable[[str, BaseException], None]:
        return partial(self.recorder.fault, tier)

    def memory(self, max_bytes: int, *, is_store: bool) -> MemoryTier:
        """Make the memory tier."""
        return MemoryTier(
            max_bytes, self.ttl.of("memory", is_store=is_store), clock=self.clock, jitter=self.ttl.jitter,
            is_store=is_store, random=self.random, marks=self.marks, longest=LOST_SECONDS if self.is_deaf else inf,
        )  # fmt: skip

    def memcached(self, url: str) -> MemcachedTier:
        """Make the memcached tier. Raises ConfigurationError."""
        from semcache.tiers.memcached import MemcachedTier

        return MemcachedTier(
            url, namespace=self.namespace, ttl=self.ttl.of("memcached"), clock=self.clock, marks=self.marks,
            keeps_marks=not self.is_deaf, jitter=self.ttl.jitter, timeout=self.timeouts.of("memcached"),
            random=self.random, on_fault=self._fault("memcached"),
        )  # fmt: skip

    def redis(self, redis: Any) -> RedisTier:
        """Make the Redis tier. Raises ConfigurationError."""
        from semcache.stores.address import address_of

        address_of(redis)  # whether it can be one, and whether there is a client for it
        from semcache.tiers.redis import RedisTier

        return RedisTier(
            redis, namespace=self.namespace, ttl=self.ttl.of("redis"), clock=self.clock, marks=self.marks,
            jitter=self.ttl.jitter, timeout=self.timeouts.of("redis"), random=self.random, others_ttl=self.others_ttl,
            index_ttl=self.ttl.of("semantic"), on_fault=self._fault("redis"), blocks=self.blocks,
        )  # fmt: skip

    def disk(self, path: str | os.PathLike[str], max_bytes: int) -> DiskTier:
        """Make the disk tier. Raises ConfigurationError."""
        from semcache.tiers.disk import DiskTier

        return DiskTier(
            path, namespace=self.namespace, ttl=self.ttl.of("disk"), jitter=self.ttl.jitter,
            timeout=self.timeouts.of("disk"), max_bytes=max_bytes, clock=self.clock, marks=self.marks,
            random=self.random, others_ttl=self.others_ttl, index_ttl=self.ttl.of("semantic"),
            on_fault=self._fault("disk"), blocks=self.blocks,
        )  # fmt: skip

    def sidecar(self, sidecar: Any, codec: Codec) -> SidecarTier:
        """Make the tier of a sidecar. Raises ConfigurationError."""
        from semcache.tiers.sidecar import SidecarTier

        return SidecarTier(
            sidecar, namespace=self.namespace, clock=self.clock, marks=self.marks, decode=codec.decode,
            timeout=self.timeouts.of("sidecar"), on_fault=self._fault("sidecar"),
        )  # fmt: skip

    def semantic(
        self, embedder: TextEmbedder, max_bytes: int, policy: Policy, store: DiskTier | RedisTier | None,
        values: list[Any], gpu_memory: int | None = None, device: str = "auto", *, is_shadow: bool = False,
    ) -> SemanticTier:  # fmt: skip
        """Make the semantic tier over the exact tiers `values`; its rows stand in the store, where there is one.

        One that `is_shadow` writes no rows, though it reads those that stand there under its name; its index is on the
        CPU, it has time, and drops what it is behind with.
        """
        from semcache.semantic.batcher import MOST_PENDING, Batcher
        from semcache.semantic.device import make_index
        from semcache.semantic.second import NAME as SECOND
        from semcache.semantic.second import as_cross_encoder
        from semcache.tiers.semantic import SemanticTier, row_life

        now, ttl = self.clock.monotonic, self.ttl.of("semantic")

        def restore() -> Iterable[tuple[bytes, bytes, str, Any, float]]:
            if store is not None:  # before any row can be found
                self.blocks.take(store.reports.blocked())
            for row in store.rows(embedder.identity) if store else ():
                yield row.key, row.scope, row.text, row.vector, now() + row_life(row.remaining, ttl)

        def attach(key: bytes, vector: Any) -> None:
            if store is not None:
                store.attach(key, vector, embedder=embedder.identity)

        second = as_cross_encoder(getattr(policy, "cross_encoder", None))
        if second is not None and isinstance(policy, Learner):
            policy.cross_encoder, policy.stage = second, second.identity  # and a twin asks the same model
        batcher = Batcher(
            embedder,
            lambda dimension: make_index(
                dimension, max_bytes, None if is_shadow else getattr(embedder, "device", None), gpu_memory, device
            ),
            now,
            restore=restore,
            on_fault=self._fault(SHADOW if is_shadow else "semantic"),
            max_pending=MOST_WAITING if is_shadow else MOST_PENDING,
        )
        return SemanticTier(
            batcher, policy, values, ttl=ttl, timeout=_SHADOW_SECONDS if is_shadow else self.timeouts.of("semantic"),
            clock=self.clock, jitter=self.ttl.jitter, random=self.random,
            warn=(lambda *_: None) if is_shadow else self.recorder.warn_once,
            attach=attach if store and not is_shadow else None, embedder=lambda: embedder.identity, blocks=self.blocks,
            second=second, on_second=self._fault(SECOND),
        )  # fmt: skip


def embedder_of(embedder: Any, device: str, policy: object) -> TextEmbedder | None:
    """Make the embedder of a setting, and warn of a policy that has none. Raises ConfigurationError."""
    if embedder is None:
        if policy is not None:
            warn(f"policy={policy!r} decides on near matches, but {NO_EMBEDDER}: {EMBEDDER_MEND}")
        return None
    from semcache.semantic.embedder import as_embedder

    return as_embedder(embedder, device)


def observers_of(observers: Iterable[Observer]) -> list[Observer]:
    """Check who is to hear of events. Raises ConfigurationError."""
    listed = list(observers)
    if not all(callable(observer) for observer in listed):
        raise ConfigurationError(f"observers are callables that take an event; got {listed!r}")
    return listed


# What parts ask of their cache: they must not hold it, or one that is dropped would never end.


def is_open(reference: weakref.ref[Any]) -> bool:
    """Say whether a cache is there and open."""
    cache = reference()
    return cache is not None and not cache.is_closed


def surroundings(reference: weakref.ref[Any]) -> list[str]:
    """Return what keeps near matches from being served."""
    cache = reference()
    return [] if cache is None else cache._surroundings()  # noqa: SLF001


def is_ready(reference: weakref.ref[SemanticTier]) -> bool:
    """Say whether a near tier has loaded."""
    tier = reference()
    return tier is not None and tier.is_ready


def attuned(
    labelling: Labelling | None, semantic: weakref.ref[SemanticTier], seed: int | None
) -> Labelling | None:  # fmt: skip
    """Have a policy that learns know whose vectors we compare, and draw its sample by our seed."""
    if labelling is not None:
        labelling.policy.attune(partial(identity_of, semantic), seed)
    return labelling


def identity_of(semantic: weakref.ref[SemanticTier]) -> str:
    """Return whose vectors a tier compares; a policy may outlive the cache, whose index it must not hold."""
    tier = semantic()
    return "" if tier is None else tier.identity
