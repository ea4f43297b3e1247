"""What a person watches: the dashboard's page at `/`, what it shows, and the latest lookups with why.

Laws: the page has no data in it and asks for a token where there are tokens; it may load, ask and embed nothing that
is not ours, and nobody may frame it. Who reaches one tenant alone is told of its own lookups, and of no sums.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from semcache.sidecar.refusals import ABSENT, RefusedError
from semcache.sidecar.service import Call, Given, Row

_MEDIA = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip
_PAGE = "index.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_NOT_CHANGED = 304


class LiveTold(BaseModel):
    """What the dashboard shows of all tenants; times are seconds, and of latencies milliseconds."""

    model_config = ConfigDict(extra="allow")

    version: str
    namespace: str
    mode: str
    at: float
    uptime: float


class Sought(BaseModel):
    """Which of the latest lookups; each word of `search` is in what is told of them."""

    model_config = ConfigDict(extra="forbid")

    search: str = Field(default="", max_length=200)
    kind: Literal["", "exact", "near", "miss", "bypass", "error"] = ""
    limit: int = Field(default=100, ge=1, le=500)


class Lookup(BaseModel):
    """A lookup: how it was answered and why, whose it was, and what was asked, redacted; times are milliseconds."""

    number: int
    at: float
    kind: str
    tier: str | None
    function: str
    stage: str
    model: str
    tenant: str
    key: str
    neighbour: str | None
    similarity: float | None
    cut: float | None
    failed: bool
    shared: bool
    stages: list[tuple[str, float]]
    text: str
    neighbour_text: str
    why: list[str]


class Lookups(BaseModel):
    """The latest lookups, newest first."""

    lookups: list[Lookup]


async def _live(call: Call) -> Any:
    return LiveTold.model_construct(**await call.service.board.told())


async def _lookups(call: Call) -> Any:
    sought: Sought = call.query or Sought()
    reach = call.caller.reaches if call.caller.reach else None
    rows = call.service.board.live.lookups(sought.search, sought.kind, sought.limit, reach)
    return Lookups(lookups=[Lookup(**row) for row in rows])


async def _page(call: Call) -> Given:
    return _file(call, _PAGE)


async def _static(call: Call) -> Given:
    return _file(call, call.rest)


def _file(call: Call, name: str) -> Given:
    told = _read().get(name)
    if told is None:
        raise RefusedError(ABSENT, f"there is no {name[:80]!r} here")
    body, etag = told
    headers = [
        (b"etag", etag), (b"cache-control", b"no-cache"), (b"content-security-policy", _POLICY.encode()),
        (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"),
    ]  # fmt: skip
    media = _MEDIA[name[name.rindex(".") :]]
    asked = [value for header, value in call.headers if header == b"if-none-match"]
    if any(etag in value for value in asked):
        return Given(b"", media, _NOT_CHANGED, headers)
    return Given(body, media, headers=headers)


@cache
def _read() -> dict[str, tuple[bytes, bytes]]:
    """Return the page's files with their etags, by name."""
    folder = files("semcache.sidecar") / "dashboard"
    read = {one.name: one.read_bytes() for one in folder.iterdir() if one.name[one.name.rfind(".") :] in _MEDIA}
    return {name: (body, b'"%s"' % blake2b(body, digest_size=12).hexdigest().encode()) for name, body in read.items()}


ROWS = (
    Row("GET", "/", "The dashboard: a page without data, which asks the endpoints here.", _page, rights=(),
        media=_MEDIA[".html"]),
    Row("GET", "/semcache/static/*", "The page's scripts and style.", _static, rights=(), media=_MEDIA[".js"]),
    Row("GET", "/semcache/v1/live", "All that the dashboard shows: what happens now, of all tenants.", _live,
        is_of_all=True, gives=LiveTold),
    Row("GET", "/semcache/v1/lookups", "The latest lookups with why; of a tenant's token its own.", _lookups,
        query=Sought, gives=Lookups),
)  # fmt: skip
