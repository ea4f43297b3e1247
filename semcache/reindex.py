"""Reindexing: the texts of a namespace that were embedded by another embedder, embedded by ours.

Laws:
- vectors of two embedders never meet (law 11): a row is given a new scope with its new vector, or stays as it is;
- it may be stopped at any moment and begun anew: what is done is not done again;
- a page of rows is all it holds, and a batch of texts all that a caller of this process may have to wait behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from semcache.errors import ConfigurationError, TierError
from semcache.keys import of_embedder
from semcache.log import Log
from semcache.marks import Row
from semcache.tier import Clock

if TYPE_CHECKING:
    from semcache.stores.moving import Foreign
    from semcache.tiers.disk import DiskTier
    from semcache.tiers.redis import RedisTier
    from semcache.tiers.semantic import SemanticTier

# As what is shown of it: what is being done, how much of it is done, and of how much (0: not known).
Progress = Callable[[str, int, int], None]
_PATIENCE_SECONDS = 300.0


@dataclass(slots=True)
class Reindexed:
    """What came of a reindexing: how many texts were found under other embedders' names, and what became of them.

    `embedded` have vectors of ours now, `uncovered` our embedder does not see whole, and `gone` were replaced or
    invalidated meanwhile. With a dry run they were only counted.
    """

    found: dict[str, int] = field(default_factory=dict)
    embedded: int = 0
    uncovered: int = 0
    gone: int = 0


class Reindexing:
    """The part of a Cache that moves its texts to another embedder; the rest of it gives it what it needs."""

    clock: Clock
    log: Log
    semantic: SemanticTier | None
    disk: DiskTier | None
    redis: RedisTier | None

    def reindex(
        self, *, dry_run: bool = False, rate: float | None = None, max_batch: int = 64,
        progress: Progress = lambda *_: None,
    ) -> Reindexed:  # fmt: skip
        """Embed the stored texts of the namespace that another embedder's vectors stand for; theirs are replaced.

        At most `max_batch` at once, and `rate` a second, where that is given; callers are answered meanwhile. What is
        done stays done, whatever stops it, and other processes take it over as it comes. Texts that were stored by
        processes without an embedder are not known. `progress` is told ("reindex", done, of how many). Raises
        ConfigurationError without an embedder or a store, TierError where the store or the embedder fails.
        """
        semantic, store = self.semantic, self.disk or self.redis
        if semantic is None or store is None:
            raise ConfigurationError(
                "reindex() embeds the texts of a store anew: give the cache the new embedder= and its disk= or redis="
            )
        if max_batch < 1 or (rate is not None and not rate > 0):
            raise ConfigurationError(f"max_batch and rate are over 0; got {max_batch!r}, {rate!r}")
        self.log.start()
        if not dry_run or not semantic.identity:
            semantic.batcher.warm().result()
        found: Counter[str] = Counter()
        for page in store.foreign(semantic.identity):
            found.update(row.embedder for row in page)
        told, of = Reindexed(dict(found)), sum(found.values())
        if dry_run:
            return told
        done = 0
        progress("reindex", done, of)
        for page in store.foreign(semantic.identity):
            for at in range(0, len(page), max_batch):
                rows = page[at : at + max_batch]
                began = self.clock.monotonic()
                self._reindex_batch(semantic, store, rows, told)
                done += len(rows)
                progress("reindex", done, max(done, of))
                left = 0.0 if rate is None else len(rows) / rate - (self.clock.monotonic() - began)
                if left > 0:
                    self.clock.sleep(left)
        return told

    async def areindex(
        self, *, dry_run: bool = False, rate: float | None = None, max_batch: int = 64,
        progress: Progress = lambda *_: None,
    ) -> Reindexed:  # fmt: skip
        """Reindex as `reindex` does, without blocking the loop; `progress` is told in another thread."""
        import asyncio

        return await asyncio.to_thread(self.reindex, dry_run=dry_run, rate=rate, max_batch=max_batch, progress=progress)

    def _reindex_batch(
        self, semantic: SemanticTier, store: DiskTier | RedisTier, rows: list[Foreign], told: Reindexed
    ) -> None:
        from semcache.stores.moving import Moved

        identity = semantic.identity
        futures = [semantic.batcher.embed(row.text) for row in rows]
        vectors = [_vector(future) for future in futures]
        if semantic.identity != identity:
            raise TierError("changed", "the embedder has another model than before: reindex again")
        moved = [
            Moved(row, of_embedder(of_embedder(row.scope, row.embedder), identity), identity, vector)
            for row, vector in zip(rows, vectors, strict=True)
            if vector is not None
        ]
        told.uncovered += len(rows) - len(moved)
        stood = store.replace_rows(moved) if moved else []
        told.embedded += sum(stood)
        told.gone += len(stood) - sum(stood)
        semantic.take(
            Row(one.row.key, one.scope, identity, one.row.text, one.vector, one.row.remaining)
            for one, was_there in zip(moved, stood, strict=True)
            if was_there
        )


def _vector(future: Future[Any]) -> Any:
    """Return a text's vector, None where it is not seen whole."""
    try:
        return future.result(_PATIENCE_SECONDS)
    except TierError as error:
        if error.reason != "uncovered":
            raise
        return None
