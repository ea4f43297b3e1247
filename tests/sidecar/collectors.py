"""A collector of traces that listens on this machine, and what it was sent, as the tree that it is."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {1: "internal", 2: "server", 3: "client"}


class Span:
    """One span as it was received; ids are hexadecimal, times nanoseconds."""

    def __init__(self, told, resource):
        self.name = told.name
        self.kind = KINDS[told.kind]
        self.trace = told.trace_id.hex()
        self.id = told.span_id.hex()
        self.parent = told.parent_span_id.hex()
        self.began, self.ended = told.start_time_unix_nano, told.end_time_unix_nano
        self.attributes = {one.key: _value(one.value) for one in told.attributes}
        self.events = [one.name for one in told.events]
        self.has_failed = told.status.code == 2
        self.resource = resource

    def __repr__(self):
        return f"{self.name} {self.attributes}"


def _value(told):
    return getattr(told, told.WhichOneof("value"))


class Collector:
    """It takes OTLP over HTTP, until `close`; with a `status` it refuses."""

    def __init__(self, status=200):
        self.spans = []
        self.headers = []
        self.status = status
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.collector = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, body):
        """Keep the spans of a request."""
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {each.key: _value(each.value) for each in one.resource.attributes}
            self.spans += [Span(span, resource) for scope in one.scope_spans for span in scope.spans]

    def below(self, parent):
        return sorted((one for one in self.spans if one.parent == parent.id), key=lambda one: (one.began, one.ended))

    def named(self, name):
        return sorted((one for one in self.spans if one.name == name), key=lambda one: one.began)

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        collector = self.server.collector
        collector.headers.append(dict(self.headers))
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces" and collector.status == 200:
            collector.take(body)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(collector.status if self.path == "/v1/traces" else 404)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass
