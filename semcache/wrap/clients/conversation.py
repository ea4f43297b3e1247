"""What a call of a client means: its key, the text that may match nearly, and all that must be equal beside it.

Laws: everything in the call is in its key but what a documented list names (law 1: docs/clients.md). The text is the
last message's, if that is the user's; earlier turns, the system's word, tools, images, sampling, base URL and headers
are the scope, exactly (law 2). `history="last:N"` leaves turns before the last N out of the scope, never of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from semcache.context import as_tenant
from semcache.errors import UnkeyableError
from semcache.keys import canonical
from semcache.meaning import family_of
from semcache.model import Tenant
from semcache.traffic import FRAME, chat_family
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.prefix import is_marked, unmarked
from semcache.wrap.cut import cut_out

# Options of the SDKs' requests that say how to ask, not what; any other is in the key.
HOW_TO_ASK = frozenset({"headers", "extra_json", "timeout", "max_retries", "idempotency_key", "security"})
# What traces, names or frames a request, and who asks (the tenant says that).
TRACE_HEADERS = frozenset({
    "accept", "content-type", "user-agent", "idempotency-key", "traceparent", "tracestate", "baggage", "x-request-id",
    "x-client-request-id", "x-correlation-id", "b3", "x-amzn-trace-id", "x-cloud-trace-context", "sentry-trace",
    "uber-trace-id",
})  # fmt: skip
TRACE_PREFIXES = ("x-stainless-", "x-b3-", "x-datadog-")
_UNFRAMED = canonical([{}, {}])


# How it is said why calls go by the cache.
OF_THE_SERVER, SAMPLING = "state of the server: ", "sampling: "


def passed_by(dialect: Dialect, settings: ClientOptions, body: Json) -> str | None:
    """Say why a call goes by the cache, if it does."""
    state = dialect.state(body)
    if state is not None:
        return OF_THE_SERVER + state
    sampled = None if settings.sampling == "any" else dialect.samples(body)
    return None if sampled is None else SAMPLING + sampled


def body_of(given: Mapping[str, Any]) -> Json:
    """Return the parameters that are sent, those of `extra_body` too."""
    body = given["body"]
    extra = (given.get("options") or {}).get("extra_json")
    return {name: item for name, item in ({**body, **extra} if extra else body).items() if not is_left_out(item)}


def is_left_out(item: object) -> bool:
    """Say whether an argument is the SDK's way to say that there is none."""
    return type(item).__name__ in ("NotGiven", "Omit")


class Where:
    """Whom a client asks, as which organisation and project: who holds which API key is the tenant's affair.

    Clients can be changed, so they are asked at each call; what it comes to is told anew only where it has changed.
    """

    def __init__(self, settings: ClientOptions) -> None:
        self._settings = settings
        self._latest: tuple[tuple[Any, ...], bytes, frozenset[str]] = ((), b"", frozenset())

    def of(self, client: Any) -> tuple[bytes, frozenset[str]]:
        """Return the canonical form of it, and the names of the headers in it, which a call may leave out."""
        # Where a client leaves a header out it tells an object, which differs from all others.
        sent = {name: item for name, item in client.default_headers.items() if item.__class__ is str}
        query = client.default_query  # told anew each time: 1 and True are equal, and sent as "1" and "true"
        seen = (client.base_url, sent, client.auth_headers, canonical(dict(query)) if query else b"")
        latest, told, names = self._latest
        if seen != latest:
            url, headers, own, query = seen
            others = {name: item for name, item in headers.items() if own.get(name) != item}
            headers = told_headers(others, self._settings)
            told, names = canonical([str(url), headers, query]), frozenset(headers)
            self._latest = seen, told, names
        return told, names


