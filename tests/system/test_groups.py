"""Modules that are told to stay in one process do, whatever versions of pytest and its plugins are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_tests_of_one_group_run_in_one_process():
    """Histories at the same time as each other would take each other's cores, and models be loaded twice."""
    tests = Path(__file__).parents[1]
    command = ["-n", "2", "--dist", "loadgroup", "-v", "-k", "checker", "-p", "no:cacheprovider", "test_history.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *command], cwd=tests, capture_output=True, text=True, timeout=240, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
    )  # fmt: skip
    workers = re.findall(r"\[(gw\d)\].*PASSED", ran.stdout)
    assert len(workers) == 3, ran.stdout + ran.stderr
    assert len(set(workers)) == 1
