"""What the tests of commands share: running one, and stores that a service has used."""

from __future__ import annotations

import json

import pytest

from semcache.cli import main

STORE_VARIABLES = ("SEMCACHE_NAMESPACE", "SEMCACHE_REDIS", "SEMCACHE_DISK", "SEMCACHE_DISK_SIZE", "SEMCACHE_EMBEDDER")


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch):
    """Whoever runs the tests may have a store of his own."""
    for name in STORE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def semcache_command(capsys):
    """Run a command: its status, what it wrote to stdout and stderr."""

    def run_one(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        return status, out, err

    return run_one


@pytest.fixture
def told(semcache_command):
    """Run a command that succeeds with --json, and return what it printed."""

    def run_one(*arguments, status=0):
        ended, out, err = semcache_command(*arguments, "--json")
        assert (ended, err) == (status, ""), out
        return json.loads(out)

    return run_one


@pytest.fixture
def open_service(open_cache):
    """Make caches of a service in the time of day: a command is another process, and has no other."""
    return lambda *namespace, **settings: open_cache(*namespace, clock=None, **settings)


@pytest.fixture(params=["disk", "redis"])
def store(request, tmp_path):
    """A store, as Cache takes it: each of the exact ones in turn."""
    if request.param == "disk":
        return {"disk": str(tmp_path / "answers.db")}
    return {"redis": request.getfixturevalue("redis_url")}


@pytest.fixture
def typed(store):
    """The same store as it is typed."""
    ((name, value),) = store.items()
    return ["--namespace", "tests", f"--{name}", value]