def told_headers(
    headers: Mapping[str, Any], settings: ClientOptions, known: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the headers that may change an answer, and which of those `known` are left out."""
    told = {}
    for name, item in headers.items():
        small = name.lower()
        if small not in TRACE_HEADERS and not small.startswith(TRACE_PREFIXES) and small not in settings.small_ignore:
            if not is_left_out(item):
                told[small] = item
            elif small in known:
                told[small] = None
    return told


class Meant:
    """What a call means: `whole` is all of it, canonical; of what it consists is told where a lookup needs it.

    Raises UnkeyableError.
    """

    __slots__ = ("_asked", "_body", "_dialect", "_frame", "_settings", "whole")

    def __init__(
        self,
        where: tuple[bytes, frozenset[str]],
        given: Mapping[str, Any],
        body: Json,
        dialect: Dialect,
        settings: ClientOptions,
    ) -> None:
        left_out = dialect.ignored | settings.ignore if settings.ignore else dialect.ignored
        options = given.get("options") or {}
        headers = options.get("headers")
        asked_by = {name: item for name, item in options.items() if name not in HOW_TO_ASK}
        self._body = body
        asked = {name: item for name, item in body.items() if name not in left_out}
        self._asked = unmarked(asked) if is_marked(asked) else asked
        told, known = where
        is_framed = asked_by or headers
        frame = canonical([told_headers(headers or {}, settings, known), asked_by]) if is_framed else _UNFRAMED
        self._frame = told + frame
        self.whole = self._frame + canonical(self._asked)
        self._dialect = dialect
        self._settings = settings

    @property
    def model(self) -> str:
        """The model that is asked."""
        return str(self._body.get("model") or "")

    @property
    def tenant(self) -> Tenant | None:
        """Whose call it is, as far as the client's settings say. Raises what the user's callable raises.

        A call that does not say whose it is, where it should, has no key: it would share what is one tenant's.
        """
        tenant = self._settings.tenant
        if isinstance(tenant, str):
            if tenant not in self._body:
                raise UnkeyableError(f"it has no parameter {tenant!r}, which says whose it is (tenant={tenant!r})")
            return as_tenant(self._body[tenant])
        return as_tenant(tenant(self._body)) if callable(tenant) else tenant

    def family(self) -> bytes:
        """Return the scope family, which is that of the same call in a recording: no server, header or turn is in it.

        Raises UnkeyableError.
        """
        return family_of("", "", canonical(chat_family(self._asked, self._dialect.turns)))

    def text(self) -> tuple[str | None, Callable[[], bytes], str | None]:
        """Return the text, what stands around it, and why there is no text, if so.

        Raises what the user's callable raises.
        """
        dialect, settings = self._dialect, self._settings
        text, rest, exact_only = _text(self._asked.get(dialect.turns), dialect.text_part, settings.text)
        if settings.history is not None and rest is not None:
            rest = _latest(rest, settings.history)
        return text, lambda: self._frame + canonical({**self._asked, dialect.turns: rest}), exact_only


def _text(messages: Any, kind: str, chosen: Callable[[str], Any] | None) -> tuple[str | None, Any, str | None]:
    """Return the text, the messages without it, and why there is no text, if so."""
    if isinstance(messages, str):  # one message, the user's
        messages = [{"role": "user", "content": messages}]
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, Mapping) or last.get("role") != "user":
        return None, None, "the last message is not the user's"
    content = last.get("content")
    if isinstance(content, str):
        text, rest = _chosen(content, chosen)
    else:
        parts = content if isinstance(content, list) else []
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
        if "tool_result" in kinds:
            return None, None, "the last message is not the user's"
        if kind not in kinds:
            return None, None, "the last message has no text"
        place = len(kinds) - 1 - kinds[::-1].index(kind)
        text, cut = _chosen(parts[place]["text"], chosen)
        rest = None if cut is None else [*parts[:place], {**parts[place], "text": cut}, *parts[place + 1 :]]
    if not isinstance(text, str) or rest is None:
        return None, None, "text= returned nothing that stands in the last message"
    return text, [*messages[:-1], {**last, "content": rest}], None


def _chosen(text: str, chosen: Callable[[str], Any] | None) -> tuple[Any, Any]:
    """Return the text that may match nearly, and what is left of the message without it."""
    return (text, []) if chosen is None else cut_out(chosen(text), (text,))


def _latest(messages: list[Any], turns: int) -> list[Any]:
    """Return the frame of a conversation, its latest turns and its last message."""
    *earlier, last = messages
    is_frame = [isinstance(one, Mapping) and one.get("role") in FRAME for one in earlier]
    frame = [one for one, framed in zip(earlier, is_frame, strict=True) if framed]
    spoken = [one for one, framed in zip(earlier, is_frame, strict=True) if not framed]
    return [*frame, *spoken[max(0, len(spoken) - turns) :], last]
