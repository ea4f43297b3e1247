"""Who asks: tokens, which say it to us, and the callers' keys for the servers behind, which say it to them.

Laws: a caller's tenant is made of what was proved: the tenant of its token, and a keyed digest of the key that it sends
upstream; what a header says only parts it further. No key or token is kept, logged or stored: keys as digests by a
secret, tokens as their SHA-256. Comparisons take the same time whatever is compared.
"""

from __future__ import annotations

import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from hmac import compare_digest
from hmac import digest as keyed
from typing import Any
from urllib.parse import quote

from semcache.errors import ConfigurationError

RIGHTS = ("proxy", "cache", "read", "admin")
"""What a token may be for: proxied calls, the cache service, looking, and all else that an operator does."""

# Where callers put their keys, by header.
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
TOKEN_HEADER = b"x-semcache-token"
PROOFS = frozenset((*KEY_HEADERS, TOKEN_HEADER, b"cookie"))
"""The headers that say who asks."""

_BEARER = b"bearer "
_SHA256_CHARACTERS = 64
_DIGEST_CHARACTERS = 16
_MOST_KNOWN = 4096
_TOKEN_BYTES = 32


class UnknownCallerError(Exception):
    """A request whose caller is not known, or may not ask this."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the file has it: its digest, whose it is, what for, and whose key goes upstream in its place."""

    name: str
    sha256: bytes
    tenant: str
    rights: frozenset[str]
    upstream_key_env: str = ""

    @classmethod
    def read(cls, table: Mapping[str, Any], where: str) -> Token:
        """Return the token of a table. Raises ConfigurationError, with the mend."""
        known = ("name", "sha256", "tenant", "rights", "upstream_key_env")
        for key, value in table.items():
            if key not in known:
                raise ConfigurationError(f"{where}: key `{key}` is none of a token's; it has {', '.join(known)}")
            if key != "rights" and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"{where}: `{key}` is text; got {value!r}")
        told = table.get("sha256", "")
        try:
            digest = bytes.fromhex(told)
        except ValueError:
            digest = b""
        if len(told) != _SHA256_CHARACTERS or not digest:
            raise ConfigurationError(
                f"{where}: `sha256` is the token's digest in 64 hexadecimal digits; `semcache serve --new-token` "
                "prints a token and its digest"
            )
        if "tenant" not in table:
            raise ConfigurationError(f"{where}: whose is it? give it a tenant")
        rights = table.get("rights", ["proxy", "cache"])
        if not isinstance(rights, list) or not rights or not set(rights) <= set(RIGHTS):
            raise ConfigurationError(f"{where}: `rights` are some of {', '.join(RIGHTS)}; got {rights!r}")
        name = table.get("name") or table["tenant"]
        return cls(name, digest, table["tenant"], frozenset(rights), table.get("upstream_key_env", ""))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the tenant that was proved, what it may do, and the headers that stand for its keys upstream."""

    tenant: str
    rights: frozenset[str]
    keys: tuple[tuple[bytes, bytes], ...]


class Credentials:
    """The tokens of a sidecar, and the secret that digests of keys are made with."""

    def __init__(self, tokens: Iterable[Token], secret: str, environment: Mapping[str, str] | None = None) -> None:
        self._tokens = tuple(tokens)
        self._secret = secret.encode() or secrets.token_bytes(_TOKEN_BYTES)
        self.is_random = not secret
        self._environment = os.environ if environment is None else environment
        for token in self._tokens:
            if token.upstream_key_env and not self._environment.get(token.upstream_key_env):
                raise ConfigurationError(
                    f"token {token.name}: its upstream_key_env is {token.upstream_key_env}, which the environment lacks"
                )
        self._known: dict[bytes, Caller] = {}
        self._salt = secrets.token_bytes(_TOKEN_BYTES)

    def of(self, proofs: list[tuple[bytes, bytes]]) -> Caller:
        """Return who asks with these headers, of PROOFS. Raises UnknownCallerError."""
        name = blake2b(b"\0".join([part for one in proofs for part in one]), key=self._salt, digest_size=20).digest()
        caller = self._known.get(name)
        if caller is None:
            caller = self._made(dict(proofs))
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[name] = caller
        return caller

    def _made(self, headers: dict[bytes, bytes]) -> Caller:
        cookie = headers.pop(b"cookie", b"")
        own = headers.pop(TOKEN_HEADER, b"")
        token = self._token(own) if own else None
        if own and token is None:
            raise UnknownCallerError("x-semcache-token is none that this sidecar knows")
        keys = [one for one in headers.items() if one[0] in KEY_HEADERS]
        if token is None and self._tokens:
            # A token with a key behind it stands where the SDK puts its key.
            for _, value in keys:
                token = self._token(_bare(value))
                if token is not None and token.upstream_key_env:
                    own = _bare(value)
                    break
                token = None
            if token is None:
                raise UnknownCallerError(
                    "no token: send x-semcache-token, or as the API key a token that has an upstream_key_env"
                )
        parts = [] if token is None else [quote(token.tenant, safe="")]
        if token is not None and token.upstream_key_env:
            key = self._environment[token.upstream_key_env].encode()
            names = [name for name, _ in keys] or [b"authorization"]
            keys = [(name, b"Bearer " + key if name == b"authorization" else key) for name in names]
        else:
            # Who sends no key to the server behind may be known to it by a cookie.
            proofs = [_bare(value) for _, value in keys] or ([cookie] if cookie else [])
            parts.append(f"key-{self._digest(proofs)}" if proofs else "nobody")
        rights = frozenset(RIGHTS) if token is None else token.rights
        return Caller("/".join(parts), rights, tuple(keys))

    def _token(self, told: bytes) -> Token | None:
        digest = sha256(told).digest()
        found = [token for token in self._tokens if compare_digest(token.sha256, digest)]
        return found[0] if found else None

    def _digest(self, proofs: list[bytes]) -> str:
        told = b"".join(len(proof).to_bytes(4, "big") + proof for proof in proofs)
        return keyed(self._secret, told, "sha256").hex()[:_DIGEST_CHARACTERS]


def new_token() -> tuple[str, str]:
    """Return a token, and the digest of it that a file has."""
    token = "sc-" + urlsafe_b64encode(secrets.token_bytes(_TOKEN_BYTES)).decode().rstrip("=")
    return token, sha256(token.encode()).hexdigest()


def _bare(value: bytes) -> bytes:
    """Return a key without the word before it."""
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else value.strip()
