"""OpenTelemetry traces of requests, for those who set the `OTEL_*` variables; for everybody else nothing is imported.

What the instrumentation sees of a request is a copy without query and without headers that hold secrets or what it can't decode; the
application gets the request as it came.
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
_AS_IT_CAME = "lifecycle.scope"


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span for each request; the very same application where no traces are asked for or can be made."""
    environment = os.environ
    if not _asked_for(environment):
        return app
    problem = _misconfigured(environment)
    if problem is None:
        try:
            return _instrumented(app)
        except ImportError as error:
            problem = f"the package of {error.name} is missing; install it with `{INSTALL}`"
        except (ValueError, OSError) as error:
            problem = f"OpenTelemetry refuses its settings ({error}); correct the OTEL_ variables"
    log.warning("No traces are sent: %s.", problem)
    return app


def flush(app: ASGIApp) -> None:
    """Send the spans that still wait and make no more; gives up after FLUSH_SECONDS. The end of the lifespan calls it."""
    if not isinstance(app, Traced):
        return
    # A thread that nobody waits for at exit: with a dead collector the exporter tries for longer than a shutdown may take.
    thread = threading.Thread(target=app.end_spans, daemon=True)
    thread.start()
    thread.join(FLUSH_SECONDS)
    if thread.is_alive():
        log.warning("The last traces were not sent within %g s: is the collector started?", FLUSH_SECONDS)


class Traced:
    """An application whose requests pass OpenTelemetry's middleware; health and metrics go straight through."""

    def __init__(self, app: ASGIApp, instrument: Callable[[ASGIApp], ASGIApp], end_spans: Callable[[], None]) -> None:
        """`instrument` wraps an application; `end_spans` sends what waits."""
        self._app, self._instrumented, self.end_spans = app, instrument(self._answer), end_spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._flushing(send))
        elif scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
        else:
            headers = [(name, value) for name, value in scope["headers"] if _may_be_seen(name, value)]
            shown = {**scope, "headers": headers, "query_string": b"", _AS_IT_CAME: scope}
            await self._instrumented(shown, receive, send)

    async def _answer(self, shown: Scope, receive: Receive, send: Send) -> None:
        """Inside the span: the request as it came, and what is only known with its answer."""
        from opentelemetry.trace import get_current_span

        scope, span = shown[_AS_IT_CAME], get_current_span()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                if "request_id" in scope:
                    span.set_attribute("request_id", scope["request_id"])
                # Names are few: a path that nobody serves is a stranger's, and would be one more.
                if (template := _template(scope)) is not None:
                    span.update_name(f"{scope['method']} {template}")
                elif message["status"] in (404, 405):
                    span.update_name(scope["method"])
            await send(message)

        await self._app(scope, receive, named)

    def _flushing(self, send: Send) -> Send:
        async def flushed(message: Message) -> None:
            # Here and not after the server: uvicorn ends the process by the signal that it got.
            if message["type"].startswith("lifespan.shutdown."):
                await asyncio.to_thread(flush, self)
            await send(message)

        return flushed


def _template(scope: Scope) -> str | None:
    """The path of the route that was taken, where it has parameters or FastAPI tells it."""
    told: str | None = getattr(scope.get("route"), "path_format", None)
    if told is not None:
        return told
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    parts = [f"{{{names[part]}}}" if part in names else part for part in scope["path"].split("/")]
    return "/".join(parts) if names else None


def _asked_for(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def _misconfigured(environment: Mapping[str, str]) -> str | None:
    """Why no trace would arrive, where that is plain from the variables."""
    name = next(name for name in _ENDPOINTS if environment.get(name, "").strip())
    if not environment[name].startswith(("http://", "https://")):
        return f"{name} is {environment[name]}, and must be an http:// or https:// address"
    for name in _PROTOCOLS:
        protocol = environment.get(name, "").strip() or "http/protobuf"
        if protocol != "http/protobuf":
            return f"{name} is {protocol}, and only http/protobuf is sent (a collector's port 4318); unset it"
    return None


def _instrumented(app: ASGIApp) -> Traced:
    """Raises ImportError without the extra `otel`; ValueError, OSError for variables that make no sense."""
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


def _may_be_seen(name: bytes, value: bytes) -> bool:
    # The instrumentation's decoding fails on some bytes, which would fail the request.
    return name not in _SECRET_HEADERS and value.isascii() and name.isascii()
