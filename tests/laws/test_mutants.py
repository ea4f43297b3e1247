"""Every law's tests can fail: each mutant of mutants.toml breaks a law, and the test that it names kills it.

A mutant is the package with one text replaced, in a copy of its own; the test runs against the copy, in a process of
its own. Mutants are few and seeded by hand: one for each clause of a law that a test claims to hold.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from mutant_process import EXTERNAL, run_pytest

import semcache

HERE = Path(__file__).parent
TESTS = HERE.parent
PACKAGE = Path(semcache.__file__).parent
MUTANTS = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]

# What every run imports is imported once, in a process that is forked for each. It never imports the package.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(EXTERNAL)

SETTINGS = """\
[pytest]
addopts = -p no:cacheprovider --strict-markers --tb=line -q -x
markers =
    semantic: needs the extra
filterwarnings = error
"""
# Exits with 3, which pytest itself never does for a test, unless the package is the copy's.
GUARDIAN = """\
import os, pytest, semcache
if not semcache.__file__.startswith(os.environ["SEMCACHE_COPY"] + os.sep):
    pytest.exit(f"not the copy: {semcache.__file__}", returncode=3)
"""


def marked(mutant):
    marks = [pytest.mark.semantic] if mutant.get("semantic") else []
    name = mutant["test"].rpartition("::")[2].removeprefix("test_")
    return pytest.param(mutant, marks=marks, id=f"{mutant['law']}-{mutant['file']}-{name}")


def _link(source, target):
    """Put a file beside, as a name of the same one; where that cannot be, as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, with nothing else on the way to it."""
    # What is compiled too: it is as good as its source is old. Linked: only what a mutant replaces is written.
    shutil.copytree(PACKAGE, tmp_path / "semcache", copy_function=_link)
    (tmp_path / "guardian.py").write_text(GUARDIAN)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    return tmp_path


def run_tests(copy, tests, **more):
    """Run tests against a copy, to the first that fails; the exit code and what was printed."""
    environment = more | {
        "PYTHONPATH": str(copy), "SEMCACHE_COPY": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    arguments = ["-c", str(copy / "pytest.ini"), "-p", "guardian", *(str(TESTS / test) for test in tests)]
    process = PROCESSES.Process(target=run_pytest, args=(arguments, str(copy), environment))
    process.start()
    try:
        process.join(100)
    finally:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return code, (copy / "printed").read_text()


@pytest.mark.parametrize("has_extra", [False, pytest.param(True, marks=pytest.mark.semantic)], ids=["base", "semantic"])
def test_unmutated_copy_passes(copy, has_extra):
    """The tests that kill fail for the mutation's sake: against a plain copy all of them pass."""
    tests = dict.fromkeys(mutant["test"] for mutant in MUTANTS if mutant.get("semantic", False) is has_extra)
    code, printed = run_tests(copy, tests)
    assert code == 0, printed


def test_every_law_has_a_mutant():
    """Laws 1 to 14."""
    assert {mutant["law"] for mutant in MUTANTS} == set(range(1, 15))


@pytest.mark.parametrize("mutant", [marked(mutant) for mutant in MUTANTS])
def test_mutant_is_killed(copy, mutant):
    """A package that breaks the law fails the law's test itself: an error in a fixture would prove nothing."""
    file = copy / "semcache" / mutant["file"]
    source = file.read_text()
    assert source.count(mutant["old"]) == 1, f"the mutant is stale: its text stands {source.count(mutant['old'])} times"
    file.unlink()
    file.write_text(source.replace(mutant["old"], mutant["new"]))
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()  # by date and length it could pass for the mutant's
    code, printed = run_tests(copy, [mutant["test"]], SEMCACHE_TEST_GUARD="1")  # it may hang, so it hangs not for long
    assert code == 1, f"exit code {code}:\n{printed}"
    assert re.search(r"^\d+ failed", printed, re.MULTILINE), printed
