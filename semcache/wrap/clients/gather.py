"""`gather(client, requests)`: many calls of a cached client as one; only what is missing is sent, each call once.

Here it is told what it takes; what it does is in `gathering`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypedDict, Unpack, overload

from semcache.errors import ConfigurationError
from semcache.plan import arun, run
from semcache.wrap.clients.client import engine_of, is_cached
from semcache.wrap.clients.gathering import Called, Gathering
from semcache.wrap.clients.pack import Packing
from semcache.wrap.clients.sdk import sdk_of

Join = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
Split = Callable[[Any, int], list[Any] | tuple[Any, ...]]


class PlainClient(Protocol):
    """A plain client of an SDK's."""

    @property
    def base_url(self) -> Any: ...
    def __enter__(self) -> Any: ...


class AsyncClient(Protocol):
    """An async client of an SDK's."""

    @property
    def base_url(self) -> Any: ...
    def __aenter__(self) -> Any: ...


class _Settings(TypedDict, total=False):
    max_concurrency: int
    pack: int | None
    join: Join | None
    split: Split | None
    return_errors: bool


@overload
def gather(client: PlainClient, requests: Iterable[Mapping[str, Any]], **settings: Unpack[_Settings]) -> list[Any]: ...
@overload
def gather(
    client: AsyncClient, requests: Iterable[Mapping[str, Any]], **settings: Unpack[_Settings]
) -> Coroutine[Any, Any, list[Any]]: ...
def gather(
    client: Any,
    requests: Iterable[Mapping[str, Any]],
    *,
    max_concurrency: int = 8,
    pack: int | None = None,
    join: Join | None = None,
    split: Split | None = None,
    return_errors: bool = False,
) -> Any:
    """Answer many calls of a cached client, each told as the arguments of its `create`; returns the answers in order.

    An async client's are awaited. Only what is missing is sent, equal calls once, at most `max_concurrency` at a time.
    The first error, in order, is raised when the calls under way have ended, and no further ones are begun; with
    `return_errors` it stands in its answer's place. With `pack` at most so many missing calls, which agree in all but
    their texts, are sent as one: `join` makes it of their arguments, and `split(answer, n)` returns their n answers, as
    texts or as the SDK's. Raises ConfigurationError for settings that are wrong, TypeError for what is no call, or a
    stream.
    """
    if not is_cached(client):
        raise ConfigurationError(
            f"gather takes a cached client, as semcache.cached(openai.OpenAI(), cache) makes it; got {client!r}"
        )
    if not _is_count(max_concurrency):
        raise ConfigurationError(f"max_concurrency= is a number of calls, 1 or more; got {max_concurrency!r}")
    packing = _packing(pack, join, split)
    _, is_async = sdk_of(client)
    gathering = Gathering(client, max_concurrency, packing, blocks=not is_async, goes_on=return_errors)
    calls = [_checked(client, place, parameters) for place, parameters in enumerate(requests)]
    plan = gathering.plan(calls)
    return arun(plan) if is_async else run(plan)


def _packing(pack: Any, join: Any, split: Any) -> Packing | None:
    """Take the settings of packing. Raises ConfigurationError."""
    if pack is None and join is None and split is None:
        return None
    if not _is_count(pack) or not callable(join) or not callable(split):
        raise ConfigurationError(
            "pack= is how many calls are sent as one, with join= and split=, callables that make one of many and "
            f"many of one; got pack={pack!r}, join={join!r}, split={split!r}"
        )
    return Packing(pack, join, split)


def _is_count(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 1


def _checked(client: Any, place: int, parameters: Any) -> Called:
    """Take one of the requests. Raises TypeError."""
    if not isinstance(parameters, Mapping):
        raise TypeError(f"request {place} is no mapping of a call's arguments to what they are; got {parameters!r}")
    extra = parameters.get("extra_body")
    if parameters.get("stream") or (isinstance(extra, Mapping) and extra.get("stream")):
        raise TypeError(f"request {place} asks for a stream, and gather gives whole answers: leave stream= out")
    try:
        return Called(engine_of(client, parameters), parameters)
    except TypeError as error:
        raise TypeError(f"request {place}: {error}") from error
