"""What the semantic tier asks for: a text's vector and neighbours, as futures; one worker thread makes them.

Laws:
- no timer: an idle worker runs a lone request at once, a busy one lets requests gather behind the running batch;
- the order of calls is the order of effects, but that a search may also see rows added while it waits;
- every future ends: with what was found, with its own text's error, or with the load's or "closed"; cancelling one
  does nothing, for others may wait for it;
- a process made by fork begins anew with its first call: thread, queue and index are not there, rows are restored.

A Batcher that is dropped unclosed ends its thread; the interpreter's exit waits a few seconds for a running batch.
"""

from __future__ import annotations

import os
import weakref
from concurrent.futures import Future
from threading import RLock
from typing import TYPE_CHECKING

from semcache.errors import TierError
from semcache.plan import running_future
from semcache.semantic.asking import Many
from semcache.semantic.work import Add, Clear, Embed, Found, Remove, Restore, Row, Search, Settings, Sync, Within
from semcache.semantic.worker import State, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from semcache.model import Neighbour
    from semcache.semantic.embedder import TextEmbedder
    from semcache.semantic.work import Vector, VectorIndex

__all__ = ["Batcher", "Found", "Row"]

MOST_PENDING = 10_000
_CLOSE_SECONDS = 5.0
_FORK_SECONDS = 10.0


