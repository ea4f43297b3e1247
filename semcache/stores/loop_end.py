"""What connections of one loop have in common: they are closed with the loop, or from any thread before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class EndsWithLoop:
    """Connections of one loop; who has them says in `hang_up` how those that are idle are closed, on the loop."""

    def __init__(self) -> None:
        self._end = self._until_the_end()

    async def begin(self) -> None:
        """Have our connections closed with the loop: it ends the async generators that it has begun."""
        await anext(self._end)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close what is idle."""
        raise NotImplementedError

    def close(self, loop: AbstractEventLoop) -> None:
        """Close what is idle, from any thread."""
        if not loop.is_closed():
            with suppress(RuntimeError):  # closed in this moment
                loop.call_soon_threadsafe(self.hang_up)
