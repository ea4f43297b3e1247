"""How a sidecar runs: one table of settings, read from flags, environment and a TOML file, the nearer before the other.

Laws: what is wrong is told in one message that names the place, the key and the mend; no secret is printed, and none
is a flag, where every user of the machine could read it.
"""

from __future__ import annotations

import os
import re
import tomllib
from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from semcache.errors import ConfigurationError
from semcache.sidecar.credentials import Token

PREFIX = "SEMCACHE_"

_PORTS = range(1 << 16)
# Names of what an address may tell in its query, and nobody else should see.
_SECRETS = re.compile(r"([?&;][^=&;#]*(?:pass|pwd|secret|token|key|auth|cred|sig)[^=&;#]*=)[^&;#]*", re.IGNORECASE)


_TOKENS = "tokens"
# What a policy's message begins with; and one of the cache's, "memory must be", "ttl of redis must be"; and arguments
# in it.
_POLICY = re.compile(r"(?:a threshold|max_wrong|an error budget|(?:a|the) policy) ")
_ABOUT = re.compile(r"(?:(ttl|timeout) of )?(\w+)(?= |=|:)")
_ARGUMENT = re.compile(r"\b(\w+)=(\"[^\"]*\"|'[^']*'|)")


def _setting(default: Any, about: str, metavar: str = "TEXT", *, name: str = "", is_secret: bool = False) -> Any:
    return field(
        default=default, metadata={"about": about, "metavar": metavar, "name": name, "is_secret": is_secret}
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    """A server behind the sidecar: `models` are patterns of the models that it has, none for all."""

    url: str
    models: tuple[str, ...] = ()

    def has(self, model: str) -> bool:
        """Say whether a call of this model is for it."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class Settings:
    """The table: each field is a key of the file, a flag and a variable of the environment.

    The field `ttl_redis` is `redis` of the file's table `[ttl]`, `--ttl-redis` and `SEMCACHE_TTL_REDIS`.
    """

    upstream: tuple[Server, ...] = _setting((), "the server behind, without /v1, as https://api.openai.com", "URL")
    host: str = _setting("127.0.0.1", "the address to listen at; another than this machine's own wants tokens", "HOST")
    port: int = _setting(8400, "the port to listen at; 0 takes a free one", "PORT")
    hosts: str = _setting(
        "", "names that a gateway in front passes on, as llm.example.com, with commas between", "NAMES"
    )
    unix: str = _setting("", "listen at a Unix socket too", "PATH")
    health_host: str = _setting("127.0.0.1", "where /livez and /readyz are served alone, without a token", "HOST")
    health_port: int = _setting(0, "the port of those; 0: none of its own, they are at --port", "PORT")
    tls_cert: str = _setting("", "the certificate, with its chain, as a PEM file", "FILE")
    tls_key: str = _setting("", "the certificate's key, as a PEM file", "FILE")
    tls_client_ca: str = _setting("", "take only clients with a certificate of this authority (mTLS)", "FILE")
    secret: str = _setting(
        "", "what keyed digests of callers' keys are made with; sidecars with one store share it", is_secret=True
    )
    workers: int = _setting(1, "processes that answer calls; above 1 the cache has a process of its own", "N")
    namespace: str = _setting("", "whose answers; needed as soon as a store is shared", "NAME")
    memory: str = _setting("64MB", "the bound of the memory tier", "SIZE")
    disk: str = _setting("", "an SQLite file: the embedded exact store", "FILE")
    disk_size: str = _setting("1GB", "the bound of that file", "SIZE")
    redis: str = _setting("", "the exact store, as redis://localhost:6379/0; rather by environment or file", "URL")
    memcached: str = _setting("", "a memcached, as memcached://localhost:11211", "URL")
    embedder: str = _setting("", "all-MiniLM-L6-v2, a path, or http://host/v1#MODEL; none: no near matches", "MODEL")
    shadow_embedder: str = _setting(
        "", "one that is to take its place: its near matches are compared, never served", "MODEL"
    )
    semantic: str = _setting("512MB", "the bound of the index", "SIZE")
    device: str = _setting("auto", "cpu, cuda, cuda:1; of several, cuda:0,cuda:1, the index has all", "DEVICE")
    gpu_memory: str = _setting("", "the bound of what the index takes of a GPU", "SIZE")
    policy: str = _setting("shadow", "shadow, budget:0.01, threshold:0.92, or a file of semcache tune", "POLICY")
    audit: float = _setting(0.02, "the share of near matches served that is loaded all the same, to be compared", "N")
    mode: str = _setting("live", "live, shadow, exact, refresh or off", "MODE")
    sampling: str = _setting("zero", "zero: calls that ask for answers that differ go by; any: they are cached too")
    tool_calls: bool = _setting(False, "answers that call tools are kept too", "BOOL")  # noqa: FBT003 - a default
    max_value: str = _setting("1MB", "larger answers are not kept", "SIZE")
    compress: str = _setting("", "zstd: answers over 1 kB are packed", "zstd")
    prices: str = _setting("", "a table of prices of your own, as a TOML file", "FILE")
    record: str = _setting("", "record what is asked in this file, redacted", "FILE")
    dashboard_texts: bool = _setting(True, "the dashboard shows what the latest lookups asked, redacted", "BOOL")  # noqa: FBT003 - a default
    log: str = _setting("text", "text: only what went wrong; or json: a line for each event", "FORM")
    log_texts: bool = _setting(False, "texts, redacted, are in those lines too", "BOOL")  # noqa: FBT003 - a default
    otlp: str = _setting("", "a collector for traces, as http://localhost:4318; none: nothing is traced", "URL")
    ttl_memory: str = _setting("5m", "how long memory keeps an answer", "TIME", name="ttl.memory")
    ttl_disk: str = _setting("1d", "how long the file does", "TIME", name="ttl.disk")
    ttl_redis: str = _setting("1d", "how long Redis does", "TIME", name="ttl.redis")
    ttl_memcached: str = _setting("1d", "how long memcached does", "TIME", name="ttl.memcached")
    ttl_semantic: str = _setting("1h", "how long a text is found by others like it", "TIME", name="ttl.semantic")
    timeout_redis: str = _setting("25ms", "how long a lookup waits for Redis", "TIME", name="timeout.redis")
    timeout_memcached: str = _setting("25ms", "for memcached", "TIME", name="timeout.memcached")
    timeout_disk: str = _setting("25ms", "for the file", "TIME", name="timeout.disk")
    timeout_semantic: str = _setting("250ms", "for a near match", "TIME", name="timeout.semantic")
    timeout_owner: str = _setting("300ms", "for the process with the cache", "TIME", name="timeout.owner")
    timeout_flight: str = _setting("2m", "for the same call of another", "TIME", name="timeout.flight")
    timeout_connect: str = _setting("5s", "for a connection upstream", "TIME", name="timeout.connect")
    timeout_upstream: str = _setting("10m", "for the next bytes from upstream", "TIME", name="timeout.upstream")
    timeout_headers: str = _setting("10s", "for a request's headers", "TIME", name="timeout.headers")
    timeout_body: str = _setting(
        "60s", "for a request's body, and anew for each 16 kB of it", "TIME", name="timeout.body"
    )
    timeout_write: str = _setting(
        "60s", "for a caller to read on, while it has not taken what was sent", "TIME", name="timeout.write"
    )
    timeout_drain: str = _setting("5m", "for open answers, before it stops", "TIME", name="timeout.drain")
    limit_body: str = _setting("32MB", "larger requests are refused", "SIZE", name="limit.body")
    limit_requests: int = _setting(1000, "more calls at once are refused", "N", name="limit.requests")
    limit_connections: int = _setting(500, "connections upstream", "N", name="limit.connections")
    tokens: tuple[Token, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, and from where each that is not a default was taken."""

    settings: Settings
    taken: Mapping[str, str]

    def told(self) -> str:
        """Return them as a TOML file tells them, with where each was taken from, and no secret."""
        tables: dict[str, list[str]] = {"": []}
        for one in _table():
            value = getattr(self.settings, one.name)
            table, _, key = key_of(one).rpartition(".")
            if one.name != "upstream":
                shown = without_secrets(value) if isinstance(value, str) else value
                shown = "..." if value and one.metadata["is_secret"] else shown
                # A file with dots for a password would be read as one that has it.
                line = f"{'' if shown == value else '# '}{key} = {_toml(shown)}"
                tables.setdefault(table, []).append(f"{line:<40} # {self.taken.get(one.name, 'default')}")
        lines = [*tables.pop(""), *(line for name, own in tables.items() for line in ("", f"[{name}]", *own))]
        for server in self.settings.upstream:
            where = self.taken.get("upstream", "")
            lines += ["", f"[[upstream]] # {where}", f"url = {_toml(without_secrets(server.url))}"]
            lines += [f"models = {_toml(server.models)}"] if server.models else []
        for token in self.settings.tokens:
            lines += ["", "[[token]]", f"name = {_toml(token.name)}", f"sha256 = {_toml(token.sha256.hex())}"]
            lines += [f"tenant = {_toml(token.tenant)}"]
            lines += [f"rights = {_toml(sorted(token.rights))}"]
            lines += [f"upstream_key_env = {_toml(token.upstream_key_env)}"] if token.upstream_key_env else []
            lines += [f"upstream_key_file = {_toml(token.upstream_key_file)}"] if token.upstream_key_file else []
            lines += [f"upstream = {_toml(token.upstream)}"] if token.upstream else []
        return "\n".join(lines)

    def named(self, message: str) -> str:
        """Return what a part of the cache says of its arguments, in the words of who typed them."""
        table = {one.name: one for one in _table()}
        if message.startswith("token "):  # "token shop: ...": of the file's tables, which are no setting
            return f"{self.taken[_TOKENS]}: {message}" if _TOKENS in self.taken else message
        about = _ABOUT.match(message)
        name = "_".join(filter(None, about.groups())) if about else ""
        if _POLICY.match(message):
            name = "policy"
        if name not in table:
            # It may say what it was given, and not by what name.
            told_here = self.taken.keys() - {"upstream", _TOKENS}
            given = [one for one in told_here if str(getattr(self.settings, one)) in message]
            name = given[0] if len(given) == 1 else ""
        told = _ARGUMENT.sub(lambda found: self._argument(found, table), message)
        return f"{self._place(table[name])}: {told}" if name else told

    def _argument(self, found: re.Match[str], table: Mapping[str, Any]) -> str:
        """Return `name="value"` as a setting; what is none stays as it is."""
        one = table.get(found[1])
        return found[0] if one is None else f"{self._place(one)} {found[2].strip(chr(34) + chr(39))}".rstrip()

    def _place(self, one: Any) -> str:
        """Return where a setting was typed, as it was; for one that was not its flag."""
        where = self.taken.get(one.name, _flag(one))
        is_file = not where.startswith(("--", PREFIX))
        return f"{where}: key `{key_of(one)}`" if is_file else where


def without_secrets(address: str) -> str:
    """Return an address without its password, and without what its query has of secrets."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    rest = _SECRETS.sub(r"\1...", rest)
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if "@" in rest else f"{scheme}://{rest}"


class _NoFlag(Action):
    """A flag that is refused: whoever lists the processes would read its value."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        del namespace, values
        name = self.option_strings[0].lstrip("-")
        variable = f"{PREFIX}{name.upper().replace('-', '_')}"
        parser.error(
            f"{option} is no flag: whoever lists the processes would read it; give it by {variable}, or as `{name}` in "
            "the file of --config"
        )


def add_settings(parser: ArgumentParser) -> None:
    """Add a flag for each setting that may be one."""
    for one in _table():
        if one.metadata["is_secret"]:
            # Known only to be refused: a parser that does not know it would print its value.
            parser.add_argument(_flag(one), nargs="?", action=_NoFlag, dest=SUPPRESS, help=SUPPRESS)
        if not one.metadata["is_secret"]:
            about = one.metadata["about"]
            told = f" (default: {one.default})" if one.default not in ((), "") else ""
            parser.add_argument(
                _flag(one), metavar=one.metadata["metavar"], help=f"{about}{told}".replace("%", "%%"), dest=one.name
            )  # fmt: skip


def read(options: Namespace | None = None, environment: Mapping[str, str] | None = None) -> Resolved:
    """Return the settings of flags, environment and file. Raises ConfigurationError, with the mend."""
    environment = os.environ if environment is None else environment
    path = getattr(options, "config", None) or environment.get(f"{PREFIX}CONFIG")
    told, tokens, servers = _file(Path(path)) if path else ({}, (), None)
    values: dict[str, Any] = {"tokens": tokens}
    taken: dict[str, str] = {}
    if servers is not None:
        values["upstream"], taken["upstream"] = servers, str(path)
    if tokens:
        taken[_TOKENS] = str(path)
    for one in _table():
        flag = getattr(options, one.name, None)
        variable = f"{PREFIX}{one.name.upper()}"
        for where, value in ((_flag(one), flag), (variable, environment.get(variable) or None)):
            if value is not None:
                values[one.name], taken[one.name] = _parsed(one, value, where), where
                break
        else:
            if one.name in told:
                key = f"{path}: key `{key_of(one)}`"
                values[one.name], taken[one.name] = _parsed(one, told[one.name], key), str(path)
    settings = Settings(**values)
    _check(settings)
    return Resolved(settings, taken)


def _check(settings: Settings) -> None:
    if not settings.upstream and not settings.embedder:
        raise ConfigurationError(
            "upstream: which server is behind? give --upstream https://api.openai.com, SEMCACHE_UPSTREAM, or "
            "[[upstream]] tables in the file; without one it has embeddings alone, of an --embedder"
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ConfigurationError("tls_cert, tls_key: TLS wants both, the certificate and its key")
    if settings.tls_client_ca and not settings.tls_cert:
        raise ConfigurationError("tls_client_ca: it wants TLS; give tls_cert and tls_key too")
    if not settings.is_local and not settings.tokens and not settings.tls_client_ca:
        raise ConfigurationError(
            f"host: whoever reaches {settings.host} could ask and read; give [[token]] tables in the file (`semcache "
            "serve --new-token` makes one), or tls_client_ca, or listen at 127.0.0.1"
        )
    for name in ("workers", "limit_requests", "limit_connections"):
        if getattr(settings, name) < 1:
            raise ConfigurationError(f"{name.replace('_', '.')}: it is at least 1; got {getattr(settings, name)}")
    if settings.log not in ("text", "json"):
        raise ConfigurationError(f'log: it is "text" or "json"; got {settings.log!r}')
    if settings.otlp and not _is_web_address(settings.otlp):
        told = without_secrets(settings.otlp)
        raise ConfigurationError(f"otlp: a collector's address is as http://localhost:4318; got {told!r}")
    if settings.sampling not in ("zero", "any"):
        raise ConfigurationError(f'sampling: it is "zero" or "any"; got {settings.sampling!r}')


def _table() -> tuple[Any, ...]:
    return tuple(one for one in fields(Settings) if one.metadata)


def key_of(one: Any) -> str:
    """Return what a field is called as a key of the file."""
    return str(one.metadata.get("name") or one.name)


def _flag(one: Any) -> str:
    return f"--{one.name.replace('_', '-')}"


def _parsed(one: Any, value: Any, where: str) -> Any:
    """Return a setting's value of what was typed. Raises ConfigurationError, which names where."""
    if one.name == "upstream":
        return (_server(value, where),)
    told = _typed(one, value, where)
    if one.metadata["metavar"] == "PORT" and told not in _PORTS:
        raise ConfigurationError(f"{where}: a port is from 0 to {_PORTS[-1]}; got {told}")
    return told


def _typed(one: Any, value: Any, where: str) -> Any:
    kind = type(one.default)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    readers: Mapping[type, Callable[[str], Any]] = {int: int, float: float, bool: _truth, str: str}
    try:
        if isinstance(value, str) or (kind in (float, str) and isinstance(value, int) and not isinstance(value, bool)):
            return readers[kind](str(value))
    except ValueError:
        pass
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise ConfigurationError(f"{where}: it is {wanted}, as {_toml(one.default)}; got {value!r}")


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) in _PORTS
    except ValueError:
        return False


def _server(url: Any, where: str, models: Any = ()) -> Server:
    """Return a server of its address. Raises ConfigurationError."""
    told = without_secrets(url) if isinstance(url, str) else url
    parts = urlsplit(url) if isinstance(url, str) and _is_web_address(url) else None
    if parts is None or parts.query or parts.fragment:
        raise ConfigurationError(f"{where}: a server's address is as https://api.openai.com; got {told!r}")
    if "@" in parts.netloc:
        raise ConfigurationError(
            f"{where}: a server's address has no name and password in it; got {told!r}: let callers send the key, or "
            "give it by `upstream_key_env` of a [[token]]"
        )
    if not isinstance(models, list | tuple) or not all(isinstance(one, str) and one for one in models):
        raise ConfigurationError(f'{where}: models are patterns, as ["gpt-*"]; got {models!r}')
    return Server(url.rstrip("/").removesuffix("/v1"), tuple(models))


def _file(path: Path) -> tuple[dict[str, Any], tuple[Token, ...], tuple[Server, ...] | None]:
    """Return what a file tells: settings, tokens and servers. Raises ConfigurationError."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: the file cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: it is no TOML: {error}") from error
    tokens = tuple(Token.read(one, f"{path}: [[token]]") for one in _tables(told.pop("token", []), f"{path}: token"))
    servers = None
    if isinstance(told.get("upstream"), list):
        servers = tuple(
            _server(one.pop("url", None), f"{path}: [[upstream]]", _none_left(one, f"{path}: [[upstream]]"))
            for one in _tables(told.pop("upstream"), f"{path}: upstream")
        )
    known = {key_of(one): one.name for one in _table()}
    values = {}
    for key, value in told.items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        for name, item in inner.items():
            if name not in known:
                near = get_close_matches(name, known, 1)
                mend = f"did you mean `{near[0]}`?" if near else "`semcache serve --print-config` lists them"
                raise ConfigurationError(f"{path}: key `{name}` is no setting of semcache serve; {mend}")
            values[known[name]] = item
    return values, tokens, servers


def _none_left(table: dict[str, Any], where: str) -> Any:
    models = table.pop("models", ())
    if table:
        raise ConfigurationError(f"{where}: key `{min(table)}` is none of a server's; it has url and models")
    return models


def _tables(told: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise ConfigurationError(f"{where}: write [[{where.rpartition(' ')[2]}]], a table for each")
    return [dict(one) for one in told]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
