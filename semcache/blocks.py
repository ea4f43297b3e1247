"""What was reported as wrong: which entry is not served to which text, and to what is near to that; pure, one mirror.

The rule, and why (docs/trust.md): a pair that was reported is never served again. Of the same entry nothing is served
either to a text that is as near to the reported one as to the entry's own: the cosine of half the angle between the two
is its cut from then on, since whatever is nearer than that to the entry is farther from what was reported. An entry
that was reported for two different texts answers its own text alone.

Laws:
- a text is known by its words: case, spaces and punctuation make no other text of it;
- a block is of a key, not of one answer: what is loaded anew for that key answers the same question;
- a mirror is bounded; who reports sees to it that the entry of a block that gives way is gone first (`wrong`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from math import sqrt
from threading import Lock
from typing import NamedTuple

# So many pairs of a namespace; past them the oldest give way, and their entries with them.
MAX_BLOCKS = 10_000
# A younger block is kept though its entry is gone: what is loaded anew is as wrong for that text.
KEEP_SECONDS = 90 * 86_400.0
# An entry that was reported for so many texts serves nothing near any more.
_CLOSED_AT = 2
# Similarities are float32: what is not farther apart than this is equal.
_EQUAL = 1e-6
WORDS_BYTES = 16
_WORDS = re.compile(r"\w+")


class Block(NamedTuple):
    """A pair that was reported: the entry's key, the words of the text, their cosine, seconds since 1970."""

    stored: bytes
    words: bytes
    similarity: float
    written: float


def words_of(text: str) -> bytes:
    """Return a digest of a text's words, in lower case: of the text itself where it has none."""
    told = " ".join(_WORDS.findall(text.casefold())) or text.strip()
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=WORDS_BYTES).digest()


def raised_cut(similarity: float) -> float:
    """Return the cosine of half the angle that a cosine is of."""
    return sqrt(max(0.0, (1 + min(similarity, 1.0)) / 2))


class Blocks:
    """The blocks of one namespace, as one process knows them; callers and the follower share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        # By the entry's key, then by the words: replaced as a whole, so that who reads needs no lock.
        self._by_entry: dict[bytes, dict[bytes, Block]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, blocks: Iterable[Block]) -> None:
        """Know some more; of a pair that is known the higher similarity stands, and the later time."""
        with self._lock:
            for block in blocks:
                standing = self._by_entry.get(block.stored, {})
                known = standing.get(block.words)
                if known is not None:
                    block = Block(  # noqa: PLW2901 - one and the same pair
                        *block[:2], max(block.similarity, known.similarity), max(block.written, known.written)
                    )
                self._by_entry[block.stored] = {**standing, block.words: block}
                self._count += known is None
            if self._count > 2 * MAX_BLOCKS:  # the oldest were dropped by who reported, of which nobody is told
                self._drop(self._listed()[:-MAX_BLOCKS])

    def drop(self, blocks: Iterable[Block]) -> None:
        """Know some no more."""
        with self._lock:
            self._drop(blocks)

    def _drop(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            standing = self._by_entry.get(block.stored, {})
            if block.words in standing:
                left = {words: one for words, one in standing.items() if words != block.words}
                self._count -= 1
                if left:
                    self._by_entry[block.stored] = left
                else:
                    del self._by_entry[block.stored]

    def listed(self) -> list[Block]:
        """Return all, the oldest first."""
        with self._lock:
            return self._listed()

    def _listed(self) -> list[Block]:
        every = [block for blocks in self._by_entry.values() for block in blocks.values()]
        return sorted(every, key=lambda block: block.written)

    def knows(self, stored: bytes, words: bytes) -> bool:
        """Say whether a pair was reported before."""
        return words in self._by_entry.get(stored, ())

    def is_closed(self, stored: bytes) -> bool:
        """Say whether an entry answers its own text alone."""
        return len(self._by_entry.get(stored, ())) >= _CLOSED_AT

    def why_not(self, stored: bytes, text: str, similarity: float) -> str | None:
        """Say why an entry is not to be served to a text, where a report says so."""
        blocks = self._by_entry.get(stored)
        if blocks is None:
            return None
        if words_of(text) in blocks:
            return "reported: wrong for this text"
        if len(blocks) >= _CLOSED_AT:
            return "reported: wrong for several texts, it answers its own alone"
        if any(similarity <= raised_cut(block.similarity) + _EQUAL for block in blocks.values()):
            return "reported: wrong for a text that this one is as near to"
        return None

    def after_fork(self) -> None:
        """Go on, with a lock of our own."""
        self._lock = Lock()
