"""CUDA graphs: a function of one tensor, captured once and replayed, since launching costs more than small work.

Law: where none can be captured the reason is told, and the function is to be called plainly; only memory that is short
and a device that is lost are raised.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from semcache.semantic.failing import is_lost, is_short

if TYPE_CHECKING:
    from collections.abc import Callable


_CAPTURING = Lock()
"""One graph of a process is captured at once: two threads would do so on the same stream, and both fail. A forked child
has no CUDA to capture with, so it never waits for a lock that was held when it was made."""


class Graph:
    """A captured function of one tensor: fill `given`, `replay`, read what it returns before memory is shared again.

    Graphs of one `pool` share their memory. Raises RuntimeError where there is no memory, and for what cannot be
    captured.
    """

    def __init__(self, function: Callable[[Any], Any], given: Any, pool: Any = None) -> None:
        import torch

        self.given = given
        # Of that device: torch's own stream for captures is of the device that was current at the first of them.
        with torch.cuda.device(given.device):
            side: Any = torch.cuda.Stream(given.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(given.device))
            with torch.cuda.stream(side):
                for _ in range(2):  # what is made at first use must not be made while it is captured
                    function(given)
            torch.cuda.current_stream(given.device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            stream = _stream_of(given.device)
            # Other threads may use the device meanwhile: only what this one does is watched.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._made = function(given)

    def replay(self) -> Any:
        self._graph.replay()
        return self._made


@cache
def _stream_of(device: Any) -> Any:
    """Return the stream that graphs of a device are captured on: of one stream they can share memory."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def capture(function: Callable[[Any], Any], make: Callable[[], Any], pool: Any = None) -> Graph | str:
    """Return a function of the tensor that `make` makes as a graph, or why it cannot be one.

    Raises RuntimeError where there is no memory or the device is lost, see `failing`.
    """
    try:
        with _CAPTURING:
            return Graph(function, make(), pool)
    except RuntimeError as error:
        if is_short(error) or is_lost(error):
            raise
        return str(error).partition("\n")[0]
