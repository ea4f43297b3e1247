"""What a cache would have served at each cut: one search for all neighbours, then a replay of the trace at all cuts.

A cut decides what is loaded and so what is there to be found: with a query answered nearly, its text is not stored. So
no two cuts see the same neighbours. The search does not depend on the cut: all rows of a scope that are near enough for
the lowest cut are found once, nearest first, in blocks of one matrix product. A replay then walks down that list to the
first row that its own world has stored and not let expire, which costs no product; `columns.py` walks for all cuts at
once. A learned score ranks the nearest of those that are stored; each pair is scored once, whatever the number of cuts,
when a world first meets it.

Laws: a world finds what `semcache replay --policy threshold:CUT` serves, where jitter is 0 and nothing is evicted
(tests/replay/test_worlds.py holds the two side by side); only rows of one scope meet (law 2).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from semcache.policy.features import reader
from semcache.policy.score import Score
from semcache.replay.columns import NO_CUT, Columns, Near, World
from semcache.replay.lookahead import Vectors
from semcache.replay.recording import Asked

if TYPE_CHECKING:
    from numpy import float32, float64, int32, int64
    from numpy.typing import NDArray

__all__ = ["NO_CUT", "Near", "Refuse", "Rows", "Trace", "World"]

_BLOCK_ROWS = 512
_MOST_NEIGHBOURS = 1024

# Says why a neighbour's answer must not be given, whatever their similarity: of the text asked, and the neighbour's.
Refuse: TypeAlias = Callable[[str, str], str | None]


@dataclass(slots=True)
class Rows:
    """The rows near to one, nearest first; `are_all` where no further one is above the floor."""

    rows: NDArray[int32]
    similarities: NDArray[float32]
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
        self.exact_seconds = exact_seconds
        self.near_seconds = min(near_seconds, exact_seconds)
        self._floor = floor
        self.decide_by(refuses, None)
        rows: dict[bytes, int] = {}
        self.row_of = [-1 if one.request is None else rows.setdefault(one.request.key, len(rows)) for one in asked]
        self.rows = len(rows)
        self._texts = [""] * len(rows)
        self._first, self._last = [-1] * len(rows), [-1] * len(rows)
        for position, row in enumerate(self.row_of):
            if row >= 0:
                self._last[row] = position
                if self._first[row] < 0:
                    self._first[row] = position
        # A scope's rows stand in the order in which they are first asked.
        scopes: dict[bytes, list[int]] = {}
        self._place: dict[int, tuple[bytes, int]] = {}
        at: dict[int, int] = {}
        for row, one in zip(self.row_of, asked, strict=True):
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
        # As an index keeps them, in half precision: what is asked is compared with these.
        self._kept = {scope: matrix.astype("float16").astype("float32") for scope, (_, matrix) in self._scopes.items()}
        self._found: dict[int, Rows] = {}

    def search(self, done: Callable[[int, int], None]) -> None:
        """Find all neighbours; `done` is told how many rows of how many."""
        searched, rows = 0, len(self._place)
        for scope, (members, matrix) in self._scopes.items():
            kept = self._kept[scope]
            before = self._asked_before(members, members)
            for start in range(0, len(members), _BLOCK_ROWS):
                done(searched, rows)
                block = members[start : start + _BLOCK_ROWS]
                widths = before[start : start + len(block)]
                similarities = matrix[start : start + len(block)] @ kept[: max(widths)].T
                for offset, (row, width) in enumerate(zip(block, widths, strict=True)):
                    self._found[row] = self._nearest(
                        similarities[offset, :width], members, start + offset, _MOST_NEIGHBOURS
                    )
                searched += len(block)
        done(rows, rows)

    def _asked_before(self, members: list[int], rows: list[int]) -> list[int]:
        """Return how many rows of a scope are first asked before each of these is last: it can meet no others."""
        firsts = [self._first[row] for row in members]
        return [bisect_left(firsts, self._last[row]) for row in rows]

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
        self._scored: dict[int, NDArray[float64]] = {}
        self._read = reader()

    @property
    def is_scored(self) -> bool:
        """Whether a learned score ranks what is found."""
        return self._score is not None

    def earlier(self, most: int, before: int) -> Iterator[Near]:
        """Yield the pairs of each text first asked before a position and the nearest texts asked before it."""
        for row, position in enumerate(self._first):
            found = self.near(row) if position < before else None
            if found is None:
                continue
            makers = [self._first[one] for one in found.rows.tolist()]
            near = [(one, place) for place, one in enumerate(makers) if one < position][:most]
            if len(near) < most and not found.are_all:
                found = self.all_near(row)
                makers = [self._first[one] for one in found.rows.tolist()]
                near = [(one, place) for place, one in enumerate(makers) if one < position][:most]
            for maker, place in near:
                similarity = float(found.similarities[place])
                yield Near(position, maker, similarity, similarity)

    def near(self, row: int) -> Rows | None:
        """Return the nearest rows of one, down to the floor, not all where these are many; None: it has no vector."""
        return self._found.get(row)

    def all_near(self, row: int) -> Rows:
        """Return what `near` does, and after it all the rest of a row's scope, down to the floor."""
        import numpy as np

        found = self._found[row]
        scope, own = self._place[row]
        members, matrix = self._scopes[scope]
        width = self._asked_before(members, [row])[0]
        rest = self._nearest(self._kept[scope][:width] @ matrix[own], members, own, width)
        is_new = ~np.isin(rest.rows, found.rows)
        return Rows(
            np.concatenate([found.rows, rest.rows[is_new]]),
            np.concatenate([found.similarities, rest.similarities[is_new]]),
            are_all=True,
        )

    def _nearest(self, similarities: NDArray[float32], members: list[int], own: int, most: int) -> Rows:
        import numpy as np

        places: NDArray[int64] = np.flatnonzero(similarities >= self._floor)
        places = places[places != own]
        order = np.argsort(-similarities[places], kind="stable")[:most]
        chosen = places[order]
        return Rows(
            np.asarray(members, dtype=np.int32)[chosen], similarities[chosen].clip(-1.0, 1.0), len(places) <= most
        )

    def is_refused(self, row: int, near: int) -> bool:
        """Say whether a guard refuses to give a row another one's answer."""
        if self._refuses is None:
            return False
        said = self._refused.get((row, near))
        if said is None:
            said = self._refused[row, near] = self._refuses(self._texts[row], self._texts[near]) is not None
        return said

    def rated(self, row: int, found: Rows, places: NDArray[int64]) -> NDArray[float64]:
        """Return what is compared with a cut, of all that was found near to a row; a score of these places alone.

        A score is asked of each pair once; what it was not asked of is NaN.
        """
        import numpy as np

        if self._score is None:
            return found.similarities.astype(np.float64)
        scored = self._scored.get(row)
        if scored is None or len(scored) < len(found.rows):
            longer = np.full(len(found.rows), np.nan)
            if scored is not None:
                longer[: len(scored)] = scored
            scored = self._scored[row] = longer
        new = places[np.isnan(scored[places])]
        if len(new):
            scope, own = self._place[row]
            matrix = self._scopes[scope][1]
            near = found.rows[new].tolist()
            scored[new] = self._score.rate(
                self._texts[row], matrix[own], [self._texts[one] for one in near],
                self._kept[scope][[self._place[one][1] for one in near]], found.similarities[new].tolist(), self._read,
            )  # fmt: skip
        return scored

    def worlds(self, cuts: Sequence[float], done: Callable[[int, int], None] | None = None) -> list[World]:
        """Replay the trace at each cut, as a cache runs: what is answered nearly is not stored."""
        return Columns(self, cuts, [False] * len(cuts)).replay(done)

    def cached_on_miss(self, cut: float) -> World:
        """Replay the trace at one cut, as a cache runs."""
        return self.worlds([cut])[0]

    def cached_always(self, floor: float | None = None) -> World:
        """Replay the trace as one that serves nothing near, and tell each request's best row, at the floor or more.

        What a cut of such a cache would be told is those rows at the cut or more.
        """
        return Columns(self, [self._floor if floor is None else floor], [True]).replay()[0]
