"""Traces: nothing is imported when tracing is off, a configuration error is one sentence, and spans have the right content."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from otlp_receiver import Receiver, attributes, otlp_receiver
from starlette.types import ASGIApp, Receive, Scope, Send

from foundation.settings import PROJECT_ROOT
from serving.http import tracing
from serving.http.tracing import flush, traced

PARENT = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{PARENT}-b7ad6b7169203331-01"
TRACING_OFF = [
    {},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"},
    {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
]


class Route:
    """The route that FastAPI puts into a scope."""

    path_format = "/things/{name}"


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers 200, or 404 for unknown paths, and records its scope."""
    scope["request_id"] = "r-1"
    scope["seen"] = {**scope}
    status = 404 if scope["path"].startswith("/nothing") else 200
    if scope["path"].startswith("/things/"):
        scope["route"] = Route()
    if scope["path"].startswith("/flags/"):
        status, scope["path_params"] = 404, {"key": scope["path"].rsplit("/")[-1]}  # as Starlette's routes leave it
    body = f"{scope['query_string'].decode()} {len(scope['headers'])}".encode()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(app: ASGIApp, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> httpx.Response:
    """The response to one request."""

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            return await client.post(path, headers=headers, content=b"body")

    return asyncio.run(once())


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A running collector. The environment points to it."""
    with otlp_receiver() as running:
        set_only(monkeypatch, {"OTEL_EXPORTER_OTLP_ENDPOINT": running.url})
        yield running


def set_only(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set these variables and remove all other variables of OpenTelemetry."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", TRACING_OFF)
def test_application_is_not_wrapped_when_tracing_is_off(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_only(monkeypatch, variables)
    assert traced(answering) is answering
    flush(answering)


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("serving.http.tracing", ("opentelemetry",)),
        # FastAPI imports the API package, which does nothing by itself, and redis imports the SDK if it is installed.
        ("serving.__main__", ("opentelemetry.exporter", "opentelemetry.instrumentation", "opentelemetry.proto")),
    ],
)
def test_tracing_packages_are_not_imported_when_tracing_is_off(module: str, packages: tuple[str, ...]) -> None:
    script = (
        f"import sys, {module}; from serving.http.tracing import traced, flush\n"
        "app = object(); assert traced(app) is app; flush(app)\n"
        f"print([name for name in sys.modules if name.startswith({packages!r})])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, env={}, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is collector:4318, which is not an http:// or",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, but only http/protobuf is supported",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
            "OpenTelemetry rejects its settings",
        ),
    ],
)
def test_invalid_variable_is_one_warning_and_tracing_stays_off(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_only(monkeypatch, variables)
    assert traced(answering) is answering
    (record,) = [record for record in caplog.records if record.name == "serving.http.tracing"]
    assert words in record.getMessage() and "\n" not in record.getMessage() and record.exc_info is None


@pytest.mark.parametrize(
    "missing", ["opentelemetry.instrumentation.asgi", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_warning_says_how_to_install_when_the_extra_is_missing(
    missing: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert traced(answering) is answering
    (record,) = [record for record in caplog.records if record.name == "serving.http.tracing"]
    assert "`pip install -e '.[otel]' -c constraints.txt`" in record.getMessage() and missing in record.getMessage()


def test_span_belongs_to_the_trace_of_the_caller(receiver: Receiver) -> None:
    app = traced(answering)
    ask(app, "/api/v1/assignments", [(b"traceparent", TRACEPARENT.encode())])
    flush(app)
    ((service, span),) = receiver.spans
    assert receiver.paths == {"/v1/traces"}
    assert service["service.name"] == "lifecycle-api"
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (
        "POST /api/v1/assignments",
        PARENT,
        TRACEPARENT.split("-")[2],
    )
    span_attributes = attributes(list(span.attributes))
    assert (span_attributes["http.status_code"], span_attributes["request_id"]) == (200, "r-1")


def test_request_without_a_trace_starts_one(receiver: Receiver) -> None:
    app = traced(answering)
    ask(app, "/api/v1/events")
    ask(app, "/api/v1/events")
    flush(app)
    traces = {span.trace_id for _, span in receiver.spans}
    assert len(traces) == 2 and all(not span.parent_span_id for _, span in receiver.spans)


def test_service_name_comes_from_the_variable(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "dinner")
    app = traced(answering)
    ask(app, "/api/v1/events")
    flush(app)
    assert receiver.spans[0][0]["service.name"] == "dinner"


def test_span_name_is_the_path_template(receiver: Receiver) -> None:
    app = traced(answering)
    for path in ("/things/1", "/things/2", "/nothing/1", "/nothing/2", "/flags/a", "/flags/b", *tracing.UNTRACED):
        ask(app, path)
    flush(app)
    names = {"POST", "POST /things/{name}", "POST /flags/{key}"}
    assert sorted(span.name for _, span in receiver.spans) == sorted([*names, *names])


def test_secrets_and_query_reach_the_application_and_not_the_span(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", ".*")
    app = traced(answering)
    answer = ask(app, "/api/v1/events?token=abc", [(b"authorization", b"Bearer hunter2"), (b"cookie", b"hunter2")])
    plain = ask(answering, "/api/v1/events?token=abc", [(b"authorization", b"Bearer hunter2"), (b"cookie", b"hunter2")])
    assert answer.text == plain.text and "token=abc" in answer.text
    flush(app)
    ((_, span),) = receiver.spans
    assert "http.request.header.host" in attributes(list(span.attributes))
    assert "hunter2" not in str(span) and "abc" not in str(span)


def test_undecodable_headers_do_not_fail_the_request(receiver: Receiver) -> None:
    app = traced(answering)
    assert ask(app, "/api/v1/events", [(b"user-agent", b"\xff\\"), (b"traceparent", b"\xff\\")]).status_code == 200
    flush(app)
    assert receiver.named("POST /api/v1/events")


def test_pending_spans_are_sent_at_the_end_of_the_lifespan(receiver: Receiver) -> None:
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answering(scope, receive, send)
            return
        await send({"type": "lifespan.shutdown.complete"})

    wrapped = traced(app)
    ask(wrapped, "/api/v1/events")
    assert receiver.spans == []

    async def send(message: Any) -> None:
        # The spans arrive before the server learns that the shutdown is complete.
        events.append(f"{message['type']} {len(receiver.spans)}")

    async def receive() -> Any:
        """Never called."""

    async def end() -> None:
        await wrapped({"type": "lifespan"}, receive, send)

    asyncio.run(end())
    assert events == ["lifespan.shutdown.complete 1"]


def test_dead_collector_does_not_delay_the_shutdown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.01)
    app = tracing.Traced(answering, lambda inner: inner, released.wait)  # type: ignore[arg-type]
    flush(app)
    released.set()
    assert "The last traces were not sent within 0.01 s" in caplog.text
