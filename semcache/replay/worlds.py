"""What a cache would have served at each cut: one search for all neighbours, then a replay of the trace for each cut.

A cut decides what is loaded and so what is there to be found: with a query answered nearly, its text is not stored. So
no two cuts see the same neighbours. The search does not depend on the cut: all rows of a scope that are near enough for
the lowest cut are found once, nearest first, in blocks of one matrix product. A replay then walks down that list to the
first row that its own world has stored and not let expire, which costs no product.

Laws: a world finds what `semcache replay --policy threshold:CUT` serves, where jitter is 0 and nothing is evicted
(tests/replay/test_worlds.py holds the two side by side); only rows of one scope meet (law 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from semcache.replay.lookahead import Vectors
from semcache.replay.recording import Asked
from semcache.tiers.semantic import NEIGHBOURS

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

NO_CUT = inf
_BLOCK_ROWS = 512
_MOST_NEIGHBOURS = 256

# Says why a neighbour's answer must not be given, whatever their similarity: of the text asked, and the neighbour's.
Refuse: TypeAlias = Callable[[str, str], str | None]


class Near(NamedTuple):
    """A near match: the request at `position` is given the answer that the request at `maker` loaded."""

    position: int
    maker: int
    similarity: float


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

    `floor` is the lowest cut that will be asked for. `refuses` leaves out single neighbours, as a guard does.
    """

    def __init__(
        self, asked: Sequence[Asked], vectors: Vectors, *, exact_seconds: float, near_seconds: float, floor: float,
        refuses: Refuse | None = None,
    ) -> None:  # fmt: skip
        self.asked = asked
        self._exact = exact_seconds
        self._near = min(near_seconds, exact_seconds)
        self._floor = floor
        self._refuses = refuses
        self._refused: dict[tuple[int, int], bool] = {}
        rows: dict[bytes, int] = {}
        self._row_of = [-1 if one.request is None else rows.setdefault(one.request.key, len(rows)) for one in asked]
        self._texts = [""] * len(rows)
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

    def cached_always(self) -> World:
        """Replay the trace as one that serves nothing near, and tell each request's nearest row, at the floor or more.

        What a cut of such a cache would be told is those rows at the cut or more.
        """
        return self._replay(self._floor, stores_all=True)

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
                world.near.append(Near(one.position, makers[near[0]], near[1]))
            if near is None or stores_all:
                loaded[row], makers[row] = one.ts, one.position
        return world

    def _served(self, row: int, cut: float, loaded: list[float], now: float) -> tuple[int, float] | None:
        """Return the nearest row that is stored, at the cut or more and not refused; the tier tries a few."""
        tries = NEIGHBOURS
        for near, similarity in self._neighbours(row):
            if similarity < cut or not tries:
                break
            if now - loaded[near] < self._near:
                if not self._is_refused(row, near):
                    return near, similarity
                tries -= 1
        return None
