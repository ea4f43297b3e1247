"""Why a call was answered so, who else was given an answer, what was wrong with it, and what is to be said instead.

Law: each of these is of one tenant's entries: the caller's own where its token is one tenant's.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from semcache.commands import key_bytes
from semcache.explain import Explanation
from semcache.ledger import Served
from semcache.plan import arun
from semcache.sidecar.asked import Explained, typed
from semcache.sidecar.operating import Asked, Key, Name, Text, check_reach
from semcache.sidecar.service import SWITCHING, Call, Row
from semcache.sidecar.standing import absent, facets_of, found, standing
from semcache.ttl import seconds
from semcache.wrong import Reported

_TENANT = "Whose: as `explain` tells it; where it is not said, that of this very caller."


# Why


class ExplainAsked(Asked):
    """A call as it is posted to `path`, or a key; its headers are those of this request."""

    path: Name | None = Field(None, description="As `/v1/chat/completions`, with its query if it has one.")
    body: dict[str, Any] | None = None
    tenant: Name | None = Field(None, description=_TENANT)
    key: Key | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        is_call = self.path is not None and self.body is not None
        if is_call == (self.key is not None) or (self.path is None) != (self.body is None):
            raise ValueError("give path and body of a call, or a key")
        if self.key is not None and self.tenant is not None:
            raise ValueError("a key is one tenant's by itself: tenant goes with a call")
        return self


class Near(BaseModel):
    """A text of the index: `similarity` is the cosine; `why_not` says why its answer is not given any more."""

    key: str
    similarity: float
    text: str
    score: float | None
    why_not: str | None


class Said(BaseModel):
    """What a tier said: hit, miss, or why."""

    tier: str
    said: str


class Answering(BaseModel):
    """How one input would be answered now: `tier` is None for a miss."""

    key: str
    tier: str | None
    similarity: float | None
    cut: float | None
    age: float | None
    remaining: float | None
    verdict: str | None
    reason: str | None
    said: list[Said]
    neighbours: list[Near]
    told: str


class Lives(BaseModel):
    """What a tier has: times are seconds, None where there is no end."""

    tier: str
    age: float
    remaining: float | None
    is_stale: bool
    is_pinned: bool
    bytes: int
    load_seconds: float


class Stands(BaseModel):
    """What stands under a key, in which tiers, and what it can be dropped by."""

    key: str
    tenant: str
    function: str
    model: str
    version: str
    tags: list[str]
    documents: list[str]
    tiers: list[Lives]


class ExplainTold(BaseModel):
    """Of a call: whose answers it would be given, in which mode, or why it goes by; of a key: what stands there."""

    tenant: str | None = None
    mode: str | None = None
    text: str | None = None
    goes_by: str | None = None
    answers: list[Answering] = []
    stands: Stands | None = None


async def _explain(call: Call) -> ExplainTold:
    asked: ExplainAsked = call.body
    if asked.key is not None:
        return ExplainTold(stands=await _stands(call, key_bytes(asked.key)))
    told = await call.service.explain(call, asked.path or "", json.dumps(asked.body).encode(), _whose(call, asked))
    return ExplainTold(
        tenant=told.tenant, mode=told.mode or None, text=told.text,
        goes_by=told.reason if not told.explanations else None, answers=_answers(told),
    )  # fmt: skip


async def _stands(call: Call, key: bytes) -> Stands:
    facets = await arun(found(call.cache, key, call.caller.reaches))
    tiers = [
        Lives(
            tier=tier, age=entry.age, remaining=_finite(max(0.0, entry.life)), is_stale=entry.life <= 0,
            is_pinned=entry.is_pinned, bytes=len(entry.value), load_seconds=entry.load_seconds,
        )
        for tier, entry in await arun(standing(call.cache, key, facets))
    ]  # fmt: skip
    return Stands(
        key=key.hex(), tenant=facets.tenant, function=facets.function, model=facets.model, version=facets.version,
        tags=list(typed(facets.tags)), documents=list(facets.documents), tiers=tiers,
    )  # fmt: skip


def _answers(told: Explained) -> list[Answering]:
    return [_answering(one) for one in told.explanations]


def _answering(one: Explanation) -> Answering:
    decision = one.decision
    return Answering(
        key=one.key.hex(), tier=one.tier, similarity=one.similarity, cut=one.cut, age=one.age,
        remaining=None if one.remaining is None else _finite(one.remaining),
        verdict=None if decision is None else decision.verdict.value,
        reason=None if decision is None else decision.reason,
        said=[Said(tier=tier, said=said) for tier, said in one.said],
        neighbours=[
            Near(key=near.key.hex(), similarity=float(near.similarity), text=near.text, score=near.score,
                 why_not=one.reported.get(near.key))
            for near in one.neighbours
        ],
        told=str(one),
    )  # fmt: skip


def _finite(seconds: float) -> float | None:
    return seconds if seconds < float("inf") else None


# Who else


class BlastAsked(Asked):
    """An answer's key, or that of a call it was given to."""

    key: Key
    tenant: Name | None = Field(None, description="Only what this tenant was given, as `explain` tells its name.")


