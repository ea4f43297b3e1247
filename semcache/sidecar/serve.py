"""A sidecar's life: it listens at once, warms up behind that, and drains before it ends.

Laws: what is configured wrongly is told before anything listens; a signal ends nothing that is being answered, as far
as `timeout.drain` lets it; entries that were answered with are in the store when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from semcache.cache import Cache
from semcache.errors import ConfigurationError
from semcache.recording import Recording
from semcache.sidecar.board import Board
from semcache.sidecar.credentials import Credentials
from semcache.sidecar.doors import Doors
from semcache.sidecar.health import Health, HealthOnly
from semcache.sidecar.incoming import Limits
from semcache.sidecar.live import Live
from semcache.sidecar.own import OwnEmbeddings
from semcache.sidecar.programs import Programs
from semcache.sidecar.proxy import Elsewhere, Proxy
from semcache.sidecar.renewal import Renewal
from semcache.sidecar.server import Beside, QuietServer, config_of
from semcache.sidecar.settings import Settings, without_secrets
from semcache.sidecar.sockets import SocketFile, listening, listening_at
from semcache.sidecar.upstream import BrokenOffError, Upstream
from semcache.sidecar.watched import Watched
from semcache.telemetry.logging import JsonFormatter, LoggingObserver
from semcache.ttl import TTL, Timeouts, seconds, size_bytes
from semcache.wrap.clients.options import client_options
from semcache.wrap.default import policy_of

if TYPE_CHECKING:
    from semcache.sidecar.crowd import Crowd
    from semcache.sidecar.tracing import Calls
    from semcache.telemetry.otlp import Export

logger = logging.getLogger("semcache.sidecar")

_FLUSH_SECONDS = 5.0


def serve(settings: Settings, say: Callable[[str], None], read: Callable[[], Settings] | None = None) -> None:
    """Run a sidecar until a signal ends it, and `say` where it listens; SIGHUP takes anew what `read` returns.

    Raises ConfigurationError, and OSError where it cannot listen.
    """
    begin_process(settings)
    sidecar = _sidecar_of(settings)
    sidecar.listen()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            loop = runner.get_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, sidecar.end)
            if read is not None:
                loop.add_signal_handler(signal.SIGHUP, partial(sidecar.renew, read))
            runner.run(sidecar.run(lambda: say(sidecar.told())))
    finally:
        sidecar.close()


def _sidecar_of(settings: Settings) -> Sidecar:
    if settings.workers == 1:
        return Sidecar(settings)
    from semcache.sidecar.owner import Owner

    return Owner(settings)


def begin_process(settings: Settings) -> None:
    """Do what is done once in a process of a sidecar: log as the settings say, let many connections be open."""
    _log(settings.log)
    _allow_connections()


class Sidecar:
    """One sidecar: `listen`, `run` until `end` is called, `close`. Raises ConfigurationError.

    `elsewhere` is given what is no call, where another process holds the cache; `crowd` is those that answer calls for
    this one.
    """

    # Whether what it listens at is for processes of ours alone.
    _is_behind = False

    def __init__(
        self, settings: Settings, cache: Cache | None = None, *, elsewhere: Elsewhere | None = None,
        crowd: Crowd | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._credentials = Credentials(settings.tokens, settings.secret)
        self._upstream = upstream_of(settings)
        self.cache = cache_of(settings) if cache is None else cache
        self._health = Health(self.cache, settings.limit_requests, crowd)
        self.live = Live(self.cache.clock.time, texts=settings.dashboard_texts)
        self._export: Export | None = None
        self._upstream.heard = self._health.counts.asked
        try:
            self._proxy = proxy = proxy_of(
                settings, self.cache, self._upstream, self._credentials, self._health, self.live, elsewhere
            )
            calls = self._traced(settings.otlp) if settings.otlp else None
            watched = Watched(proxy, self._health.counts, calls, names=settings.log == "json")
            self._config = config_of(settings, watched, is_plain=self._is_behind, is_behind=self._is_behind)
            self._health_config = config_of(settings, HealthOnly(self._health), is_plain=True)
        except ConfigurationError:
            if cache is None:
                self.cache.close()
            raise
        self._sockets: list[socket.socket] = []
        self._health_sockets: list[socket.socket] = []
        self._file: SocketFile | None = None
        self._server: uvicorn.Server | None = None
        self._is_ending = False
        self._renewing: set[asyncio.Task[None]] = set()
        self._renewal: Renewal | None = None

    def _traced(self, endpoint: str) -> Calls:
        """Have all that is done told to a collector. Raises MissingExtraError."""
        from semcache.sidecar.tracing import Calls
        from semcache.telemetry.otlp import Export
        from semcache.telemetry.tracing import Tracing

        self._export = export = Export(endpoint)
        self.cache.recorder.add_observer(Tracing(export.provider, usage=True))
        self._health.counts.spans = lambda: export.counts
        calls = Calls(export.provider)
        self._upstream.carried = calls.carried
        return calls

    def listen(self) -> None:
        """Take addresses, before anything slow begins. Raises OSError, with the mend."""
        settings = self._settings
        try:
            self._sockets.append(listening(settings.host, settings.port))
            if settings.unix:
                path = Path(settings.unix)
                self._sockets.append(listening_at(path))
                self._file = SocketFile(path)
            if settings.health_port:
                self._health_sockets.append(listening(settings.health_host, settings.health_port))
        except OSError:
            self.close()
            raise

    @property
    def programs(self) -> Programs:
        """What answers programs with caches of their own."""
        return self._proxy.programs

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._listens_at.getsockname()[:2]
        return f"{'https' if self._settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def _listens_at(self) -> socket.socket:
        return self._sockets[0]

    @property
    def is_random(self) -> bool:
        """Whether no secret was set."""
        return self._credentials.is_random

    def told(self) -> str:
        """Return in a line where it listens."""
        also = f" and unix://{self._settings.unix}" if self._settings.unix else ""
        behind = ", ".join(without_secrets(server.url) for server in self._settings.upstream)
        told = f"in front of {behind}" if behind else f"with embeddings of {self._settings.embedder} alone"
        return f"semcache listens at {self.url}{also}, {told}"

    async def run(self, say: Callable[[], None]) -> None:
        """Serve until `end` is called, and until what was being answered then has ended; `say` when it listens."""
        cache, upstream = self.cache, self._upstream
        if self.is_random and cache.store is not None:
            logger.warning(
                "no secret is set, so callers' keys have digests of this start alone, and what the store holds for "
                "them is found no more after it: set SEMCACHE_SECRET to one secret for all sidecars of the store"
            )
        async with cache:
            self.programs.control.begin()
            self._server = server = QuietServer(self._config)
            server.should_exit = self._is_ending
            warming = asyncio.create_task(self._health.warm())
            sockets = self._health_sockets
            beside = Beside(QuietServer(self._health_config), sockets) if sockets else None
            say()
            try:
                await server.serve(self._sockets)
            finally:
                warming.cancel()
                if beside is not None:
                    await beside.end()
                await upstream.close()
        if self._export is not None:
            await asyncio.to_thread(self._export.close, _FLUSH_SECONDS)

    def renew(self, read: Callable[[], Settings]) -> None:
        """Take the settings anew behind the calls, as far as a running sidecar can; called on its loop."""
        if self._renewal is None:
            tls = self._config.ssl
            self._renewal = Renewal(self._settings, self.cache, self._credentials, tls)
        task = asyncio.ensure_future(self._renewal.renew(read))
        self._renewing.add(task)
        task.add_done_callback(self._renewing.discard)
        task.add_done_callback(lambda _: self._renewed())

    def _renewed(self) -> None:
        """Go on with settings that were taken anew."""
        if self._renewal is not None:
            self._settings = self._renewal.settings

    def end(self) -> None:
        """Take no more calls, and end when those that are being answered have ended; called twice, at once."""
        self._health.is_draining = True
        self.programs.control.end()
        self._give_file_back()
        if self._server is not None:
            self._server.force_exit = self._is_ending
            self._server.should_exit = True
        self._is_ending = True

    def close(self) -> None:
        """Give the addresses back."""
        for one in (*self._sockets, *self._health_sockets):
            one.close()
        self._give_file_back()

    def _give_file_back(self) -> None:
        """Remove the socket's file, once: from then on another sidecar may listen there."""
        if self._file is not None:
            self._file.remove()
            self._file = None


