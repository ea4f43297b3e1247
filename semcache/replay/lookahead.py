"""The near tier's batcher for a replay: vectors made before, searches made ahead, everything else done at once.

A recording tells what will be asked, so the texts of the next few hundred requests are searched for in one matrix
product, which costs a fraction of a search for each. What has changed when a request's turn comes is then made good:
rows added since are compared one by one, rows removed or expired since are left out. Law: what is found is what a
search at that moment would find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from semcache.errors import TierError
from semcache.model import Neighbour, Request
from semcache.semantic.asking import Many
from semcache.semantic.batcher import Found

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from semcache.semantic.embedder import TextEmbedder
    from semcache.semantic.work import VectorIndex

AHEAD = 256
"""How many requests are best looked ahead at a time."""

_SPARE = 12
_FIRST_CHUNK = 64
_CHUNK_NS = 500_000_000


@dataclass(slots=True)
class Vectors:
    """The vectors of a recording's texts: `rows` says where in `matrix`, unit float32[n, d], a text's stands.

    `uncovered` says of the others why the embedder does not see them whole (law 12). `seconds` is what it all took.
    """

    matrix: NDArray[float32]
    rows: dict[str, int]
    uncovered: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def embed(embedder: TextEmbedder, texts: Iterable[str], done: Callable[[int, int], None]) -> Vectors:
    """Embed distinct texts, longest first, so that a batch pads little; `done` is told how many of how many."""
    import numpy as np

    began = perf_counter_ns()
    uncovered = {}
    covered = []
    for text in texts:
        reason = embedder.covers(text)
        if reason is None:
            covered.append(text)
        else:
            uncovered[text] = reason
    covered.sort(key=len, reverse=True)
    matrix = np.empty((len(covered), embedder.dimension or 0), dtype=np.float32)
    start, size = 0, _FIRST_CHUNK
    while start < len(covered):
        done(start, len(covered))
        chunk_began = perf_counter_ns()
        matrix[start : start + size] = embedder(covered[start : start + size])
        start += size
        if perf_counter_ns() - chunk_began < _CHUNK_NS:  # a faster device wants larger batches
            size *= 2
    done(len(covered), len(covered))
    rows = {text: row for row, text in enumerate(covered)}
    return Vectors(matrix, rows, uncovered, (perf_counter_ns() - began) / 1e9)


class LookAhead:
    """Stands where `semcache.semantic.batcher.Batcher` stands, in the caller's own thread; for one thread alone.

    The shares of embedding and looking ahead that fall to a search are told in what it finds, and summed in
    `ahead_ns`: they belong to its latency, but have passed before.
    """

    state = "ready"

    def __init__(self, index: VectorIndex, vectors: Vectors, now: Callable[[], float]) -> None:
        self.ahead_ns = 0
        self._index = index
        self._vectors = vectors
        self._now = now
        self._embed_share_ns = int(vectors.seconds * 1e9 / max(1, len(vectors.rows)))
        self._search_share_ns = 0
        self._expires: dict[bytes, float] = {}
        self._ahead: dict[tuple[bytes, str], tuple[list[Neighbour], bool]] = {}
        self._added: dict[bytes, dict[bytes, str]] = {}
        self._counts = dict.fromkeys(("searched_ahead", "searched_singly", "uncovered"), 0)

    def before_fork(self) -> None:
        """Nothing: it has no thread and no lock."""

    def after_fork_in_parent(self) -> None:
        """Nothing, as above."""

    def after_fork_in_child(self) -> None:
        """Nothing, as above."""

    def look_ahead(self, requests: Iterable[Request], k: int) -> None:
        """Search for what the next requests ask, some rows more than the `k` that they will want.

        A request whose key is indexed has an answer, most likely, and is left out.
        """
        began = perf_counter_ns()
        self._added.clear()
        self._ahead.clear()
        pairs: dict[tuple[bytes, str], None] = {}
        for request in requests:
            scope, text = request.scope, request.text
            if scope is not None and text in self._vectors.rows and request.key not in self._index:
                pairs[scope, text] = None
        self._index.sweep(self._now())
        if not pairs:
            return
        most = k + _SPARE
        rows = [self._vectors.rows[text] for _, text in pairs]
        found = self._index.search([scope for scope, _ in pairs], self._vectors.matrix[rows], most, self._now())
        for pair, neighbours in zip(pairs, found, strict=True):
            self._ahead[pair] = neighbours, len(neighbours) < most
        self._search_share_ns = (perf_counter_ns() - began) // len(pairs)

    def has_scope(self, scope: bytes) -> bool:
        return self._index.has_scope(scope)

    def start(self) -> None:
        """Nothing is to be started."""

    def search(self, scope: bytes, text: str, k: int, *, with_vectors: bool = False) -> Future[Found]:
        """Return what `Batcher.search` would, done already."""
        future: Future[Found] = Future()
        reason = self._vectors.uncovered.get(text)
        if reason is not None:
            self._counts["uncovered"] += 1
            future.set_exception(TierError("uncovered", reason))
            return future
        began = perf_counter_ns()
        vector = self._vectors.matrix[self._vectors.rows[text]]
        neighbours = self._found_ahead(scope, text, vector, k)
        share_ns = 0
        if neighbours is None:
            self._counts["searched_singly"] += 1
            neighbours = self._index.search([scope], vector[None], k, self._now())[0]
        else:
            self._counts["searched_ahead"] += 1
            share_ns = self._search_share_ns
        for near in neighbours if with_vectors else ():
            near.vector = self._kept([near.text])[0]
        self.ahead_ns += self._embed_share_ns + share_ns
        search_ns = perf_counter_ns() - began + share_ns
        future.set_result(Found(vector, neighbours, self._embed_share_ns, search_ns))
        return future

    def search_many(self, scopes: Sequence[bytes], texts: Sequence[str], k: int, *, with_vectors: bool = False) -> Many:
        """Return what `Batcher.search_many` would, done already."""
        future: Future[list[Found | Exception]] = Future()
        found: list[Found | Exception] = []
        for scope, text in zip(scopes, texts, strict=True):
            try:
                found.append(self.search(scope, text, k, with_vectors=with_vectors).result())
            except TierError as error:
                found.append(error)
        future.set_result(found)
        return Many([(list(range(len(texts))), future)])

    def _found_ahead(self, scope: bytes, text: str, vector: NDArray[float32], k: int) -> list[Neighbour] | None:
        """Return what was found ahead, made good; None where too much of it is gone by now."""
        ahead = self._ahead.get((scope, text))
        if ahead is None:
            return None
        neighbours, are_all = ahead
        added = self._added.get(scope, {})
        now = self._now()
        left = [
            near
            for near in neighbours
            if near.key not in added and near.key in self._index and self._expires[near.key] > now
        ]
        if len(left) < k and not are_all:
            return None
        alive = [key for key in added if key in self._index and self._expires[key] > now]
        if alive:
            similarities = (self._kept([added[key] for key in alive]) @ vector).clip(-1.0, 1.0).tolist()
            left += [Neighbour(key, near, added[key]) for key, near in zip(alive, similarities, strict=True)]
            left.sort(key=lambda near: -near.similarity)
        return left[:k]

    def _kept(self, texts: list[str]) -> NDArray[float32]:
        """Return the vectors of texts as the index keeps them, in half precision."""
        rows = [self._vectors.rows[text] for text in texts]
        return self._vectors.matrix[rows].astype("float16").astype("float32")

    def add(
        self, key: bytes, scope: bytes, text: str, vector: Any, expires: float,  # noqa: ARG002 - it is known here
        done: Callable[[bytes, Any], None] | None = None,
    ) -> None:  # fmt: skip
        """Add a row, as `Batcher.add` does."""
        row = self._vectors.rows.get(text)
        if row is None:
            return
        known = self._vectors.matrix[row]
        self._index.add(key, scope, known, text, expires)
        self._expires[key] = expires
        self._added.setdefault(scope, {})[key] = text
        if done is not None:
            done(key, known)

    def remove(self, keys: Sequence[bytes]) -> None:
        """Drop rows, as `Batcher.remove` does."""
        for key in keys:
            self._index.remove(key)

    def stats(self) -> dict[str, int]:
        return {
            "rows": len(self._index),
            "scopes": self._index.scopes,
            "bytes": self._index.nbytes,
            "evictions": self._index.evictions,
            **self._counts,
        }

    def flush(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - the batcher's
        """Nothing waits here."""
        return True

    def close(self) -> None:
        """Nothing is to be stopped."""