class Given(BaseModel):
    """A near match that was served: when, how near, both texts (redacted, cut short); `tenant` is a digest."""

    at: str
    similarity: float
    text: str
    stored_text: str
    asked: str
    stored: str
    tenant: str | None
    response_id: str | None


class BlastTold(BaseModel):
    """To whom an answer was given as a near match in the last seven days, the latest first."""

    namespace: str
    key: str
    rows: list[Given]


async def _blast(call: Call) -> BlastTold:
    asked: BlastAsked = call.body
    cache, key = call.cache, key_bytes(asked.key)
    if asked.tenant is not None:
        check_reach(call.caller, asked.tenant)
    if call.caller.reach and asked.tenant is None:
        rows = await _own_rows(call, key)
    else:
        rows = await cache.ablast(key, asked.tenant)
    return BlastTold(namespace=cache.namespace, key=key.hex(), rows=[_given(row) for row in rows])


async def _own_rows(call: Call, key: bytes) -> list[Served]:
    """Return what was given of this caller's: a row has a digest of its tenant, whose name has to be known.

    That is the tenant's of what stands under the key; where nothing does any more, those that the token stands for.
    """
    facets = await arun(facets_of(call.cache, key))
    if facets is not None and not call.caller.reaches(facets.tenant):
        return []
    rows: dict[Served, None] = {}
    for tenant in dict.fromkeys([*([facets.tenant] if facets is not None else ()), *_names(call)]):
        rows.update(dict.fromkeys(await call.cache.ablast(key, tenant)))
    return sorted(rows, key=lambda row: row.at, reverse=True)


def _names(call: Call) -> list[str]:
    """Return the names that a tenant's callers have, as far as its token and this request say them."""
    reach = call.caller.reach
    return [reach, call.service.tenant_of(call), f"{reach}/nobody"]


def _given(row: Served) -> Given:
    return Given(
        at=datetime.fromtimestamp(row.at, UTC).isoformat(timespec="seconds"), similarity=round(row.similarity, 6),
        text=row.text, stored_text=row.neighbour, asked=row.asked.hex(), stored=row.stored.hex(),
        tenant=row.tenant.hex() or None, response_id=row.response_id or None,
    )  # fmt: skip


# What was wrong


class WrongAsked(Asked):
    """Which answer: the key of its call, its id, or what was asked; with `drop` the entry goes too."""

    key: Key | None = None
    response_id: Name | None = None
    text: Text | None = None
    tenant: Name | None = Field(None, description=f"With `text`. {_TENANT}")
    drop: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [one for one in (self.key, self.response_id, self.text) if one is not None]
        if len(given) != 1:
            raise ValueError(f"give one of key, response_id, text; got {len(given) or 'none'}")
        if self.tenant is not None and self.text is None:
            raise ValueError("tenant says whose text it was: it goes with nothing else")
        return self


class Pair(BaseModel):
    """A call, and the entry that is not given to it any more."""

    asked: str
    stored: str


class WrongTold(BaseModel):
    """What was done; `told` says it in words, and why where nothing was."""

    done: bool
    blocked: list[Pair]
    closed: list[str]
    entries: list[str]
    dropped: int
    learned: int
    is_durable: bool
    told: str


