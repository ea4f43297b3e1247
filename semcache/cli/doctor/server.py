"""A Redis as a service would use it: reachable, quick, new enough, with the rights and the room that it takes.

Laws: what is tried is tried under names of our own, which end within a minute and are dropped at once; what the user
may not ask (INFO is none of the rights a service needs) is left out; each question waits some seconds at most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

from redis.exceptions import RedisError, ResponseError

from semcache.cli.doctor.finding import Finding, milliseconds, quantile
from semcache.cli.doctor.rights import MENDS, PATIENT_SECONDS, ask, examine_rights
from semcache.errors import TierError
from semcache.stores.address import Address, address_of
from semcache.stores.link import Link
from semcache.stores.redis_keys import Names
from semcache.stores.redis_trouble import trouble
from semcache.ttl import Timeouts

_TRIPS = 200
_TRIPS_SECONDS = 1.0
_THREADS = 8
_TRIPS_EACH = 25
_LEAST_VERSION = (7, 0)
_FULL_SHARE = 0.9


def examine_server(url: str, namespace: str, part: str) -> Iterator[Finding]:
    """Look at the Redis at a URL; what is tried is tried in a part of the namespace. The last finding may be a failure.

    Raises ConfigurationError for a URL that is none.
    """
    address = address_of(url)
    connection = address.connect()
    connection.deadline = time.monotonic() + PATIENT_SECONDS
    try:
        yield from _examine(connection, address, Names(namespace, part))
    except (RedisError, OSError, TierError) as error:
        yield _failed("store", error, address)
    finally:
        connection.disconnect()


def _failed(what: str, error: BaseException, address: Address) -> Finding:
    reason = trouble(error, address.where).reason
    return Finding(
        "failed",
        what,
        f"{address.where}: {error}",
        MENDS.get(reason, "look into the server's log"),
        {"reason": reason},
    )


def _examine(connection: Any, address: Address, names: Names) -> Iterator[Finding]:
    began = time.perf_counter()
    connection.connect()
    ask(connection, ("TIME",))
    took = time.perf_counter() - began
    yield Finding(
        "ok", "store", f"{address.where}, connected in {milliseconds(took)}", figures={"connect_seconds": took}
    )
    yield _round_trips(connection)
    yield _pool(address)
    yield _version(connection)
    yield _memory(connection)
    yield examine_rights(
        connection, names
    )  # last: a transaction that may be begun, and not ended, ends with the connection


def _round_trips(connection: Any) -> Finding:
    budget, until = Timeouts().of("redis"), time.perf_counter() + _TRIPS_SECONDS
    trips: list[float] = []
    while len(trips) < _TRIPS and time.perf_counter() < until:
        began = time.perf_counter()
        ask(connection, ("TIME",))
        trips.append(time.perf_counter() - began)
    p50, p99 = quantile(trips, 0.5), quantile(trips, 0.99)
    told = f"p50 {milliseconds(p50)}, p99 {milliseconds(p99)} of {len(trips)}; a read waits {milliseconds(budget)}"
    figures: dict[str, float | int | str] = {"p50_seconds": p50, "p99_seconds": p99, "trips": len(trips)}
    if p99 < budget:
        return Finding("ok", "round trip", told, figures=figures)
    more = max(round(4000 * p99, -1), 50)
    mend = f'run nearer to it, or give reads more time: Timeouts(redis="{more:.0f}ms"); else they are misses'
    return Finding("warning", "round trip", told, mend, figures)


def _pool(address: Address) -> Finding:
    """Ask from several threads at once, as a service does; each waits for a connection where there are too few."""
    link = Link(address)
    waits: list[float] = []
    errors: list[TierError] = []

    def work() -> None:
        try:
            told = [link.exchange([("TIME",)], PATIENT_SECONDS).waited_ns for _ in range(_TRIPS_EACH)]
            waits.extend(waited_ns / 1e9 for waited_ns in told)
        except TierError as error:
            errors.append(error)

    threads = [Thread(target=work, daemon=True) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    link.close()
    if errors:
        return _failed("pool", errors[0], address)
    p50, most = quantile(waits, 0.5), max(waits)
    told = f"{_THREADS} threads wait {milliseconds(p50)} (p50), {milliseconds(most)} at most for one of"
    told += f" {address.max_connections} connections"
    figures: dict[str, float | int | str] = {
        "p50_seconds": p50, "most_seconds": most, "max_connections": address.max_connections
    }  # fmt: skip
    if most < Timeouts().of("redis"):
        return Finding("ok", "pool", told, figures=figures)
    return Finding("warning", "pool", told, "raise max_connections in the URL: redis://...?max_connections=64", figures)


def _info(connection: Any, section: str) -> dict[str, str] | None:
    """Return what INFO says, or None where this user may not ask."""
    try:
        lines = ask(connection, ("INFO", section)).decode("utf-8", "replace").splitlines()
    except ResponseError:
        return None
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _version(connection: Any) -> Finding:
    info = _info(connection, "server")
    if info is None:
        return Finding(
            "skipped", "version", "this user may not ask INFO; the rights below tell whether it is 7.0 or newer"
        )
    told = info.get("redis_version", "unknown")
    numbers = tuple(int(number) if number.isdecimal() else 0 for number in told.split(".")[:2])
    name = "Redis"
    if info.get("server_name", "redis") != "redis":
        name, told = info["server_name"].capitalize(), f"{info.get('valkey_version', '?')} (as Redis {told})"
    if info.get("redis_mode", "standalone") != "standalone":
        mend = "give one server's address: a primary that stands alone"
        return Finding("failed", "version", f"{name} {told}, in {info['redis_mode']} mode", mend)
    if numbers < _LEAST_VERSION:
        return Finding("failed", "version", f"{name} {told}", "semcache needs Redis 7.0 or newer")
    return Finding("ok", "version", f"{name} {told}", figures={"version": told})


def _memory(connection: Any) -> Finding:
    info = _info(connection, "memory")
    if info is None:
        return Finding("skipped", "memory", "this user may not ask INFO")
    used, bound, policy = int(info["used_memory"]), int(info["maxmemory"]), info.get("maxmemory_policy", "")
    figures: dict[str, float | int | str] = {"used_bytes": used, "max_bytes": bound, "policy": policy}
    told = f"{used / 1e6:,.0f} MB used"
    if not bound:
        mend = "set maxmemory, with room to spare, and allkeys-lru or volatile-lru (docs/operations.md, Memory)"
        return Finding("warning", "memory", f"{told}, without a bound", mend, figures)
    told += f" of {bound / 1e6:,.0f} MB, {policy}"
    if policy.endswith("-random"):
        mend = "take allkeys-lru or volatile-lru: this one may evict the marks, and with them all that stands"
        return Finding("warning", "memory", told, mend, figures)
    if policy == "noeviction" and used > bound * _FULL_SHARE:
        mend = "raise maxmemory, or let it evict: when it is full nothing is kept, and invalidations fail"
        return Finding("warning", "memory", told, mend, figures)
    return Finding("ok", "memory", told, figures=figures)


def left_behind(url: str, names: Names, keys: list[bytes]) -> int:
    """Drop what a trial has left beside its entries; return how many keys stand all the same. Raises TierError."""
    link = Link(address_of(url))
    try:
        here = [*names.beside(), *map(names.of, keys)]
        replies = link.exchange([("EXISTS", *map(names.of, keys)), ("UNLINK", *here), ("EXISTS", *here)], 5.0).values
        for reply in replies:
            if isinstance(reply, Exception):
                raise trouble(reply, link.where)
        return int(replies[0]) + int(replies[2])
    finally:
        link.close()
