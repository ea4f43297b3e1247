"""The calls of a function from texts to vectors: each text an entry of its own.

Laws: each text is answered as by itself, whatever stands beside it, so that batches may overlap in any way; results
come in the caller's order, as float32 with the bits that were computed (or, by choice, with those of float16, also
where they were computed just now); no text matches nearly; what one batch computed is kept, whatever becomes of the
next.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from hashlib import blake2b
from threading import Lock
from types import MethodType
from typing import Any

from semcache.cache import Cache
from semcache.chain import Origin
from semcache.errors import ConfigurationError, UnkeyableError
from semcache.events import Event
from semcache.keys import KEY_BYTES, canonical, canonical_items
from semcache.lookup import finish, load
from semcache.many import lookup_many
from semcache.model import Alike, Facets, Lives, Request
from semcache.naming import type_name
from semcache.plan import Outcome, Plan, arun, run
from semcache.wrap.default import default_cache
from semcache.wrap.encoder import HOW_TO_COMPUTE, encoder_of
from semcache.wrap.noting import bypass_event
from semcache.wrap.signature import MisfitError, Signature, unwrap
from semcache.wrap.told import telling
from semcache.wrap.version import name_of, version_of
from semcache.wrap.wrapping import CacheInfo

# How vectors are stored.
DTYPES = {"float32": "<f4", "float16": "<f2"}
# Of English about four make a token, of other languages fewer.
_BYTES_PER_TOKEN = 3


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """The checked arguments of `cached_embedding`."""

    model: str
    max_batch: int | None
    max_tokens: int | None
    count: Callable[[str], int] | None
    dtype: str
    lives: Lives | None
    tags: tuple[str, ...]
    version: str | None
    ignore: frozenset[str]
    stage: str | None


class Embedding:
    """One decorated function: what is known of it at decoration, and its cache, from its first use on."""

    def __init__(self, cache: Cache | None, given: EmbeddingOptions, function: Any) -> None:
        inner, arguments = unwrap(function)
        if isinstance(inner, type) or not hasattr(inner, "__qualname__") or inspect.isgeneratorfunction(inner):
            raise ConfigurationError(f"cached_embedding takes a function from texts to vectors; got {inner!r}")
        self.function = function
        self.name = name_of(inner)
        self._given = given
        self._inner = inner
        self._cache = cache
        self._lock = Lock()
        self._encoder = encoder_of(_bare(function))
        unseen = self._unseen()
        self._texts = self._first_argument()
        left_out = given.ignore | unseen | {self._texts} | (HOW_TO_COMPUTE if self._encoder else frozenset())
        signature = Signature(inner, arguments, left_out, self.name, has_key=False)
        for name in given.ignore - frozenset(getattr(getattr(inner, "__code__", None), "co_freevars", ())):
            signature.require(name, "ignore")
        self._signature = signature
        # What an object's method is made of, behind its decorators; the object itself is named by model=.
        source = inspect.unwrap(inner) if unseen else inner
        self.version = given.version if given.version is not None else version_of(source, self.name, given.ignore)
        self._stage = given.stage or self.name
        self._model = given.model
        self._identity = canonical([given.model, given.dtype])
        if self._encoder is not None and not given.model:
            self._model = self._encoder.name
            self._identity = canonical([self._encoder.digest, given.dtype])

    def _unseen(self) -> frozenset[str]:
        """Return the name of the parameter whose object has no key; its model is named instead."""
        method = _bare(self.function)
        if not isinstance(method, MethodType) or isinstance(method.__self__, type):
            return frozenset()
        kind = type(method.__self__)
        if hasattr(kind, "__semcache_key__"):
            return frozenset()
        if not self._given.model and self._encoder is None:
            raise ConfigurationError(
                f"{self.name} is a method of a {type_name(kind)}, whose settings nobody can tell: name what it "
                'computes, as in cached_embedding(cache, model="all-MiniLM-L6-v2"), or give the class '
                "__semcache_key__()"
            )
        return frozenset([next(iter(inspect.signature(self._inner).parameters))])

    def _first_argument(self) -> str:
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError) as error:  # a builtin may have no signature
            told = f"{self.name} cannot be called as it is: {error}; wrap it in a function"
            raise ConfigurationError(told) from None
        takes = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if not parameters or parameters[0].kind not in takes:
            raise ConfigurationError(f"{self.name} takes no list of texts as its first argument")
        if parameters[0].name == "self":
            raise ConfigurationError(
                f"{self.name} is a method without its object: cache the bound one, as in "
                'embed = cached_embedding(cache, model="...")(embedder.embed)'
            )
        return parameters[0].name

    @property
    def cache(self) -> Cache:
        """The cache; the default one is built here, at the first use."""
        with self._lock:
            if self._cache is None:
                self._cache = default_cache()
            return self._cache

    def wrapper(self) -> Any:
        """Make the wrapper, of the function's own colour."""
        if inspect.iscoroutinefunction(self._inner):

            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                return (await arun(self.plan(args, kwargs, blocks=False))).unwrap()

            made: Any = awrapper
        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return run(self.plan(args, kwargs, blocks=True)).unwrap()

            made = wrapper
        update_wrapper(made, self._inner)
        made.__wrapped__ = self.function
        made.__semcache_name__ = self.name
        made.__semcache_version__ = self.version
        made.cache_info = lambda: CacheInfo(*self.cache.recorder.counts(self.name))
        made.cache_clear = lambda: self.cache.invalidate(function=self.name)
        made.invalidate = self.invalidate
        made.requests = self.requests
        return made

    def plan(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, blocks: bool) -> Plan[Outcome[Any]]:
        """Return the plan that answers a call."""
        cache = self.cache
        try:
            told = self._told(args, kwargs)
            requests = self._requests([told] if isinstance(told, str) else told, args, kwargs)
        except Exception as error:  # noqa: BLE001 - whatever has no key goes on without us
            return (yield from self._bypass(args, kwargs, error))
        if not requests:  # only the function knows what it returns for nothing
            outcome: Outcome[Any] = yield from load(
                Origin(partial(self.function, *args, **kwargs)), None, Event("bypass")
            )
            return outcome
        texts = [told] if isinstance(told, str) else told
        vectors = partial(self._load, texts, args, kwargs)
        look = partial(
            lookup_many, cache.chain, load=vectors, keeps=None, event=self._telling(requests, texts, args, kwargs),
            blocks=blocks,
            parted=partial(self._parted, texts),
        )  # fmt: skip
        outcomes = yield from look(requests)
        rows = [outcome.value for outcome in outcomes if outcome.error is None]
        is_alike = _are_alike(rows)
        if not is_alike:
            # The model has changed under its name: what stands is of no use beside the new.
            outcomes = yield from look(Alike(replace(requests.one, mode="refresh"), requests.keys))
            rows = [outcome.value for outcome in outcomes if outcome.error is None]
            is_alike = _are_alike(rows)
        if len(rows) < len(outcomes):
            return next(outcome for outcome in outcomes if outcome.error is not None)
        return self._gathered(rows, is_alike=is_alike, is_one=isinstance(told, str))

    def _telling(
        self, requests: Alike, texts: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[Request], Event]:
        """Return what begins the events of a call's texts, with what a recording has of them."""
        cache = self.cache
        if cache.recorder.recording is None:
            return cache.event
        values = dict(zip(self._signature.names, self._signature.bind(args, kwargs), strict=True))
        around = {**values, "model": self._model, "function": self.name, "version": self.version}
        return telling(cache, requests.keys, texts, around, requests.one.facets.tenant or None)

    def _told(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | list[str]:
        """Return the text or texts of a call. Raises UnkeyableError, or MisfitError where there are none."""
        if not args and self._texts not in kwargs:
            raise MisfitError(self._texts)
        told = args[0] if args else kwargs[self._texts]
        if isinstance(told, str):
            return told
        if self._encoder is not None and isinstance(told, tuple):
            raise UnkeyableError("some models take a tuple for a pair; give a list", f"argument {self._texts!r}")
        is_list = isinstance(told, list | tuple)
        if not is_list or not (set(map(type, told)) <= {str} or all(isinstance(text, str) for text in told)):
            raise UnkeyableError("it is neither a text nor a list of texts", f"argument {self._texts!r}")
        return list(told)

    def _requests(self, texts: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Alike:
        """Return a request for each text; what they have in common is made once."""
        given, cache = self._given, self.cache
        values = self._signature.bind(args, kwargs)
        identity = self._identity
        if self._encoder is not None:
            self._encoder.check(dict(zip(self._signature.names, values, strict=True)))
            identity += self._encoder.settings()
        owner = cache.tenant_bytes(cache.tenant_of(None))
        common = cache.complete(
            b"", b"", b"", None, None, given.lives,
            Facets(cache.namespace, self.name, self.version, model=self._model, tags=given.tags), None, self._stage,
        )  # fmt: skip
        common.sources = None  # a vector is made of its text, whatever its pipeline was given
        begun = blake2b(cache.prefix(self.name, self.version), digest_size=KEY_BYTES)
        begun.update(canonical_items(values) + identity + owner)
        keys, fork = [], begun.copy
        for text in texts:
            hasher = fork()
            hasher.update(text.encode("utf-8", "surrogatepass"))  # the last part, so it needs no frame
            keys.append(hasher.digest())
        return Alike(common, keys)

    def _parted(self, texts: Sequence[str], places: list[int]) -> list[list[int]]:
        """Return places in their order, as many together as the bounds allow, and at least one."""
        most, heaviest = self._given.max_batch or len(places), self._given.max_tokens
        parts: list[list[int]] = []
        weight = 0
        for place in places:
            tokens = 0 if heaviest is None else self._tokens(texts[place])
            if not parts or len(parts[-1]) == most or (heaviest is not None and weight + tokens > heaviest):
                parts.append([])
                weight = 0
            parts[-1].append(place)
            weight += tokens
        return parts

    def _tokens(self, text: str) -> int:
        try:
            if self._given.count is not None:
                return int(self._given.count(text))
        except Exception as error:  # noqa: BLE001 - the user's own: its batches are then estimated
            self.cache.recorder.warn_once(f"{self.name}: count", f"count= of {self.name} failed: {error!r}")
        return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)

    def _load(self, texts: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], places: list[int]) -> Any:
        """Call the function with the texts at some places; their vectors as bytes, be they awaited first."""
        asked = [texts[place] for place in places]
        if args:
            args = (asked, *args[1:])
        else:
            kwargs = {**kwargs, self._texts: asked}
        told = self.function(*args, **kwargs)
        return self._awaited(told, len(asked)) if inspect.isawaitable(told) else self._rows(told, len(asked))

    async def _awaited(self, told: Awaitable[Any], count: int) -> list[bytes]:
        return self._rows(await told, count)

    def _rows(self, told: Any, count: int) -> list[bytes]:
        """Return the bytes of each of so many vectors. Raises TypeError for what is no float32[count, d]."""
        import numpy as np

        try:
            array = np.asarray(told)
        except Exception as error:
            raise TypeError(self._misshapen(type(told).__name__, count)) from error
        is_exact = isinstance(told, list | tuple) and array.dtype.kind in "iu"  # plain lists may say 1 for 1.0
        if array.ndim != 2 or len(array) != count or not array.shape[1] or not (array.dtype.kind == "f" or is_exact):  # noqa: PLR2004
            raise TypeError(self._misshapen(f"{array.dtype}{list(array.shape)}", count))
        with np.errstate(over="ignore"):  # as the function's own float32 would have it
            return [row.tobytes() for row in array.astype(DTYPES[self._given.dtype])]

    def _misshapen(self, returned: str, count: int) -> str:
        return (
            f"{self.name} is asked for the vectors of {count} texts, float32[{count}, d], in their order; it returned "
            f"{returned}: cached_embedding keeps nothing else"
        )

    def _gathered(self, rows: list[Any], *, is_alike: bool, is_one: bool) -> Outcome[Any]:
        """Make one array of the vectors of a call."""
        import numpy as np

        if not is_alike:
            return Outcome(
                error=TypeError(f"{self.name} returned vectors of different lengths for the texts of one call")
            )
        # A bytearray of our own makes the array writable.
        array = np.frombuffer(bytearray().join(rows), DTYPES[self._given.dtype]).reshape(len(rows), -1)
        array = array.astype(np.float32, copy=False)
        return Outcome(array[0] if is_one else array)

    def _bypass(self, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Plan[Outcome[Any]]:
        """Call the function as it was called, and record why it was."""
        event = bypass_event(self.cache, self.name, self._stage, "unkeyable")
        if isinstance(error, MisfitError):
            event.reason = "the arguments do not fit the function"
        else:
            event.fault("key", error)
            self.cache.recorder.warn_once(
                f"{self.name}: {getattr(error, 'where', '')}", f"{self.name} is not cached for this call: {error}"
            )
        outcome = yield from load(Origin(partial(self.function, *args, **kwargs)), None, event)
        return finish(self.cache.chain, event, outcome)

    def requests(self, *args: Any, **kwargs: Any) -> list[Request]:
        """Return what a call means to the cache."""
        told = self._told(args, kwargs)
        return list(self._requests([told] if isinstance(told, str) else told, args, kwargs))

    def invalidate(self, *args: Any, **kwargs: Any) -> int:
        """Invalidate the vectors of the texts of one call."""
        keys = dict.fromkeys(request.key for request in self.requests(*args, **kwargs))
        return sum(self.cache.invalidate(key=key) for key in keys)


def _bare(function: Any) -> Any:
    """Return a function without the partials around it."""
    while isinstance(function, partial):
        function = function.func
    return function


def _are_alike(rows: list[Any]) -> bool:
    """Say whether all that was found is vectors of one length."""
    return set(map(type, rows)) <= {bytes} and len(set(map(len, rows))) <= 1
