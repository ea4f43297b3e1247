"""The service below `/semcache/`: a table of endpoints, and the way of each request to its row and back.

Laws: a row says who may ask it, what it takes and what it gives, and nothing is read of a request that it does not
say; what is wrong with a request is a 4xx that names the mend, and an error of ours a 5xx without a trace; tokens come
as a header, never as a cookie. What only these endpoints need is imported when the first of them is asked for.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from semcache.cache import Cache
from semcache.errors import CodecError, ConfigurationError, InvalidationError, TierError
from semcache.sidecar.asked import Asked, Explained, parsed
from semcache.sidecar.board import Board
from semcache.sidecar.credentials import (
    CERTIFICATE_HEADER,
    PROOFS,
    TOKEN_HEADER,
    Caller,
    Credentials,
    UnknownCallerError,
)
from semcache.sidecar.doors import Doors
from semcache.sidecar.headers import Headers
from semcache.sidecar.incoming import Incoming, Limits, Receive, too_large
from semcache.sidecar.programs import METHODS, USING, Programs
from semcache.sidecar.refusals import ABSENT, BAD, BUSY, FORBIDDEN, LARGE, UNKNOWN, RefusedError

if TYPE_CHECKING:
    from pydantic import BaseModel

logger = logging.getLogger("semcache.sidecar")

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

PREFIX = "/semcache/"
LOOKING = ("read", "admin")
"""The rights, of which one is enough, to look."""
SWITCHING = ("admin",)
"""The right to change something."""
JSON = "application/json"

# Whose ROWS are the table, in the order of the document.
_MODULES = (
    "semcache.sidecar.operating",
    "semcache.sidecar.looking",
    "semcache.sidecar.watching",
    "semcache.sidecar.spoken",
)
_WHO = (TOKEN_HEADER, CERTIFICATE_HEADER)
_NOT_ALLOWED, _NO_MEDIA, _FAILED = 405, 415, 500
# The longest text that a row takes, however it is escaped, and what stands around it.
_SMALL = 256 << 10
# So many are answered at once, beside the calls: whoever switches is not to wait for those.
_MOST_AT_ONCE = 64
_MOST_QUERY = 32
_OURS: Headers = [
    (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]  # fmt: skip


@dataclass(slots=True)
class Given:
    """An answer that is not JSON made of a row's type: its body is sent as it is."""

    body: bytes
    media: str
    status: int = 200
    headers: Headers = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A request that was let in: `query` and `body` as its row's models have read them, or `body` as bytes.

    `rest` is what of the path a row's `*` stands for.
    """

    service: Service
    caller: Caller
    headers: Headers
    query: Any = None
    body: Any = None
    rest: str = ""

    @property
    def cache(self) -> Cache:
        """The cache that is asked."""
        return self.service.cache


@dataclass(frozen=True, slots=True)
class Row:
    """An endpoint: who may ask it, what it takes, what it does, and what it gives.

    `rights` are those of which one is needed (none: anybody may ask); with `is_of_all` it tells of all tenants, and is
    an operator's alone. `query` and `body` are pydantic models, `gives` any type that pydantic can write (None: the
    function gives bytes, as `Given`). A path that ends in `*` has all that begins so. What has another `media` is read
    and written by its function, as bytes, at most `most_bytes` (0: as long as the settings let a body be).
    """

    method: str
    path: str
    does: str
    run: Callable[[Call], Awaitable[Any]]
    rights: tuple[str, ...] = LOOKING
    is_of_all: bool = False
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    gives: Any = None
    media: str = JSON
    most_bytes: int = _SMALL


class Proxying(Protocol):
    """An endpoint of proxied calls, as an operator asks it."""

    async def explain(self, asked: Asked) -> Explained: ...
    async def put(self, asked: Asked, text: str, *, is_pinned: bool) -> bytes: ...


class Table:
    """The rows, and what reads and writes for them."""

    def __init__(self) -> None:
        from pydantic import TypeAdapter

        self.rows: tuple[Row, ...] = tuple(row for name in _MODULES for row in import_module(name).ROWS)
        self._paths: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            self._paths.setdefault(row.path, {})[row.method] = row
        self._writers = {id(row): TypeAdapter(row.gives) for row in self.rows if row.gives is not None}

    def of(self, path: str) -> tuple[dict[str, Row], str]:
        """Return the rows of a path by method, and what its `*` stands for. Raises RefusedError."""
        found = self._paths.get(path)
        if found is not None and not path.endswith("*"):
            return found, ""
        for name, rows in self._paths.items() if ".." not in path else ():
            if name.endswith("*") and path.startswith(name[:-1]):
                return rows, path[len(name) - 1 :]
        raise RefusedError(ABSENT, f"there is no {path[:80]} here", f"{PREFIX}v1/openapi.json lists what there is")

    def written(self, row: Row, told: Any) -> bytes:
        """Return what a row gives, as JSON."""
        from pydantic_core import PydanticSerializationError

        writer = self._writers[id(row)]
        try:
            return writer.dump_json(told)
        except PydanticSerializationError:  # half a surrogate, which a caller's JSON may hold, and UTF-8 may not
            return json.dumps(writer.dump_python(told, mode="json")).encode()


class Service:
    """The endpoints of one sidecar; `limits` are of bodies and calls, `board` is what a person looks at.

    `asked` makes of a target, headers, a body and a tenant the call that they would be, with its endpoint.
    """

    def __init__(
        self, cache: Cache, credentials: Credentials, doors: Doors, limits: Limits,
        asked: Callable[[str, Headers, bytes, str], tuple[Proxying, Asked]], board: Board,
    ) -> None:  # fmt: skip
        self._asked = asked
        self.cache = cache
        self.board = board
        self.began = monotonic()
        self._credentials = credentials
        self._doors = doors
        self._most_bytes = limits.body_bytes
        self._running = 0
        secret = credentials.secret_of(b"programs")
        self.programs = Programs(cache, self._check_program, secret, limits.body_bytes, limits.requests)

    def _check_program(self, scope: Mapping[str, Any]) -> Caller:
        return self.check(scope, USING, is_of_all=False)

    @staticmethod
    def has(path: str) -> bool:
        """Say whether a path is the service's."""
        return path.startswith(PREFIX) or path == "/"

    @cached_property
    def table(self) -> Table:
        """All endpoints."""
        return Table()

    def tenant_of(self, call: Call) -> str:
        """Return whose answers a proxied call with the headers of this request would be given."""
        return self._credentials.of([one for one in call.headers if one[0] in PROOFS]).tenant

    async def explain(self, call: Call, target: str, body: bytes, tenant: str) -> Explained:
        """Tell how a call would be answered now, of a tenant, or of who asks. Raises RefusedError."""
        endpoint, asked = self._asked(target, call.headers, body, tenant)
        return await endpoint.explain(asked)

    async def put(
        self, call: Call, target: str, body: bytes, text: str, tenant: str, *, tags: tuple[str, ...],
        ttl: float | None, is_pinned: bool,
    ) -> tuple[bytes, str]:  # fmt: skip
        """Put a text as the answer to a call; returns its key, and whose it is. Raises as `Cache.put` does."""
        endpoint, asked = self._asked(target, call.headers, body, tenant)
        asked.wishes = replace(asked.wishes, tags=(*asked.wishes.tags, *tags), ttl=ttl or asked.wishes.ttl)
        return await endpoint.put(asked, text, is_pinned=is_pinned), asked.whose

    async def answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, whatever comes."""
        if self.programs.has(scope["path"]):
            await answer_programs(self.programs, scope, receive, send)
            return
        self._running += 1
        try:
            given = await self._given(scope, receive)
        except RefusedError as error:
            given = _refused(error)
        except (ConfigurationError, CodecError, InvalidationError, TierError) as error:
            status = BAD if isinstance(error, ConfigurationError | CodecError) else BUSY
            given = _refused(RefusedError(status, str(error)))
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"][:80])
            given = _refused(RefusedError(_FAILED, "something of ours failed; the sidecar's log says what"))
        finally:
            self._running -= 1
        await _give(given, send)

    def check(self, scope: Mapping[str, Any], rights: tuple[str, ...], *, is_of_all: bool) -> Caller:
        """Return who asks, if it may. Raises RefusedError."""
        self._doors.check_service(scope)
        told = [one for one in scope["headers"] if one[0] in _WHO] if rights else []
        try:
            # Who asks without a token, where nothing wants one, is nobody in particular.
            caller = self._credentials.of(told) if rights else Caller("", frozenset(), reach="/")
        except UnknownCallerError as error:
            raise RefusedError(UNKNOWN, str(error), "send the token as x-semcache-token") from None
        if rights and caller.rights.isdisjoint(rights):
            raise RefusedError(FORBIDDEN, f"this token may not: it lacks the right `{'` or `'.join(rights)}`")
        if is_of_all and caller.reach:
            raise RefusedError(
                FORBIDDEN, "this tells of all tenants, and the token is one tenant's",
                'ask with an operator\'s token: a [[token]] with tenant = "*"',
            )  # fmt: skip
        return caller

    async def _given(self, scope: MutableMapping[str, Any], receive: Receive) -> Given:
        if self._running > _MOST_AT_ONCE:
            raise RefusedError(BUSY, f"{_MOST_AT_ONCE} requests are being answered already", "try again")
        if "table" not in self.__dict__:
            self._doors.check_service(scope)
            await asyncio.to_thread(getattr, self, "table")  # imports, which no call is to wait for
        rows, rest = self.table.of(scope["path"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        row = rows.get(method)
        if row is None:
            return _not_allowed(scope["path"], method, rows)
        caller = self.check(scope, row.rights, is_of_all=row.is_of_all)
        headers: Headers = list(scope["headers"])
        call = Call(self, caller, headers, rest=rest)
        call.query = _query(row, scope["query_string"])
        if row.method == "POST":
            call.body = await self._body(row, headers, receive)
        told = await row.run(call)
        return told if isinstance(told, Given) else Given(self.table.written(row, told) + b"\n", JSON)

    async def _body(self, row: Row, headers: Headers, receive: Receive) -> Any:
        """Return a body as its row takes it. Raises RefusedError."""
        kinds = [value for name, value in headers if name == b"content-type"]
        kind = kinds[0].decode("latin-1").partition(";")[0].strip().lower() if len(kinds) == 1 else ""
        if kind != row.media:
            # A form of another site can send what it likes, but not this, without asking first.
            raise RefusedError(_NO_MEDIA, f"the body is {row.media}", f"send content-type: {row.media}")
        most = min(row.most_bytes, self._most_bytes) if row.most_bytes else self._most_bytes
        if any(name == b"content-length" and int(value) > most for name, value in headers):
            raise too_large(most)
        data = await Incoming(receive, most).whole()
        if row.media != JSON:
            return data
        try:
            told = parsed(data.decode())
        except (ValueError, RecursionError) as error:
            raise RefusedError(BAD, f"the body is no JSON object: {_reason(error)}") from None
        return _read(row.body, told) if row.body is not None else told


async def answer_programs(
    programs: Programs, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:  # fmt: skip
    """Answer a program, whatever comes, at one of the paths for these."""
    try:
        await programs.answer(scope, receive, send)
    except RefusedError as error:
        given = _refused(error)
        if error.status == _NOT_ALLOWED:
            given.headers.append((b"allow", METHODS[scope["path"]].encode()))
        await _give(given, send)


async def _give(given: Given, send: Send) -> None:
    length = (b"content-length", b"%d" % len(given.body))
    own = {name for name, _ in given.headers}
    ours = [one for one in _OURS if one[0] not in own]
    headers = [(b"content-type", given.media.encode()), length, *ours, *given.headers]
    await send({"type": "http.response.start", "status": given.status, "headers": headers})
    await send({"type": "http.response.body", "body": given.body})


def _query(row: Row, query: bytes) -> Any:
    """Return what stands behind the question mark. Raises RefusedError."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict",
            max_num_fields=_MOST_QUERY,
        )  # fmt: skip
    except ValueError as error:
        raise RefusedError(BAD, f"the query cannot be read: {_reason(error)}") from None
    told = dict(pairs)
    if len(told) != len(pairs):
        raise RefusedError(BAD, "a name stands twice in the query")
    if row.query is None:
        if told:
            raise RefusedError(BAD, f"{row.path} takes no query; got {min(told)[:40]!r}")
        return None
    return _read(row.query, told, is_text=True)


