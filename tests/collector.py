"""A collector of OpenTelemetry that keeps what it gets: OTLP over HTTP, in its JSON encoding."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

IDS = ("traceId", "spanId", "parentSpanId")


class Collector:
    """What arrived, read by OpenTelemetry's own definitions, and the bytes as they came."""

    def __init__(self, port: int):
        self.port = port
        self.bodies: list[bytes] = []
        self.spans: list[Span] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, body: bytes) -> None:
        """A field that OTLP does not have is an error."""
        request = ExportTraceServiceRequest()
        json_format.ParseDict(with_base64_ids(json.loads(body)), request)
        self.bodies.append(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Span]:
        return [span for span in list(self.spans) if span.name == name]


def with_base64_ids(value: Any) -> Any:
    """OTLP writes ids in hexadecimal where protobuf's JSON has base64."""
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode() if key in IDS else with_base64_ids(item)
        for key, item in value.items()
    }


def attributes(span: Span) -> dict[str, str | int]:
    """The attributes of a span."""
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
    }


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            right = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/json")
            try:
                assert right, (self.path, self.headers["content-type"])
                collector.take(body)
                status = 200
            except Exception as error:
                collector.bodies.append(body)
                failures.append(error)
                status = 400
            self.send_response(status)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    failures: list[Exception] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
    assert not failures, failures
