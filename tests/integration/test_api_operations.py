"""Operation of the API process: its log, its traces, its page /docs, and invalid settings at the start."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from api_support import Api
from conftest import free_port
from otlp_receiver import attributes, otlp_receiver

from foundation.api_keys import make_api_key

pytest_plugins = ["api_service"]

PARENT = "0af7651916cd43dd8448eb211c80319c"
ASK = {"unit_type": "user", "unit_id": "u", "requested_experiments": []}


@dataclass
class Process:
    """A running `python -m serving`. `stderr` is complete once it has ended."""

    url: str
    stderr: str = ""


@contextlib.contextmanager
def serving(database_url: str, home: Path, **variables: str) -> Iterator[Process]:
    """A process that is ready. SIGTERM ends it."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = {
        **inherited, "DATABASE_URL": database_url, "LIFECYCLE_HOME": str(home), "LIFECYCLE_API_PORT": str(port),
        # The first day is today: daily partitions for nine weeks would take seconds.
        "LIFECYCLE_FIRST_DAY": str(datetime.now(UTC).date()), **variables,
    }  # fmt: skip
    running = Process(f"http://127.0.0.1:{port}")
    process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.ConnectError):
                assert httpx.get(f"{running.url}/readyz").json() == {"status": "ready"}
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield running
        process.send_signal(signal.SIGTERM)
        running.stderr = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        process.communicate()


def authorization(database_url: str) -> dict[str, str]:
    """The header Authorization with a key that has the scope `assign`."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        return {"Authorization": f"Bearer {make_api_key(connection, 'web', ['assign'])[1]}"}


def test_every_log_line_is_a_json_object(database_url: str, home: Path) -> None:
    header = authorization(database_url)
    headers = {**header, "X-Request-ID": "mine-7"}
    with serving(database_url, home, LIFECYCLE_API_ACCESS_LOG="true", LIFECYCLE_PORTS="1") as process:
        httpx.post(f"{process.url}/api/v1/assignments?token=abc", json=ASK, headers=headers).raise_for_status()
    records: list[dict[str, Any]] = [json.loads(line) for line in process.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert {"uvicorn.error", "serving"} <= {record["logger"] for record in records}
    (warning,) = {record["message"] for record in records if record["level"] == "WARNING"}
    assert "LIFECYCLE_PORTS" in warning and "LIFECYCLE_PG_PORT" in warning
    (line,) = [record for record in records if record.get("path") == "/api/v1/assignments"]
    assert (line["method"], line["status"], line["request_id"]) == ("POST", 200, "mine-7")
    assert "abc" not in process.stderr and header["Authorization"].rsplit("_", 1)[1] not in process.stderr


def test_internal_error_is_logged_with_the_request_id_of_the_response(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from serving.http.logs import JsonLines

    def broken(*arguments: Any) -> None:
        raise RuntimeError("a secret of the house")

    formatter, lines = JsonLines(), []
    # The id is known only in the request's task, so the record is formatted there, as a handler does it.
    monkeypatch.setattr(caplog.handler, "emit", lambda record: lines.append(formatter.format(record)))
    monkeypatch.setattr("serving.http.auth.parse_api_key", broken)
    answer = api.client.post("/api/v1/assignments", json=ASK, headers={"X-Request-ID": "mine-8"})
    assert answer.status_code == 500
    (record,) = [record for line in lines if (record := json.loads(line))["level"] == "ERROR"]
    assert record["request_id"] == "mine-8" and "a secret of the house" in record["exception"]


def test_spans_arrive_before_the_process_ends(database_url: str, home: Path) -> None:
    with otlp_receiver() as receiver:
        # The delay is longer than the test, so only the shutdown can have sent the spans.
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with serving(database_url, home, **variables) as process:
            headers = {**authorization(database_url), "traceparent": f"00-{PARENT}-b7ad6b7169203331-01"}
            answer = httpx.post(f"{process.url}/api/v1/assignments", json=ASK, headers=headers)
            assert answer.status_code == 200
            httpx.get(f"{process.url}/nothing/at/all")
            httpx.get(f"{process.url}/metrics")
            assert receiver.spans == []
    assert sorted(span.name for _, span in receiver.spans) == ["GET", "POST /api/v1/assignments"]
    span = receiver.named("POST /api/v1/assignments")
    span_attributes = attributes(list(span.attributes))
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT, "b7ad6b7169203331")
    assert (span_attributes["http.status_code"], span_attributes["request_id"]) == (200, answer.headers["x-request-id"])
    assert {service["service.name"] for service, _ in receiver.spans} == {"lifecycle-api"}
    assert headers["Authorization"] not in str(receiver.spans)


def test_docs_page_of_the_api_is_complete(api: Api) -> None:
    page = api.client.get("/docs")
    assert page.status_code == 200 and "://" not in page.text
    assert api.client.get("/redoc").status_code == 404
    converted, original = api.client.get("/docs/openapi.json").json(), api.client.get("/openapi.json").json()
    assert converted["openapi"].startswith("3.0.") and original["openapi"].startswith("3.1.")
    assert converted["paths"].keys() == original["paths"].keys() >= {"/api/v1/assignments", "/api/v1/events/batch"}
    assert "/docs" not in original["paths"]
    assert '"null"' not in json.dumps(converted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIFECYCLE_API_PORT", "many"),
        ("LIFECYCLE_API_LOG_FORMAT", "xml"),
        ("LIFECYCLE_API_RETRY_DELAYS_MS", "[1"),
        ("REDIS_URL", "http://cache"),
    ],
)
def test_start_fails_with_one_sentence_when_a_setting_is_invalid(home: Path, name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving"],
        env={**os.environ, "LIFECYCLE_HOME": str(home), "DATABASE_URL": "postgresql://nowhere", name: value},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert name.removeprefix("LIFECYCLE_").lower() in done.stderr.lower() and "settings.env" in done.stderr
