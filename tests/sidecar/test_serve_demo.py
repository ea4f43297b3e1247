"""`make serve-demo`: it runs, is asked, shows itself, and ends cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from instruments import GUARD

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "serve_demo.py"


@pytest.fixture
def demo():
    command = [sys.executable, str(DEMO), "--port", "0", "--no-embedder", "--rate", "200"]
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as process:
        yield process
        process.kill()


def test_demo_plays_traffic_until_it_is_interrupted(demo):
    """It says where its dashboard is; nothing is left, and nothing is complained of."""
    url = demo.stdout.readline().split(" at ")[1].split(" ")[0]
    assert "<title>semcache</title>" in httpx.get(url).text
    assert httpx.get(f"{url}semcache/v1/live", timeout=GUARD).json()["namespace"] == "support-desk"
    while not httpx.get(f"{url}semcache/v1/stats", timeout=GUARD).json()["stats"]["saved_money"]:
        assert demo.poll() is None
    demo.send_signal(signal.SIGINT)
    _, complained = demo.communicate(timeout=GUARD)
    assert (demo.returncode, complained) == (0, "")
