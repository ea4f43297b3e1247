"""What a running sidecar takes anew at SIGHUP: its policy, its tokens and the keys behind them, its certificate.

Laws: all of it is read and checked before any of it is taken, so that what is wrong leaves all as it was, and is told
in a line; no call is dropped; what else has changed is named, as it wants a new start. Nothing is watched: a file is
read when its owner says that it is whole.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import fields, replace

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.policy import Tuned
from semcache.sidecar.credentials import Credentials
from semcache.sidecar.settings import Settings, key_of
from semcache.wrap.default import policy_of

logger = logging.getLogger("semcache.sidecar")

_TAKEN = frozenset({"policy", "audit", "tokens"})


class Renewal:
    """Takes settings anew, in a sidecar that was made with some."""

    def __init__(
        self, settings: Settings, cache: Cache, credentials: Credentials, tls: ssl.SSLContext | None
    ) -> None:  # fmt: skip
        self.settings = settings
        self._cache = cache
        self._credentials = credentials
        self._tls = tls
        self._turn = asyncio.Lock()

    async def renew(self, read: Callable[[], Settings]) -> None:
        """Take what has changed of the settings that `read` returns, which may raise ConfigurationError."""
        async with self._turn:
            try:
                # Files are read, and what others have learned.
                told = await asyncio.to_thread(self._renewed, read)
            except ConfigurationError as error:
                told = f"the settings were not taken anew, all stays as it was: {error}"
            logger.warning("%s", told)

    def _renewed(self, read: Callable[[], Settings]) -> str:
        """Take what has changed, and say what. Raises ConfigurationError, and has changed nothing then."""
        old, new = self.settings, read()
        tokens = self._credentials.renewed(new.tokens, [server.url for server in old.upstream])
        if self._tls is not None:
            self._load_certificate(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), old)
        policy = policy_of(new.policy)  # a file is read again, whatever it was called before
        if isinstance(policy, Tuned) or (new.policy, new.audit) != (old.policy, old.audit):
            self._cache.adopt(policy, audit=new.audit)
        if self._tls is not None:
            self._load_certificate(self._tls, old)
        self._credentials.take(tokens)
        self.settings = replace(old, **{name: getattr(new, name) for name in _TAKEN})
        others = sorted(
            key_of(one) for one in fields(Settings)
            if one.name not in _TAKEN and getattr(old, one.name) != getattr(new, one.name)
        )  # fmt: skip
        rest = f"; these want a new start: {', '.join(others)}" if others else ""
        return f"the settings were taken anew: policy {new.policy}, {len(new.tokens)} tokens{rest}"

    @staticmethod
    def _load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"tls_cert, tls_key: they cannot be read: {error}") from error
