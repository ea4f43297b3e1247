"""Where a Redis is and how to speak to it: from a URL, or taken over from a client object of redis-py."""

from __future__ import annotations

from typing import Any

from semcache.errors import ConfigurationError, MissingExtraError

DEFAULT_CONNECTIONS = 32
_FORMS = '"redis://localhost:6379/0", "rediss://...", "unix:///run/redis.sock", or a redis.Redis client'
# What connections of threads and of tasks are made with alike.
_KNOWN = frozenset({
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "socket_keepalive",
    "socket_keepalive_options", "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data",
    "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "ssl_password", "ssl_ca_path",
})  # fmt: skip
# What a client may have that would change what is sent or read; ours decides these itself.
_OURS = frozenset({
    "socket_timeout", "socket_connect_timeout", "retry", "retry_on_timeout", "retry_on_error", "health_check_interval",
    "max_connections", "encoding", "encoding_errors", "decode_responses", "protocol", "lib_name", "lib_version",
    "driver_info", "timeout", "legacy_responses", "redis_connect_func", "parser_class", "socket_read_size",
    "maint_notifications_config", "maint_notifications_pool_handler", "event_dispatcher", "himport_registry",
    "orig_host_address", "orig_socket_timeout", "orig_socket_connect_timeout", "single_connection_client",
    "auto_close_connection_pool", "oss_cluster_maint_notifications_handler", "command_packer",
})  # fmt: skip


class Address:
    """One Redis: makes connections to it, for threads and for tasks, without retries and without extra commands."""

    def __init__(self, kind: str, settings: dict[str, Any], max_connections: int) -> None:
        self.kind = kind
        self.max_connections = max_connections
        self._settings = settings

    @property
    def where(self) -> str:
        """The address as people read it; never with its password."""
        if self.kind == "unix":
            return f"unix://{self._settings.get('path', '')}"
        scheme = "rediss" if self.kind == "tls" else "redis"
        host, port = self._settings.get("host", "localhost"), self._settings.get("port", 6379)
        return f"{scheme}://{host}:{port}/{self._settings.get('db', 0)}"

    def connect(self) -> Any:
        """Return a connection for threads, not connected yet; whoever uses it sets its `deadline`, or its `silence`."""
        from semcache.stores import deadline

        kinds = {
            "tcp": deadline.TimelyConnection, "tls": deadline.TimelySSLConnection, "unix": deadline.TimelyUnixConnection
        }  # fmt: skip
        return kinds[self.kind](**self._made())

    def aconnect(self) -> Any:
        """Return a connection for the tasks of a loop, not connected yet; whoever uses it sees to the time."""
        from redis.asyncio import connection

        kinds = {
            "tcp": connection.Connection, "tls": connection.SSLConnection, "unix": connection.UnixDomainSocketConnection
        }  # fmt: skip
        return kinds[self.kind](**self._made(), socket_timeout=None, socket_connect_timeout=None)

    def _made(self) -> dict[str, Any]:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # redis-py's default retries turn a deadline of 50 ms into seconds; RESP2 needs no HELLO, and no rights for it.
        return {**self._settings, "protocol": 2, "driver_info": None, "retry": Retry(NoBackoff(), 0)}


def address_of(redis: Any) -> Address:
    """Read a URL or a client. Raises ConfigurationError, with the mend."""
    try:
        from redis.connection import parse_url
    except ImportError:
        raise MissingExtraError("redis=", "redis") from None
    if isinstance(redis, str):
        try:
            return _address(parse_url(redis))  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigurationError(f"redis= is {_FORMS}; got {_without_password(redis)!r}: {error}") from error
    pool = getattr(redis, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    kind = getattr(pool, "connection_class", None)
    if not isinstance(settings, dict) or kind is None:
        raise ConfigurationError(f"redis= is {_FORMS}; got {redis!r}")
    return _address({**settings, "connection_class": kind})


def _address(settings: dict[str, Any]) -> Address:
    made = getattr(settings.pop("connection_class", None), "__name__", "Connection")
    kind = {"Connection": "tcp", "SSLConnection": "tls", "UnixDomainSocketConnection": "unix"}.get(made)
    if kind is None:
        raise ConfigurationError(f"redis= is {_FORMS}; a client whose connections are {made} is none of these")
    strange = settings.keys() - _KNOWN - _OURS
    if strange:
        raise ConfigurationError(f"redis= was given {', '.join(sorted(strange))}, which semcache cannot take over")
    if settings.get("redis_connect_func") is not None:
        raise ConfigurationError("redis= was given a client with a redis_connect_func, which semcache cannot take over")
    most = settings.get("max_connections")
    most = most if isinstance(most, int) and 0 < most < 2**16 else DEFAULT_CONNECTIONS
    return Address(kind, {name: settings[name] for name in settings.keys() & _KNOWN}, most)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at else url
