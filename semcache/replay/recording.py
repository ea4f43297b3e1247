"""A recording made ready: each request as the cache will see it, beside what it costs and what is true of it.

The bodies of the requests are dropped on the way, so that a long recording of chats fits in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import pack

from semcache.cache import Cache
from semcache.errors import UnkeyableError
from semcache.keys import canonical, digest
from semcache.meaning import family_of
from semcache.model import SHARED, Request, Usage
from semcache.prices import Price
from semcache.replay.ingredients import Ingredients, ingredients
from semcache.traffic import Recorded, meaning


@dataclass(slots=True)
class Asked:
    """One request of a recording, at `position` from 0, `ts` seconds after its begin.

    `request` is None where the cache is not to be asked, and `bypass` says why. `seconds` and the tokens are what the
    origin took for `answer`, `price` is its model's, where it has one. Two requests may share an answer if, and only
    if, both `answer_id` and `around` are equal: `around` is a digest of tenant and parts, made apart from the cache's
    own keys and scopes, which it judges. `answer` is the recorded response, if it `has_response`, else the `answer_id`.
    """

    position: int
    ts: float
    request: Request | None
    bypass: str | None
    answer: str | None
    answer_id: str | None
    around: bytes
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    model: str = ""
    price: Price | None = None
    has_response: bool = False

    @property
    def usage(self) -> Usage:
        """What the origin used."""
        return Usage(self.prompt_tokens, self.completion_tokens, 0.0, self.cached_tokens, self.cache_write_tokens)

    @property
    def text(self) -> str:
        return (self.request and self.request.text) or ""


@dataclass(slots=True)
class Recording:
    """All requests of a recording, and what there is to say of them; `skipped` is (line number, reason).

    `prices` are the currency and day of the prices of its models, as "USD 2026-08-05"; `composed` counts the requests
    that somebody laid out; `ingredients` are what keys are made of, where that is asked for, by position.
    """

    asked: list[Asked] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    tenants: Counter[str] = field(default_factory=Counter)
    prices: set[str] = field(default_factory=set)
    composed: int = 0
    ingredients: list[Ingredients | None] | None = None

    @property
    def span_seconds(self) -> float:
        """Seconds from the first request to the last."""
        return self.asked[-1].ts - self.asked[0].ts if self.asked else 0.0

    @property
    def has_answer_ids(self) -> bool:
        return any(asked.answer_id is not None for asked in self.asked)

    def digest(self, first: int) -> str:
        """Return a digest of the first requests and their times, by which a recording is known again."""
        told = blake2b(digest_size=16)
        for asked in self.asked[:first]:
            told.update(b"" if asked.request is None else asked.request.key)
            told.update(pack("<d", asked.ts))
        return told.hexdigest()

    def texts(self) -> list[str]:
        """Return the distinct texts that may match nearly, in order."""
        return list(
            dict.fromkeys(
                asked.request.text
                for asked in self.asked
                if asked.request is not None and asked.request.scope is not None and asked.request.text is not None
            )
        )


def prepare(
    recorded: Iterable[Recorded], cache: Cache, skipped: list[tuple[int, str]], *, keep_ingredients: bool = False
) -> Recording:
    """Make a recording ready for a cache; `skipped` is filled while `recorded` is read."""
    recording = Recording(skipped=skipped, ingredients=[] if keep_ingredients else None)
    for position, one in enumerate(recorded):
        asked = _asked(one, position, cache)
        recording.asked.append(asked)
        if recording.ingredients is not None:
            recording.ingredients.append(ingredients(one))
        recording.composed += bool(one.composed)
        if asked.price is not None:
            recording.prices.add(cache.recorder.meter.prices.dated(asked.price))
        recording.kinds[one.kind] += 1
        if isinstance(model := one.request.get("model"), str):
            recording.models[model] += 1
        if one.tenant is not None:
            recording.tenants[one.tenant] += 1
    return recording


def _asked(recorded: Recorded, position: int, cache: Cache) -> Asked:
    meant = meaning(recorded)
    # Whoever replays a recording owns it: where a line names no tenant, all share.
    tenant = SHARED if recorded.tenant is None else recorded.tenant
    request, bypass, around = None, meant.bypass, b""
    if bypass is None:
        try:
            request = cache.request(
                *meant.parts, text=meant.text, tenant=tenant, model=meant.model, exact_only=meant.exact_only
            )
            request.family = family_of("", "", canonical(meant.family))
            around = digest(canonical([meant.parts, meant.model, recorded.tenant]))
        except UnkeyableError as error:
            request, bypass = None, f"no key: {error}"
    usage = recorded.usage or {}
    told = recorded.request.get("model")
    model = told if isinstance(told, str) else ""
    return Asked(
        position=position,
        ts=recorded.ts,
        request=request,
        bypass=bypass,
        answer=recorded.answer_id if recorded.response is None else recorded.response,
        answer_id=recorded.answer_id,
        around=around,
        seconds=(recorded.latency_ms or 0.0) / 1000,
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=usage.get("cached_tokens", 0),
        cache_write_tokens=usage.get("cache_write_tokens", 0),
        model=model,
        price=cache.recorder.meter.price_of(model),
        has_response=recorded.response is not None,
    )
