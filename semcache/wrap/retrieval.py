"""`cached_retrieval`: a function from a query to documents, whose answers can be invalidated by the documents in them.

Laws: the corpus is part of key and scope, so that nothing is found in another one, or in an older version of it; the
documents of an answer become its facets when it is loaded, and an answer whose documents cannot be told, because what
tells them failed, is not kept; with `prefix_k` an answer serves a smaller k only as the first k of what was found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import index
from typing import Any, NamedTuple
from uuid import UUID

from semcache.cache import Cache
from semcache.codec import register
from semcache.context import names_of
from semcache.errors import ConfigurationError, UnkeyableError
from semcache.model import Tenant
from semcache.ttl import Duration, lives_of
from semcache.wrap.function import Decorator
from semcache.wrap.options import Options, options
from semcache.wrap.signature import unwrap
from semcache.wrap.wrapping import Wrapping, bind

IDS = ("id", "doc_id")


class Ranked(NamedTuple):
    """The documents found for a k: what stands in the store with `prefix_k`; None where k was no number from 1 on."""

    k: int | None
    documents: Any


def cached_retrieval(
    cache: Cache | None = None,
    /,
    *,
    corpus: str,
    query: str | Callable[..., Any] | None = "query",
    k: str = "k",
    tenant: Tenant | Callable[..., Any] | None = None,
    documents: str | Iterable[str] | Callable[[Any], Iterable[str]] = IDS,
    prefix_k: bool = False,
    ttl: Duration | Callable[[Any], Duration | None] | None = None,
    max_age: Duration | None = None,
    stale_while_revalidate: Duration = 0,
    stale_if_error: Duration = 0,
    tags: str | Iterable[str] = (),
    version: str | None = None,
    ignore: str | Iterable[str] = (),
    when: Callable[[Any], bool] | None = None,
    stage: str | None = None,
) -> Decorator:
    """Cache a function that finds documents for a query: `@cached_retrieval(cache, corpus="docs@v7")`.

    `corpus` names what is searched, with its version: another one is another answer. `query` names the argument that
    may match nearly, as `text` of `cached` (None: exact only); `tenant` is whose documents they are, as there: name
    the argument that holds the user, or the set of rights. `documents` says how an answer's documents are known, so
    that `cache.invalidate(document=)` drops it: the names of an attribute, key or metadata of each (the first that is
    there), or a callable that takes the answer and returns their ids; documents without one are warned of, once. With
    `prefix_k` an answer found for a larger `k` (the argument's name) serves a smaller: for retrievers whose k only
    cuts a ranking off. The rest is as in `cached`. Raises ConfigurationError.
    """
    if not isinstance(corpus, str) or not corpus:
        raise ConfigurationError(f'corpus= names what is searched, as in corpus="docs@v7"; got {corpus!r}')
    lives = lives_of(ttl, max_age, stale_while_revalidate, stale_if_error, sliding=False)
    checked = options(
        text=query, key=None, tenant=tenant, lives=lives, version=version, tags=tags, ignore=ignore, when=when,
        stage=stage, usage=None, documents=documents if callable(documents) else None,
    )  # fmt: skip
    names = () if callable(documents) else names_of(documents, "documents")
    return partial(_decorate, cache, checked, corpus, names, k if prefix_k else None)


def _decorate(
    cache: Cache | None, checked: Options, corpus: str, names: tuple[str, ...], k: str | None, function: Any
) -> Any:
    if isinstance(function, classmethod | staticmethod):
        return type(function)(_decorate(cache, checked, corpus, names, k, function.__func__))
    return bind(_Retrieval(cache, checked, corpus, names, k, function))


class _Retrieval(Wrapping):
    """One decorated function; `k` is the name of its argument with `prefix_k`, else None."""

    def __init__(
        self, cache: Cache | None, checked: Options, corpus: str, names: tuple[str, ...], k: str | None, function: Any
    ) -> None:
        inner, _ = unwrap(function)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            raise ConfigurationError("cached_retrieval takes a function that returns its documents, not a generator")
        self._names = names
        self._k = k
        checked = replace(checked, documents=checked.documents or self._ids, corpus=corpus)
        if k is not None:
            register(Ranked, "semcache.Ranked")
            if k not in inspect.signature(function).parameters:
                raise ConfigurationError(
                    f"prefix_k=True needs to know how many are asked for, and the function has no argument {k!r}: "
                    "name it, as in k='top_n'"
                )
            checked = self._ranking(checked, k)
        super().__init__(cache, checked, function)
        self._version += f":{corpus}" if k is None else f":{corpus}:ranked"
        if k is not None:
            self.loads = self._ranked(function)

    def _ranking(self, checked: Options, k: str) -> Options:
        """Leave k out of the key, and let what is told the documents be told them as the function returns them."""
        lives, when, documents = checked.lives, checked.when, checked.documents
        if lives is not None and lives.ttl_of is not None:
            lives = replace(lives, ttl_of=_of_documents(lives.ttl_of))
        return replace(
            checked, lives=lives, when=None if when is None else _of_documents(when),
            documents=None if documents is None else _of_documents(documents), suits=self._suits,
            ignore=checked.ignore | {k},
        )  # fmt: skip

    def _ids(self, found: Any) -> list[str]:
        """Return the ids of documents; where some have none, their owner is told."""
        items = list(found) if isinstance(found, list | tuple) else [None]
        ids = [_id_of(item, self._names) for item in items]
        if None in ids:
            self.call.cache.recorder.warn_once(
                f"{self.name}: documents",
                f"not every document that {self.name} found has an id ({', '.join(self._names)}, of itself or its "
                "metadata): its answers are kept, but invalidate(document=) does not find them; pass documents=, "
                "the name of what identifies one, or a callable that takes the answer and returns the ids",
            )
        return [one for one in ids if one is not None]

    def _ranked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make what a load calls: the function, with its k told beside what it found."""
        if inspect.iscoroutinefunction(self._inner):

            async def aranked(*args: Any, **kwargs: Any) -> Ranked:
                found = await function(*args, **kwargs)
                return Ranked(self._k_of(args, kwargs), found)

            return aranked

        def ranked(*args: Any, **kwargs: Any) -> Ranked:
            found = function(*args, **kwargs)
            return Ranked(self._k_of(args, kwargs), found)

        return ranked

    def _made(self) -> Callable[..., Any]:
        made = super()._made()
        if self._k is None:
            return made
        if inspect.iscoroutinefunction(self._inner):

            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                return _cut(await made(*args, **kwargs), self._k_of(args, kwargs))

            return awrapper

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return _cut(made(*args, **kwargs), self._k_of(args, kwargs))

        return wrapper

    def _k_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """Return a call's k; None where it is no whole number from 1 on."""
        told = self._signature.arguments(args, kwargs)[self._k or ""]
        try:
            k = index(told)
        except TypeError:
            return None
        return k if k > 0 and not isinstance(told, bool) else None

    def _suits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], bool]:
        k = self._k_of(args, kwargs)
        if k is None:
            raise UnkeyableError("with prefix_k=True it is a whole number from 1 on", f"argument {self._k!r}")
        return partial(_serves, k)


def _serves(k: int, stored: Any) -> bool:
    """Say whether what stands holds the first k; what was put by hand does, whatever its length."""
    if not isinstance(stored, Ranked) or stored.k == k:
        return True
    if stored.k is None or not isinstance(stored.documents, list | tuple):
        return False
    is_whole = len(stored.documents) < stored.k  # there were no more
    return stored.k > k or is_whole


def _cut(stored: Any, k: int | None) -> Any:
    """Return the first k of what was found; what was found for just this k as it is."""
    found, of = (stored.documents, stored.k) if isinstance(stored, Ranked) else (stored, 0)
    return found if k is None or k == of or not isinstance(found, list | tuple) else found[:k]


def _of_documents(told: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda stored: told(stored.documents if isinstance(stored, Ranked) else stored)


def _id_of(item: Any, names: tuple[str, ...]) -> str | None:
    """Return a document's id: the first of some names on itself, else in its metadata; of a (document, score) too."""
    if type(item) is tuple and item:
        item = item[0]
    for holder in (item, _part(item, "metadata")):
        for name in names:
            told = _part(holder, name)
            if isinstance(told, str | int | UUID) and told != "":
                return str(told)
    return None


def _part(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
