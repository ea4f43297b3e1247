"""The calls of a client before the SDK makes requests of them: most of what a hit would cost is spent there.

A resource of the copy, such as `client.chat.completions`, is of a subclass of the SDK's own, with one method more:
`create`. Parameters that are plain data the SDK sends as they are, so a call that has no others means what its request
will mean, and is looked up at once; any other is looked up when the SDK posts it (see `client`), as are the calls that
helpers make by other ways.

Laws: both ways make the same key of a call; what is not in memory goes to the SDK's own `create`, with what the caller
gave it (law 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial, wraps
from inspect import iscoroutinefunction
from typing import Any

from msgpack import packb

from semcache.wrap.clients.conversation import is_left_out
from semcache.wrap.clients.dialect import Json
from semcache.wrap.clients.engine import Engine, Form

# What the SDKs' methods take beside the parameters of the call, and what becomes of it.
_OPTIONS = {"extra_headers": "headers", "extra_query": "params", "extra_body": "extra_json", "timeout": "timeout"}

_THEIRS = "_semcache_theirs"
# With these alone a call is told by its body.
_OF_THE_BODY = frozenset({"timeout"})


def resources(kind: type, engines: Iterable[Engine], send: Callable[..., Any], *, is_async: bool) -> dict[str, Any]:
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
    return _posted(client, engine, parameters)[1]


def told(
    client: Any, engine: Engine, parameters: Mapping[str, Any], send: Callable[..., Any], *, is_checked: bool = False
) -> tuple[str, Json, Callable[[], Any]]:
    """Return where a call is posted, what, and what sends it past the cache. Raises as `posted` does.

    What the SDK has to say against the parameters it may say when the call is sent, unless it `is_checked`.
    """
    form = None if is_checked else engine.form
    found = None if form is None else given_of(parameters, form)
    if form is None or found is None or not engine.takes(form.path, found[0]):
        path, given = _posted(client, engine, parameters)
        return path, given, partial(send, client, engine, path, **given)

    def load() -> Any:
        twin = _twin(resource_of(client, engine))
        twin._post = partial(send, client, engine)  # noqa: SLF001 - its request is looked up already
        return twin.create(**parameters)

    return form.path, found[0], load


def resource_of(client: Any, engine: Engine) -> Any:
    """Return what has the `create` of an endpoint."""
    resource = client
    for name in engine.dialect.resource:
        resource = getattr(resource, name)
    return resource


def _twin(resource: Any) -> Any:
    """Return a resource of the SDK's own class, for the same client."""
    kind = type(resource)
    return getattr(kind, _THEIRS, kind)(resource._client)  # noqa: SLF001 - as in `_resource`


def _posted(client: Any, engine: Engine, parameters: Mapping[str, Any]) -> tuple[str, Json]:
    resource = resource_of(client, engine)
    twin = _twin(resource)

    async def apost(path: str, **given: Any) -> tuple[str, Json]:
        return path, given

    is_async = iscoroutinefunction(resource._post)  # noqa: SLF001 - by which every resource asks
    twin._post = apost if is_async else lambda path, **given: (path, given)  # noqa: SLF001 - as above
    made = twin.create(**parameters)
    if not is_async:
        path, given = made
        return path, given
    try:
        made.send(None)  # nothing in it waits: the request is not sent
    except StopIteration as stop:
        path, given = stop.value
        return path, given
    raise TypeError("the SDK waits for something before it makes a request: such a call cannot be told beforehand")


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
        if kind not in kinds:
            kinds[kind] = type(kind.__name__, (kind,), {"__module__": kind.__module__, _THEIRS: kind, **members(kind)})
        return kinds[kind](theirs._client)  # noqa: SLF001 - what every resource of the SDKs is made of

    return cached_property(made)


def _create(engine: Engine, send: Callable[..., Any], is_async: bool, kind: Any) -> Any:  # noqa: FBT001 - it is bound by place
    """Return `create` of a resource's subclass."""
    theirs = kind.create

    def early(resource: Any, args: tuple[Any, ...], parameters: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return what the engine's `post` takes; None where the SDK is to make the request first."""
        form = engine.form
        if args or form is None:
            return None
        client = resource._client  # noqa: SLF001 - as above
        found = given_of(parameters, form)
        if found is None:
            return None
        given, packed = found
        if not packed and not engine.takes(form.path, given):
            return None

        def load() -> Any:
            twin = kind(client)
            twin._post = partial(send, client, engine)  # noqa: SLF001 - its request is looked up already
            return twin.create(**parameters)

        return client, form.path, given, load, packed

    @wraps(theirs)
    def create(self: Any, *args: Any, **parameters: Any) -> Any:
        call = early(self, args, parameters)
        return theirs(self, *args, **parameters) if call is None else engine.post(*call)

    @wraps(theirs)
    async def acreate(self: Any, *args: Any, **parameters: Any) -> Any:
        call = early(self, args, parameters)
        return await (theirs(self, *args, **parameters) if call is None else engine.apost(*call))

    return acreate if is_async else create
