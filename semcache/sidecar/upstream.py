"""The servers behind: one pool of connections, plain answers and streams, and what is told where none answers.

Laws: what a server answered is handed on as it came, errors too; a request is sent once, as trying again is its
caller's affair; there are no servers but those in the settings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import httpx

from semcache.sidecar.headers import Headers
from semcache.sidecar.refusals import ABSENT, RefusedError
from semcache.sidecar.settings import Server

_FAILED, _LATE = 502, 504


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


@dataclass(slots=True)
class Sent:
    """A request on its way upstream: `url` is whole, `headers` are those that go there."""

    method: str
    url: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]


class Upstream:
    """The servers behind a sidecar."""

    def __init__(self, servers: Sequence[Server], *, connect: float, read: float, connections: int) -> None:
        self._servers = tuple(servers)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(read, connect=connect),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,
            # Authorities take time to read, and are asked by nobody where all is plain.
            verify=any(server.url.startswith("https:") for server in self._servers),
        )
        self._client.headers.clear()  # it adds none of its own to what the caller said

    def of(self, model: object) -> Server:
        """Return the server that has a model; the first for what names none. Raises RefusedError where none has it."""
        if not isinstance(model, str) or not model:
            return self._servers[0]
        for server in self._servers:
            if server.has(model):
                return server
        raise RefusedError(ABSENT, f"no server behind has the model {model[:80]!r}: see [[upstream]] in the settings")

    async def open(self, sent: Sent) -> httpx.Response:
        """Return an answer whose body is still to come. Raises AnsweredError where none comes."""
        request = httpx.Request(sent.method, sent.url, headers=sent.headers, content=sent.body)
        request.extensions["timeout"] = self._client.timeout.as_dict()
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _unanswered(error, sent.url) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def answered(response: httpx.Response) -> Answer:
    """Return an open answer, read in full. Raises AnsweredError for a status that is no success, or where it breaks."""
    try:
        body = await response.aread()
    except httpx.HTTPError as error:
        raise _unanswered(error, str(response.request.url)) from error
    finally:
        await response.aclose()
    answer = Answer(response.status_code, headers_of(response), body)
    if not response.is_success:
        raise AnsweredError(answer)
    return answer


def headers_of(response: httpx.Response) -> Headers:
    """Return the headers of an answer, their names in small letters."""
    return [(name.lower(), value) for name, value in response.headers.raw]


def _unanswered(error: httpx.HTTPError, url: str) -> AnsweredError:
    """Return what a caller is told where its server did not answer."""
    host = httpx.URL(url).netloc.decode("latin-1")
    is_late = isinstance(error, httpx.TimeoutException)
    told = f"{host} {'took too long' if is_late else 'could not be asked'}: {type(error).__name__} {error}".strip()
    return AnsweredError(Answer(_LATE if is_late else _FAILED, [], told.encode()), is_ours=True)
