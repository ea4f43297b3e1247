"""Headers on their way through: what goes upstream, what comes back, what can change an answer, and what we add.

Laws: between caller and server behind nothing is altered but what HTTP itself binds to one connection (RFC 9110,
section 7.6.1) and what is ours; what is not known not to change an answer is in its key (law 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from semcache.events import Event
from semcache.sidecar.credentials import KEY_HEADERS, PROOFS, TOKEN_HEADER
from semcache.sidecar.wishes import PREFIX
from semcache.wrap.clients.conversation import TRACE_HEADERS, TRACE_PREFIXES

Headers = list[tuple[bytes, bytes]]

_OF_THE_CONNECTION = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"http2-settings",
})  # fmt: skip
_NOT_SENT = _OF_THE_CONNECTION | {b"host", b"content-length", b"accept-encoding", b"expect", TOKEN_HEADER}
_NOT_GIVEN = _OF_THE_CONNECTION | {b"content-length", b"date", b"server"}
# Who asks, through whom and how: the tenant says whose it is, and no answer differs by the rest.
_UNKEYED = _NOT_SENT | frozenset(KEY_HEADERS) | {
    b"cookie", b"cache-control", b"pragma", b"forwarded", b"via", b"x-real-ip", b"origin", b"referer", b"dnt",
    *(name.encode() for name in TRACE_HEADERS),
}  # fmt: skip
_UNKEYED_PREFIXES = (PREFIX, b"x-forwarded-", b"sec-", b"cf-", *(prefix.encode() for prefix in TRACE_PREFIXES))
_MOST_NAMES = 1024

# What of an answer's headers is kept with it: no cookie, request id or rate limit is given to another caller.
KEPT = (b"content-type", b"openai-version", b"openai-model", b"anthropic-version")


class Sorted(NamedTuple):
    """The headers of a request: those that may change its answer, those that prove who asks, and wishes."""

    keyed: Headers
    proofs: Headers
    wishes: Headers


class Sorter:
    """Sorts headers by their names; a name is looked at once."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def of(self, headers: Headers) -> Sorted:
        """Return the headers sorted; most are of none of these kinds."""
        known, learn = self._known, self._learn
        kinds: tuple[Headers, Headers, Headers, Headers] = ([], [], [], [])
        for one in headers:
            kind = known.get(one[0])
            kinds[learn(one[0]) if kind is None else kind].append(one)
        return Sorted(*kinds[:3])

    def _learn(self, name: bytes) -> int:
        if len(self._known) >= _MOST_NAMES:
            self._known.clear()
        if name in PROOFS:
            kind = 1
        elif name == b"cache-control" or (name.startswith(PREFIX) and name != TOKEN_HEADER):
            kind = 2
        else:
            kind = 3 if name in _UNKEYED or name.startswith(_UNKEYED_PREFIXES) else 0
        self._known[name] = kind
        return kind


def sent(headers: Headers, keys: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return a caller's headers as they go upstream, with the keys that stand for its own."""
    named = _of_this_connection(headers)
    told = [
        one for one in headers
        if one[0] not in _NOT_SENT and one[0] not in KEY_HEADERS and one[0] not in named
        and not one[0].startswith(PREFIX)
    ]  # fmt: skip
    # As it is, byte by byte: it is kept, and given to callers who take no other encoding.
    return [*told, *keys, (b"accept-encoding", b"identity")]


def given(headers: Headers) -> Headers:
    """Return an answer's headers as they go to the caller; how long it is, is told anew."""
    named = _of_this_connection(headers)
    return [one for one in headers if one[0] not in _NOT_GIVEN and one[0] not in named]


def _of_this_connection(headers: Headers) -> frozenset[bytes]:
    told = (value for name, value in headers if name == b"connection")
    return frozenset(name.strip().lower() for value in told for name in value.split(b","))


def cache_headers(event: Event, *, stored: bool | None = None, status: int | None = None) -> Headers:
    """Return what says how a call was answered: `Cache-Status` (RFC 9211), and our own words."""
    is_hit, key = event.kind == "hit", event.key.hex()
    said = ["semcache", *(_hit(event) if is_hit else _forwarded(event, stored=stored, status=status))]
    if event.shared:
        said.append("collapsed")
    if key:
        said.append(f'key="{key}"')
    if event.kind == "bypass" and event.reason:
        said.append(f'detail="{_quoted(event.reason)}"')
    told: Headers = [(b"cache-status", "; ".join(said).encode()), (b"x-semcache", _word(event))]
    if key:
        told.append((b"x-semcache-key", key.encode()))
    if is_hit:
        if event.tier:
            told.append((b"x-semcache-tier", event.tier.encode()))
        if event.age is not None:
            told.append((b"x-semcache-age", b"%d" % max(0, int(event.age))))
        if event.similarity is not None:
            told.append((b"x-semcache-similarity", b"%.4f" % event.similarity))
    return told


def _word(event: Event) -> bytes:
    if event.kind == "hit":
        return b"stale" if event.is_stale else b"hit"
    return b"bypass" if event.kind == "bypass" else b"miss"


def _hit(event: Event) -> list[str]:
    has_end = event.life is not None and event.life not in (inf, -inf)
    return ["hit", f"ttl={round(event.life or 0.0)}"] if has_end else ["hit"]


def _forwarded(event: Event, *, stored: bool | None, status: int | None) -> list[str]:
    said = ["fwd=bypass" if event.kind == "bypass" else "fwd=uri-miss"]
    if status is not None:
        said.append(f"fwd-status={status}")
    return [*said, "stored"] if stored else said


def _quoted(reason: str) -> str:
    return "".join(sign if " " <= sign <= "~" and sign not in '"\\' else " " for sign in reason)[:200]
