"""Rows for benchmarks of large indexes: vectors of real texts, filled up with perturbations of them; and real queries.

Texts are those of a folder's recordings and labelled pairs (`../docs/traffic.md`), else the support desk's, two at a
time. 2,000 of them, drawn at random, are queries and no rows; of texts with the same vector one is a row. At most a
sixth of the rows are texts' own vectors, the others perturbations. All is drawn from fixed seeds, and rows stand in
random order.

A perturbation of a text's vector is c times it, and as much as makes it a unit vector again of what the difference of
two other texts' vectors has at a right angle to it; c, its cosine to the text, is drawn evenly from 0.80 to 0.97. So
rewordings lie: of 12,140 pairs of questions that are marked equal the middle half has a cosine of 0.83 to 0.95, and
their differences point where those of texts do, rather than anywhere (55% of their squares are in the first 100 of
384 principal components; of texts themselves 66%, of noise that is alike in all directions 26%).

Vectors of a recording are kept where `tune_streams.py` keeps them, rows and what is exact in `out/large-*` (1.5 GB of a
million); delete these to make them anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from run import OUT

QUERIES = 2000
COSINES = 0.80, 0.97
DIMENSION = 384
BLOCK = 20_000
_ROW_BYTES = 4 * DIMENSION
_READ_AT_ONCE = 4096
_VERSION = 1


def scopes_of(rows: int) -> tuple[int, int, int]:
    """Say in how many scopes so many rows are measured: in the last case ten rows are in each."""
    return 1, 100, rows // 10


def is_taken_out(row: Any, scopes: int) -> Any:
    """Say whether a row (or which rows) are among the tenth of each scope that is removed again."""
    return row // scopes % 10 == 3


class Rows:
    """The rows of a file, read into one small buffer, so that who measures memory holds none; row i is in scope i % n.

    `queries` is float32[2000, d], `best[n]` the largest similarity of query i to a row of scope i % n, and `kept[n]`
    the same of the rows that are not taken out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path.with_suffix(".npz")) as kept:
            self.source = kept["source"]
            self.queries = kept["queries"]
            self.best: dict[int, Any] = dict(zip(kept["scopes"].tolist(), kept["best"], strict=True))
            self.kept: dict[int, Any] = dict(zip(kept["scopes"].tolist(), kept["kept"], strict=True))
        self._texts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self._buffer = np.zeros((_READ_AT_ONCE, DIMENSION), np.float32)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield rows one by one, each with its vector, float32[d], which is overwritten some thousand rows later."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start * _ROW_BYTES)
            for first in range(start, stop, len(self._buffer)):
                file.readinto(self._buffer)
                yield from enumerate(self._buffer[: stop - first], first)

    def first(self, count: int) -> Any:
        return np.fromfile(self.path, np.float32, count * DIMENSION).reshape(count, DIMENSION)

    def vector(self, row: int) -> Any:
        return np.fromfile(self.path, np.float32, DIMENSION, offset=row * _ROW_BYTES)

    def text(self, row: int) -> str:
        """Return a new str in each call: what an index keeps of it is the index's alone."""
        return f"{self._texts[self.source[row]]} ({row})"

    @staticmethod
    def key(row: int) -> bytes:
        """Return 20 bytes that lie as a digest's do, and tell the row."""
        number = row.to_bytes(8, "big")
        return hashlib.blake2b(number, digest_size=12).digest() + number

    @staticmethod
    def row(key: bytes) -> int:
        return int.from_bytes(key[12:], "big")