def cache_of(settings: Settings) -> Cache:
    """Make the cache of a sidecar. Raises ConfigurationError."""
    return Cache(
        settings.namespace,
        **of_each(settings),
        disk=settings.disk or None,
        disk_size=settings.disk_size,
        redis=settings.redis or None,
        memcached=settings.memcached or None,
        embedder=settings.embedder or None,
        shadow_embedder=settings.shadow_embedder or None,
        semantic=settings.semantic,
        device=settings.device,
        gpu_memory=settings.gpu_memory or None,
        policy=policy_of(settings.policy),
        audit=settings.audit,
        ttl=TTL(
            memory=settings.ttl_memory,
            disk=settings.ttl_disk,
            redis=settings.ttl_redis,
            memcached=settings.ttl_memcached,
            semantic=settings.ttl_semantic,
        ),
        timeouts=Timeouts(
            redis=settings.timeout_redis,
            memcached=settings.timeout_memcached,
            disk=settings.timeout_disk,
            semantic=settings.timeout_semantic,
            flight=settings.timeout_flight,
        ),
    )


def of_each(settings: Settings) -> dict[str, Any]:
    """Return what the cache of each process of a sidecar is made with."""
    return {
        "memory": settings.memory, "mode": settings.mode, "max_value": settings.max_value,
        "compress": settings.compress or None, "prices": settings.prices or None,
        "record": Recording(settings.record) if settings.record else None,
        "observers": [LoggingObserver(texts=settings.log_texts)] if settings.log == "json" else (),
    }  # fmt: skip


