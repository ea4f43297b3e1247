"""A worker of a sidecar: it answers calls, with a memory of its own; all else of the cache is its owner's.

    python -m semcache.sidecar.worker

is begun by the owner, which says the rest over standard input. Laws: it holds no model, no index and no store; it ends
when its owner does; what was answered with is with the owner when it ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from msgpack import packb, unpackb

from semcache.cache import Cache
from semcache.sidecar.credentials import Token
from semcache.sidecar.crowd import Telling
from semcache.sidecar.forward import Forward
from semcache.sidecar.serve import Sidecar, begin_process, loop_factory, of_each
from semcache.sidecar.server import served_at
from semcache.sidecar.settings import Server, Settings
from semcache.sidecar.sockets import listening_at
from semcache.ttl import TTL, Timeouts, size_bytes

OWNER, OPERATOR = "owner.sock", "operator.sock"
"""Where the owner listens in its folder: for the workers' caches, and for what a worker hands on."""
_LENGTH_BYTES = 4


def told_to(settings: Settings, folder: Path, number: int, sockets: list[int]) -> bytes:
    """Return what a worker is told at its beginning."""
    told = asdict(settings)
    told["tokens"] = [asdict(token) | {"rights": sorted(token.rights)} for token in settings.tokens]
    packed: bytes = packb({"settings": told, "folder": str(folder), "number": number, "sockets": sockets})
    return len(packed).to_bytes(_LENGTH_BYTES, "big") + packed


def socket_of(folder: Path, number: int) -> Path:
    """Return where a worker listens for its owner."""
    return folder / f"worker-{number}.sock"


def _settings_of(told: dict[str, Any]) -> Settings:
    tokens = tuple(Token(**(token | {"rights": frozenset(token["rights"])})) for token in told["tokens"])
    upstream = tuple(Server(server["url"], tuple(server["models"])) for server in told["upstream"])
    return Settings(**(told | {"tokens": tokens, "upstream": upstream}))


class Worker(Sidecar):
    """A sidecar whose cache is its owner's, but for memory, and that listens at sockets it was given."""

    def __init__(self, settings: Settings, folder: Path, number: int, sockets: list[socket.socket]) -> None:
        self._forward = Forward(folder / OPERATOR, size_bytes(settings.limit_body, "limit.body"))
        super().__init__(settings, cache_of_worker(settings, folder), elsewhere=self._forward)
        self._sockets = sockets
        self._signals = 0
        self._told_at = listening_at(socket_of(folder, number))

    async def run(self, say: Any) -> None:
        """Serve until the owner ends, or has it end."""
        telling = served_at(Telling(self.cache.stats, self._health.metrics, self.live), [self._told_at])
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._owner_said)
        try:
            await super().run(say)
        finally:
            loop.remove_reader(sys.stdin.fileno())
            await self._forward.close()
            await telling.end()

    def _owner_said(self) -> None:
        """End where the owner says so, or has ended: its end of our standard input is closed then.

        It is no signal, and ends nothing that is being answered: a terminal and a service manager signal us too, and
        of two signals the second ends all at once.
        """
        if not os.read(sys.stdin.fileno(), 1):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        if not self._is_ending:
            self.end()

    def signalled(self) -> None:
        """End; signalled twice, at once."""
        self._signals += 1
        if self._signals > 1 or not self._is_ending:  # else the owner has said it before
            self.end()


def cache_of_worker(settings: Settings, folder: Path) -> Cache:
    """Make the cache of a worker."""
    return Cache(
        settings.namespace,
        **of_each(settings),
        sidecar=f"unix://{folder / OWNER}",
        ttl=TTL(memory=settings.ttl_memory),
        timeouts=Timeouts(sidecar=settings.timeout_owner, flight=settings.timeout_flight),
    )


def main() -> None:
    """Run a worker until its owner ends it."""
    length = int.from_bytes(_read(_LENGTH_BYTES), "big")
    told = unpackb(_read(length))
    settings = _settings_of(told["settings"])
    begin_process(settings)
    sockets = [socket.socket(fileno=number) for number in told["sockets"]]
    worker = Worker(replace(settings, workers=1), Path(told["folder"]), told["number"], sockets)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        loop = runner.get_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.signalled)
        runner.run(worker.run(lambda: None))


def _read(length: int) -> bytes:
    """Read from standard input, past no byte that is not ours to read."""
    data = b""
    while len(data) < length:
        more = os.read(sys.stdin.fileno(), length - len(data))
        if not more:
            sys.exit(1)  # the owner has ended already
        data += more
    return data


if __name__ == "__main__":
    main()
