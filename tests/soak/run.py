"""`make soak`: an hour's troubles in some minutes. Each part says what it found; status 1: one found something.

    interface  every endpoint of the OpenAPI document, asked by schemathesis at a sidecar in a process of its own
    decoders   what reads bodies, headers and settings, given bytes that a fuzzer chooses
    load       calls of all kinds at a sidecar for SOAK_SECONDS, whose memory, files and threads must not grow

SOAK_SECONDS (600) is how long the load lasts; the other two take a quarter of it each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("interface", "decoders", "load")


def main(names):
    unknown = set(names) - set(PARTS)
    if unknown:
        print(f"soak: there are {', '.join(PARTS)}; got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    seconds = int(os.environ.get("SOAK_SECONDS", "600"))
    failed = []
    for name in names or PARTS:
        share = seconds if name == "load" else max(10, seconds // 4)
        print(f"\n== {name}, {share} s ==", flush=True)
        began = time.monotonic()
        ended = subprocess.run([sys.executable, str(HERE / f"{name}.py"), str(share)], check=False)
        print(f"== {name}: {'well' if not ended.returncode else 'FAILED'} in {time.monotonic() - began:.0f} s ==")
        if ended.returncode:
            failed.append(name)
    print(f"\nsoak: {'all well' if not failed else 'failed: ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
