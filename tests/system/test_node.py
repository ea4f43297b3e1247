"""npm's `openai` and `@anthropic-ai/sdk` under Node, with another base URL and nothing else changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from instruments import GUARD
from servers import find_program

NODE = Path(__file__).parent / "node"
FORMS = [f"{name} {form}" for name in ("chat", "responses", "messages") for form in ("plain", "stream")]

pytestmark = pytest.mark.xdist_group("node")


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """The script beside its packages, exactly those of the lock file."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "ask.mjs"):
        shutil.copy(NODE / name, folder)
    ran = subprocess.run(
        [find_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder / "ask.mjs"


def told(script, sidecar, what):
    ran = subprocess.run(
        [find_program("node"), script, sidecar.url, what], capture_output=True, text=True, timeout=2 * GUARD,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_second_call_is_answered_from_the_cache_as_the_first_was(script, start, models):
    """Plain, streamed and embeddings, in each protocol: what Node's clients make of both is the same."""
    answers = told(script, start("--sampling", "any"), "answers")
    assert answers.keys() == {*FORMS, "embeddings plain"}
    for first, second in answers.values():
        assert (first["how"], second["how"]) == ("miss", "hit")
        assert second["answer"] == first["answer"]
    assert models.calls == len(answers)
    assert answers["chat plain"][1]["answer"]["choices"][0]["message"]["content"] == "Answer to: Do you ship?"
    assert len(answers["embeddings plain"][1]["answer"]["data"]) == 2


def test_error_of_the_server_behind_is_what_the_client_raises(script, start, models):
    """With its status and how long to wait, and nothing of it is kept."""
    sidecar = start("--sampling", "any")
    models.fail(429, retry_after=7, times=len(FORMS) + 1)
    errors = told(script, sidecar, "error")
    assert errors.keys() == {*FORMS, "embeddings plain"}
    assert all(error == {"status": 429, "wait": "7", "kind": "RateLimitError"} for error in errors.values())
    assert all(first["how"] == "miss" for first, _ in told(script, sidecar, "answers").values())


def test_lock_file_names_the_public_registry_alone():
    """It is what `npm ci` rewrites to the registry that a machine has; a mirror's name would be asked as it stands."""
    packages = json.loads((NODE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    addresses = [package["resolved"] for name, package in packages.items() if name]
    assert addresses
    assert all(address.startswith("https://registry.npmjs.org/") for address in addresses)
    assert all("integrity" in package for name, package in packages.items() if name)
