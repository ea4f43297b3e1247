"""What the sidecar is measured beside: an application that reads a body, parses it, and returns the same bytes.

python benchmarks/bare_asgi.py FILE           serves what FILE holds, at a port that it prints
python benchmarks/bare_asgi.py FILE PATH      serves it, as msgpack, at a Unix socket
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgpack
import uvicorn
import uvloop

from semcache.sidecar.protocol import bounded
from semcache.sidecar.sockets import listening, listening_at


def application(answer, kind, parse):
    head = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]

    async def answered(scope, receive, send):
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        parse(b"".join(parts))
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    return answered


def main():
    answer, is_local = Path(sys.argv[1]).read_bytes(), len(sys.argv) > 2
    listener = listening_at(Path(sys.argv[2])) if is_local else listening("127.0.0.1", 0)
    told = (b"application/msgpack", msgpack.unpackb) if is_local else (b"application/json", json.loads)
    config = uvicorn.Config(
        application(answer, *told), http=bounded(10.0, 60.0, 60.0), ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
    )  # fmt: skip
    print(sys.argv[2] if is_local else listener.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
