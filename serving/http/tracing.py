"""OpenTelemetry traces of requests, if the `OTEL_*` variables ask for them. Otherwise nothing is imported.

The instrumentation sees a copy of each request without the query and without headers that contain secrets or that it can't decode. The
application gets the original request.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

SERVICE_NAME = "lifecycle-api"
UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
FLUSH_SECONDS = 5.0
INSTALL = "pip install -e '.[otel]' -c constraints.txt"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SECRET_HEADERS = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
_ORIGINAL_SCOPE = "lifecycle.scope"


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span per request, or the same object if tracing is off or can't be set up."""
    environment = os.environ
    if not _is_requested(environment):
        return app
    problem = _misconfigured(environment)
    if problem is None:
        try:
            return _instrumented(app)
        except ImportError as error:
            problem = f"the package of {error.name} is missing; install it with `{INSTALL}`"
        except (ValueError, OSError) as error:
            problem = f"OpenTelemetry rejects its settings ({error}); correct the OTEL_ variables"
    log.warning("No traces are sent: %s.", problem)
    return app


def flush(app: ASGIApp) -> None:
    """Send the pending spans and stop tracing, at the end of the lifespan. Gives up after FLUSH_SECONDS."""
    if not isinstance(app, Traced):
        return
    # A daemon thread, because with a dead collector the exporter retries for longer than a shutdown may take.
    thread = threading.Thread(target=app.end_spans, daemon=True)
    thread.start()
    thread.join(FLUSH_SECONDS)
    if thread.is_alive():
        log.warning("The last traces were not sent within %g s. Check that the collector is running.", FLUSH_SECONDS)


class Traced:
    """An application behind OpenTelemetry's middleware. Health checks and metrics bypass it."""

    def __init__(self, app: ASGIApp, instrument: Callable[[ASGIApp], ASGIApp], end_spans: Callable[[], None]) -> None:
        """`instrument` wraps an application; `end_spans` sends the pending spans and stops."""
        self._app, self._instrumented, self.end_spans = app, instrument(self._answer), end_spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection to the application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._flushing(send))
        elif scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
        else:
            headers = [(name, value) for name, value in scope["headers"] if _may_be_traced(name, value)]
            traced_scope = {**scope, "headers": headers, "query_string": b"", _ORIGINAL_SCOPE: scope}
            await self._instrumented(traced_scope, receive, send)

    async def _answer(self, traced_scope: Scope, receive: Receive, send: Send) -> None:
        """Inside the span: pass the original request on, and complete the span once the answer is known."""
        from opentelemetry.trace import get_current_span

        scope, span = traced_scope[_ORIGINAL_SCOPE], get_current_span()

        async def send_and_name_span(message: Message) -> None:
            if message["type"] == "http.response.start":
                if "request_id" in scope:
                    span.set_attribute("request_id", scope["request_id"])
                # Keep the number of span names small: an unknown path would add one for each request of a stranger.
                if (template := _template(scope)) is not None:
                    span.update_name(f"{scope['method']} {template}")
                elif message["status"] in (404, 405):
                    span.update_name(scope["method"])
            await send(message)

        await self._app(scope, receive, send_and_name_span)

    def _flushing(self, send: Send) -> Send:
        async def flush_and_send(message: Message) -> None:
            # Not after the server's end: uvicorn ends the process with the signal that it received.
            if message["type"].startswith("lifespan.shutdown."):
                await asyncio.to_thread(flush, self)
            await send(message)

        return flush_and_send


def _template(scope: Scope) -> str | None:
    """The path template of the matched route, or None if it has no parameters and FastAPI does not know it."""
    path_format: str | None = getattr(scope.get("route"), "path_format", None)
    if path_format is not None:
        return path_format
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    parts = [f"{{{names[part]}}}" if part in names else part for part in scope["path"].split("/")]
    return "/".join(parts) if names else None


def _is_requested(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def _misconfigured(environment: Mapping[str, str]) -> str | None:
    """Why traces can't work with these variables, or None if they look right."""
    name = next(name for name in _ENDPOINTS if environment.get(name, "").strip())
    if not environment[name].startswith(("http://", "https://")):
        return f"{name} is {environment[name]}, which is not an http:// or https:// URL"
    for name in _PROTOCOLS:
        protocol = environment.get(name, "").strip() or "http/protobuf"
        if protocol != "http/protobuf":
            return f"{name} is {protocol}, but only http/protobuf is supported (a collector's port 4318); unset it"
    return None


def _instrumented(app: ASGIApp) -> Traced:
    """Raises ImportError without the extra `otel`, and ValueError or OSError for invalid variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

    def instrument(inner: ASGIApp) -> ASGIApp:
        middleware: ASGIApp = OpenTelemetryMiddleware(
            inner, tracer_provider=provider, exclude_spans=["receive", "send"]
        )
        return middleware

    return Traced(app, instrument, provider.shutdown)


def _may_be_traced(name: bytes, value: bytes) -> bool:
    # The instrumentation can't decode some bytes, and its error would fail the request.
    return name not in _SECRET_HEADERS and value.isascii() and name.isascii()
