"""The calls of a client before the SDK makes requests of them: most of what a hit would cost is spent there.

A resource of the copy, such as `client.chat.completions`, is of a subclass of the SDK's own, with one method more:
`create`. Parameters that are plain data the SDK sends as they are, so a call that has no others means what its request
will mean, and is looked up at once; any other is looked up when the SDK posts it (see `client`), as are the calls that
helpers make by other ways.

Laws: both ways make the same key of a call: whether the SDK sends parameters of these names as they are is tried out
with the first call that has them. What is not in memory goes to the SDK's own `create`, with what the caller gave it
(law 1). A resource or a `create` that is not the SDK's own, but a user's or a library's, is left alone: nobody knows
what it makes of its parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import cached_property, lru_cache, partial, wraps
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from msgpack import packb

from semcache.wrap.clients.conversation import HOW_TO_ASK, is_left_out
from semcache.wrap.clients.dialect import Json
from semcache.wrap.clients.engine import Engine, Form
from semcache.wrap.clients.sdk import SDKS

# What the SDKs' methods take beside the parameters of the call, and what becomes of it.
_OPTIONS = {"extra_headers": "headers", "extra_query": "params", "extra_body": "extra_json", "timeout": "timeout"}
_THEIRS = "_semcache_theirs"
# With these alone a call is told by its body.
_OF_THE_BODY = frozenset({"timeout"})
# Of so many sets of names it is remembered whether the SDK sends them as they are.
_MOST_NAMES = 256


def resources(
    kind: type, engines: Iterable[Engine], send: Callable[..., Any], *, is_async: bool
) -> dict[str, Any]:  # fmt: skip
    """Return the members of a client's subclass that give its cached resources; `send` posts for client and engine.

    None for an SDK that makes its resources with the client: there calls are looked up when they are posted.
    """
    members: dict[str, Any] = {}
    for engine in engines:
        first, *rest = engine.dialect.resource
        if isinstance(getattr(kind, first, None), cached_property):
            members[first] = _resource(getattr(kind, first).func, rest, partial(_create, engine, send, is_async))
    return members


def given_of(parameters: Mapping[str, Any], form: Form) -> tuple[Json, bytes] | None:
    """Return what the SDK will post for a call's parameters; None where they are not all plain data.

    Behind it stands the parameters' own byte string, for a call that is told by its body alone; else none.
    """
    options: Json = {}
    body: Json = {}
    for name, item in parameters.items():
        if is_left_out(item):
            continue
        option = _OPTIONS.get(name)
        if option is None:
            body[name] = item
        elif item is not None:
            options[option] = item
    try:
        packed = packb([body, options.get("extra_json"), options.get("params")], strict_types=True)
    except (TypeError, ValueError, OverflowError):  # a model, a tuple, a file, a lone surrogate: the SDK knows what
        return None
    stream = body.get("stream") or False
    given = {"cast_to": form.cast_to, "body": body, "options": options, "stream": stream, "stream_cls": form.stream_cls}
    return given, packed if options.keys() <= _OF_THE_BODY else b""


def posted(client: Any, engine: Engine, parameters: Mapping[str, Any]) -> Json:
    """Return what the SDK would post for a call. Raises what the SDK raises for parameters that are not the call's."""
    return _posted(resource_of(client, engine), parameters)[1]


def told(
    client: Any, engine: Engine, parameters: Mapping[str, Any], send: Callable[..., Any], *, is_checked: bool = False
) -> tuple[str, Json, Callable[[], Any]]:
    """Return where a call is posted, what, and what sends it past the cache. Raises as `posted` does.

    What the SDK has to say against the parameters it may say when the call is sent, unless it `is_checked`.
    """
    resource = resource_of(client, engine)
    call = None if is_checked else _early(resource, engine, parameters)
    if call is None:
        path, given = _posted(resource, parameters)
        return path, given, partial(send, client, engine, path, **given)
    path, given, _ = call
    return path, given, partial(_load, resource, engine, send, parameters)


def resource_of(client: Any, engine: Engine) -> Any:
    """Return what has the `create` of an endpoint."""
    resource = client
    for name in engine.dialect.resource:
        resource = getattr(resource, name)
    return resource


def _early(resource: Any, engine: Engine, parameters: Mapping[str, Any]) -> tuple[str, Json, bytes] | None:
    """Return where a call is posted, what, and its bytes; None where the SDK is to make the request first."""
    form = engine.form
    if form is None or not _is_sdks(_method_of(resource)):
        return None
    found = given_of(parameters, form)
    if found is None:
        return None
    given, packed = found
    if not packed and not engine.takes(form.path, given):
        return None
    names = tuple(parameters)
    is_sent = engine.sent_as_they_are.get(names)
    if is_sent is None:
        if len(engine.sent_as_they_are) >= _MOST_NAMES:
            engine.sent_as_they_are.clear()
        is_sent = _means(_posted(resource, parameters)[1]) == _means(given)
        engine.sent_as_they_are[names] = is_sent
    return (form.path, given, packed) if is_sent else None


