"""What tests look and wait with: embedders whose similarities are plain to see, and flights that tell who boarded.

Nothing here stands in for a part that can be run: the embedders are named callables, as users write them.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from semcache.flight import Flights

# No wait of a test is longer, in seconds; only a test that fails comes to it.
GUARD = float(os.environ.get("SEMCACHE_TEST_GUARD", "30"))


class Compass:
    """An embedder that points each text in a direction, in degrees; the similarity of two is the cosine between.

    A text that it was told nothing of points to 0. With `gate`, an Event, it answers when that is set; `entered` tells
    that it was asked, `asked` what.
    """

    dimension = 2

    def __init__(self, degrees=None, *, identity="compass", gate=None):
        self.identity = identity
        self.degrees = degrees or {}
        self.gate = gate
        self.entered = threading.Event()
        self.asked = []

    def __call__(self, texts):
        import numpy as np

        self.asked += texts
        self.entered.set()
        if self.gate is not None:
            self.gate.wait(GUARD)
        angles = np.radians([self.degrees.get(text, 0.0) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class WatchedFlights(Flights):
    """Flights that can be waited for: `wait_for(n)` returns when n more callers have boarded."""

    def __init__(self):
        super().__init__()
        self._boarded = threading.Semaphore(0)

    def board(self, *args, **kwargs):
        boarded = super().board(*args, **kwargs)
        self._boarded.release()
        return boarded

    def wait_for(self, callers):
        for _ in range(callers):
            assert self._boarded.acquire(timeout=GUARD)


class JoinedFlights(Flights):
    """Flights that can be waited for: `wait_for(n)` returns when n more callers wait for one."""

    def __init__(self):
        super().__init__()
        self.waiting = threading.Semaphore(0)

    def follow(self, flight, **how):
        follows = super().follow(flight, **how)
        if follows:
            self.waiting.release()
        return follows

    def wait_for(self, callers):
        for _ in range(callers):
            assert self.waiting.acquire(timeout=GUARD)


def watch_flights(cache):
    """Give a cache flights that can be waited for."""
    cache.chain.flights = WatchedFlights()
    return cache.chain.flights


class Origin:
    """A function to load with: counts its calls, and holds them where it is told to.

    With `hold`, a call sets `entered` and goes on when `go` is set. `answer` is what it returns, or raises if it is an
    exception; it is read when the call goes on.
    """

    def __init__(self, answer="answer", *, hold=False):
        self.answer = answer
        self.calls = 0
        self.entered = threading.Event()
        self.go = threading.Event()
        self._lock = threading.Lock()
        if not hold:
            self.go.set()

    def __call__(self, *args):
        with self._lock:
            self.calls += 1
        answer = self.answer
        self.entered.set()
        assert self.go.wait(GUARD)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def Crew(threads=16):  # noqa: N802 - reads as what it makes
    """Threads for a test, ended with it."""
    return ThreadPoolExecutor(threads)


class SlowWire:
    """A way to a server on this machine on which every piece of an answer, of 64 kB at most, takes `pace` seconds."""

    def __init__(self, port, pace):
        self._to, self._pace, self._ended = port, pace, threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                for source, target, pace in ((client, server, 0.0), (server, client, self._pace)):
                    threading.Thread(target=self._carry, args=(source, target, pace), daemon=True).start()

    def _carry(self, source, target, pace):
        with suppress(OSError):
            while piece := source.recv(65_536):
                if pace:
                    self._ended.wait(pace)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def until(condition):
    """Wait until something that another thread does is done."""
    deadline = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.001)
