"""What runs in the process of a mutant: pytest, on a copy of the package.

Nothing here imports the package: the process that is forked for each mutant imports this module, and has to be without.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# What nearly every run imports, apart from the package. Nothing that starts threads: those do not live through a fork.
EXTERNAL = ["pytest", "hypothesis", "asyncio", "redis", "pymemcache", "mutant_process"]


def run_pytest(arguments, copy, environment):
    """Run pytest in this process, as `python -m pytest` in a folder would; it prints to a file there, and exits."""
    import pytest

    with Path(copy, "printed").open("wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.chdir(copy)
    os.environ.update(environment)
    sys.dont_write_bytecode = True
    sys.path.insert(0, copy)
    assert "semcache" not in sys.modules
    sys.exit(int(pytest.main(arguments)))
