"""The sidecar's own embedder, offered as any server's `/v1/embeddings`: processes without a model ask it for vectors.

Laws: it answers for the model of its own name alone, and asks no server behind; a text that is too long is refused, and
never cut; which of a text's signs the model does not know is its caller's to judge (law 12), as of any such server.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from semcache.cache import Cache
from semcache.errors import TierError
from semcache.sidecar.asked import parsed
from semcache.sidecar.refusals import BAD, BUSY, RefusedError

PATHS = ("/v1/embeddings", "/v1/models")
# As many as the usual servers take at once.
_MOST_TEXTS = 2048
_FORMATS = ("float", "base64")


class OwnEmbeddings:
    """The embeddings of a cache's embedder, which is called `embedder` in the settings."""

    def __init__(self, cache: Cache, embedder: str) -> None:
        self._cache = cache
        # One behind a URL is asked by its fragment, a folder by its own name, a model of an owner's also without that.
        name = unquote(urlsplit(embedder).fragment) if "://" in embedder else embedder
        # A worker has none itself, and hands on what is asked of its owner's.
        has_one = cache.semantic is not None or (cache.sidecar is not None and bool(embedder))
        self.names = frozenset({name, PurePath(name).name} - {""}) if has_one else frozenset()
        self.name = PurePath(name).name

    def asked(self, path: str, body: bytes) -> dict[str, Any] | None:
        """Return what is asked of this embedder; None where it is another's to answer."""
        if path != PATHS[0] or not self.names:
            return None
        try:
            told = parsed(body)
        except (ValueError, RecursionError):
            return None
        return told if told.get("model") in self.names else None

    async def answer(self, told: dict[str, Any]) -> bytes:
        """Return the embeddings as OpenAI's interface has them. Raises RefusedError."""
        texts, form = told.get("input"), told.get("encoding_format", "float")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise RefusedError(BAD, "input: it is a text, or a list of texts, none of them empty")
        if len(texts) > _MOST_TEXTS:
            raise RefusedError(BAD, f"input: at most {_MOST_TEXTS} texts at once; got {len(texts)}")
        if form not in _FORMATS:
            raise RefusedError(BAD, f'encoding_format: it is "float" or "base64"; got {str(form)[:40]!r}')
        vectors = await self._vectors(texts)
        if told.get("dimensions", len(vectors[0])) != len(vectors[0]):
            raise RefusedError(BAD, f"dimensions: this model has {len(vectors[0])}")
        rows = [
            {"object": "embedding", "index": place, "embedding": _written(vector, form)}
            for place, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # nothing is billed
        said = {"object": "list", "data": rows, "model": self.name, "usage": usage}
        return json.dumps(said, separators=(",", ":")).encode()

    def listed(self) -> bytes:
        """Return the list of models, where no server is behind."""
        models = [{"id": self.name, "object": "model", "created": 0, "owned_by": "semcache"}] if self.names else []
        return json.dumps({"object": "list", "data": models}).encode()

    async def _vectors(self, texts: list[str]) -> list[Any]:
        """Return unit vectors, made in a batch with what others ask meanwhile. Raises RefusedError."""
        semantic = self._cache.semantic
        assert semantic is not None  # noqa: S101 - else it has no name
        try:
            futures = [semantic.batcher.embed(text, as_it_is=True) for text in texts]
        except TierError as error:  # too many wait, or it is closed
            raise RefusedError(BUSY, f"the embedder: {error}") from error
        vectors = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        for text, vector in zip(texts, vectors, strict=True):
            if isinstance(vector, TierError) and vector.reason == "uncovered":
                raise RefusedError(BAD, f"input: {vector} ({len(text)} characters)")
            if isinstance(vector, BaseException):
                raise RefusedError(BUSY, f"the embedder: {type(vector).__name__}: {vector}") from vector
        return vectors


async def give(send: Callable[[Mapping[str, Any]], Awaitable[None]], body: bytes) -> None:
    """Send what no server behind was asked for."""
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"x-semcache", b"bypass")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _written(vector: Any, form: str) -> Any:
    return b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
