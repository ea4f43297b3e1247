"""What the sidecar is measured beside: an application that reads a body, parses it, and returns the same bytes.

python benchmarks/bare_asgi.py FILE      serves what FILE holds, at a port that it prints
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvicorn
import uvloop

from semcache.sidecar.protocol import bounded
from semcache.sidecar.serve import listening


def application(answer):
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]

    async def answered(scope, receive, send):
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        json.loads(b"".join(parts))
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    return answered


def main():
    listener = listening("127.0.0.1", 0)
    config = uvicorn.Config(
        application(Path(sys.argv[1]).read_bytes()), http=bounded(10.0, 60.0), ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
    )  # fmt: skip
    print(listener.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
