"""Law 13: nothing heavy at import."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os
import sys
import threading

before = set(os.listdir(".")), dict(os.environ), threading.active_count()
import semcache
after = set(os.listdir(".")), dict(os.environ), threading.active_count()
assert before == after, (before, after)
assert not any(name.startswith(("semcache.semantic", "semcache.replay", "semcache.cli")) for name in sys.modules)
print(" ".join(sys.modules))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A process that has imported semcache, and printed the modules that this brought."""
    folder = tmp_path_factory.mktemp("empty")
    return subprocess.run([sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize(
    "heavy",
    ["anthropic", "asyncio", "faiss", "httpx", "jinja2", "matplotlib", "numpy", "openai", "pydantic", "redis", "rich",
     "sentence_transformers", "sqlite3", "torch", "transformers", "zstandard"],
)  # fmt: skip
def test_import_loads_nothing_heavy(imported, heavy):
    """Law 13: what is large, or may not be installed, is imported where it is used."""
    modules = imported.stdout.split()
    assert "semcache.cache" in modules
    assert heavy not in modules


def test_import_starts_and_writes_nothing(imported):
    """Law 13: importing builds nothing, installs nothing, downloads nothing: no thread, no file, no setting."""
    assert (imported.returncode, imported.stderr) == (0, "")
    assert not set(imported.stdout.split()) & {"ssl", "socket", "urllib.request", "http.client", "multiprocessing"}
