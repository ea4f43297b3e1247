"""Whether keys are the same in another process, whose hash seed orders sets and dictionaries otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from semcache.cache import Cache
from semcache.cli.doctor.finding import Finding

_SECONDS = 60.0
_CODE = "import sys; from semcache.cli.doctor.keying import sample; print(sample(sys.argv[1]))"


def sample(namespace: str) -> str:
    """Return the key, in hex digits, of a request whose parts have no order of their own."""
    with Cache(namespace, memory=0) as cache:
        words = {f"word {number}" for number in range(100)}
        parts = (words, frozenset(words), dict.fromkeys(sorted(words), 1.5), [b"bytes", None, True])
        return cache.request(*parts, text="a question", tenant="a tenant", model="a model", function="f").key.hex()


def examine_keys(namespace: str) -> Iterator[Finding]:
    """Key one request here and in a process with another hash seed."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and code of our own
            [sys.executable, "-c", _CODE, namespace], env=environment, capture_output=True, text=True, timeout=_SECONDS,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(
            "warning", "keys", f"no second process to compare with: {error}", "run the doctor where it may fork"
        )
        return
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        yield Finding("failed", "keys", f"another process cannot make them: {last}", "is its package another one?")
    elif done.stdout.strip() != sample(namespace):
        told = "another process, with another hash seed, makes other keys: nothing is shared"
        yield Finding("failed", "keys", told, "do both import the same version, of the same Python? report it if so")
    else:
        yield Finding("ok", "keys", "the same in a process with another hash seed")
