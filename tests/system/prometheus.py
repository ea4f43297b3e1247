"""A real Prometheus on this machine, and the sidecar that it scrapes: processes that end with their test."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from instruments import GUARD
from servers import _free_port

from semcache.testing import StandIn

EXAMPLES = Path(__file__).parents[2] / "examples"
# So many looks at what is to become true, each a twentieth of a second behind the other.
_TRIES = int(GUARD * 20)


def program(name):
    """Return the path of one of Prometheus' programs."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no {name} on the PATH nor in .cache/system/bin; fetch it: make programs")
    return found


def promtool(*arguments, said=None):
    """Run promtool; returns its exit status and what it said."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


class Sidecar:
    """`semcache serve` in a process of its own, in front of a stand-in, with a port for scrapers."""

    def __init__(self, models, *arguments):
        self.health_port = _free_port()
        command = [
            sys.executable, "-m", "semcache", "serve", "--upstream", models.url, "--port", "0", "--namespace", "shop",
            "--health-port", str(self.health_port), *arguments,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self._process.stderr.readline()
        self.url = line.split(" at ")[-1].split(",")[0].strip()
        assert self.url.startswith("http://"), line

    def chat(self, text, **parameters):
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **parameters}
        return httpx.post(
            f"{self.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer k"}, timeout=GUARD
        )

    def scrape(self):
        return httpx.get(f"http://127.0.0.1:{self.health_port}/metrics", timeout=GUARD).text

    def close(self):
        self._process.terminate()
        self._process.communicate(timeout=GUARD)


class Prometheus:
    """Prometheus with our alert rules, that scrapes some ports five times a second."""

    def __init__(self, folder, ports):
        targets = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}\n"
            f"rule_files: [{EXAMPLES / 'prometheus' / 'alerts.yml'}]\n"
            f"scrape_configs: [{{job_name: semcache, static_configs: [{{targets: [{targets}]}}]}}]\n"
        )
        port = _free_port()
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=GUARD)
        self.until(lambda: self._http.get("/-/ready").status_code == httpx.codes.OK)

    def ask(self, path, **parameters):
        """Ask its API; returns what it says, or raises."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expression):
        """Return the one number that an expression is now; None where there is none."""
        found = self.ask("query", query=expression)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def until(self, condition):
        """Look until something holds, a bounded number of times; returns it."""
        pause = threading.Event()
        for _ in range(_TRIES):
            try:
                found = condition()
            except httpx.TransportError:  # it does not listen yet
                found = None
            if found:
                return found
            assert self._process.poll() is None, Path(self._log.name).read_text()
            pause.wait(0.05)
        raise AssertionError(f"it never came to hold: {condition}")

    def close(self):
        self._http.close()
        self._process.terminate()
        self._process.wait(GUARD)
        self._log.close()


@pytest.fixture
def shop():
    """A sidecar in front of a stand-in."""
    with StandIn() as models:
        sidecar = Sidecar(models)
        sidecar.models = models
        yield sidecar
        sidecar.close()


@pytest.fixture
def prometheus(tmp_path, shop):
    """A Prometheus that scrapes it."""
    one = Prometheus(tmp_path, [shop.health_port])
    yield one
    one.close()
