"""A collector of OTLP/HTTP traces on a free port, which keeps the spans that it receives."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass
class Receiver:
    """The collector's URL and what it received: each span as (attributes of the service, the span)."""

    url: str
    spans: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def named(self, name: str) -> Any:
        """The only span of that name."""
        (span,) = [each for _, each in self.spans if each.name == name]
        return span


def attributes(pairs: list[KeyValue]) -> dict[str, Any]:
    """Attributes as a dictionary of text and numbers."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@contextlib.contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """A running collector."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                service = attributes(list(resource.resource.attributes))
                receiver.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
            receiver.paths.add(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
