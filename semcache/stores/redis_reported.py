"""What a Redis keeps of near matches: those that were reported, those that were served, and the ids of answers.

Blocks stand in the sorted set `wrong`, by when they were reported, and each has a record in the log; rows in the stream
`served`, and an answer's id, by its digest, as a key of its own.

Laws: a block and its record are written in one transaction; blocks have no expiry and are bounded in number by who
reports (`wrong`); rows are bounded by number and age, ids by age; rows are written behind the callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import ceil
from typing import Any

from semcache.blocks import Block, Blocks
from semcache.errors import DecodeError
from semcache.ledger import KEEP_SECONDS, MAX_ROWS, ROW_BYTES, Served, Taken, id_digest, selected
from semcache.plan import run
from semcache.stores.link import PATIENT_SECONDS, Command
from semcache.stores.outbox import Write
from semcache.stores.redis_keys import pack, unpack
from semcache.stores.redis_marking import Marking

_PAGE = 1000
_KEEP_MS = ceil(KEEP_SECONDS * 1000)


class Reporting(Marking):
    """The blocks, rows and ids of one namespace in one Redis."""

    blocks: Blocks

    @property
    def reports(self) -> Reporting:
        return self

    def block(self, blocks: list[Block]) -> None:
        """Keep blocks durably. Raises TierError."""
        commands: list[Command] = []
        for one in blocks:
            commands.append(("ZADD", self.names.wrong, "GT", one.written, _member(one)))
            commands.append(("XADD", self.names.log, "*", "r", pack(["w", *one])))
        run(self._transact([*commands, *self._prolong(self.names.log)]))

    def unblock(self, blocks: list[Block]) -> None:
        """Keep blocks no more. Raises TierError."""
        pairs = {one[:2] for one in blocks}
        gone = [member for member, one in self._stored_blocks() if one[:2] in pairs]
        for at in range(0, len(gone), _PAGE):
            self._checked(self._send([("ZREM", self.names.wrong, *gone[at : at + _PAGE])])[0])

    def blocked(self) -> list[Block]:
        """Return all blocks. Raises TierError."""
        return [block for _, block in self._stored_blocks()]

    def _stored_blocks(self) -> list[tuple[bytes, Block]]:
        return _blocks_of(self._checked(self._send([("ZRANGE", self.names.wrong, 0, -1, "WITHSCORES")])[0]))

    def _settle_blocks(self, reply: Any) -> list[Block]:
        """Return what the server has; what this process knows beside it, it has lost, and is told anew."""
        stored = [block for _, block in _blocks_of(self._checked(reply))]
        known = {one[:2] for one in stored}
        lost = [one for one in self.blocks.listed() if one[:2] not in known]
        for at in range(0, len(lost), _PAGE):
            self.block(lost[at : at + _PAGE])
        return stored

    def serve(self, taken: Taken, failed: Any) -> None:  # noqa: ARG002 - what is lost on its way is not missed
        """Keep rows and ids, behind the caller. Raises TierError."""
        commands = self._serving(taken)
        size = len(taken.rows) * ROW_BYTES + len(taken.names) * 128
        self.writer.put(Write(b"served", commands, size=size))

    def serve_now(self, taken: Taken) -> None:
        """Keep rows and ids, and wait for it. Raises TierError."""
        for reply in self._send(self._serving(taken)):
            self._checked(reply)

    def _serving(self, taken: Taken) -> list[Command]:
        name = self.names.served
        commands: list[Command] = [
            ("XADD", name, "MAXLEN", "~", MAX_ROWS, "*", "r", pack(list(row))) for row in taken.rows
        ]
        if commands:
            since = max(int((self.now() - KEEP_SECONDS) * 1000), 1)
            commands += [("XTRIM", name, "MINID", "~", since), ("PEXPIRE", name, _KEEP_MS)]
        return commands + [
            ("SET", self.names.answer(response), key, "PX", _KEEP_MS) for response, key in taken.names.items()
        ]

    def served(self, wanted: Mapping[str, bytes]) -> list[Served]:
        """Return the rows with all of some values, oldest first. Raises TierError."""
        since, found, start = self.now() - KEEP_SECONDS, [], b"-"
        while True:
            asked: list[Command] = [("XRANGE", self.names.served, start, "+", "COUNT", _PAGE)]
            (reply,) = self._steady.exchange(asked, PATIENT_SECONDS).values
            page = self._checked(reply)
            rows = []
            for _, fields in page:
                with suppress(DecodeError, TypeError, IndexError):  # a record of a later version, or of another hand
                    rows.append(Served(*unpack(fields[1])))
            found += selected([row for row in rows if row.at > since], wanted)
            if len(page) < _PAGE:
                return found
            start = b"(" + page[-1][0]

    def named(self, response_id: str) -> bytes | None:
        """Return the key of the entry whose answer has this id, as far as it is known. Raises TierError."""
        key: bytes | None = self._checked(self._send([("GET", self.names.answer(id_digest(response_id)))])[0])
        return key


def _member(block: Block) -> bytes:
    return pack([block.stored, block.words, block.similarity])


def _blocks_of(reply: list[bytes]) -> list[tuple[bytes, Block]]:
    found = []
    for member, score in zip(reply[::2], reply[1::2], strict=True):
        with suppress(DecodeError, TypeError):  # of a later version, or of another hand
            stored, words, similarity = unpack(member)
            found.append((member, Block(stored, words, float(similarity), float(score))))
    return found
