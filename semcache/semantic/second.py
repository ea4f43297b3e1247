"""A second stage: a cross-encoder that reads both texts of a near match, where the first one leaves doubt.

Laws: it can only refuse; it is asked of one match, in a batch with what others ask meanwhile, and never waited for
longer than a lookup has: where it is late, broken, still loading or does not see both texts whole, the match is refused
(laws 10 and 12); a model comes from a folder or the hub's cache on this machine, and nothing is downloaded.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future
from math import isfinite
from pathlib import Path
from threading import RLock, Thread
from typing import Any, Literal

from semcache.errors import ConfigurationError, MissingExtraError, TierError
from semcache.plan import running_future, started
from semcache.semantic.files import digest_of_files
from semcache.semantic.threads import limit_torch_threads
from semcache.semantic.transformer import without_progress_bars

NAME = "second stage"
"""What its refusals and faults stand under."""
MOST_WAITING = 512
_TOGETHER = 32
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0

State = Literal["idle", "loading", "ready", "failed"]


class CrossEncoder:
    """A sentence-transformers cross-encoder, asked of near matches whose cosine is below `sure_from`.

    `model` is a folder, or the name of one that the hub's cache on this machine has; it has one output, and what that
    gives of a pair must be `at_least` so much: 0 to 1 of most models for paraphrases, any number of others. Its texts
    are the asked and the stored one, in this order. `device` is "auto", "cpu", "cuda:1" ... Making one loads nothing.
    Raises ConfigurationError, with the mend, where there is no such model.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, at_least: float = 0.5, sure_from: float = 0.97, device: str = "auto"
    ) -> None:
        for name, value in (("at_least", at_least), ("sure_from", sure_from)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise ConfigurationError(f"{name} of a CrossEncoder is a number; got {value!r}")
        self.model = os.fspath(model)
        self.folder = _folder_of(self.model)
        self.at_least, self.sure_from = float(at_least), float(sure_from)
        self._device = None if device == "auto" else device
        digest = digest_of_files(self.folder)[:16]
        self.identity = f"cross:{digest};at_least={self.at_least:g};sure_from={self.sure_from:g}"
        self._loaded: Any = None
        self._window: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = RLock()
        self._waiting: deque[tuple[str, str, Future[bool]]] = deque()
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._pause, self._retry_at = _FIRST_PAUSE, 0.0

    def __repr__(self) -> str:
        return f"CrossEncoder({self.model!r}, at_least={self.at_least:g}, sure_from={self.sure_from:g})"

    @property
    def state(self) -> State:
        if self._loaded is not None:
            return "ready"
        return "loading" if self._thread is not None else "failed" if self._failure is not None else "idle"

    def doubts(self, similarity: float) -> bool:
        """Say whether a match of this cosine is one to ask of."""
        return similarity < self.sure_from

    def ask(self, text: str, other: str) -> Future[bool]:
        """Return whether an answer to the other text may be served for a text, in a future.

        Raises TierError: "loading", which this begins, "load" where that has failed, "full".
        """
        self._own()
        with self._lock:
            if self._loaded is None:
                self._start()
                if self._thread is None and self._failure is not None:
                    raise TierError("load", f"the cross-encoder {self.model!r} cannot be loaded: {self._failure}")
                raise TierError("loading", "the cross-encoder is loading")
            if len(self._waiting) >= MOST_WAITING:
                raise TierError("full", f"{MOST_WAITING} pairs wait for the cross-encoder")
            future = running_future()
            self._waiting.append((text, other, future))
            self._start()
        return future

    def warm(self) -> Future[bool]:
        """Load it; the future raises what went wrong."""
        self._own()
        future = running_future()
        with self._lock:
            self._retry_at = 0.0
            self._waiting.append(("warm", "warm", future))
            self._start()
        return future

    def _own(self) -> None:
        """Begin anew in a child of a fork: lock, queue and thread are the parent's."""
        if self._pid != os.getpid():
            self._begin()

    def _start(self) -> None:
        """Have a thread run, which ends when nothing waits; the lock is held."""
        if self._thread is None and (self._failure is None or time.monotonic() >= self._retry_at):
            self._thread = started(self._run, "semcache-second")  # where there is none, the next call tries again

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._failed(error)
            return
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            self._serve(batch)

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
            self._failure, self._thread = error, None
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        for _, _, future in waiting:
            future.set_exception(error if isinstance(error, Exception) else TierError("load", repr(error)))

    def _load(self) -> None:
        if self._loaded is not None:
            return
        try:
            import sentence_transformers
        except ImportError as error:
            raise MissingExtraError("a cross-encoder", "semantic") from error
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        limit_torch_threads()
        with without_progress_bars():
            loaded: Any = sentence_transformers.CrossEncoder(
                str(self.folder), device=self._device, local_files_only=True
            )
        if loaded.num_labels != 1:
            raise ConfigurationError(
                f"the cross-encoder {self.model!r} has {loaded.num_labels} outputs: give one with a single output, as "
                "those that are trained for paraphrases or ranking have"
            )
        # Of one name in the library's sixth version, of another before.
        window = getattr(loaded, "max_seq_length", None)
        self._window = getattr(loaded, "max_length", None) if window is None else window
        self._loaded = loaded

    def _serve(self, batch: list[tuple[str, str, Future[bool]]]) -> None:
        try:
            seen = [pair for pair in batch if self._sees(pair[0], pair[1])]
            said = self._loaded.predict([pair[:2] for pair in seen], show_progress_bar=False) if seen else []
            passed = {id(pair[2]): float(one) >= self.at_least for pair, one in zip(seen, said, strict=True)}
        except BaseException as error:  # noqa: BLE001 - a model may raise anything, and the next pair may do
            for _, _, future in batch:
                future.set_exception(error if isinstance(error, Exception) else TierError("failed", repr(error)))
            return
        for _, _, future in batch:
            future.set_result(passed.get(id(future), False))

    def _sees(self, text: str, other: str) -> bool:
        """Say whether it sees both texts whole: what is cut off may tell them apart (law 12)."""
        tokens = self._loaded.tokenizer(text, other, verbose=False)["input_ids"]
        return self._window is None or len(tokens) <= self._window


def as_cross_encoder(value: str | os.PathLike[str] | CrossEncoder | None) -> CrossEncoder | None:
    """Return the second stage that a setting means. Raises ConfigurationError."""
    if value is None or isinstance(value, CrossEncoder):
        return value
    if not isinstance(value, str | os.PathLike):
        raise ConfigurationError(
            f"cross_encoder is a model's folder or name, or a semcache.CrossEncoder(...); got {value!r}"
        )
    return CrossEncoder(value)


def _folder_of(model: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not model.startswith((".", "/", "~")):
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError as error:
            raise MissingExtraError("a cross-encoder", "semantic") from error
        try:
            found = try_to_load_from_cache(model, "config.json")
        except ValueError:  # it is no name of a model
            found = None
        if isinstance(found, str):
            return Path(found).parent
    raise ConfigurationError(
        f"cross_encoder={model!r}: there is no such folder, and the hub's cache on this machine has no such model; "
        "nothing is downloaded for it: fetch it first (hf download NAME), or give its folder"
    )
