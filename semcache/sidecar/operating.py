"""What an operator asks and switches: figures, the policy, the mode of all replicas, and what is dropped.

Law: who reaches one tenant alone drops what is that tenant's, and learns nothing of what else there is.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from semcache import __version__
from semcache.commands import NEAR, key_bytes
from semcache.marks import Pair
from semcache.meter import COLUMNS, UsageRow, columns_of, first_day, total_of
from semcache.model import Mode
from semcache.plan import arun
from semcache.policy.status import PolicyStatus, ThresholdStatus, TunedStatus
from semcache.sidecar.asked import below, own_tag
from semcache.sidecar.credentials import Caller
from semcache.sidecar.refusals import FORBIDDEN, RefusedError
from semcache.sidecar.service import SWITCHING, Call, Row
from semcache.sidecar.standing import found, own_of
from semcache.stats import Stats

_LONGEST_NAME = 1024
_LONGEST_TEXT = 32 << 10

Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
Text = Annotated[str, Field(min_length=1, max_length=_LONGEST_TEXT)]
Key = Annotated[str, Field(pattern="^[0-9a-fA-F]{40}$", description="A key, as `x-semcache-key` tells it.")]
ReplicaMode = Literal["live", "shadow", "exact", "off"]


class Asked(BaseModel):
    """What is sent: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


# Figures


class StatsTold(BaseModel):
    """Sums of this sidecar since it began, and what its tiers hold; times are seconds."""

    version: str
    namespace: str
    mode: Mode
    uptime: float
    hit_rate: float
    stats: Stats
    breakers: dict[str, Literal["open", "closed"]]


async def stats_of(call: Call) -> StatsTold:
    """Tell what `Cache.stats` does."""
    cache = call.cache
    stats = await asyncio.to_thread(cache.stats)  # it may ask the store
    breakers: dict[str, Any] = {tier.name: "open" if one.is_open else "closed" for tier, one in cache.chain.tiers}
    return StatsTold.model_construct(
        version=__version__, namespace=cache.namespace, mode=cache.mode, uptime=monotonic() - call.service.began,
        hit_rate=stats.hit_rate, stats=stats, breakers=breakers,
    )  # fmt: skip


class UsageAsked(Asked):
    """Since when, and by what."""

    since: str = Field("30d", description="A day in UTC, `2026-11-27`, or how long ago it was, `7d`.", max_length=40)
    by: str = Field(
        "stage,model", description=f"Some of {', '.join(COLUMNS)}, with commas between.", max_length=100
    )  # fmt: skip


class UsageTold(BaseModel):
    """What the lookups of all replicas saved and cost; `unpriced` are calls left out of the money, by model."""

    namespace: str
    since: str
    by: list[str]
    rows: list[UsageRow]
    total: UsageRow
    unpriced: dict[str, int]


async def _usage(call: Call) -> UsageTold:
    cache, asked = call.cache, call.query
    by = columns_of([column.strip() for column in asked.by.split(",") if column.strip()])
    since = first_day(asked.since, cache.clock.time())
    rows = await cache.ausage(since, by)
    models = {row.model or "": row.unpriced_hits + row.unpriced_loads for row in await cache.ausage(since, "model")}
    return UsageTold.model_construct(
        namespace=cache.namespace, since=since, by=list(by), rows=rows, total=total_of(rows),
        unpriced={model: calls for model, calls in models.items() if calls},
    )  # fmt: skip


class PolicyTold(BaseModel):
    """What decides on near matches, in words and in figures, and what is learned of a shadow embedder's."""

    policy: str
    told: str
    status: PolicyStatus | ThresholdStatus | TunedStatus | None
    shadow: PolicyStatus | None


async def _policy(call: Call) -> PolicyTold:
    cache = call.cache
    status = getattr(cache.policy, "status", None)
    told = None if status is None else await asyncio.to_thread(status)
    shadow = None if cache.shadow_policy is None else await asyncio.to_thread(cache.shadow_policy.status)
    return PolicyTold.model_construct(policy=str(cache.policy), told=str(told or ""), status=told, shadow=shadow)


# The mode


class ModeAsked(Asked):
    """The mode of all replicas."""

    mode: ReplicaMode


class ModeTold(BaseModel):
    """`mode` holds in this sidecar: the stricter of its `own` and that of `all` replicas."""

    mode: Mode
    own: Mode
    all: Mode


async def _mode(call: Call) -> ModeTold:
    own, everywhere = call.cache.modes
    return ModeTold(mode=call.cache.mode, own=own, all=everywhere)


async def _set_mode(call: Call) -> ModeTold:
    await call.cache.aset_mode(call.body.mode)
    return await _mode(call)


# What is dropped


