"""How a caller is told what came of its call: answers, what servers behind have said, and refusals of ours."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from semcache.sidecar.asked import Found
from semcache.sidecar.events import bytes_of
from semcache.sidecar.headers import Headers, cache_headers, given
from semcache.sidecar.refusals import ABSENT, FORBIDDEN, LARGE, NOT_CACHED, UNKNOWN
from semcache.sidecar.upstream import AnsweredError, BrokenOffError, Opened

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_JSON: Headers = [(b"content-type", b"application/json")]
# What has no body, whatever its length.
_BODYLESS = (204, 304)


async def give_found(found: Found, send: Send) -> None:
    """Send an answer to the caller. Raises BrokenOffError where it ends before its end."""
    head = found.head if found.is_ours else given(found.head, with_length=found.has_length)
    status = None if found.is_ours else found.status
    told = cache_headers(found.event, stored=found.stored, status=status, is_forced=found.is_forced)
    if found.blocks is None:
        length = [] if found.status in _BODYLESS else [(b"content-length", b"%d" % len(found.body))]
        await send({"type": "http.response.start", "status": found.status, "headers": [*head, *length, *told]})
        await send({"type": "http.response.body", "body": found.body})
        return
    await send({"type": "http.response.start", "status": found.status, "headers": [*head, *told]})
    try:
        async for block in found.blocks.blocks:
            await send({"type": "http.response.body", "body": bytes_of(block), "more_body": True})
    except AnsweredError as error:
        # The status was sent: that it broke off can only be told by breaking off.
        raise BrokenOffError(str(error)) from error
    await send({"type": "http.response.body", "body": b""})


async def hand_on(response: Opened, send: Send) -> None:
    """Send what comes from a server as it comes. Raises BrokenOffError where it ends before its end."""
    head = [*given(response.headers, with_length=True), (b"x-semcache", b"bypass")]
    await send({"type": "http.response.start", "status": response.status, "headers": head})
    async for data in response.pieces():
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def failed(send: Send, path: str, error: AnsweredError) -> None:
    """Tell a caller what the server behind said, or that it said nothing."""
    answer = error.answer
    if error.is_ours:
        await refuse(send, path, answer.status, answer.body.decode("utf-8", "replace"))
        return
    length = (b"content-length", b"%d" % len(answer.body))
    headers = [*given(answer.headers), length, (b"x-semcache", b"miss")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def refuse(send: Send, path: str, status: int, message: str) -> None:
    """Tell an error of ours in the words of the protocol that was asked in."""
    kind = {UNKNOWN: "authentication_error", FORBIDDEN: "permission_error", ABSENT: "not_found_error"}.get(
        status, "invalid_request_error" if status < 500 else "api_error"  # noqa: PLR2004 - as HTTP parts them
    )  # fmt: skip
    error: dict[str, Any] = {"message": f"semcache: {message}", "type": kind}
    told = {"type": "error", "error": error} if path == "/v1/messages" else {
        "error": {**error, "param": None, "code": f"semcache_{status}"}
    }  # fmt: skip
    body = json.dumps(told).encode()
    headers = [*_JSON, (b"content-length", b"%d" % len(body)), (b"x-semcache", b"bypass")]
    if status == NOT_CACHED:
        headers.append((b"x-should-retry", b"false"))  # as the SDKs read it: it would not be there the next time either
    if status == LARGE:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
