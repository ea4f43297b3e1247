"""A score of near matches that is learned from labels: the chance that a neighbour's answer is right, 0 to 1.

It is the cosine's own log odds and, as far as the labels bear it out, a correction by a small network over the pair:
product, difference and sum of the two vectors, their cosine, and what `features` tells of the texts. Laws:
- of the pair alone, and symmetric: whoever asks first, and whatever else is stored, a pair has one score;
- a correction is believed only as far as it surely helped, where cuts lie, on pairs that share no text with those that
  taught it, and less where labels are few; where it did not, the score is the cosine's, which ranks as the cosine does;
- the same labels and seed make the same score; it holds no text, only numbers, and words' hashes;
- it is stored as safetensors, whole or refused, with the embedder whose vectors it knows (law 11).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from zlib import crc32

from semcache.errors import ConfigurationError
from semcache.model import Neighbour
from semcache.policy.features import APART, BUCKETS, NAMES, Read, apart, compare, rarities, read, reader
from semcache.policy.label import Label
from semcache.policy.network import Network, learn, sigmoid, together

if TYPE_CHECKING:
    from numpy import float32, float64
    from numpy.typing import NDArray

VERSION = 1

_MOST_PAIRS = 30_000
_FOLDS = 3
_MEMBERS = 2
_LEAST = 30
_SHRINKING = 100
_WEIGHTS = tuple(step / 10 for step in range(1, 11))
_SURE = 2.0
# How much more a loss minds what is wrong with high chances, where cuts lie, than the log loss does.
_HIGH = 4
_FLATTEST = 1e-3
_RIDGE = 1e-3
_NEWTON = 25
_NAMES = ("first", "bias", "second", "level", "rarity")


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A learned score of pairs of texts, of vectors of `embedder`, float32[dimension].

    `base` is the log odds of the cosine, a level and a slope; `correction` is added to them, None where none is
    believed; `rarity` is how rare words are, by bucket; `labels` is how many pairs taught it. `fit` makes one.
    """

    embedder: str
    dimension: int
    base: tuple[float, float]
    labels: int
    correction: Network | None = None
    rarity: tuple[float, ...] = ()

    def rate(
        self, text: str, vector: NDArray[float32], texts: Sequence[str], vectors: NDArray[float32],
        similarities: Sequence[float], read: Callable[[str], Read] = read,
    ) -> list[float]:  # fmt: skip
        """Return the scores of a text beside others, with their unit vectors, float32[n, d], and their cosines.

        `read` remembers the latest texts, or, made by `features.reader`, all of them.
        """
        import numpy as np

        cosines = np.asarray(similarities, dtype=np.float32)
        odds = self.base[0] + self.base[1] * cosines
        if self.correction is not None and len(texts):
            asked = read(text)
            pairs = [(asked, read(other)) for other in texts]
            odds = odds + self.correction.says(_rows(vector[None], vectors, cosines, pairs, self.rarity))
        scores: list[float] = sigmoid(odds).tolist()
        return scores

    def rank(self, text: str, vector: Any, neighbours: Sequence[Neighbour], floor: float = -1.0) -> list[Neighbour]:
        """Score all neighbours that are at least so similar, and have a vector; return them best first, then the rest.

        Of equal scores the nearer one comes first.
        """
        import numpy as np

        rated = [one for one in neighbours if one.vector is not None and one.similarity >= floor]
        if rated:
            scores = self.rate(
                text, vector, [one.text for one in rated], np.stack([one.vector for one in rated]),
                [one.similarity for one in rated],
            )  # fmt: skip
            for one, score in zip(rated, scores, strict=True):
                one.score = score
            rated.sort(key=lambda one: -(one.score or 0.0))
        return rated + [one for one in neighbours if one.vector is None or one.similarity < floor]

    def dump(self) -> bytes:
        """Return it as safetensors. Raises ConfigurationError where that package is not installed."""
        import numpy as np

        arrays = {}
        if self.correction is not None:
            known = self.correction
            level = np.array([known.level], np.float32)
            made = known.first.astype(np.float16), known.bias, known.second, level, np.array(self.rarity, np.float32)
            arrays = {name: np.ascontiguousarray(array) for name, array in zip(_NAMES, made, strict=True)}
        told = {"version": VERSION, "embedder": self.embedder, "dimension": self.dimension, "base": self.base}
        # One entry: of several, safetensors keeps no order, and the same score would not be the same bytes.
        metadata = {"semcache_score": json.dumps({**told, "labels": self.labels})}
        data: bytes = _safetensors().save(arrays, metadata)
        return data

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read what `dump` wrote. Raises ValueError for anything else, ConfigurationError as `dump`."""
        told, arrays = _read(data)
        if told.get("version") != VERSION:
            raise ValueError(f"it is of version {told.get('version')!r}, not {VERSION}")
        level, slope = map(float, told["base"])
        embedder, dimension, labels = str(told["embedder"]), int(told["dimension"]), int(told["labels"])
        if not arrays:
            return cls(embedder, dimension, (level, slope), labels)
        if set(arrays) != set(_NAMES):
            raise ValueError(f"it holds {sorted(arrays)}, not {sorted(_NAMES)}")
        first, bias, second, last, rarity = (arrays[name].astype("float32") for name in _NAMES)
        inputs, hidden = 3 * dimension + 1 + len(NAMES) + APART, len(bias)
        shapes = [one.shape for one in (first, bias, second, last, rarity)]
        if shapes != [(inputs, hidden), (hidden,), (hidden,), (1,), (BUCKETS,)]:
            raise ValueError(f"its arrays have shapes {shapes}")
        if not all(bool((abs(one) < float("inf")).all()) for one in (first, bias, second, last, rarity)):
            raise ValueError("it holds what is no number")
        network = Network(first, bias, second, float(last[0]))
        return cls(embedder, dimension, (level, slope), labels, network, tuple(rarity.tolist()))


def fit(labels: Sequence[Label], vectors: Mapping[str, NDArray[float32]], *, embedder: str, seed: int = 0) -> Score:
    """Learn a score from labels, whatever their source, of texts of which `vectors` has the embedder's unit vectors.

    A pair of texts counts once, and as right only where all its labels say so; texts without a vector are left out.
    With few labels, or where no correction helps, the score ranks as the cosine does.
    """
    import numpy as np

    pairs = _pairs(labels, vectors)
    random = np.random.default_rng(seed)
    if len(pairs) > _MOST_PAIRS:
        pairs = [pairs[place] for place in np.sort(random.permutation(len(pairs))[:_MOST_PAIRS]).tolist()]
    dimension = len(next(iter(vectors.values()))) if vectors else 0
    right = np.array([one.is_right for one in pairs], dtype=np.float32)
    cosines = np.array([one.similarity for one in pairs], dtype=np.float32)
    base = _odds(cosines, right)
    score = Score(embedder, dimension, base, len(pairs))
    rarer = int(min(right.sum(), len(right) - right.sum())) if pairs else 0
    if rarer < _LEAST:
        return score
    known = reader()
    texts = sorted({text for pair in pairs for text in pair[:2]})
    rarity = tuple(np.array(rarities(map(known, texts)), np.float32).tolist())
    rows = _rows(np.stack([vectors[one.text] for one in pairs]), np.stack([vectors[one.other] for one in pairs]),
                 cosines, [(known(one.text), known(one.other)) for one in pairs], rarity)  # fmt: skip
    return _corrected(replace(score, rarity=rarity), pairs, rows, right, rarer, seed)


class _Pair(NamedTuple):
    text: str
    other: str
    similarity: float
    is_right: bool


def _pairs(labels: Sequence[Label], vectors: Mapping[str, Any]) -> list[_Pair]:
    """Return the distinct pairs, in the order in which they were first told."""
    known: dict[tuple[str, str], tuple[float, bool]] = {}
    for label in labels:
        one, two = sorted((label.text, label.neighbour))
        if one != two and one in vectors and two in vectors:
            before = known.get((one, two), (0.0, True))[1]
            known[one, two] = label.similarity, before and label.is_right is True
    return [_Pair(*texts, *told) for texts, told in known.items()]


def _corrected(
    score: Score, pairs: list[_Pair], rows: NDArray[float32], right: NDArray[float32], rarer: int, seed: int
) -> Score:
    """Add the correction that the labels bear out; `rows`, which are of the pairs, are overwritten."""
    import numpy as np

    offsets = (score.base[0] + score.base[1] * rows[:, 3 * score.dimension]).astype(np.float32)
    # Each number as far from its mean as it usually is; of the vectors' parts a common scale keeps their proportions,
    # and the words apart are there or are not.
    numbers = slice(3 * score.dimension, rows.shape[1] - APART)
    centre, scale = np.zeros(rows.shape[1], np.float32), np.ones(rows.shape[1], np.float32)
    scale[: score.dimension], scale[score.dimension : 3 * score.dimension] = score.dimension, score.dimension**0.5
    centre[numbers] = rows[:, numbers].mean(0)
    scale[numbers] = 1 / (rows[:, numbers].std(0) + np.float32(0.01))
    rows -= centre
    rows *= scale
    folds = np.array([[crc32(f"{seed} {text}".encode("utf-8", "surrogatepass")) % _FOLDS for text in one[:2]]
                      for one in pairs])  # fmt: skip
    watched, said = [], []
    for fold in range(_FOLDS):
        teach, watch = np.flatnonzero((folds != fold).all(1)), np.flatnonzero((folds == fold).all(1))
        if len(teach) and len(watch):
            watched.append(watch)
            said.append(learn(rows, right, offsets, seed=seed + fold, teach=teach, watch=watch)[1])
    if not watched:
        return replace(score, rarity=())
    held = np.concatenate(watched)
    found = _believed([np.concatenate(epoch) for epoch in zip(*said, strict=True)], offsets[held], right[held])
    if found is None:
        return replace(score, rarity=())
    epochs, weight, corrections = found
    weight *= rarer / (rarer + _SHRINKING)
    level, slope = _odds(offsets[held] + np.float32(weight) * corrections, right[held])
    members = [learn(rows, right, offsets, seed=seed + member, epochs=epochs)[0] for member in range(_MEMBERS)]
    network = together(members).scaled(centre, scale)
    factor = np.float32(slope * weight)
    return replace(
        score,
        base=(level + slope * score.base[0], slope * score.base[1]),
        # As it is stored, so that what was proved is what is read.
        correction=Network(
            network.first.astype(np.float16).astype(np.float32), network.bias, network.second * factor,
            float(factor * np.float32(network.level)),
        ),
    )  # fmt: skip


def _believed(
    said: list[NDArray[float32]], offsets: NDArray[float32], right: NDArray[float32]
) -> tuple[int, float, NDArray[float32]] | None:
    """Return after how many epochs a correction helps most for sure on pairs that taught nothing, and how much of it.

    That is the help less twice its standard error; None where nothing is left.
    """
    import numpy as np

    before = _losses(offsets, right)
    found, most = None, 0.0
    for number, epoch in enumerate(said, 1):
        for weight in _WEIGHTS:
            help_ = before - _losses(offsets + np.float32(weight) * epoch, right)
            sure = float(help_.mean() - _SURE * help_.std() / len(help_) ** 0.5)
            if sure > most:
                found, most = (number, weight, epoch), sure
    return found


def _losses(odds: NDArray[float32], right: NDArray[float32]) -> NDArray[float64]:
    """Return a proper loss of each pair: what cuts cost, each weighed by cut ** _HIGH; by 1 in the log loss.

    The log loss is mostly of pairs that nobody would serve.
    """
    import numpy as np

    odds = odds.astype(float)
    chance = np.exp(-np.logaddexp(0, -odds))
    wrong = np.logaddexp(0, odds) - sum(chance**power / power for power in range(1, _HIGH + 1))
    losses: NDArray[float64] = np.where(right > 0, (1 - chance**_HIGH) / _HIGH, wrong)
    return losses


def _odds(numbers: NDArray[float32], right: NDArray[float32]) -> tuple[float, float]:
    """Return level and slope of the log odds of being right by a number, which never fall as it grows."""
    import numpy as np

    if not len(numbers):
        return 0.0, 1.0
    centre, spread = float(numbers.mean()), float(numbers.std()) + 1e-6
    columns: NDArray[float64] = np.stack([np.ones(len(numbers)), (numbers - centre) / spread], axis=1).astype(float)
    found = np.zeros(2)
    for _ in range(_NEWTON):
        chance = 1 / (1 + np.exp(-np.clip(columns @ found, -30, 30)))
        curve = (columns * (chance * (1 - chance))[:, None]).T @ columns
        ridge = _RIDGE * len(numbers) * np.eye(2) / 100 + _RIDGE * np.eye(2)
        found -= np.linalg.solve(curve + ridge, columns.T @ (chance - right) + ridge @ found)
    slope = max(float(found[1]), _FLATTEST) / spread
    return float(found[0]) - slope * centre, slope


def _rows(
    one: NDArray[float32], two: NDArray[float32], cosines: NDArray[float32], read: Sequence[tuple[Read, Read]],
    rarity: Sequence[float],
) -> NDArray[float32]:  # fmt: skip
    """Return what a network is given of pairs, one row each; the same whichever of a pair comes first."""
    import numpy as np

    dimension = two.shape[1]
    told = 3 * dimension + 1
    rows = np.zeros((len(two), told + len(NAMES) + APART), np.float32)
    products, differences, sums = (rows[:, start * dimension : (start + 1) * dimension] for start in range(3))
    np.multiply(one, two, out=products)
    np.abs(np.subtract(one, two, out=differences), out=differences)
    np.add(one, two, out=sums)
    rows[:, told - 1] = cosines
    rows[:, told : told + len(NAMES)] = [compare(*pair, rarity) for pair in read]
    rows.put([at for row, pair in enumerate(read, 1) for at in apart(*pair, row * rows.shape[1] - APART)], 1)
    return rows


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ConfigurationError(
            'a learned score is kept as safetensors, which is not installed: pip install "tiered-semcache[semantic]"'
        ) from error
    return safetensors.numpy


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata and the arrays. Raises ValueError."""
    load = _safetensors().load
    from safetensors import SafetensorError

    try:
        arrays: dict[str, Any] = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        told = json.loads(header["__metadata__"]["semcache_score"])
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no score ({type(error).__name__}: {error})") from error
    if not isinstance(told, dict):
        raise ValueError("it is no score")  # noqa: TRY004 - bytes of a file, not an argument
    return told, arrays
