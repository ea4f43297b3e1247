"""A sidecar that a command is about: where it is, and what it is asked over HTTP.

Laws: a token comes from the environment, never as a flag, where everybody on the machine could read it, and goes to
the sidecar that was named and nowhere else; what a sidecar refuses is said in its own words, with their mend.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from argparse import Action, ArgumentParser, Namespace, _ArgumentGroup
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from semcache.errors import ConfigurationError, SemcacheError

# As credentials.py has them; a command must not import all that a sidecar does.
PROOFS = frozenset({"authorization", "x-api-key", "api-key", "x-goog-api-key", "x-semcache-token", "cookie"})

_PREFIX = "/semcache/v1/"
_SECONDS = 60.0
_PORTS = {"http": 80, "https": 443}
_MOST_BYTES = 256 << 20
# What was asked wrongly, or with the wrong token; all else could not be done.
_WRONG = (400, 401, 403, 413, 415)
_OK = 200


class _UnixConnection(HTTPConnection):
    """A connection to a socket's file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Sidecar:
    """A sidecar at a URL. Raises ConfigurationError for what is none."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self._token = token
        try:
            parts = urlsplit(url)
            self._scheme, self._host, self._port = parts.scheme, parts.hostname or "", parts.port
        except ValueError:
            self._scheme = ""
            parts = urlsplit("")
        self._path = unquote(parts.path) if self._scheme == "unix" else ""
        is_there = bool(self._path) if self._scheme == "unix" else self._scheme in _PORTS and bool(self._host)
        if not is_there or parts.query or parts.fragment or "@" in parts.netloc:
            raise ConfigurationError(
                "a sidecar is at http://127.0.0.1:8400, https://host:8400 or unix:///run/semcache.sock, without name "
                f"and password; got {url.rpartition('@')[2]!r}"
            )
        if self._scheme != "unix" and parts.path.rstrip("/") not in ("", "/v1"):
            raise ConfigurationError(f"--sidecar {url}: leave out {parts.path}")
        if not token.isascii() or not token.isprintable():
            raise ConfigurationError("SEMCACHE_TOKEN: a token is letters, digits and signs, as --new-token prints it")

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return what is told at a path. Raises ConfigurationError, SemcacheError."""
        return self._asked("GET", f"{path}?{urlencode(query, quote_via=quote)}" if query else path, None, {})

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Post JSON to a path, and return what is told. Raises ConfigurationError, SemcacheError."""
        return self._asked("POST", path, json.dumps(body).encode(), headers or {})

    def _asked(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        told = {"accept": "application/json", **headers}
        if body is not None:
            told["content-type"] = "application/json"
        if self._token:
            told["x-semcache-token"] = self._token
        connection = self._connection()
        try:
            connection.request(method, _PREFIX + path, body, told)
            with connection.getresponse() as response:
                status, data = response.status, response.read(_MOST_BYTES)
        except (OSError, HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SemcacheError(
                f"{self.url} could not be asked: {why} (is the sidecar running, and is this its address?)"
            ) from error
        finally:
            connection.close()
        return self._read(status, data)

    def _read(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            told: dict[str, Any] = dict(json.loads(data))
            error = None if status == _OK else told["error"]
            message = "" if error is None else ": ".join([error["message"], *filter(None, [error.get("mend")])])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise SemcacheError(
                f"{self.url} answered {status}, and not as a sidecar does: is it one, of this version?"
            ) from None
        if error is None:
            return told
        if status in _WRONG:
            has_none = status == 401 and not self._token  # noqa: PLR2004 - as HTTP says it
            mend = " (the command takes the token from SEMCACHE_TOKEN)" if has_none else ""
            raise ConfigurationError(f"{self.url}: {message}{mend}")
        raise SemcacheError(f"{self.url}: {message}")

    def _connection(self) -> HTTPConnection:
        if self._scheme == "unix":
            return _UnixConnection(self._path)
        if self._scheme == "https":
            return HTTPSConnection(
                self._host, self._port or _PORTS["https"], timeout=_SECONDS, context=ssl.create_default_context()
            )
        return HTTPConnection(self._host, self._port or _PORTS["http"], timeout=_SECONDS)


def add_sidecar(parser: ArgumentParser | _ArgumentGroup) -> Action:
    """Add the option that names a sidecar."""
    return parser.add_argument(
        "--sidecar", metavar="URL",
        help="http://127.0.0.1:8400, https://host:8400 or unix:///run/semcache.sock (default: SEMCACHE_SIDECAR, where "
        "neither a Redis nor a file is given); its token is in SEMCACHE_TOKEN",
    )  # fmt: skip


def sidecar_of(options: Namespace, *, is_needed: bool = False) -> Sidecar | None:
    """Return the sidecar that was typed, or that the environment names. Raises ConfigurationError."""
    url = options.sidecar
    typed = [name for name in ("redis", "disk", "namespace") if getattr(options, name, None) is not None]
    if url is not None and typed:
        raise ConfigurationError(f"--sidecar brings its own store and namespace: leave out --{', --'.join(typed)}")
    has_store = any(os.environ.get(f"SEMCACHE_{name.upper()}") for name in ("redis", "disk"))
    if url is None and not typed and (is_needed or not has_store):
        url = os.environ.get("SEMCACHE_SIDECAR") or None
    if url is None:
        if is_needed:
            raise ConfigurationError("which sidecar? give --sidecar URL, or set SEMCACHE_SIDECAR")
        return None
    return Sidecar(url, os.environ.get("SEMCACHE_TOKEN", ""))


def add_call(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Add the options that say how a proxied call is posted."""
    parser.add_argument("--path", metavar="PATH", help="where the call is posted, as /v1/chat/completions")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'",
        help="a header that the callers send and that may change the answer, as 'anthropic-version: 2023-06-01'; may "
        "be repeated",
    )  # fmt: skip


def headers_of(options: Namespace) -> dict[str, str]:
    """Return the headers that were typed. Raises ConfigurationError."""
    told: dict[str, str] = {}
    for one in options.header:
        name, colon, value = one.partition(":")
        name = name.strip().lower()
        if not colon or not name or not value.strip() or not one.isprintable() or not one.isascii():
            raise ConfigurationError(f"--header is 'NAME: VALUE', as a caller sends it; got {one!r}")
        if name in PROOFS:
            raise ConfigurationError(
                f"--header {name}: whoever lists the processes would read it; say whose answers by --tenant, as "
                "`semcache explain --key` tells it"
            )
        told[name] = value.strip()
    return told
