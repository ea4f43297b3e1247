"""docs/sidecar.md and the code tell the same: every setting, header and endpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from proxies import PATHS

from semcache.sidecar.service import Table
from semcache.sidecar.settings import Settings, read
from semcache.sidecar.wishes import _NAMES

DOCS = (Path(__file__).parents[2] / "docs" / "sidecar.md").read_text(encoding="utf-8")
FLAGS = ("tool_calls", "dashboard_texts", "log_texts")


def test_every_setting_is_documented_with_its_default():
    """As `--print-config` names them, and no other."""
    told = read(None, {"SEMCACHE_UPSTREAM": "http://a"}).told()
    names, table = set(), ""
    for line in told.splitlines():
        if line.startswith("["):
            table = line.strip("[]").split("]")[0] + "."
        elif " = " in line and table != "upstream.":
            names.add(table + line.removeprefix("# ").split(" = ")[0])
    documented = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`([^`]*)`)? ?\|", DOCS, re.MULTILINE))
    assert documented.keys() - {"upstream"} == names
    defaults = Settings()
    for name, default in documented.items():
        field = name.replace(".", "_")
        assert default == (str(getattr(defaults, field)).lower() if name in FLAGS else
                           "" if name == "upstream" else str(getattr(defaults, field)))  # fmt: skip


@pytest.mark.parametrize("name", _NAMES)
def test_every_header_of_ours_is_documented(name):
    """Those of requests."""
    assert f"`x-semcache-{name}" in DOCS


def test_every_header_of_answers_is_documented(sidecar):
    """As they come."""
    sidecar.chat()
    for name in sidecar.chat().headers:
        if name.startswith(("x-semcache", "cache-status")):
            assert f"| `{name}` |" in DOCS


def test_every_endpoint_of_the_service_is_documented_with_its_right():
    """As its row of the table has it, and no other."""
    whose = {True: ", an operator's", False: ""}
    told = {
        (row.method, row.path): (" or ".join(f"`{right}`" for right in row.rights) + whose[row.is_of_all]) or "none"
        for row in Table().rows
        if not row.path.endswith("*")
    }
    found = re.findall(r"^\| `([A-Z]+)` \| `(/semcache/[^`]*|/)` \| ([^|]*) \|", DOCS, re.MULTILINE)
    assert {(method, path): right for method, path, right in found} == told


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/embeddings", "/livez", "/readyz"])
def test_every_endpoint_is_documented(path):
    """By its path."""
    assert f"`{path}`" in DOCS
