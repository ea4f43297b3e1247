"""Embedders: from texts to float32 unit vectors, checked, with a name that keeps their vectors apart (law 11).

An embedder is a sentence-transformers model, by name or path, a server's, by URL, or a callable of the user's. Making
one loads nothing; `load` does. What it does not see whole, `covers` names (law 12).
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from semcache.errors import ConfigurationError, MissingExtraError
from semcache.semantic import coverage
from semcache.semantic.served import EmbeddingServer
from semcache.semantic.transformer import SentenceTransformerEmbedder
from semcache.semantic.vectors import as_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy import float32
    from numpy.typing import NDArray

__all__ = [
    "CallableEmbedder",
    "Embedder",
    "EmbeddingServer",
    "SentenceTransformerEmbedder",
    "TextEmbedder",
    "as_embedder",
    "as_unit",
]

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?|cuda:\d+(,cuda:\d+)+")


class Embedder(Protocol):
    """What a user's callable must be: float32[n, d] for n texts, and a name.

    It may also have `dimension: int`, `window: int` in tokens with `count(text) -> int`, `languages`, ISO 639-1 codes,
    and `load()`. Without `window` it sees every text whole.
    """

    @property
    def identity(self) -> str:
        """What must differ where vectors may: model, revision, pooling, prefix."""
        ...

    def __call__(self, texts: list[str], /) -> Any: ...


class TextEmbedder(Protocol):
    """What the batcher works with; `as_embedder` makes one. `dimension` is known once it is loaded.

    So is the `identity` of one that a server has: empty before, and where the server has another model than before.
    """

    dimension: int | None

    @property
    def identity(self) -> str: ...

    def load(self) -> None:
        """Make it ready; again does nothing. Raises ConfigurationError with the mend, or the callable's own error."""
        ...

    def __call__(self, texts: list[str], /) -> NDArray[float32]:
        """Return unit vectors, float32[n, d]. Raises ValueError for what are none, or the callable's own error."""
        ...

    def covers(self, text: str) -> str | None:
        """Return None if the text is seen whole, else why not."""
        ...


class CallableEmbedder:
    """A user's callable, with its answers checked and made unit vectors."""

    def __init__(self, function: Embedder) -> None:
        identity = getattr(function, "identity", None)
        if not isinstance(identity, str) or not identity:
            raise ConfigurationError(
                f"the embedder {function!r} does not say whose vectors it makes: give it an attribute `identity`, "
                "a text that changes with the model, its revision and prefix: embed.identity = 'bge-small-en-v1.5'"
            )
        self.identity = identity
        self.dimension: int | None = _optional(function, "dimension", int)
        self.window: int | None = _optional(function, "window", int)
        self._count: Callable[[str], int] | None = getattr(function, "count", None)
        if self.window is not None and not callable(self._count):
            raise ConfigurationError(
                f"the embedder {identity!r} has a window in tokens; give it `count(text) -> int` too"
            )
        languages: Iterable[str] | None = getattr(function, "languages", None)
        self._scripts = None if languages is None else coverage.scripts_of(languages)
        self._function = function

    def load(self) -> None:
        """Call the callable's own `load`, if it has one, and learn the dimension, from one text if need be."""
        load = getattr(self._function, "load", None)
        if callable(load):
            load()
        if self.dimension is None:
            self.dimension = as_unit(self._function(["dimension"]), 1, self.identity).shape[1]

    def __call__(self, texts: list[str], /) -> NDArray[float32]:
        vectors = as_unit(self._function(texts), len(texts), self.identity)
        if self.dimension is not None and vectors.shape[1] != self.dimension:
            raise ValueError(
                f"the embedder {self.identity!r} gave vectors of dimension {vectors.shape[1]}, not {self.dimension}"
            )
        return vectors

    def covers(self, text: str) -> str | None:
        return coverage.unreadable(text, self._scripts) or self.too_long(text)

    def too_long(self, text: str) -> str | None:
        """Return why a text does not fit the window; None if it does."""
        reason = coverage.too_long(len(text), self.window)
        if reason or self.window is None or self._count is None:
            return reason
        return coverage.too_many(self._count(text), self.window)


def as_embedder(
    value: str | PathLike[str] | Embedder | TextEmbedder | None, device: str = "auto"
) -> TextEmbedder | None:
    """Return the embedder that a setting means: a model's name, path or URL, a named callable, or None.

    `device` is for models, of several the first; a callable chooses its own. Raises ConfigurationError or
    MissingExtraError, with the mend.
    """
    if value is None:
        return None
    if isinstance(value, PathLike):
        value = str(value)
    is_served = isinstance(value, EmbeddingServer) or (isinstance(value, str) and "://" in value)
    is_model = isinstance(value, str) and not is_served
    needs = ["numpy", "faiss", "torch", "sentence_transformers"] if is_model else ["numpy", "faiss"]
    if any(find_spec(package) is None for package in needs):
        raise MissingExtraError("an embedder", "http" if is_served else "semantic")
    if isinstance(value, str):
        if not value:
            raise ConfigurationError('an embedder is a model\'s name, as in embedder="all-MiniLM-L6-v2"; got ""')
        names = str(device).split(",")
        if not _DEVICE.fullmatch(str(device)) or len(set(names)) < len(names):
            raise ConfigurationError(
                'device is "auto", "cpu", "cuda", "cuda:1" or "mps", or several GPUs for the index, each once, of '
                f'which the first has the model too: "cuda:0,cuda:1"; got {device!r}'
            )
        if "://" in value:
            return EmbeddingServer(value)
        return SentenceTransformerEmbedder(value, device=names[0])
    if isinstance(value, SentenceTransformerEmbedder | EmbeddingServer | CallableEmbedder):
        return value
    if not callable(value):
        raise ConfigurationError(
            f"embedder={value!r} is neither a model's name or path nor a callable from list[str] to float32[n, d]"
        )
    return CallableEmbedder(value)


def _optional(function: Embedder, name: str, kind: type[int]) -> int | None:
    value = getattr(function, name, None)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or value <= 0):
        raise ConfigurationError(f"an embedder's `{name}` is a positive whole number; got {value!r}")
    return value
