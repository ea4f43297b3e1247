"""What a cache would have served at each cut: one search for all neighbours, then a replay of the trace for each cut.

A cut decides what is loaded and so what is there to be found: with a query answered nearly, its text is not stored. So
no two cuts see the same neighbours. The search does not depend on the cut: all rows of a scope that are near enough for
the lowest cut are found once, nearest first, in blocks of one matrix product. A replay then walks down that list to the
first row that its own world has stored and not let expire, which costs no product. A learned score ranks the nearest of
those that are stored; each pair is scored once, whatever the number of cuts, when a world first meets it.

Laws: a world finds what `semcache replay --policy threshold:CUT` serves, where jitter is 0 and nothing is evicted
(tests/replay/test_worlds.py holds the two side by side); only rows of one scope meet (law 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from semcache.policy.features import reader
from semcache.policy.score import Score
from semcache.replay.lookahead import Vectors
from semcache.replay.recording import Asked
from semcache.tiers.semantic import CANDIDATES, NEIGHBOURS

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

NO_CUT = inf
_BLOCK_ROWS = 512
_MOST_NEIGHBOURS = 256
_SCORED_AT_ONCE = 16

# Says why a neighbour's answer must not be given, whatever their similarity: of the text asked, and the neighbour's.
Refuse: TypeAlias = Callable[[str, str], str | None]


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


@dataclass(slots=True)
class _Rows:
    """The rows near to one, nearest first; `are_all` where no further one is above the floor."""

    rows: list[int]
    similarities: list[float]
    are_all: bool


class Trace:
    """A recording's requests and all that is near to them; answers live for `exact_seconds`, texts `near_seconds`.

    `floor` is the lowest similarity that will be asked for. `refuses` leaves out single neighbours, as a guard does.
    """

    def __init__(
        self, asked: Sequence[Asked], vectors: Vectors, *, exact_seconds: float, near_seconds: float, floor: float,
        refuses: Refuse | None = None,
    ) -> None:  # fmt: skip
        self.asked = asked
        self._exact = exact_seconds
        self._near = min(near_seconds, exact_seconds)
        self._floor = floor
        self.decide_by(refuses, None)
        rows: dict[bytes, int] = {}
        self._row_of = [-1 if one.request is None else rows.setdefault(one.request.key, len(rows)) for one in asked]
        self._texts = [""] * len(rows)
        self._first = [-1] * len(rows)
        for position, row in enumerate(self._row_of):
            if row >= 0 and self._first[row] < 0:
                self._first[row] = position
        scopes: dict[bytes, list[int]] = {}
        self._place: dict[int, tuple[bytes, int]] = {}
        at: dict[int, int] = {}
        for row, one in zip(self._row_of, asked, strict=True):
            request = one.request
            if row in at or request is None or request.scope is None or request.text not in vectors.rows:
                continue
            members = scopes.setdefault(request.scope, [])
            self._texts[row] = request.text
            self._place[row] = request.scope, len(members)
            at[row] = vectors.rows[request.text]
            members.append(row)
        self._scopes = {
            scope: (members, vectors.matrix[[at[row] for row in members]]) for scope, members in scopes.items()
        }
        self._found: dict[int, _Rows] = {}

    def search(self, done: Callable[[int, int], None]) -> None:
        """Find all neighbours; `done` is told how many rows of how many."""
        searched, rows = 0, len(self._place)
        for members, matrix in self._scopes.values():
            for start in range(0, len(members), _BLOCK_ROWS):
                done(searched, rows)
                block = members[start : start + _BLOCK_ROWS]
                similarities = matrix[start : start + len(block)] @ matrix.T
                for offset, row in enumerate(block):
                    self._found[row] = self._nearest(similarities[offset], members, start + offset, _MOST_NEIGHBOURS)
                searched += len(block)
        done(rows, rows)

    def ranked(self, *, refuses: Refuse | None = None, score: Score | None = None) -> Trace:
        """Return the same trace as it is for other guards, or for a learned score; the search is not done again."""
        other = copy(self)
        other.decide_by(refuses, score)
        return other

    def decide_by(self, refuses: Refuse | None, score: Score | None) -> None:
        """Take these guards and this score from here on."""
        self._refuses = refuses
        self._refused: dict[tuple[int, int], bool] = {}
        self._score = score
        self._scored: dict[int, list[float]] = {}
        self._read = reader()

    def earlier(self, most: int, before: int) -> Iterator[Near]:
        """Yield the pairs of each text first asked before a position and the nearest texts asked before it."""
        for row, position in enumerate(self._first):
            if position < before:
                near = ((self._first[one], similarity) for one, similarity in self._neighbours(row))
                for maker, similarity in islice((one for one in near if one[0] < position), most):
                    yield Near(position, maker, similarity, similarity)

    def _nearest(self, similarities: NDArray[float32], members: list[int], own: int, most: int) -> _Rows:
        import numpy as np

        places: NDArray[int64] = np.flatnonzero(similarities >= self._floor)
        places = places[places != own]
        order = np.argsort(-similarities[places], kind="stable")[:most]
        chosen = places[order]
        return _Rows(
            [members[place] for place in chosen.tolist()],
            similarities[chosen].clip(-1.0, 1.0).tolist(),
            len(places) <= most,
        )

    def _neighbours(self, row: int) -> Iterator[tuple[int, float]]:
        """Yield the rows near to one, nearest first, down to the floor."""
        found = self._found.get(row)
        if found is None:
            return
        yield from zip(found.rows, found.similarities, strict=True)
        if not found.are_all:  # so many, and none of them served: look at all of its scope
            scope, own = self._place[row]
            members, matrix = self._scopes[scope]
            rest = self._nearest(matrix @ matrix[own], members, own, len(members))
            known = set(found.rows)
            yield from (
                (near, similarity)
                for near, similarity in zip(rest.rows, rest.similarities, strict=True)
                if near not in known
            )

    def _is_refused(self, row: int, near: int) -> bool:
        if self._refuses is None:
            return False
        said = self._refused.get((row, near))
        if said is None:
            said = self._refused[row, near] = self._refuses(self._texts[row], self._texts[near]) is not None
        return said

    def cached_on_miss(self, cut: float) -> World:
        """Replay the trace at a cut, as a cache runs: what is answered nearly is not stored."""
        return self._replay(cut, stores_all=False)

    def cached_always(self, floor: float | None = None) -> World:
        """Replay the trace as one that serves nothing near, and tell each request's best row, at the floor or more.

        What a cut of such a cache would be told is those rows at the cut or more.
        """
        return self._replay(self._floor if floor is None else floor, stores_all=True)

    def _replay(self, cut: float, *, stores_all: bool) -> World:
        loaded = [-inf] * len(self._texts)
        makers = [0] * len(self._texts)
        world = World()
        for one, row in zip(self.asked, self._row_of, strict=True):
            if row < 0:
                continue
            if one.ts - loaded[row] < self._exact:
                world.exact.append(one.position)
                continue
            near = self._served(row, cut, loaded, one.ts)
            if near is not None:
                world.near.append(Near(one.position, makers[near[0]], near[1], near[2]))
            if near is None or stores_all:
                loaded[row], makers[row] = one.ts, one.position
        return world

    def _served(self, row: int, cut: float, loaded: list[float], now: float) -> tuple[int, float, float] | None:
        """Return the best row that is stored, at the cut or more and not refused, its similarity and its rating."""
        if self._score is not None:
            return self._best(row, cut, loaded, now)
        tries = NEIGHBOURS
        for near, similarity in self._neighbours(row):
            if similarity < cut or not tries:
                break
            if now - loaded[near] < self._near:
                if not self._is_refused(row, near):
                    return near, similarity, similarity
                tries -= 1
        return None

    def _best(self, row: int, cut: float, loaded: list[float], now: float) -> tuple[int, float, float] | None:
        """Let the score rank the nearest rows that are stored, as it ranks what the tier finds."""
        stored: list[tuple[float, int, float]] = []
        for place, (near, similarity) in enumerate(self._neighbours(row)):
            if now - loaded[near] < self._near:
                stored.append((self._rating(row, place), near, similarity))
                if len(stored) == CANDIDATES:
                    break
        stored.sort(key=lambda one: -one[0])
        for rating, near, similarity in stored:
            if rating < cut:
                break
            if not self._is_refused(row, near):
                return near, similarity, rating
        return None

    def _rating(self, row: int, place: int) -> float:
        """Return the score of a row beside the one at a place among its neighbours; some are scored at once."""
        scored = self._scored.setdefault(row, [])
        if place >= len(scored):
            start = len(scored)
            stop = max(place + 1, start + _SCORED_AT_ONCE)
            scored += self._rate(row, list(islice(self._neighbours(row), start, stop)))
        return scored[place]

    def _rate(self, row: int, neighbours: list[tuple[int, float]]) -> list[float]:
        assert self._score is not None  # noqa: S101 - asked for where there is one
        scope, own = self._place[row]
        matrix = self._scopes[scope][1]
        return self._score.rate(
            self._texts[row], matrix[own], [self._texts[near] for near, _ in neighbours],
            matrix[[self._place[near][1] for near, _ in neighbours]], [similarity for _, similarity in neighbours],
            self._read,
        )  # fmt: skip