class Batcher:
    """The front of the worker thread; any thread may call it, and nothing but `flush` and `close` waits.

    `make_index` takes the dimension. The vectors of the `remembered` texts asked for last are not computed again. With
    `max_pending` texts waiting, searches raise TierError("full") and rows are dropped. `restore` gives the rows to
    begin with. `on_fault(reason, error)` is told of a failed "load", "restore", "embed", "search", "add" or "done", and
    of a device short of "memory", in the worker, and of a row dropped as the queue was "full", where it was added.
    """

    def __init__(
        self,
        embedder: TextEmbedder,
        make_index: Callable[[int], VectorIndex],
        clock: Callable[[], float],
        *,
        on_fault: Callable[[str, BaseException], None],
        max_batch: int = 256,
        remembered: int = 4096,
        max_pending: int = MOST_PENDING,
        restore: Callable[[], Iterable[Row]] | None = None,
    ) -> None:
        self.settings = Settings(embedder, make_index, clock, max_batch, remembered, max_pending, restore, on_fault)
        self._is_closed = False
        # Held while the worker imports and loads: a child can never import what is half imported at its fork.
        self.importing = RLock()
        self._is_held = False
        # By process: after a fork the child finds none and makes its own, touching no lock it may have inherited.
        self._workers: dict[int, Worker] = {}
        self._at_exit = weakref.finalize(self, _let_go, self._workers, weakref.ref(self))

    @property
    def state(self) -> State:
        worker = self._workers.get(os.getpid())
        return "closed" if self._is_closed else worker.state if worker else "idle"

    def start(self) -> None:
        """Start the worker if it does not run, or has failed and its pause is over; it loads, restores, serves.

        The other calls start it too. Raises TierError("closed").
        """
        self._worker().start()

    def has_scope(self, scope: bytes) -> bool | None:
        """Say whether a scope has rows, those still on their way included; None while not ready."""
        worker = self._workers.get(os.getpid())
        return worker.has_scope(scope) if worker else None

    def search(self, scope: bytes, text: str, k: int, *, with_vectors: bool = False) -> Future[Found]:
        """Return the text's vector and its nearest rows of that scope, with their vectors where they are wanted.

        The future raises TierError("uncovered") for a text that the embedder does not see whole. Raises
        TierError("full" or "closed").
        """
        future: Future[Found] = running_future()
        self._worker().ask(Search((scope,), (text,), k, future, with_vectors))
        return future

    def search_many(self, scopes: Sequence[bytes], texts: Sequence[str], k: int, *, with_vectors: bool = False) -> Many:
        """Search for each text in its scope as `search` does, in slices of one step each.

        What does not fit into the queue any more has the error "full" in its place. Raises TierError("closed").
        """
        worker = self._worker()
        slices = worker.slices(texts)
        under_way = []
        for number, places in enumerate(slices, 1):
            future: Future[list[Found | Exception]] = running_future()
            some = [scopes[place] for place in places], [texts[place] for place in places]
            try:
                worker.ask(Search(*some, k, future, with_vectors, is_many=True, ends_step=number < len(slices)))
            except TierError as error:
                future.set_exception(error)
            under_way.append((places, future))
        return Many(under_way)

    def within(self, text: str, similarity: float) -> Future[list[Neighbour]]:
        """Return every row, of whatever scope, that is at least so similar, nearest first; errors as `search`."""
        future: Future[list[Neighbour]] = running_future()
        self._worker().ask(Within(text, similarity, future))
        return future

    def embed(self, text: str, *, as_it_is: bool = False) -> Future[Vector]:
        """Return the text's unit vector; errors as `search`.

        With `as_it_is` signs and languages that the embedder does not know are its caller's to judge, as of any server:
        the future raises "uncovered" for a text that is too long alone.
        """
        future: Future[Vector] = running_future()
        self._worker().ask(Embed(text, future, as_it_is))
        return future

    def add(
        self,
        key: bytes,
        scope: bytes,
        text: str,
        vector: Vector | None,
        expires: float,
        done: Callable[[bytes, Vector], None] | None = None,
    ) -> None:
        """Add a row, if the embedder sees its text whole; `done` is given its vector if that was computed here."""
        self._worker().add(Add(key, scope, text, vector, expires, done))

    def remove(self, keys: Iterable[bytes]) -> None:
        """Drop the rows of some keys."""
        self._worker().submit(Remove(list(keys)))

    def take(self, rows: list[Row]) -> None:
        """Add rows that came from elsewhere, many at once, and before whatever is asked next."""
        if rows:
            self._worker().take(rows)

    def rebuild(self) -> None:
        """Drop all rows, and restore them anew."""
        self._worker().submit(Restore())

    def clear(self) -> None:
        """Drop all rows."""
        self._worker().submit(Clear())

    def warm(self) -> Future[None]:
        """Load, restore and embed once; the future raises what went wrong with it."""
        warmed: Future[None] = running_future()

        def finish(embedded: Future[Vector]) -> None:
            error = embedded.exception()
            if error is None:
                warmed.set_result(None)
            else:
                warmed.set_exception(error)

        self.embed("warm").add_done_callback(finish)
        return warmed

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was asked before is done; False if it is not, for the time was up or loading failed."""
        if self.state in {"idle", "closed"}:
            return True
        future: Future[None] = running_future()
        self._worker().submit(Sync(future))
        try:
            future.result(timeout)
        except Exception:  # noqa: BLE001 - time up, closed, or not loaded: in no case is it done
            return False
        return True

    def close(self, timeout: float | None = _CLOSE_SECONDS) -> None:
        """Stop, waiting so long for a running batch or load; what still waits raises TierError("closed")."""
        self._is_closed = True
        self._at_exit.detach()
        worker = self._workers.get(os.getpid())
        if worker:
            worker.close(timeout)

    def before_fork(self) -> None:
        """Let no import be half done in the child; wait some seconds for one, at most."""
        self._is_held = self.importing.acquire(timeout=_FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_held:
            self.importing.release()

    def after_fork_in_child(self) -> None:
        """Begin anew, at the next call."""
        self.importing = RLock()

    def stats(self) -> dict[str, int]:
        """Return rows, scopes, bytes and evictions of the index, and what the worker counted in this process."""
        worker = self._workers.get(os.getpid())
        return (worker or Worker(weakref.ref(self))).stats()

    def _worker(self) -> Worker:
        """Return this process's worker, started."""
        if self._is_closed:
            raise TierError("closed", "the semantic tier is closed")
        worker = self._workers.get(os.getpid())
        if worker is None:
            for pid in list(self._workers):
                self._workers.pop(pid, None)
            # Of several threads that come here at once, all get the first one's.
            worker = self._workers.setdefault(os.getpid(), Worker(weakref.ref(self)))
        worker.start()
        return worker


def _let_go(workers: dict[int, Worker], batcher: weakref.ref[Batcher]) -> None:
    """Stop the worker of a batcher that was dropped, or, where it lives still, that meets the interpreter's exit.

    At exit a thread that is inside torch is waited for: to be killed there can abort the process.
    """
    worker = workers.get(os.getpid())
    if worker is not None and batcher() is None:
        worker.end()
    elif worker is not None:
        worker.close(_CLOSE_SECONDS)
