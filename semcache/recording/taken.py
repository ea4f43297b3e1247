"""What a recording takes of a call: a copy of what was asked, made while its caller waits, and the rest for later."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from semcache.errors import SemcacheError
from semcache.model import SHARED, Tenant
from semcache.traffic import Kind


class UnrecordedError(SemcacheError):
    """A call cannot be recorded; the message says why, and it is said once."""


@dataclass(slots=True)
class Taken:
    """A call as it waits to be written: `asked` is its request, packed; nobody else holds what can change.

    `request` makes of what was packed the request of a line, and `response` the answer's text; both are called by the
    writer. `weight` is about how many bytes it holds.
    """

    kind: Kind
    asked: bytes
    request: Callable[[Any], dict[str, Any]]
    response: Callable[[], str | None]
    tenant: str | None
    weight: int


class Call(Protocol):
    """A call that can be recorded."""

    def record(self, answer: Any) -> Taken:
        """Return what is to be recorded, with the answer that its caller is given, None if the call has it itself.

        Raises UnrecordedError.
        """
        ...


class Told:
    """A call of which all is known before it is answered: a function's, a retrieval's or an embedding's."""

    __slots__ = ("_asked", "_kind", "_tenant", "_text")

    def __init__(
        self, kind: Kind, request: dict[str, Any], tenant: str | None, text: Callable[[Any], Any] | None = None
    ) -> None:
        self._kind = kind
        self._asked = packed(request)
        self._tenant = tenant
        self._text = text

    def record(self, answer: Any) -> Taken:
        """Return it with the answer as a text, where it has one."""
        if isinstance(self._asked, UnrecordedError):
            raise self._asked
        text = None if answer is None or self._text is None else self._text(answer)
        weight = len(self._asked) + len(text or "")
        return Taken(self._kind, self._asked, _as_it_is, lambda: text, self._tenant, weight)


def owner_of(tenant: Tenant | None) -> str | None:
    """Return whose call it is, as a line says it: nothing for those who share, or say nothing."""
    return None if tenant is None or tenant is SHARED else str(tenant) or None


def packed(data: Any) -> bytes | UnrecordedError:
    """Return a copy of plain data; what cannot be copied, or is no plain data, says so when it is to be recorded."""
    try:
        told: bytes = msgpack.packb(data, unicode_errors="surrogatepass")
    except Exception as error:  # noqa: BLE001 - objects may refuse in any way
        return UnrecordedError(f"what it was asked is not plain data: {error}")
    return told


def unpacked(data: bytes) -> Any:
    """Return plain data of its copy."""
    return msgpack.unpackb(data, unicode_errors="surrogatepass", strict_map_key=False)


def text_of(answer: Any) -> str | None:
    """Return an answer as a text: itself, or its JSON; None for what is no plain data."""
    if isinstance(answer, str):
        return answer
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)
    except Exception:  # noqa: BLE001 - objects may refuse in any way
        return None


def _as_it_is(asked: Any) -> dict[str, Any]:
    told: dict[str, Any] = asked
    return told
