"""A log record is one line whatever a client sends, has the request's id, and contains no secrets."""

import asyncio
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import logs

FORMATS = ("json", "text")
KEY = "lc_" + "0a" * 16 + "_" + "5e" * 32
Lines = Callable[[Literal["json", "text"]], io.StringIO]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Configures logging for a format and returns the text that stderr gets. Restores the configuration afterwards."""
    names = (None, *logs.UVICORN_LOGGERS, "py.warnings")
    before = [(logger := logging.getLogger(name), logger.handlers[:], logger.level, logger.propagate) for name in names]
    stream = io.StringIO()

    def configure(kind: Literal["json", "text"]) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure_logging(kind)
        return stream

    client = logging.getLogger("httpx")
    monkeypatch.setattr(client, "disabled", True)  # it logs the requests of these tests
    yield configure
    logging.captureWarnings(False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    """Each line as JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_record_is_an_object_with_its_time_in_utc(logged: Lines) -> None:
    stream = logged("json")
    logging.getLogger("serving.http.database").warning("No %s today", "café", extra={"tries": 3, "level": "nonsense"})
    (record,) = records(stream)
    moment = datetime.fromisoformat(record.pop("time"))
    assert moment.utcoffset() == timedelta(0) and abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert record == {"level": "WARNING", "logger": "serving.http.database", "message": "No café today", "tries": 3}


def test_record_has_the_request_id_of_its_task(logged: Lines) -> None:
    stream = logged("json")

    async def request(name: str) -> None:
        logs.request_id.set(name)
        await asyncio.sleep(0)
        await asyncio.to_thread(logging.getLogger("x").info, "in %s", name)

    async def both() -> None:
        await asyncio.gather(request("a"), request("b"))

    asyncio.run(both())
    logging.getLogger("x").info("outside")
    request_ids = {record["message"]: record.get("request_id") for record in records(stream)}
    assert request_ids == {"in a": "a", "in b": "b", "outside": None}
    assert "request_id" not in records(stream)[-1]


def test_json_record_contains_its_exception(logged: Lines) -> None:
    stream = logged("json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (record,) = records(stream)
    assert record["message"] == "failed" and record["exception"].endswith("ValueError: two\nlines")
    assert record["exception"].startswith("Traceback") and "exc_info" not in record


def test_text_record_indents_its_exception(logged: Lines) -> None:
    stream = logged("text")
    try:
        raise ValueError("two\n2026-01-01T00:00:00Z ERROR root forged")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, *below = stream.getvalue().splitlines()
    assert first.endswith(" ERROR x failed")
    assert below and all(line.startswith(logs.INDENT) for line in below)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mark", ["\n", "\r\n", "\x1b[2K", "\u2028", "\x85", "\x00", "\u202e"])
def test_record_is_one_line_when_message_has_control_characters(
    logged: Lines, kind: Literal["json", "text"], mark: str
) -> None:
    stream = logged(kind)
    logging.getLogger("x").info("path /a%s2026-01-01T00:00:00Z ERROR root forged", mark)
    written = stream.getvalue()
    assert written.count("\n") == 1 and written.endswith("forged" + ('"}\n' if kind == "json" else "\n"))
    assert mark not in written.removesuffix("\n")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("message", "secret"),
    [
        (f"key {KEY} is odd", "5e5e"),
        ("header Authorization: Bearer abcdefghijklmnop.qrst", "abcdefghijklmnop"),
        ("can't reach postgresql://joe:hunter2@db:5432/x", "hunter2"),
        ("can't reach redis://:hunter2@cache:6379/0", "hunter2"),
    ],
)
def test_secrets_are_hidden(logged: Lines, kind: Literal["json", "text"], message: str, secret: str) -> None:
    stream = logged(kind)
    try:
        raise RuntimeError(message)
    except RuntimeError:
        logging.getLogger("x").exception(message)
    assert secret not in stream.getvalue()
    assert stream.getvalue().count(logs.HIDDEN) == (3 if message in stream.getvalue() else 2)


def test_ordinary_words_are_not_hidden(logged: Lines) -> None:
    stream = logged("text")
    message = "basic authentication is off; bearer keys at http://127.0.0.1:8000/docs, ask joe@example.org"
    logging.getLogger("x").info(message)
    assert message in stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_uvicorn_and_warnings_use_the_same_format(logged: Lines, kind: Literal["json", "text"]) -> None:
    for name in logs.UVICORN_LOGGERS:
        logging.getLogger(name).handlers[:] = [logging.StreamHandler(io.StringIO())]
        logging.getLogger(name).propagate = False
    stream = logged(kind)
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[1mStarted"})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and "\\u001b" not in lines[0] and "uvicorn.error" in lines[0] and "py.warnings" in lines[1]


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    scope["request_id"] = "r-1"
    if scope["path"] == "/broken":
        raise RuntimeError("broken")
    if scope["path"] == "/left":
        return
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(app: ASGIApp, path: str) -> None:
    async def once() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            await client.post(path, headers={"Authorization": f"Bearer {KEY}"}, content=b"body")

    asyncio.run(once())


def test_access_log_has_no_query_and_no_headers(logged: Lines) -> None:
    stream = logged("json")
    ask(logs.AccessLog(answering), "/tea?token=abc")
    (record,) = records(stream)
    assert record["duration_ms"] >= 0
    shown = {name: record[name] for name in ("level", "method", "path", "status", "request_id")}
    assert shown == {"level": "INFO", "method": "POST", "path": "/tea", "status": 418, "request_id": "r-1"}
    assert record["message"].startswith("POST /tea 418 in ")
    assert "abc" not in stream.getvalue() and "lc_" not in stream.getvalue()


def test_access_log_reports_500_when_the_application_fails(logged: Lines) -> None:
    stream = logged("json")
    ask(logs.AccessLog(answering), "/broken")
    (record,) = records(stream)
    assert (record["status"], record["request_id"]) == (500, "r-1")


def test_access_log_reports_no_status_without_an_answer(logged: Lines) -> None:
    stream = logged("json")
    scope: Scope = {"type": "http", "method": "POST", "path": "/left", "headers": []}

    async def nothing(*arguments: Any) -> Any:
        raise AssertionError("nothing is read or sent")

    asyncio.run(logs.AccessLog(answering)(scope, nothing, nothing))
    (record,) = records(stream)
    assert record["status"] is None and record["message"].startswith("POST /left unanswered in ")


@pytest.mark.parametrize("kind", FORMATS)
def test_access_log_is_one_line_when_the_path_has_a_newline(logged: Lines, kind: Literal["json", "text"]) -> None:
    stream = logged(kind)
    ask(logs.AccessLog(answering), "/a%0A2026-01-01T00:00:00Z%20ERROR%20root%20forged" + "x" * 10_000)
    (line,) = stream.getvalue().splitlines()
    assert "/a\\n2026-01-01" in line and len(line) < 2_000


def test_access_log_ignores_connections_other_than_http(logged: Lines) -> None:
    stream = logged("json")
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*arguments: Any) -> Any:
        """Never called."""

    asyncio.run(logs.AccessLog(app)({"type": "lifespan"}, nothing, nothing))
    assert seen == ["lifespan"] and stream.getvalue() == ""