def _read(model: type[BaseModel], told: dict[str, Any], *, is_text: bool = False) -> Any:
    """Return what was told as a model has it. Raises RefusedError, which names what is wrong first."""
    from pydantic import ValidationError

    try:
        return model.model_validate_strings(told) if is_text else model.model_validate(told, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = first["msg"].removeprefix("Value error, ")
        raise RefusedError(BAD, f"{where[:80]}: {why}" if where else why) from None


def _reason(error: BaseException) -> str:
    """Tell what a reader says, without the text it read."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)[:200]


def _not_allowed(path: str, method: str, rows: Mapping[str, Row]) -> Given:
    there = ", ".join([*rows, *(["HEAD"] if "GET" in rows else [])])
    given = _refused(RefusedError(_NOT_ALLOWED, f"{path[:80]} takes {there}, not {method[:20]}"))
    given.headers.append((b"allow", there.encode()))
    return given


def _refused(error: RefusedError) -> Given:
    """Return an error as the service tells it."""
    told: dict[str, Any] = {"message": error.message, "status": error.status}
    if error.mend:
        told["mend"] = error.mend
    headers: Headers = [(b"connection", b"close")] if error.status == LARGE else []
    return Given(json.dumps({"error": told}).encode() + b"\n", JSON, error.status, headers)
