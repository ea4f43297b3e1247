"""OpenAI's `embeddings.create` on a cached client: each input an entry of its own, and only what is missing is sent.

Laws: what is sent differs from the caller's own request in its inputs alone; the answer is the SDK's own, with the
vectors as they came, bit by bit; what is no list of embeddings, one for each input, is asked for as the caller asked
(law 10), and kept nowhere. Its usage is the sum of what was recorded with each vector: of a request's tokens each
input has a share by its length, so that they add up to what was billed.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from inspect import isawaitable
from typing import Any, cast

from semcache.cache import Cache
from semcache.chain import Origin
from semcache.errors import UnkeyableError
from semcache.events import Event
from semcache.keys import KEY_BYTES, canonical
from semcache.lookup import finish, load
from semcache.many import lookup_many
from semcache.model import FOREVER, Alike, Facets, Request, Usage
from semcache.plan import Outcome, Plan, arun, run
from semcache.recording import Told, owner_of
from semcache.wrap.clients.conversation import Meant, Where, body_of
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.sdk import is_plain_post, made_by_sdk
from semcache.wrap.clients.shares import shares_by_weight
from semcache.wrap.default import default_cache
from semcache.wrap.noting import bypass_event
from semcache.wrap.told import telling

# What of the body we say ourselves.
_OURS = frozenset({"input", "encoding_format"})


class _UnlikeError(Exception):
    """What the server answered is not one embedding for each input."""


class Embeddings:
    """The embeddings of a client, and of its copies, in one cache."""

    name = "openai.embeddings"
    ignored = frozenset({"input", "user"})

    def __init__(self, cache: Cache | None, settings: ClientOptions) -> None:
        self._cache = cache
        self._settings = settings
        self._where = Where(settings)
        self._stage = settings.stage or self.name

    @property
    def cache(self) -> Cache:
        """The cache; the default one is built here, at the first call."""
        return self._cache or default_cache()

    def takes(self, path: str, given: Mapping[str, Any]) -> bool:
        """Say whether a POST is what `embeddings.create` makes, in a way that is known."""
        if path != "/embeddings" or getattr(given.get("cast_to"), "__name__", "") != "CreateEmbeddingResponse":
            return False
        extra = (given.get("options") or {}).get("extra_json") or {}
        return is_plain_post(given) and not given.get("stream") and _OURS.isdisjoint(extra)

    def post(self, client: Any, path: str, given: Mapping[str, Any], send: Callable[[], Any]) -> Any:  # noqa: ARG002 - as engines do
        """Answer a POST of a plain client."""
        return run(self._plan(client, given, cast("partial[Any]", send), blocks=True)).unwrap()

    async def apost(self, client: Any, path: str, given: Mapping[str, Any], send: Callable[[], Any]) -> Any:  # noqa: ARG002 - as engines do
        """Answer a POST of an async client."""
        return (await arun(self._plan(client, given, cast("partial[Any]", send), blocks=False))).unwrap()

    def _plan(self, client: Any, given: Mapping[str, Any], send: partial[Any], *, blocks: bool) -> Plan[Outcome[Any]]:
        cache = self.cache
        try:
            items = items_of(given["body"].get("input"))
            requests = self._requests(cache, client, given, items)
        except Exception as error:  # noqa: BLE001 - also the user's own callables; the call goes on without us
            return (yield from self._through(cache, given, send, "unkeyable", error))
        if requests.one.mode == "off":
            return (yield from self._through(cache, given, send, cache.chain.why_off))
        sent: list[Any] = []
        outcomes = yield from lookup_many(
            cache.chain, requests, partial(self._load, items, given, send, sent), None,
            self._telling(cache, requests, given, items), blocks=blocks, usage=_usage,
        )  # fmt: skip
        trouble = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if trouble is not None and not isinstance(trouble, _UnlikeError):
            return Outcome(error=trouble)
        if trouble is None:
            values = [cast("Json", outcome.value) for outcome in outcomes]
            try:
                return Outcome(self._answer(client, given, values, sent))
            except Exception as error:  # noqa: BLE001 - in whatever way it is not what we know, the SDK is asked
                trouble = error
        return (yield from self._through(cache, given, send, "not known as embeddings", trouble))

    def _telling(
        self, cache: Cache, requests: Alike, given: Mapping[str, Any], items: list[Any]
    ) -> Callable[[Request], Event]:
        around = {name: item for name, item in body_of(given).items() if name != "input"}
        facets = requests.one.facets
        return telling(cache, requests.keys, items, around, facets.tenant or None)

    def _through(
        self,
        cache: Cache,
        given: Mapping[str, Any],
        send: Callable[[], Any],
        reason: str,
        error: BaseException | None = None,
    ) -> Plan[Outcome[Any]]:
        """Ask as the caller asked."""
        event = bypass_event(cache, self.name, self._stage, reason)
        if cache.recorder.recording is not None and not given.get("is_unrecorded"):
            event.call = Told("embedding", body_of(given), owner_of(cache.tenant_of(None)))
        if error is not None:
            event.fault("key", error)
            cache.recorder.warn_once(
                f"{self.name}: {type(error).__name__}", f"a call of {self.name} is not cached: {error!r}"
            )
        outcome = yield from load(Origin(send), None, event)
        return finish(cache.chain, event, outcome)

    def _requests(self, cache: Cache, client: Any, given: Mapping[str, Any], items: list[Any]) -> Alike:
        """Return a request for each input. Raises UnkeyableError, and what the user's callables raise."""
        settings, options = self._settings, dict(given.get("options") or {})
        options.pop("post_parser", None)
        asked = {**given, "options": options}
        # Of a dialect it wants to know no more than what enters no key.
        meant = Meant(self._where.of(client), asked, body_of(asked), cast("Dialect", self), settings)
        tenant = meant.tenant
        facets = Facets(cache.namespace, self.name, settings.version, model=meant.model, tags=settings.tags)
        one = cache.complete(
            b"", b"", b"", None, tenant, replace(settings.lives or FOREVER, ttl_of=None), facets, None, self._stage
        )  # fmt: skip
        one.sources = None  # a vector is made of its text, whatever its pipeline was given
        begun = blake2b(cache.prefix(self.name, settings.version), digest_size=KEY_BYTES)
        begun.update(meant.whole + cache.tenant_bytes(cache.tenant_of(tenant)))
        keys = []
        for item in items:
            hasher = begun.copy()
            hasher.update(canonical(item))
            keys.append(hasher.digest())
        return Alike(one, keys)

    # The origin

    def _load(
        self, items: list[Any], given: Mapping[str, Any], send: partial[Any], sent: list[Any], places: list[int]
    ) -> list[Json] | Awaitable[list[Json]]:
        """Ask for the inputs at some places, as the caller asked for all, and take the answer as it came."""
        body = given["body"]
        if len(places) < len(items):
            body = {**body, "input": [items[place] for place in places]}
        options = {name: item for name, item in (given.get("options") or {}).items() if name != "post_parser"}
        answer = send.func(*send.args, **{**send.keywords, "body": body, "options": options})
        asked = [items[place] for place in places]
        return _awaited(answer, asked, sent) if isawaitable(answer) else _told(answer, asked, sent)

    def _answer(self, client: Any, given: Mapping[str, Any], values: list[Json], sent: list[Any]) -> Any:
        """Have the SDK make its answer of what was found and loaded, as it does with what comes over the wire."""
        answer = made_by_sdk(client, gathered(values), given["cast_to"])
        answer._request_id = getattr(sent[-1], "_request_id", None) if sent else None  # noqa: SLF001 - as the SDK sets it
        parser = (given.get("options") or {}).get("post_parser")
        return parser(answer) if callable(parser) else answer


