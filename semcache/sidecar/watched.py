"""What is known of each call from outside it: that it is under way, how it was answered, its span, its lines' ids.

It stands around the whole application, which knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from semcache.sidecar.counts import Counts
from semcache.telemetry.logging import joined, names_of

if TYPE_CHECKING:
    from semcache.sidecar.tracing import Calls

Scope = MutableMapping[str, Any]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_OURS = "/v1/"
_ROUTES = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/models"})
_OTHER = "/v1/*"


class Watched:
    """An application whose calls are counted, and where it is asked for, traced, and named in what is logged."""

    def __init__(
        self, application: Callable[..., Awaitable[None]], counts: Counts, calls: Calls | None, *, names: bool
    ) -> None:
        self._application = application
        self._counts = counts
        self._calls = calls
        self._names = names

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not scope["path"].startswith(_OURS):
            await self._application(scope, receive, send)
            return
        path: str = scope["path"]
        route = path if path in _ROUTES else _OTHER
        counts, calls, status = self._counts, self._calls, 0
        error: BaseException | None = None

        async def answer(message: Mapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        names = joined.set(names_of(scope["headers"])) if self._names else None
        begun = None if calls is None else calls.begin(scope, route)
        counts.running += 1
        try:
            await self._application(scope, receive, answer)
        except BaseException as raised:
            error = raised
            raise
        finally:
            counts.running -= 1
            counts.answered(route, status)
            if begun is not None:
                calls.end(begun, status, error)  # type: ignore[union-attr]
            if names is not None:
                joined.reset(names)
