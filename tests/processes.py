"""`semcache serve` in a process of its own, as its owners run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
from instruments import GUARD

CHAT = "/v1/chat/completions"


class Process:
    """A sidecar in a process of its own; `line` says where it listens, `before` is what it said before that.

    Of one that does not listen, `line` is the first that it said.
    """

    def __init__(self, *arguments, environment=None, **how):
        command = [sys.executable, "-m", "semcache", "serve", "--port", "0", *arguments]
        told = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=told, **how
        )  # fmt: skip
        said = [self.process.stderr.readline()]
        while said[-1] and "listens" not in said[-1]:  # a store that is away may be told of first
            said.append(self.process.stderr.readline())
        self.line = said[-1] or said[0]
        self.before = "".join(said[:-1])
        self.url = self.line.split(" at ")[-1].split(",")[0].split(" and ")[0].strip()

    def post(self, body, *, path=CHAT, headers=None):
        return httpx.post(
            self.url + path, json=body, headers={"authorization": "Bearer k"} | (headers or {}), timeout=GUARD
        )

    def said(self, word):
        """Return the next line that has a word."""
        while word not in (line := self.process.stderr.readline()):
            assert line, f"it ended, and never said {word!r}"
        return line

    def stop(self, number=signal.SIGTERM):
        """Return exit status and what else it said; without a signal, when it has ended by itself."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=GUARD)
        return self.process.returncode, errors


def asked(text="a"):
    """Return the body of a call."""
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


@contextmanager
def starting(url):
    """Start sidecars in front of a server, with flags; they are killed at the end."""
    started = []

    def start(*arguments, **more):
        started.append(Process("--upstream", url, *arguments, **more))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.stop(signal.SIGKILL)