def _means(given: Mapping[str, Any]) -> tuple[Json, Json]:
    """Return what of a POST may be in its key."""
    options = {name: item for name, item in (given.get("options") or {}).items() if name not in HOW_TO_ASK}
    for name in ("headers", "extra_json"):
        items = (given.get("options") or {}).get(name) or {}
        options[name] = {key: item for key, item in items.items() if not is_left_out(item)}
    return {name: item for name, item in given["body"].items() if not is_left_out(item)}, options


def _method_of(resource: Any) -> Any:
    """Return the `create` behind ours."""
    kind = type(resource)
    return getattr(kind, _THEIRS, kind).create


def _load(resource: Any, engine: Engine, send: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """Call the SDK's own `create`, whose request is looked up already."""
    return _asking(resource, partial(send, resource._client, engine), parameters)  # noqa: SLF001 - every resource has it


def _asking(resource: Any, post: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """Call the `create` behind ours of a twin of the resource, which posts by `post`."""
    twin = copy(resource)
    twin._post = post  # noqa: SLF001 - by which every resource asks
    return _method_of(resource)(twin, **parameters)


def _posted(resource: Any, parameters: Mapping[str, Any]) -> tuple[str, Json]:
    """Return where and what the SDK would post."""

    async def apost(path: str, **given: Any) -> tuple[str, Json]:
        return path, given

    is_async = iscoroutinefunction(resource._post)  # noqa: SLF001 - as above
    made = _asking(resource, apost if is_async else lambda path, **given: (path, given), parameters)
    if not is_async:
        path, given = made
        return path, given
    try:
        made.send(None)  # nothing in it waits: the request is not sent
    except StopIteration as stop:
        path, given = stop.value
        return path, given
    raise TypeError("the SDK waits for something before it makes a request: such a call cannot be told beforehand")


@lru_cache(maxsize=64)
def _is_sdks(method: Any) -> bool:
    """Say whether a method's code is the SDK's own: neither a user's subclass has it, nor has anybody wrapped it."""
    code = getattr(method, "__code__", None)
    package = next((sdk.package for sdk in SDKS if sdk.has(method)), "")
    home = getattr(sys.modules.get(package), "__file__", None)
    return code is not None and home is not None and Path(home).parent in Path(code.co_filename).parents


def _resource(make: Callable[[Any], Any], rest: list[str], create: Callable[[Any], Any]) -> Any:
    """Return a property for what `make` gives, with a `create` of ours there, or in the part that `rest` leads to."""
    kinds: dict[type, type] = {}  # of one subclass are the resources of all copies of a client

    def members(kind: Any) -> dict[str, Any]:
        if rest:
            return {rest[0]: _resource(getattr(kind, rest[0]).func, rest[1:], create)}
        return {"create": create(kind)}

    def made(owner: Any) -> Any:
        theirs = make(owner)
        kind = type(theirs)
        is_known = kind in kinds
        if not is_known and not _is_sdks(kind.__init__):
            return theirs  # a resource of the user's own, which may be made of more than the client
        if not is_known:
            kinds[kind] = type(kind.__name__, (kind,), {"__module__": kind.__module__, _THEIRS: kind, **members(kind)})
        return kinds[kind](theirs._client)  # noqa: SLF001 - what every resource of the SDKs is made of

    return cached_property(made)


def _create(engine: Engine, send: Callable[..., Any], is_async: bool, kind: Any) -> Any:  # noqa: FBT001 - it is bound by place
    """Return `create` of a resource's subclass."""

    def early(resource: Any, args: tuple[Any, ...], parameters: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return what the engine's `post` takes; None where the SDK is to make the request first."""
        call = None if args else _early(resource, engine, parameters)
        if call is None:
            return None
        path, given, packed = call
        load = partial(_load, resource, engine, send, parameters)
        return resource._client, path, given, load, packed  # noqa: SLF001 - as above

    @wraps(kind.create)
    def create(self: Any, *args: Any, **parameters: Any) -> Any:
        call = early(self, args, parameters)
        return kind.create(self, *args, **parameters) if call is None else engine.post(*call)

    @wraps(kind.create)
    async def acreate(self: Any, *args: Any, **parameters: Any) -> Any:
        call = early(self, args, parameters)
        return await (kind.create(self, *args, **parameters) if call is None else engine.apost(*call))

    return acreate if is_async else create
