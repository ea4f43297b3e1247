"""The labels that teach a score online: a bounded sample of pairs of texts, in this process's memory alone.

Laws: none of the sample that proves cuts is among them; which of more pairs than there is room for are kept, a hash
says, not what they look like; of a pair one counts, of a stored answer some; none is older than evidence may be; texts
are kept as they are, and go with the process.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from hashlib import blake2b

from semcache.policy.label import Label, Source
from semcache.policy.tally import SEASONS

# From so many on a score is taught, the first of either kind of which there are so many; then when there are twice as
# many, so the tests that scores begin are few.
FEWEST, FEWEST_OF_A_KIND = 200, 30
MOST = 1000
_MOST_OF_AN_ENTRY = 20
_LONGEST_TEXT = 4000


class Lessons:
    """Pairs of texts that are labelled; whoever calls sees to it that one thread does so at a time."""

    def __init__(self) -> None:
        self.due_at = FEWEST
        self._sorted: list[tuple[bytes, int]] = []  # by hash, with the season of each
        self._labels: dict[bytes, Label] = {}
        self._entries: Counter[bytes] = Counter()

    def take(self, label: Label, season: int) -> None:
        """Take a label that proves nothing; others are left."""
        if label.source is Source.AUDIT or not label.text or not label.neighbour or label.text == label.neighbour:
            return
        if max(len(label.text), len(label.neighbour)) > _LONGEST_TEXT:
            return
        at = blake2b(label.asked + label.stored, digest_size=8).digest()
        known = self._labels.get(at)
        if known is not None:
            if label.is_right is not True:  # of several labels one that is not right makes the pair wrong
                self._labels[at] = label
            return
        if self._entries[label.stored] >= _MOST_OF_AN_ENTRY:
            return
        insort(self._sorted, (at, season))
        self._labels[at] = label
        self._entries[label.stored] += 1
        if len(self._sorted) > MOST:
            self._drop(self._sorted.pop()[0])

    def _drop(self, at: bytes) -> None:
        label = self._labels.pop(at)
        self._entries[label.stored] -= 1
        if not self._entries[label.stored]:
            del self._entries[label.stored]

    def forget(self, season: int) -> None:
        """Drop what is too old; with each season a score may be taught anew, where no more pairs have room."""
        self.due_at = min(self.due_at, MOST)
        for at, since in [one for one in self._sorted if one[1] <= season - SEASONS]:
            self._sorted.remove((at, since))
            self._drop(at)

    @property
    def right(self) -> int:
        return sum(label.is_right is True for label in self._labels.values())

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def is_due(self) -> bool:
        """Whether there are pairs enough for a score, or twice as many as taught the last one."""
        if len(self) < self.due_at:
            return False
        right = self.right
        return min(right, len(self) - right) >= FEWEST_OF_A_KIND

    def wait_for(self, pairs: int) -> None:
        """Teach no score before there are so many pairs: one was taught of half as many, here or elsewhere."""
        self.due_at = max(FEWEST, self.due_at, pairs)

    def read(self) -> list[Label]:
        """Return the pairs, in an order that says nothing."""
        return [self._labels[at] for at, _ in self._sorted]
