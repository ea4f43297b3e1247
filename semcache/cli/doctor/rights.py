"""Whether a user of a Redis may do what a service does: each command is tried, since few may ask for their rights.

Law: what is tried stands under names of our own, ends within a minute, and is dropped at once; who may neither drop a
key nor give it an end is not let to make one.
"""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from semcache.cli.doctor.finding import Finding
from semcache.stores.link import Command, converse
from semcache.stores.redis_keys import Names
from semcache.stores.redis_trouble import trouble

PATIENT_SECONDS = 3.0
MENDS = {
    "unreachable": "is it running, and is the address right? redis-cli -u URL PING must say PONG",
    "late": "it is connected to, and says nothing: is it paused, swapping, or busy with a long command?",
    "rights": "give a user who has the rights: redis://USER:PASSWORD@HOST (docs/operations.md, Rights)",
    "loading": "it reads its data from disk: wait, this passes",
    "clients": "raise its maxclients, or give processes fewer connections: redis://...?max_connections=8",
    "space": "raise maxmemory, or let it evict (docs/operations.md, Memory)",
    "readonly": "it is a replica: give the primary's address",
}
_TRIAL_MS = 60_000


def talk(connection: Any, commands: list[Command]) -> list[Any]:
    """Return the replies, error replies in their places, or raise what became of the connection, within seconds."""
    connection.deadline = time.monotonic() + PATIENT_SECONDS
    return converse(connection, commands)


def ask(connection: Any, command: Command) -> Any:
    """Return a reply. Raises what the server replied, or what became of the connection."""
    (reply,) = talk(connection, [command])
    if isinstance(reply, Exception):
        raise reply
    return reply


def trials(names: Names) -> dict[str, Command]:
    """Return the rights that a service needs, each with a command that needs it; in an order in which they can be."""
    string, ranks, stream, pins = names.of(b"trial"), names.keys, names.log, names.pinned
    return {
        "time": ("TIME",),
        "set": ("SET", string, b"trial", "PX", _TRIAL_MS),
        "pexpire": ("PEXPIRE", string, _TRIAL_MS, "GT"),
        "get": ("GET", string),
        "mget": ("MGET", string),
        "getrange": ("GETRANGE", string, 0, 1),
        "exists": ("EXISTS", string),
        "zadd": ("ZADD", ranks, "GT", 1, b"trial"),
        "zscore": ("ZSCORE", ranks, b"trial"),
        "zmscore": ("ZMSCORE", ranks, b"trial"),
        "zrange": ("ZRANGE", ranks, 0, -1, "WITHSCORES"),
        "zrevrange": ("ZREVRANGE", ranks, 0, 0, "WITHSCORES"),
        "zscan": ("ZSCAN", ranks, 0, "COUNT", 1),
        "zcard": ("ZCARD", ranks),
        "zrem": ("ZREM", ranks, b"none"),
        "zremrangebyrank": ("ZREMRANGEBYRANK", ranks, 0, -2),
        "zremrangebyscore": ("ZREMRANGEBYSCORE", ranks, "-inf", "+inf"),
        "xadd": ("XADD", stream, "*", "r", b"trial"),
        "xinfo|stream": ("XINFO", "STREAM", stream),
        "xread": ("XREAD", "COUNT", 1, "STREAMS", stream, "0"),
        "xrange": ("XRANGE", stream, "-", "+", "COUNT", 1),
        "xrevrange": ("XREVRANGE", stream, "+", "-", "COUNT", 1),
        "xtrim": ("XTRIM", stream, "MAXLEN", "~", 1),
        "hset": ("HSET", pins, b"trial", b"trial"),
        "hvals": ("HVALS", pins),
        "hlen": ("HLEN", pins),
        "hmget": ("HMGET", pins, b"trial"),
        "hgetall": ("HGETALL", pins),
        "hdel": ("HDEL", pins, b"none"),
        "hincrbyfloat": ("HINCRBYFLOAT", pins, b"count", 1),
        "unlink": ("UNLINK", string, ranks, stream, pins),
        "watch": ("WATCH", string),
        "multi": ("MULTI",),
        "exec": ("EXEC",),
    }


def examine_rights(connection: Any, names: Names) -> Finding:
    """Try every command. A transaction that is begun, and may not be ended, ends with the connection."""
    tried = trials(names)
    lacks: list[str] = []
    for right in ("pexpire", "unlink", *tried):
        if right in lacks or {"pexpire", "unlink"} <= set(lacks):
            continue
        error = _refused(connection, tried[right])
        if error is None or _is_no_matter(right, error, lacks):
            continue
        if not _is_of_rights(error):
            reason = trouble(error, "").reason
            mend = MENDS.get(reason, "semcache needs Redis 7.0 or newer, or what speaks like it")
            return Finding("failed", "commands", f"{right}: {error}", mend, {"reason": reason})
        if "access" in str(error):  # to the key: "No permissions to access a key", or "one of the keys"
            pattern = names.keys.rpartition(b":")[0].rpartition(b":")[0].decode() + ":*"
            mend = f"ACL SETUSER {_user(connection)} ~{pattern} (docs/operations.md, Rights)"
            return Finding("failed", "rights", f"no rights to the keys {pattern}", mend)
        lacks.append(right)
    if lacks:
        rest = ", and so the rest was not tried" if {"pexpire", "unlink"} <= set(lacks) else ""
        mend = f"ACL SETUSER {_user(connection)} {' '.join(f'+{right}' for right in lacks)}"
        mend += " (docs/operations.md, Rights)"
        return Finding("failed", "rights", f"not allowed: {', '.join(lacks)}{rest}", mend, {"lacks": " ".join(lacks)})
    return Finding("ok", "rights", f"all {len(tried)} commands that a service needs")


def _refused(connection: Any, command: Command) -> ResponseError | None:
    """Try a command; what is made by it is given an end."""
    makes = command[0] in ("ZADD", "XADD", "HSET")
    asked = [command, ("PEXPIRE", command[1], _TRIAL_MS)] if makes else [command]
    reply = talk(connection, asked)[0]
    return reply if isinstance(reply, ResponseError) else None


def _is_no_matter(right: str, error: ResponseError, lacks: list[str]) -> bool:
    """Say whether an error only follows from a right that was found to be lacking."""
    follows = {"exec": "multi", "xinfo|stream": "xadd"}
    return follows.get(right) in lacks and not _is_of_rights(error)


def _is_of_rights(error: ResponseError) -> bool:
    # A transaction says so as one that was given up.
    return isinstance(error, NoPermissionError) or "NOPERM" in str(error)


def _user(connection: Any) -> str:
    return str(getattr(connection, "username", None) or "default")
