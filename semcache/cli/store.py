"""The store that a command is about: its options, their defaults from the environment, and a cache opened on it.

Laws: a command makes no store that is not there, and touches no file that is none of ours; it evicts nothing; no
password is printed.
"""

from __future__ import annotations

import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semcache.cache import Cache
from semcache.cli.sidecar import add_sidecar
from semcache.errors import ConfigurationError, TierError
from semcache.ttl import Timeouts

INDEX_TTL = "30d"
"""For who adds a row to the log: he trims it by his own ttl, which is to be no shorter than the service's."""

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_APPLICATION = slice(68, 72)
_LEAST_DISK_BYTES = 10**9
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Place:
    """Which store, and which namespace in it; without either there is memory alone."""

    namespace: str = ""
    redis: str | None = None
    disk: Path | None = None

    @property
    def where(self) -> str:
        """The store as people read it, without its password; "" where there is none."""
        if self.redis is not None:
            from semcache.stores.address import address_of

            return address_of(self.redis).where
        return str(self.disk) if self.disk is not None else ""


def add_store(parser: ArgumentParser, *, or_sidecar: bool = False) -> None:
    """Add the options that name a store, or a sidecar in its place."""
    store = parser.add_argument_group("the store", "the exact store of a service, as its Cache(...) was given it")
    store.add_argument("--namespace", metavar="NAME", help="whose answers (default: SEMCACHE_NAMESPACE)")
    store.add_argument(
        "--redis", metavar="URL",
        help="redis://localhost:6379/0, also rediss://, unix:// (default: SEMCACHE_REDIS, which keeps a password out "
        "of the list of processes)",
    )  # fmt: skip
    store.add_argument("--disk", metavar="FILE", help="the SQLite file (default: SEMCACHE_DISK)")
    if or_sidecar:
        add_sidecar(parser.add_argument_group("a sidecar in its place"))


def place_of(options: Namespace, *, is_needed: bool = True) -> Place:
    """Return the store that was typed, or that the environment names. Raises ConfigurationError, with the mend."""
    redis, disk = options.redis, options.disk
    if redis is None and disk is None:
        redis, disk = os.environ.get("SEMCACHE_REDIS") or None, os.environ.get("SEMCACHE_DISK") or None
    if redis is not None and disk is not None:
        raise ConfigurationError("which store, the Redis or the file? give one: --redis URL or --disk FILE")
    namespace = options.namespace if options.namespace is not None else os.environ.get("SEMCACHE_NAMESPACE", "")
    place = Place(namespace, redis, None if disk is None else _path(disk))
    if redis is None and disk is None:
        if is_needed:
            raise ConfigurationError("which store? give --redis URL or --disk FILE, or set SEMCACHE_REDIS, _DISK")
    elif not namespace:
        raise ConfigurationError("whose answers? give --namespace NAME, or set SEMCACHE_NAMESPACE")
    return place


@contextmanager
def opened(place: Place, **settings: Any) -> Iterator[Cache]:
    """Open a cache as `unasked` does, and follow its store's log.

    Raises ConfigurationError, and TierError for a file that is not there or none of ours, or a server out of reach.
    """
    with unasked(place, **settings) as cache:
        assert cache.store is not None  # noqa: S101 - `place_of` has seen to it
        cache.store.join()  # a store that cannot be asked is told of now; and what is pinned there is known
        yield cache


@contextmanager
def unasked(place: Place, **settings: Any) -> Iterator[Cache]:
    """Open a cache on a store that is there, with time enough, and nothing in memory; a server is asked nothing yet.

    Raises as `opened` does.
    """
    if place.disk is not None:
        check_file(place.disk)
        settings = {"disk_size": _disk_size(place.disk)} | settings
    timeouts = Timeouts(redis="5s", disk="5s", semantic="30s")
    settings = {"redis": place.redis, "disk": place.disk, "memory": 0, "timeouts": timeouts} | settings
    try:
        with quiet(), Cache(place.namespace, **settings) as cache:
            yield cache
    except TierError as error:
        if place.redis is None or error.reason not in ("unreachable", "late"):
            raise
        raise TierError(error.reason, f"{error} (is it running, and is this its address?)") from error


def join_known(cache: Cache, place: Place) -> None:
    """Follow the log of a namespace, if something stands in it. Raises ConfigurationError.

    A mistyped name would else be an empty namespace, of which all is done. Raises TierError as `opened` does.
    """
    assert cache.store is not None  # noqa: S101 - `place_of` has seen to it
    known = cache.store.namespaces()
    if place.namespace not in known:
        others = f"; it holds {', '.join(map(repr, known[:_NAMES_SHOWN]))}" if known else ""
        raise ConfigurationError(
            f"nothing stands in namespace {place.namespace!r} of {place.where}{others}: is it the right name? give "
            "--namespace as the service's Cache(...) was given it"
        )
    cache.store.join()


def check_file(path: Path) -> None:
    """See that a file is there and may be a store's, and change nothing. Raises TierError, OSError."""
    from semcache.stores.schema import APPLICATION_ID

    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        told = f"{path}: there is no such file; is the path right? the first process of the service makes it"
        raise TierError("unreachable", told) from None
    if not header:
        raise TierError("unready", f"{path} is empty: the first process of the service begins it")
    # A store that was just begun may have its number in the WAL alone; what else has none there is told when it is
    # opened. Without a WAL a cache would take it for a damaged store, and move it aside.
    known = (0, APPLICATION_ID) if _wal_of(path).exists() else (APPLICATION_ID,)
    if not header.startswith(_MAGIC) or int.from_bytes(header[_APPLICATION]) not in known:
        raise TierError("version", f"{path} is no store of semcache: give the path that Cache(disk=...) was given")


def entries_in(cache: Cache) -> int:
    """Return how many entries the cache's namespace has in its store, about. Raises TierError."""
    from semcache.plan import run

    if cache.disk is not None:
        return run(cache.disk.count([("namespace", cache.namespace)]))
    return int(cache.stats().tiers["redis"]["entries"])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's warnings off stderr, where a command says in one line what is wrong."""
    logger, silent = logging.getLogger("semcache"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)


def _path(disk: str) -> Path:
    from semcache.tiers.disk import file_path

    return file_path(disk)


def _wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _disk_size(path: Path) -> int | str:
    """Return the bound of the file: whoever opens it with a smaller one than its service would evict from it."""
    used = sum(file.stat().st_size for file in (path, _wal_of(path)) if file.exists())
    return os.environ.get("SEMCACHE_DISK_SIZE") or max(_LEAST_DISK_BYTES, 2 * used)
