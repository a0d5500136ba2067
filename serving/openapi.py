"""The OpenAPI document. FastAPI does not know the hot routes, so they are added from their msgspec types."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from eventlog.validation import IncomingEvent, UnitId
from experimentation.runs.run import UnitType
from serving.assignments.ofrep import BulkEvaluation, Evaluation, EvaluationFailure
from serving.assignments.routes import AssignmentRequest, AssignmentResponse
from serving.events.routes import MAX_BATCH, BatchAccepted, EventAccepted
from serving.http.errors import ErrorBody

Schema = dict[str, Any]
_ERRORS = {
    "400": "The request is not valid. `details` lists the invalid fields.",
    "401": "The API key is missing or not valid.",
    "403": "The API key lacks the scope.",
    "404": "Not found.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "429": "The rate limit is exceeded. Retry after `retry_after` seconds.",
    "503": "The service is unavailable. Retry after `retry_after` seconds.",
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "Returned in the response if it is printable ASCII of at most 128 characters. Otherwise the server generates an id.",
    "schema": {"type": "string"},
}
_FLAG_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The experiment's name.",
    "schema": {"type": "string"},
}
_ENROLL = {
    "name": "X-Enroll",
    "in": "header",
    "required": False,
    "description": "Whether to enrol the unit. Default: true for one flag, false for all flags.",
    "schema": {"type": "string", "enum": ["true", "false"]},
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of an earlier response. Returns 304 if nothing changed.",
    "schema": {"type": "string"},
}
# Examples that work unchanged on the page /docs: they use names from this repository's own configuration.
_UNIT = {"unit_type": "user", "unit_id": "u1"}
_EVENT = {
    **_UNIT,
    "event_id": "3f2b8f7e-8f0d-4d3a-9c55-2a7f7f0c1f10",
    "event_type": "plan_accepted",
    "experiments": [],
    "context": {"platform": "ios"},
    "metrics": {"latency_ms": 41.5},
    "payload": {"plan_id": "p-1"},
    "timestamp": "2026-01-05T18:00:00+00:00",
}
_EXAMPLES: Mapping[str, Schema] = {
    "AssignmentRequest": {
        **_UNIT,
        "requested_experiments": ["recipe_cards"],
        "context": {"platform": "ios"},
        "enroll": False,
    },
    "IncomingEvent": _EVENT,
    "EventBatch": {"events": [_EVENT, {**_EVENT, "event_id": "3f2b8f7e-8f0d-4d3a-9c55-2a7f7f0c1f11"}]},
    "OfrepRequest": {"context": {"targetingKey": "u1", "unitType": "user", "platform": "ios"}},
}
_EXPERIMENT, _POLICY = "recipe_cards", "planner_policy"
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before a retry.", "schema": {"type": "integer"}}}


class OfrepContext(msgspec.Struct, rename="camel"):
    """The unit, and any values that targeting rules read. `unitType` is only required to enrol in all experiments at once."""

    targeting_key: UnitId
    unit_type: UnitType | msgspec.UnsetType = msgspec.UNSET


class OfrepRequest(msgspec.Struct):
    """The body of an OFREP request."""

    context: OfrepContext


class EventBatch(msgspec.Struct):
    """Events that are stored together. Each one is validated separately."""

    events: list[IncomingEvent]


def describe(app: FastAPI, hot: Collection[str]) -> Schema:
    """The whole OpenAPI document, built at the first call. `hot`: the paths that FastAPI does not know."""
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
            OfrepRequest,
            Evaluation,
            EvaluationFailure,
            BulkEvaluation,
            ErrorBody,
        )
        _, components = msgspec.json.schema_components(types, ref_template=_REF)
        components["EventBatch"]["properties"]["events"] |= {"minItems": 1, "maxItems": MAX_BATCH}
        flags = components["BulkEvaluation"]["properties"]["flags"]
        flags["items"] = {"anyOf": [_schema(Evaluation), _schema(EvaluationFailure)]}
        # An OFREP context may have any other fields.
        components["OfrepContext"]["additionalProperties"] = True
        for name, example in _EXAMPLES.items():
            components[name]["examples"] = [example]
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["paths"] |= {path: operations for path, operations in _hot_paths().items() if path in hot}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                # The page /docs does not render Markdown in summaries.
                operation["summary"] = operation["summary"].replace("`", "")
                _add_examples(path, operation.setdefault("parameters", []))
                operation["parameters"].append(_REQUEST_ID)
                if path.startswith(("/api/", "/ofrep/")):
                    operation["security"] = [{"key": []}]
                    # FastAPI's own error format is never sent.
                    operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema


def error_responses(*statuses: str) -> dict[int | str, dict[str, Any]]:
    """The error responses of an operation, for its `responses`."""
    return {
        status: {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": _schema(ErrorBody)}},
            **({"headers": _RETRY_AFTER} if status in ("429", "503") else {}),
        }
        for status in statuses
    }


_REF = "#/components/schemas/{name}"
_ALL = ("400", "401", "403", "408", "413", "429", "503")


def _add_examples(path: str, parameters: list[Schema]) -> None:
    values = {"name": _POLICY if "/policies/" in path else _EXPERIMENT, "key": _EXPERIMENT, "unit_id": _UNIT["unit_id"]}
    for parameter in parameters:
        if parameter["in"] == "path":
            parameter["example"] = values[parameter["name"]]


def _schema(shape: type) -> Schema:
    return {"$ref": _REF.format(name=shape.__name__)}


def _content(shape: type) -> Schema:
    return {"application/json": {"schema": _schema(shape)}}


def _hot_paths() -> Schema:
    etag = {"ETag": {"description": "For If-None-Match.", "schema": {"type": "string"}}}
    failed = {"description": "The context is not valid.", "content": _content(EvaluationFailure)}
    unknown = {"description": "The experiment does not exist.", "content": _content(EvaluationFailure)}
    return {
        "/api/v1/assignments": _post(
            "assignments",
            "assign",
            "Get the variants and configs of a unit (scope assign)",
            AssignmentRequest,
            {
                "200": {
                    "description": "Each requested name, in one of the two lists.",
                    "content": _content(AssignmentResponse),
                }
            },
        ),
        "/api/v1/events": _post(
            "events",
            "store_event",
            "Store one event (scope ingest)",
            IncomingEvent,
            {"200": {"description": "The event is stored.", "content": _content(EventAccepted)}},
        ),
        "/api/v1/events/batch": _post(
            "events",
            "store_events",
            "Store up to 1,000 events (scope ingest)",
            EventBatch,
            {
                "200": {"description": "All events are stored.", "content": _content(BatchAccepted)},
                "207": {
                    "description": "Some events are rejected and listed in `errors`. The others are stored.",
                    "content": _content(BatchAccepted),
                },
            },
        ),
        "/ofrep/v1/evaluate/flags/{key}": _post(
            "OFREP",
            "evaluate_flag",
            "Evaluate one experiment as a flag; enrols the unit unless X-Enroll: false (scope assign)",
            OfrepRequest,
            {
                "200": {"description": "Evaluated.", "content": _content(Evaluation)},
                "400": failed,
                "404": unknown,
            },
            [_FLAG_KEY, _ENROLL],
        ),
        "/ofrep/v1/evaluate/flags": _post(
            "OFREP",
            "evaluate_flags",
            "Evaluate all experiments as flags; enrols nobody unless X-Enroll: true (scope assign)",
            OfrepRequest,
            {
                "200": {"description": "Evaluated.", "content": _content(BulkEvaluation), "headers": etag},
                "304": {"description": "Nothing changed since the response with that ETag."},
                "400": failed,
            },
            [_ENROLL, _IF_NONE_MATCH],
        ),
    }


def _post(
    tag: str, operation: str, summary: str, body: type, responses: Schema, parameters: list[Schema] | None = None
) -> Schema:
    return {
        "post": {
            "tags": [tag],
            "summary": summary,
            "operationId": operation,
            "parameters": list(parameters or ()),
            "requestBody": {"required": True, "content": _content(body)},
            "responses": {**error_responses(*_ALL), **responses},
        }
    }
