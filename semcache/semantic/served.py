"""An embedder behind a URL: a server that speaks OpenAI's `/embeddings`, so that a process needs no torch and no model.

Laws:
- its identity is the server's: the model that its answers name, their dimension and the signs of a known text's vector
  (law 11). It is asked when it is loaded, and compared as it goes; where it is another, nothing of before is used;
- how much of a text it sees is tried out, as a server that cuts a text short does not say so (law 12);
- a server that is away fails at once between trials, and never text by text (law 10); a key is in no identity.
"""

from __future__ import annotations

import os
import time
import unicodedata
import weakref
from base64 import b64decode
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from semcache.errors import ConfigurationError, MissingExtraError, TierError
from semcache.semantic import coverage
from semcache.semantic.vectors import as_unit
from semcache.tier import Breaker
from semcache.ttl import Duration, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy import float32
    from numpy.typing import NDArray

_AT_ONCE = 32
"""Texts a request: what the strictest of the usual servers takes unless it is told otherwise."""
_KNOWN_TEXT = "The quick brown fox jumps over the lazy dog."
# New enough that only a tokenizer that falls back to bytes tells them apart.
_RARE = ("\U0001fae8", "\U0001fabf")
_COMPARED_SIGNS = 64
_SAME = 0.99  # the cosine of one text's vectors, by one model on whatever device
_EQUAL = 1e-4  # what is less apart than this is equal but for rounding
_COMPARE_SECONDS = 60.0
_TRIAL_WORDS = (2048, 512, 256, 128)
_SPECIAL_TOKENS = 8
# Statuses that are about what was asked, and not about the server.
_ABOUT_TEXT = frozenset({400, 413, 422})
_ABOUT_RIGHTS = frozenset({401, 403})


