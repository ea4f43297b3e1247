"""Print constraints that hold what pyproject.toml requires to the oldest versions that it allows.

python .ci/oldest.py EXTRA...     of the package itself, and of these extras

A bound `openai>=1.60` is held to 1.60 and its patches, `openai==1.60.*`; `redis>=8` to 8.0 and its patches.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
required = project["dependencies"] + [one for extra in sys.argv[1:] for one in project["optional-dependencies"][extra]]
for requirement in required:
    found = re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=(\d+(?:\.\d+)*),<.*", requirement)
    if found is None:
        sys.exit(f"oldest: {requirement!r} has no lower bound that can be read; write it as name>=1.2,<2")
    name, bound = found.groups()
    print(f"{name}=={bound}.*" if "." in bound else f"{name}=={bound}.0.*")
