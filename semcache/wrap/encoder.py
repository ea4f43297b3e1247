"""What `encode` of a SentenceTransformer is: whose vectors it makes, and which of its calls give float32 of texts.

Laws: a model is named by what it is made of, read off the object at decoration: its modules with their settings, its
tokenizer, and samples of all its weights; what can be set on it afterwards (window, prompts, truncation) is read at
each call; a call that asks for another form than vectors in numpy goes to the model as it is. No package is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import PurePath
from types import MethodType
from typing import Any

from semcache.errors import UnkeyableError
from semcache.keys import canonical

_METHODS = frozenset({"encode", "encode_query", "encode_document"})
# How fast, and what is shown meanwhile: rounding apart, no vector differs by them.
HOW_TO_COMPUTE = frozenset({"batch_size", "show_progress_bar", "chunk_size"})
# What makes an answer something else than float32[n, d] in numpy, unless it is said so.
_FORMS: Mapping[str, tuple[Any, ...]] = {
    "output_value": ("sentence_embedding",), "precision": ("float32",), "convert_to_numpy": (True,),
    "convert_to_tensor": (False, None),
}  # fmt: skip
_SET_LATER = ("max_seq_length", "prompts", "default_prompt_name", "truncate_dim")
_SAMPLES = 64


class Encoder:
    """A SentenceTransformer behind one of its methods; `name` tells people which."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.digest = _digest_of(model)
        self.name = f"{_told_name(model)}@{self.digest.hex()[:12]}"

    def settings(self) -> bytes:
        """Return what its owner may have set since. Raises UnkeyableError."""
        return canonical([getattr(self._model, name, None) for name in _SET_LATER])

    @staticmethod
    def check(parameters: Mapping[str, Any]) -> None:
        """Raise UnkeyableError where a call asks for something else than vectors as numpy has them."""
        for name, usual in _FORMS.items():
            if name in parameters and parameters[name] not in usual:
                raise UnkeyableError(f"it is {parameters[name]!r}: only float32 vectors are kept", f"argument {name!r}")


def encoder_of(method: object) -> Encoder | None:
    """Return the encoder that a bound method is of; None for any other callable."""
    if not isinstance(method, MethodType) or getattr(method, "__name__", "") not in _METHODS:
        return None
    kinds = type(method.__self__).__mro__
    is_one = any(
        kind.__name__ == "SentenceTransformer" and kind.__module__.partition(".")[0] == "sentence_transformers"
        for kind in kinds
    )
    return Encoder(method.__self__) if is_one else None


def _told_name(model: Any) -> str:
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    path = PurePath(str(getattr(config, "_name_or_path", "") or type(model).__name__))
    return path.name


def _digest_of(model: Any) -> bytes:
    """Return a digest of modules, tokenizer and samples of the weights, which training changes everywhere."""
    digest = blake2b(digest_size=16)
    for place, module in model.named_children():
        settings: Mapping[str, Any] = getattr(module, "get_config_dict", dict)()
        digest.update(f"{place}\0{type(module).__qualname__}\0{sorted(map(repr, settings.items()))}\0".encode())
    own: Any = getattr(model, "tokenizer", None)
    backend = getattr(own, "backend_tokenizer", own)
    told = backend.to_str() if hasattr(backend, "to_str") else repr(own)
    digest.update(_without_lengths(told).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLES)
        digest.update(flat[::step][:_SAMPLES].double().cpu().numpy().tobytes())
    return digest.digest()


def _without_lengths(told: str) -> str:
    """Leave out of a tokenizer how it cuts and pads: it is a state, which the calls themselves set."""
    import json

    try:
        parts = json.loads(told)
    except ValueError:
        return told
    return json.dumps({name: part for name, part in parts.items() if name not in ("truncation", "padding")})
