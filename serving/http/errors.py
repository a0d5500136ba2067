"""The one shape of every refusal: `{"error", "message", …}`, and the exceptions that become it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventlog.validation import (
    EVENT_TYPES,
    FUTURE_TOLERANCE,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    MAX_EVENT_TYPE,
    MAX_UNIT_ID,
    ExplainedError,
    FieldError,
)

RETRY_AFTER_SECONDS = 5
# A body can be wrong in ten thousand places; the first few tell as much.
MAX_DETAILS = 50
# Of those, so many stand in the message.
MAX_TOLD = 3
_HELD = f"must be an object without NUL characters, nested at most {MAX_DEPTH} deep"
# Code without `missing_` or `invalid_` -> what the field must be.
_RULES = {
    "unit_type": "must be user, household or session",
    "unit_id": f"must be text of 1 to {MAX_UNIT_ID} characters",
    "requested_experiments": "must be a list of at most 100 names",
    "context": _HELD,
    "enroll": "must be true or false",
    "event_type": f"must be {', '.join(sorted(EVENT_TYPES))} or custom. and a name, of at most {MAX_EVENT_TYPE} characters",
    "timestamp": "must be ISO 8601 with an offset, such as 2026-01-05T18:00:00+00:00",
    "event_id": "must be a UUID",
    "experiment_id": "must be a UUID",
    "variant_id": "must be a UUID",
    "metric": "must be a finite number",
    "payload": _HELD,
    "event": "must be a JSON object",
    "events": "must be a list of 1 to 1,000 events",
    "body": "must be a JSON object",
    "json": "must be JSON",
}
# Fields whose code is the one of their parts.
_WHOLES = {
    "experiments": "must be a list of objects with experiment_id and variant_id, both UUIDs",
    "metrics": "must be an object of finite numbers",
}
_OTHERS = {
    "timestamp_in_future": f"is more than {FUTURE_TOLERANCE.seconds // 60} minutes ahead of our clock",
    "payload_too_large": f"is larger than {MAX_EVENT_BYTES:,} bytes",
}


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """The body of every refusal."""

    error: str
    message: str
    details: list[FieldError] = []
    errors: list[dict[str, Any]] = []
    retry_after: int | None = None


class ApiError(Exception):
    """A refusal: status, body and headers."""

    def __init__(self, status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body.message)
        self.status, self.body, self.headers = status, body, dict(headers or {})

    def response(self) -> Response:
        """As an HTTP response."""
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(msgspec.json.encode(self.body), self.status, headers, "application/json")


def validation_error(
    details: Sequence[FieldError], message: str | None = None, errors: Sequence[dict[str, Any]] = ()
) -> ApiError:
    """400, with the fields that are wrong."""
    shown = [FieldError(detail.field, detail.error) for detail in details[:MAX_DETAILS]]
    return ApiError(400, ErrorBody("validation_error", message or _sentence(details), shown, list(errors)))


def _sentence(details: Sequence[FieldError]) -> str:
    told = [_in_words(detail) for detail in details[:MAX_TOLD]]
    more = len(details) - len(told)
    return "; ".join([*told, f"and {more:,} more"] if more else told)


def _in_words(detail: FieldError) -> str:
    if isinstance(detail, ExplainedError):
        return f"{detail.field} {detail.words}"
    kind, _, name = detail.error.partition("_")
    words = _OTHERS.get(detail.error)
    if words is None and kind in ("missing", "invalid"):
        words = _WHOLES.get(detail.field) or _RULES.get(name)
    return f"{detail.field} {words}" if words else f"{detail.field}: {detail.error}"


def unauthorized() -> ApiError:
    """401; the same for a missing, an unknown and a revoked key."""
    body = ErrorBody("unauthorized", "Send a valid API key as `Authorization: Bearer <key>`.")
    return ApiError(401, body, {"WWW-Authenticate": "Bearer"})


def forbidden(*scopes: str) -> ApiError:
    """403, naming the scope that the key lacks, or those of which it has none."""
    return ApiError(
        403, ErrorBody("forbidden", f"This API key lacks the scope {' or '.join(f'`{scope}`' for scope in scopes)}.")
    )


def not_found(message: str) -> ApiError:
    """404."""
    return ApiError(404, ErrorBody("not_found", message))


def rate_limited(who: str, amount: int, wait: int, what: str = "requests") -> ApiError:
    """429, with the seconds after which to come back."""
    said = f"{who} has {amount:,} {what} a minute and used them; come back in {wait} s."
    return ApiError(429, ErrorBody("rate_limited", said, retry_after=wait), {"Retry-After": str(wait)})


def request_timeout(seconds: float) -> ApiError:
    """408; the connection is closed, since the rest of the body is not waited for."""
    message = f"The body did not come within {seconds:.0f} s."
    return ApiError(408, ErrorBody("request_timeout", message), {"Connection": "close"})


def payload_too_large(limit: int) -> ApiError:
    """413; the connection is closed, since the rest of the body is not read."""
    message = f"The body is larger than {limit:,} bytes."
    return ApiError(413, ErrorBody("payload_too_large", message), {"Connection": "close"})


def service_unavailable(message: str) -> ApiError:
    """503, with the time after which to come back."""
    body = ErrorBody("service_unavailable", message, retry_after=RETRY_AFTER_SECONDS)
    return ApiError(503, body, {"Retry-After": str(RETRY_AFTER_SECONDS)})


async def on_http_exception(request: Request, error: Exception) -> Response:
    """404, 405 and their like, as routing raises them."""
    assert isinstance(error, HTTPException)
    name = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}."
    return ApiError(error.status_code, ErrorBody(name, message), error.headers).response()


async def on_request_validation(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals, in our shape."""
    assert isinstance(error, RequestValidationError)
    details = [FieldError(".".join(str(part) for part in item["loc"][1:]), str(item["msg"])) for item in error.errors()]
    return validation_error(details).response()


async def on_api_error(request: Request, error: Exception) -> Response:
    """Our refusals, where one is raised behind a FastAPI route."""
    assert isinstance(error, ApiError)
    return error.response()


def unexpected(request_id: str) -> ApiError:
    """500; the server logs the traceback, the client gets none."""
    body = ErrorBody("internal_error", f"Something went wrong on our side; our log has it as request {request_id}.")
    return ApiError(500, body, {"X-Request-ID": request_id})


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A defect behind a FastAPI route."""
    return unexpected(request.scope.get("request_id", "")).response()
