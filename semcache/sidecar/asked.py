"""A request as it arrived, and an answer as it goes: what the endpoints and the proxy hand to each other."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from semcache.events import Event
from semcache.explain import Explanation
from semcache.sidecar.headers import Headers
from semcache.sidecar.seen import Seen
from semcache.sidecar.settings import Server
from semcache.sidecar.upstream import Opened
from semcache.sidecar.wishes import Wishes
from semcache.wrap.clients.dialect import Json


@dataclass(slots=True)
class Asked:
    """A request as it arrived.

    `where` is what it asks, with the headers that may change the answer, canonical; `send` asks a server the same, or,
    if it is given one, another body. `words` is a digest of all of it but what it wishes, once somebody has made it.
    `owner` is the tenant whose token asks; empty where there are no tokens.
    """

    body: bytes
    where: bytes
    tenant: str
    wishes: Wishes
    send: Callable[[Server, bytes | None], Awaitable[Opened]]
    words: bytes = b""
    seen: Seen | None = None
    owner: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of its answer, as it named them and as its owner's own, and by which tenants above they go.

        A header's tags have no comma, so nobody can name what begins with one.
        """
        own = tuple(own_tag(self.owner, tag) for tag in self.wishes.tags) if self.owner else ()
        parts = self.whose.split("/")
        return (*self.wishes.tags, *own, *(below("/".join(parts[:end])) for end in range(1, len(parts))))

    @property
    def whose(self) -> str:
        """The tenant whose answers may meet: the caller's own, and what it said to part that further."""
        return f"{self.tenant}/~{self.wishes.tenant}" if self.wishes.tenant else self.tenant


def own_tag(owner: str, tag: str) -> str:
    """Return what a tag of a tenant's callers is called where no other tenant is meant."""
    return f",{owner}/{quote(tag, safe='')}"


def below(tenant: str) -> str:
    """Return the tag of all that is of a tenant below this one."""
    return f",{tenant}/"


def typed(tags: Iterable[str]) -> tuple[str, ...]:
    """Return of an entry's tags those that callers have named."""
    return tuple(tag for tag in tags if not tag.startswith(","))


@dataclass(slots=True)
class Explained:
    """How a call would be answered now: as each explanation says, one for each input, or by none, as `reason` says.

    `key` is that of the first, `tenant` whose answers it is given, and `mode` the one that holds.
    """

    tenant: str
    key: bytes = b""
    mode: str = ""
    text: str | None = None
    reason: str = ""
    explanations: list[Explanation] = field(default_factory=list)


class Pieces:
    """The blocks of a stream, and what ends it, whether any was read or not."""

    def __init__(self, blocks: AsyncGenerator[str, None], end: Callable[[], Awaitable[None]]) -> None:
        self.blocks = blocks
        self._end: Callable[[], Awaitable[None]] | None = end

    async def close(self) -> None:
        """Read no more."""
        end, self._end = self._end, None
        await self.blocks.aclose()
        if end is not None:
            await end()


class Found:
    """An answer: its head, and its body, or for a stream its blocks; `stored` where that is known.

    With `has_length` it is handed on as it comes, and is as long as its head says; with `is_forced` its caller wanted
    it anew.
    """

    __slots__ = ("blocks", "body", "event", "has_length", "head", "is_forced", "is_ours", "status", "stored")

    def __init__(
        self, event: Event, head: Headers, *, body: bytes = b"", blocks: Pieces | None = None, is_ours: bool,
        stored: bool | None = None, status: int = 200, has_length: bool = False, is_forced: bool = False,
    ) -> None:  # fmt: skip
        self.event = event
        self.head = head
        self.body = body
        self.blocks = blocks
        self.is_ours = is_ours  # else it is the very answer of the server behind
        self.stored = stored
        self.has_length = has_length
        self.is_forced = is_forced
        self.status = status


def parsed(data: bytes | str) -> Json:
    """Return a body's parameters. Raises ValueError for what is no object, or has a number that is none.

    A name that stands twice means one thing to one reader and another to the next: no key can know which.
    """
    told = json.loads(data, parse_constant=_refuse, object_pairs_hook=_object)
    if not isinstance(told, dict):
        raise ValueError("a call is an object")  # noqa: TRY004 - as for all else that is no call
    return told


def _object(pairs: list[tuple[str, Any]]) -> Json:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a name stands twice")
    return told


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