class Invalidation(Asked):
    """Which entries: one of these, or a text, which a tenant may narrow."""

    tag: Name | None = None
    tenant: Name | None = Field(None, description="As `explain` tells it; those below it go too.")
    model: Name | None = None
    function: Name | None = None
    version: Name | None = None
    document: Name | None = None
    key: Key | None = None
    text: Text | None = Field(None, description="All whose texts are near to it, in all scopes.")
    everything: bool | None = Field(None, json_schema_extra={"enum": [True, None]})
    similarity: float | None = Field(None, ge=-1, le=1, description=f"With `text`: how near, {NEAR} where unsaid.")
    dry_run: bool = Field(default=False, description="Count, and drop nothing.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in _WHICH if getattr(self, name) not in (None, False)]
        if len(given) != 1 and sorted(given) != ["tenant", "text"]:
            raise ValueError(f"give one of {', '.join(_WHICH)}, or text and tenant; got {', '.join(given) or 'none'}")
        if self.similarity is not None and self.text is None:
            raise ValueError("similarity says how near a text is to be: it goes with nothing else")
        return self

    @property
    def which(self) -> str:
        """What was given; with a text and a tenant, the text."""
        return next(name for name in ("text", *_WHICH) if getattr(self, name) is not None)


_WHICH = ("tag", "tenant", "model", "function", "version", "document", "key", "text", "everything")


class Dropped(BaseModel):
    """How many entries were dropped, or would be."""

    facet: str
    entries: int
    is_dry_run: bool


async def _invalidate(call: Call) -> Dropped:
    asked: Invalidation = call.body
    which = asked.which
    if asked.tenant is not None:
        check_reach(call.caller, asked.tenant)
    if which == "text":
        entries = await _drop_near(call, asked)
    else:
        pairs = await _pairs(call, asked, which)
        reason = f"{which}: {getattr(asked, which)!r}"
        entries = await arun(call.cache.drop(pairs, reason, dry_run=asked.dry_run))
    return Dropped(facet=which, entries=entries, is_dry_run=asked.dry_run)


async def _pairs(call: Call, asked: Invalidation, which: str) -> list[Pair]:
    """Return the facet values that are meant. Raises RefusedError for what is not this caller's."""
    caller, value = call.caller, getattr(asked, which)
    if which == "tenant":
        return [("tenant", value), ("tag", below(value))]
    if which == "key":
        key = key_bytes(value)
        if caller.reach:
            await arun(found(call.cache, key, caller.reaches))
        return [("key", key)]
    if not caller.reach:
        return [("namespace", call.cache.namespace)] if which == "everything" else [(which, value)]
    if which == "tag":
        return [("tag", own_tag(caller.reach, value))]
    raise RefusedError(
        FORBIDDEN, f"by {which} the entries of all tenants are meant, and the token is one tenant's",
        'name a key, a tag, a text or the tenant, or ask with an operator\'s token (tenant = "*")',
    )  # fmt: skip


async def _drop_near(call: Call, asked: Invalidation) -> int:
    cache, caller = call.cache, call.caller
    whose = asked.tenant or caller.reach
    if not whose or cache.semantic is None:
        return await cache.ainvalidate(text=asked.text, similarity=asked.similarity, dry_run=asked.dry_run)
    near = NEAR if asked.similarity is None else asked.similarity
    rows = await arun(cache.semantic.within(asked.text or "", near))
    keys = await arun(own_of(cache, [row.key for row in rows], Caller("", frozenset(), reach=whose).reaches))
    pairs: list[Pair] = [("key", key) for key in keys]
    return await arun(cache.drop(pairs, f"text, of {whose}", dry_run=asked.dry_run))


def check_reach(caller: Caller, tenant: str) -> None:
    """See that a tenant is the caller's own, or below it. Raises RefusedError."""
    if not caller.reaches(tenant):
        raise RefusedError(FORBIDDEN, f"the token reaches {caller.reach} and what is below it, and no other tenant")


async def _openapi(call: Call) -> dict[str, Any]:
    from semcache.sidecar.openapi import document

    return document(call.service.table.rows)


ROWS = (
    Row("GET", "/semcache/v1/stats", "Sums of this sidecar since it began, and what its tiers hold.", stats_of,
        is_of_all=True, gives=StatsTold),
    Row("GET", "/semcache/v1/usage", "What the lookups of all replicas saved, and what their loads cost.", _usage,
        is_of_all=True, query=UsageAsked, gives=UsageTold),
    Row("GET", "/semcache/v1/policy", "What decides on near matches, and what it has learned.", _policy,
        is_of_all=True, gives=PolicyTold),
    Row("GET", "/semcache/v1/mode", "The mode of this sidecar and of all replicas.", _mode,
        is_of_all=True, gives=ModeTold),
    Row("POST", "/semcache/v1/mode", "Set the mode of all replicas, within a second: the kill switch.", _set_mode,
        rights=SWITCHING, is_of_all=True, body=ModeAsked, gives=ModeTold),
    Row("POST", "/semcache/v1/invalidate", "Drop answers, everywhere and durably, or count them.", _invalidate,
        rights=SWITCHING, body=Invalidation, gives=Dropped),
    Row("GET", "/semcache/v1/openapi.json", "This document.", _openapi, rights=(), gives=dict[str, Any]),
)  # fmt: skip
