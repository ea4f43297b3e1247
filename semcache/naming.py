"""What classes and modules are called in keys, stored bytes and messages.

Law: a name is the same in every process that runs the same code, as a script or imported.
"""

from __future__ import annotations

import sys
from pathlib import Path


def type_name(kind: type) -> str:
    """Name a class for keys and messages."""
    return f"{module_name(kind.__module__)}.{kind.__qualname__}"


def module_name(module: str) -> str:
    """Name a module; `__main__` by its file's stem, so that a script and its import agree."""
    if module not in ("__main__", "__mp_main__"):  # the second in processes that multiprocessing spawned
        return module
    main = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:  # python -m package.module
        return str(spec.name.removesuffix(".__main__"))
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"
