"""Which `semcache` this is: the registry's distribution of that name is another project's, and writes the same folder.

Nothing here reads the names of the package's root, which may be theirs; our modules beside it are ours.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from semcache import cache as ours
from semcache.cli.doctor.finding import Finding

_OURS, _THEIRS = "tiered-semcache", "semcache"
_SHOWN = ("redis", "hiredis", "msgpack", "cachetools", "numpy")
_MEND = f"pip uninstall {_THEIRS}, then pip install --force-reinstall --no-deps {_OURS}"


def examine_package() -> Iterator[Finding]:
    """Tell which distribution the imported package is of, and the versions of what it stands on."""
    folder = Path(ours.__file__).resolve().parent
    yield _provider(folder)
    found = {name: version for name in _SHOWN if (version := _version(name))}
    versions = {"Python": platform.python_version(), **found, "SQLite": sqlite3.sqlite_version}
    yield Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _provider(folder: Path) -> Finding:
    root = sys.modules["semcache"]
    if getattr(root, "Cache", None) is not ours.Cache:
        theirs = f"{_THEIRS} {_version(_THEIRS)}" if _version(_THEIRS) else "another distribution"
        return Finding("failed", "package", f"`import semcache` gives {theirs}, not {_OURS}: {root.__file__}", _MEND)
    version = str(getattr(root, "__version__", ""))
    writers = [name for name in (_OURS, _THEIRS) if _writes(name, folder)]
    if _THEIRS in writers:
        told = f"{_THEIRS} {_version(_THEIRS)}, another project's, writes the folder of {_OURS} too: {folder}"
        return Finding("warning", "package", f"{told}; the next upgrade of either breaks the other", _MEND)
    installed = _version(_OURS)
    if _OURS in writers:
        if installed != version:
            told = f"{folder} is of version {version}, its distribution {_OURS} says {installed}"
            return Finding("warning", "package", told, f"pip install --force-reinstall --no-deps {_OURS}")
        return Finding("ok", "package", f"{_OURS} {version} in {folder}")
    if installed is None:
        told = f"semcache {version} in {folder}, which no installed distribution brings"
        return Finding(
            "warning", "package", told, f"pip install {_OURS}; or is this a folder in PYTHONPATH on purpose?"
        )
    told = f"semcache {version} in {folder} hides the installed {_OURS} {installed}"
    return Finding("warning", "package", told, "look at PYTHONPATH and the working folder, or is it on purpose?")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _writes(name: str, folder: Path) -> bool:
    """Say whether a distribution has put the folder there, or points to it, as an editable install does."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    entry = folder / "__init__.py"
    if any(
        file.name == entry.name and Path(str(file.locate())).resolve() == entry for file in distribution.files or ()
    ):
        return True
    told = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not told.get("dir_info", {}).get("editable"):
        return False
    return folder.is_relative_to(Path(unquote(urlsplit(told["url"]).path)).resolve())
