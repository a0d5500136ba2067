"""The body of every error response, `{"error", "message", …}`, and the exceptions that become one."""

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
# A body can have thousands of errors. The first ones are enough to correct it.
MAX_DETAILS = 50
# The number of errors that the message explains.
MAX_EXPLAINED = 3
_OBJECT_RULE = f"must be an object without NUL characters, nested at most {MAX_DEPTH} levels deep"
# Error code without `missing_` or `invalid_` → the rule for the field.
_RULES = {
    "unit_type": "must be user, household or session",
    "unit_id": f"must be text of 1 to {MAX_UNIT_ID} characters",
    "requested_experiments": "must be a list of at most 100 names",
    "context": _OBJECT_RULE,
    "enroll": "must be true or false",
    "event_type": f"must be {', '.join(sorted(EVENT_TYPES))} or custom.<name>, with at most {MAX_EVENT_TYPE} characters",
    "timestamp": "must be ISO 8601 with an offset, such as 2026-01-05T18:00:00+00:00",
    "event_id": "must be a UUID",
    "experiment_id": "must be a UUID",
    "variant_id": "must be a UUID",
    "metric": "must be a finite number",
    "payload": _OBJECT_RULE,
    "event": "must be a JSON object",
    "events": "must be a list of 1 to 1,000 events",
    "body": "must be a JSON object",
    "json": "must be JSON",
}
# Fields that report the error codes of their parts.
_COMPOUND_RULES = {
    "experiments": "must be a list of objects with experiment_id and variant_id, both UUIDs",
    "metrics": "must be an object of finite numbers",
}
_OTHER_PHRASES = {
    "timestamp_in_future": f"is more than {FUTURE_TOLERANCE.seconds // 60} minutes ahead of the server's clock",
    "payload_too_large": f"is larger than {MAX_EVENT_BYTES:,} bytes",
}


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """The body of every error response."""

    error: str
    message: str
    details: list[FieldError] = []
    errors: list[dict[str, Any]] = []
    retry_after: int | None = None


class ApiError(Exception):
    """An error response: status, body and headers."""

    def __init__(self, status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body.message)
        self.status, self.body, self.headers = status, body, dict(headers or {})

    def response(self) -> Response:
        """The HTTP response."""
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(msgspec.json.encode(self.body), self.status, headers, "application/json")


def validation_error(
    details: Sequence[FieldError], message: str | None = None, errors: Sequence[dict[str, Any]] = ()
) -> ApiError:
    """400 with the invalid fields. `message` replaces the message made from `details`."""
    shown = [FieldError(detail.field, detail.error) for detail in details[:MAX_DETAILS]]
    return ApiError(400, ErrorBody("validation_error", message or _sentence(details), shown, list(errors)))


def _sentence(details: Sequence[FieldError]) -> str:
    phrases = [_phrase(detail) for detail in details[:MAX_EXPLAINED]]
    more = len(details) - len(phrases)
    return "; ".join([*phrases, f"and {more:,} more"] if more else phrases)


def _phrase(detail: FieldError) -> str:
    if isinstance(detail, ExplainedError):
        return f"{detail.field} {detail.words}"
    kind, _, name = detail.error.partition("_")
    words = _OTHER_PHRASES.get(detail.error)
    if words is None and kind in ("missing", "invalid"):
        words = _COMPOUND_RULES.get(detail.field) or _RULES.get(name)
    return f"{detail.field} {words}" if words else f"{detail.field}: {detail.error}"


def unauthorized() -> ApiError:
    """401: the key is missing, unknown or revoked."""
    body = ErrorBody("unauthorized", "Send a valid API key as `Authorization: Bearer <key>`.")
    return ApiError(401, body, {"WWW-Authenticate": "Bearer"})


def forbidden(*scopes: str) -> ApiError:
    """403: the key has none of `scopes`."""
    missing = " or ".join(f"`{scope}`" for scope in scopes)
    return ApiError(403, ErrorBody("forbidden", f"This API key lacks the scope {missing}."))


def not_found(message: str) -> ApiError:
    """404."""
    return ApiError(404, ErrorBody("not_found", message))


def rate_limited(subject: str, amount: int, wait: int, what: str = "requests") -> ApiError:
    """429. `amount`: the limit per minute; `wait`: seconds until a retry can succeed."""
    message = f"{subject} is limited to {amount:,} {what} a minute. Retry in {wait} s."
    return ApiError(429, ErrorBody("rate_limited", message, retry_after=wait), {"Retry-After": str(wait)})


def request_timeout(seconds: float) -> ApiError:
    """408. Closes the connection, because the rest of the body is not read."""
    message = f"The body did not arrive within {seconds:.0f} s."
    return ApiError(408, ErrorBody("request_timeout", message), {"Connection": "close"})


def payload_too_large(limit: int) -> ApiError:
    """413. Closes the connection, because the rest of the body is not read."""
    message = f"The body is larger than {limit:,} bytes."
    return ApiError(413, ErrorBody("payload_too_large", message), {"Connection": "close"})


def service_unavailable(message: str) -> ApiError:
    """503, with the time after which to retry."""
    body = ErrorBody("service_unavailable", message, retry_after=RETRY_AFTER_SECONDS)
    return ApiError(503, body, {"Retry-After": str(RETRY_AFTER_SECONDS)})


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Turns the errors of routing, such as 404 and 405, into our error response."""
    assert isinstance(error, HTTPException)
    name = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}."
    return ApiError(error.status_code, ErrorBody(name, message), error.headers).response()


async def on_request_validation(request: Request, error: Exception) -> Response:
    """Turns FastAPI's validation errors into our error response."""
    assert isinstance(error, RequestValidationError)
    details = [FieldError(".".join(str(part) for part in item["loc"][1:]), str(item["msg"])) for item in error.errors()]
    return validation_error(details).response()


async def on_api_error(request: Request, error: Exception) -> Response:
    """Turns an ApiError from a FastAPI route into its response."""
    assert isinstance(error, ApiError)
    return error.response()


def unexpected(request_id: str) -> ApiError:
    """500. The log has the traceback; the client gets only the request id."""
    body = ErrorBody(
        "internal_error", f"An internal error occurred. The server's log has the details under request id {request_id}."
    )
    return ApiError(500, body, {"X-Request-ID": request_id})


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Turns any other exception from a FastAPI route into a 500."""
    return unexpected(request.scope.get("request_id", "")).response()
