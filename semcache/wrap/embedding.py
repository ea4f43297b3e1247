"""`cached_embedding`: what it takes, and the type of what it returns. What its calls do is in `embedding_calls`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from semcache.cache import Cache
from semcache.context import named_stage, names_of
from semcache.errors import ConfigurationError, MissingExtraError
from semcache.model import Request
from semcache.ttl import Duration, lives_of
from semcache.wrap.embedding_calls import DTYPES, Embedding, EmbeddingOptions
from semcache.wrap.wrapping import CacheInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

R_co = TypeVar("R_co", covariant=True)


class CachedEmbedding(Protocol[R_co]):
    """What `cached_embedding` makes of a function: of a list of n texts float32[n, d], of one text float32[d]."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function itself."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> R_co: ...

    def cache_info(self) -> CacheInfo:
        """Return the hits, misses and bypasses so far, each text counted by itself."""
        ...

    def cache_clear(self) -> int:
        """Invalidate every vector of this function, as `cache.invalidate(function=)` does."""
        ...

    def invalidate(self, *args: Any, **kwargs: Any) -> int:
        """Invalidate the vectors of the texts of one call."""
        ...

    def requests(self, *args: Any, **kwargs: Any) -> list[Request]:
        """Return what a call means to the cache: one request for each text. Raises UnkeyableError."""
        ...


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[..., Awaitable[Any]], /
    ) -> CachedEmbedding[Awaitable[NDArray[np.float32]]]: ...
    @overload
    def __call__(self, function: Callable[..., Any], /) -> CachedEmbedding[NDArray[np.float32]]: ...


def cached_embedding(
    cache: Cache | None = None,
    /,
    *,
    model: str = "",
    max_batch: int | None = None,
    max_tokens: int | None = None,
    count: Callable[[str], int] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    ttl: Duration | None = None,
    max_age: Duration | None = None,
    tags: str | Iterable[str] = (),
    version: str | None = None,
    ignore: str | Iterable[str] = (),
    stage: str | None = None,
) -> _Decorator:
    """Cache a function whose first argument is a list of texts and which returns float32[n, d], or what converts to it.

    Its callers may also pass one text, and get float32[d]; the function is called with a list of the distinct texts
    that no tier has, at most `max_batch` at once, and of at most `max_tokens` together, as `count(text)` counts them
    (without it a token for every three bytes; a text over the bound goes alone). All its other arguments are in the
    key, but for those that `ignore` names. `model` names what computes the vectors; a method of an object needs it, as
    nobody can tell the object's settings, but for `encode` of a SentenceTransformer, which is known by its weights and
    settings. `dtype="float16"` keeps half the bytes; results are float32 in any case. The rest is as in `cached`. What
    is no list of texts goes to the function as it is. Raises ConfigurationError.
    """
    if dtype not in DTYPES:
        raise ConfigurationError(f'dtype= is "float32" or "float16"; got {dtype!r}')
    for name, most, what in (("max_batch", max_batch, "texts"), ("max_tokens", max_tokens, "tokens")):
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ConfigurationError(f"{name}= is a number of {what} from 1 on, or None; got {most!r}")
    if count is not None and (max_tokens is None or not callable(count)):
        raise ConfigurationError(f"count= counts a text's tokens for max_tokens=: give both; got {count!r}")
    for name, value in (("model", model), ("version", version or "")):
        if not isinstance(value, str):
            raise ConfigurationError(f"{name}= is text; got {value!r}")
    try:
        import numpy  # noqa: ICN001, F401 - said now rather than at the first vector
    except ImportError:
        raise MissingExtraError("cached_embedding", "semantic") from None
    lives = lives_of(ttl, max_age, 0, 0, sliding=False)
    given = EmbeddingOptions(
        model, max_batch, max_tokens, count, dtype, lives, names_of(tags, "tags"), version,
        frozenset(names_of(ignore, "ignore")), named_stage(stage),
    )  # fmt: skip

    def decorate(function: Any) -> Any:
        return Embedding(cache, given, function).wrapper()

    return decorate
