"""Every endpoint of the OpenAPI document, asked with what it allows and with what it does not, by schemathesis.

Nothing may be a 5xx, no answer may be other than the document says, and nothing may come to the log.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from process import sidecar

from semcache.testing import StandIn

_TOKEN = "of-an-operator"
_CONFIG = f"""
[[token]]
sha256 = "{hashlib.sha256(_TOKEN.encode()).hexdigest()}"
tenant = "*"
rights = ["read", "admin"]
"""
# What the document forbids may be too large as well.
_SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 413, 415]
"""
# Messages in msgpack, and a stream without an end, are the decoders' part, and the tests'.
# What a body may be together its schema does not say: that one of several is given, or what a day is.
_LEFT_OUT = "positive_data_acceptance"


def main(seconds):
    schemathesis = Path(sys.executable).with_name("schemathesis")
    with (
        StandIn() as models,
        sidecar(models.url, config=_CONFIG) as running,
        tempfile.NamedTemporaryFile("w", suffix=".toml") as settings,
    ):
        settings.write(_SETTINGS)
        settings.flush()
        command = [
            str(schemathesis), "--config-file", settings.name, "run", f"{running.url}/semcache/v1/openapi.json",
            "--header", f"x-semcache-token: {_TOKEN}", "--checks", "all", "--exclude-checks", _LEFT_OUT, "--max-time",
            str(seconds), "--continue-on-failure", "--warnings", "off", "--output-truncate",
            "true", "--exclude-path", "/semcache/v1/cache", "--exclude-path", "/semcache/v1/control",
        ]  # fmt: skip
        status = subprocess.run(command, check=False).returncode
        if not running.is_running:
            print("the sidecar has ended")
            status = 1
        told = [line for line in running.log().splitlines() if " listens at " not in line]
        if told:
            print("the sidecar's log:", *told[-40:], sep="\n  ")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
