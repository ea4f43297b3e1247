"""Proxied embeddings: each input an entry of its own, as with cached clients, and only what is missing is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from semcache.cache import Cache
from semcache.commands import stricter
from semcache.context import context
from semcache.errors import UnkeyableError
from semcache.events import Event
from semcache.explain import explain
from semcache.finding import find
from semcache.keys import canonical
from semcache.plan import arun
from semcache.sidecar.asked import Asked, Explained, Found, parsed, tags_in
from semcache.sidecar.headers import Headers
from semcache.sidecar.refusals import BAD, RefusedError, not_cached
from semcache.sidecar.upstream import Answer, Upstream
from semcache.wrap.clients.dialect import Json
from semcache.wrap.clients.embeddings import Embeddings, gathered, items_of
from semcache.wrap.clients.options import ClientOptions

# Of so many inputs it is explained how each would be answered.
_MOST = 100
_JSON: Headers = [(b"content-type", b"application/json")]


class _Loaded:
    """What a server answered, as the engine of cached clients takes an SDK's answer."""

    def __init__(self, answer: Answer, *, is_whole: bool) -> None:
        self.answer = answer
        self.is_whole = is_whole  # it was asked for all inputs

    def to_dict(self, **_how: Any) -> Json:
        """Return what it says. Raises ValueError for what is no JSON."""
        told: Json = json.loads(self.answer.body)
        return told


class _Where:
    """Whom a call asks: it says so itself."""

    @staticmethod
    def of(asked: tuple[Asked, bytes]) -> tuple[bytes, frozenset[str]]:
        return asked[1], frozenset()


class EmbeddingsEndpoint(Embeddings):
    """POST /v1/embeddings."""

    def __init__(self, cache: Cache, options: ClientOptions, upstream: Upstream, longest: float) -> None:
        super().__init__(cache, options)
        self._upstream = upstream
        self._longest = longest
        self._where: Any = _Where()

    def remembered(self, asked: Asked) -> None:  # noqa: ARG002 - as the other endpoints
        """Each input is looked up by itself, in memory first of all."""
        return

    async def explain(self, asked: Asked) -> Explained:
        """Tell how a call would be answered now, input by input; nothing is loaded. Raises RefusedError."""
        body = parsed(asked.body)
        where = asked.where + canonical([self._upstream.of(body.get("model")).url, asked.wishes.namespace])
        chain = self.cache.chain
        with self._context(asked):
            try:
                given = {"body": body, "options": {}}
                requests = self._requests(self.cache, (asked, where), given, items_of(body.get("input")))
            except Exception as error:  # noqa: BLE001 - of other types than those that are documented
                return Explained(asked.whose, reason=f"not understood: {type(error).__name__}")
            told = [
                await arun(explain(chain.tiers, chain.codec.decode, self.cache.blocks, one)) for one in requests[:_MOST]
            ]
        return Explained(asked.whose, requests.keys[0], requests.one.mode, explanations=told)

    async def put(self, asked: Asked, text: str, *, is_pinned: bool) -> bytes:  # noqa: ARG002 - as the other endpoints
        """Refuse it: a vector is no text."""
        raise RefusedError(BAD, "what is put is a text, and embeddings have none", "put it for a call that has")

    async def answer(self, asked: Asked) -> Found:
        """Answer a call. Raises AnsweredError, and RefusedError."""
        try:
            body = parsed(asked.body)
        except (ValueError, RecursionError):
            body = {}
        server = self._upstream.of(body.get("model"))
        where = asked.where + canonical([server.url, asked.wishes.namespace])
        sent: list[_Loaded] = []
        send = partial(self._ask, asked, server, body, sent)
        given = {"body": body, "options": {}, "is_unrecorded": asked.wishes.is_unstored}
        with self._context(asked):
            if asked.wishes.is_only_cached:
                await self._check(asked, where, given)
            outcome = await arun(self._plan((asked, where), given, send, blocks=False))
        value = outcome.unwrap()
        event = Event("miss" if sent else "hit")
        if isinstance(value, _Loaded):  # what went by
            event.kind = "bypass"
            return Found(
                event, value.answer.headers, body=value.answer.body, is_ours=False, status=value.answer.status
            )  # fmt: skip
        if len(sent) == 1 and sent[0].is_whole:
            answer = sent[0].answer
            return Found(event, answer.headers, body=answer.body, is_ours=False, stored=True, status=answer.status)
        return Found(event, _JSON, body=json.dumps(value, separators=(",", ":")).encode(), is_ours=True)

    def _context(self, asked: Asked) -> Any:
        wishes = asked.wishes
        if wishes.oldest != inf:  # a vector is as good as new, but who asks for a new one is given it
            wishes = replace(wishes, mode=stricter(wishes.mode or "live", "refresh"))
        mode, ttl = wishes.within(self.cache.mode, self._longest)
        return context(tenant=asked.whose, mode=mode, ttl=ttl, tags=tags_in(self.cache, asked))

    async def _check(self, asked: Asked, where: bytes, given: Mapping[str, Any]) -> None:
        """See that nothing is to be loaded. Raises RefusedError."""
        try:
            requests = self._requests(self.cache, (asked, where), given, items_of(given["body"].get("input")))
        except UnkeyableError:
            raise not_cached() from None
        if requests.one.mode in ("off", "refresh"):
            raise not_cached()
        for request in requests:
            found, _, _ = await arun(find(self.cache.chain, request, self.cache.event(request)))
            if found is None:
                raise not_cached()

    async def _ask(
        self, asked: Asked, server: Any, whole: Json, sent: list[_Loaded], *, body: Json | None = None,
        options: Any = None,
    ) -> _Loaded:  # fmt: skip
        """Ask the server for some inputs, or as the caller asked. Raises AnsweredError."""
        del options  # the SDK's
        is_whole = body is None or body is whole
        told = None if is_whole else json.dumps(body).encode()
        sent.append(_Loaded(await (await asked.send(server, told)).whole(), is_whole=is_whole))
        return sent[-1]

    def _answer(self, client: Any, given: Mapping[str, Any], values: list[Json], sent: list[Any]) -> Json:
        del client, given, sent
        return gathered(values)
