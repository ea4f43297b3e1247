"""A network of two layers, in NumPy: what it says of rows of numbers, and how it learns to.

Laws: pure; a seed makes the same network of the same rows on the same machine; it learns a *correction* to what is
known before (`offsets`, as log odds), and begins with one of nearly nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.random import Generator
    from numpy.typing import NDArray

EPOCHS = 12
"""How often it sees all rows at most; where it has seen enough by then is found on rows that do not teach."""

_HIDDEN = 32
# Of few rows smaller batches, or there would be too few steps to learn anything in.
_SMALLEST_BATCH, _LARGEST_BATCH, _BATCHES = 32, 256, 32
_STEP = 1e-3
_DECAY = 1e-2
_INPUTS_DROPPED, _HIDDEN_DROPPED = 0.2, 0.3
_WARM_STEPS = 50
_FIRST_MOMENT, _SECOND_MOMENT, _TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Network:
    """Says second . max(0, x first + bias) + level: of float32[n, h], float32[h], float32[h] and a number."""

    first: NDArray[float32]
    bias: NDArray[float32]
    second: NDArray[float32]
    level: float

    def says(self, rows: NDArray[float32]) -> NDArray[float32]:
        """Return what it says of each row of float32[m, n], as float32[m]."""
        import numpy as np

        hidden = rows @ self.first
        hidden += self.bias
        np.maximum(hidden, 0, out=hidden)
        said: NDArray[float32] = (hidden @ self.second + np.float32(self.level)).astype(np.float32)
        return said

    def scaled(self, centre: NDArray[float32], scale: NDArray[float32]) -> Network:
        """Return the one that says of plain rows what this one says of (rows - centre) * scale."""
        first = self.first * scale[:, None]
        return Network(first, self.bias - centre @ first, self.second, self.level)


def together(networks: Sequence[Network]) -> Network:
    """Return the network that says the mean of what these say."""
    import numpy as np

    share = np.float32(1 / len(networks))
    return Network(
        np.hstack([one.first for one in networks]),
        np.concatenate([one.bias for one in networks]),
        np.concatenate([one.second for one in networks]) * share,
        sum(one.level for one in networks) / len(networks),
    )


def learn(
    rows: NDArray[float32], right: NDArray[float32], offsets: NDArray[float32], *, seed: int, epochs: int = EPOCHS,
    teach: NDArray[int64] | None = None, watch: NDArray[int64] | None = None,
) -> tuple[Network, list[NDArray[float32]]]:  # fmt: skip
    """Teach a network the rows numbered `teach` (None: all); `right` is 1 or 0 for each.

    Also returned is what it said of the rows `watch` after each epoch. Stopping after some of the EPOCHS is the same as
    having asked for so many.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    taught = np.arange(len(rows)) if teach is None else teach
    size = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, len(taught) // _BATCHES))
    teacher = _Teacher(rows.shape[1], random, EPOCHS * -(-len(taught) // size))
    said: list[NDArray[float32]] = []
    for _ in range(epochs):
        order = random.permutation(taught)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            teacher.step(rows[batch], right[batch], offsets[batch])
        if watch is not None:
            said.append(teacher.network().says(rows[watch]))
    return teacher.network(), said


class _Teacher:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019) and dropout, its steps along half a cosine."""

    def __init__(self, inputs: int, random: Generator, steps: int) -> None:
        import numpy as np

        self._random = random
        self._steps = max(1, steps)
        self._done = 0
        self._weights = [
            random.standard_normal((inputs, _HIDDEN), dtype=np.float32) * np.float32((2 / inputs) ** 0.5),
            np.zeros(_HIDDEN, np.float32),
            random.standard_normal(_HIDDEN, dtype=np.float32) * np.float32(0.1 / _HIDDEN**0.5),
            np.zeros(1, np.float32),
        ]
        self._moments = [(np.zeros_like(one), np.zeros_like(one)) for one in self._weights]

    def network(self) -> Network:
        first, bias, second, level = (one.copy() for one in self._weights)
        return Network(first, bias, second, float(level[0]))

    def step(self, rows: NDArray[float32], right: NDArray[float32], offsets: NDArray[float32]) -> None:
        import numpy as np

        first, bias, second, level = self._weights
        rows = rows * self._kept(rows.shape, _INPUTS_DROPPED)
        before = rows @ first + bias
        kept = self._kept(before.shape, _HIDDEN_DROPPED) * (before > 0)
        hidden = before * kept
        odds = hidden @ second + level[0] + offsets
        error = ((sigmoid(odds) - right) / np.float32(len(rows))).astype(np.float32)
        back = np.outer(error, second) * kept
        self._move([rows.T @ back, back.sum(0), error @ hidden, error.sum(keepdims=True)])

    def _kept(self, shape: tuple[int, ...], dropped: float) -> NDArray[float32]:
        import numpy as np

        # A byte for each says it as well as a number would, and costs a quarter of it.
        limit = round(256 * dropped)
        kept: NDArray[bool_] = np.frombuffer(self._random.bytes(prod(shape)), np.uint8).reshape(shape) >= limit
        return kept * np.float32(256 / (256 - limit))

    def _move(self, slopes: Sequence[NDArray[float32]]) -> None:
        import numpy as np

        self._done += 1
        step = _STEP * min(1.0, self._done / _WARM_STEPS) * (0.5 + 0.5 * np.cos(np.pi * self._done / self._steps))
        self._weights[0] *= np.float32(1 - step * _DECAY)
        for weight, slope, moments in zip(self._weights, slopes, self._moments, strict=True):
            moments[0][:] += np.float32(1 - _FIRST_MOMENT) * (slope - moments[0])
            moments[1][:] += np.float32(1 - _SECOND_MOMENT) * (slope * slope - moments[1])
            along = moments[0] / np.float32(1 - _FIRST_MOMENT**self._done)
            spread = np.sqrt(moments[1] / np.float32(1 - _SECOND_MOMENT**self._done)) + np.float32(_TINY)
            weight[:] -= np.float32(step) * (along / spread)


def sigmoid(odds: NDArray[float32]) -> NDArray[float32]:
    """Return the chance that log odds mean."""
    import numpy as np

    chance: NDArray[float32] = (1 / (1 + np.exp(-np.maximum(odds, -30)))).astype(np.float32)
    return chance