def prepare(rows: int, folder: str | None) -> Path:
    """Make the rows, unless they are there, and return their file."""
    OUT.mkdir(exist_ok=True)
    sources = sorted(Path(folder).glob("*.jsonl")) if folder else []
    known = [_VERSION, rows, [[path.name, path.stat().st_size] for path in sources]]
    path = OUT / f"large-{rows}-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]}.f32"
    if path.with_suffix(".npz").exists():
        return path
    texts, vectors = _distinct(sources)
    assert len(texts) > QUERIES + 1000, f"{len(texts)} texts are too few"
    order = np.random.default_rng(0).permutation(len(texts))
    queries, originals = vectors[order[:QUERIES]], order[QUERIES:][: rows // 6]
    path.with_suffix(".json").write_text(json.dumps([texts[place] for place in originals]), encoding="utf-8")
    vectors = vectors[originals]
    source = np.resize(np.arange(len(originals), dtype=np.int32), rows)
    place = np.random.default_rng(1).permutation(rows)
    is_original = place < len(originals)
    source = source[place]
    _tell(f"{len(texts):,} texts, {QUERIES:,} of them queries; {is_original.sum():,} rows are texts' own")
    with path.open("wb") as file:
        for first in range(0, rows, BLOCK):
            here = slice(first, first + BLOCK)
            _perturbed(vectors, source[here], is_original[here], first).tofile(file)
    scopes = scopes_of(rows)
    best, kept = _exact(path, rows, queries, scopes)
    np.savez(path.with_suffix(".npz"), source=source, queries=queries, scopes=scopes, best=best, kept=kept)
    _tell("rows and what is exact are kept")
    return path


def _perturbed(vectors: Any, source: Any, is_original: Any, seed: int) -> Any:
    random = np.random.default_rng([2, seed])
    cosine = random.uniform(*COSINES, (len(source), 1)).astype(np.float32)
    one, other = random.integers(len(vectors), size=(2, len(source)))
    own = vectors[source]
    aside = vectors[one] - vectors[other]
    aside -= (aside * own).sum(axis=1, keepdims=True) * own
    length = np.linalg.norm(aside, axis=1, keepdims=True)
    cosine[is_original | (length[:, 0] < 1e-3)] = 1.0
    made = cosine * own + np.sqrt(1 - cosine**2) * aside / np.maximum(length, 1e-3)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def _exact(path: Path, rows: int, queries: Any, scopes: tuple[int, ...]) -> tuple[Any, Any]:
    """Return each query's largest similarity, by how many scopes there are: of all rows, and of those that stay."""
    best, kept = np.full((2, len(scopes), len(queries)), -1.0, np.float32)
    vectors = np.memmap(path, np.float32, "r", shape=(rows, DIMENSION))
    for first in range(0, rows, BLOCK):
        near = queries @ vectors[first : first + BLOCK].T
        numbers = np.arange(first, first + near.shape[1])
        for number, count in enumerate(scopes):
            stays = ~is_taken_out(numbers, count)
            for scope in range(min(count, len(queries))):
                asked = slice(scope, None, count)
                inside = slice((scope - first) % count, None, count)
                some = near[asked, inside]
                if some.shape[1]:
                    best[number, asked] = np.maximum(best[number, asked], some.max(axis=1))
                    kept[number, asked] = np.maximum(
                        kept[number, asked], some.max(axis=1, where=stays[inside], initial=-1.0)
                    )
    return best, kept


def _distinct(sources: list[Path]) -> tuple[list[str], Any]:
    """Return texts of which no two have the same vector, and the vectors."""
    from bench_replay import composed
    from tune_streams import Kept

    texts: list[str] = []
    parts = []
    for name, asked in [(path.stem, _texts(path)) for path in sources] or [("support", _asked(composed()))]:
        embedder = Kept(name)
        known = len(embedder._vectors)
        parts.append(_embedded(embedder, asked))
        if len(embedder._vectors) > known:
            embedder.keep()
        texts += asked
    vectors = np.concatenate(parts)
    _, first = np.unique((vectors * 127).round().astype(np.int8), axis=0, return_index=True)
    first.sort()
    return [texts[place] for place in first], vectors[first]


def _embedded(embedder: Any, texts: list[str]) -> Any:
    return np.concatenate([embedder(texts[at : at + 4096]) for at in range(0, len(texts), 4096)])


def _texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return _asked(lines)


def _asked(lines: Any) -> list[str]:
    """Return what recorded requests ask, or labelled pairs say, each once."""
    told: dict[str, None] = {}
    for line in map(json.loads, lines):
        if "request" not in line:
            told |= {line["a"]: None, line["b"]: None}
        elif "messages" in line["request"]:
            told[line["request"]["messages"][-1]["content"]] = None
        else:
            told[line["request"].get("query") or line["request"]["input"]] = None
    return [text for text in told if text]


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
