"""Child processes that are told, line by line, what to do next: for what several processes do at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self


class Child:
    """A Python file run as a process of its own, with some settings; `tell` and `hear` are a line each way."""

    def __init__(self, file: str, **settings: Any) -> None:
        command = [sys.executable, file, json.dumps(settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.hear() == "ready"

    def tell(self, *what: Any) -> None:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        line = self._process.stdout.readline()
        assert line, f"a child ended with status {self._process.wait()}"
        return json.loads(line)

    def ask(self, *what: Any) -> Any:
        self.tell(*what)
        return self.hear()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def obey(jobs: dict[str, Callable[..., Any]]) -> None:
    """In the child: do what is asked for by name, and say what came of it, until the parent has nothing more to ask."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        job, *arguments = json.loads(line)
        print(json.dumps(jobs[job](*arguments)), flush=True)
