"""From which web pages a browser may ask, and by which names: so that no page uses a sidecar that is not its own.

A page that somebody opens runs on his machine: it can send requests to 127.0.0.1, and with a name of its own that
leads there (DNS rebinding) it can read what comes. Laws: what has a token has proved more than any page can, so
`/v1` asks no further; without tokens a browser must come from this machine, or by a name that the settings have.
Clients that are no browsers say no `origin`, and are asked for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from semcache.sidecar.refusals import BAD, FORBIDDEN, RefusedError

_ORIGIN = re.compile(r"https?://((?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?)", re.ASCII)
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
_MEND = "give callers tokens ([[token]] tables in the file), or name it in `hosts`"


class Doors:
    """What is asked of browsers; `hosts` are names, with commas between, that lead to this sidecar by a gateway."""

    def __init__(self, hosts: str, *, is_local: bool, has_tokens: bool) -> None:
        self._hosts = frozenset(name.strip().lower() for name in hosts.split(",") if name.strip())
        self._is_open = is_local and not has_tokens
        self._has_tokens = has_tokens

    def check_call(self, scope: Mapping[str, Any]) -> None:
        """See that a proxied call is no foreign page's. Raises RefusedError."""
        if self._has_tokens:
            return
        for name, value in scope["headers"]:
            if name == b"origin":
                self._check_origin(scope, value.decode("latin-1"), may_be_neighbour=self._is_open)
                break
        else:
            # A browser says the origin of whatever it posts; of what it gets from its own page's host it does not.
            if scope["method"] not in _UNSAFE:
                self._check_name(scope)

    def check_service(self, scope: Mapping[str, Any]) -> None:
        """See that what is asked of the service is no foreign page's. Raises RefusedError."""
        for name, value in scope["headers"]:
            if name == b"origin":
                self._check_origin(scope, value.decode("latin-1"), may_be_neighbour=False)
        self._check_name(scope)

    def _check_origin(self, scope: Mapping[str, Any], origin: str, *, may_be_neighbour: bool) -> None:
        place, host = _place(origin), _host_of(scope)
        name = _name(place)
        is_own = bool(place) and place == host and (not self._is_open or self._is_known(name))
        if not (is_own or name in self._hosts or (may_be_neighbour and bool(name) and _is_loopback(name))):
            raise RefusedError(FORBIDDEN, f"a page of {origin[:100]!r} may not ask here", _MEND)

    def _check_name(self, scope: Mapping[str, Any]) -> None:
        """See that a sidecar that is open to its machine was called by a name that nobody else can lead here."""
        server = scope.get("server")
        if not self._is_open or (server is not None and server[1] is None):  # a socket's file: no browser comes there
            return
        name = _name(_host_of(scope))
        if not self._is_known(name):
            raise RefusedError(FORBIDDEN, f"it was called by the name {name[:100]!r}, which is not this machine's",
                               f"call it by 127.0.0.1 or localhost, {_MEND}")  # fmt: skip

    def _is_known(self, name: str) -> bool:
        return not name or name in self._hosts or _is_loopback(name)


def _host_of(scope: Mapping[str, Any]) -> str:
    """Return the host that was asked, with its port. Raises RefusedError where there are two."""
    told = [value for name, value in scope["headers"] if name == b"host"]
    if len(told) > 1:
        raise RefusedError(BAD, "the header host stands twice")
    return told[0].decode("latin-1").strip().lower() if told else ""


def _place(origin: str) -> str:
    """Return host and port of an origin; empty for one that has none, as `null`."""
    found = _ORIGIN.fullmatch(origin.lower())
    return found[1] if found else ""


def _name(place: str) -> str:
    """Return a host without its port."""
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place.partition(":")[0].rstrip(".")


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
