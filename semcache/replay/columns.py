"""Replays a trace at many cuts side by side: a column of an array for each, a row for each text.

At most requests nearly all cuts do the same, so what is asked of one is asked of all at once: a request costs some
operations on arrays, not a walk for each cut. Law: a column is what a replay of its cut alone would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from semcache.tiers.semantic import CANDIDATES, NEIGHBOURS

if TYPE_CHECKING:
    from numpy import bool_, float64, int64
    from numpy.typing import NDArray

    from semcache.replay.worlds import Rows, Trace

NO_CUT = inf
# Of a request's neighbours so many are looked at first: what is served is mostly among them.
_FIRST_LOOKED_AT = 64
_TOLD_EVERY = 512


class Near(NamedTuple):
    """A near match: the request at `position` is given the answer that the request at `maker` loaded.

    `rating` is what is compared with a cut: the similarity, or what a learned score says.
    """

    position: int
    maker: int
    similarity: float
    rating: float


@dataclass(slots=True)
class World:
    """What was answered at one cut: near matches in order, and the positions of exact hits."""

    near: list[Near] = field(default_factory=list)
    exact: list[int] = field(default_factory=list)


class Columns:
    """The columns of a replay; where one `stores_all`, what is answered nearly is loaded and stored too."""

    def __init__(self, trace: Trace, cuts: Sequence[float], stores_all: Sequence[bool]) -> None:
        import numpy as np

        self._trace = trace
        self._cuts = np.array(cuts, dtype=np.float64)
        self._stores_all = np.array(stores_all, dtype=np.bool_)
        # Who loaded the answer that stands under a row, by column; -1, whose time is long ago: nobody.
        self._makers = np.full((trace.rows, len(cuts)), -1, dtype=np.int32)
        self._times = np.array([*(one.ts for one in trace.asked), -inf], dtype=np.float64)
        self._is_stored = np.zeros(trace.rows, dtype=np.bool_)
        self._wanted = CANDIDATES if trace.is_scored else NEIGHBOURS

    def replay(self, done: Callable[[int, int], None] | None = None) -> list[World]:
        """Replay all columns; `done` is told how many requests of how many."""
        import numpy as np

        asked = self._trace.asked
        worlds = [World() for _ in self._cuts]
        exact = np.zeros((len(asked), len(worlds)), dtype=np.bool_)
        for position, (one, row) in enumerate(zip(asked, self._trace.row_of, strict=True)):
            if done is not None and position % _TOLD_EVERY == 0:
                done(position, len(asked))
            if row < 0:
                continue
            is_exact = one.ts - self._times[self._makers[row]] < self._trace.exact_seconds
            exact[position] = is_exact
            if is_exact.all():
                continue
            loads = ~is_exact
            for column, near in self._near(row, position, np.flatnonzero(loads)):
                worlds[column].near.append(near)
                loads[column] = self._stores_all[column]
            self._makers[row, loads] = position
            self._is_stored[row] |= loads.any()
        for column, world in enumerate(worlds):
            world.exact = np.flatnonzero(exact[:, column]).tolist()
        return worlds

    def _near(self, row: int, position: int, columns: NDArray[int64]) -> list[tuple[int, Near]]:
        """Return what is served nearly, in those of these columns that serve something."""
        found = self._trace.near(row)
        if found is None or not len(found.rows):
            return []
        places, alive, is_enough = self._stored(found, position, columns)
        if not is_enough and not found.are_all:  # so many, and none of them stored: look at all of its scope
            found = self._trace.all_near(row)
            places, alive, _ = self._stored(found, position, columns)
        if not alive.any():
            return []
        return self._served(row, position, found, places, alive, columns)

    def _stored(
        self, found: Rows, position: int, columns: NDArray[int64]
    ) -> tuple[NDArray[int64], NDArray[bool_], bool]:
        """Return the places of rows that some column has stored, which has which that it may serve; whether in all.

        The nearest of them suffice, as many as the tier would ask for.
        """
        import numpy as np

        lowest = self._cuts[columns].min()
        # A score may be high where the similarity is low; without one, those below the lowest cut are of no use.
        is_seen = self._is_stored[found.rows]
        if not self._trace.is_scored:
            is_seen &= found.similarities >= lowest
        places = np.flatnonzero(is_seen)
        now = self._times[position]
        alive: Any = np.zeros((0, len(columns)), dtype=np.bool_)
        for most in (_FIRST_LOOKED_AT, len(places)):
            near = self._makers[found.rows[places[:most]][:, None], columns]
            alive = now - self._times[near] < self._trace.near_seconds
            nth = alive.cumsum(axis=0)
            alive &= nth <= self._wanted
            is_enough = bool(len(nth)) and bool((nth[-1] >= self._wanted).all())
            if is_enough or most >= len(places):
                break
        places = places[: len(alive)]
        if not self._trace.is_scored and found.similarities[-1] < lowest:
            is_enough = True
        return places, alive, is_enough

    def _served(
        self, row: int, position: int, found: Rows, places: NDArray[int64], alive: NDArray[bool_],
        columns: NDArray[int64],
    ) -> list[tuple[int, Near]]:  # fmt: skip
        """Let each column take the best of what it has, at its cut or more and not refused."""
        import numpy as np

        some = np.flatnonzero(alive.any(axis=1))
        places, alive = places[some], alive[some]
        ratings = self._trace.rated(row, found, places)[places]
        left: NDArray[float64] = np.where(alive, ratings[:, None], -inf)
        open_ = np.arange(len(columns))
        served: list[tuple[int, Near]] = []
        while len(open_):
            best = left[:, open_].argmax(axis=0)
            is_near = left[best, open_] >= self._cuts[columns[open_]]
            open_, best = open_[is_near], best[is_near]
            refused = []
            for place in np.unique(best).tolist():
                near = int(found.rows[places[place]])
                if self._trace.is_refused(row, near):
                    left[place] = -inf
                    refused.append(place)
                    continue
                taken = columns[open_[best == place]]
                makers = self._makers[near, taken].tolist()
                similarity, rating = float(found.similarities[places[place]]), float(ratings[place])
                told = {maker: Near(position, maker, similarity, rating) for maker in set(makers)}
                served += [(column, told[maker]) for column, maker in zip(taken.tolist(), makers, strict=True)]
            open_ = open_[np.isin(best, refused)]
        return served
