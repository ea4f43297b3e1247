"""Pipelines and stages: answers that are made of each other, and where their time goes.

Inside a pipeline every answer that has documents, found or loaded, gives them to it; what is kept from then on
inherits them (`inherit.py`), so that what invalidates a document takes the answers made of it too. A pipeline is a
trace as well: its stages tell their times to it. Both hold for this thread or task and the tasks it starts, as every
context does.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import Token
from dataclasses import replace
from time import perf_counter_ns
from types import TracebackType
from typing import Self

from semcache.context import Options, current, named_stage, names_of
from semcache.errors import ConfigurationError
from semcache.sources import Sources
from semcache.stages import Span
from semcache.trace import Trace, traces

# What a pipeline remembers for its table and findings; its documents are bounded for themselves.
MOST_LOOKUPS = 10_000


class Pipeline(Trace):
    """One run of a pipeline: a trace, with the documents of the answers in it."""

    def __init__(self, name: str) -> None:
        super().__init__(MOST_LOOKUPS)
        self.name = name
        self._sources = Sources()
        self._tokens: tuple[Token[Options | None], Token[tuple[Trace, ...]]] | None = None

    @property
    def documents(self) -> tuple[str, ...]:
        """The documents of the answers that were found or loaded so far, in the order in which they came."""
        return self._sources.names()

    def __enter__(self) -> Self:
        if self._tokens is not None:
            raise ConfigurationError(f"pipeline {self.name!r} is under way: make one for each run")
        outer = current.get() or Options()
        if outer.sources is not None:  # made inside, so made of what the outer one has, and handed on to it
            self._sources = outer.sources
        self._tokens = current.set(replace(outer, sources=self._sources)), traces.set((*traces.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tokens is not None:
            options, traced = self._tokens
            self._tokens = None
            traces.reset(traced)
            current.reset(options)

    def __str__(self) -> str:
        return f"{self.name}\n{self.table()}"


class Stage:
    """A stage under way; made by `stage`."""

    def __init__(self, name: str, needs: tuple[str, ...] | None) -> None:
        self.name = name
        self.needs = needs
        self._began = 0
        self._token: Token[Options | None] | None = None

    def __enter__(self) -> Self:
        if self._token is not None:
            raise ConfigurationError(f"stage {self.name!r} is under way: make one for each run")
        self._token = current.set(replace(current.get() or Options(), stage=self.name))
        self._began = perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        span = Span(self.name, self.needs, self._began, perf_counter_ns())
        for collected in traces.get():
            collected.time(span)
        if self._token is not None:
            token, self._token = self._token, None
            current.reset(token)


def pipeline(name: str) -> Pipeline:
    """Let answers inherit the documents of those before them, inside a `with semcache.pipeline("support")`.

    Open it around whatever is to be dropped with a document, also around a cached function that does it all. Its
    `stages`, `table()` and `findings` tell where the time went. Raises ConfigurationError.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f'a pipeline has a name, as in semcache.pipeline("support"); got {name!r}')
    return Pipeline(name)


def stage(name: str, needs: str | Iterable[str] | None = None) -> Stage:
    """Name a stage of the work: `with semcache.stage("generate", needs=["retrieve"])`.

    Cost and time of the cached calls inside are booked on it, as with `context(stage=)`, and its wall-clock time is
    told to the traces and pipelines around it. `needs` names the stages whose results it uses; () says that it uses
    none, None says nothing, and nothing is then concluded. Raises ConfigurationError.
    """
    if named_stage(name) is None:
        raise ConfigurationError(f'a stage has a name, as in semcache.stage("retrieve"); got {name!r}')
    return Stage(name, None if needs is None else names_of(needs, "needs"))
