"""The servers behind: one pool of connections, answers read whole or as they come, and what is told where none answers.

Laws: what a server answered is handed on as it came, errors too; a request is sent once, as trying again is its
caller's affair; there are no servers but those in the settings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from semcache.sidecar.headers import Headers
from semcache.sidecar.refusals import ABSENT, BAD, RefusedError
from semcache.sidecar.settings import Server

logger = logging.getLogger("semcache.sidecar")

_FAILED, _LATE = 502, 504
_SUCCESS = range(200, 300)
_LONGEST_LINE = 64 << 10
_LARGE_BYTES = 1 << 20
# What the client would add of its own to what the caller said.
_ITS_OWN = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


@dataclass(slots=True)
class Answer:
    """What a server answered, in full."""

    status: int
    headers: Headers
    body: bytes


class AnsweredError(Exception):
    """A server answered with an error, or did not answer, which is told as an error of ours; followers share it."""

    def __init__(self, answer: Answer, *, is_ours: bool = False) -> None:
        super().__init__(f"the server behind answered {answer.status}")
        self.answer = answer
        self.is_ours = is_ours
        self.status_code = answer.status


class BrokenOffError(Exception):
    """An answer that ended before its end."""


@dataclass(slots=True)
class Sent:
    """A request on its way to a server, whose address begins `url`; `headers` are those that go there."""

    server: str
    method: str
    url: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]


class Opened:
    """An answer whose body is still to come; who has opened it reads it to its end, or closes it."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Headers = [(name.lower(), value) for name, value in response.raw_headers]

    @property
    def is_success(self) -> bool:
        """Whether it is what was asked for."""
        return self.status in _SUCCESS

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, still encoded as its headers say. Raises BrokenOffError."""
        try:
            async for data in self._response.content.iter_any():
                yield data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BrokenOffError(f"{type(error).__name__}: {error}") from error

    async def whole(self) -> Answer:
        """Return it in full. Raises AnsweredError for a status that is no success, or where it breaks off."""
        try:
            body = await self._response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unanswered(error, self._response.url) from error
        finally:
            self._response.close()
        answer = Answer(self.status, self.headers, body)
        if not self.is_success:
            raise AnsweredError(answer)
        return answer

    def close(self) -> None:
        """Read no more: the connection is kept where all was read."""
        self._response.close()


class Upstream:
    """The servers behind a sidecar; `connect` and `read` are seconds until a connection, and between bytes."""

    def __init__(self, servers: Sequence[Server], *, connect: float, read: float, connections: int) -> None:
        self._servers = tuple(servers)
        # The first also bounds how long a call waits for a connection of others.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=read)
        self._proxies = {server.url: _proxy_of(server.url) for server in self._servers}
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._away: set[str] = set()
        # What is told to a server behind of the trace that a call is part of; and who hears what it took to begin.
        self.carried: Callable[[Headers, str], Headers] | None = None
        self.heard: Callable[[str, int, float], None] | None = None

    @property
    def first(self) -> Server:
        """The server that is asked for what has no body. Raises RefusedError where there is none."""
        if not self._servers:
            raise RefusedError(
                ABSENT, "no server is behind this sidecar: it has embeddings of its own alone (upstream)"
            )
        return self._servers[0]

    @property
    def servers(self) -> tuple[Server, ...]:
        """All of them."""
        return self._servers

    def of(self, model: object) -> Server:
        """Return the server that has a model; for what names none, the only one. Raises RefusedError where none has it.

        Callers' keys are of one provider: they go to no other for want of a name.
        """
        if not isinstance(model, str) or not model:
            if len(self._servers) > 1:
                raise RefusedError(BAD, "which server is it for? it names no model that can be read")
            return self.first
        for server in self._servers or (self.first,):
            if server.has(model):
                return server
        raise RefusedError(ABSENT, f"no server behind has the model {model[:80]!r}: see [[upstream]] in the settings")

    async def open(self, sent: Sent) -> Opened:
        """Return an answer whose body is still to come. Raises AnsweredError where none comes."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, limit_per_host=0),
                timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
                skip_auto_headers=_ITS_OWN, max_line_size=_LONGEST_LINE, max_field_size=_LONGEST_LINE,
            )  # fmt: skip
            self._session._retry_connection = False  # noqa: SLF001 - there is no public way, and once is once
        told = sent.headers if self.carried is None else self.carried(sent.headers, sent.url)
        headers = CIMultiDict((name.decode("latin-1"), _text(value)) for name, value in told)
        url, began = URL(sent.url, encoded=True), perf_counter()
        try:
            response = await self._session.request(
                sent.method, url, headers=headers, data=_data(sent.body), allow_redirects=False,
                proxy=self._proxies.get(sent.server),
            )  # fmt: skip
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._tell(sent.server, 0, began)
            failure = _unanswered(error, url)
            if sent.server not in self._away:  # the first of many alike
                self._away.add(sent.server)
                logger.warning("%s; callers are told so", failure.answer.body.decode())
            raise failure from error
        self._tell(sent.server, response.status, began)
        if sent.server in self._away:
            self._away.discard(sent.server)
            logger.warning("%s answers again", url.host)
        return Opened(response)

    def _tell(self, server: str, status: int, began: float) -> None:
        if self.heard is not None:
            self.heard(server, status, perf_counter() - began)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _data(body: bytes | AsyncIterator[bytes]) -> Any:
    """Return a body as the client sends it: a large one piece by piece, so that others have their turn."""
    return BytesIO(body) if isinstance(body, bytes) and len(body) >= _LARGE_BYTES else body or None


def _unanswered(error: Exception, url: URL) -> AnsweredError:
    """Return what a caller is told where its server did not answer."""
    is_late = isinstance(error, TimeoutError)
    why = "took too long" if is_late else "could not be asked"
    number = error.os_error.errno if isinstance(error, aiohttp.ClientConnectorError) else None
    cause = os.strerror(number) if number else str(error)
    told = f"{url.host}:{url.port} {why}: {cause or type(error).__name__}"
    return AnsweredError(Answer(_LATE if is_late else _FAILED, [], told.strip().encode()), is_ours=True)


def _proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for a server, and nothing else of it: no netrc of its owner's."""
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


def _text(value: bytes) -> str:
    """Return a header's value as the text that the client makes the same bytes of, where it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
