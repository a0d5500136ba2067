"""The API's log: one JSON object per line for machines, or text for people, and optionally a line per request.

Paths and messages contain what strangers sent. JSON puts each record on one line. Text escapes control characters and indents the lines
of an exception, so that nobody can forge a line. Both formats hide keys and passwords.
"""

import logging
import re
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this task answers. FrontDoor sets it."""

UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
MAX_PATH = 500
INDENT = "    "
HIDDEN = "[hidden]"
_SECRETS = (
    re.compile(r"(\blc_[0-9a-fA-F]{32}_)[0-9a-fA-F]+"),
    re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE),
    re.compile(r"(://[^\s:/@\"]*:)[^\s@/\"]+(?=@)"),
)
# Control characters, Unicode line separators, and characters that change the writing direction.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: chr(code).encode("unicode_escape").decode("ascii") for code in _CONTROLS}

access = logging.getLogger("serving.access")


def configure_logging(format: Literal["json", "text"]) -> None:
    """Send the whole log of this process to stderr in one format, including uvicorn's log and Python's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)


class JsonLines(JsonFormatter):
    """One JSON object per record, in ASCII: time, level, logger, message, request_id, exception, and the fields of `extra`."""

    def __init__(self) -> None:
        """Omits `color_message`, which uvicorn adds for terminals."""
        super().__init__(reserved_attrs=[*RESERVED_ATTRS, "color_message", "request_id"])

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add our fields first. The fields of `extra` never replace them."""
        log_data |= {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current_id := _request_id(record)) is not None:
            log_data["request_id"] = current_id
        extra: dict[str, Any] = {}
        super().add_fields(extra, record, message_dict)
        renamed = {"exc_info": "exception", "stack_info": "stack"}
        for name, value in extra.items():
            log_data.setdefault(renamed.get(name, name), value)

    def format(self, record: logging.LogRecord) -> str:
        """The line with secrets hidden."""
        return _without_secrets(super().format(record))


class TextLines(logging.Formatter):
    """`time level logger [request] message`, with an exception's lines indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with secrets hidden and control characters escaped."""
        current_id = _request_id(record)
        label = f" [{current_id}]" if current_id is not None else ""
        head = f"{_timestamp(record)} {record.levelname} {record.name}{label} {record.getMessage()}"
        details = []
        if record.exc_info and record.exc_info[0] is not None:
            details += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            details += self.formatStack(record.stack_info).split("\n")
        return _without_secrets("\n".join([_one_line(head), *(INDENT + _one_line(line) for line in details)]))


class AccessLog:
    """Logs method, path, status and duration of each request. ASGI middleware around the whole application (__main__.py).

    Leaves out the query and headers, which may contain secrets.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wraps `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection to the application and log it when it ends, even if it fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_and_note_status)
        except Exception:
            # The server turns the exception into a response.
            status = status or 500
            raise
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 3)
            method, path = scope["method"], scope["path"][:MAX_PATH]
            fields = {"method": method, "path": path, "status": status, "duration_ms": milliseconds}
            # No status: the client disconnected before the answer.
            access.info(
                "%s %s %s in %s ms", method, path, status or "unanswered", milliseconds,
                extra={**fields, "request_id": scope.get("request_id")},
            )  # fmt: skip


def _timestamp(record: logging.LogRecord) -> str:
    """The record's time in UTC, as RFC 3339 with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _request_id(record: logging.LogRecord) -> str | None:
    """The record's own request id, or else the id of the current task's request."""
    return getattr(record, "request_id", None) or request_id.get()


def _one_line(text: str) -> str:
    return text.translate(_ESCAPES)


def _without_secrets(line: str) -> str:
    for pattern in _SECRETS:
        line = pattern.sub(rf"\1{HIDDEN}", line)
    return line
