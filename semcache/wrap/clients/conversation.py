"""What a call of a client means: its key, the text that may match nearly, and all that must be equal beside it.

Laws: everything in the call is in its key but what a documented list names (law 1: docs/clients.md). The text is the
last message's, if that is the user's; earlier turns, the system's word, tools, images, sampling, base URL and headers
are the scope, exactly (law 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from semcache.context import as_tenant
from semcache.keys import canonical
from semcache.model import Tenant
from semcache.wrap.call import cut_out
from semcache.wrap.clients.dialect import Dialect, Json
from semcache.wrap.clients.options import ClientOptions
from semcache.wrap.clients.prefix import is_marked, unmarked

# Options of the SDKs' requests that say how to ask, not what; any other is in the key.
HOW_TO_ASK = frozenset({"headers", "extra_json", "timeout", "max_retries", "idempotency_key", "security"})
# What traces, names or frames a request, and who asks (the tenant says that).
TRACE_HEADERS = frozenset({
    "accept", "content-type", "user-agent", "idempotency-key", "traceparent", "tracestate", "baggage", "x-request-id",
    "x-client-request-id", "x-correlation-id", "b3", "x-amzn-trace-id", "x-cloud-trace-context", "sentry-trace",
    "uber-trace-id",
})  # fmt: skip
TRACE_PREFIXES = ("x-stainless-", "x-b3-", "x-datadog-")


@dataclass(slots=True)
class Meant:
    """A call's canonical whole; and what stands around its text, if there is one, or why there is none."""

    whole: bytes
    model: str
    tenant: Tenant | None
    text: str | None
    around: Callable[[], bytes]
    exact_only: str | None


def body_of(given: Mapping[str, Any]) -> Json:
    """Return the parameters that are sent, those of `extra_body` too."""
    options = given.get("options") or {}
    body = {**(given.get("body") or {}), **(options.get("extra_json") or {})}
    return {name: item for name, item in body.items() if type(item).__name__ not in ("NotGiven", "Omit")}


def meaning_of(client: Any, given: Mapping[str, Any], body: Json, dialect: Dialect, settings: ClientOptions) -> Meant:
    """Return what a call means. Raises what the user's callables raise, and UnkeyableError."""
    left_out = dialect.ignored | settings.ignore
    asked = {name: item for name, item in body.items() if name not in left_out}
    options = given.get("options") or {}
    around = [_where(client, settings), _headers(options.get("headers") or {}, settings)]
    around.append({name: item for name, item in options.items() if name not in HOW_TO_ASK})
    if is_marked(asked):
        asked = unmarked(asked)
    text, rest, exact_only = _text(asked.get(dialect.turns), dialect.text_part, settings.text)
    return Meant(
        canonical([*around, asked]), str(body.get("model") or ""), _tenant(body, settings), text,
        lambda: canonical([*around, {**asked, dialect.turns: rest}]), exact_only,
    )  # fmt: skip


def _where(client: Any, settings: ClientOptions) -> list[Any]:
    """Tell whom a client asks, as which organisation and project: who holds which key is the tenant's affair."""
    own = client.auth_headers
    told = {name: item for name, item in client.default_headers.items() if own.get(name) != item}
    return [str(client.base_url), _headers(told, settings), dict(client.default_query)]


def _headers(headers: Mapping[str, Any], settings: ClientOptions) -> dict[str, Any]:
    told = {}
    for name, item in headers.items():
        small = name.lower()
        if small not in TRACE_HEADERS and not small.startswith(TRACE_PREFIXES) and small not in settings.small_ignore:
            told[small] = item if isinstance(item, str | bytes) else type(item).__name__  # NotGiven, Omit
    return told


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


def _tenant(body: Json, settings: ClientOptions) -> Tenant | None:
    tenant = settings.tenant
    if isinstance(tenant, str):
        return as_tenant(body.get(tenant))
    return as_tenant(tenant(body)) if callable(tenant) else tenant