def upstream_of(settings: Settings) -> Upstream:
    """Make the pool of connections to the servers behind."""
    return Upstream(
        settings.upstream,
        connect=seconds(settings.timeout_connect, "timeout.connect"),
        read=seconds(settings.timeout_upstream, "timeout.upstream"),
        connections=settings.limit_connections,
    )


def proxy_of(
    settings: Settings, cache: Cache, upstream: Upstream, credentials: Credentials, health: Health, live: Live,
    elsewhere: Elsewhere | None,
) -> Proxy:  # fmt: skip
    """Make the application. Raises ConfigurationError."""
    options = client_options(
        text=None, key=None, tenant=None, lives=None, tags=(), version="", ignore=(), when=None, stage=None, usage=None,
        sampling=settings.sampling, tool_calls=settings.tool_calls, history="all", replay_rate=None, prompt_cache=None,
        documents=None,
    )  # fmt: skip
    doors = Doors(settings.hosts, is_local=settings.is_local, has_tokens=credentials.has_tokens)
    limits = Limits(size_bytes(settings.limit_body, "limit.body"), settings.limit_requests)
    cache.recorder.add_observer(live)
    board = Board(cache, live, health)
    own = OwnEmbeddings(cache, settings.embedder)
    return Proxy(
        cache, upstream, credentials, options, limits, health, _longest(settings), doors, board, own, elsewhere
    )  # fmt: skip


def _longest(settings: Settings) -> float:
    """Return the longest life that a caller may ask for: that of the tier which keeps answers for all."""
    # The exact store says what has ended; memcached beside it only holds copies.
    for name, is_there, ttl in (
        ("ttl.redis", settings.redis, settings.ttl_redis),
        ("ttl.disk", settings.disk, settings.ttl_disk),
        ("ttl.memcached", settings.memcached, settings.ttl_memcached),
    ):
        if is_there:
            return seconds(ttl, name)
    return seconds(settings.ttl_memory, "ttl.memory")


def _log(form: str) -> None:
    """Log to stderr: what went wrong, or as JSON a line for each event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("semcache: %(message)s"))
    handler.addFilter(_is_worth_a_trace)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what is not sent we tell ourselves, once
    if form == "json":
        logging.getLogger("semcache.events").setLevel(logging.INFO)


def _is_worth_a_trace(record: logging.LogRecord) -> bool:
    """Leave out what was a caller's or a server's doing: that a stream broke off, its reader sees."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, BrokenOffError)


def _allow_connections() -> None:
    """Let as many connections be open as this user may have."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def loop_factory() -> Any:
    """Return what makes event loops here; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:  # there is none for this system
        return None
    return uvloop.new_event_loop
