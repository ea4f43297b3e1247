"""Headers on their way through: what goes upstream, what comes back, what can change an answer, and what we add.

Laws: between caller and server behind nothing is altered but what HTTP itself binds to one connection (RFC 9110,
section 7.6.1) and what is ours; what is not known not to change an answer is in its key (law 1).
"""

from __future__ import annotations

import re
from math import inf
from typing import NamedTuple

from semcache.events import Event, counted_as
from semcache.sidecar.credentials import COOKIE, KEY_HEADERS, PROOFS, TOKEN_HEADER
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
_UNKEYED = _NOT_SENT | {
    b"cache-control", b"pragma", b"forwarded", b"via", b"x-real-ip", b"origin", b"referer", b"dnt", b"cf-ray",
    b"cf-connecting-ip", b"cf-ipcountry", b"cf-visitor", b"cf-worker", b"true-client-ip",
    *(b"x-forwarded-" + name for name in (b"for", b"proto", b"host", b"port", b"server", b"prefix", b"by")),
    *(name.encode() for name in TRACE_HEADERS),
}  # fmt: skip
_UNKEYED_PREFIXES = (PREFIX, b"sec-fetch-", b"sec-ch-", *(prefix.encode() for prefix in TRACE_PREFIXES))
# What no header may hold; a server behind that says it all the same would break our answer.
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MOST_NAMES = 1024

# What those are told of an error who waited for another's call, beside what is kept.
SHARED = (b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry")

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


def sent(headers: Headers, keys: Headers) -> Headers:
    """Return a caller's headers as they go upstream, with its keys, or those that stand for them.

    Beside a key no cookie goes there: it would say twice, and perhaps otherwise, who asks.
    """
    left_out = _of_this_connection(headers) | _NOT_SENT | frozenset(KEY_HEADERS) | ({COOKIE} if keys else set())
    told = [one for one in headers if one[0] not in left_out and not one[0].startswith(PREFIX)]
    # As it is, byte by byte: it is kept, and given to callers who take no other encoding.
    return [*told, *keys, (b"accept-encoding", b"identity")]


def given(headers: Headers, *, with_length: bool = False) -> Headers:
    """Return an answer's headers as they go to the caller; how long it is, is told anew, or `with_length` as it was."""
    left_out = _of_this_connection(headers) | (_NOT_GIVEN - {b"content-length"} if with_length else _NOT_GIVEN)
    return [
        one for one in headers
        if one[0] not in left_out and not one[0].startswith(PREFIX.rstrip(b"-")) and not _CONTROL.search(one[1])
    ]  # fmt: skip


def _of_this_connection(headers: Headers) -> frozenset[bytes]:
    told = (value for name, value in headers if name == b"connection")
    return frozenset(name.strip().lower() for value in told for name in value.split(b","))


def cache_headers(
    event: Event, *, stored: bool | None = None, status: int | None = None, is_forced: bool = False
) -> Headers:
    """Return what says how a call was answered: `Cache-Status` (RFC 9211), and our own words.

    With `is_forced` its caller asked for a new answer.
    """
    is_hit, key = event.kind == "hit", event.key.hex()
    forwarded = [] if is_hit else _forwarded(event, stored=stored, status=status, is_forced=is_forced)
    said = ["semcache", *(_hit(event) if is_hit else forwarded)]
    if event.shared:
        said.append("collapsed")
    if key:
        said.append(f'key="{key}"')
    if not is_hit and event.reason:
        said.append(f'detail="{_quoted(counted_as(event.reason, event.decision))}"')
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


def _forwarded(event: Event, *, stored: bool | None, status: int | None, is_forced: bool) -> list[str]:
    said = ["fwd=bypass" if event.kind == "bypass" else "fwd=request" if is_forced else "fwd=uri-miss"]
    if status is not None:
        said.append(f"fwd-status={status}")
    return [*said, "stored"] if stored else said


def _quoted(reason: str) -> str:
    return "".join(sign if " " <= sign <= "~" and sign not in '"\\' else " " for sign in reason)[:200]
