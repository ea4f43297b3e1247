"""Who asks: tokens, which say it to us, and the callers' keys for the servers behind, which say it to them.

Laws: a caller's tenant is made of what was proved: the tenant of its token, or the subject of its certificate, and a
keyed digest of the key that it sends upstream; what a header says only parts it further. No key or token is kept,
logged or stored: keys as digests by a secret, tokens as their SHA-256. Comparisons take the same time whatever is
compared.
"""

from __future__ import annotations

import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from hmac import compare_digest
from hmac import digest as keyed
from pathlib import Path
from typing import Any
from urllib.parse import quote

from semcache.errors import ConfigurationError

RIGHTS = ("proxy", "cache", "read", "admin")
"""What a token may be for: proxied calls, the cache service, looking, and all else that an operator does."""

# Where callers put their keys, by header.
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
TOKEN_HEADER = b"x-semcache-token"
EVERYBODY = "*"
"""The tenant of a token that reaches all tenants: an operator's."""
COOKIE = b"cookie"
CERTIFICATE_HEADER = b"x-semcache-client-certificate"
"""Not a header that anybody sends: the protocol says by it whose certificate the connection has, and drops others."""
# What gateways in front of us have found out of who asks, or are asked by.
_VOUCHED = (
    b"cf-aig-authorization", b"cf-access-client-id", b"cf-access-client-secret", b"cf-access-jwt-assertion",
    b"x-forwarded-user", b"x-forwarded-email", b"x-forwarded-access-token", b"x-goog-iap-jwt-assertion",
    b"x-auth-request-user", b"x-auth-request-email",
)  # fmt: skip
PROOFS = frozenset((*KEY_HEADERS, *_VOUCHED, TOKEN_HEADER, COOKIE, CERTIFICATE_HEADER))
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
    """A token as the file has it: its digest, whose it is, what for, and which key goes where in its place."""

    name: str
    sha256: bytes
    tenant: str
    rights: frozenset[str]
    upstream_key_env: str = ""
    upstream: str = ""
    upstream_key_file: str = ""

    @property
    def key_name(self) -> str:
        """What the key is called that goes upstream in its place; "" where none does."""
        return self.upstream_key_env or self.upstream_key_file

    @classmethod
    def read(cls, table: Mapping[str, Any], where: str) -> Token:
        """Return the token of a table. Raises ConfigurationError, with the mend."""
        known = ("name", "sha256", "tenant", "rights", "upstream_key_env", "upstream_key_file", "upstream")
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
        if not isinstance(rights, list) or not rights or not all(one in RIGHTS for one in rights):
            raise ConfigurationError(f"{where}: `rights` are some of {', '.join(RIGHTS)}; got {rights!r}")
        behind = [name for name in ("upstream_key_env", "upstream_key_file") if name in table]
        if table["tenant"] == EVERYBODY and (not {"proxy", "cache"}.isdisjoint(rights) or behind):
            raise ConfigurationError(
                f'{where}: tenant = "*" is an operator\'s token, which is for looking and switching: give it rights = '
                '["read"] or ["read", "admin"], and no upstream_key_env; what calls has a tenant of its own'
            )
        if len(behind) > 1:
            raise ConfigurationError(f"{where}: its key is in upstream_key_env or in upstream_key_file, not in both")
        name = table.get("name") or table["tenant"]
        upstream = table.get("upstream", "").rstrip("/").removesuffix("/v1")
        key_env, key_file = table.get("upstream_key_env", ""), table.get("upstream_key_file", "")
        return cls(name, digest, table["tenant"], frozenset(rights), key_env, upstream, key_file)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the tenant that was proved, and what it may do.

    `key_env` names the key that goes upstream in place of its own, to the server `upstream` alone, where that is said.
    `reach` is the tenant whose entries, and those below it, it may look at and drop; empty for an operator: all.
    """

    tenant: str
    rights: frozenset[str]
    key_env: str = ""
    upstream: str = ""
    reach: str = ""

    def reaches(self, tenant: str) -> bool:
        """Say whether an entry of this tenant is its own to look at, and to drop."""
        return not self.reach or tenant == self.reach or tenant.startswith(f"{self.reach}/")


class Credentials:
    """The tokens of a sidecar, and the secret that digests of keys are made with."""

    def __init__(self, tokens: Iterable[Token], secret: str, environment: Mapping[str, str] | None = None) -> None:
        self._tokens = tuple(tokens)
        self._secret = secret.encode() or secrets.token_bytes(_TOKEN_BYTES)
        self.is_random = not secret
        self._environment = os.environ if environment is None else environment
        self.has_tokens = bool(self._tokens)
        self._keys = {token.key_name: self._key_behind(token) for token in self._tokens if token.key_name}
        self._known: dict[bytes, Caller] = {}
        self._salt = secrets.token_bytes(_TOKEN_BYTES)

    def _key_behind(self, token: Token) -> bytes:
        """Return the key that stands for a token. Raises ConfigurationError."""
        if token.upstream_key_env:
            key = self._environment.get(token.upstream_key_env, "").encode()
            told = f"its upstream_key_env is {token.upstream_key_env}, which the environment lacks"
        else:
            told = f"its upstream_key_file is {token.upstream_key_file}, which has no key in a line"
            try:
                key = Path(token.upstream_key_file).read_bytes().strip()
            except OSError as error:
                told = f"its upstream_key_file {token.upstream_key_file} cannot be read: {error.strerror}"
                raise ConfigurationError(f"token {token.name}: {told}") from error
        if not key or not key.isascii() or b"\n" in key:
            raise ConfigurationError(f"token {token.name}: {told}")
        return key

    def of(self, proofs: list[tuple[bytes, bytes]], *, stays_here: bool = False) -> Caller:
        """Return who asks with these headers, of PROOFS. Raises UnknownCallerError.

        What `stays_here` may have its token where others put the key that goes upstream; it proxies no call then.
        """
        salt = self._salt[::-1] if stays_here else self._salt
        name = blake2b(b"\0".join([part for one in proofs for part in one]), key=salt, digest_size=20).digest()
        caller = self._known.get(name)
        if caller is None:
            caller = self._made(proofs, stays_here=stays_here)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[name] = caller
        return caller

    def renewed(self, tokens: Iterable[Token], servers: Sequence[str]) -> Credentials:
        """Return credentials of other tokens, and of keys as they stand now, to be taken. Raises ConfigurationError."""
        made = Credentials(tokens, "taken by another", self._environment)
        made.check(servers)
        return made

    def take(self, other: Credentials) -> None:
        """Go by another's tokens and keys from now on; the secret, and so every caller's tenant, stays."""
        self._tokens, self._keys = other._tokens, other._keys
        self._known.clear()

    def check(self, servers: Sequence[str]) -> None:
        """See that each key that stands for a token is for one server. Raises ConfigurationError."""
        for token in self._tokens:
            if token.upstream and token.upstream not in servers:
                raise ConfigurationError(f"token {token.name}: its upstream {token.upstream} is none of the settings'")
            if token.key_name and not token.upstream and len(servers) > 1:
                raise ConfigurationError(
                    f"token {token.name}: which server is the key in {token.key_name} for? with several "
                    'servers behind, give the token its own: upstream = "https://api.openai.com"'
                )

    def keys_of(self, caller: Caller, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers with the keys that go upstream: the caller's own, or those that stand for them."""
        own = [one for one in headers if one[0] in KEY_HEADERS]
        if not caller.key_env:
            return own
        key = self._keys.get(caller.key_env, b"")
        names = dict.fromkeys(name for name, _ in own) or [b"authorization"]
        return [(name, b"Bearer " + key if name == b"authorization" else key) for name in names]

    def _made(self, proofs: list[tuple[bytes, bytes]], *, stays_here: bool) -> Caller:
        tokens = [value for name, value in proofs if name == TOKEN_HEADER]
        if len(tokens) > 1:
            raise UnknownCallerError("x-semcache-token stands twice")
        token = self._token(tokens[0]) if tokens and tokens[0] else None
        if tokens and tokens[0] and token is None:
            raise UnknownCallerError("x-semcache-token is none that this sidecar knows")
        keys = [one for one in proofs if one[0] in KEY_HEADERS]
        if token is None and self._tokens:
            # A token with a key behind it stands where the SDK puts its key.
            found = [self._token(_bare(value)) for _, value in keys]
            token = next((one for one in found if one is not None and (one.key_name or stays_here)), None)
            if token is not None and not token.key_name:
                return Caller(quote(token.tenant, safe=""), token.rights - {"proxy"})
            if token is None:
                raise UnknownCallerError(
                    "no token: send x-semcache-token, or as the API key a token that has an upstream_key_env or _file"
                )
        rights = frozenset(RIGHTS) if token is None else token.rights
        parts = [] if token is None else [quote(token.tenant, safe="")]
        shown = [quote(value, safe="=") for name, value in proofs if name == CERTIFICATE_HEADER]
        reach = "" if token is None or token.tenant == EVERYBODY else parts[0]
        if token is None and shown:  # whose certificate it is, is who asks
            parts, reach = shown, shown[0]
        if token is not None and token.key_name:
            vouched = [one for one in proofs if one[0] in _VOUCHED]
            parts += [f"key-{self._digest(vouched)}"] if vouched else []
            return Caller("/".join(parts), rights, token.key_name, token.upstream, reach)
        # Where there is a key no cookie goes upstream; without one it may say who asks.
        unsaid = {TOKEN_HEADER, CERTIFICATE_HEADER} | ({COOKIE} if keys else set())
        told = [(name, _bare(value)) for name, value in proofs if name not in unsaid]
        parts += [f"key-{self._digest(told)}"] if told else [] if parts and token is None else ["nobody"]
        return Caller("/".join(parts), rights, reach=reach)

    def secret_of(self, what: bytes) -> bytes:
        """Return a secret for something, of the one that is configured, or of this start."""
        return keyed(self._secret, what, "sha256")

    def _token(self, told: bytes) -> Token | None:
        digest = sha256(told).digest()
        found = [token for token in self._tokens if compare_digest(token.sha256, digest)]
        return found[0] if found else None

    def _digest(self, proofs: list[tuple[bytes, bytes]]) -> str:
        told = b"".join(len(part).to_bytes(4, "big") + part for proof in proofs for part in proof)
        return keyed(self._secret, told, "sha256").hex()[:_DIGEST_CHARACTERS]


def new_token() -> tuple[str, str]:
    """Return a token, and the digest of it that a file has."""
    token = "sc-" + urlsafe_b64encode(secrets.token_bytes(_TOKEN_BYTES)).decode().rstrip("=")
    return token, sha256(token.encode()).hexdigest()


def _bare(value: bytes) -> bytes:
    """Return a key without the word before it."""
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else value.strip()