async def _wrong(call: Call) -> WrongTold:
    asked: WrongAsked = call.body
    cache, tenant = call.cache, None
    if asked.text is not None:
        tenant = _whose(call, asked) or (call.service.tenant_of(call) if call.caller.reach else None)
    elif call.caller.reach:
        await _check_own(call, asked)
    reported = await cache.areport_wrong(
        key=asked.key, response_id=asked.response_id, text=asked.text, tenant=tenant, drop=asked.drop
    )
    return _told(reported)


async def _check_own(call: Call, asked: WrongAsked) -> None:
    """See that a key, or what an id names, is of this caller's tenant. Raises RefusedError."""
    if asked.key is not None:
        key: bytes | None = key_bytes(asked.key)
    else:
        key = await asyncio.to_thread(partial(call.cache.named, asked.response_id or ""))
    if key is None:
        raise absent()
    facets = await arun(facets_of(call.cache, key))
    if facets is None:
        rows = await _own_rows(call, key)
        is_own = any(key in (row.asked, row.stored) for row in rows)
    else:
        is_own = call.caller.reaches(facets.tenant)
    if not is_own:
        raise absent()


def _told(reported: Reported) -> WrongTold:
    return WrongTold(
        done=bool(reported), blocked=[Pair(asked=one.hex(), stored=other.hex()) for one, other in reported.blocked],
        closed=[key.hex() for key in reported.closed], entries=[key.hex() for key in reported.entries],
        dropped=reported.dropped, learned=reported.learned, is_durable=reported.is_durable, told=str(reported),
    )  # fmt: skip


# What is to be said instead


class EntryAsked(Asked):
    """A call as it is posted to `path`, and the text that answers it; its headers are those of this request."""

    path: Name = Field(description="As `/v1/chat/completions`.")
    body: dict[str, Any]
    answer: str = Field(min_length=1)
    tenant: Name | None = Field(None, description=_TENANT)
    tags: list[Name] = Field([], max_length=32)
    ttl: Name | None = Field(None, description="With `pinned` false: how long it lives, as `7d`.")
    pinned: bool = Field(default=True, description="No ttl and no pressure ends it, until it is invalidated.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.ttl is not None and self.pinned:
            raise ValueError("ttl is for what is not pinned: what is pinned has no end")
        if any("," in tag for tag in self.tags):
            raise ValueError("a tag has no comma in it")
        return self


class EntryTold(BaseModel):
    """Where the answer stands, and whose it is."""

    key: str
    tenant: str
    pinned: bool


async def _entry(call: Call) -> EntryTold:
    asked: EntryAsked = call.body
    ttl = None if asked.ttl is None else seconds(asked.ttl, "ttl")
    key, tenant = await call.service.put(
        call, asked.path, json.dumps(asked.body).encode(), asked.answer, _whose(call, asked), tags=tuple(asked.tags),
        ttl=ttl, is_pinned=asked.pinned,
    )  # fmt: skip
    return EntryTold(key=key.hex(), tenant=tenant, pinned=asked.pinned)


def _whose(call: Call, asked: ExplainAsked | WrongAsked | EntryAsked) -> str:
    """Return the tenant that was named; empty for the caller's own. Raises RefusedError for one it does not reach."""
    if asked.tenant is not None:
        check_reach(call.caller, asked.tenant)
    return asked.tenant or ""


ROWS = (
    Row("POST", "/semcache/v1/explain", "How a call would be answered now, and why; or what stands under a key.",
        _explain, body=ExplainAsked, gives=ExplainTold, most_bytes=0),
    Row("POST", "/semcache/v1/blast", "Who was given an answer as a near match in the last seven days.", _blast,
        body=BlastAsked, gives=BlastTold),
    Row("POST", "/semcache/v1/wrong", "Say that an answer was wrong: it is not given so again.", _wrong,
        rights=SWITCHING, body=WrongAsked, gives=WrongTold),
    Row("POST", "/semcache/v1/entries", "Put an answer that somebody wrote, in place of what stands.", _entry,
        rights=SWITCHING, body=EntryAsked, gives=EntryTold, most_bytes=0),
)  # fmt: skip
