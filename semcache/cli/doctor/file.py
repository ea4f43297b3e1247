"""A store's file: there, ours, writable, on a file system that can lock it, with room left."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from semcache.cli.doctor.finding import Finding, milliseconds
from semcache.cli.store import check_file
from semcache.errors import TierError
from semcache.stores.schema import reason_of

_LEAST_FREE_BYTES = 100 * 10**6
_LEAST_FREE_SHARE = 0.02
_LOCK_SECONDS = 2.0
_CHECK_SECONDS = 5.0
_DAMAGE_MEND = "a service moves a damaged file aside and begins another; check the disk if it happens again"
# Where SQLite's shared memory, or its locks, do not reach all who use the file.
_NETWORKED = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "glusterfs",
    "fuse.glusterfs", "lustre",
})  # fmt: skip


def examine_file(path: Path) -> Iterator[Finding]:
    """Look at the file at a path, and change nothing; a failure is the last finding."""
    folder = path.parent
    if not folder.is_dir():
        yield Finding("failed", "file", f"{folder}: there is no such folder", "make it, or mend the path")
        return
    try:
        check_file(path)
    except TierError as error:
        if error.reason == "version":
            yield Finding("failed", "file", f"{path} is no store of semcache", "give the path that Cache(disk=...) has")
            return
        told = f"{path} is not there yet" if error.reason == "unreachable" else f"{path} is empty so far"
        yield Finding("warning", "file", told, "is the path right? then the first process of the service begins it")
    except OSError as error:
        yield Finding("failed", "file", f"{path}: {error.strerror}", "let this user read and write it")
        return
    else:
        size = sum(one.stat().st_size for one in _parts(path) if one.exists())
        yield Finding("ok", "file", f"{path}, {size / 1e6:,.1f} MB", figures={"bytes": size})
    closed = [one for one in (folder, *_parts(path)) if one.exists() and not os.access(one, os.R_OK | os.W_OK)]
    if closed:
        told = f"this user may not read and write {', '.join(map(str, closed))}"
        yield Finding("failed", "rights", told, "let it, the folder too: SQLite keeps its log beside the file")
        return
    yield _file_system(folder)
    yield _space(folder)
    if path.exists() and path.stat().st_size:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=_LOCK_SECONDS, isolation_level=None)
        with closing(connection):
            yield _pages(connection)
            yield _lock(connection, path)


def _parts(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-lock")]


def _file_system(folder: Path) -> Finding:
    kind = _kind_of(folder)
    if kind is None:
        return Finding("skipped", "file system", "this system does not tell")
    if kind in _NETWORKED:
        mend = "put the file on a local disk, or take a Redis for the processes of several hosts"
        return Finding("failed", "file system", f"{kind}, where SQLite's locks do not hold", mend, {"kind": kind})
    return Finding("ok", "file system", kind, figures={"kind": kind})


def _kind_of(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on: of the mounts above it the nearest, and the last there."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = folder.resolve()
    found: tuple[int, str | None] = (-1, None)
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        mounted = Path(point.encode("utf-8", "surrogateescape").decode("unicode_escape"))
        if real.is_relative_to(mounted) and len(mounted.parts) >= found[0]:
            found = (len(mounted.parts), kind)
    return found[1]


def _lock(connection: sqlite3.Connection, path: Path) -> Finding:
    """Take the lock of those who write, and let it go."""
    began = time.perf_counter()
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        reason = reason_of(error)
        mend = f"another process holds it for over {_LOCK_SECONDS:g} s: is it stuck? lsof {path} names who uses it"
        return Finding("failed", "lock", str(error), mend if reason == "busy" else _DAMAGE_MEND, {"reason": reason})
    took = time.perf_counter() - began
    return Finding("ok", "lock", f"taken in {milliseconds(took)}", figures={"lock_seconds": took})


def _pages(connection: sqlite3.Connection) -> Finding:
    """Look for damage, for some seconds at most."""
    until = time.perf_counter() + _CHECK_SECONDS
    connection.set_progress_handler(lambda: time.perf_counter() > until, 10_000)
    try:
        (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
            return Finding("ok", "pages", f"no damage was met within {_CHECK_SECONDS:g} s; not all were read")
        return Finding("failed", "pages", str(error), _DAMAGE_MEND, {"reason": reason_of(error)})
    finally:
        connection.set_progress_handler(None, 0)
    if told != "ok":
        return Finding("failed", "pages", str(told), _DAMAGE_MEND, {"reason": "damaged"})
    return Finding("ok", "pages", "no damage")


def _space(folder: Path) -> Finding:
    total, _, free = shutil.disk_usage(folder)
    told = f"{free / 1e9:,.1f} GB free of {total / 1e9:,.1f} GB"
    figures: dict[str, float | int | str] = {"free_bytes": free, "total_bytes": total}
    if free < _LEAST_FREE_BYTES or free < total * _LEAST_FREE_SHARE:
        return Finding("warning", "space", told, "make room, or give a smaller disk_size=", figures)
    return Finding("ok", "space", told, figures=figures)