def gathered(values: list[Json]) -> Json:
    """Return the answer, as it comes over the wire, that is made of what was found and loaded for each input."""
    rows = [
        {**value["row"], "index": place, "embedding": _written(value["embedding"])}
        for place, value in enumerate(values)
    ]
    told = {**values[-1]["answer"], "data": rows}
    if all(value["tokens"] is not None for value in values):
        tokens = sum(value["tokens"] for value in values)
        told["usage"] = {**values[-1]["usage"], "prompt_tokens": tokens, "total_tokens": tokens}
    return told


def items_of(told: Any) -> list[Any]:
    """Return the inputs of a call: texts, or lists of tokens. Raises UnkeyableError for what is neither."""
    if isinstance(told, str) or _are_tokens(told):
        return [told]
    if isinstance(told, list) and told and all(isinstance(one, str) or _are_tokens(one) for one in told):
        return told
    raise UnkeyableError("it is no text, no list of tokens and no list of either", "input")


def _are_tokens(told: Any) -> bool:
    return isinstance(told, list) and bool(told) and all(type(one) is int for one in told)


async def _awaited(answer: Awaitable[Any], asked: list[Any], sent: list[Any]) -> list[Json]:
    return _told(await answer, asked, sent)


def _told(answer: Any, asked: list[Any], sent: list[Any]) -> list[Json]:
    """Return what is kept of each embedding of an answer. Raises _UnlikeError."""
    try:
        told = answer.to_dict(mode="json", warnings=False)
        rows = sorted(told.pop("data"), key=lambda row: int(row["index"]))
        places = [row["index"] for row in rows]
        usage = told.pop("usage", None) or {}
        tokens = usage.get("prompt_tokens")
        shares = [None] * len(rows) if tokens is None else shares_by_weight(tokens, [len(one) for one in asked])
        kept = [
            {"embedding": _read(row.pop("embedding")), "row": row, "answer": told, "usage": usage, "tokens": share}
            for row, share in zip(rows, shares, strict=True)
        ]
    except Exception as error:
        raise _UnlikeError(f"the server answered with no embeddings: {error!r}") from error
    if places != list(range(len(asked))):
        raise _UnlikeError(f"{len(rows)} embeddings came for {len(asked)} inputs")
    sent.append(answer)
    return kept


def _read(embedding: Any) -> Any:
    """Return a vector as it is kept: the bytes that base64 said, if it says them again so; else as it came."""
    if not isinstance(embedding, str):
        return embedding
    told = b64decode(embedding)
    return told if _written(told) == embedding else embedding


def _written(embedding: Any) -> Any:
    return b64encode(embedding).decode() if isinstance(embedding, bytes) else embedding


def _usage(value: Any) -> Usage | None:
    tokens = value.get("tokens") if isinstance(value, dict) else None
    return None if tokens is None else Usage(prompt_tokens=tokens)
