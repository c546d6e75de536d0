"""A collector of OpenTelemetry's spans, on loopback: over gRPC or HTTP, as `endpoint` says."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from typing_extensions import Self

DEADLINE = 60.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}  # of a client whose trace is sampled


@dataclass
class Span:
    name: str
    trace: str
    parent: str
    begin: int  # ns
    end: int
    attributes: dict[str, Any]
    resource: dict[str, Any]


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind)


class Collector:
    def __init__(self, protocol: str = "http/protobuf") -> None:
        self._lock = threading.Condition()
        self._spans: list[Span] = []
        self._end = self._grpc() if protocol == "grpc" else self._http()

    def _grpc(self) -> Any:
        outer = self

        class Service(TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                outer.take(request)
                return ExportTraceServiceResponse()

        server = grpc.server(futures.ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(Service(), server)
        self.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        return lambda: server.stop(None).wait(DEADLINE)

    def _http(self) -> Any:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                outer.take(ExportTraceServiceRequest.FromString(self.rfile.read(size)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def end() -> None:
            server.shutdown()
            server.server_close()

        return end

    def take(self, request: Any) -> None:
        found = []
        for group in request.resource_spans:
            resource = {each.key: plain(each.value) for each in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    attributes = {each.key: plain(each.value) for each in span.attributes}
                    found.append(
                        Span(
                            span.name, span.trace_id.hex(), span.parent_span_id.hex(),
                            span.start_time_unix_nano, span.end_time_unix_nano, attributes,
                            resource,
                        )
                    )  # fmt: skip
        with self._lock:
            self._spans += found
            self._lock.notify_all()

    def wait(self, count: int, prefix: str = "") -> list[Span]:
        """The first so many, in the order of their ends."""
        end = time.monotonic() + DEADLINE
        with self._lock:
            while len(found := [s for s in self._spans if s.name.startswith(prefix)]) < count:
                assert self._lock.wait(end - time.monotonic()), f"only {found}"
        return sorted(found, key=lambda span: span.end)

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
