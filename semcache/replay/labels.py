"""Whether near matches were right: by the recording's `answer_id`s, else by its responses and a comparator.

Laws: which near matches are labelled is drawn by hash, at one rate, and no label has a say in it; a comparison that
does not know is a wrong one; a near match of which the recording knows nothing has no label. What one pair of texts
says again and again is one fact where it is right, and counts each time where it is wrong: so what repeats can only
widen a bound.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from inspect import iscoroutinefunction

from semcache.keys import digest
from semcache.policy.bounds import Tally
from semcache.policy.equivalent import Comparator
from semcache.replay.recording import Asked
from semcache.replay.score import Rate, is_wrong
from semcache.replay.worlds import Near

MOST_OF_AN_ENTRY = 20
"""How many right labels one stored answer may give."""

_JUDGED_AT_ONCE = 8
_DRAWN_BYTES = 8
_DRAWN_MOST = 2.0 ** (8 * _DRAWN_BYTES)


class Labels:
    """The labels of near matches, made when they are wanted; a `share` of all, drawn by `seed`."""

    def __init__(self, asked: Sequence[Asked], comparator: Comparator, *, share: float = 1.0, seed: int = 0) -> None:
        self._asked = asked
        self.comparator = comparator
        self._share = share
        self._seed = str(seed).encode()
        self._said: dict[tuple[str, str], bool | None] = {}

    def is_drawn(self, position: int) -> bool:
        """Say whether a request's near match is one of the sample."""
        if self._share >= 1:
            return True
        drawn = digest(self._seed, b"%d" % position, self._key(position))[:_DRAWN_BYTES]
        return int.from_bytes(drawn) / _DRAWN_MOST < self._share

    def _key(self, position: int) -> bytes:
        request = self._asked[position].request
        return b"" if request is None else request.key

    def can_say(self, near: Near) -> bool:
        """Say whether there is something to judge a near match by."""
        one, maker = self._asked[near.position], self._asked[near.maker]
        return is_wrong(one, maker) is not None or (one.has_response and maker.has_response)

    def ask(self, nears: Iterable[Near]) -> None:
        """Compare the responses that these need, those of an async judge some at a time."""
        wanted: dict[tuple[str, str], None] = {}
        for near in nears:
            one, maker = self._asked[near.position], self._asked[near.maker]
            if is_wrong(one, maker) is None and one.has_response and maker.has_response:
                pair = maker.answer or "", one.answer or ""
                if pair not in self._said:
                    wanted[pair] = None
        judge = self.comparator.judge
        if judge is None or not (iscoroutinefunction(judge) or iscoroutinefunction(getattr(judge, "__call__", None))):  # noqa: B004 - an object may have a coroutine for it
            for pair in wanted:
                self._said[pair] = self.comparator.equivalent(*pair)
        elif wanted:
            asyncio.run(self._ask_many(list(wanted)))

    async def _ask_many(self, pairs: list[tuple[str, str]]) -> None:
        places = asyncio.Semaphore(_JUDGED_AT_ONCE)

        async def ask(pair: tuple[str, str]) -> None:
            async with places:
                self._said[pair] = await self.comparator.aequivalent(*pair)

        await asyncio.gather(*map(ask, pairs))

    def is_wrong(self, near: Near) -> bool | None:
        """Say whether a near match that was asked about was wrong; None where the recording does not tell."""
        one, maker = self._asked[near.position], self._asked[near.maker]
        wrong = is_wrong(one, maker)
        if wrong is None and one.has_response and maker.has_response:
            return self._said[maker.answer or "", one.answer or ""] is not True
        return wrong

    def facts(self, nears: Iterable[Near]) -> list[Near]:
        """Return those near matches that may enter a bound as right: each pair once, of each answer a few."""
        pairs: set[tuple[bytes, bytes]] = set()
        entries: Counter[bytes] = Counter()
        found = []
        for near in nears:
            asked, stored = self._key(near.position), self._key(near.maker)
            if (asked, stored) not in pairs and entries[stored] < MOST_OF_AN_ENTRY:
                pairs.add((asked, stored))
                entries[stored] += 1
                found.append(near)
        return found

    def tally(self, cut: float, nears: Sequence[Near], least: int) -> Tally:
        """Count the labels of drawn near matches; with fewer than `least` facts nobody is asked what they say."""
        known = [near for near in nears if self.is_drawn(near.position) and self.can_say(near)]
        facts = self.facts(known)
        if len(facts) < least:
            return Tally(cut, len(facts), 0, 0)
        self.ask(known)
        wrong = sum(bool(self.is_wrong(near)) for near in known)
        return Tally(cut, len(facts), sum(not self.is_wrong(near) for near in facts), wrong)

    def rate(self, nears: Sequence[Near]) -> Rate:
        """Return the share of wrong ones among drawn near matches, each counted as often as it was served."""
        known = [near for near in nears if self.is_drawn(near.position) and self.can_say(near)]
        self.ask(known)
        return Rate(sum(bool(self.is_wrong(near)) for near in known), len(known))

    def origin_disagrees(self) -> Rate:
        """Return how often the origin gave an identical request an answer that is not known to be the same."""
        latest: dict[bytes, Asked] = {}
        pairs = []
        for one in self._asked:
            if one.request is None or not one.has_response:
                continue
            before = latest.get(one.request.key)
            if before is not None:
                pairs.append((before.answer or "", one.answer or ""))
            latest[one.request.key] = one
        links = Comparator()  # a judge is not asked: he would be paid for what nobody decides by
        return Rate(sum(links.equivalent(*pair) is not True for pair in pairs), len(pairs))
