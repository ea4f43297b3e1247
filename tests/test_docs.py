"""The documents' examples run as they stand, their links lead somewhere, and they name what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import semcache

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
BLOCK = re.compile(r"(?P<semantic><!-- semantic -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
# The design shows names that appear with later work; it is a contract, not an example.
RUN = [path for path in DOCUMENTS if path.name not in ("design.md", "CHANGELOG.md")]


def blocks():
    for path in RUN:
        for number, block in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")), 1):
            marks = [pytest.mark.semantic] if block["semantic"] else []
            yield pytest.param(block["code"], id=f"{path.relative_to(ROOT)}-{number}", marks=marks)


@pytest.mark.parametrize("code", list(blocks()))
def test_example_as_it_stands_runs(code, tmp_path):
    """An example in a document runs, and prints what its comments say it prints."""
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", script],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    exact = [line for line in promised if not line.startswith("which")]
    for line in exact:
        assert line in done.stdout.splitlines()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    """A relative link names a file that is there."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_readme_second_line_names_the_distribution():
    """Who reads two lines knows what to install."""
    assert "tiered-semcache" in "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:3])


def test_version_is_the_distributions():
    """The module says the version that the distribution has."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{semcache.__version__}"' in project
