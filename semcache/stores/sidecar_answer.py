"""An HTTP answer of a sidecar's as it comes, read by llhttp."""

from __future__ import annotations

from collections.abc import Callable

from semcache.errors import MissingExtraError, TierError

try:
    from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
except ImportError as error:
    raise MissingExtraError("Cache(sidecar=...)", "remote") from error


# A larger answer is none: 256 lookups of the largest values that are usual.
MOST_BYTES = 256 << 20


class GoneError(ConnectionError):
    """The sidecar has closed the connection before it answered."""


class Answer:
    """An answer as it comes: feed it bytes until it `is_whole`; `on_body` is given a body that is not to be kept."""

    def __init__(self, on_body: Callable[[bytes], None] | None = None) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.on_body = self._keep if on_body is None else on_body
        self._parser = HttpResponseParser(self)
        self.has_begun = self.has_head = self.is_whole = False
        self.status = 0
        self.stays = True

    def feed(self, data: bytes) -> None:
        """Take bytes. Raises TierError for what is no HTTP."""
        self.has_begun = True
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as error:
            raise TierError("reply", "the sidecar's answer offers another protocol") from error
        except HttpParserError as error:
            raise TierError("reply", f"the sidecar's answer is no HTTP: {error}") from error
        if self._size > MOST_BYTES:
            raise TierError("large", f"the sidecar's answer is over {MOST_BYTES} bytes")

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)

    def on_headers_complete(self) -> None:
        self.has_head = True
        self.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        self.is_whole = True
        self.stays = self._parser.should_keep_alive()

    @property
    def body(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
