"""Teaching a score on the first part of what proves cuts, and on pairs that somebody has labelled.

Laws: what teaches never proves: a request teaches or proves by its time, and one whose text has taught proves nothing,
whenever it is asked; whether there is a score to be proved is told by how many labels there are, not by what they say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from semcache.errors import ConfigurationError
from semcache.policy.label import Label, Source
from semcache.policy.score import Score, fit
from semcache.policy.tuned import FLOOR
from semcache.replay.labels import Labels
from semcache.replay.lookahead import Vectors, embed
from semcache.replay.worlds import Near, Trace
from semcache.semantic.embedder import TextEmbedder
from semcache.tiers.semantic import CANDIDATES

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

FEWEST_LABELS = 400
"""With fewer labels that teach there is no score: it would cost the cosine half of its error for nothing."""

TEACHING = 0.5
"""How much of what proves cuts teaches, where a score is learned."""


class Pair(NamedTuple):
    """Two texts, and whether one answer does for both."""

    one: str
    two: str
    is_equal: bool


@dataclass(frozen=True, slots=True)
class Taught:
    """A score, the position at which proving begins, and which texts taught it; `labels` is from how many."""

    score: Score
    begin: int
    texts: frozenset[str]
    labels: int


def read_pairs(lines: Iterable[bytes | str]) -> list[Pair]:
    """Read labelled pairs, one JSON object a line: `a`, `b`, `equal`. Raises ConfigurationError."""
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            pair = Pair(told["a"], told["b"], told["equal"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigurationError(
                f'line {number} is no labelled pair, as {{"a": "...", "b": "...", "equal": true}}: '
                f"{type(error).__name__} {error}"
            ) from error
        if not (isinstance(pair.one, str) and isinstance(pair.two, str) and isinstance(pair.is_equal, bool)):
            raise ConfigurationError(f"line {number} is no labelled pair: a and b are texts, equal is true or false")
        pairs.append(pair)
    return pairs


def embed_pairs(
    pairs: Sequence[Pair], embedder: TextEmbedder, vectors: Vectors, done: Callable[[int, int], None]
) -> Mapping[str, NDArray[float32]]:
    """Return the vectors of a recording's texts and of those of pairs, by text."""
    known = {text: vectors.matrix[row] for text, row in vectors.rows.items()}
    more = list(dict.fromkeys(text for pair in pairs for text in pair[:2] if text not in known))
    if more:
        made = embed(embedder, more, done)
        known |= {text: made.matrix[row] for text, row in made.rows.items()}
    return known


def teach(
    trace: Trace, labels: Labels, calibrating: int, vectors: Mapping[str, NDArray[float32]], embedder: str,
    pairs: Sequence[Pair] = (), seed: int = 0,
) -> Taught | None:  # fmt: skip
    """Learn a score on the first part of the `calibrating` requests, and on pairs; None where labels are too few."""
    begin = int(calibrating * TEACHING)
    # Who pays for each comparison is asked about the nearest text alone.
    most = CANDIDATES if labels.comparator.judge is None else 1
    nears = [near for near in trace.earlier(most, begin) if labels.is_drawn(near.position) and labels.can_say(near)]
    given = [label for label in map(_given(vectors), pairs) if label is not None]
    if len(nears) < FEWEST_LABELS and given:  # then these alone teach, and all requests prove
        begin, nears = 0, []
    if len(nears) + len(given) < FEWEST_LABELS:
        return None
    labels.ask(nears)
    told = [_label(trace, labels, near) for near in nears] + given
    texts = {one.text for one in told} | {one.neighbour for one in told}
    texts.update(one.text for one in trace.asked[:begin])
    return Taught(fit(told, vectors, embedder=embedder, seed=seed), begin, frozenset(texts), len(told))


def _label(trace: Trace, labels: Labels, near: Near) -> Label:
    one, maker = trace.asked[near.position], trace.asked[near.maker]
    return Label(
        family=b"" if one.request is None else one.request.family,
        asked=b"" if one.request is None else one.request.key,
        stored=b"" if maker.request is None else maker.request.key,
        text=one.text, neighbour=maker.text, similarity=near.similarity, score=near.rating,
        is_right=not labels.is_wrong(near), source=Source.MISS,
    )  # fmt: skip


def _given(vectors: Mapping[str, NDArray[float32]]) -> Callable[[Pair], Label | None]:
    """Return what makes a label of a pair; there is none of texts that are too far from each other to be ranked."""

    def label(pair: Pair) -> Label | None:
        one, two = vectors.get(pair.one), vectors.get(pair.two)
        similarity = -1.0 if one is None or two is None else float(one @ two)
        if similarity < FLOOR:
            return None
        return Label(b"", b"", b"", pair.one, pair.two, similarity, similarity, pair.is_equal, Source.PAIR)

    return label
