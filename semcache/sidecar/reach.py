"""How what a program says of itself is read in the sidecar's cache, and how what stands there is told to it.

A program's own keys, scopes and names mean nothing to others: below a token they are laid over with its tenant, below
another namespace than the sidecar's with that. Laws: two tenants never meet, in whatever keys, scopes, names or
families they send; nothing of one is told to another; who has neither token nor namespace of its own is read as it is.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from urllib.parse import unquote

from semcache.keys import KEY_BYTES
from semcache.marks import Mark, Pair
from semcache.meter import name_of, read_name
from semcache.model import Facets, Request
from semcache.sidecar.naming import SIGN, below, own_tag, quoted, typed


class Reach:
    """What one program means: `tenant` is its token's ("" without), `namespace` its own, `ours` the sidecar's.

    A program that is `trusted` is a sidecar itself, and says what its own programs mean as the cache keeps it.
    """

    def __init__(
        self, tenant: str, namespace: str, ours: str, secret: bytes, *, is_trusted: bool = False
    ) -> None:  # fmt: skip
        self.is_trusted = is_trusted
        self.tenant = tenant
        self._namespace = namespace or ours
        self._ours = ours
        is_other = bool(namespace) and namespace != ours
        self._owner = tenant + (f"@{quoted(namespace)}" if is_other else "")
        self._masks = tuple(self._mask(secret, what) for what in (b"key", b"scope", b"family"))

    def _mask(self, secret: bytes, what: bytes) -> int:
        told = self._owner.encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(told, key=secret[:64], person=what, digest_size=KEY_BYTES).digest())

    @property
    def is_apart(self) -> bool:
        """Whether its entries are parted from others'."""
        return bool(self._owner)

    # What it says

    def key(self, key: bytes) -> bytes:
        """Return a key of its own as one of the cache's, and the other way round."""
        return self._laid(key, 0)

    def _laid(self, told: bytes, mask: int) -> bytes:
        if not self._owner:
            return told
        return (int.from_bytes(told) ^ self._masks[mask]).to_bytes(KEY_BYTES)

    def request(self, request: Request) -> Request:
        """Return what it asks as the cache is asked."""
        if self._owner:
            request.key = self._laid(request.key, 0)
            request.scope = None if request.scope is None else self._laid(request.scope, 1)
            if request.family:
                request.family = self._laid(request.family[:KEY_BYTES].rjust(KEY_BYTES, b"\0"), 2)
        request.facets = self.facets(request.facets)
        return request

    def facets(self, facets: Facets) -> Facets:
        """Return an entry's facets as the cache keeps them."""
        if self.is_trusted:
            return replace(facets, namespace=self._ours)
        if not self._owner and not facets.tags and not facets.documents:
            facets.namespace = self._ours  # they were read for this request alone
            return facets
        tags, documents = typed(facets.tags), typed(facets.documents)
        if not self._owner:
            return replace(facets, namespace=self._ours, tags=tags, documents=documents)
        owners = dict.fromkeys(owner for owner in (self.tenant, self._owner) if owner)
        hidden = [self._hidden("namespace", "")]
        if self.tenant and facets.tenant:
            hidden.append(below(self.tenant))
        told = ("function", facets.function), ("version", facets.version), ("model", facets.model)
        hidden += [self._hidden(*one) for one in (*told, ("tenant", facets.tenant)) if one[1]]
        return replace(
            facets, namespace=self._ours, tenant=self.owner(facets.tenant),
            tags=(*tags, *(own_tag(owner, name) for owner in owners for name in tags), *hidden),
            documents=(*documents, *(own_tag(owner, name) for owner in owners for name in documents)),
        )  # fmt: skip

    def _hidden(self, facet: str, value: str) -> str:
        return f"{SIGN}{self._owner}//{facet}={quoted(value)}"

    def owner(self, tenant: str) -> str:
        """Return a tenant of its own as the cache names it."""
        if not self.tenant:
            return tenant
        return f"{self.tenant}/{quoted(tenant)}" if tenant else self.tenant

    def pair(self, pair: Pair) -> Pair:
        """Return what it invalidates by as the cache does."""
        facet, value = pair
        if isinstance(value, bytes):
            return facet, self.key(value)
        if not self._owner:
            return facet, self._ours if facet == "namespace" else value
        if facet in ("tag", "document"):
            return facet, own_tag(self._owner, value)
        return "tag", self._hidden(facet, "" if facet == "namespace" else value)

    @property
    def own(self) -> Pair:
        """What all entries of its own have, and no other has."""
        return ("tag", self._hidden("namespace", "")) if self._owner else ("namespace", self._ours)

    def booked(self, name: str) -> str | None:
        """Return the name of a sum as the cache books it; None for what is none."""
        told = read_name(name)
        if told is None:
            return None
        measure, (stage, model, tenant) = told
        return name_of(measure, (stage, model, self.owner(tenant))) if self.tenant else name

    def name(self, digest: bytes) -> bytes:
        """Return the digest of an answer's id as the cache knows it."""
        if not self._owner:
            return digest
        mask = self._masks[0].to_bytes(KEY_BYTES)[: len(digest)]
        return bytes(one ^ other for one, other in zip(digest, mask, strict=True))

    # What it is told

    def sees(self, name: str) -> bool:
        """Say whether a sum is its own."""
        told = read_name(name)
        return not self.tenant or (told is not None and told[1][2].partition("/")[0] == self.tenant)

    def sum_told(self, name: str) -> str | None:
        """Return the name of a sum as it gave it."""
        told = read_name(name)
        if told is None or not self.tenant or self.is_trusted:
            return name
        measure, (stage, model, tenant) = told
        return name_of(measure, (stage, model, self._tenant_told(tenant)))

    def _tenant_told(self, tenant: str) -> str:
        return unquote(tenant[len(self.tenant) + 1 :], errors="surrogatepass")

    def has(self, facets: Facets | None) -> bool:
        """Say whether an entry is its own."""
        return not self._owner or (facets is not None and self.own[1] in facets.tags)

    def told(self, facets: Facets | None) -> Facets | None:
        """Return an entry's facets as it gave them."""
        is_plain = not self._owner and (facets is None or not (facets.tags or facets.documents))
        if facets is None or is_plain or self.is_trusted:
            return facets
        tenant = facets.tenant
        if self.tenant:
            tenant = self._tenant_told(tenant)
        return replace(
            facets, namespace=self._namespace, tenant=tenant, tags=typed(facets.tags),
            documents=typed(facets.documents),
        )  # fmt: skip

    def mark(self, mark: Mark) -> Mark | None:
        """Return a mark as it means something to it; None for what is another's."""
        facet, value, position = mark
        if self.is_trusted:
            return mark
        if isinstance(value, bytes):
            return facet, self.key(value), position
        if facet == "namespace":
            return facet, self._namespace, position
        if value.startswith(SIGN):
            return self._own_mark(facet, value, position)
        if facet == "tenant" and self.tenant:
            return self._tenants_mark(value, position)
        return mark

    def _tenants_mark(self, tenant: str, position: int) -> Mark | None:
        if tenant == self.tenant:
            return "namespace", self._namespace, position
        begin = f"{self.tenant}/"
        if not tenant.startswith(begin):
            return None
        return "tenant", unquote(tenant[len(begin) :], errors="surrogatepass"), position

    def _own_mark(self, facet: str, value: str, position: int) -> Mark | None:
        if self.tenant and value == below(self.tenant):
            return "namespace", self._namespace, position
        owners = (owner for owner in (self._owner, self.tenant) if owner)
        begin = next((f"{SIGN}{owner}/" for owner in owners if value.startswith(f"{SIGN}{owner}/")), None)
        if begin is None:
            return None
        name = value[len(begin) :]
        if not name.startswith("/"):
            return facet, unquote(name, errors="surrogatepass"), position
        if begin != f"{SIGN}{self._owner}/":
            return None  # of the tenant's programs of another namespace
        hidden, _, told = name[1:].partition("=")
        told = self._namespace if hidden == "namespace" else unquote(told, errors="surrogatepass")
        return hidden, told, position
