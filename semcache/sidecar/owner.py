"""A sidecar of several processes: one that owns the cache, and workers that answer calls.

Workers take connections of one socket that all of them listen at. The owner holds model, index and store, hears of
invalidations, and is what an operator looks at; a worker holds a memory tier. Laws: a worker that ends is begun anew,
and what it was answering is all that is lost; when the owner is to end, the workers end first, with what they answer.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from semcache.sidecar.credentials import RIGHTS, Caller
from semcache.sidecar.crowd import Crowd
from semcache.sidecar.programs import CACHE, Programs
from semcache.sidecar.serve import Sidecar
from semcache.sidecar.server import served_at
from semcache.sidecar.service import answer_programs
from semcache.sidecar.settings import Settings
from semcache.sidecar.sockets import listening_at
from semcache.sidecar.worker import OPERATOR, OWNER, socket_of, told_to
from semcache.ttl import size_bytes

logger = logging.getLogger("semcache.sidecar")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# A worker that lived so long has not failed at its beginning.
_LIVED_SECONDS = 10.0


class Owner(Sidecar):
    """The process that holds the cache, and begins `settings.workers` others."""

    _is_behind = True

    def __init__(self, settings: Settings) -> None:
        self._has_secret = bool(settings.secret)
        # The workers' digests of callers' keys are to be the same.
        settings = settings if settings.secret else replace(settings, secret=token_hex(32))
        self._crowd = Crowd()
        super().__init__(settings, crowd=self._crowd)
        self._trusted = Programs(
            self.cache, _workers_own, b"", size_bytes(settings.limit_body, "limit.body"),
            settings.limit_requests * settings.workers, is_trusted=True,
        )  # fmt: skip
        self._folder = Path(tempfile.mkdtemp(prefix="semcache-"))
        self._public: list[socket.socket] = []
        self._private: list[socket.socket] = []
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._is_over = False
        # Those that were ended to be begun anew.
        self._rolled: set[int] = set()

    @property
    def is_random(self) -> bool:
        """Whether no secret was set."""
        return not self._has_secret

    def listen(self) -> None:
        """Take addresses, for the workers. Raises OSError, with the mend."""
        super().listen()
        self._public, self._sockets = self._sockets, [listening_at(self._folder / OPERATOR)]
        self._private = [listening_at(self._folder / OWNER)]

    @property
    def _listens_at(self) -> socket.socket:
        return self._public[0]

    async def run(self, say: Callable[[], None]) -> None:
        """Serve until `end` is called and all workers have ended; `say` when the first of them may answer."""
        trusted = served_at(self._answer_worker, self._private)
        self._trusted.control = self.programs.control  # which listens to the cache once for all
        self._keeping = [asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)]
        try:
            await super().run(say)
        finally:
            for task in self._keeping:
                task.cancel()
            await asyncio.gather(*self._keeping, return_exceptions=True)
            await trusted.end()

    async def _answer_worker(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a worker's cache."""
        if scope["type"] != "http":
            return
        if not self._trusted.has(scope["path"]):
            scope["path"] = CACHE  # whose method or body it has not
        await answer_programs(self._trusted, scope, receive, send)

    async def _keep(self, number: int) -> None:
        """Begin a worker, and again where it ends before it is to."""
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not self._is_over:
            began = loop.time()
            try:
                status: int | str = await self._lived(number)
            except OSError as error:  # no more processes, or no memory for one: there may be in a moment
                status = f"{error}, before it began"
            self._crowd.ended(number)
            if self._is_over:
                return
            if number in self._rolled:
                self._rolled.discard(number)
                continue
            logger.warning("worker %d ended with status %s, and is begun anew", number, status)
            pause = _FIRST_PAUSE if loop.time() - began > _LIVED_SECONDS else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _lived(self, number: int) -> int:
        """Run a worker to its end, and return its exit status."""
        path = socket_of(self._folder, number)
        path.unlink(missing_ok=True)
        sockets = [one.fileno() for one in self._public]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "semcache.sidecar.worker", stdin=asyncio.subprocess.PIPE, pass_fds=sockets
        )
        self._processes[number] = process
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            with suppress(ConnectionError):
                process.stdin.write(told_to(self._settings, self._folder, number, sockets))
                await process.stdin.drain()
            self._crowd.paths[number] = path
            if self._is_over:  # since it was begun
                _have_end(process)
            return await process.wait()
        finally:
            del self._processes[number]
            process.stdin.close()

    def _renewed(self) -> None:
        """Begin workers with the new settings, one after another; each ends with what it answers."""
        old = self._settings
        super()._renewed()
        if self._settings is not old:  # else they were refused
            self._rolling = asyncio.ensure_future(self._roll())

    async def _roll(self) -> None:
        for number, process in list(self._processes.items()):
            if self._is_over:
                return
            self._rolled.add(number)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()

    def end(self) -> None:
        """Have the workers end, and then end; called twice, at once."""
        self._health.is_draining = True
        is_second, self._is_over = self._is_over, True
        self._give_file_back()
        for process in list(self._processes.values()):
            if is_second:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
            else:
                _have_end(process)
        if is_second:
            super().end()
        else:
            self._ending = asyncio.ensure_future(self._end_after_workers())

    async def _end_after_workers(self) -> None:
        for process in list(self._processes.values()):
            await process.wait()
        super().end()

    def close(self) -> None:
        """Give the addresses back, and remove the folder."""
        super().close()
        for one in (*self._public, *self._private):
            one.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _have_end(process: asyncio.subprocess.Process) -> None:
    """Tell a worker to end: over its standard input, as a signal may have come to it already."""
    if process.stdin is not None and not process.stdin.is_closing():
        process.stdin.write(b"e")


def _workers_own(_scope: object) -> Caller:
    """Take whoever can open the socket, which is in a folder of our user's alone, for a worker of ours."""
    return Caller("", frozenset(RIGHTS))
