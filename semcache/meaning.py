"""What a call means to a cache: its key, its scope, its facets, in the mode of its context.

Laws: the key covers all that can change the answer, with the tenant and never the embedder, so that processes with and
without one share exact entries (law 1); the scope covers all but the text, and the embedder (laws 2 and 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from semcache.commands import stricter
from semcache.context import as_tenant, current, named_stage, names_of
from semcache.keys import FORMAT, canonical, digest, of_embedder
from semcache.model import FOREVER, SHARED, Facets, Lives, Mode, Request, Tenant
from semcache.ttl import Duration, lives_of

if TYPE_CHECKING:
    from semcache.tiers.semantic import SemanticTier


def checked(request: Request) -> Request:
    """Return a request. Raises TypeError for what is none."""
    if not isinstance(request, Request):
        raise TypeError(f"a request is made by cache.request(...), or f.request(*args) of a function; got {request!r}")
    return request


def family_of(function: str, version: str, rest: bytes) -> bytes:
    """Return the scope family of a function's calls: what is equal around their texts, whoever asks, in any namespace.

    `rest` is the canonical form of it, without earlier turns where they are known.
    """
    return digest(b"family", canonical([function, version]), rest)


class Meaning:
    """The part of a Cache that makes requests; the rest of it gives it what it needs."""

    namespace: str
    tenant: Tenant | None
    mode: Mode
    semantic: SemanticTier | None
    names_families: bool
    sidecar: Any
    _switched: Mode

    @property
    def has_near(self) -> bool:
        """Whether near matches are looked for, here or in a sidecar."""
        return self.semantic is not None or self.sidecar is not None

    @property
    def embedder_identity(self) -> str:
        """Whose vectors the near tier compares; empty without one, and before a server has said it."""
        return "" if self.semantic is None else self.semantic.identity

    def _scope(self, bare: bytes) -> tuple[bytes | None, str, str | None]:
        """Return the scope of one without an embedder, whose vectors it holds, and why there is none."""
        if self.semantic is None:  # a sidecar lays its embedder's over it
            return bare, "", None
        embedder = self.embedder_identity
        if embedder:
            return of_embedder(bare, embedder), embedder, None
        return None, "", self.semantic.unready()  # its server is to say it

    def tenant_of(self, tenant: Tenant | None) -> Tenant | None:
        """Return whose call it is: the context's word, then the call's, then the cache's."""
        options = current.get()
        if options is not None and options.tenant is not None:
            return options.tenant
        return self.tenant if tenant is None else tenant

    def request(
        self,
        *parts: object,
        text: str | None = None,
        tenant: Tenant | None = None,
        ttl: Duration | Callable[[Any], Duration | None] | None = None,
        sliding: bool = False,
        max_age: Duration | None = None,
        stale_while_revalidate: Duration = 0,
        stale_if_error: Duration = 0,
        tags: str | Iterable[str] = (),
        function: str = "",
        version: str = "",
        model: str = "",
        exact_only: str | None = None,
        stage: str | None = None,
    ) -> Request:
        """Make a request of parts, which must all be equal, and a text, which may match nearly.

        `exact_only` is the reason why no near match may answer it; the rest is as in `cached`. Raises UnkeyableError
        for a part that has no key.
        """
        tenant = as_tenant(tenant)
        prefix = self.prefix(function, version)
        rest = canonical(parts) + canonical(model)
        key = digest(prefix, rest, canonical(text), self.tenant_bytes(self.tenant_of(tenant)))
        return self.complete(
            key, prefix, rest, text, tenant,
            lives_of(ttl, max_age, stale_while_revalidate, stale_if_error, sliding=sliding),
            Facets(self.namespace, function, version, "", model, names_of(tags, "tags")), exact_only,
            named_stage(stage) or function,
        )  # fmt: skip

    def prefix(self, function: str, version: str) -> bytes:
        """Return what begins every key and scope of a function."""
        return FORMAT + canonical([self.namespace, function, version])

    @staticmethod
    def tenant_bytes(tenant: Tenant | None) -> bytes:
        """Return a tenant's part in keys: none at all for those who share, or say nothing."""
        return b"" if tenant is None or tenant is SHARED else b"tenant" + canonical(tenant)

    def complete(
        self, key: bytes, prefix: bytes, rest: bytes, text: str | None, tenant: Tenant | None, lives: Lives | None,
        facets: Facets, exact_only: str | None, stage: str,
    ) -> Request:  # fmt: skip
        """Make a request of a key and all that stands around its text, in the mode of the context or the cache."""
        options = current.get()
        tenant = self.tenant_of(tenant)
        mode: Mode = self.mode
        if options is not None:
            if options.mode is not None:
                mode = stricter(options.mode, self._switched)
            stage = options.stage or stage
            if options.ttl is not None:
                lives = replace(lives or FOREVER, ttl=options.ttl, ttl_of=None)
            if options.tags or options.documents:
                facets.tags = tuple(dict.fromkeys((*facets.tags, *options.tags)))
                facets.documents = tuple(dict.fromkeys((*facets.documents, *options.documents)))
        owner = self.tenant_bytes(tenant)
        if owner:
            facets.tenant = str(tenant)
        if text is not None and not text and exact_only is None:
            exact_only = "the text is empty"
        scope, embedder, family = None, "", b""
        if self.has_near and text is not None and exact_only is None and mode != "exact":
            scope, embedder, exact_only = self._scope(digest(b"scope", prefix, rest, owner))
            if scope is not None and self.names_families:
                family = family_of(facets.function, facets.version, rest)
        return Request(
            key,
            scope,
            text,
            facets,
            tenant is not None,
            lives or FOREVER,
            mode,
            embedder,
            exact_only,
            stage,
            sources=None if options is None else options.sources,
            family=family,
        )
