"""What is said to all who use a namespace: forget this, and switch to that mode.

Laws: an invalidation is durable when the call returns, or it raises (law 8): it is the one call that does not fail
open. The mode of all replicas only tightens what each was made with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from semcache.chain import Chain
from semcache.context import as_tenant
from semcache.errors import ConfigurationError, InvalidationError, TierError
from semcache.events import Event, Recorder
from semcache.keys import KEY_BYTES
from semcache.log import Log
from semcache.marks import Pair
from semcache.model import SHARED, SWITCHED, Mode, Tenant
from semcache.plan import Plan, arun, run

if TYPE_CHECKING:
    from semcache.tiers.disk import DiskTier
    from semcache.tiers.memcached import MemcachedTier
    from semcache.tiers.memory import MemoryTier
    from semcache.tiers.redis import RedisTier
    from semcache.tiers.semantic import SemanticTier
    from semcache.tiers.sidecar import SidecarTier

# Of two modes the later here holds.
STRICTNESS: dict[Mode, int] = {"live": 0, "shadow": 1, "exact": 2, "refresh": 3, "off": 4}


def stricter(one: Mode, other: Mode) -> Mode:
    """Return the one of two modes that lets the cache do less."""
    return max(one, other, key=STRICTNESS.__getitem__)


# How near a text is, unless it is said: what a careful threshold would serve.
NEAR = 0.9
_PAGE = 500
_SHOWN = 60


class Commands:
    """The part of a Cache that speaks to all replicas; the rest of it gives it what it needs."""

    namespace: str
    log: Log
    chain: Chain
    recorder: Recorder
    memory: MemoryTier | None
    memcached: MemcachedTier | None
    semantic: SemanticTier | None
    disk: DiskTier | None
    redis: RedisTier | None
    store: DiskTier | RedisTier | SidecarTier | None
    sidecar: SidecarTier | None
    _own_mode: Mode
    _switched: Mode

    def _switch_to(self, mode: Mode | None) -> None:
        """Take over the mode of all replicas where it is stricter than our own."""
        self._switched = mode or "live"
        self.mode: Mode = stricter(self._own_mode, self._switched)
        self.is_read = self.mode not in ("off", "refresh")

    def invalidate(
        self,
        *,
        key: bytes | str | None = None,
        function: str | Callable[..., Any] | None = None,
        tag: str | None = None,
        tenant: Tenant | None = None,
        model: str | None = None,
        version: str | None = None,
        document: str | None = None,
        namespace: str | None = None,
        text: str | None = None,
        similarity: float | None = None,
        dry_run: bool = False,
    ) -> int:
        """Drop what has one of these: a key (bytes, or hex), a function (itself, or "module.name"), a tag, a tenant ...

        `text` means all entries whose texts are at least so similar, whatever their scope, those of one tenant where
        that is given too; it finds what is in the index of this cache's embedder, not what is being loaded. Everywhere
        and durably: other processes hear of it within some hundredths of a second, and answers whose load has begun
        before are not kept. Returns how many entries were dropped from the exact store, or from memory where there is
        no store; with `dry_run` how many would be. Raises InvalidationError if the store cannot keep it; a memcached
        that stands alone can keep a key's alone.
        """
        if text is not None:
            given = (key, function, tag, model, version, document, namespace)
            return run(self._invalidate_near(_near_told(text, similarity, tenant, given), dry_run=dry_run))
        told = _facet_told(similarity, key, function, tag, tenant, model, version, document, namespace)
        return run(self._count(told) if dry_run else self._invalidate(told))

    async def ainvalidate(
        self,
        *,
        key: bytes | str | None = None,
        function: str | Callable[..., Any] | None = None,
        tag: str | None = None,
        tenant: Tenant | None = None,
        model: str | None = None,
        version: str | None = None,
        document: str | None = None,
        namespace: str | None = None,
        text: str | None = None,
        similarity: float | None = None,
        dry_run: bool = False,
    ) -> int:
        """Invalidate as `invalidate` does, without blocking the loop."""
        if text is not None:
            given = (key, function, tag, model, version, document, namespace)
            return await arun(self._invalidate_near(_near_told(text, similarity, tenant, given), dry_run=dry_run))
        told = _facet_told(similarity, key, function, tag, tenant, model, version, document, namespace)
        return await arun(self._count(told) if dry_run else self._invalidate(told))

    def _invalidate(self, told: tuple[str, str | bytes]) -> Plan[int]:
        facet, value = self._own_namespace(told)
        _, dropped = yield from self.mark([(facet, value)])
        self.recorder.tell(Event("invalidated", namespace=self.namespace, reason=f"{facet}: {_shown(value)}"))
        return dropped

    def _invalidate_near(self, told: tuple[str, float, Tenant | None], *, dry_run: bool) -> Plan[int]:
        text, similarity, tenant = told
        whose: Pair | None = None if tenant is None else ("tenant", str(tenant))
        return (yield from self.forget_near(text, similarity, whose, dry_run=dry_run))

    def forget_near(self, text: str, similarity: float, whose: Pair | None, *, dry_run: bool) -> Plan[int]:
        """Invalidate what is near to a text, and has a facet value where one is given; how many entries went.

        Raises ConfigurationError without an index, InvalidationError where it, or the store, could not be asked.
        """
        if self.sidecar is not None:
            try:
                return (yield from self.sidecar.forget_near(text, similarity, whose, dry_run=dry_run))
            except TierError as error:
                raise InvalidationError(f"nothing was invalidated: the sidecar could not do it ({error})") from error
        if self.semantic is None:
            raise ConfigurationError("invalidate(text=) looks into the index: give the cache an embedder=")
        holder = self.disk or self.redis or (self.memory if self.memcached is None else None)
        if whose is not None and holder is None:
            raise ConfigurationError("a memcached that stands alone cannot tell whose an entry is: leave out tenant=")
        try:
            keys = [row.key for row in (yield from self.semantic.within(text, similarity))]
        except Exception as error:
            raise InvalidationError(
                f"nothing was invalidated: the index could not be asked what is near to {_begun(text)} ({error})"
            ) from error
        if whose is not None and holder is not None:
            # Of those that cannot be looked into it may be any: they go too.
            others = set((yield from holder.lacking(keys, whose)))
            keys = [key for key in keys if key not in others]
        return (yield from self.drop([("key", key) for key in keys], f"text: {_begun(text)}", dry_run=dry_run))

    def drop(self, pairs: list[Pair], reason: str, *, dry_run: bool = False) -> Plan[int]:
        """Drop what has any of some facet values, everywhere and durably, for a reason that is told; or count it."""
        dropped = 0
        for at in range(0, len(pairs), _PAGE):
            page = pairs[at : at + _PAGE]
            dropped += (yield from self.count_of(page)) if dry_run else (yield from self.mark(page))[1]
        if not dry_run:
            self.recorder.tell(Event("invalidated", namespace=self.namespace, reason=reason))
        return dropped

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Drop what has one of some facet values, everywhere; the marks' position, and how many entries went."""
        facet, value = pairs[0]
        try:
            position, stored = yield from self.log.mark(pairs)
        except BaseException as error:
            yield from self.forget_here(pairs)
            if not isinstance(error, Exception):  # its caller was cancelled: the store may have made it, or not
                raise
            raise InvalidationError(
                f"{facet} {_shown(value)} was dropped from this process, but the store could not keep it ({error}): "
                "others may serve it, and whoever starts later; try again when the store is there"
            ) from error
        dropped = yield from self._forget(pairs, position)
        if self.memcached is not None:
            taken = 0
            for pair in pairs:
                taken += yield from self.memcached.remove(*pair, position)
            dropped = taken if self.store is None else dropped
        return position, stored if self.store is not None else dropped

    def forget_here(self, pairs: list[Pair]) -> Plan[None]:
        """Drop what has one of some facet values from this process, where no store could be told."""
        position = self.log.beyond()
        self.log.take([(facet, value, position) for facet, value in pairs])
        yield from self._forget(pairs, position)

    def _count(self, told: tuple[str, str | bytes]) -> Plan[int]:
        return (yield from self.count_of([self._own_namespace(told)]))

    def count_of(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many entries have one of some facet values."""
        if self.store is not None:
            return (yield from self.store.count(pairs))
        if self.memcached is not None:
            return (yield from self.memcached.count(pairs))
        return self.memory.count(pairs) if self.memory is not None else 0

    def _own_namespace(self, told: tuple[str, str | bytes]) -> tuple[str, str | bytes]:
        if told[0] == "namespace" and told[1] != self.namespace:
            raise ConfigurationError(f"this cache is of namespace {self.namespace!r}; open one of {told[1]!r} for that")
        return told

    def _forget(self, pairs: list[Pair], position: int) -> Plan[int]:
        dropped = 0
        for facet, value in pairs:
            for tier in (self.memory, self.semantic):
                if tier is not None:
                    dropped += yield from tier.remove(facet, value, position)
            self.chain.flights.close(facet, value)
        return dropped

    # All replicas

    @property
    def modes(self) -> tuple[Mode, Mode]:
        """The mode that this cache was made with, and that of all replicas, as far as it has heard of it."""
        return self._own_mode, self._switched

    def set_mode(self, mode: Mode) -> None:
        """Set the mode of all processes that use the namespace, within a second: "live", "shadow", "exact" or "off".

        It only tightens what each was made with; "live" lets each go back to its own. Without a store it is this
        cache's alone. Raises TierError if the store cannot keep it; this process has switched all the same.
        """
        run(self.switch_all(mode))

    async def aset_mode(self, mode: Mode) -> None:
        """Set the mode of all processes as `set_mode` does, without blocking the loop."""
        await arun(self.switch_all(mode))

    def switch_all(self, mode: Mode) -> Plan[None]:
        """Set the mode of all processes, as a plan."""
        if mode not in SWITCHED:
            raise ConfigurationError(f"all replicas can be set to live, shadow, exact or off; got {mode!r}")
        self._switch_to(mode)
        if self.store is not None:
            yield from self.store.switch(mode)


def _facet_told(
    similarity: float | None, key: bytes | str | None, function: str | Callable[..., Any] | None, tag: str | None,
    tenant: Tenant | None, model: str | None, version: str | None, document: str | None, namespace: str | None,
) -> tuple[str, str | bytes]:  # fmt: skip
    """Return the one facet value that was given. Raises ConfigurationError."""
    given: list[tuple[str, Any]] = [
        ("key", key), ("function", function), ("tag", tag), ("tenant", tenant), ("model", model), ("version", version),
        ("document", document), ("namespace", namespace),
    ]  # fmt: skip
    told = [(facet, value) for facet, value in given if value is not None]
    if len(told) != 1:
        raise ConfigurationError(
            f"invalidate takes one of {'=, '.join(facet for facet, _ in given)}= and text=; got {len(told)}"
        )
    if similarity is not None:
        raise ConfigurationError("similarity= says how near a text= is to be: it goes with nothing else")
    facet, value = told[0]
    if facet == "key":
        return facet, key_bytes(value)
    if facet == "function":
        return facet, _function_name(value)
    if facet == "tenant":
        if value is SHARED:
            raise ConfigurationError("what is shared has no tenant: invalidate by function=, tag= or namespace=")
        return facet, str(as_tenant(value))
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{facet}= is text; got {value!r}")
    return facet, value


def _shown(value: str | bytes) -> str:
    """Tell a facet value: a key as its digits."""
    return value.hex() if isinstance(value, bytes) else repr(value)


def _begun(text: str) -> str:
    """Tell no more of a text than it takes to know it."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _near_told(
    text: object, similarity: float | None, tenant: Tenant | None, others: tuple[object, ...]
) -> tuple[str, float, Tenant | None]:
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"text= is text; got {text!r}")
    if any(one is not None for one in others):
        raise ConfigurationError("invalidate(text=) takes similarity= and tenant=, and nothing beside")
    if similarity is None:
        similarity = NEAR
    if isinstance(similarity, bool) or not isinstance(similarity, int | float) or not -1 <= similarity <= 1:
        raise ConfigurationError(f"similarity is a cosine, -1 to 1; got {similarity!r}")
    if tenant is SHARED:
        raise ConfigurationError("what is shared has no tenant: leave out tenant=")
    return text, similarity, as_tenant(tenant)


def key_bytes(key: bytes | str | None) -> bytes:
    """Return a key that was given as bytes, or as hex digits. Raises ConfigurationError."""
    try:
        found = key if isinstance(key, bytes) else bytes.fromhex(key or "")
    except ValueError:
        found = b""
    if not isinstance(key, bytes) and len(found) != KEY_BYTES:
        raise ConfigurationError(
            f"a key is bytes or their {2 * KEY_BYTES} hex digits, as an event's key.hex(); got {key!r}"
        )
    return found


def _function_name(function: str | Callable[..., Any] | None) -> str:
    if isinstance(function, str):
        return function
    name = getattr(function, "__semcache_name__", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"invalidate(function=) takes a cached function or its name; got {function!r}")
    return name
