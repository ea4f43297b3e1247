"""Vectors that a device is making: there for who searches there, and on the host for who waits for them.

Law: the copy to the host is begun at once and waited for by who looks at it, so that it is made while others go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semcache.semantic.vectors import as_unit

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy import float32
    from numpy.typing import NDArray


class Started:
    """Vectors of some texts that a device is making: float32[n, d] there, and on the host once they are made."""

    def __init__(self, made: Any, order: list[int]) -> None:
        import torch

        self._made = made
        self._order = order
        self._here, self._done = made, None
        if made.device.type == "cuda":
            # To pinned memory, so that what is handed over next does not have to be waited for as well.
            self._here = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
            self._here.copy_(made, non_blocking=True)
            done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(made.device))
            self._done = done

    def on_device(self) -> Any:
        """Return them in the order of their texts, where they are made; nobody waits."""
        import torch

        if self._order == list(range(len(self._order))):
            return self._made
        with torch.inference_mode():
            order = torch.tensor(self._order, pin_memory=self._done is not None)
            vectors = torch.empty_like(self._made)
            vectors[order.to(self._made.device, non_blocking=True)] = self._made
            return vectors

    def host(self) -> NDArray[float32]:
        """Wait for the device, and return them in the order of their texts; RuntimeError where the device is lost."""
        import numpy as np

        if self._done is not None:
            self._done.synchronize()
        found: NDArray[float32] = self._here.numpy()
        vectors = np.empty_like(found)
        vectors[self._order] = found
        return vectors


class Embedding:
    """Unit vectors of some texts, under way on a device; what goes wrong there is told as `watched` tells it."""

    def __init__(self, started: Started, watched: Callable[[], AbstractContextManager[None]], identity: str) -> None:
        self._started = started
        self._watched = watched
        self._identity = identity

    @property
    def device_vectors(self) -> Any:
        """float32[n, d] where they are made, in the order of their texts, for who works there next: nobody waits."""
        with self._watched():
            return self._started.on_device()

    def host(self) -> NDArray[float32]:
        """Wait for the device, and return them, checked, as float32[n, d]; errors as the embedder's own call."""
        with self._watched():
            found = self._started.host()
        return as_unit(found, len(found), self._identity)
