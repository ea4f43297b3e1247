"""Where a sidecar is: a Unix socket, or a host and port, with or without TLS, and the token that it knows us by."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from semcache.errors import ConfigurationError

_EXAMPLES = '"unix:///run/semcache.sock" or "http://host:8400"'
_PORTS = {"http": 8400, "https": 443}


@dataclass(frozen=True)
class Sidecar:
    """A sidecar for `Cache(sidecar=...)`: its address, the token that it knows us by, and a CA for its certificate.

    `url` is as "unix:///run/semcache.sock", "http://host:8400" or "https://host". Without `token` it is that of the
    environment, SEMCACHE_TOKEN, if there is one. `ca` is a PEM file, in place of the system's authorities.
    """

    url: str
    token: str = field(default="", repr=False)
    ca: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class Address:
    """Where to connect: `path` of a socket, or `name` and `port`; `tls` is a context where it speaks TLS."""

    where: str
    path: str = ""
    name: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = field(default=None, compare=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)

    @property
    def host(self) -> str:
        """The value of the header `host`."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}" if self.name else "localhost"

    def connect(self, timeout: float) -> socket.socket:
        """Connect, in this thread. Raises OSError."""
        if self.path:
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                plain.settimeout(timeout)
                plain.connect(self.path)
            except BaseException:
                plain.close()
                raise
            return plain
        deadline = time.monotonic() + timeout
        plain = self._connected(deadline)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(_left(deadline))
            return plain if self.tls is None else self.tls.wrap_socket(plain, server_hostname=self.name)
        except BaseException:
            plain.close()
            raise

    def _connected(self, deadline: float) -> socket.socket:
        """Connect to the first of its addresses that answers, in one time for all of them. Raises OSError."""
        trouble: OSError = OSError(f"{self.name} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM):
            left = _left(deadline)
            try:
                plain = socket.socket(family, kind, protocol)
            except OSError as error:
                trouble = error
                continue
            try:
                plain.settimeout(left)
                plain.connect(place)
            except OSError as error:
                plain.close()
                trouble = error
            else:
                return plain
        raise trouble

    async def aconnect(self, made: Callable[[], Any]) -> Any:
        """Connect, on the running loop; `made` makes the protocol, which is returned. Raises OSError."""
        import asyncio

        loop = asyncio.get_running_loop()
        if self.path:
            return (await loop.create_unix_connection(made, self.path))[1]
        return (await loop.create_connection(made, self.name, self.port, ssl=self.tls))[1]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no connection in time")
    return left


def addresses_of(told: object) -> list[Address]:
    """Return where the sidecars of a setting are. Raises ConfigurationError, with the mend."""
    listed = list(told) if isinstance(told, list | tuple) else [told]
    if not listed:
        raise ConfigurationError(f"sidecar= is an address, or a list of some: {_EXAMPLES}; got {told!r}")
    return [_address(one) for one in listed]


def _address(told: object) -> Address:
    sidecar = Sidecar(told) if isinstance(told, str) else told
    if not isinstance(sidecar, Sidecar):
        raise ConfigurationError(f"sidecar= is {_EXAMPLES}, a semcache.Sidecar or a list of these; got {told!r}")
    url, token = sidecar.url, sidecar.token or os.environ.get("SEMCACHE_TOKEN", "")
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    if "@" in parts.netloc:
        raise ConfigurationError(
            "sidecar=: a token is no part of an address: set SEMCACHE_TOKEN, or semcache.Sidecar(token=)"
        )
    if not token.isascii() or not token.isprintable():
        raise ConfigurationError("sidecar=: the token has characters that no token has")
    headers = (("x-semcache-token", token),) if token else ()
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Address(url, parts.path, headers=headers)
    is_bare = parts.path in ("", "/") and not any(map(str.isspace, url)) and not parts.query and not parts.fragment
    if parts.scheme in _PORTS and parts.hostname and is_bare:
        return Address(
            url.rstrip("/"), name=parts.hostname, port=port,
            tls=_context(sidecar) if parts.scheme == "https" else None, headers=headers,
        )  # fmt: skip
    raise ConfigurationError(f"sidecar= is an address as {_EXAMPLES}; got {url!r}")


def _context(sidecar: Sidecar) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=sidecar.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"sidecar=: the authority {sidecar.ca} cannot be read: {error}") from error
