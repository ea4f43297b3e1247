"""A sidecar in a process of its own, in front of a stand-in, and what the system says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 60


class Watched:
    """A process that listens at `url`; what it wrote is in `log`."""

    def __init__(self, process, url, log):
        self.process = process
        self.url = url
        self._log = log
        self._folder = Path(f"/proc/{process.pid}")

    @property
    def is_running(self):
        return self.process.poll() is None

    @property
    def rss(self):
        """Bytes of memory that are its own."""
        pages = int((self._folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def files(self):
        return len(list((self._folder / "fd").iterdir()))

    @property
    def threads(self):
        return len(list((self._folder / "task").iterdir()))

    def log(self):
        return self._log.read_text(errors="replace")


@contextmanager
def sidecar(upstream, *arguments, config=""):
    """Start a sidecar, and see that it ends as it should when it is told to."""
    with tempfile.TemporaryDirectory(prefix="semcache-soak-") as folder:
        log, file = Path(folder) / "log", Path(folder) / "semcache.toml"
        file.write_text(config)
        command = [sys.executable, "-m", "semcache", "serve", "--config", str(file), "--upstream", upstream, "--port",
                   "0", "--timeout-drain", "10s", *arguments]  # fmt: skip
        with log.open("w") as written:
            process = subprocess.Popen(command, stderr=written, stdout=written)
        try:
            url = _listening(process, log)
            yield Watched(process, url, log)
            process.send_signal(signal.SIGTERM)
            status = process.wait(_PATIENCE)
            if status:
                raise SystemExit(f"the sidecar ended with status {status}:\n{log.read_text()[-4000:]}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _listening(process, log):
    import time

    for _ in range(_PATIENCE * 20):
        if " listens at " in log.read_text():
            return log.read_text().split(" listens at ")[1].split(",")[0].split(" and ")[0].strip()
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"the sidecar did not start:\n{log.read_text()[-4000:]}")
