"""What serves an application: uvicorn, with our protocol and bounds, and signals that are ours to handle."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import uvicorn

from semcache.errors import ConfigurationError
from semcache.sidecar.protocol import bounded
from semcache.sidecar.settings import Settings
from semcache.sidecar.sockets import BACKLOG
from semcache.ttl import seconds

_KEEP_ALIVE_SECONDS = 75


class QuietServer(uvicorn.Server):
    """A server whose signals are ours to handle, as the cache is closed behind it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Beside:
    """A server that runs beside another, until `end` is awaited."""

    def __init__(self, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        self._server = server
        self._serving = asyncio.ensure_future(server.serve(sockets))

    async def end(self) -> None:
        """Take no more requests, and end with those that are being answered."""
        self._server.should_exit = True
        await self._serving


def served_at(application: Any, sockets: list[socket.socket]) -> Beside:
    """Serve an application at sockets that other processes of ours connect to."""
    return Beside(QuietServer(config_of(Settings(), application)), sockets)


def config_of(
    settings: Settings, application: Any, *, is_plain: bool = False, is_behind: bool = False
) -> uvicorn.Config:  # fmt: skip
    """Return how an application is served. Raises ConfigurationError for a certificate that cannot be read.

    What `is_plain` has no TLS; what `is_behind` is asked by processes of ours alone, and believes whose certificate
    they have seen.
    """
    has_tls = bool(settings.tls_cert) and not is_plain
    try:
        config = uvicorn.Config(
            application,
            http=bounded(
                seconds(settings.timeout_headers, "timeout.headers"),
                seconds(settings.timeout_body, "timeout.body"),
                seconds(settings.timeout_write, "timeout.write"),
                is_behind=is_behind,
            ),
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=ceil(seconds(settings.timeout_drain, "timeout.drain")),
            ssl_certfile=settings.tls_cert if has_tls else None,
            ssl_keyfile=settings.tls_key if has_tls else None,
            ssl_ca_certs=settings.tls_client_ca or None if has_tls else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca and has_tls else ssl.CERT_NONE,
        )
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"tls_cert, tls_key, tls_client_ca: they cannot be read: {error}") from error
    return config
