"""The API's log: a JSON object a line for machines, or text for people, and a line for each request where that is asked for.

Paths and messages hold what strangers sent. A record is one line in JSON; in text its control characters are escaped, and only the lines of
an exception follow, indented, so that nobody can write a line that looks like ours. Keys and passwords are hidden in both.
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
"""The id of the request that this task answers; the front door sets it."""

UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
MAX_PATH = 500
INDENT = "    "
HIDDEN = "[hidden]"
_SECRETS = (
    re.compile(r"(\blc_[0-9a-fA-F]{32}_)[0-9a-fA-F]+"),
    re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE),
    re.compile(r"(://[^\s:/@\"]*:)[^\s@/\"]+(?=@)"),
)
# Control characters, the separators that some readers take for the end of a line, and those that turn the direction of writing.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: chr(code).encode("unicode_escape").decode("ascii") for code in _CONTROLS}

access = logging.getLogger("serving.access")


def configure_logging(format: Literal["json", "text"]) -> None:
    """Send everything that this process logs, uvicorn's and Python's warnings included, to stderr in one format."""
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
    """One JSON object a record, in ASCII: time, level, logger, message, request_id, exception, and what `extra` brought."""

    def __init__(self) -> None:
        """`color_message` is uvicorn's, for terminals."""
        super().__init__(reserved_attrs=[*RESERVED_ATTRS, "color_message", "request_id"])

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Ours first, in their order; an `extra` never replaces them."""
        log_data |= {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (of_request := _request_id(record)) is not None:
            log_data["request_id"] = of_request
        more: dict[str, Any] = {}
        super().add_fields(more, record, message_dict)
        renamed = {"exc_info": "exception", "stack_info": "stack"}
        for name, value in more.items():
            log_data.setdefault(renamed.get(name, name), value)

    def format(self, record: logging.LogRecord) -> str:
        """The line, without secrets."""
        return _without_secrets(super().format(record))


class TextLines(logging.Formatter):
    """`time level logger [request] message`, with an exception's lines indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without secrets and control characters."""
        of_request = _request_id(record)
        label = f" [{of_request}]" if of_request is not None else ""
        head = f"{_moment(record)} {record.levelname} {record.name}{label} {record.getMessage()}"
        below = []
        if record.exc_info and record.exc_info[0] is not None:
            below += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            below += self.formatStack(record.stack_info).split("\n")
        return _without_secrets("\n".join([_one_line(head), *(INDENT + _one_line(line) for line in below)]))


class AccessLog:
    """Logs method, path, status and duration of each request. Plain ASGI, around the whole application (__main__.py).

    The query is left out, since it may hold anything, and so are headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        """`app` answers."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on, and log it when it is over, however it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, watched)
        except Exception:
            # Whoever is outside turns it into an answer.
            status = status or 500
            raise
        finally:
            milliseconds = round((time.perf_counter() - began) * 1000, 3)
            method, path = scope["method"], scope["path"][:MAX_PATH]
            fields = {"method": method, "path": path, "status": status, "duration_ms": milliseconds}
            # No status: the client left before its answer.
            access.info(
                "%s %s %s in %s ms", method, path, status or "unanswered", milliseconds,
                extra={**fields, "request_id": scope.get("request_id")},
            )  # fmt: skip


def _moment(record: logging.LogRecord) -> str:
    """RFC 3339, in UTC, with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _request_id(record: logging.LogRecord) -> str | None:
    """What the record was given, else what this task works for."""
    return getattr(record, "request_id", None) or request_id.get()


def _one_line(text: str) -> str:
    return text.translate(_ESCAPES)


def _without_secrets(line: str) -> str:
    for pattern in _SECRETS:
        line = pattern.sub(rf"\1{HIDDEN}", line)
    return line