class EmbeddingServer:
    """The embedder at `url`, as "https://host/v1", which is asked at URL/embeddings.

    `model` is the name to ask for, also "https://host/v1#NAME"; without it, the one that the server has. `revision` is
    a word of yours that keeps vectors apart where the server's word does not change. `window` is what the model sees,
    in tokens; with `count(text) -> int` texts are measured by it, else by their bytes, of which no token has less than
    one; without `window` it is tried out. `languages` are ISO 639-1 codes. `timeout` is of one request. The key is
    `key`, else SEMCACHE_EMBEDDER_KEY, else, over https, OPENAI_API_KEY of the environment. Raises ConfigurationError,
    or MissingExtraError.
    """

    def __init__(
        self, url: str, *, model: str | None = None, revision: str = "", window: int | None = None,
        count: Callable[[str], int] | None = None, languages: Iterable[str] | None = None, timeout: Duration = "10s",
        key: str | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        try:
            import httpx  # noqa: F401 - said now rather than at the first lookup
        except ImportError:
            raise MissingExtraError(f"embedder={_shown(url)!r}", "http") from None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigurationError(
                f"embedder={_shown(url)!r}: give a server as http://host/v1 or https://host/v1, and the model, where "
                "it has several, as in http://host/v1#bge-small-en-v1.5"
            )
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window <= 0):
            raise ConfigurationError(f"an embedder's `window` is a positive whole number; got {window!r}")
        if count is not None and (window is None or not callable(count)):
            raise ConfigurationError("count= measures a text for window=: give both, and a callable from str to int")
        self.url = _shown(url)
        self._base = parts._replace(fragment="", path=parts.path.rstrip("/") or "/v1").geturl()
        self._wanted = model or unquote(parts.fragment)
        self._model = self._wanted
        self._revision = revision
        self._count = count
        self._timeout = seconds(timeout, "timeout of the embedder")
        ours = os.environ.get("SEMCACHE_EMBEDDER_KEY")
        self._key = key or ours or (os.environ.get("OPENAI_API_KEY") if parts.scheme == "https" else None)
        self._languages = None if languages is None else coverage.scripts_of(languages)
        self._clock = clock
        self.window = window
        # Not known before it is loaded, and not after the server has another model.
        self.identity = ""
        self.dimension: int | None = None
        self._scripts = self._languages
        self._knows_all = True
        self.seen_bytes = 0
        self._named = ""
        self._known: Any = None
        self._compare_at = 0.0
        self._breaker = Breaker(clock, failures=1)
        # By process: sockets and locks do not go through a fork.
        self._clients: dict[int, Any] = {}
        self._loading: dict[int, Lock] = {}
        weakref.finalize(self, _hang_up, self._clients)

    def load(self) -> None:
        """Ask the server who it is, and how much of a text it sees.

        Raises ConfigurationError with the mend, or TierError where it cannot be reached.
        """
        with self._loading.setdefault(os.getpid(), Lock()):
            if self.identity:
                return
            self._model = self._wanted or self._only_model()
            named, vectors = self._embeddings([_KNOWN_TEXT, *_RARE])
            self._knows_all = bool(1 - vectors[1] @ vectors[2] > _EQUAL)
            # One that takes all rare characters for one does not tell other scripts' apart, unless it is said to.
            self._scripts = self._languages or (None if self._knows_all else coverage.scripts_of(["en"]))
            self.seen_bytes = self._tried() if self.window is None else max(0, self.window - _SPECIAL_TOKENS)
            self._named, self._known, self.dimension = named, vectors[0], vectors.shape[1]
            signs = "".join("1" if number > 0 else "0" for number in self._known[:_COMPARED_SIGNS])
            told = [f"server:{named}", f"dimension={self.dimension}", f"signs={int(signs, 2):x}"]
            self._compare_at = self._clock() + _COMPARE_SECONDS
            self._breaker.succeeded()
            self.identity = ";".join([*told, f"revision={self._revision}"] if self._revision else told)

    def __call__(self, texts: list[str], /) -> NDArray[float32]:
        """Return unit vectors, float32[n, d], loading first if need be.

        Raises TierError where the server fails, or has another model than before; ValueError for texts it refuses.
        """
        import numpy as np

        self.load()
        if not texts:
            return np.empty((0, self.dimension or 0), np.float32)
        if not self._breaker.allows():
            raise TierError("open", f"the embedder {self.url} failed, and is left alone for a moment")
        parts = [self._compared(texts[at : at + _AT_ONCE]) for at in range(0, len(texts), _AT_ONCE)]
        return np.concatenate(parts)

    def covers(self, text: str) -> str | None:
        """Return None if the model sees the text whole, as far as that is known, else why not."""
        reason = coverage.unreadable(text, self._scripts)
        if reason is None and not self._knows_all:
            reason = coverage.unusual(text)
        if reason is not None:
            return reason
        if self.window is not None and self._count is not None:
            return coverage.too_long(len(text), self.window) or coverage.too_many(self._count(text), self.window)
        most = self.seen_bytes
        # What tokenizers make of a character may be longer than it is.
        if len(text) > most or len(unicodedata.normalize("NFKC", text).encode()) > most:
            return f"the text is longer than the {most} bytes that the embedder is known to see whole"
        return None

    # The server

    def _compared(self, texts: list[str]) -> NDArray[float32]:
        """Ask for vectors, and see whether they are still the same model's: now and then with a text that is known."""
        is_due = self._clock() >= self._compare_at
        try:
            named, vectors = self._embeddings([*texts, _KNOWN_TEXT] if is_due else texts)
        except (TierError, ConfigurationError):  # a key may be taken back
            self._breaker.failed()
            self._compare_at = 0.0  # who was away may come back as another
            raise
        self._breaker.succeeded()
        is_same = named == self._named and vectors.shape[1] == self.dimension
        if not is_same or (is_due and vectors[-1] @ self._known < _SAME):
            was, self.identity = self.identity, ""
            raise TierError("changed", f"the server {self.url} no longer has the model {was}")
        if is_due:
            self._compare_at = self._clock() + _COMPARE_SECONDS
        return vectors[: len(texts)]

    def _tried(self) -> int:
        """Return how many bytes of a text are surely seen: of so many words, each a token or more, the last matter."""
        for words in _TRIAL_WORDS:
            tail = words // 8
            head = " ".join(str(place % 10) for place in range(words - tail))
            try:
                _, (one, other) = self._embeddings([head + " dog" * tail, head + " tax" * tail])
            except (ValueError, TierError):  # refused, or too much for it: it says so, and less may do
                if words == _TRIAL_WORDS[-1]:
                    raise
                continue
            if 1 - one @ other > _EQUAL:
                return words - tail
        return 0

    def _only_model(self) -> str:
        listed = self._answer("GET", "/models").get("data")
        names = [str(one.get("id")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        if len(names) == 1:
            return names[0]
        has = f"has {len(names)} models ({', '.join(names[:5])})" if names else "does not say which models it has"
        raise ConfigurationError(f"the embedder {self.url} {has}. Name the one: embedder='{self.url}#MODEL'")

    def _embeddings(self, texts: Sequence[str]) -> tuple[str, NDArray[float32]]:
        """Return the name of the model that answered, and unit vectors."""
        import numpy as np

        told = self._answer("POST", "/embeddings", {"model": self._model, "input": list(texts)})
        try:
            rows = sorted(told["data"], key=lambda row: row["index"])
            vectors = np.array([_numbers(row["embedding"]) for row in rows], np.float64)
        except Exception as error:
            raise ValueError(f"the server {self.url} answered with no embeddings: {str(told)[:200]}") from error
        return str(told.get("model") or self._model), as_unit(vectors, len(texts), self.url)

    def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            response = self._client().request(method, self._base + path, json=body)
            told = response.json() if response.is_success else None
        except httpx.TimeoutException as error:
            raise TierError("late", f"the embedder {self.url} did not answer in {self._timeout:g} s") from error
        except httpx.HTTPError as error:
            raise TierError("unreachable", f"the embedder {self.url} cannot be asked: {error}") from error
        except ValueError as error:
            raise TierError("reply", f"the embedder {self.url} does not answer in JSON") from error
        if isinstance(told, dict):
            return told
        said = f"the embedder {self.url} answered {method} {path} with {response.status_code}: {response.text[:200]}"
        if response.status_code in _ABOUT_RIGHTS:
            raise ConfigurationError(f"{said}. Give its key in the environment variable SEMCACHE_EMBEDDER_KEY")
        if response.status_code in _ABOUT_TEXT:
            raise ValueError(said)
        raise TierError("status", said)

    def _client(self) -> Any:
        """Return this process's client, whose connections are kept."""
        import httpx

        client = self._clients.get(os.getpid())
        if client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            client = self._clients[os.getpid()] = httpx.Client(
                timeout=self._timeout, headers=headers, verify=_certificates()
            )
        return client


@lru_cache(maxsize=1)
def _certificates() -> Any:
    """Return whom a connection trusts: to read that costs more than all else that a client is made of."""
    import httpx

    return httpx.create_ssl_context()


def _hang_up(clients: dict[int, Any]) -> None:
    """Close the connections of this process."""
    client = clients.pop(os.getpid(), None)
    if client is not None:
        client.close()


def _numbers(told: Any) -> Any:
    """Return the numbers of one vector: a list, or little-endian float32 as base64."""
    import numpy as np

    return np.frombuffer(b64decode(told, validate=True), "<f4") if isinstance(told, str) else told


def _shown(url: str) -> str:
    """Return a URL without its user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
