"""The hot routes in OpenAPI: FastAPI does not see them, so they are written in from their msgspec types.

Belongs here: the description. Does not belong here: the routes.
"""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from experimentation.event_validation import IncomingEvent
from serving.assignments import AssignmentRequest, AssignmentResponse
from serving.errors import ErrorBody
from serving.events import MAX_BATCH, BatchAccepted, EventAccepted

Schema = dict[str, Any]
_REFUSALS = {
    "400": "The body is not valid; `details` says where.",
    "401": "No valid API key.",
    "403": "The key lacks the scope.",
    "413": "The body is too large.",
    "503": "The database is away; come back after `retry_after` seconds.",
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "Echoed; made where it is absent.",
    "schema": {"type": "string", "maxLength": 128},
}


class EventBatch(msgspec.Struct):
    """Events that are stored together; each is judged on its own."""

    events: list[IncomingEvent]


def describe(app: FastAPI) -> Schema:
    """The whole OpenAPI document; made once, at the first call."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        types = (
            AssignmentRequest,
            AssignmentResponse,
            IncomingEvent,
            EventBatch,
            EventAccepted,
            BatchAccepted,
            ErrorBody,
        )
        schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
        by_type = dict(zip(types, schemas, strict=True))
        components["EventBatch"]["properties"]["events"] |= {"minItems": 1, "maxItems": MAX_BATCH}
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        refused = by_type[ErrorBody]
        document["paths"] |= {
            "/api/v1/assignments": _post(
                "assignments",
                "assign",
                "Variants and configs of a unit (scope `assign`)",
                by_type[AssignmentRequest],
                {"200": ("One entry a requested name.", by_type[AssignmentResponse])},
                refused,
            ),
            "/api/v1/events": _post(
                "events",
                "store_event",
                "Store one event (scope `ingest`)",
                by_type[IncomingEvent],
                {"200": ("Stored.", by_type[EventAccepted])},
                refused,
            ),
            "/api/v1/events/batch": _post(
                "events",
                "store_events",
                "Store up to 1,000 events (scope `ingest`)",
                by_type[EventBatch],
                {
                    "200": ("All stored.", by_type[BatchAccepted]),
                    "207": ("Some refused, listed in `errors`; the others stored.", by_type[BatchAccepted]),
                },
                refused,
            ),
        }
        app.openapi_schema = document
    return app.openapi_schema


def _post(
    tag: str, operation: str, summary: str, body: Schema, answers: dict[str, tuple[str, Schema]], refused: Schema
) -> Schema:
    responses = {
        status: {"description": description, "content": {"application/json": {"schema": schema}}}
        for status, (description, schema) in (
            *answers.items(),
            *((status, (description, refused)) for status, description in _REFUSALS.items()),
        )
    }
    return {
        "post": {
            "tags": [tag],
            "summary": summary,
            "operationId": operation,
            "security": [{"key": []}],
            "parameters": [_REQUEST_ID],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": responses,
        }
    }
