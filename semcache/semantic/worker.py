"""The thread that owns the embedder's device and the index, its queue, and what may go wrong in it.

Laws: nothing that a request, an embedder, an index or a callback raises ends the thread; a failed load fails all who
wait, and is tried again after a pause that doubles.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from time import sleep
from typing import TYPE_CHECKING, Literal, cast

from semcache.errors import TierError
from semcache.semantic.searching import end, search_all
from semcache.semantic.texts import Texts, as_exception
from semcache.semantic.vectors import to_units
from semcache.semantic.work import Add, Clear, Embed, Item, Remove, Restore, Search, Sync, Take, Within

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable, Sequence

    from semcache.semantic.batcher import Batcher
    from semcache.semantic.texts import Vectors
    from semcache.semantic.work import NewRow, Row, Vector, VectorIndex

State = Literal["idle", "loading", "ready", "failed", "closed"]

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# Rows that others have added wait for so many more, or for whoever asks: to wake for each costs more than to add it.
_TAKEN_AT_ONCE = 64
# Who asks while so many wait for a batch that runs gives way: the worker lets go of the interpreter for each of its
# products, and had to wait five milliseconds to have it back from a caller who hands over without a pause.
_GIVES_WAY = 256


class Worker:
    """One process's thread; it holds its Batcher weakly, so that a dropped one can end it."""

    def __init__(self, owner: weakref.ref[Batcher]) -> None:
        batcher = owner()
        assert batcher is not None  # noqa: S101 - its own batcher makes it
        settings = batcher.settings
        self.state: State = "idle"
        self._owner = owner
        self._embedder = settings.embedder
        self._identity = ""
        self._clock = settings.clock
        self._max_batch = settings.max_batch
        self._max_pending = settings.max_pending
        self._index: VectorIndex | None = None
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        # The texts in the queue beyond one an item; the lock guards it.
        self._more_texts = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._arriving: Counter[bytes] = Counter()
        self._taken: list[Row] = []
        self._failure: Exception | None = None
        self._importing = batcher.importing
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0
        self._counts = dict.fromkeys(("batches", "batched", "dropped"), 0)
        self._lost: TierError | None = None
        self._is_serving = False
        self._texts = Texts(settings.embedder, settings.remembered, self._report, settings.max_batch)

    # What any thread may call

    def start(self) -> None:
        if self.state in {"loading", "ready"}:
            return
        with self._lock:
            if self.state == "idle" or (self.state == "failed" and self._clock() >= self._retry_at):
                self._thread = threading.Thread(target=self._run, name="semcache-semantic", daemon=True)
                self._thread.start()
                self.state = "loading"

    def has_scope(self, scope: bytes) -> bool | None:
        index = self._index
        if self.state != "ready" or index is None:
            return None
        # In this order: a row is in the index before it is no longer on its way there.
        return scope in self._arriving or index.has_scope(scope)

    def ask(self, item: Search | Within | Embed) -> None:
        waiting = self._waiting
        if waiting >= self._max_pending:
            raise TierError("full", f"{self._max_pending} requests wait for the embedder")
        if waiting >= _GIVES_WAY and self._is_serving:
            sleep(0)
        self.submit(item)

    def add(self, item: Add) -> None:
        if self._waiting >= self._max_pending:
            with self._lock:
                self._counts["dropped"] += 1
            self._report("full", TierError("full", f"{self._max_pending} requests wait for the embedder"))
        else:
            self.submit(item)

    @property
    def _waiting(self) -> int:
        return self._queue.qsize() + self._more_texts

    def slices(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the places of texts that go in one step each."""
        return self._texts.slices(texts, self._max_batch)

    def take(self, rows: list[Row]) -> None:
        """Gather rows for the index; who asks for anything meanwhile finds them there."""
        with self._lock:
            self._arriving.update(row[1] for row in rows)
            self._taken += rows
            if len(self._taken) >= _TAKEN_AT_ONCE:
                self._queue_taken()

    def _queue_taken(self) -> None:
        """Queue what was gathered; the lock is held."""
        if self._taken:
            self._queue.put(Take(self._taken))
            self._taken = []

    def submit(self, item: Item) -> None:
        """Queue an item, behind the rows that were gathered before it, or, after a failed load, fail it at once."""
        with self._lock:
            if self.state == "closed":
                raise TierError("closed", "the semantic tier is closed")
            failure = self._failure if self.state == "failed" else None
            if failure is None:
                if isinstance(item, Add):
                    self._arriving[item.scope] += 1
                self._queue_taken()
                self._more_texts += _more_texts(item)
                self._queue.put(item)
        if failure is not None:
            self._fail([item], failure)

    def close(self, timeout: float | None) -> None:
        """Fail what waits, let the running batch end, stop; wait for that so many seconds."""
        with self._lock:
            self.state = "closed"
            waiting = self._drain()
            self._queue.put(None)
        self._fail(waiting, TierError("closed", "the semantic tier was closed"))
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def stats(self) -> dict[str, int]:
        index = self._index
        return {
            "rows": len(index) if index is not None else 0,
            "scopes": index.scopes if index is not None else 0,
            "bytes": index.nbytes if index is not None else 0,
            "evictions": index.evictions if index is not None else 0,
            **self._texts.counts,
            **self._counts,
            "queued": self._waiting + len(self._taken),
        }

    def end(self) -> None:
        """Stop after what was asked; unlike `close` it takes no lock, so the garbage collector may call it anywhere."""
        self._queue.put(None)

    # What only the thread runs

    @property
    def _loaded(self) -> VectorIndex:
        return cast("VectorIndex", self._index)

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._load_failed(as_exception(error))
            return
        with self._lock:
            if self.state != "closed":
                self.state = "ready"
                self._pause = _FIRST_PAUSE
        while self._serve_next():
            pass
        self._let_index_go()
        self._texts.forget()

    def _serve_next(self) -> bool:
        """Wait for one item, take what has gathered behind it, and serve that; False when it is time to stop."""
        batch: list[Item] = []
        size = 0
        item = self._queue.get()
        self._let_others_ask()
        while item is not None:
            batch.append(item)
            more = _more_texts(item)
            if more:
                with self._lock:
                    self._more_texts -= more
            size += 1 + more
            ends = isinstance(item, Search) and item.ends_step
            if ends or size >= self._max_batch or self._queue.empty():
                break
            item = self._queue.get()
        self._is_serving = True
        self._serve(batch)
        self._is_serving = False
        if self._embedder.identity != self._identity:  # it has another model: all of before is worth nothing (law 11)
            self._load_failed(TierError("changed", "the embedder has another model than before"))
            return False
        if self._lost is not None:  # what was on the device is gone: all begins anew, on what there is
            lost, self._lost = self._lost, None
            self._load_failed(lost)
            return False
        return item is not None

    def _let_others_ask(self) -> None:
        """Give way while that brings requests: callers that the last batch woke have had no turn to ask again yet."""
        queued = -1
        while queued < self._queue.qsize() < self._max_batch:
            queued = self._queue.qsize()
            sleep(0)

    def _load(self) -> None:
        with self._importing:
            self._embedder.load()
            batcher = self._owner()
            dimension = self._embedder.dimension
            if batcher is None or dimension is None:
                raise TierError("load", "the embedder does not know its dimension")
            restore = batcher.settings.restore
            self._identity = self._embedder.identity
            self._max_batch = max(self._max_batch, getattr(self._embedder, "batch", 0))
            self._index = batcher.settings.make_index(dimension)
            del batcher
        if restore is not None:
            self._restore_all(restore)

    def _restore_anew(self) -> None:
        self._loaded.clear()
        batcher = self._owner()
        restore = None if batcher is None else batcher.settings.restore
        del batcher
        if restore is not None:
            self._restore_all(restore)

    def _restore_all(self, restore: Callable[[], Iterable[Row]]) -> None:
        try:
            self._restore(iter(restore()))
        except BaseException as error:  # noqa: BLE001 - without old rows there are still new ones
            self._report("restore", error)

    def _let_index_go(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def _load_failed(self, error: Exception) -> None:
        with self._lock:
            waiting = self._drain()
            if self.state != "closed":
                self.state = "failed"
                self._failure = error
                self._retry_at = self._clock() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._let_index_go()
        self._texts.forget()
        self._fail(waiting, error)
        if self.state == "failed":
            self._report("load", error)

    def _restore(self, rows: Iterable[Row]) -> None:
        while self.state != "closed" and (chunk := list(islice(rows, self._max_batch))):
            now = self._clock()
            alive = [row for row in chunk if row[4] > now]
            made = self._texts.vectors([row[2] for row in alive if row[3] is None])
            found = [(row, made[row[2]] if row[3] is None else row[3]) for row in alive]
            whole = [(row, vector) for row, vector in found if not isinstance(vector, Exception)]
            units = to_units([vector for _, vector in whole])
            self._insert_many(
                [(row[0], row[1], unit, row[2], row[4]) for (row, _), unit in zip(whole, units, strict=True)]
            )  # fmt: skip

    def _serve(self, batch: list[Item]) -> None:
        """Embed all texts of a batch at once, and search at once for those between whom nothing is dropped.

        So a search also sees rows that were added while it waited. Threads that miss ask, add and ask again in turn: to
        search between one's row and the next's was one search a request.
        """
        texts: list[str] = []
        for item in batch:
            if isinstance(item, Search):
                texts += item.texts
            elif isinstance(item, Within | Embed) or (isinstance(item, Add) and item.vector is None):
                texts.append(item.text)
        known = self._texts.vectors(texts)
        as_they_are = [item.text for item in batch if isinstance(item, Embed) and item.as_it_is]
        anyhow = self._texts.as_they_are(as_they_are, known)
        if texts:
            self._counts["batches"] += 1
            self._counts["batched"] += len(texts)
        searches: list[Search] = []
        for item in batch:
            if isinstance(item, Search):
                searches.append(item)
                continue
            if not isinstance(item, Add | Take | Embed):
                self._search(searches, known)
                searches = []
            if isinstance(item, Embed) and item.as_it_is and item.text in anyhow:
                end(item.future, anyhow[item.text])
            else:
                self._change(partial(self._apply, item, known))
        self._search(searches, known)
        self._change(partial(self._loaded.sweep, self._clock()))

    def _change(self, change: Callable[[], object]) -> None:
        """Have the index changed; where that fails it may be half changed, and its rows are read anew."""
        try:
            change()
        except BaseException as error:  # noqa: BLE001 - the thread lives on
            self._lost = TierError("lost", f"the index has failed: {error!r}")

    def _search(self, searches: list[Search], known: Vectors) -> None:
        index = self._loaded
        try:
            search_all(index, searches, known, self._clock, before=lambda: self._texts.tell_troubles(index))
        except BaseException as error:  # noqa: BLE001 - the thread lives on
            self._report("search", error)

    def _apply(self, item: Within | Embed | Add | Remove | Take | Restore | Clear | Sync, known: Vectors) -> None:
        match item:
            case Within():
                self._within(item, known[item.text])
            case Embed():
                end(item.future, known[item.text])
            case Sync():
                end(item.future, None)
            case Add():
                self._add(item, known)
            case Remove():
                for key in item.keys:
                    self._loaded.remove(key)
            case Take():
                self._restore(iter(item.rows))
                self._arrived([row[1] for row in item.rows])
            case Restore():
                self._restore_anew()
            case Clear():
                self._loaded.clear()

    def _within(self, item: Within, vector: Vector | Exception) -> None:
        if isinstance(vector, Exception):
            end(item.future, vector)
            return
        try:
            found = self._loaded.within(vector, item.similarity, self._clock())
        except BaseException as error:  # noqa: BLE001 - the thread lives on
            self._report("search", error)
            end(item.future, as_exception(error))
        else:
            end(item.future, found)

    def _add(self, item: Add, known: Vectors) -> None:
        """Add a row if there is a vector of it and its text is seen whole; tell whom it concerns of a new vector."""
        if item.vector is None:
            vector = known[item.text]
        else:
            error = self._texts.uncovered(item.text)
            vector = item.vector if error is None else error
        is_in = False
        if not isinstance(vector, Exception):
            is_in = self._insert(item.key, item.scope, vector, item.text, item.expires)
        self._arrived([item.scope])
        if is_in and item.vector is None and item.done is not None:
            try:
                item.done(item.key, cast("Vector", vector))
            except BaseException as error:  # noqa: BLE001 - a stranger's callback
                self._report("done", error)

    def _insert(self, key: bytes, scope: bytes, vector: Vector, text: str, expires: float) -> bool:
        try:
            self._loaded.add(key, scope, vector, text, expires)
        except BaseException as error:  # noqa: BLE001 - a vector of another shape, NaN, no memory
            self._report("add", error)
            return False
        return True

    def _insert_many(self, rows: list[NewRow]) -> None:
        try:
            refused = self._loaded.add_many(rows)
        except BaseException as error:  # noqa: BLE001 - no memory, a device that is lost
            self._report("add", error)
        else:
            for one in refused:
                self._report("add", one)

    # What both run

    def _arrived(self, scopes: list[bytes], dropped: int = 0) -> None:
        """Note that rows of these scopes are on their way no longer."""
        with self._lock:
            self._counts["dropped"] += dropped
            self._arriving.subtract(scopes)
            for scope in set(scopes):
                if not self._arriving[scope]:
                    del self._arriving[scope]

    def _drain(self) -> list[Item]:
        """Take all that waits; the lock is held."""
        waiting: list[Item] = []
        with suppress(Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    self._more_texts -= _more_texts(item)
                    waiting.append(item)
        return waiting

    def _fail(self, items: Iterable[Item], error: Exception) -> None:
        for item in items:
            if isinstance(item, Add):
                self._arrived([item.scope], dropped=1)
            elif isinstance(item, Take):
                self._arrived([row[1] for row in item.rows])
            elif isinstance(item, Search | Within | Embed | Sync):
                end(item.future, error)

    def _report(self, reason: str, error: BaseException) -> None:
        if isinstance(error, TierError) and error.reason == "lost" and reason != "load":
            self._lost = error
        batcher = self._owner()
        if batcher is not None:
            # Whoever listens must not break what is listened to.
            with suppress(BaseException):
                batcher.settings.on_fault(reason, error)


def _more_texts(item: Item) -> int:
    """Return how many texts an item has beyond one."""
    return len(item.texts) - 1 if isinstance(item, Search) else 0
