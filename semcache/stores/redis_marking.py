"""How the store in a Redis invalidates, counts what that would mean, and switches the mode of all replicas."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from semcache.errors import InvalidationError, TierError
from semcache.marks import Pair
from semcache.model import Facets, Mode
from semcache.plan import Exchange, Plan
from semcache.stores import header
from semcache.stores.link import PATIENT_SECONDS, Command
from semcache.stores.redis_base import RedisBase
from semcache.stores.redis_keys import (
    member,
    pack,
    position_at,
    position_of,
    told_mode,
)
from semcache.stores.redis_trouble import trouble

_SWEEP_PAGE = 500
# Enough for the header and the facets of all but entries with many documents.
_PEEK_BYTES = header.HEADER_BYTES + 512
_EVERYTHING = 2**53


class Marking(RedisBase):
    """Marks: written in one transaction with their record, at a position after all that anybody can have heard of."""

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate durably; the position of the marks, and how many entries went. Raises InvalidationError."""
        position = 0
        try:
            position = yield from self._next_position()
            self._forget(pairs, position)  # before it is sent: nothing older is written behind it
            facets = [pair for pair in pairs if pair[0] != "key"]
            pinned = (yield from self._pinned_of(facets, position)) if facets else []
            dropped = yield from self._mark(pairs, position)
        except BaseException as error:
            if not position:  # the server cannot be asked, or not waited for; in this process it is gone all the same
                self._forget(pairs, max(position_at(self.now()), self._position) + 1)
            if not isinstance(error, TierError):
                raise
            raise InvalidationError(f"not invalidated durably, try again: {error}") from error
        self.writer.drop(pairs, position)
        if facets:
            with suppress(TierError):  # the marks hold; what was not dropped is a miss until it expires
                # The pinned first: a walk takes its time, and they may be pinned anew meanwhile.
                dropped += yield from self._unpin(pinned)
                dropped += yield from self._sweep(facets, position, drops=True)
        return max(position, self._position), dropped

    def _forget(self, pairs: list[Pair], position: int) -> None:
        """Serve and write nothing of ours that was born before; what is loaded from now on is younger."""
        for facet, value in pairs:
            self._marks.mark(facet, value, position)
        self._heard(position)

    def _next_position(self) -> Plan[int]:
        """Return a position after all that anybody can have heard of, also where the server's clock went back."""
        replies = yield Exchange(self._steady, self._ask_position(), PATIENT_SECONDS)
        return self._position_after(*replies.values)

    def _ask_position(self) -> list[Command]:
        return [("TIME",), ("XREVRANGE", self.names.log, "+", "-", "COUNT", 1)]

    def _position_after(self, clock: Any, last: Any) -> int:
        last = self._checked(last)
        heard = position_of(last[0][0]) if last else 0
        return max(position_at(self._set_clock(clock)), heard, self._position) + 1

    def _mark(self, pairs: list[Pair], position: int) -> Plan[int]:
        names = self.names
        commands: list[Command] = []
        keys = [value for facet, value in pairs if facet == "key"]
        for facet, value in pairs:
            if facet != "key":
                commands.append(("ZADD", names.marks, "GT", position, member(facet, value)))
            commands.append(("XADD", names.log, "*", "r", pack(["m", facet, value, position])))
        if keys:
            commands.append(("UNLINK", *(names.of(key) for key in keys)))  # type: ignore[arg-type]
            commands.append(("ZADD", names.gone, "GT", *(part for key in keys for part in (position, key))))
            commands.append(("ZREM", names.keys, *keys))
            commands.append(("UNLINK", *(names.of_pinned(key) for key in keys)))  # type: ignore[arg-type]
            commands.append(("HDEL", names.pinned, *keys))
        # A namespace that nobody has begun yet: see `_begin_marks`.
        commands.append(("ZADD", names.marks, "NX", position, self._own))
        commands += self._prolong(names.marks, names.gone, names.log)
        # Others may have come in between with later marks of the same: what is put after this is to be younger.
        commands += [("ZSCORE", names.marks, self._own), ("ZMSCORE", names.gone, *(keys or [b""]))]
        made = yield from self._transact(commands)
        own, gone = made[-2], made[-1]
        self._marks.mark("namespace", self._namespace, int(float(own)))
        self._heard(max([position, *(int(float(score)) for score in (own, *gone) if score is not None)]))
        if not keys:
            return 0
        self.pins.forget(keys)  # type: ignore[arg-type]
        return sum(int(one) for command, one in zip(commands, made, strict=True) if command[0] == "UNLINK")

    def _transact(self, commands: list[Command]) -> Plan[list[Any]]:
        """Have all of these done at once, or none; what came of each. Raises TierError."""
        replies = yield Exchange(self._steady, [("MULTI",), *commands, ("EXEC",)], PATIENT_SECONDS)
        done = replies.values[-1]
        made = done if isinstance(done, list) else [done]
        failed = next((one for one in made if isinstance(one, Exception)), None)
        if failed is not None or done is None:
            refused = next((one for one in replies.values if isinstance(one, Exception)), failed)
            raise trouble(refused or TierError("refused", f"{self.where}: it refused the transaction"), self.where)
        return made

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many entries an invalidation of these would drop. Raises TierError."""
        keys = [value for facet, value in pairs if facet == "key"]
        facets = [pair for pair in pairs if pair[0] != "key"]
        found = 0
        if keys:
            places = [place(key) for key in keys for place in (self.names.of, self.names.of_pinned)]  # type: ignore[arg-type]
            asked: list[Command] = [("EXISTS", *places)]
            replies = yield Exchange(self._steady, asked, PATIENT_SECONDS)
            found = int(self._checked(replies.values[0]))
        if facets:
            found += yield from self._sweep(facets, _EVERYTHING, drops=False)
            found += len((yield from self._pinned_of(facets)))
        return found

    def lacking(self, keys: list[bytes], pair: Pair) -> Plan[list[bytes]]:
        """Return those of some keys whose entries have not a facet value: of which that is known. Raises TierError."""
        pinned = set((yield from self._pinned_of([pair])))
        found: list[bytes] = []
        for at in range(0, len(keys), _SWEEP_PAGE):
            page = keys[at : at + _SWEEP_PAGE]
            asked: list[Command] = [("GETRANGE", self.names.of(key), 0, _PEEK_BYTES) for key in page]
            heads = yield Exchange(self._steady, asked, PATIENT_SECONDS)
            for key, head in zip(page, map(self._checked, heads.values), strict=True):
                if key in self.pins:
                    is_lacking = key not in pinned
                else:
                    waiting = self.writer.pending.get(key)
                    told = header.peek(head if waiting is None or waiting.data is None else waiting.data)
                    is_lacking = told is not None and not told[2].has(*pair)
                if is_lacking:
                    found.append(key)
        return found

    def facets_of(self, key: bytes) -> Plan[Facets | None]:
        """Return the facets of what stands at a key, or waits to be written there. Raises TierError."""
        asked: list[Command] = [
            ("GETRANGE", name, 0, _PEEK_BYTES) for name in (self.names.of_pinned(key), self.names.of(key))
        ]
        heads = yield Exchange(self._steady, asked, PATIENT_SECONDS)
        waiting = self.writer.pending.get(key)
        found = [None if waiting is None else waiting.data, *map(self._checked, heads.values)]
        told = next((told for told in map(header.peek, filter(None, found)) if told is not None), None)
        return None if told is None else told[2].of(self._namespace)

    def _sweep(self, pairs: list[Pair], position: int, *, drops: bool) -> Plan[int]:
        """Look at every entry of the namespace, a page a trip; drop, or only count, what the pairs mean."""
        cursor, seen = b"0", set()
        now = self.now()
        while True:
            asked: list[Command] = [("ZSCAN", self.names.keys, cursor, "COUNT", _SWEEP_PAGE)]
            replies = yield Exchange(self._steady, asked, PATIENT_SECONDS)
            cursor, listed = self._checked(replies.values[0])
            keys = [key for key in listed[::2] if key not in seen]
            if keys:
                heads = yield Exchange(
                    self._steady, [("GETRANGE", self.names.of(key), 0, _PEEK_BYTES) for key in keys], PATIENT_SECONDS
                )
                meant = [
                    key for key, head in zip(keys, heads.values, strict=True)
                    if isinstance(head, bytes) and self._is_meant(key, head, pairs, position, now)
                ]  # fmt: skip
                seen.update(meant)
                if meant and drops:
                    gone: list[Command] = [("UNLINK", *(self.names.of(key) for key in meant))]
                    yield Exchange(self._steady, [*gone, ("ZREM", self.names.keys, *meant)], PATIENT_SECONDS)
            if cursor in (b"0", 0):
                return len(seen)

    def _pinned_of(self, pairs: list[Pair], position: int | None = None) -> Plan[list[bytes]]:
        """Return the keys of the pinned entries that an invalidation means; who does not follow has to ask for them."""
        if not self.is_followed:
            replies = yield Exchange(self._steady, [("HVALS", self.names.pinned)], PATIENT_SECONDS)
            self.pins.begin(self._checked(replies.values[0]))
        return self.pins.meant(pairs, position)

    def _unpin(self, keys: list[bytes]) -> Plan[int]:
        """Drop pinned entries; how many, though others who heard of the mark may have dropped them already."""
        self.pins.forget(keys)
        if not keys:
            return 0
        asked: list[Command] = [
            ("UNLINK", *(self.names.of_pinned(key) for key in keys)), ("HDEL", self.names.pinned, *keys),
        ]  # fmt: skip
        replies = yield Exchange(self._steady, asked, PATIENT_SECONDS)
        self._checked(replies.values[0])
        return len(keys)

    def _is_meant(self, key: bytes, head: bytes, pairs: list[Pair], position: int, now: float) -> bool:
        told = header.peek(head)
        if told is None:
            return False
        born, ends, facets = told
        facets.namespace = self._namespace
        already = position == _EVERYTHING and self._marks.cover(facets.pairs(key), born)
        return not already and born < position and ends > now and any(facets.has(*pair) for pair in pairs)

    def switch(self, mode: Mode) -> Plan[None]:
        """Set the mode of all who use the namespace; they hear of it as they follow. Raises TierError."""
        replies = yield Exchange(self._steady, [self._ask_mode(), *self._ask_position()], PATIENT_SECONDS)
        self._hear_mode(told_mode(self._checked(replies.values[0])))
        position = self._position_after(*replies.values[1:])
        yield from self._transact([
            ("ZADD", self.names.mode, "GT", position, mode),
            ("XADD", self.names.log, "*", "r", pack(["o", mode, position])),
        ])  # fmt: skip
        self._hear_mode((position, mode))

    def _ask_mode(self) -> Command:
        return ("ZREVRANGE", self.names.mode, 0, 0, "WITHSCORES")

    def _hear_mode(self, told: tuple[int, str]) -> None:
        self._mode = max(self._mode, told)
        self._heard(told[0])

    def _begin_marks(self, server: float, timeout: float = PATIENT_SECONDS) -> Plan[None]:
        """Set the mark of a namespace that has none: nothing that stands is trusted. Of several the first stays.

        `server` is the server's time. One round trip; one more where its clock went back since the log's last record.
        """
        position, own = max(position_at(server), self._position) + 1, ("ZSCORE", self.names.marks, self._own)
        asked: list[Command] = [
            ("XREVRANGE", self.names.log, "+", "-", "COUNT", 1), ("ZADD", self.names.marks, "NX", position, self._own),
            *self._prolong(self.names.marks), own,
        ]  # fmt: skip
        replies = yield Exchange(self._steady, asked, timeout)
        last, is_first, *_, score = map(self._checked, replies.values)
        heard = position_of(last[0][0]) if last else 0
        if is_first and heard >= position:
            replies = yield Exchange(
                self._steady, [("ZADD", self.names.marks, "GT", heard + 1, self._own), own], timeout
            )
            score = [self._checked(reply) for reply in replies.values][-1]
        self._marks.mark("namespace", self._namespace, int(float(score)))
        self._heard(max(position, int(float(score))))
