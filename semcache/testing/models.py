"""A stand-in for a model's server, on this machine: it speaks OpenAI's and Anthropic's protocols over real HTTP.

    with StandIn() as models:
        client = openai.OpenAI(base_url=models.openai_url, api_key="none", max_retries=0)
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Do you ship?"}])
        assert models.calls == 1

The standard library alone: http.server, a thread for each connection. It counts what it was asked, answers what it was
told to, late, wrongly or half if it was told so.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from semcache.testing.protocols import Anthropic, Embeddings, OpenAI, Reply, last_text, why_not
from semcache.testing.responses import Responses

_PROTOCOLS: Mapping[str, OpenAI | Anthropic | Responses | Embeddings] = {
    "/v1/chat/completions": OpenAI(), "/v1/responses": Responses(), "/v1/messages": Anthropic(),
    "/v1/embeddings": Embeddings(),
}  # fmt: skip
# No test is held longer by a stream that nobody lets go on, in seconds.
_GUARD = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a model as it arrived; header names are in small letters."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(slots=True)
class Held:
    """A stream that stands still: `reached` is set when it does, and it goes on when `go` is set."""

    after: int
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Fault:
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int = -1
    ends: bool = False


class StandIn:
    """A server with models that answer every call; use it in a `with`, or call `start` and `close`.

    `reply` takes the body of a call and returns a text or a `Reply`; unless you say so, "Answer to: " and the last
    message's text. Texts are embedded as `protocols.vector_of` says. A body that is no request is answered with 400 and
    is no call: its path is among `others`. `latency` is waited before each answer, in seconds. Threads may share it.
    """

    def __init__(
        self, reply: Callable[[Mapping[str, Any]], str | Reply] | None = None, *, latency: float = 0.0
    ) -> None:
        self.reply = reply or (lambda body: f"Answer to: {last_text(body)}")
        self.latency = latency
        self.asked: list[Asked] = []
        self.others: list[str] = []
        self._faults: deque[_Fault] = deque()
        self._held: deque[Held] = deque()
        self._all_held: list[Held] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.models = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def start(self) -> Self:
        """Serve, in a thread of its own."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop, letting go what is held."""
        self._ended.set()
        for held in self._all_held:
            held.go.set()
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """The `base_url` of an OpenAI client."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """The `base_url` of an Anthropic client."""
        return self.url

    @property
    def calls(self) -> int:
        """How often a model was called, failures included."""
        return len(self.asked)

    def fail(self, status: int, *, retry_after: float | None = None, times: int = 1) -> None:
        """Answer the next calls with an error, such as 429 or 500, with `Retry-After` in seconds if it is given."""
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        self._faults.extend([_Fault(status, headers)] * times)

    def drop(self, *, after: int = 1, times: int = 1, quietly: bool = False) -> None:
        """Cut the connection of the next calls: of a stream after so many events, of a plain answer in its middle.

        With `quietly` a stream ends there as if that were its end, as behind some proxies: no client sees an error.
        """
        self._faults.extend([_Fault(drop_after=after, ends=quietly)] * times)

    def hold(self, *, after: int = 1) -> Held:
        """Let the next stream stand still after so many events, until `go` of what this returns is set."""
        held = Held(after)
        self._held.append(held)
        self._all_held.append(held)
        return held

    def wait(self) -> None:
        """Wait for the latency, or for the end."""
        if self.latency:
            self._ended.wait(self.latency)

    def take(self, asked: Asked) -> tuple[int, _Fault | None]:
        """Count a call; its number, from 1, and what is to go wrong with it."""
        with self._lock:
            self.asked.append(asked)
            return len(self.asked), self._faults.popleft() if self._faults else None

    def take_held(self) -> Held | None:
        """Return where the stream that begins now is to stand still."""
        with self._lock:
            return self._held.popleft() if self._held else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    models: StandIn

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a caller that has gone; what breaks otherwise is told as ever."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Say nothing: tests look at what was asked."""

    def do_GET(self) -> None:
        """Answer what is not cached: the list of models, or 404."""
        self.server.models.others.append(self.path)
        if self.path.split("?")[0] == "/v1/models":
            self._send(
                200, {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "us"}]}
            )
        else:
            self._send(404, {"error": {"message": f"the stand-in has no {self.path}"}})

    def do_POST(self) -> None:
        """Call a model."""
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        protocol = _PROTOCOLS.get(path)
        models = self.server.models
        if protocol is None:
            models.others.append(self.path)
            self._send(404, {"error": {"message": f"the stand-in has no {path}"}})
            return
        try:
            body = json.loads(sent)
        except (ValueError, RecursionError):
            body = None
        refused = why_not(body, protocol.asks_for, protocol.instead)
        if refused is not None:
            models.others.append(self.path)
            self._send(400, protocol.refusal(refused))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        number, fault = models.take(Asked(self.path, headers, body))
        self._id = {"x-request-id": f"req_{number}", "request-id": f"req_{number}"}
        models.wait()
        if fault is not None and fault.status:
            self._send(fault.status, protocol.error(fault.status), {**self._id, **fault.headers})
            return
        told = models.reply(body)
        reply = told if isinstance(told, Reply) else Reply(told)
        with suppress(ConnectionError):  # the caller closed it: that is its right
            if body.get("stream"):
                self._stream(protocol.pieces(reply, body, number), fault)
            else:
                self._send(200, protocol.answer(reply, body, number), self._id, is_cut=fault is not None)

    def _send(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, is_cut: bool = False
    ) -> None:
        data = json.dumps(body).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})})
        self.wfile.write(data[: len(data) // 2] if is_cut else data)
        self.close_connection = self.close_connection or is_cut

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self, pieces: Any, fault: _Fault | None) -> None:
        held = self.server.models.take_held()
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **self._id})
        for place, piece in enumerate(pieces):
            if held is not None and place == held.after:
                held.reached.set()
                held.go.wait(_GUARD)
            if fault is not None and place == fault.drop_after:
                self.close_connection = not fault.ends  # an end like any other leaves the connection to the next
                self.wfile.write(b"0\r\n\r\n" if fault.ends else b"")
                return
            data = piece.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
