"""Server-sent events as they come, and as they are told (WHATWG HTML, section 9.2); no byte is altered in between.

A *block* is one event with the blank line that ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

CONTENT_TYPE = "text/event-stream; charset=utf-8"
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
# Python's own lines end at more signs than these.
_LINE = re.compile("\r\n|\n|\r")
_DONE = "[DONE]"
# An event that has not ended after so many bytes is handed on in pieces, and its stream is not kept.
_MOST_BYTES = 8 << 20


class Blocks:
    """Parts a stream of bytes into its blocks; bytes that are no UTF-8 come out as they went in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, and return the blocks that have ended with them."""
        rest, blocks, begin = self._rest, [], 0
        look = max(0, len(rest) - 3)  # the end may lie across what came before
        rest += data
        for match in _END.finditer(rest, look):
            blocks.append(text_of(rest[begin : match.end()]))
            begin = match.end()
        if begin:
            self._rest = rest[begin:]
        if len(self._rest) > _MOST_BYTES:
            blocks.append(self.rest())
        return blocks

    def rest(self) -> str:
        """Return what came behind the last block."""
        rest, self._rest = self._rest, bytearray()
        return text_of(rest)


def text_of(data: bytes | bytearray) -> str:
    """Return bytes as text that `bytes_of` makes the same bytes of."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """Return the bytes of a text."""
    return text.encode("utf-8", "surrogateescape")


def data_of(block: str) -> str | None:
    """Return the data of a block; None for a comment, or the mark of the end."""
    lines = [line[5:].removeprefix(" ") for line in _LINE.split(block) if line.startswith("data:")]
    data = "\n".join(lines)
    return data if data and data != _DONE else None


def is_done(block: str) -> bool:
    """Say whether a block is the mark of the end."""
    return any(line.removeprefix("data:").strip() == _DONE for line in _LINE.split(block))


def chunks_of(blocks: Iterable[str]) -> list[Json]:
    """Return the chunks that blocks hold. Raises ValueError for what is no JSON."""
    told = [data for data in map(data_of, blocks) if data is not None]
    chunks: list[Json] = json.loads(f"[{','.join(told)}]")
    return chunks


def told(chunks: Iterable[Json]) -> list[str]:
    """Return chunks as blocks: with a name where they have a type, else with the mark of the end behind them."""
    blocks, is_named = [], True
    for chunk in chunks:
        is_named = "type" in chunk
        name = f"event: {chunk['type']}\n" if is_named else ""
        blocks.append(f"{name}data: {json.dumps(chunk)}\n\n")
    return blocks if is_named else [*blocks, f"data: {_DONE}\n\n"]
